"""A Q-Former and a linear map: the connector of BLIP-2, InstructBLIP and MiniGPT-4 (Li et al. 2023, section 3.3)."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.models.connectors.base import CONNECTORS, Connector, ConnectorOutput
from vitvlm.models.qformer import QFormer
from vitvlm.nn.dense import Dense
from vitvlm.nn.patches import Pair
from vitvlm.nn.roles import Roles, under

INSTRUCTION = ("instruction_tokens", "instruction_mask")
OF_QFORMER = (  # fields that go by the same names there
    *("queries", "cross_every", "vocab_size", "length", "depth", "heads", "mlp_width", "activation", "norm_eps"),
    *("dropout", "attention_dropout", "attention", "scan", "remat"),
)


@CONNECTORS.register("qformer")
class QFormerConnector(Connector, kw_only=True):
    """Learned queries look at the features of an image, and what each finds is mapped to width D.

    The defaults are BERT-base's sizes, as published. With a vocab_size the queries see an instruction too, which a
    batch has in instruction_tokens and instruction_mask, of a tokenizer of their own (InstructBLIP; Dai et al. 2023).

    Fields, besides those of `Connector`:
      queries, cross_every, vocab_size, length: see `models.qformer.QFormer`.
      query_width, depth, heads, mlp_width, activation, norm_eps, dropout, attention_dropout, attention, scan, remat: of
        its blocks, see `nn.transformer.BlockFields`.
    """

    roles: ClassVar[Roles] = (*under("qformer/", QFormer.roles), *under("projection/", Dense.roles))
    reads: ClassVar[tuple[str, ...]] = INSTRUCTION
    captures: ClassVar[tuple[str, ...]] = ("attention",)

    queries: int = 32
    cross_every: int = 2
    vocab_size: int | None = None
    length: int = 512
    query_width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attention: str = "auto"
    scan: bool = True
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B N E"],
        grid: Pair,
        mask: Bool[Array, "B N"] | None = None,
        *,
        instruction_tokens: Int[Array, "T L"] | None = None,
        instruction_mask: Shaped[Array, "T L"] | None = None,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> ConnectorOutput:
        """Connects the features of images, as `Connector` says.

        Args:
          instruction_tokens: of T texts, each that of B / T images that follow each other.
          instruction_mask: 1 or True for their real tokens; all are by default.
          perturb: by kind, "attention" and "cross".

        Raises ConfigError for an instruction that nothing reads, and for none where one is read.
        """
        if instruction_tokens is None and self.vocab_size is not None and not self.is_initializing():
            raise config.ConfigError(
                "model.connector.vocab_size: this Q-Former reads an instruction, and the batch has no "
                "instruction_tokens; leave vocab_size out for one that reads none"
            )
        if instruction_tokens is not None and self.vocab_size is None:
            raise config.ConfigError(
                "model.connector.vocab_size: None, so nothing reads the batch's instruction_tokens; give the size of "
                "their vocabulary"
            )
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        shared = {name: getattr(self, name) for name in OF_QFORMER}
        qformer = QFormer(width=self.query_width, **shared, **dtypes, name="qformer")
        texts = [None, None]
        if instruction_tokens is not None:
            texts = [_of_images(x, len(features)) for x in (instruction_tokens, instruction_mask)]
        out = qformer(features, *texts, image_mask=mask, train=train, capture=capture, perturb=perturb)
        tokens = Dense(self.width, name="projection", **dtypes)(out.queries)
        attention = None
        if "attention" in capture:
            attention = {"attention": out.attention, "cross": out.cross_attention}
        return ConnectorOutput(tokens, attention)

    def count(self, grid: Pair) -> int:
        return self.queries


def _of_images(texts: Shaped[Array, "T L"] | None, images: int) -> Shaped[Array, "B L"] | None:
    """Each text once for every one of its images."""
    return None if texts is None else jnp.repeat(texts, images // len(texts), axis=0)

"""BERT (Devlin et al. 2019): a post-norm text encoder that looks both ways. MiniLM (Wang et al. 2020) is one."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import TextOutput
from vitvlm.models.registry import MODELS, module_fields, named_variant
from vitvlm.nn.activations import activation
from vitvlm.nn.blocks import Block
from vitvlm.nn.calls import Call
from vitvlm.nn.dense import Dense
from vitvlm.nn.pooling import masked_mean
from vitvlm.nn.roles import EMBED, NORM, STACK, Role, Roles, under
from vitvlm.nn.transformer import Transformer

UNCASED = {"vocab_size": 30_522, "length": 512}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072, **UNCASED},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096, **UNCASED},
    "MiniLM-L6": {"width": 384, "depth": 6, "heads": 12, "mlp_width": 1536, **UNCASED},
}

POOLS = ("cls", "first", "mean")


class Bert(Transformer, ModelFacts, kw_only=True):
    """Embeddings of tokens, positions and segments, a norm, post-norm blocks, and one pooled vector.

    Fields, besides those of `nn.transformer.Transformer`:
      vocab_size: ids are in [0, vocab_size); length: the most tokens that a text has positions for.
      segments: number of kinds of tokens ("token types"): those of a first and of a second sentence.
      pool: "cls", a tanh layer on the first token, [CLS] (the pooler); "first", that token itself (ALIGN); or "mean"
        over the real tokens (sentence-transformers).
      mlm_head: whether there is a head that says which token is at each place (masked language modelling; Devlin et al.
        2019, section 3.1): `logits`. Its last layer is the table of tokens, transposed.
      pooler: whether the pooler is there; by default exactly if it pools. Published weights have one that pools
        nothing; it is kept here so that they are written as they were read.
    """

    roles: ClassVar[Roles] = (
        *under("embed/", EMBED, "embedding"),
        ("positions|segments", Role("table", "embedding")),
        *under("embed_norm/", NORM, "embedding"),
        *under(STACK, Block.roles, "block"),
        *under("pooler/", Dense.roles),
        *under("mlm_dense/", Dense.roles),
        *under("mlm_norm/", NORM),
        ("mlm_bias", Role("bias")),
    )

    vocab_size: int
    length: int
    segments: int = 2
    pool: str = "cls"
    pooler: bool | None = None
    mlm_head: bool = False
    norm_eps: float = 1e-12

    @nn.compact
    def __call__(
        self,
        text_tokens: Int[Array, "B L"],
        mask: Shaped[Array, "B L"] | None = None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Float[Array, "depth B K L L"]] | None = None,
    ) -> TextOutput:
        """Encodes texts of L <= `length` tokens.

        Args:
          mask [B, L]: 1 or True for each real token, 0 for padding, which is not looked at; all are real by default.
          segment_ids [B, L]: in [0, segments); all 0 by default.
          capture: any of "hidden" and "attention".
          perturb: {"attention": zeros}, whose gradient is that of the attention weights; see `nn.calls.PerLayer`.

        In training, rng "dropout" is used if any dropout or drop path is on.

        Raises ValueError for longer texts, ConfigError for an unknown pool or capture, or the pool "cls" without the
        pooler.
        """
        self._check()
        B, L = text_tokens.shape
        if self.length < L:
            raise ValueError(f"texts of {L} tokens; there are {self.length} positions: cut them or raise model.length")
        dtypes = self.dtypes
        init = nn.initializers.normal(0.02)  # their own code's
        embed = nn.Embed(self.vocab_size, self.width, embedding_init=init, name="embed", **dtypes)
        positions = self.param("positions", init, (self.length, self.width), self.param_dtype)
        segments = self.param("segments", init, (self.segments, self.width), self.param_dtype)
        segment = segments[0] if segment_ids is None else segments[segment_ids]
        x = embed(text_tokens) + positions[:L].astype(self.dtype) + segment.astype(self.dtype)
        x = self.make_norm()(name="embed_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        visible = None if mask is None else mask.astype(bool)[:, None, None, :]
        call = Call(mask=visible, train=train, capture=capture)
        stacked = self.apply_blocks(x, call, self.make_block(norms="post"), perturb=perturb)
        pooled = self._pool(stacked.tokens, jnp.ones((B, L), bool) if mask is None else mask)
        return TextOutput(
            tokens=stacked.tokens,
            pooled=pooled,
            logits=self._predict(stacked.tokens, embed) if self.mlm_head else None,
            hidden=stacked.hidden,
            attention=stacked.weights(),
        )

    @property
    def has_pooler(self) -> bool:
        return self.pool == "cls" if self.pooler is None else self.pooler

    def _check(self) -> None:
        if self.pool not in POOLS:
            raise config.ConfigError(f"model.pool: no pooling {self.pool!r}; {config.suggest(self.pool, POOLS)}")
        if self.pool == "cls" and not self.has_pooler:
            raise config.ConfigError('model.pooler: False, but model.pool is "cls": use "first" or "mean"')

    def _pool(self, tokens: Float[Array, "B L D"], mask: Shaped[Array, "B L"]) -> Float[Array, "B D"]:
        first = tokens[:, 0]
        if self.has_pooler:
            by_pooler = jnp.tanh(Dense(self.width, name="pooler", **self.dtypes)(first))
        if self.pool == "cls":
            return by_pooler
        return first if self.pool == "first" else masked_mean(tokens, mask)

    def _predict(self, tokens: Float[Array, "B L D"], embed: nn.Embed) -> Float[Array, "B L V"]:
        x = activation(self.activation)(Dense(self.width, name="mlm_dense", **self.dtypes)(tokens))
        x = self.make_norm()(name="mlm_norm")(x)
        bias = self.param("mlm_bias", nn.initializers.zeros_init(), (self.vocab_size,), self.param_dtype)
        return embed.attend(x) + bias.astype(self.dtype)


@MODELS.register("bert")
def build_bert(variant: str | None = None, **fields: Any) -> Bert:
    """A BERT from a variant ("base", "large", "MiniLM-L6"), from sizes, or from a variant with some changed."""
    config.check_names(fields, ["variant", *module_fields(Bert)], "model")
    return config.call(Bert, named_variant(VARIANTS, variant) | fields, "model")

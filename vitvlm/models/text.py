"""The text transformer of two-tower models (Radford et al. 2021, section 2.4; Zhai et al. 2023, section 4)."""

import functools
from collections.abc import Collection

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.models.outputs import TextOutput
from vitvlm.models.registry import MODELS
from vitvlm.nn.blocks import Block
from vitvlm.nn.dense import Dense
from vitvlm.nn.stack import apply_blocks

POOLS = ("eot", "last")


@MODELS.register("text")
class TextTransformer(nn.Module):
    """Token and position embeddings, pre-norm blocks, a final norm, and one pooled vector.

    Fields:
      width, depth, heads, mlp_width: D, number of blocks, K, hidden width of the MLPs.
      vocab_size: ids are in [0, vocab_size); length: the most tokens that a text has positions for.
      causal: whether a token looks only at itself and those before it (CLIP), or at all (SigLIP).
      pool: "eot", the token at the end of the text; or "last", the last one, padding or not (SigLIP).
      eot_id: the end of a text is the FIRST token of this id, as texts may be padded with it; without one in the text
        it is the first token. None: the end is the largest id, as in CLIP's own vocabulary.
      projection: width of a linear layer after pooling, whose output is `pooled` then (SigLIP's head).
      activation, norm_eps, drop_path, dropout, attention_dropout: see `nn.blocks.Block`; drop_path is that of the last
        block.
      scan, remat: see `nn.stack.apply_blocks`.
      dtype: of the computation; param_dtype: of the parameters.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    vocab_size: int
    length: int
    causal: bool = True
    pool: str = "eot"
    eot_id: int | None = None
    projection: int | None = None
    activation: str = "gelu"
    norm_eps: float = 1e-6
    drop_path: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    scan: bool = True
    remat: str = "none"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        text_tokens: Int[Array, "B L"],
        mask: Shaped[Array, "B L"] | None = None,
        *,
        train: bool = False,
        capture: Collection[str] = (),
    ) -> TextOutput:
        """Encodes texts of L <= `length` tokens.

        Args:
          mask [B, L]: 1 or True for each real token, 0 for padding, which is not looked at; all are real by default.
          capture: any of "hidden" and "attention".

        In training, rng "dropout" is used if any dropout or drop path is on.

        Raises ValueError for longer texts, ConfigError for an unknown pool or capture.
        """
        if self.pool not in POOLS:
            raise config.ConfigError(f"model.pool: no pooling {self.pool!r}; {config.suggest(self.pool, POOLS)}")
        _, L = text_tokens.shape
        if self.length < L:
            raise ValueError(f"texts of {L} tokens; there are {self.length} positions: cut them or raise model.length")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # Deviations of CLIP's own code.
        embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=nn.initializers.normal(0.02), name="embed", **dtypes
        )
        positions = self.param("positions", nn.initializers.normal(0.01), (self.length, self.width), self.param_dtype)
        x = embed(text_tokens) + positions[:L].astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        block = functools.partial(
            Block,
            self.heads,
            self.mlp_width,
            activation=self.activation,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            **dtypes,
        )
        stacked = apply_blocks(
            block,
            x,
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            drop_path=self.drop_path,
            mask=self._visible(L, mask),
            train=train,
            capture=capture,
        )
        tokens = nn.LayerNorm(self.norm_eps, name="norm", **dtypes)(stacked.tokens)
        pooled = self._pool(tokens, text_tokens)
        if self.projection:
            pooled = Dense(self.projection, name="projection", **dtypes)(pooled)
        return TextOutput(tokens=tokens, pooled=pooled, hidden=stacked.hidden, attention=stacked.attention)

    def _visible(self, L: int, mask: Shaped[Array, "B L"] | None) -> Bool[Array, "#B 1 #L L"] | None:
        """True where a token (third axis) may look; None where all look at all."""
        visible = jnp.tri(L, dtype=bool)[None, None] if self.causal else None
        if mask is None:
            return visible
        real = mask.astype(bool)[:, None, None, :]
        return real if visible is None else visible & real

    def _pool(self, tokens: Float[Array, "B L D"], text_tokens: Int[Array, "B L"]) -> Float[Array, "B D"]:
        if self.pool == "last":
            return tokens[:, -1]
        ids = text_tokens if self.eot_id is None else text_tokens == self.eot_id
        end = jnp.argmax(ids, axis=1)  # of equal ones the first
        return jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]

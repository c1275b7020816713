"""The text transformer of two-tower models (Radford et al. 2021, section 2.4; Zhai et al. 2023, section 4; Yu et al.
2022, section 3.2)."""

from collections.abc import Collection, Mapping
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.core.limits import Count
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import TextOutput
from vitvlm.models.registry import MODELS
from vitvlm.nn.blocks import Block
from vitvlm.nn.calls import Call
from vitvlm.nn.dense import Dense
from vitvlm.nn.roles import EMBED, NORM, STACK, Role, Roles, under
from vitvlm.nn.transformer import Transformer

POOLS = ("eot", "last", "cls")


@MODELS.register("text")
class TextTransformer(Transformer, ModelFacts, kw_only=True):
    """Token and position embeddings, pre-norm blocks, a final norm, and one pooled vector.

    Fields, besides those of `nn.transformer.Transformer`:
      vocab_size: ids are in [0, vocab_size); length: the most tokens that a text has positions for.
      causal: whether a token looks only at itself and those before it (CLIP), or at all (SigLIP).
      pool: "eot", the token at the end of the text; "last", the last one, padding or not (SigLIP); or "cls", a learned
        token put behind the text, padding or not, which is in `hidden` and `attention` but not in `tokens` (CoCa).
      eot_id: the end of a text is the FIRST token of this id, as texts may be padded with it; without one in the text
        it is the first token. None: the end is the largest id, as in CLIP's own vocabulary.
      late_mask: whether padding is masked one token late, which lets the CLS token look at the first token of padding,
        and at itself only behind a text without any: so were the published weights of CoCa trained.
      norm_pooled: whether the final norm is that of the pooled vector, not of the tokens (CoCa).
      projection: width of a linear layer after pooling, whose output is `pooled` then (SigLIP's head); projection_bias:
        whether it has a bias (CLIP's has none).
    """

    roles: ClassVar[Roles] = (
        *under("embed/", EMBED, "embedding"),
        ("positions", Role("table", "embedding")),
        ("cls", Role("token", "embedding")),
        *under(STACK, Block.roles, "block"),
        *under("norm/", NORM),
        *under("projection/", Dense.roles),
    )

    vocab_size: Count
    length: Count
    causal: bool = True
    pool: str = "eot"
    eot_id: int | None = None
    late_mask: bool = False
    norm_pooled: bool = False
    projection: Count | None = None
    projection_bias: bool = True

    @nn.compact
    def __call__(
        self,
        text_tokens: Int[Array, "B L"],
        mask: Shaped[Array, "B L"] | None = None,
        *,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Float[Array, "depth B K T T"]] | None = None,
    ) -> TextOutput:
        """Encodes texts of L <= `length` tokens.

        Args:
          mask [B, L]: 1 or True for each real token, 0 for padding, which is not looked at; all are real by default.
          capture: any of "hidden" and "attention".
          perturb: {"attention": zeros}, whose gradient is that of the attention weights; see `nn.calls.PerLayer`.

        In training, rng "dropout" is used if any dropout or drop path is on.

        Raises ValueError for longer texts, ConfigError for an unknown pool or capture, or late_mask without CLS.
        """
        if self.pool not in POOLS:
            raise config.ConfigError(f"model.pool: no pooling {self.pool!r}; {config.suggest(self.pool, POOLS)}")
        if self.late_mask and self.pool != "cls":
            raise config.ConfigError(f'model.late_mask: is about a CLS token; model.pool is {self.pool!r}, not "cls"')
        B, L = text_tokens.shape
        if self.length < L:
            raise ValueError(f"texts of {L} tokens; there are {self.length} positions: cut them or raise model.length")
        dtypes = self.dtypes
        # Deviations of CLIP's own code.
        embed = nn.Embed(
            self.vocab_size, self.width, embedding_init=nn.initializers.normal(0.02), name="embed", **dtypes
        )
        init = nn.initializers.normal(0.01)
        x = embed(text_tokens)
        if self.pool == "cls":
            cls = self.param("cls", init, (self.width,), self.param_dtype).astype(self.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(cls, (B, 1, self.width))], axis=1)
        T = x.shape[1]
        places = self.length + (self.pool == "cls")
        positions = self.param("positions", init, (places, self.width), self.param_dtype)
        x = x + positions[:T].astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        call = Call(mask=self._visible(T, mask), train=train, capture=capture)
        stacked = self.apply_blocks(x, call, perturb=perturb)
        norm = self.make_norm()(name="norm")
        tokens = stacked.tokens if self.norm_pooled else norm(stacked.tokens)
        pooled = self._pool(tokens, text_tokens)
        if self.norm_pooled:
            pooled = norm(pooled)
        if self.projection:
            pooled = Dense(self.projection, self.projection_bias, name="projection", **dtypes)(pooled)
        return TextOutput(tokens=tokens[:, :L], pooled=pooled, hidden=stacked.hidden, attention=stacked.weights())

    def _visible(self, T: int, mask: Shaped[Array, "B L"] | None) -> Bool[Array, "#B 1 #T T"] | None:
        """True where one of the T tokens (third axis), CLS among them, may look; None where all look at all."""
        visible = jnp.tri(T, dtype=bool)[None, None] if self.causal else None
        if mask is None:
            return visible
        real = mask.astype(bool)
        if self.pool == "cls":
            cls = jnp.ones_like(real[:, :1])
            real = jnp.concatenate([cls, real] if self.late_mask else [real, cls], axis=1)
        real = real[:, None, None, :]
        return real if visible is None else visible & real

    def _pool(self, tokens: Float[Array, "B T D"], text_tokens: Int[Array, "B L"]) -> Float[Array, "B D"]:
        if self.pool in ("last", "cls"):
            return tokens[:, -1]
        ids = text_tokens if self.eot_id is None else text_tokens == self.eot_id
        end = jnp.argmax(ids, axis=1)  # of equal ones the first
        return jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]

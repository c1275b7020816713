"""The Q-Former of BLIP-2 (Li et al. 2023, section 3.1): learned queries that look at an image, beside a text."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.core.limits import Count
from vitvlm.models.language import over_keys
from vitvlm.models.outputs import QFormerOutput
from vitvlm.nn.activations import activation
from vitvlm.nn.blocks import Block, Make
from vitvlm.nn.calls import Call
from vitvlm.nn.dense import Dense
from vitvlm.nn.roles import EMBED, NORM, STACK, Role, Roles, under
from vitvlm.nn.transformer import Transformer

SEES = ("both", "causal", "apart")

BASE = {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072}  # BERT-base's, as published


class QFormer(Transformer, kw_only=True):
    """BERT's post-norm blocks over M learned queries and, where it reads texts, a text's tokens behind them.

    Queries and text share the self-attention. The queries alone look at the image, in every `cross_every`-th block
    from the first on, and each of the two has MLPs of its own.

    Fields, besides those of `nn.transformer.Transformer`:
      queries: M, how many there are; they begin as N(0, 0.02).
      cross_every: one block of so many looks at the image.
      vocab_size: of the texts; None for a Q-Former that reads none, which has no MLPs for them either (stage 2,
        MiniGPT-4). length: the most tokens that a text has positions for.
      lm_head: whether there is a head that says what the text's next token is, see `vocabulary`.
    """

    roles: ClassVar[Roles] = (
        ("query_tokens", Role("token", "embedding")),
        *under("embed/", EMBED, "embedding"),
        ("positions", Role("table", "embedding")),
        *under("embed_norm/", NORM, "embedding"),
        *under(STACK, Block.roles, "block"),
        *under("mlm_dense/", Dense.roles),
        *under("mlm_norm/", NORM),
        ("mlm_bias", Role("bias")),
    )

    queries: Count = 32
    cross_every: Count = 2
    vocab_size: Count | None = None
    length: Count = 512
    lm_head: bool = False
    norm_eps: float = 1e-12

    def setup(self) -> None:
        init = nn.initializers.normal(0.02)
        self.query_tokens = self.param("query_tokens", init, (self.queries, self.width), self.param_dtype)
        if self.cross_every < 1:
            raise config.ConfigError(f"qformer.cross_every: {self.cross_every}; it counts blocks: at least 1")
        if self.vocab_size is not None:
            self.embed = nn.Embed(self.vocab_size, self.width, embedding_init=init, **self.dtypes)
            self.position_table = self.param("positions", init, (self.length, self.width), self.param_dtype)
        if self.lm_head:
            if self.vocab_size is None:
                raise config.ConfigError("qformer.lm_head: writes texts, for which it needs qformer.vocab_size")
            self.mlm_dense = Dense(self.width, **self.dtypes)
            self.mlm_norm = self.make_norm()()
            self.mlm_bias = self.param("mlm_bias", nn.initializers.zeros_init(), (self.vocab_size,), self.param_dtype)

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "B N E"] | None = None,
        text_tokens: Int[Array, "B L"] | None = None,
        mask: Shaped[Array, "B L"] | None = None,
        *,
        image_mask: Shaped[Array, "B N"] | None = None,
        sees: str = "both",
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> QFormerOutput:
        """Lets the queries look at an image, a text be read, or both side by side.

        Args:
          image: tokens of an image encoder; without, there are no queries, and the text is read alone.
          mask [B, L]: 1 or True for each real text token; all are by default.
          image_mask [B, N]: 1 or True for each image token that may be looked at; all by default.
          sees: who sees whom where there are queries and a text, see `mask_of`.
          capture: any of "hidden" and "attention".
          perturb: by kind, "attention" and "cross"; see `nn.calls.PerLayer`.

        In training, rng "dropout" is used if any dropout or drop path is on.

        Raises ConfigError for neither image nor text, a text that a Q-Former without vocab_size cannot read, and an
        unknown mask or capture; ValueError for a text that is longer than there are positions for.
        """
        if image is None and text_tokens is None:
            raise config.ConfigError("qformer: neither an image nor a text is given")
        if text_tokens is None and self.vocab_size is not None and self.is_initializing():
            text_tokens = jnp.zeros((len(image), 1), jnp.int32)  # makes the parameters of texts
        M = 0 if image is None else self.queries
        x = self._embed(0 if image is None else len(image), text_tokens)
        L = x.shape[1] - M
        x = nn.Dropout(self.dropout, deterministic=not train)(self.make_norm()(name="embed_norm")(x))
        visible = mask_of(sees, M, L, mask) if M and L else over_keys(mask)
        call = Call(mask=visible, context=image, context_mask=over_keys(image_mask), train=train, capture=capture)
        stacked = self.apply_blocks(x, call, self._pattern(M, L), perturb=perturb)
        return QFormerOutput(
            queries=stacked.tokens[:, :M] if M else None,
            text=stacked.tokens[:, M:] if L else None,
            hidden=stacked.hidden,
            attention=stacked.weights(),
            cross_attention=stacked.weights("cross") if M else None,
        )

    def vocabulary(
        self, text: Float[Array, "B L D"]
    ) -> tuple[Float[Array, "B L D"], Float[Array, "D V"], Float[Array, "V"]]:
        """Returns what logits of the next tokens are made of: tokens, the head's kernel and its bias.

        As in BERT, tokens pass a layer and a norm, and the kernel is the table of tokens, transposed.
        """
        if not self.lm_head:
            raise config.ConfigError("qformer.lm_head: False; this Q-Former has no head that writes texts")
        tokens = self.mlm_norm(activation(self.activation)(self.mlm_dense(text)))
        return tokens, nn.unbox(self.embed.embedding).T.astype(self.dtype), self.mlm_bias.astype(self.dtype)

    def _embed(self, B: int, text_tokens: Int[Array, "B L"] | None) -> Float[Array, "B T D"]:
        """Returns the B examples' queries, none for B = 0, and the text's vectors behind them."""
        queries = jnp.broadcast_to(self.query_tokens.astype(self.dtype), (B, self.queries, self.width))
        if text_tokens is None:
            return queries
        if self.vocab_size is None:
            raise config.ConfigError("qformer.vocab_size: None, so it reads no texts; give it the tokenizer's size")
        L = text_tokens.shape[1]
        if self.length < L:
            raise ValueError(
                f"texts of {L} tokens; there are {self.length} positions: cut them or raise qformer.length"
            )
        text = self.embed(text_tokens) + self.position_table[:L].astype(self.dtype)
        return jnp.concatenate([queries, text], axis=1) if B else text

    def _pattern(self, M: int, L: int) -> list[Make]:
        """Returns what makes the blocks for M queries and L text tokens: none is asked for a part that has none."""
        text_mlp = self.make_mlp() if L else None
        fields = {"norms": "post", "queries": M, "mlp": self.make_mlp() if M else None, "text_mlp": text_mlp}
        looks = self.make_block(**fields, cross=self.make_attention(cross=True) if M else None)
        return [looks, *[self.make_block(**fields)] * (self.cross_every - 1)]


def mask_of(sees: str, queries: int, length: int, mask: Shaped[Array, "B L"] | None = None) -> Bool[Array, "#B 1 T T"]:
    """True where one of `queries` queries and the `length` text tokens behind them may look at another (figure 2).

    Args:
      sees: "both", everything sees everything (image-text matching); "causal", queries see each other, text tokens the
        queries and the text up to themselves (image-grounded text generation); "apart", queries see each other, and
        text tokens each other (image-text contrast).
      mask: 1 or True for real text tokens; no other is looked at.

    Raises ConfigError for another.
    """
    if sees not in SEES:
        raise config.ConfigError(f"qformer: sees {sees!r}; {config.suggest(sees, SEES)}")
    place = jnp.arange(queries + length)
    is_text = place >= queries
    looks, at = is_text[:, None], is_text[None, :]
    if sees == "both":
        visible = jnp.ones((len(place), len(place)), bool)
    elif sees == "causal":
        visible = ~at | (looks & (place[:, None] >= place[None, :]))
    else:
        visible = looks == at
    real = None
    if mask is not None:
        real = jnp.concatenate([jnp.ones((len(mask), queries), bool), mask.astype(bool)], axis=1)
    return over_keys(real, visible[None, None])

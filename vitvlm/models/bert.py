"""BERT (Devlin et al. 2019): post-norm blocks as a text encoder that looks both ways, or as a decoder; both may look at
a context, as BLIP's text side does at an image (Li et al. 2022). MiniLM (Wang et al. 2020) is an encoder."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.core.limits import Count, Whole
from vitvlm.models.facts import ModelFacts
from vitvlm.models.language import check_logits, count_positions, last_real, over_keys
from vitvlm.models.outputs import LanguageOutput, TextOutput
from vitvlm.models.registry import MODELS, module_fields, named_variant
from vitvlm.nn import caches
from vitvlm.nn.activations import activation
from vitvlm.nn.blocks import Block
from vitvlm.nn.caches import ContextCache, KVCache
from vitvlm.nn.calls import Call
from vitvlm.nn.dense import Dense
from vitvlm.nn.pooling import masked_mean
from vitvlm.nn.roles import EMBED, NORM, STACK, Role, Roles, under
from vitvlm.nn.stack import Stacked
from vitvlm.nn.transformer import Transformer

UNCASED = {"vocab_size": 30_522, "length": 512}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072, **UNCASED},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096, **UNCASED},
    "MiniLM-L6": {"width": 384, "depth": 6, "heads": 12, "mlp_width": 1536, **UNCASED},
}

POOLS = ("cls", "first", "mean")

# The layers' caches by kind of attention, and with cross-attention the mask of the context that they have seen.
Cache = Mapping[str, Any]
CONTEXT_MASK = "context_mask"


class BertBlocks(Transformer, ModelFacts, kw_only=True):
    """Base of an encoder and a decoder: embeddings of tokens, positions and segments, a norm, and post-norm blocks.

    Fields, besides those of `nn.transformer.Transformer`:
      vocab_size: ids are in [0, vocab_size); length: the most tokens that a text has positions for.
      segments: number of kinds of tokens ("token types"): those of a first and of a second sentence; 0: they are not
        told apart (BLIP).
      context_width: E of what each block looks at between its attention and its MLP, such as an image (BLIP); None:
        nothing, there is no cross-attention.
    """

    roles: ClassVar[Roles] = (
        *under("embed/", EMBED, "embedding"),
        ("positions|segments", Role("table", "embedding")),
        *under("embed_norm/", NORM, "embedding"),
        *under(STACK, Block.roles, "block"),
        *under("mlm_dense/", Dense.roles),
        *under("mlm_norm/", NORM),
        ("mlm_bias", Role("bias")),
    )

    vocab_size: Count
    length: Count
    segments: Whole = 2
    context_width: Count | None = None
    norm_eps: float = 1e-12

    @property
    def looks(self) -> bool:
        """Tells whether the blocks look at a context."""
        return self.context_width is not None

    def _embed(
        self,
        text: Int[Array, "B L"] | Float[Array, "B L D"],
        positions: Int[Array, "B L"] | None,
        segment_ids: Int[Array, "B L"] | None,
        train: bool,
    ) -> tuple[Float[Array, "B L D"], nn.Embed]:
        """Returns what the first block is given, of ids or of vectors in their place, and the table of tokens."""
        L = text.shape[1]
        if self.length < L:
            raise ValueError(f"texts of {L} tokens; there are {self.length} positions: cut them or raise model.length")
        init = nn.initializers.normal(0.02)  # their own code's
        embed = nn.Embed(self.vocab_size, self.width, embedding_init=init, name="embed", **self.dtypes)
        table = self.param("positions", init, (self.length, self.width), self.param_dtype)
        rows = table[:L] if positions is None else jnp.asarray(table).at[positions].get(mode="fill", fill_value=jnp.nan)
        tokens = embed(text) if text.ndim == 2 else text.astype(self.dtype)
        x = tokens + rows.astype(self.dtype)
        if self.segments:
            segments = self.param("segments", init, (self.segments, self.width), self.param_dtype)
            x = x + (segments[0] if segment_ids is None else segments[segment_ids]).astype(self.dtype)
        elif segment_ids is not None:
            raise config.ConfigError("segment_ids: this BERT does not tell segments apart: model.segments is 0")
        x = self.make_norm()(name="embed_norm")(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x), embed

    def _run_blocks(
        self,
        x: Float[Array, "B L D"],
        call: Call,
        causal: bool,
        cache: Cache | None = None,
        perturb: Any = None,
        **parts: Any,
    ) -> Stacked:
        """Applies the blocks, whose `parts` may be others; in initialisation a context of the right width will do.

        The cache of a decoder has the mask of the context besides the layers' caches, [B, 1, 1, S], None if it sees
        all.
        """
        if not self.looks and call.context is not None:
            raise config.ConfigError("context: this BERT has no cross-attention; give it model.context_width")
        if self.context_width is not None and call.context is None and self.is_initializing():
            call = call.replace(context=jnp.zeros((len(x), 1, self.context_width), x.dtype), context_mask=None)
        cross = self.make_attention(cross=True) if self.looks else None
        block = self.make_block(
            **{"norms": "post", "attention": self.make_attention(causal=causal), "cross": cross} | parts
        )
        if cache is None:
            return self.apply_blocks(x, call, block, perturb=perturb)
        layers = {kind: each for kind, each in cache.items() if kind != CONTEXT_MASK}
        if call.context is None and call.context_mask is None:
            call = call.replace(context_mask=cache.get(CONTEXT_MASK))
        stacked = self.apply_blocks(x, call, block, cache=layers, perturb=perturb)
        if CONTEXT_MASK not in cache:
            return stacked
        return stacked.replace(cache={**stacked.cache, CONTEXT_MASK: call.context_mask})

    def _continue(
        self,
        text_tokens: Int[Array, "B L"] | None,
        mask: Shaped[Array, "B M"] | None,
        *,
        embeddings: Float[Array, "B L D"] | None,
        segment_ids: Int[Array, "B L"] | None,
        positions: Int[Array, "B L"] | None,
        attention_mask: Bool[Array, "#B #K #L #M"] | None,
        text_segments: Int[Array, "B L"] | None,
        context: Float[Array, "B S E"] | None,
        context_mask: Shaped[Array, "B S"] | None,
        cache: Cache | None,
        logits: str,
        train: bool,
        capture: Collection[str],
        perturb: Mapping[str, Any] | None,
        **parts: Any,
    ) -> LanguageOutput:
        """Goes through texts as a decoder; see `BertDecoder`. `parts` are those of the blocks that are others."""
        check_logits(logits)
        if (text_tokens is None) == (embeddings is None):
            raise ValueError("give text_tokens or embeddings, one of them")
        B, L = (text_tokens if embeddings is None else embeddings).shape[:2]
        places = (0 if cache is None else cache["attention"].length[0]) + jnp.arange(L)
        if positions is None:
            positions = count_positions(mask, places, B)
        x, embed = self._embed(text_tokens if embeddings is None else embeddings, positions, segment_ids, train)
        keys = {"mask": over_keys(mask, attention_mask), "context": context, "context_mask": over_keys(context_mask)}
        call = Call(**keys, segments=text_segments, train=train, capture=capture)
        stacked = self._run_blocks(x, call, causal=True, cache=cache, perturb=perturb, **parts)
        tokens, bias = self._transform(stacked.tokens), self._bias()
        asked = last_real(tokens, mask, places) if logits == "last" else tokens
        none = logits == "none"
        return LanguageOutput(
            tokens=tokens,
            logits=None if none else embed.attend(asked) + bias.astype(self.dtype),
            head_kernel=embed.embedding.T if none else None,
            head_bias=bias if none else None,
            hidden=stacked.hidden,
            attention=stacked.weights(),
            cross_attention=stacked.weights("cross") if self.looks else None,
            cache=stacked.cache,
        )

    def empty_cache(self, batch: int, room: int, dtype: DTypeLike | None = None, taken_back: int = 0) -> Cache:
        """The cache that a decoder's first call takes, for texts of up to `room` tokens, padding included.

        Any number of tokens can be taken back by setting `length` back.

        Raises ValueError for more room than there are positions.
        """
        if room > self.length:
            raise ValueError(f"a cache with room for {room} tokens; there are {self.length} positions")
        heads, head_dim = self.kv_heads or self.heads, self.head_dim or self.width // self.heads
        own = caches.empty(KVCache, self.depth, batch, heads, room, head_dim, self.dtype if dtype is None else dtype)
        return {"attention": own} | ({"cross": ContextCache(), CONTEXT_MASK: None} if self.looks else {})

    def _transform(self, tokens: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Returns what the table of tokens, transposed, makes the logits of."""
        x = activation(self.activation)(Dense(self.width, name="mlm_dense", **self.dtypes)(tokens))
        return self.make_norm()(name="mlm_norm")(x)

    def _bias(self) -> Float[Array, "V"]:
        return self.param("mlm_bias", nn.initializers.zeros_init(), (self.vocab_size,), self.param_dtype)


class Bert(BertBlocks, kw_only=True):
    """An encoder that looks both ways, and one pooled vector.

    Fields, besides those of `BertBlocks`:
      pool: "cls", a tanh layer on the first token, [CLS] (the pooler); "first", that token itself (ALIGN); or "mean"
        over the real tokens (sentence-transformers).
      mlm_head: whether there is a head that says which token is at each place (masked language modelling; Devlin et al.
        2019, section 3.1): `logits`. Its last layer is the table of tokens, transposed.
      pooler: whether the pooler is there; by default exactly if it pools. Published weights have one that pools
        nothing; it is kept here so that they are written as they were read.
    """

    roles: ClassVar[Roles] = (*BertBlocks.roles, *under("pooler/", Dense.roles))

    pool: str = "cls"
    pooler: bool | None = None
    mlm_head: bool = False

    @nn.compact
    def __call__(
        self,
        text_tokens: Int[Array, "B L"],
        mask: Shaped[Array, "B L"] | None = None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        context: Float[Array, "B S E"] | None = None,
        context_mask: Shaped[Array, "B S"] | None = None,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Float[Array, "depth B K L _M"]] | None = None,
    ) -> TextOutput:
        """Encodes texts of L <= `length` tokens.

        Args:
          mask [B, L]: 1 or True for each real token, 0 for padding, which is not looked at; all are real by default.
          segment_ids [B, L]: in [0, segments); all 0 by default.
          context, context_mask [B, S]: what cross-attention looks at, and 1 or True where it may; all by default.
          capture: any of "hidden" and "attention".
          perturb: {"attention": zeros}, whose gradient is that of the attention weights; also of "cross". See
            `nn.calls.PerLayer`.

        In training, rng "dropout" is used if any dropout or drop path is on.

        Raises ValueError for longer texts, ConfigError for an unknown pool or capture, the pool "cls" without the
        pooler, or a context that is missing or that nothing looks at.
        """
        self._check()
        x, embed = self._embed(text_tokens, None, segment_ids, train)
        keys = {"mask": over_keys(mask), "context": context, "context_mask": over_keys(context_mask)}
        stacked = self._run_blocks(x, Call(**keys, train=train, capture=capture), causal=False, perturb=perturb)
        pooled = self._pool(stacked.tokens, jnp.ones(text_tokens.shape, bool) if mask is None else mask)
        logits = None
        if self.mlm_head:
            logits = embed.attend(self._transform(stacked.tokens)) + self._bias().astype(self.dtype)
        return TextOutput(
            tokens=stacked.tokens,
            pooled=pooled,
            logits=logits,
            hidden=stacked.hidden,
            attention=stacked.weights(),
            cross_attention=None if self.context_width is None else stacked.weights("cross"),
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


class BertDecoder(BertBlocks, kw_only=True):
    """A language model of BERT's blocks, each token of which sees only those before it, and a context if there is one.

    Its parameters are those of a `Bert` with a head for masked tokens, by the same names; see `BertBlocks`.
    """

    writes: ClassVar[str] = "continuation"

    @nn.compact
    def __call__(
        self,
        text_tokens: Int[Array, "B L"] | None = None,
        mask: Shaped[Array, "B M"] | None = None,
        *,
        embeddings: Float[Array, "B L D"] | None = None,
        segment_ids: Int[Array, "B L"] | None = None,
        positions: Int[Array, "B L"] | None = None,
        attention_mask: Bool[Array, "#B #K #L #M"] | None = None,
        text_segments: Int[Array, "B L"] | None = None,
        context: Float[Array, "B S E"] | None = None,
        context_mask: Shaped[Array, "B S"] | None = None,
        cache: Cache | None = None,
        logits: str = "all",
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> LanguageOutput:
        """Goes through texts, or goes on with them: the logits of the token after each.

        Args:
          mask, positions, attention_mask, text_segments, cache, logits, capture: see `models.decoder.Decoder`.
          embeddings: in place of text_tokens, vectors to which those of positions and segments are added.
          segment_ids [B, L]: in [0, segments); all 0 by default.
          context, context_mask [B, S]: what cross-attention looks at, and 1 or True where it may; all by default. Calls
            with a cache that has seen the context need neither.
          perturb: by kind, "attention" and "cross"; see `nn.calls.PerLayer`.

        In training, rng "dropout" is used if any dropout or drop path is on.

        Raises ValueError for both or none of text_tokens and embeddings, and for longer texts than there are positions
        for, ConfigError for an unknown capture or kind of
        logits, or a context that is missing or that nothing looks at. A position behind the last makes NaN.
        """
        return self._continue(
            text_tokens,
            mask,
            embeddings=embeddings,
            segment_ids=segment_ids,
            positions=positions,
            attention_mask=attention_mask,
            text_segments=text_segments,
            context=context,
            context_mask=context_mask,
            cache=cache,
            logits=logits,
            train=train,
            capture=capture,
            perturb=perturb,
        )


@MODELS.register("bert")
def build_bert(variant: str | None = None, **fields: Any) -> Bert:
    """A BERT from a variant ("base", "large", "MiniLM-L6"), from sizes, or from a variant with some changed."""
    config.check_names(fields, ["variant", *module_fields(Bert)], "model")
    return config.call(Bert, named_variant(VARIANTS, variant) | fields, "model")


@MODELS.register("bert_decoder")
def build_bert_decoder(variant: str | None = None, **fields: Any) -> BertDecoder:
    """A BERT as a decoder, from a variant ("base", "large"), from sizes, or from a variant with some changed."""
    config.check_names(fields, ["variant", *module_fields(BertDecoder)], "model")
    return config.call(BertDecoder, named_variant(VARIANTS, variant) | fields, "model")

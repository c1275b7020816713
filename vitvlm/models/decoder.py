"""Decoder-only language models: LLaMA, Mistral, Qwen, Gemma, Phi, OPT and GPT-2 by the fields of one module."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.core.limits import Count, Share, Whole
from vitvlm.models.cross_layers import CrossLayers, make_cross
from vitvlm.models.decoder_variants import VARIANTS
from vitvlm.models.facts import ModelFacts
from vitvlm.models.language import Cache, check_logits, count_positions, extent, last_real, over_keys
from vitvlm.models.outputs import LanguageOutput
from vitvlm.models.registry import MODELS, module_fields, named_variant
from vitvlm.nn import caches
from vitvlm.nn.blocks import Block, Make
from vitvlm.nn.caches import ContextCache, Int8Cache, KVCache, RingCache
from vitvlm.nn.calls import Call
from vitvlm.nn.dense import Dense
from vitvlm.nn.roles import EMBED, NORM, STACK, Role, Roles, under
from vitvlm.nn.rope import Rope, Scaling
from vitvlm.nn.transformer import Transformer

POSITIONS = ("rotary", "learned")
LAYERS = ("global", "local")


class Decoder(Transformer, ModelFacts, kw_only=True):
    """Embeddings of tokens, causal blocks, a final norm, and a head: logits of the token after each.

    The defaults are those of LLaMA (Touvron et al. 2023). Fields, besides those of `nn.transformer.Transformer`:
      vocab_size: V; ids are in [0, V). length: the most tokens that the model was trained for.
      added_tokens: how many of these, the last, have tables of their own beside the others', "embed_added" and
        "head_added": the model's own weights fit, and may stay as they are while new tokens such as "<image>" train.
      positions: "rotary", in every layer, by `rope`; or "learned", a table of `length` vectors that are added to the
        tokens' own, after `position_offset` others that stand for nothing (OPT has 2).
      position_offset: vectors at the begin of the learned table that stand for nothing.
      rope: see `nn.rope.Rope`; local_rope: of local layers, by default the same.
      pattern: kinds of the layers, "global" or "local"; layer i is of the kind at i modulo the pattern's length.
      local: how many tokens a token of a local layer sees, itself included; with padding between them, places.
      norms: where the norms of a block stand; parallel: whether its branches stand side by side; see `nn.blocks.Block`.
      final_norm: whether the last block's tokens pass a norm (all but OPT-350m).
      query_scalar: scores are divided by its square root; by default the d of a head.
      soft_cap, logit_soft_cap: c, where scores or logits x become c tanh(x / c) (Gemma 2); None: as they are.
      embed_width: E of the embeddings, where a linear map leads to D and another back to E (OPT-350m); by default D.
      scale_embed: whether the tokens' vectors are multiplied by sqrt(D) (Gemma).
      embed_dropout: of the embeddings.
      tied: whether the head is the table of tokens, transposed; otherwise it has a matrix of its own.
      head_bias: whether the logits have one.
      cross: which blocks look at a context, and how, see `models.cross_layers`; None: none does.
    """

    roles: ClassVar[Roles] = (
        *under("embed(_added)?/", EMBED, "embedding"),
        ("positions", Role("table", "embedding")),
        *under("embed_in/", Dense.roles, "embedding"),
        *under(STACK, Block.roles, "block"),
        *under("norm/", NORM),
        *under("embed_out/", Dense.roles),
        *under("head(_added)?/", Dense.roles, "head"),
        ("head_bias", Role("bias", "head")),
    )

    writes: ClassVar[str] = "continuation"

    vocab_size: Count
    length: Count
    added_tokens: Whole = 0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    mlp: str = "gated"
    activation: str = "silu"
    norm: str = "rms"
    positions: str = "rotary"
    position_offset: int = 0
    rope: Rope = Rope()
    local_rope: Rope | None = None
    pattern: tuple[str, ...] = ("global",)
    local: int | None = None
    norms: str = "pre"
    parallel: bool = False
    final_norm: bool = True
    query_scalar: float | None = None
    soft_cap: float | None = None
    logit_soft_cap: float | None = None
    embed_width: Count | None = None
    scale_embed: bool = False
    embed_dropout: Share = 0.0
    tied: bool = False
    head_bias: bool = False
    cross: CrossLayers | None = None

    def setup(self) -> None:
        self._check()
        init = nn.initializers.normal(0.02)  # GPT-2's, and everybody's since
        embed = functools.partial(nn.Embed, features=self.embedding_width, embedding_init=init, **self.dtypes)
        self.embed = embed(self.vocab_size - self.added_tokens)
        self.embed.embedding  # noqa: B018 (made even if the first call brings embeddings)
        if self.added_tokens:
            self.embed_added = embed(self.added_tokens)
            self.embed_added.embedding  # noqa: B018
        if self.positions == "learned":
            shape = (self.position_offset + self.length, self.width)
            self.position_table = self.param("positions", init, shape, self.param_dtype)

    @nn.compact
    def __call__(
        self,
        text_tokens: Int[Array, "B L"] | None = None,
        mask: Shaped[Array, "B M"] | None = None,
        *,
        embeddings: Float[Array, "B L E"] | None = None,
        positions: Int[Array, "B L *axes"] | None = None,
        attention_mask: Bool[Array, "#B #K #L #M"] | None = None,
        prefix_mask: Shaped[Array, "B L"] | None = None,
        alone: Bool[Array, "B L"] | None = None,
        context: Float[Array, "B S E"] | None = None,
        context_mask: Shaped[Array, "B S"] | Bool[Array, "#B #K #L S"] | None = None,
        text_segments: Int[Array, "B L"] | None = None,
        cache: Cache | None = None,
        logits: str = "all",
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> LanguageOutput:
        """Goes through texts, or goes on with them.

        Args:
          mask [B, M]: 1 or True for each real token, 0 for padding on either side, which is not looked at; over all
            places of the sequence: M = L without a cache, and the cache's room with one, where it may say anything of
            places that are not yet written. All are real by default.
          embeddings [B, L, E]: in place of text_tokens, as `embed_text` gives them.
          positions [B, L]: of the tokens; by default real ones are counted from 0, those in the cache included.
          attention_mask [#B, #K, L, M]: True where a query may look besides. Causality holds in any case, but for:
          prefix_mask [B, L]: 1 or True at tokens of this call that see each other whatever the order, where the masks
            let them (PaliGemma's prefix of image and prompt).
          alone [B, L]: True at tokens of this call that see themselves only.
          context, context_mask [B, S] or [#B, #K, #L, S]: what cross-attention looks at, and 1 or True where it may, by
            default everywhere. A token that may look nowhere is given zeros by it. Calls with a cache that has seen the
            context need neither: their tokens see what the last one of the call before saw.
          text_segments [B, L]: numbers of the texts that are packed in a row, which do not see each other; without a
            cache. It takes no memory of L L numbers, as an attention_mask that says the same would.
          cache: what `empty_cache` or the last call gave; these L tokens follow those in it.
          logits: "all" [B, L, V]; "last" [B, 1, V], of each text's last real token in this call; "none", and the
            matrix that they are the product with in their place.
          capture: any of "hidden" and "attention".
          perturb: {"attention": zeros}, whose gradient is that of the attention weights, and "cross"; see
            `nn.calls.PerLayer`.

        In training, rng "dropout" is used if any dropout or drop path is on.

        Raises ValueError for both or none of text_tokens and embeddings, a mask of another length, or texts that are
        longer than the table of learned positions; ConfigError for an unknown capture or kind of logits, or a context
        that is missing or that nothing looks at. A position behind that table, which cannot raise when compiled, makes
        NaN.
        """
        check_logits(logits)
        if (text_tokens is None) == (embeddings is None):
            raise ValueError("give text_tokens or embeddings, one of them")
        x = self.embed_text(text_tokens) if embeddings is None else embeddings.astype(self.dtype)
        B, L = x.shape[:2]
        before, room = extent(cache, L)
        if mask is not None and room is not None and mask.shape[1] != room:
            what = f"{L} tokens" if cache is None else f"a cache with room for {room}"
            raise ValueError(f"a mask of {mask.shape[1]} places for {what}: it goes over all places of the sequence")
        places = before + jnp.arange(L)
        if positions is None:
            self._check_length(L)
            positions = count_positions(mask, places, B)
        if self.embed_width is not None:
            x = Dense(self.width, use_bias=False, name="embed_in", **self.dtypes)(x)
        if self.positions == "learned":
            rows = self.position_table.at[positions + self.position_offset].get(mode="fill", fill_value=jnp.nan)
            x = x + rows.astype(self.dtype)
        x = nn.Dropout(self.embed_dropout, deterministic=not train)(x)
        sees = self._context_mask(context, context_mask, cache)
        call = Call(
            mask=over_keys(mask, attention_mask),
            prefix=None if prefix_mask is None else prefix_mask.astype(bool),
            alone=alone,
            segments=text_segments,
            positions=positions,
            context=context,
            context_mask=sees,
            train=train,
            capture=capture,
        )
        blocks = [self._block(i) for i in range(self._period)]
        if cache is not None:
            cache = {kind: each for kind, each in cache.items() if kind != "context_mask"}
            blocks = blocks if self.scan else [blocks[i % len(blocks)] for i in range(self.depth)]
        stacked = self.apply_blocks(x, call, blocks, cache=cache, perturb=perturb)
        cached = stacked.cache
        if cached is not None and self.cross is not None:
            last = None if sees is None else jnp.broadcast_to(sees[:, :, -1:], (B, *sees.shape[1:2], 1, sees.shape[3]))
            cached = cached | {"context_mask": last}
        tokens = self.make_norm()(name="norm")(stacked.tokens) if self.final_norm else stacked.tokens
        if self.embed_width is not None:
            tokens = Dense(self.embed_width, use_bias=False, name="embed_out", **self.dtypes)(tokens)
        return LanguageOutput(
            tokens=tokens,
            hidden=stacked.hidden,
            attention=stacked.weights(),
            cross_attention=None if self.cross is None else stacked.weights("cross"),
            cache=cached,
            logit_soft_cap=self.logit_soft_cap,
            **self._head(last_real(tokens, mask, places) if logits == "last" else tokens, logits),
        )

    @property
    def position_axes(self) -> int:
        """Number of axes of its positions, see `nn.rope.Rope.axes`."""
        return 1 if self.positions != "rotary" or self.rope.axes is None else max(self.rope.axes) + 1

    @property
    def embedding_width(self) -> int:
        """E: width of the embeddings that the call takes."""
        return self.embed_width or self.width

    def embed_text(self, text_tokens: Int[Array, "B L"]) -> Float[Array, "B L E"]:
        """Returns the tokens' vectors, as the call takes them for `embeddings`; an unknown id's are NaN."""
        scale = jnp.asarray(self.width**0.5 if self.scale_embed else 1, self.dtype)
        if not self.added_tokens:
            return self.embed(text_tokens) * scale
        own = self.vocab_size - self.added_tokens
        added = self.embed_added(jnp.where(text_tokens < own, 0, text_tokens - own))
        return jnp.where(text_tokens[..., None] < own, self.embed(jnp.minimum(text_tokens, own - 1)), added) * scale

    def empty_cache(self, batch: int, room: int, dtype: DTypeLike | None = None, taken_back: int = 0) -> Cache:
        """Returns a cache for texts of up to `room` tokens, padding included: what the first call takes.

        A local layer has a `nn.caches.RingCache` if it sees less than that. Tokens beyond the room are NaN.

        Args:
          dtype: of keys and values, by default that of the computation; int8 rounds them, see `nn.caches.Int8Cache`.
          taken_back: how many of the last tokens may be taken back by setting the caches' `length` back.

        Raises ValueError for more room than there are learned positions.
        """
        self._check_length(room)
        heads, head_dim = self.kv_heads or self.heads, self.head_dim or self.width // self.heads
        P = self._period

        def zeros(kind: str, layers: int) -> KVCache | RingCache | Int8Cache:
            seen = self.local + taken_back if kind == "local" else room
            make, size = (RingCache, seen) if seen < room else (KVCache, room)
            return caches.empty(make, layers, batch, heads, size, head_dim, self.dtype if dtype is None else dtype)

        kinds = [self.pattern[i % len(self.pattern)] for i in range(self.depth)]
        if not self.scan:  # each layer's apart, so that a token more copies none of them
            context = tuple(ContextCache() for i in range(self.depth) if self.cross and self.cross.looks(i))
            own = {"attention": tuple(zeros(kind, 1) for kind in kinds)}
        else:
            context, kinds = ContextCache(), kinds[:P]
            if len({jax.tree.structure(zeros(kind, 0)) for kind in kinds}) == 1:
                own = {"attention": zeros(kinds[0], self.depth)}
            else:
                layers = [len(range(p, self.depth, P)) for p in range(len(kinds))]
                own = {"attention": tuple(map(zeros, kinds, layers))}
        return own if self.cross is None else own | {"cross": context, "context_mask": None}

    @property
    def _period(self) -> int:
        """Number of blocks after which they are alike again."""
        return len(self.pattern) if self.cross is None else self.cross.period(len(self.pattern))

    def _context_mask(
        self, context: Array | None, mask: Shaped[Array, "B *_K_L S"] | None, cache: Cache | None
    ) -> Bool[Array, "#B #K #L S"] | None:
        """Returns where tokens may look at the context: as this call says, or the one that the cache has seen."""
        if self.cross is None:
            if context is not None:
                raise config.ConfigError("context: this decoder has no cross-attention; give it model.cross")
            return None
        if context is None and (cache is None or not jax.tree.leaves(cache["cross"])):
            raise config.ConfigError("context: this decoder looks at one; give it, or a cache that has seen it")
        if context is None and mask is None:
            return cache["context_mask"]
        return over_keys(mask) if mask is None or mask.ndim == 2 else mask

    def _block(self, layer: int) -> Make:
        local = self.pattern[layer % len(self.pattern)] == "local"
        rope = self.local_rope if local and self.local_rope is not None else self.rope
        attention = self.make_attention(
            causal=True,
            local=self.local if local else None,
            positional=(rope,) if self.positions == "rotary" else (),
            scale=None if self.query_scalar is None else self.query_scalar**-0.5,
            soft_cap=self.soft_cap,
        )
        cross = self.cross.parts(self) if self.cross is not None and self.cross.looks(layer) else {}
        return self.make_block(attention=attention, norms=self.norms, parallel=self.parallel, **cross)

    def _head(self, tokens: Float[Array, "B L E"], logits: str) -> dict[str, Any]:
        """The fields of the output that are about logits; the head's parameters are made in any case."""
        bias = None
        if self.head_bias:
            bias = self.param("head_bias", nn.initializers.zeros_init(), (self.vocab_size,), self.param_dtype)
        kernels, products = [], []
        for name, count in (("", self.vocab_size - self.added_tokens), ("_added", self.added_tokens)):
            if self.tied and count:
                embed = getattr(self, f"embed{name}")
                kernels.append(lambda embed=embed: embed.embedding.T)
                products.append(embed.attend)
            elif count:
                init = nn.initializers.normal(0.02)
                head = Dense(count, use_bias=False, kernel_init=init, name=f"head{name}", **self.dtypes)
                kernels.append(lambda head=head: head.variables["params"]["kernel"])
                products.append(head)
        if logits == "none" and (self.tied or not self.is_initializing()):
            return {"head_kernel": _joined([nn.unbox(kernel()) for kernel in kernels]), "head_bias": bias}
        product = _joined([product(tokens) for product in products])
        if bias is not None:
            product = product + bias.astype(self.dtype)
        if self.logit_soft_cap is not None:
            product = self.logit_soft_cap * jnp.tanh(product / self.logit_soft_cap)
        return {"logits": product}

    def _check(self) -> None:
        if not 0 <= self.added_tokens < self.vocab_size:
            raise config.ConfigError(f"model.added_tokens: {self.added_tokens} of {self.vocab_size} tokens")
        if self.positions not in POSITIONS:
            near = config.suggest(self.positions, POSITIONS)
            raise config.ConfigError(f"model.positions: {self.positions!r}; {near}")
        for kind in self.pattern:
            if kind not in LAYERS:
                raise config.ConfigError(f"model.pattern: no layer {kind!r}; {config.suggest(kind, LAYERS)}")
        if not self.pattern:
            raise config.ConfigError('model.pattern: empty; write ("global",) for layers that see all tokens')
        if "local" in self.pattern and (self.local is None or self.local < 1):
            raise config.ConfigError(f"model.local: {self.local}; local layers need the number of tokens that they see")

    def _check_length(self, count: int) -> None:
        if self.positions == "learned" and count > self.length:
            raise ValueError(f"texts of {count} tokens; there are {self.length} positions: cut them")


def _joined(parts: Sequence[Array]) -> Array:
    """The one part, or several along the last axis."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def make_rope(rope: Mapping[str, Any] | Rope, where: str = "model.rope") -> Rope:
    """Rotary positions as a config writes them: the fields of `Rope`, and in "scaling" those of `Scaling`.

    Raises ConfigError for an unknown field or kind.
    """
    if isinstance(rope, Rope):
        return rope
    fields = dict(rope)
    if fields.get("scaling") is not None:
        fields["scaling"] = config.call(Scaling, fields["scaling"], f"{where}.scaling")
    return config.call(Rope, fields, where)


@MODELS.register("decoder")
def build_decoder(
    variant: str | None = None,
    rope: Mapping[str, Any] | Rope | None = None,
    local_rope: Mapping[str, Any] | Rope | None = None,
    pattern: Sequence[str] | None = None,
    cross: Mapping[str, Any] | CrossLayers | None = None,
    **fields: Any,
) -> Decoder:
    """A decoder from a variant ("LLaMA-7B", "SmolLM2-135M", "GPT-2"), from fields, or from a variant with some changed.

    `rope` and `local_rope` are mappings of fields, see `make_rope`; `cross` is one, see `make_cross`.
    """
    own = {"variant", "rope", "local_rope", "pattern", "cross"}
    config.check_names(fields, [*own, *module_fields(Decoder)], "model")
    given = {"rope": rope, "local_rope": local_rope, "pattern": pattern, "cross": make_cross(cross)}
    chosen = named_variant(VARIANTS, variant) | fields | {k: v for k, v in given.items() if v is not None}
    for name in ("rope", "local_rope"):
        if chosen.get(name) is not None:
            chosen[name] = make_rope(chosen[name], f"model.{name}")
    if "pattern" in chosen:
        chosen["pattern"] = tuple(chosen["pattern"])
    return config.call(Decoder, chosen, "model")

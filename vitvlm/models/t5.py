"""T5 (Raffel et al. 2020), T5 1.1 and Flan-T5 (Chung et al. 2022): an encoder of one text, a decoder of another."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.core.limits import Count, Depth
from vitvlm.models.facts import ModelFacts
from vitvlm.models.language import check_logits, last_real, over_keys
from vitvlm.models.outputs import EncoderDecoderOutput
from vitvlm.models.registry import MODELS, module_fields, named_variant
from vitvlm.models.two_towers import by_part
from vitvlm.nn import caches
from vitvlm.nn.blocks import Block
from vitvlm.nn.caches import ContextCache, KVCache
from vitvlm.nn.calls import Call
from vitvlm.nn.dense import Dense
from vitvlm.nn.relative import RelativeBuckets
from vitvlm.nn.roles import EMBED, NORM, STACK, Roles, under
from vitvlm.nn.stack import Stacked
from vitvlm.nn.transformer import Transformer

PLAIN = {"vocab_size": 32_128, "head_dim": 64}
GATED = PLAIN | {"mlp": "gated", "activation": "gelu_tanh", "tied": False, "scale_logits": False}


def _sizes(width: int, mlp_width: int, depth: int, heads: int) -> dict[str, int]:
    return {"width": width, "mlp_width": mlp_width, "depth": depth, "heads": heads}


VARIANTS: dict[str, dict[str, Any]] = {
    "small": _sizes(512, 2048, 6, 8) | PLAIN,
    "base": _sizes(768, 3072, 12, 12) | PLAIN,
    "large": _sizes(1024, 4096, 24, 16) | PLAIN,
    "flan-small": _sizes(512, 1024, 8, 6) | GATED,
    "flan-base": _sizes(768, 2048, 12, 12) | GATED,
    "flan-large": _sizes(1024, 2816, 24, 16) | GATED,
    "flan-XL": _sizes(2048, 5120, 24, 32) | GATED,
    "flan-XXL": _sizes(4096, 10_240, 24, 64) | GATED,
}


class T5Stack(Transformer, kw_only=True):
    """The blocks of T5's encoder, or of its decoder, and a norm: scores are not scaled, and all layers share one table.

    Fields, besides those of `nn.transformer.Transformer`:
      decoder: whether a token sees only those before it, and the context.
      buckets, max_distance: of the table of distances, see `nn.relative.RelativeBuckets`.
    """

    roles: ClassVar[Roles] = (
        *under("", RelativeBuckets.roles, "embedding"),
        *under(STACK, Block.roles, "block"),
        *under("norm/", NORM),
    )

    decoder: bool
    buckets: Count
    max_distance: Count

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        call: Call,
        *,
        cache: Mapping[str, Any] | None = None,
        perturb: Mapping[str, Any] | None = None,
    ) -> Stacked:
        L = x.shape[1]
        places, key_places = jnp.arange(L), jnp.arange(L)
        if cache is not None:
            kept = cache["attention"]  # [depth, ...]; the layers have read equally far
            places, key_places = kept.length[0] + places, jnp.arange(kept.key.shape[-2])
        table = RelativeBuckets(self.heads, self.buckets, self.max_distance, not self.decoder, self.param_dtype)
        call = call.replace(bias=table.bias(self.param, None, places, key_places))
        block = self.make_block(
            attention=self.make_attention(causal=self.decoder, scale=1.0),
            cross=self.make_attention(cross=True, scale=1.0) if self.decoder else None,
        )
        dropout = nn.Dropout(self.dropout, deterministic=not call.train)
        stacked = self.apply_blocks(dropout(x), call, block, cache=cache, perturb=perturb)
        return stacked.replace(tokens=dropout(self.make_norm()(name="norm")(stacked.tokens)))


class T5(Transformer, ModelFacts, kw_only=True):
    """An encoder and a decoder over one table of tokens, pre-norm blocks without biases, and a head.

    Fields, besides those of `nn.transformer.Transformer`, which are those of both sides:
      vocab_size: ids are in [0, vocab_size).
      decoder_depth: blocks of the decoder; by default as many as of the encoder, `depth`.
      buckets, max_distance: of the tables of distances, see `nn.relative.RelativeBuckets`.
      tied: whether the head is the table of tokens, transposed (T5), or has its own kernel (T5 1.1, Flan-T5).
      scale_logits: whether what the head is given is multiplied by width^-0.5 first (T5; not T5 1.1, Flan-T5).
      start_id: the token that every decoded text begins with.
    """

    writes: ClassVar[str] = "answer"
    roles: ClassVar[Roles] = (
        *under("embed/", EMBED, "embedding"),
        *under("(encoder|decoder)/", T5Stack.roles),
        *under("head/", Dense.roles, "head"),
    )

    writes: ClassVar[str] = "answer"
    length: ClassVar[int] = 512  # that it was trained with: positions are relative, and any other is taken

    vocab_size: Count
    decoder_depth: Depth | None = None
    buckets: Count = 32
    max_distance: Count = 128
    tied: bool = True
    scale_logits: bool = True
    start_id: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    activation: str = "relu"
    norm: str = "rms"

    def setup(self) -> None:
        init = nn.initializers.normal(1.0)  # their own code's
        self.embed = nn.Embed(self.vocab_size, self.width, embedding_init=init, **self.dtypes)
        own = self.block_fields(buckets=self.buckets, max_distance=self.max_distance)
        self.encoder = T5Stack(**own, decoder=False)
        self.decoder = T5Stack(**own | {"depth": self.decoder_layers}, decoder=True)
        if not self.tied:
            init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
            self.head = Dense(self.vocab_size, use_bias=False, kernel_init=init, **self.dtypes)

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings that the call takes."""
        return self.width

    def embed_text(self, text_tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Returns the tokens' vectors, as the call takes them for `embeddings`."""
        return self.embed(text_tokens)

    @property
    def decoder_layers(self) -> int:
        """Number of the decoder's blocks."""
        return self.depth if self.decoder_depth is None else self.decoder_depth

    def __call__(
        self,
        text_tokens: Int[Array, "B S"] | None = None,
        mask: Shaped[Array, "B S"] | None = None,
        *,
        embeddings: Float[Array, "B S D"] | None = None,
        decoder_tokens: Int[Array, "B L"] | None = None,
        decoder_mask: Shaped[Array, "B M"] | None = None,
        decoder_attention_mask: Bool[Array, "#B #K L M"] | None = None,
        context: Float[Array, "B S D"] | None = None,
        cache: Mapping[str, Any] | None = None,
        logits: str = "all",
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> EncoderDecoderOutput:
        """Encodes one text, and decodes another: the logits of each token after the decoder's, given both.

        Args:
          text_tokens: the encoder's; in their place `embeddings`, or `context`, what `encode` returned of them, or a
            cache that has seen the context.
          mask [B, S]: 1 or True at the encoder's real tokens, on whatever side the padding is; all by default. The
            decoder's attention needs it in every call, those with a cache too.
          decoder_tokens: those so far, from `start_id` on; by default that alone, [B, 1]. To train on texts, give them
            shifted by one place, see `shifted`.
          decoder_mask [B, M]: 1 or True at real tokens of the decoder's sequence, on whatever side the padding is. M is
            L, or with a cache its room; places that are not yet written may hold anything.
          decoder_attention_mask: True where the decoder may look besides, for texts packed in a row.
          cache: `empty_cache`, or that of the call before, which these tokens go on from. The call that brings the
            context leaves its keys in the cache, and later ones neither need nor return it.
          logits: "all" [B, L, V]; "last" [B, 1, V], of the last real token of each text in this call; "none", and the
            matrix that they are the product with in their place.
          capture: of both sides, any of "hidden" and "attention".
          perturb: by "encoder" and "decoder" that of the attention weights, by kind; see `nn.calls.PerLayer`.

        In training, rng "dropout" is used if any dropout or drop path is on.

        Raises ConfigError for a call without a text, a context or a cache that has one, or with two of the first, and
        for an unknown `logits` or capture; ValueError for more tokens than the cache has room for.
        """
        check_logits(logits)
        perturb = by_part(perturb, ("encoder", "decoder"))
        given = [each for each in (text_tokens, embeddings, context) if each is not None]
        seen = cache is not None and cache["cross"].key is not None
        if len(given) != (0 if seen else 1):
            what = "cache has seen the context: give none of" if seen else "give one of"
            raise config.ConfigError(f"t5: {'the ' * seen}{what} text_tokens, embeddings and context")
        encoded = None
        if context is None and given:
            x = self.embed(text_tokens) if embeddings is None else embeddings.astype(self.dtype)
            encoded = self._encode(x, mask, train, capture, **perturb["encoder"])
            context = encoded.tokens
        if decoder_tokens is None:
            B = cache["cross"].key.shape[1] if seen else len(given[0])
            decoder_tokens = jnp.full((B, 1), self.start_id, jnp.int32)
        visible = over_keys(decoder_mask, decoder_attention_mask)
        call = Call(mask=visible, context=context, context_mask=over_keys(mask), train=train, capture=capture)
        decoded = self.decoder(self.embed(decoder_tokens), call, cache=cache, **perturb["decoder"])
        given_head = decoded.tokens
        if logits == "last":
            before = 0 if cache is None else cache["attention"].length[0]
            given_head = last_real(given_head, decoder_mask, before + jnp.arange(decoder_tokens.shape[1]))
        return EncoderDecoderOutput(
            tokens=decoded.tokens,
            **self._head(given_head, logits),
            hidden=decoded.hidden,
            attention=decoded.weights(),
            cross_attention=decoded.weights("cross"),
            cache=decoded.cache,
            context=context,
            encoder_hidden=None if encoded is None else encoded.hidden,
            encoder_attention=None if encoded is None else encoded.weights(),
        )

    def encode(
        self, text_tokens: Int[Array, "B S"], mask: Shaped[Array, "B S"] | None = None, *, train: bool = False
    ) -> Float[Array, "B S D"]:
        """Returns what the decoder looks at: `context` of a call."""
        return self._encode(self.embed(text_tokens), mask, train).tokens

    def shifted(self, text_tokens: Int[Array, "B L"]) -> Int[Array, "B L"]:
        """Texts as the decoder is given them to predict each of their tokens: `start_id`, then all but the last."""
        return jnp.pad(text_tokens[:, :-1], [(0, 0), (1, 0)], constant_values=self.start_id)

    def empty_cache(self, batch: int, room: int, dtype: DTypeLike | None = None) -> dict[str, Any]:
        """The cache that the first call takes, for `room` tokens of the decoder, those of its start included."""
        heads, head_dim = self.kv_heads or self.heads, self.head_dim or self.width // self.heads
        dtype = self.dtype if dtype is None else dtype
        own = caches.empty(KVCache, self.decoder_layers, batch, heads, room, head_dim, dtype)
        return {"attention": own, "cross": ContextCache()}

    def _encode(
        self,
        x: Float[Array, "B S D"],
        mask: Shaped[Array, "B S"] | None,
        train: bool,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> Stacked:
        return self.encoder(x, Call(mask=over_keys(mask), train=train, capture=capture), perturb=perturb)

    def _head(self, tokens: Float[Array, "B L D"], logits: str) -> dict[str, Any]:
        """The fields of the output that are about logits."""
        scale = self.width**-0.5 if self.scale_logits else 1.0
        if logits == "none" and not self.is_initializing():
            kernel = self.embed.embedding.T if self.tied else self.head.variables["params"]["kernel"]
            return {"head_kernel": nn.unbox(kernel), "logit_scale": scale}
        tokens = tokens * scale if self.scale_logits else tokens
        return {"logits": self.embed.attend(tokens) if self.tied else self.head(tokens), "logit_scale": scale}


@MODELS.register("t5")
def build_t5(variant: str | None = None, **fields: Any) -> T5:
    """A T5 from a variant ("small", "flan-XL"), from sizes, or from a variant with some changed."""
    config.check_names(fields, ["variant", *module_fields(T5)], "model")
    return config.call(T5, named_variant(VARIANTS, variant) | fields, "model")

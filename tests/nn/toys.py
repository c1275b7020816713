"""Small models of architectures to come, each a few lines on the shared blocks."""

import functools

import jax.numpy as jnp
from flax import linen as nn

from vitvlm.nn.caches import ContextCache, KVCache
from vitvlm.nn.calls import Call
from vitvlm.nn.relative import DecomposedRelative, RelativeBuckets
from vitvlm.nn.rope import Rope
from vitvlm.nn.stack import Stacked
from vitvlm.nn.transformer import Transformer
from vitvlm.nn.windows import Windows


class LanguageModel(Transformer, kw_only=True):
    """A causal language model's embeddings, blocks and final norm."""

    vocab_size: int
    embed_scale: float = 1.0

    @nn.compact
    def __call__(self, tokens, mask=None, *, cache=None, perturb=None, capture=()) -> Stacked:
        x = nn.Embed(self.vocab_size, self.width, name="embed")(tokens) * self.embed_scale
        stacked = self.apply_blocks(x, Call(mask=mask, capture=capture), self.pattern(), cache=cache, perturb=perturb)
        return stacked.replace(tokens=self.make_norm()(name="norm")(stacked.tokens))

    def pattern(self):
        raise NotImplementedError

    def empty_cache(self, batch, room):
        heads, head_dim = self.kv_heads or self.heads, self.head_dim or self.width // self.heads
        return {"attention": KVCache.zeros(self.depth, batch, heads, room, head_dim)}


class Llama(LanguageModel, kw_only=True):
    """LLaMA: RMS norms, rotary positions, grouped heads, gated MLPs, no biases."""

    rope: Rope = Rope()
    norm: str = "rms"
    mlp: str = "swiglu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False

    def pattern(self):
        return self.make_block(attention=self.make_attention(causal=True, positional=(self.rope,)))


class Gemma2(Llama, kw_only=True):
    """Gemma 2: sandwich norms, capped scores, local and global layers in turn."""

    local: int
    scale: float
    soft_cap: float
    norm: str = "rms_zero_centred"
    mlp: str = "gated"
    activation: str = "gelu_tanh"

    def pattern(self):
        attention = functools.partial(
            self.make_attention, causal=True, positional=(self.rope,), scale=self.scale, soft_cap=self.soft_cap
        )
        return [self.make_block(attention=attention(local=local), norms="sandwich") for local in (self.local, None)]


class Parallel(LanguageModel, kw_only=True):
    """GPT-J and Phi: attention and MLP side by side, the first channels of a head rotated."""

    rope: Rope

    def pattern(self):
        return self.make_block(attention=self.make_attention(causal=True, positional=(self.rope,)), parallel=True)


class T5Stack(Transformer, kw_only=True):
    """T5's encoder, or its decoder: scores are not scaled, and one table of distances serves all layers."""

    decoder: bool
    buckets: int
    max_distance: int
    norm: str = "rms"
    mlp: str = "gated"
    activation: str = "gelu_tanh"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False

    @nn.compact
    def __call__(self, x, context=None, *, cache=None, perturb=None, capture=()) -> Stacked:
        before, room = 0, x.shape[1]
        if cache is not None:
            before, room = cache["attention"].length[0], cache["attention"].key.shape[-2]
        table = RelativeBuckets(self.heads, self.buckets, self.max_distance, both_ways=not self.decoder)
        bias = table.bias(self.param, None, before + jnp.arange(x.shape[1]), jnp.arange(room))
        block = self.make_block(
            attention=self.make_attention(causal=self.decoder, scale=1.0),
            cross=self.make_attention(cross=True, scale=1.0) if self.decoder else None,
        )
        call = Call(bias=bias, context=context, capture=capture)
        stacked = self.apply_blocks(x, call, block, cache=cache, perturb=perturb)
        return stacked.replace(tokens=self.make_norm()(name="norm")(stacked.tokens))


class T5(nn.Module):
    """An encoder and a decoder over one table of tokens."""

    vocab_size: int
    encoder: T5Stack
    decoder: T5Stack

    def setup(self):
        self.embed = nn.Embed(self.vocab_size, self.encoder.width)

    def __call__(self, tokens, text, *, perturb=None, capture=()) -> tuple[Stacked, Stacked]:
        perturb = perturb or (None, None)
        encoded = self.encoder(self.embed(tokens), perturb=perturb[0], capture=capture)
        return encoded, self.decoder(self.embed(text), encoded.tokens, perturb=perturb[1], capture=capture)

    def decode(self, text, cache, encoded=None) -> Stacked:
        """Goes on with a text; the first call brings the encoded tokens."""
        return self.decoder(self.embed(text), encoded, cache=cache)

    def empty_cache(self, batch, room):
        heads, head_dim, depth = self.decoder.heads, self.decoder.head_dim, self.decoder.depth
        return {"attention": KVCache.zeros(depth, batch, heads, room, head_dim), "cross": ContextCache()}


class QFormer(Transformer, kw_only=True):
    """BLIP-2's Q-Former: queries and a text; every second layer's queries look at the image."""

    queries: int
    norm_eps: float = 1e-12

    @nn.compact
    def __call__(self, tokens, image, *, perturb=None, capture=()) -> Stacked:
        x = self.make_norm()(name="embed_norm")(tokens)
        block = functools.partial(self.make_block, norms="post", queries=self.queries, text_mlp=self.make_mlp())
        pattern = [block(cross=self.make_attention(cross=True)), block()]
        return self.apply_blocks(x, Call(context=image, capture=capture), pattern, perturb=perturb)


class Flamingo(Transformer, kw_only=True):
    """A language model before each of whose blocks a gated one looks at the image."""

    vocab_size: int

    @nn.compact
    def __call__(self, tokens, image, *, perturb=None, capture=()) -> Stacked:
        x = nn.Embed(self.vocab_size, self.width, name="embed")(tokens)
        look = self.make_block(attention=None, cross=self.make_attention(cross=True), gated=("cross", "mlp"))
        speak = self.make_block(attention=self.make_attention(causal=True))
        return self.apply_blocks(x, Call(context=image, capture=capture), [look, speak], perturb=perturb)


class SamVision(Transformer, kw_only=True):
    """The blocks of SAM's image encoder: windows, every third layer global, decomposed relative positions."""

    window: int
    table_grid: tuple[int, int]

    @nn.compact
    def __call__(self, x, grid, *, perturb=None, capture=()) -> Stacked:
        side = (self.window, self.window)
        windowed = self.make_attention(windows=Windows(grid, self.window), positional=(DecomposedRelative(side),))
        everywhere = self.make_attention(positional=(DecomposedRelative(grid, self.table_grid),))
        pattern = [self.make_block(attention=attention) for attention in (windowed, windowed, everywhere)]
        return self.apply_blocks(x, Call(capture=capture), pattern, perturb=perturb)

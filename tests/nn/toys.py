"""Small models of architectures to come, each a few lines on the shared blocks."""

import functools

from flax import linen as nn

from vitvlm.nn.caches import KVCache
from vitvlm.nn.calls import Call
from vitvlm.nn.relative import DecomposedRelative
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

"""Small models of architectures to come, each a few lines on the shared blocks."""

from flax import linen as nn

from vitvlm.nn.calls import Call
from vitvlm.nn.relative import DecomposedRelative
from vitvlm.nn.stack import Stacked
from vitvlm.nn.transformer import Transformer
from vitvlm.nn.windows import Windows


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

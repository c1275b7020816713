"""Pixel shuffle: the tokens of a square of the grid become one, neighbours put into channels (Idefics3, nanoVLM)."""

from jaxtyping import Array, Float

from vitvlm.models.connectors.base import CONNECTORS, check_divides, check_grid
from vitvlm.models.connectors.projector import Projector
from vitvlm.nn.patches import Pair, patchify


@CONNECTORS.register("pixel_shuffle")
class PixelShuffle(Projector, kw_only=True):
    """Squares of `factor` x `factor` tokens as one of factor^2 E channels each, then linear maps.

    The channels are those of the square's tokens row by row. h and w are multiples of the factor.

    Fields, besides those of `Projector`:
      factor: side of a square. Of Idefics3 and nanoVLM, there is one linear map, without a bias.
    """

    factor: int = 2
    bias: bool = False

    def rearranged(self, features: Float[Array, "B N E"], grid: Pair) -> Float[Array, "B M F"]:
        check_grid("pixel_shuffle", features, grid)
        check_divides("pixel_shuffle", self.factor, grid)
        return patchify(features.reshape(len(features), *grid, -1), (self.factor, self.factor))

    def count(self, grid: Pair) -> int:
        check_divides("pixel_shuffle", self.factor, grid)
        return grid[0] * grid[1] // self.factor**2

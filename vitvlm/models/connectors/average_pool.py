"""Average pooling: the tokens of a square of the grid become their mean."""

from jaxtyping import Array, Float

from vitvlm.models.connectors.base import CONNECTORS, check_divides, check_grid
from vitvlm.models.connectors.projector import Projector
from vitvlm.nn.patches import Pair


@CONNECTORS.register("average_pool")
class AveragePool(Projector, kw_only=True):
    """Means of squares of `factor` x `factor` tokens, then linear maps; h and w are multiples of the factor.

    Fields, besides those of `Projector`:
      factor: side of a square.
    """

    factor: int = 2

    def rearranged(self, features: Float[Array, "B N E"], grid: Pair) -> Float[Array, "B M F"]:
        check_grid("average_pool", features, grid)
        check_divides("average_pool", self.factor, grid)
        (h, w), f = grid, self.factor
        squares = features.reshape(len(features), h // f, f, w // f, f, features.shape[-1])
        return squares.mean(axis=(2, 4)).reshape(len(features), h * w // f**2, -1)

    def count(self, grid: Pair) -> int:
        check_divides("average_pool", self.factor, grid)
        return grid[0] * grid[1] // self.factor**2

"""Windows of tokens that see only each other: shifted from block to block (Swin), or not (SAM)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vitvlm.nn.patches import Pair, patchify, unpatchify


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of `side` * `side` = T tokens in a grid; attention with them is within each window.

    Where the side does not divide the grid, zeros are added below and to the right, after the block's norm; they are
    looked at like tokens, as the references of Swin and SAM do.

    Attributes:
      grid: (h, w) of the tokens.
      side: of a window, in tokens.
      shift: by how many tokens the windows are moved, down and to the right. Those that lie over the border go on at
        the other side; only what is together in the image sees each other.
    """

    grid: Pair
    side: int
    shift: int = 0

    @classmethod
    def shifted(cls, grid: Pair, window: int, shifted: bool, always_partition: bool = False) -> "Windows":
        """Swin's windows, by half their side where shifted (Liu et al. 2021, section 3.2).

        The window of a grid that it covers in any direction is as large as the grid's shorter side, and is not shifted;
        if always_partition, it stays, the grid is padded to it, and it is shifted.
        """
        if min(grid) <= window and not always_partition:
            return cls(grid, min(grid))
        return cls(grid, window, window // 2 if shifted else 0)

    def cut(self, tokens: Float[Array, "B N D"]) -> Float[Array, "windows T D"]:
        """Windows of the tokens: image by image, row by row."""
        B, _, D = tokens.shape
        maps = tokens.reshape(B, *self.grid, D)
        below, right = (padded - size for padded, size in zip(self._padded, self.grid))
        maps = jnp.pad(maps, [(0, 0), (0, below), (0, right), (0, 0)])
        if self.shift:
            maps = jnp.roll(maps, (-self.shift, -self.shift), axis=(1, 2))
        return partition(maps, self.side)

    def join(self, windows: Float[Array, "windows T D"]) -> Float[Array, "B N D"]:
        """Tokens of the windows: the inverse of `cut`."""
        maps = join(windows, self._padded, self.side)
        if self.shift:
            maps = jnp.roll(maps, (self.shift, self.shift), axis=(1, 2))
        h, w = self.grid
        return maps[:, :h, :w].reshape(len(maps), h * w, -1)

    def mask(self, batch: int) -> Bool[Array, "windows 1 T T"] | None:
        """True where tokens of a window are together in the image; None where they all are."""
        if not self.shift:
            return None
        return jnp.tile(shift_mask(self._padded, self.side, self.shift), (batch, 1, 1))[:, None]

    @property
    def _padded(self) -> Pair:
        h, w = self.grid
        return h + -h % self.side, w + -w % self.side


def partition(maps: Float[Array, "B h w D"], window: int) -> Float[Array, "windows T D"]:
    """Cuts maps into windows of T = window * window tokens: image by image, row by row.

    Raises ValueError if the window does not divide the map.
    """
    return patchify(maps, (window, window)).reshape(-1, window * window, maps.shape[-1])


def join(windows: Float[Array, "windows T D"], grid: Pair, window: int) -> Float[Array, "B h w D"]:
    """Puts windows back into maps of `grid` tokens: the inverse of `partition`."""
    rows, columns = grid[0] // window, grid[1] // window
    patches = windows.reshape(-1, rows * columns, window * window * windows.shape[-1])
    return unpatchify(patches, (rows, columns), (window, window))


def shift_mask(grid: Pair, window: int, shift: int) -> Bool[Array, "windows T T"]:
    """Mask of the token pairs that may attend to each other in the windows of a map that was rolled by `shift`.

    Rolling brings `shift` rows and columns round from the opposite side of the map; they are not neighbours of the
    other tokens in their window, so attention between the two parts is masked.
    """
    rows, columns = (np.arange(size) >= size - shift for size in grid)
    side = jnp.asarray(2 * rows[:, None] + columns, jnp.float32)
    sides = partition(side[None, :, :, None], window)[..., 0]
    return sides[:, :, None] == sides[:, None, :]

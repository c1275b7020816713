"""Base of what stands in a parameter tree in the place of a matrix: stored in another way, or with an adapter.

Flax hands it to a module's `self.param` as the matrix (`unbox`), so the module need not know of it. Its own arrays
have the layers' axis in front, as the matrix has, so that `nn.scan` takes one layer of it.
"""

import math
from typing import Any

from flax import struct
from flax.core import meta


class Boxed(struct.PyTreeNode, meta.AxisMetadata):
    """A matrix W [..., in, out] in other arrays; a subclass says `shape`, `unbox` and `replace_boxed`."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Boxed":
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Boxed":
        return self

"""Early fusion: no image encoder, the patches' pixels go through one linear map into the language model (Fuyu)."""

from collections.abc import Collection
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.models.connectors.base import CONNECTORS
from vitvlm.models.connectors.projector import Projector
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput
from vitvlm.nn.calls import check_capture
from vitvlm.nn.patches import Pair, as_pair, patch_grid, patchify
from vitvlm.nn.roles import Roles


@CONNECTORS.register("none")
class NoConnector(Projector, kw_only=True):
    """Patch embedding of a decoder that has no image encoder: z = x W + b of each patch's P * P * C pixels."""


class Pixels(nn.Module, ModelFacts):
    """Stands for an image encoder where there is none: its tokens are the patches' own pixels. No parameters.

    Fields:
      patch_size: a number or (height, width), which divide the image.
    """

    roles: ClassVar[Roles] = ()
    captures: ClassVar[tuple[str, ...]] = ()

    patch_size: int | Pair
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @property
    def patch(self) -> Pair:
        return as_pair(self.patch_size)

    def __call__(
        self, images: Float[Array, "B H W C"], *, train: bool = False, capture: Collection[str] = ()
    ) -> EncoderOutput:
        """Cuts images into patches, row by row; in a patch the order is row, column, channel."""
        check_capture(capture, self.captures, "a model without an image encoder")
        h, w = grid = patch_grid(images.shape[1:3], self.patch)
        tokens = patchify(images, self.patch).astype(self.dtype)
        return EncoderOutput(
            tokens=tokens,
            prefix=tokens[:, :0],
            pooled=tokens.mean(axis=1),
            grid=grid,
            pyramid=(tokens.reshape(len(tokens), h, w, -1),),
        )


def pixels_of(patch: Pair | None, where: str = "model.image") -> Pixels:
    """Returns the `Pixels` of patches. Raises ConfigError without a patch size."""
    if patch is None:
        raise config.ConfigError(
            f'{where}: connector "none" cuts the image into patches: give it as dict(patch_size=P), or as an encoder '
            "that has patches"
        )
    return Pixels(patch)

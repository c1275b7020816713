"""Base of the connectors, and what each returns."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import flax.struct
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.core.registry import Registry
from vitvlm.nn.patches import Pair
from vitvlm.nn.roles import Roles

CONNECTORS = Registry("connector")


@flax.struct.dataclass
class ConnectorOutput:
    """Output of a connector.

    Fields:
      tokens [B, M, D]: of each image.
      attention: weights of its attention to the features, [layers, B, K, M, N] or by kind; None unless captured, or
        without any.
    """

    tokens: Float[Array, "B M D"]
    attention: Any = None


class Connector(nn.Module):
    """Base of the connectors: features of images [B, N, E] to tokens [B, M, D] that a language model reads.

    A kind says what `__call__` and `count` are, and registers itself by `@CONNECTORS.register("name")`.

    Fields:
      width: D; by default that of the language model's embeddings (`build_connector`).
      dtype: of the computation; param_dtype: of the parameters.

    Attributes:
      fusion: how the language model reads the tokens: "prefix", among the tokens of the text; "cross", by
        cross-attention.
      reads: fields of a batch that the call takes besides the features, by keyword.
      captures: what `capture` may ask of it.
      frames: how many images that follow each other are those of one video, whose features are connected together.
    """

    roles: ClassVar[Roles] = ()
    fusion: ClassVar[str] = "prefix"
    reads: ClassVar[tuple[str, ...]] = ()
    captures: ClassVar[tuple[str, ...]] = ()
    frames: ClassVar[int] = 1

    width: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __call__(
        self,
        features: Float[Array, "B N E"],
        grid: Pair,
        mask: Bool[Array, "B N"] | None = None,
        *,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> ConnectorOutput:
        """Connects the features of images, each by itself.

        Args:
          grid: (h, w) of the features; with others before them (CLS), or of several scales, N is not h w.
          mask [B, N]: True at features of the image; None: all are.
          capture: of `captures`. perturb: of its attention, see `nn.calls.PerLayer`.

        Raises ConfigError for features that this kind cannot connect.
        """
        raise NotImplementedError

    def count(self, grid: Pair) -> int:
        """Returns M for features of a grid alone."""
        raise NotImplementedError

    def language_fields(self) -> dict[str, Any]:
        """Fields of the language model that this connector needs, such as layers that look at images."""
        return {}

    def context_mask(
        self,
        image_mask: Bool[Array, "B V"],
        M: int,
        image_index: Int[Array, "B L"] | None = None,
        mask: Shaped[Array, "B L"] | None = None,
        attention_mask: Bool[Array, "#B #K #L #M"] | None = None,
    ) -> Bool[Array, "B 1 #L S"]:
        """Says which text sees which image tokens, for "cross" fusion: by default all see those of every image.

        Args:
          image_mask: True where there is an image, or a frame of a video. M: tokens of each.
          image_index: the number of the image whose marker stands at each place of the text, -1 where none does.
          mask, attention_mask: of the text, which say what of it a token may itself look at.
        """
        return jnp.repeat(image_mask, M, axis=1)[:, None, None, :]


def check_grid(kind: str, features: Float[Array, "B N E"], grid: Pair) -> None:
    """Raises ConfigError unless the features are those of a grid, row by row, and nothing else."""
    h, w = grid
    if features.shape[1] != h * w:
        raise config.ConfigError(
            f"model.connector: {kind} needs the tokens of one grid, {h} x {w} = {h * w}, and is given "
            f"{features.shape[1]}: leave out CLS and registers (model.keep_prefix=False) and take model.features "
            'other than "pyramid"'
        )


def check_divides(kind: str, factor: int, grid: Pair) -> None:
    """Raises ConfigError unless the factor divides both sides of the grid."""
    if factor < 1 or grid[0] % factor or grid[1] % factor:
        both = [f for f in range(1, min(grid) + 1) if grid[0] % f == 0 and grid[1] % f == 0]
        raise config.ConfigError(
            f"model.connector.factor: {factor} does not divide the grid of {grid[0]} x {grid[1]} tokens, for which "
            f"{kind} may have {', '.join(map(str, both))}"
        )


def build_connector(fields: Mapping[str, Any], width: int, where: str = "model.connector") -> Connector:
    """The connector that a config's section describes, by its `name` and fields.

    Args:
      width: of the language model's embeddings, D where the section says no other.

    Raises ConfigError for an unknown name or field.
    """
    if "name" not in fields:
        raise config.ConfigError(f"{where}.name: missing; there is: {', '.join(CONNECTORS.names())}")
    own = {name: value for name, value in fields.items() if name != "name"}
    return CONNECTORS.build(fields["name"], {"width": width, **own}, where)

"""An operation string taken apart into what other code bases can say: one resize, one crop, a mean and a deviation."""

import dataclasses
import inspect
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.data.operations import colour
from vitvlm.data.operations.parsing import Operation

_ORDER = ("decode", "resize", "crop", "normalize")
_RESIZES = ("resize", "resize_small", "resize_cover", "resize_contain", "resize_pad")


@dataclasses.dataclass(frozen=True)
class ImageSteps:
    """Decode, resize, crop and normalise, each at most once and in this order.

    Fields:
      channels: of the pixels.
      resize: name of the operation, one of resize, resize_small, resize_cover, resize_contain, resize_pad, and
        arguments; None if images keep their size.
      crop: arguments of `central_crop`; None if nothing is cut.
      background: of transparent parts.
      mean, std: per channel, of pixels in [0, 1].
    """

    channels: int
    resize: tuple[str, dict[str, Any]] | None
    crop: dict[str, Any] | None
    background: int | tuple
    mean: tuple[float, ...]
    std: tuple[float, ...]


def take_apart(text: str) -> ImageSteps:
    """The steps on images of an operation string. Raises ConfigError that names an operation that is none of them."""
    found: dict[str, Operation] = {}
    for operation in operations.parse(text).operations:
        if not operation.function.on_image:
            if "image" in operation.reads and "images" in operation.writes:  # tiles
                raise ConfigError(f"{operation.text} makes several images of one, which no file says")
            continue
        name = operation.function.name
        kind = "resize" if name in _RESIZES else "crop" if name == "central_crop" else name
        if kind not in _ORDER or any(kind == each or _ORDER.index(kind) < _ORDER.index(each) for each in found):
            raise ConfigError(
                f"{operation.text} does not fit: decode, one resize, central_crop and normalize, in this order"
            )
        found[kind] = operation
    decode = _arguments(found["decode"]) if "decode" in found else {"channels": 3, "background": 255}
    if "normalize" not in found:
        raise ConfigError("it has no normalize")
    mean, std = (tuple(map(float, x)) for x in colour.statistics(**_arguments(found["normalize"])))
    channels = decode["channels"]
    return ImageSteps(
        channels=channels,
        resize=(found["resize"].function.name, _arguments(found["resize"])) if "resize" in found else None,
        crop=_arguments(found["crop"]) if "crop" in found else None,
        background=decode["background"],
        mean=mean * channels if len(mean) == 1 else mean,
        std=std * channels if len(std) == 1 else std,
    )


def near_misses(steps: ImageSteps, rounding: str) -> list[str]:
    """Lists where the other format's steps differ slightly from these; `rounding` is that of its central crop."""
    found = []
    if steps.resize and steps.resize[1]["method"] == "fast":
        found.append("a bilinear resize in place of a fast one, which differs by about a grey level")
    if steps.crop and steps.crop["rounding"] != rounding:
        found.append("the central crop rounds half of an odd margin the other way, which moves it by a pixel")
    if steps.background not in (255, (255, 255, 255)):
        found.append(f"transparent parts are laid over white rather than {steps.background}")
    return found


def pair(size: int | tuple) -> tuple[int, int]:
    """Returns (height, width) of an operation's size."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _arguments(operation: Operation) -> dict[str, Any]:
    """All of them by name, defaults too; those that a call gives by itself are left out."""
    bound = inspect.signature(operation.function).bind(None, *operation.positional, **operation.named)
    bound.apply_defaults()
    _, *arguments = bound.arguments.items()
    return {name: value for name, value in arguments if name not in ("rng", "out")}

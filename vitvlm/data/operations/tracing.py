"""Operations on the images of an example: on each, with its draws, and with the trace of where its pixels come from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vitvlm.core.transforms import IDENTITY, Transform
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.kinds import Fields
from vitvlm.data.operations.moving import move, visible
from vitvlm.data.operations.steps import Steps, Upright

# Entry of an example: of each field with images, where its pixels come from.
ORIGINS = "@origins"


class ImageOperation(Protocol):
    """Operation on images with its arguments, as `parsing.Operation` is one."""

    function: Any
    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    field: str
    same_draw: bool | None
    moved: Fields


@dataclasses.dataclass(frozen=True)
class Origin:
    """Origin of an image's pixels: the transform to the pixels as the user stored them, and their (H0, W0)."""

    transform: Transform
    size: tuple[int, int]

    def after(self, steps: Steps) -> "Origin":
        transform = self.transform
        for step in steps:
            transform = transform @ step.transform
        return Origin(transform, self.size)


def on_images(
    operation: ImageOperation, example: dict[str, Any], rng: np.random.Generator | None, out: np.ndarray | None
) -> dict[str, Any]:
    """The example after an operation on its field of images, and on what moves with them."""
    field = operation.field
    if field not in example:
        raise ValueError(f"no field {field!r} with an image; there is: {', '.join(sorted(example))}")
    value = example[field]
    origins = example.get(ORIGINS, {})
    if not several(value):
        image, steps, origin = _on_one(operation, value, rng, out, origins.get(field))
        new = {field: image}
        if operation.function.traced:
            new[ORIGINS] = {**origins, field: origin}
            for name, kind in operation.moved.items():
                new |= move(example, name, kind, steps) if name in example else {}
        return {**example, **new}
    each = origins.get(field) or [None] * len(value)
    done = []
    start = rng.bit_generator.state if rng is not None else None
    for one, origin in zip(value, each, strict=True):
        if operation.same_draw and start is not None:
            rng.bit_generator.state = start
        try:
            done.append(_on_one(operation, one, rng, None, origin))
        except UnreadableImage as error:
            which = f"{field}: {len(done) + 1} of {len(value)}: {error.reason}"
            raise UnreadableImage(which, error.name, error.examples) from error
    new = {field: [image for image, _, _ in done]}
    if operation.function.traced:
        new[ORIGINS] = {**origins, field: [origin for _, _, origin in done]}
        for name, kind in operation.moved.items():
            new |= _move_each(example, name, kind, [steps for _, steps, _ in done])
    return {**example, **new}


def several(value: Any) -> bool:
    """Tells whether a field holds several images: a list, a tuple, or frames [T, H, W, C]."""
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 4)


def _on_one(
    operation: ImageOperation,
    image: Any,
    rng: np.random.Generator | None,
    out: np.ndarray | None,
    origin: Origin | None,
) -> tuple[Any, Steps, Origin | None]:
    function, given = operation.function, {}
    if function.random:
        given["rng"] = rng
    elif function.in_place:
        given["out"] = out
    if isinstance(image, bytes) and function.name != "decode":
        raise ValueError("the image is still encoded: put decode first")
    if not function.traced:
        return function(image, *operation.positional, **operation.named, **given), (), origin
    new, steps = function.traced(image, *operation.positional, **operation.named, **given)
    if origin is None:
        origin = origin_of(image if isinstance(image, np.ndarray) else new, steps)
    return new, steps, origin.after(steps)


def origin_of(image: np.ndarray, steps: Steps = ()) -> Origin:
    """The origin of pixels that nothing has traced yet; of a decoded file, its turn says how they are stored."""
    return Origin(IDENTITY, steps[0].before if steps and isinstance(steps[0], Upright) else image.shape[:2])


def _move_each(example: Mapping[str, Any], name: str, kind: Any, steps: Sequence[Steps]) -> dict[str, Any]:
    """Moves a field with an entry for each image."""
    if name not in example:
        return {}
    values = example[name]
    if len(values) != len(steps):
        raise ValueError(
            f"{name!r} has {len(values)} entries, and there are {len(steps)} images: give each image its own"
        )
    seen = example.get(visible(name), [None] * len(steps))
    parts = [
        move({name: value} | ({} if one is None else {visible(name): one}), name, kind, own)
        for value, one, own in zip(values, seen, steps, strict=True)
    ]
    return {key: [part[key] for part in parts] for key in parts[0]} if parts else {}

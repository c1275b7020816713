"""Moving what belongs to an image: boxes, points, masks and relations go through the steps of its geometry.

A box, point or mask is never dropped here: it is clipped to the image, and NAME_visible, float32 [n], says which share
of it is still seen: of a box's area, of a mask's pixels, and 1 or 0 for a point. `drop_hidden` leaves out the rest.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vitvlm.core.transforms import moved
from vitvlm.data.kinds import Field
from vitvlm.data.operations.steps import Step, Steps


def visible(name: str) -> str:
    """The field that says which share of each row of field `name` is seen."""
    return f"{name}_visible"


def move(example: Mapping[str, Any], name: str, field: Field, steps: Steps) -> dict[str, Any]:
    """The field `name`, and what is seen of it, after steps of its image's geometry."""
    value = example[name]
    if field.kind == "relations":
        mirrored = sum(step.mirrors for step in steps) % 2
        return {name: swapped(value, field.words) if mirrored else value}
    seen = example.get(visible(name))
    value = np.asarray(value)
    if not len(value) and field.kind != "masks":
        value = value.reshape(0, 4 if field.kind == "boxes" else 2)
    seen = np.ones(len(value), np.float32) if seen is None else seen
    for step in steps:
        value, left = _MOVES[field.kind](value, step, field)
        seen = (seen[_order(field, len(seen))] if field.kind == "points" and step.mirrors else seen) * left
    return {name: value, visible(name): seen.astype(np.float32)}


def swapped(value: Any, words: Sequence[tuple[str, str]]) -> Any:
    """A text, or texts however nested, in which the words of each pair change places; case is kept.

    A word may be part of a name such as "left_eye", but not of a longer word such as "leftover".
    """
    if isinstance(value, (tuple, list)):
        return type(value)(swapped(item, words) for item in value)
    if not isinstance(value, str):
        return value
    other = {one.lower(): two for pair in words for one, two in (pair, pair[::-1])}
    found = "|".join(sorted(map(re.escape, other), key=len, reverse=True))
    return re.sub(rf"(?<![^\W_])(?:{found})(?![^\W_])", lambda m: _cased(other[m[0].lower()], m[0]), value, flags=re.I)


def _cased(word: str, like: str) -> str:
    if like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def _boxes(
    boxes: Float[np.ndarray, "n 4"], step: Step, field: Field
) -> tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, " n"]]:
    left, top, right, bottom = np.asarray(boxes, np.float64).T
    corners = np.stack([left, top, right, top, right, bottom, left, bottom], axis=-1).reshape(-1, 4, 2)
    corners = moved(corners, np.linalg.inv(step.transform))
    whole = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1)
    height, width = step.size
    clipped = np.clip(whole, 0, [width, height, width, height])
    area, before = _area(clipped), _area(whole)
    return clipped.astype(np.float32), np.divide(area, before, out=np.zeros_like(area), where=before > 0)


def _area(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _points(
    points: Float[np.ndarray, "n 2"], step: Step, field: Field
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    points = moved(points, np.linalg.inv(step.transform))
    if step.mirrors:
        points = points[_order(field, len(points))]
    inside = ((points >= 0) & (points <= step.size[::-1])).all(axis=-1)
    return points.astype(np.float32), inside.astype(np.float32)


def _order(field: Field, count: int) -> list[int]:
    """Rows of named points in a mirror image: where "left_eye" is, "right_eye" was."""
    if not field.names:
        return list(range(count))
    if len(field.names) != count:
        raise ValueError(f"{count} points, and names for {len(field.names)}: {', '.join(field.names)}")
    others = [swapped(name, field.words) for name in field.names]
    return [field.names.index(other) if other in field.names else row for row, other in enumerate(others)]


def _masks(
    masks: Bool[np.ndarray, "n H W"], step: Step, field: Field
) -> tuple[Bool[np.ndarray, "n H2 W2"], Float[np.ndarray, " n"]]:
    """Moves masks by the nearest pixel; what lies outside is False. What is seen is counted in the pixels before."""
    masks = masks.astype(bool).reshape(len(masks), *masks.shape[1:] if masks.ndim == 3 else (0, 0))
    new = np.zeros((len(masks), *step.size), bool)
    for row, mask in enumerate(masks):
        new[row] = _nearest(mask, step)
    (H, W), (height, width) = masks.shape[1:], step.size
    y, x = np.mgrid[:H, :W] + 0.5
    ahead = moved(np.stack([x, y], axis=-1), np.linalg.inv(step.transform))
    stays = ((ahead >= 0) & (ahead <= (width, height))).all(axis=-1)
    count, kept = masks.sum(axis=(1, 2)), (masks & stays).sum(axis=(1, 2))
    return new, np.divide(kept, count, out=np.zeros(len(masks)), where=count > 0)


def _nearest(mask: Bool[np.ndarray, "H W"], step: Step) -> Bool[np.ndarray, "H2 W2"]:
    return step.of_masks()(mask[..., None].astype(np.uint8))[..., 0] > 0


_MOVES = {"boxes": _boxes, "points": _points, "masks": _masks}

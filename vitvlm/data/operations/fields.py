"""Operations on whole examples rather than on pixels: which fields a batch has, and what kind they are."""

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

import numpy as np

from vitvlm.core import json_texts
from vitvlm.core.config import suggest
from vitvlm.core.limits import Rows
from vitvlm.data.kinds import LEFT_RIGHT, OF_EACH_IMAGE, Field, Fields
from vitvlm.data.operations import tracing
from vitvlm.data.operations.moving import visible
from vitvlm.data.operations.parsing import example_operation

DROPPED = "@dropped"  # entry of an example: how many rows of its fields were left out, by what and why
FORMATS = ("xyxy", "xywh", "cxcywh")


def _each(names: Sequence[str], kind: str) -> dict[str, str]:
    return dict.fromkeys(names, kind)


@example_operation("keep", reads=lambda given: _each(given["names"], "text"))
def keep(example: dict[str, Any], *names: str) -> dict[str, Any]:
    """Batches these fields too, as in keep("name", "boxes"); a batch has no text otherwise.

    A text field is an array of strings, None being ""; where some example has several texts, of tuples of strings.
    Strings stay on the host. Numbers must have one shape in all examples; `pad` sees to that.
    """
    for name in names:
        if name not in example:
            raise ValueError(f"no field {name!r}; {suggest(name, _shown(example) - {'image', 'label'})}")
    texts = {name for name, value in example.items() if isinstance(value, (str, tuple, NoneType))} - {"id", *names}
    kept = {name: value for name, value in example.items() if name not in texts}
    return kept | {name: "" if example[name] is None else example[name] for name in names}


@example_operation(
    "copy",
    reads=lambda given: {given["field"]: "image"},
    makes=lambda given: (given["to"],),
    declares=lambda fields, given: {given["to"]: fields.get(given["field"], Field("image"))},
)
def copy(example: dict[str, Any], field: str, to: str) -> dict[str, Any]:
    """Copies a field, as for another crop of an image: copy('image', 'view')|random_resized_crop(96, field='view')."""
    origins = example.get(tracing.ORIGINS, {})
    traced = {tracing.ORIGINS: origins | {to: origins[field]}} if field in origins else {}
    return {**example, to: _field(example, field), **traced}


@example_operation(
    "transform",
    reads=lambda given: {given["field"]: "image"},
    writes=lambda given: _of_transform(given["field"]),
)
def transform(example: dict[str, Any], field: str = "image") -> dict[str, Any]:
    """Batches where the image's pixels come from; put it after everything that moves them.

    `transform` float32 [3, 3] takes (x, y, 1) in pixels of the image to the pixels that the user stored, before EXIF
    turns them, and `original_size` int32 [2] is their (H0, W0); see `core.transforms.put_back`. Of another field than
    "image" they are called `FIELD_transform` and `FIELD_original_size`; of several images, [I, 3, 3] and [I, 2].
    """
    value = _field(example, field)
    origins = example.get(tracing.ORIGINS, {}).get(field)
    if tracing.several(value):
        found = origins or [tracing.origin_of(image) for image in value]
        matrix = np.array([each.transform for each in found]).reshape(-1, 3, 3)
        size = np.array([each.size for each in found]).reshape(-1, 2)
    else:
        found = origins or tracing.origin_of(value)
        matrix, size = found.transform, np.array(found.size)
    names = _of_transform(field)
    return {**example, names[0]: matrix.astype(np.float32), names[1]: size.astype(np.int32)}


def _of_transform(field: str) -> tuple[str, str]:
    prefix = "" if field == "image" else f"{field}_"
    return f"{prefix}transform", f"{prefix}original_size"


@example_operation(
    "boxes",
    reads=lambda given: {given["field"]: "boxes"},
    makes=lambda given: (given["to"],),
    declares=lambda fields, given: {given["to"]: Field("boxes", given["of"])},
)
def boxes(
    example: dict[str, Any], field: str = "boxes", format: str = "xyxy", of: str = "image", to: str = "boxes"
) -> dict[str, Any]:
    """Declares boxes of the image `of`, so that its geometry moves them: float32 [n, 4], left, top, right, bottom.

    The field is numbers, or JSON such as "[[0, 0, 8, 4]]", in pixels; format "xywh" is left, top, width, height (COCO)
    and "cxcywh" has the middle in place of left and top.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: there is {', '.join(FORMATS)}")
    found = _numbers(example, field, 4)
    if format == "cxcywh":
        found = np.concatenate([found[:, :2] - found[:, 2:] / 2, found[:, 2:]], axis=-1)
    if format != "xyxy":
        found = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=-1)
    if (found[:, 2:] < found[:, :2]).any():
        raise ValueError(
            f"{field!r} has a box whose right or bottom lies before its left or top: is format={format!r}?"
        )
    return {**example, to: found.astype(np.float32)}


@example_operation(
    "points",
    reads=lambda given: {given["field"]: "points"},
    makes=lambda given: (given["to"],),
    declares=lambda fields, given: {given["to"]: Field("points", given["of"], tuple(given["names"]))},
)
def points(
    example: dict[str, Any], field: str = "points", names: tuple = (), of: str = "image", to: str = "points"
) -> dict[str, Any]:
    """Declares points of the image `of`, so that its geometry moves them: float32 [n, 2], x and y in pixels.

    The field is numbers, or JSON such as "[[3, 4], [5, 4]]". With `names`, one for each row, a mirror image swaps the
    rows of left and right: names=('nose', 'left_eye', 'right_eye').
    """
    return {**example, to: _numbers(example, field, 2).astype(np.float32)}


@example_operation(
    "masks",
    reads=lambda given: {given["field"]: "masks"},
    makes=lambda given: (given["field"],),
    declares=lambda fields, given: {given["field"]: Field("masks", given["of"])},
)
def masks(example: dict[str, Any], field: str = "masks", of: str = "image") -> dict[str, Any]:
    """Declares masks of the image `of`, bool [n, H, W], so that its geometry moves them."""
    found = np.asarray(_field(example, field))
    if found.ndim != 3:
        raise ValueError(f"{field!r} is {list(found.shape)}, and masks are [n, H, W]")
    return {**example, field: found.astype(bool)}


@example_operation(
    "relations",
    reads=lambda given: _each(given["names"], "text"),
    declares=lambda fields, given: {
        name: Field("relations", given["of"], words=tuple(map(tuple, given["words"]))) for name in given["names"]
    },
)
def relations(example: dict[str, Any], *names: str, words: tuple = LEFT_RIGHT, of: str = "image") -> dict[str, Any]:
    """Declares that these texts say where things are in the image `of`: mirrored, "left" and "right" change places.

    `words` are the pairs that do: relations('caption', words=(('links', 'rechts'),)). Put it before flip.
    """
    for name in names:
        _field(example, name)
    return example


@example_operation("drop_hidden", reads=lambda given: _each(given["names"][:1], "boxes"))
def drop_hidden(example: dict[str, Any], *names: str, min_visible: float = 0.0) -> dict[str, Any]:
    """Leaves out the rows of which no more than `min_visible` is seen, as the first field says, in all fields named.

    The share is of the whole row as it was before any crop: of a box's area, of a mask's pixels; 1 or 0 of a point.
    drop_hidden('boxes', 'masks', 'things', min_visible=0.2) keeps the three in step. What is left out is counted.
    """
    if not names or not 0 <= min_visible < 1:
        raise ValueError(f"names a field, boxes for one, and min_visible={min_visible} lies within [0, 1)")
    count = len(_field(example, names[0]))
    seen = example.get(visible(names[0]), np.ones(count, np.float32))
    stays = np.asarray(seen) > min_visible
    share = f"{min_visible:g} or less" if min_visible else "nothing"
    why = f"rows of {names[0]!r} of which {share} is seen (drop_hidden)"
    new: dict[str, Any] = _dropped(example, why, int((~stays).sum()))
    for name in names:
        for each in (name, visible(name)):
            if each == name or each in example:
                new[each] = _rows(each, _field(example, each), stays)
    return {**example, **new}


@example_operation(
    "pad",
    reads=lambda given: {given["field"]: given["field"] if given["field"] in ("images", "video") else "boxes"},
    writes=lambda given: (given["field"], mask_of(given["field"])),
)
def pad(example: dict[str, Any], field: str, size: Rows, surplus: str = "error") -> dict[str, Any]:
    """Fills a field up to `size` rows of zeros: pad('boxes', 8), or pad('images', 4) for at most four images each.

    FIELD_mask int32 [size] is 1 at rows of the example (of images, image_mask); FIELD_visible is filled up too, and so
    is what `merge_patches` makes beside images. More rows than `size` are an error; with surplus="first" the first ones
    are taken, and the others counted.
    """
    if surplus not in ("first", "error") or size < 1:
        raise ValueError(f"surplus={surplus!r} is 'first' or 'error', and size={size} at least 1")
    value = _field(example, field)
    rows = list(value)
    if len(rows) > size and surplus == "error":
        raise ValueError(
            f"{field!r} has {len(rows)} rows: write size={len(rows)} instead of {size}, or surplus='first'"
        )
    if field == "images" and "image_index" in example:
        raise ValueError("the text says already which image stands where: put it before supervise")
    left_out, rows = max(len(rows) - size, 0), rows[:size]
    if shapes := sorted({np.shape(row) for row in rows}, key=str):
        if len(shapes) > 1:
            raise ValueError(f"{field!r} has rows of {shapes[0]} and of {shapes[1]}: add resize or a crop")
        whole = np.zeros((size, *shapes[0]), np.asarray(rows[0]).dtype)
        whole[: len(rows)] = rows
    elif isinstance(value, np.ndarray):
        whole = np.zeros((size, *value.shape[1:]), value.dtype)
    else:  # of what shape, other examples say
        whole = np.zeros(0, np.float32)
    new = {field: whole, mask_of(field): (np.arange(size) < len(rows)).astype(np.int32)}
    for name in OF_EACH_IMAGE if field == "images" else ():
        if name in example:
            beside = np.asarray(example[name])[: len(rows)]
            new[name] = np.pad(beside, [(0, size - len(beside)), *[(0, 0)] * (beside.ndim - 1)])
    if visible(field) in example:
        seen = np.asarray(example[visible(field)], np.float32)[:size]
        new[visible(field)] = np.pad(seen, (0, size - len(seen)))
    return {**example, **new, **_dropped(example, f"rows of {field!r} beyond the first {size} (pad)", left_out)}


def mask_of(field: str) -> str:
    """The name of the mask of a field's rows: image_mask of images, which is what models call it."""
    return "image_mask" if field == "images" else f"{field}_mask"


@example_operation(
    "as_images",
    reads=lambda given: {"images": "images"},
    makes=lambda given: ("images",),
    declares=lambda fields, given: {"images": Field("images")},
)
def as_images(example: dict[str, Any]) -> dict[str, Any]:
    """Gathers an example's image, images and frames of a video as `images`, none if it has none of these.

    So examples of several sources are alike: put it first. All frames of a video may share one marker in a text, see
    `supervise`.
    """
    found = [example["image"]] if example.get("image") is not None else []
    for name in ("images", "video"):
        found += list(example.get(name) or ())
    rest = {name: value for name, value in example.items() if name not in ("image", "video")}
    frames = len(example.get("video") or ())
    return {**rest, "images": found, **({"@frames": frames} if frames else {})}


def as_array(values: Sequence[str | tuple[str, ...]]) -> np.ndarray:
    """A field of a batch, [B], see `keep`."""
    if all(isinstance(value, str) for value in values):
        return np.array(values)
    array = np.empty(len(values), object)
    for row, value in enumerate(values):
        array[row] = value if isinstance(value, tuple) else (value,) if value else ()
    return array


def declared(fields: Fields, names: Mapping[str, str]) -> dict[str, Field]:
    """The kinds of the fields that operations read, where nothing but the operations says what they are."""
    return {name: fields.get(name) or Field(kind) for name, kind in names.items()}


def _dropped(example: Mapping[str, Any], why: str, count: int) -> dict[str, dict[str, int]]:
    """Returns the entry DROPPED with `count` more rows; nothing if there are none."""
    before = example.get(DROPPED, {})
    return {DROPPED: {**before, why: before.get(why, 0) + count}} if count else {}


def _field(example: Mapping[str, Any], name: str) -> Any:
    if name not in example:
        raise ValueError(f"no field {name!r}; {suggest(name, _shown(example))}")
    return example[name]


def _shown(example: Mapping[str, Any]) -> set[str]:
    return {name for name in example if not name.startswith("@")}


def _numbers(example: Mapping[str, Any], field: str, count: int) -> np.ndarray:
    """Rows of `count` numbers each, float64; JSON is read, and no value at all is no row."""
    value = _field(example, field)
    try:
        value = json_texts.loads(value) if isinstance(value, str) else value
        rows = np.asarray([] if value is None else value, np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{field!r} is not rows of {count} numbers ({error}): {value!r:.60}") from None
    if rows.size and (rows.ndim != 2 or rows.shape[1] != count):
        raise ValueError(f"{field!r} is {list(rows.shape)}, not rows of {count} numbers: {value!r:.60}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{field!r} has numbers that are not finite: {value!r:.60}")
    return rows.reshape(-1, count)


def _rows(name: str, value: Any, stays: np.ndarray) -> Any:
    if len(value) != len(stays):
        raise ValueError(f"{name!r} has {len(value)} rows, and the first field {len(stays)}: they must be as many")
    if isinstance(value, np.ndarray):
        return value[stays]
    return type(value)(each for each, stay in zip(value, stays) if stay)

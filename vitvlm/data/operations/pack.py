"""The operation that puts several records of language, and their images, in one row."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.core.limits import Length
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.kinds import OF_EACH_IMAGE
from vitvlm.data.operations.image_places import FIELDS, MASK, count_of
from vitvlm.data.operations.language import ARRAYS, INDEX, OWN_ROWS, PER_IMAGE
from vitvlm.data.operations.parsing import LOST, MEMBERS, TOGETHER, example_operation

SEGMENTS, POSITIONS = "text_segments", "text_positions"
PACKED = (*ARRAYS, SEGMENTS, POSITIONS)
IMAGES = ("images", MASK, INDEX)


def writes(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a packed row: those of images too, if it may hold any."""
    return PACKED + (IMAGES if given["images"] else ())


@example_operation("pack", writes=writes)
def pack(example: dict[str, Any], length: Length, images: int = 0) -> dict[str, Any]:
    """Puts several records in one row of `length` tokens; after supervise, in training, which chooses them by length.

    text_segments int32 [length] is 1 at the tokens of the first record, 2 at those of the second, …, and 0 at padding;
    text_positions restart with each, or are those that an operation gave the records, [length] or [length, 3]. No token
    is predicted from another record's, nor looks at one.

    With images, at most `images` of them in a row: `images` [images, H, W, C] are those of the records one after the
    other, image_mask int32 [images] is 1 where there is one, and image_index points to their tokens. What
    `merge_patches` makes beside them goes along; put `mrope` before it. A record that cannot be read is left out,
    counted and named, and the others stay.
    """
    members = [each for each in example.get(MEMBERS, [example]) if isinstance(each, Mapping)]
    lost = [each for each in example.get(MEMBERS, ()) if isinstance(each, UnreadableImage)]
    if not members:
        raise UnreadableImage(lost[0].reason, lost[0].name, sum(each.examples for each in lost))
    positions = [np.asarray(each[POSITIONS]) for each in members if POSITIONS in each]
    arrays = {name: np.zeros(length, np.int32) for name in PACKED}
    arrays[INDEX] = np.full(length, -1, np.int32)
    if positions:
        arrays[POSITIONS] = np.zeros((length, *positions[0].shape[1:]), np.int32)
    pictures: list[np.ndarray] = []
    beside: dict[str, list[np.ndarray]] = {name: [] for name in OF_EACH_IMAGE if name in members[0]}
    start = 0
    for number, member in enumerate(members, 1):
        count = int(member["text_mask"].sum())
        if start + count > length:
            raise ValueError(f"{start + count} tokens in a row of {length}: give pack at least the length of supervise")
        row = slice(start, start + count)
        for name in ARRAYS:
            arrays[name][row] = member[name][:count]
        arrays["text_learned"][start] = 0
        arrays[SEGMENTS][row] = number
        arrays[POSITIONS][row] = member[POSITIONS][:count] if POSITIONS in member else np.arange(count)
        own = _pictures(member, images) if INDEX in member else []
        if INDEX in member:
            arrays[INDEX][row] = shifted(member, count, len(own), len(pictures), images)
        pictures += own
        for name, rows in beside.items():
            rows += list(member[name])[: len(own)]
        start += count
    unpacked = (MEMBERS, *FIELDS, *UNPACKED, *OF_EACH_IMAGE)
    rest = {name: value for name, value in example.items() if name not in unpacked}
    packed = {**rest, **arrays}
    if images:
        packed |= _row_of_images(pictures, images)
        for name, rows in beside.items():
            whole = np.zeros((images, *np.shape(members[0][name])[1:]), np.int32)
            whole[: len(rows)] = np.reshape(rows, (-1, *whole.shape[1:]))
            packed[name] = whole
    else:
        del packed[INDEX]
    return packed | ({TOGETHER: len(members) + len(lost), LOST: lost} if MEMBERS in example else {})


UNPACKED = ("learned_bytes", "learned_words")  # of single records


def shifted(member: Mapping[str, Any], count: int, own: int, before: int, images: int) -> np.ndarray:
    """The image_index of a record with `own` images, behind `before` other images of a row of `images`."""
    index, each = np.array(member[INDEX][:count]), member.get(PER_IMAGE, 0)
    first = member.get(OWN_ROWS, own * each)  # rows from here on are vectors of the model's own
    places = index >= 0
    models = places & (index >= first)
    index[places & ~models] += before * each
    index[models] += images * each - first
    return index


def _pictures(member: Mapping[str, Any], most: int) -> list[np.ndarray]:
    """The images of a record, those that `pad` added left out. Raises UnreadableImage for more than `most`."""
    count = count_of(member)
    if count and not most:
        raise ConfigError("pack: the records have images: write pack(LENGTH, images=I), for at most I in a row")
    if count > most:
        raise UnreadableImage(f"has {count} images, more than pack(images={most})", str(member["id"]))
    name = next((name for name in FIELDS if member.get(name) is not None), None)
    if name is None:
        return []
    if name == "image":
        return [member[name]]
    there = member.get(MASK, np.ones(len(member[name]), np.int32))
    return [image for image, is_there in zip(member[name], there) if is_there]


def _row_of_images(pictures: list[np.ndarray], images: int) -> dict[str, np.ndarray]:
    if len(pictures) > images:
        raise ValueError(f"{len(pictures)} images in a row of {images}: write pack(LENGTH, images={len(pictures)})")
    shapes = sorted({np.shape(image) for image in pictures})
    if len(shapes) > 1:
        raise ValueError(f"'images' has images of {shapes[0]} and of {shapes[1]}: add resize or a crop")
    mask = (np.arange(images) < len(pictures)).astype(np.int32)
    if not pictures:  # of what shape, other rows say
        return {"images": np.zeros(0, np.float32), MASK: mask}
    whole = np.zeros((images, *shapes[0]), np.asarray(pictures[0]).dtype)
    whole[: len(pictures)] = pictures
    return {"images": whole, MASK: mask}

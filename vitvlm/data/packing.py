"""Packing: rows of several records each, chosen once by their lengths, so that little of a row is padding.

Which records share a row follows from the data and the operations alone. So rows are examples like any others: they are
shuffled each epoch, and an iterator's state is a number, as without packing.
"""

import bisect
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.kinds import OF_EACH_IMAGE, Fields
from vitvlm.data.operations import image_places
from vitvlm.data.operations.language import supervise
from vitvlm.data.operations.pack import pack
from vitvlm.data.operations.pack import writes as packs
from vitvlm.data.operations.parsing import MEMBERS, Operation, Pipeline
from vitvlm.data.sources.base import Example, Source

_NEARLY_FULL = 1.02  # rows over the fewest that could be; there is nothing to gain then

_LOG = logging.getLogger(__name__)


class Size(NamedTuple):
    """Size of a record in a row: tokens, and images (tiles counted each)."""

    tokens: int
    images: int = 0


class Packed(Source):
    """Rows of several examples of another source: {"@members": examples}, for `supervise` and `pack`.

    In place of an example that cannot be read stands its error, so that the others of the row are not lost with it.

    Attributes:
      sizes: of the records that can be learned.
    """

    def __init__(self, source: Source, rows: Sequence[Sequence[int]], name: str, sizes: Sequence[Size] = ()):
        self.name = name
        self.label_names = ()
        self.sizes = tuple(sizes)
        self._source, self._rows = source, [list(row) for row in rows]

    @property
    def fields(self) -> Fields:
        return self._source.fields

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        return np.zeros(len(self._rows), np.int32)

    @property
    def ids(self) -> Sequence[str]:
        ids = self._source.ids
        return [" + ".join(ids[i] for i in row) for row in self._rows]

    def stamps(self) -> Mapping[str, str]:
        return self._source.stamps()

    def __getitem__(self, index: int) -> Example:
        return self._row([self._member(i) for i in self._rows[index]])

    def outline(self, index: int) -> Example:
        return self._row([self._source.outline(i) for i in self._rows[index]])

    def _row(self, members: Sequence[Example | UnreadableImage]) -> Example:
        names = [each.name if isinstance(each, UnreadableImage) else str(each["id"]) for each in members]
        return {"id": " + ".join(names), MEMBERS: members}

    def __len__(self) -> int:
        return len(self._rows)

    def __str__(self) -> str:
        return f"{sum(map(len, self._rows)):,} records in {len(self):,} rows"

    def _member(self, index: int) -> Example | UnreadableImage:
        try:
            return self._source[index]
        except UnreadableImage as error:
            return error


def packed(source: Source, pipeline: Pipeline, where: str) -> Source:
    """The source in rows, if the operations `pack`; otherwise the source itself.

    All records are tokenized once, without reading their images, unless an operation cuts these into tiles. One that
    cannot be learned has a row of its own, where it is counted and named.

    Raises ConfigError for operations before pack whose fields it would lose, or that draw texts at random, and for a
    source that is only streamed.
    """
    names = [operation.function for operation in pipeline.operations]
    if pack not in names:
        return source
    place = names.index(pack)
    _check(pipeline, place, where)
    if source.streams:
        raise ConfigError(f"{where}: pack chooses records by their lengths, and {source.name} is streamed")
    given = pipeline.operations[place].arguments
    sizes = _sizes(source, pipeline.bind(source.fields).operations[:place])
    rows = best_fit(sizes, given["length"], given["images"] or None)
    known = [size for size in sizes if size is not None]
    tokens = sum(size.tokens for size in known)
    share = tokens / (given["length"] * max(len(rows), 1))
    _LOG.info(
        "%s: %d records packed in %d rows of %d, %.0f%% tokens",
        *(where, len(source), len(rows), given["length"], 100 * share),
    )
    return Packed(source, rows, f"{source.name}, packed", known)


def best_fit(sizes: Sequence[Size | int | None], length: int, images: int | None = None) -> list[list[int]]:
    """Records in rows of at most `length` tokens: the longest first, each into the fullest row that has room for it.

    A size is a number of tokens, or a `Size` with images, of which a row holds at most `images`. Where that bound is
    what keeps tokens out, rows are filled one by one instead, by `matched`, if these are fewer. A record of None, or of
    more images than the bound, has a row of its own. Rows, and the records in each, are in the order of their first
    record.
    """
    known = {i: Size(size) if isinstance(size, int) else size for i, size in enumerate(sizes) if size is not None}
    fitting = {i: size for i, size in known.items() if images is None or size.images <= images}
    rows = _longest_first(fitting, length, images)
    least = sum(size.tokens for size in fitting.values()) / length
    if images is not None and len(rows) > _NEARLY_FULL * least:
        rows = min(rows, matched(fitting, length, images), key=len)
    alone = [[i] for i in range(len(sizes)) if i not in fitting]
    return sorted(sorted(row) for row in [*rows, *alone])


def _longest_first(sizes: Mapping[int, Size], length: int, images: int | None) -> list[list[int]]:
    most = max((size.images for size in sizes.values()), default=0) if images is None else images
    rows: list[list[int]] = []
    # By the number of images that a row has still room for: (tokens that it has room for, row), sorted. Without a bound
    # every row has room for all.
    rooms: dict[int, list[tuple[int, int]]] = {}
    for i in sorted(sizes, key=lambda i: (-sizes[i].tokens, -sizes[i].images, i)):
        tokens, own = sizes[i]
        found = []
        for left, each in rooms.items():
            at = bisect.bisect_left(each, (tokens, -1))
            if left >= own and at < len(each):
                found.append((each[at], left, at))
        if found:
            (room, row), left, at = min(found)
            rooms[left].pop(at)
        else:
            room, row, left = length, len(rows), most
            rows.append([])
        rows[row].append(i)
        bisect.insort(rooms.setdefault(left if images is None else left - own, []), (room - tokens, row))
    return rows


def matched(sizes: Mapping[int, Size], length: int, images: int) -> list[list[int]]:
    """Records in rows, one after the other: the next is the one whose tokens and images are most like what has room.

    That is the largest sum of products of its shares of a row and the shares that are free (Panigrahy et al. 2011).
    """
    alike: dict[Size, list[int]] = {}
    for i in sorted(sizes, reverse=True):
        alike.setdefault(sizes[i], []).append(i)
    kinds = sorted(alike, reverse=True)
    tokens, pictures = np.array(kinds, np.int64).reshape(-1, 2).T
    left = np.array([len(alike[kind]) for kind in kinds])
    rows: list[list[int]] = []
    room = (0, 0)
    for _ in sizes:
        fits = (left > 0) & (tokens <= room[0]) & (pictures <= room[1])
        if not fits.any():
            rows.append([])
            room, fits = (length, images), left > 0
            there = left > 0
            if 2 * there.sum() < len(left):  # what is used up is looked at no more
                kinds = [kind for kind, is_there in zip(kinds, there, strict=True) if is_there]
                tokens, pictures, left, fits = tokens[there], pictures[there], left[there], fits[there]
        value = tokens * (room[0] / length**2) + pictures * (room[1] / max(images, 1) ** 2)
        chosen = int(np.argmax(np.where(fits, value, -1)))
        rows[-1].append(alike[kinds[chosen]].pop())
        left[chosen] -= 1
        room = (room[0] - int(tokens[chosen]), room[1] - int(pictures[chosen]))
    return rows


def _check(pipeline: Pipeline, place: int, where: str) -> None:
    before, told = pipeline.operations[:place], f"in {pipeline.text!r}"
    makers = [operation for operation in before if operation.function is supervise]
    if len(makers) != 1 or makers[0].arguments["answer_length"] is not None:
        raise ConfigError(f"{where}: pack follows supervise, once and without answer_length, {told}")
    given = pipeline.operations[place].arguments
    taken = {*packs({**given, "images": 1}), *image_places.FIELDS, *OF_EACH_IMAGE, *makers[0].writes}
    lost = [name for name in Pipeline(pipeline.text, before).batched if name not in taken]
    if lost:
        raise ConfigError(f"{where}: pack makes rows of tokens and images, and would lose {', '.join(lost)}, {told}")
    drawn = [operation.text for operation in before if operation.function.random and not operation.function.on_image]
    if drawn:
        raise ConfigError(f"{where}: pack chooses records by their lengths, which {drawn[0]} draws anew, {told}")
    if given["images"] and makers[0].arguments["image_tokens"] is None:
        raise ConfigError(f"{where}: pack(images=…) needs image_tokens= in supervise, {told}")


def _sizes(source: Source, before: Sequence[Operation]) -> list[Size | None]:
    """The size of each record after these operations; None for one that cannot be learned."""
    tiles = any(image_places.TEXTS in _made(operation) for operation in before)
    if not tiles:
        before = [operation for operation in before if not _of_pixels(operation)]
    read = source.__getitem__ if tiles else source.outline

    def size(index: int) -> Size | None:
        try:
            example = read(index)
            for operation in before:
                example = operation(example, np.random.default_rng(0))
        except UnreadableImage:
            return None
        return Size(int(example["text_mask"].sum()), image_places.count_of(example))

    return [size(index) for index in range(len(source))]


def _of_pixels(operation: Operation) -> bool:
    return operation.function.on_image or operation.function.name == "pad"


def _made(operation: Operation) -> tuple[str, ...]:
    makes = getattr(operation.function, "makes", None)
    return (*operation.writes, *(makes(operation.arguments) if makes else ()))

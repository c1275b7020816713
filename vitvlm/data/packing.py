"""Packing: rows of several records each, chosen once by their lengths, so that little of a row is padding.

Which records share a row follows from the data and the operations alone. So rows are examples like any others: they are
shuffled each epoch, and an iterator's state is a number, as without packing.
"""

import bisect
import logging
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.operations.language import MEMBERS, pack, supervise
from vitvlm.data.operations.parsing import Pipeline
from vitvlm.data.sources.base import Example, Source

_LOG = logging.getLogger(__name__)


class Packed(Source):
    """Rows of several examples of another source: {"@members": examples}, for `supervise` and `pack`."""

    def __init__(self, source: Source, rows: Sequence[Sequence[int]], name: str):
        self.name = name
        self.label_names = ()
        self._source, self._rows = source, [list(row) for row in rows]

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
        members = [self._source[i] for i in self._rows[index]]
        return {"id": " + ".join(str(each["id"]) for each in members), MEMBERS: members}

    def __len__(self) -> int:
        return len(self._rows)

    def __str__(self) -> str:
        return f"{sum(map(len, self._rows)):,} records in {len(self):,} rows"


def packed(source: Source, pipeline: Pipeline, where: str) -> Source:
    """The source in rows, if the operations `pack`; otherwise the source itself.

    All records are tokenized once. One that cannot be learned has a row of its own, where it is counted and named.

    Raises ConfigError for operations other than supervise before pack, and for a source that is only streamed.
    """
    names = [operation.function for operation in pipeline.operations]
    if pack not in names:
        return source
    place = names.index(pack)
    if names[:place] != [supervise] or pipeline.operations[0].arguments["answer_length"] is not None:
        raise ConfigError(f"{where}: pack follows supervise alone, and not with answer_length: {pipeline.text!r}")
    if source.streams:
        raise ConfigError(f"{where}: pack chooses records by their lengths, and {source.name} is streamed")
    length = pipeline.operations[place].arguments["length"]
    counts = [_count(source, pipeline, index) for index in range(len(source))]
    rows = best_fit(counts, length)
    tokens = sum(count for count in counts if count is not None)
    share = tokens / (length * max(len(rows), 1))
    _LOG.info(
        "%s: %d records packed in %d rows of %d, %.0f%% tokens", where, len(source), len(rows), length, 100 * share
    )
    return Packed(source, rows, f"{source.name}, packed")


def best_fit(counts: Sequence[int | None], length: int) -> list[list[int]]:
    """Records in rows of at most `length` tokens: the longest first, each into the fullest row that has room for it.

    A record of None has a row of its own. Rows, and the records in each, are in the order of their first record.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (what is left, row), sorted
    order = sorted((i for i, count in enumerate(counts) if count is not None), key=lambda i: (-counts[i], i))
    for i in order:
        at = bisect.bisect_left(rooms, (counts[i], -1))
        left, row = rooms.pop(at) if at < len(rooms) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        bisect.insort(rooms, (left - counts[i], row))
    rows += [[i] for i, count in enumerate(counts) if count is None]
    return sorted(sorted(row) for row in rows)


def _count(source: Source, pipeline: Pipeline, index: int) -> int | None:
    try:
        return int(pipeline.operations[0](source[index])["text_mask"].sum())
    except UnreadableImage:
        return None

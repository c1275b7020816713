"""Training on shards that are read from front to back: shuffled in a buffer, resumable at any batch.

The shards of all epochs, each epoch in its own order, are one endless row; reader r of R takes every R-th of it. There
is one reader in each worker of each process. So every shard of every epoch is read exactly once, whatever their number,
and nothing is known of a shard before it is opened. A reader draws from a buffer, which is emptied before the next
epoch begins: with one reader, each epoch holds every example once.

The state of a reader says where it is and which places the buffer holds; the buffer is read again on resuming.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from vitvlm.data.balance import Balance
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.loader import Loader
from vitvlm.data.plans import shuffled
from vitvlm.data.sources.base import Example
from vitvlm.data.sources.webdataset import Record, TarSource

# A stream of random numbers besides those of `plans`.
_BUFFER = 3

# An example's index in a batch is its shard and, in the lower bits, its byte.
_OFFSET_BITS = 40


class ShardReader(Iterator[tuple[int, int, Example | UnreadableImage]]):
    """Endless (epoch, index, example) of one reader among `count`; see the top of this file."""

    def __init__(self, source: TarSource, seed: int, reader: int, count: int, buffer: int):
        self._source, self._seed, self._reader, self._count, self._size = source, seed, reader, count, buffer
        self._turn = reader  # place in the endless row of shards
        self._offset = 0  # of the next record there
        self._before = 0  # records of that shard that were read
        self._whole: dict[int, int] = {}  # records of shards that were read to their end
        self._epoch = 0  # of what the buffer holds
        self._drawn = 0
        self._held: list[tuple[int, Record]] = []
        self._records: Iterator[Record] | None = None

    def __next__(self) -> tuple[int, int, Example | UnreadableImage]:
        self._fill()
        bits = np.random.Philox(key=(self._seed, _BUFFER), counter=(0, 0, self._drawn, self._reader))
        chosen = int(np.random.Generator(bits).integers(len(self._held)))
        self._drawn += 1
        self._held[chosen], self._held[-1] = self._held[-1], self._held[chosen]
        shard, record = self._held.pop()
        return self._epoch, shard << _OFFSET_BITS | record.offset, record.found

    def get_state(self) -> dict[str, Any]:
        held = [[shard, record.offset, *_lost(record)] for shard, record in self._held]
        place = {"turn": self._turn, "offset": self._offset, "epoch": self._epoch, "drawn": self._drawn}
        return place | {"held": held, "before": self._before, "whole": list(map(list, self._whole.items()))}

    def set_state(self, state: dict[str, Any]) -> None:
        self._turn, self._offset, self._records = state["turn"], state["offset"], None
        self._epoch, self._drawn = state["epoch"], state["drawn"]
        self._before, self._whole = state.get("before", 0), dict(map(tuple, state.get("whole", ())))
        places: dict[int, set[int]] = {}
        for shard, offset, *_ in state["held"]:
            places.setdefault(shard, set()).add(offset)
        found = {shard: self._source.read_at(shard, sorted(offsets)) for shard, offsets in places.items()}
        records = {(shard, record.offset): record for shard in found for record in found[shard]}
        self._held = [(shard, _with_lost(records[shard, offset], lost)) for shard, offset, *lost in state["held"]]

    def _fill(self) -> None:
        """Fills the buffer up, from the present epoch only unless it is empty."""
        while len(self._held) < self._size:
            epoch, place = divmod(self._turn, len(self._source.shards))
            if self._held and epoch != self._epoch:
                return
            self._epoch = epoch
            shard = int(shuffled(len(self._source.shards), self._seed, epoch)[place])
            if self._records is None:
                self._records = self._source.read(shard, self._offset)
            record = next(self._records, None)
            if record is None:
                self._whole[shard] = self._before
                self._next_shard()
                continue
            record = self._source.with_lost(shard, record, self._before, self._whole.get(shard))
            self._held.append((shard, record))
            self._offset, self._before = record.end, self._before + 1
            if record.rest != "whole":
                self._next_shard()

    def _next_shard(self) -> None:
        self._turn, self._offset, self._before, self._records = self._turn + self._count, 0, 0, None


def _lost(record: Record) -> list[Any]:
    """Returns the entry in a saved place for a record that stands for many lost examples; empty for any other."""
    found = record.found
    many = isinstance(found, UnreadableImage) and found.examples > 1
    return [found.reason, found.name, found.examples] if many else []


def _with_lost(record: Record, lost: list[Any]) -> Record:
    """Returns the saved record, or the record as it is now if it can be read again."""
    again = lost and isinstance(record.found, UnreadableImage)
    return dataclasses.replace(record, found=UnreadableImage(*lost)) if again else record


class StreamPlan(grain.IterDataset):
    """Endless batches of one process; Grain runs it in a thread, or a copy of it in each worker."""

    balance: Balance | None = None  # a stream is read as it comes

    def __init__(
        self, loader: Loader, batch_size: int, buffer: int, workers: int, process_index: int, process_count: int
    ):
        super().__init__()
        self.loader, self.batch_size, self.buffer = loader, batch_size, buffer
        self.rows = batch_size // process_count
        self.process_count, self.readers = process_count, max(workers, 1)
        self._first = process_index * self.readers
        self._worker = 0

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Makes this the plan of one worker: Grain gives worker i the slice i, i + workers, …"""
        self._worker = sl.start or 0

    def __iter__(self) -> "StreamBatches":
        readers = self.readers * self.process_count
        source, seed = self.loader.source, self.loader.seed
        return StreamBatches(self, ShardReader(source, seed, self._first + self._worker, readers, self.buffer))

    @property
    def most_lost(self) -> int:
        """Number of unreadable rows in one go from which on all are taken to be unreadable; a lost shard is one row."""
        return 10_000 + 2 * len(self.loader.source.shards)

    def identity(self) -> dict[str, Any]:
        """Settings that must stay the same for a saved place to mean the same examples."""
        shards = self.loader.source.shard_names
        digest = hashlib.blake2b("\n".join(shards).encode(), digest_size=4).hexdigest()
        names = {"shards": f"{len(shards)}, {shards[0]} to {shards[-1]} ({digest})", "seed": self.loader.seed}
        sizes = {"batch_size": self.batch_size, "shuffle_buffer": self.buffer}
        return names | sizes | {"processes": self.process_count, "workers": self.readers}


class StreamBatches(grain.DatasetIterator):
    """The batches of one reader."""

    def __init__(self, plan: StreamPlan, reader: ShardReader):
        super().__init__()
        self._plan, self._reader = plan, reader

    def __next__(self) -> dict[str, Any]:
        drawn = [next(self._reader) for _ in range(self._plan.rows)]
        rows = [functools.partial(self._make, *each) for each in drawn]
        return self._plan.loader.collate(rows, [(epoch, index) for epoch, index, _ in drawn])

    def get_state(self) -> dict[str, Any]:
        return self._reader.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._reader.set_state(state)

    def _make(self, epoch: int, index: int, found: Example | UnreadableImage, out: dict[str, np.ndarray]) -> Example:
        if isinstance(found, UnreadableImage):
            raise found
        loader = self._plan.loader
        return loader.finish(loader.parts[0](found), epoch, index, out)

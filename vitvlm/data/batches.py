"""Batches: deterministic, reshuffled each epoch, shared out among processes, made ahead by threads or workers.

A batch is a dictionary of arrays: those of the fields that operations act on, make or `keep`, such as image float32
[B, H, W, C] or text_tokens and text_mask int32 [B, L], see `data.kinds`; label int32 [B] (of a multi-label source
labels float32 [B, S], 1 for each class of an image), where examples have one; example_mask float32 [B] (1 for an
example, 0 for padding or an unreadable image), and index int64 [B] (position in the source, -1 for padding). Text that
is kept is strings, which stay on the host.

What example stands where, and which random numbers its operations draw, follows from the seed, the epoch and the
index alone. So the number of workers never shows in a batch, the global batch is the same for any number of processes,
and the state of the iterator is the number of batches taken. Of a streamed source (`streams`), the order follows from
the numbers of processes and workers too, index is the shard and the byte, and the state is the place in the shards.
"""

import collections
import dataclasses
import itertools
import json
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from etils import epath

from vitvlm.core.config import ConfigError
from vitvlm.data import running
from vitvlm.data.balance import Balance
from vitvlm.data.errors import DataError, TooManyUnreadable
from vitvlm.data.identity import Identity
from vitvlm.data.loader import EPOCHS, INTERNAL, UNREADABLE, make_loader
from vitvlm.data.operations.fields import DROPPED
from vitvlm.data.operations.parsing import parse
from vitvlm.data.plans import EvalPlan, TrainPlan
from vitvlm.data.sources.base import Source
from vitvlm.data.streams import StreamPlan
from vitvlm.data.unreadable import Bad, Unreadable

Batch = dict[str, np.ndarray]

TRAINING = "train"  # the name of the training data among all that a job reads
OF_DATA = ("examples", "shards")  # in a plan's identity
_NAMED = 20  # unreadable images that are named as they are met
_LOG = logging.getLogger(__name__)


class TrainBatches(Iterator[Batch]):
    """Endless batches; see `train_batches`.

    Attributes:
      bad: the unreadable images among the batches taken so far.
      skipped: batches without a single readable image, which are not given out.
      dropped: how many rows of fields, boxes for one, operations left out (`drop_hidden`, `pad`) in the batches taken,
        by what they were and why.
      changes: how the data differ from those of the state that `set_state` was given; empty where they do not.
      say: receives messages: each unreadable image when it is found, each batch that is skipped. The log by default.
      image_shape: (H, W, C); None for batches without images.
      other_settings: whether a state of another seed, batch size or number of examples will do: the order is then the
        new one's from the same number of batches on, and a stream begins anew.
    """

    def __init__(
        self,
        plan: TrainPlan | StreamPlan,
        workers: int,
        bad: Unreadable,
        data: Mapping[str, Identity] | None = None,
        accept_changes: bool = False,
        lists: epath.Path | None = None,
    ):
        self.bad = bad
        self.skipped = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.changes: dict[str, str] = {}
        self.other_settings = False
        self._data, self._accept_changes, self._lists = data or {}, accept_changes, lists
        self._naming = _Naming(_LOG.warning)
        self.image_shape = plan.loader.image_shape
        self._plan = plan
        self._workers = workers
        self._step = 0
        self._place: dict[str, Any] | None = None  # in a stream, where it is not running
        self._running: list[grain.DatasetIterator] = []
        self._closed = False
        weakref.finalize(self, _close, self._running)  # for scripts that end without close()

    def __next__(self) -> Batch:
        """Returns the next batch. Raises TooManyUnreadable, and ValueError once closed.

        A batch without a readable image is skipped. One of several processes sees only its part of a batch and cannot
        tell, so it returns the part, and the step leaves the state unchanged if no part holds a readable image.
        """
        if self._closed:
            raise ValueError("these batches are closed")
        if not self._running:
            self._running.append(self._start())
        for lost in itertools.count(1):
            batch, dropped = _take(self._running[0], self.bad, self._naming)
            self._step += 1
            self._naming.first(dropped.keys() - self.dropped.keys())
            self.dropped.update(dropped)
            if self._plan.process_count > 1 or batch["example_mask"].any():
                return batch
            self.skipped += 1
            rows = len(batch["example_mask"])
            self.say(f"skipped: a batch of {rows} images, none of which can be read")
            if lost * rows > self._plan.most_lost:
                raise TooManyUnreadable(f"none of the last {lost * rows:,} images can be read: {self.bad}")

    @property
    def say(self) -> Callable[[str], None]:
        return self._naming.say

    @say.setter
    def say(self, say: Callable[[str], None]) -> None:
        self._naming.say = say

    def get_state(self) -> bytes:
        """Returns JSON from which `set_state` continues with the batch after the last one taken."""
        state = {
            "step": self._step,
            "bad": self.bad.state(),
            "skipped": self.skipped,
            "dropped": dict(self.dropped),
            "made_for": self._plan.identity(),
            "data": {name: identity.summary() for name, identity in self._data.items()},
        }
        if isinstance(self._plan, StreamPlan):
            state["place"] = self._running[0].get_state() if self._running else self._place
        return json.dumps(state, sort_keys=True).encode()

    def set_state(self, state: bytes) -> None:
        """Continues from a state, with any number of workers and processes.

        A stream needs as many of both as before. If its shards have changed, and changes are accepted, it starts over.

        Raises ConfigError if the state belongs to another seed, batch size or number of examples or, for a stream, to
        other shards, processes or workers, and DataError if the data have changed since.
        """
        saved = json.loads(state)
        self.changes = self._changes(saved["data"])
        identity = self._plan.identity()
        for name in {**identity, **saved["made_for"]}:
            before, value = saved["made_for"].get(name), identity.get(name)
            if before != value and (self.other_settings or (TRAINING in self.changes and name in OF_DATA)):
                saved["place"] = None  # which means nothing among other shards
            elif before != value:
                raise ConfigError(
                    f"the data iterator was saved with {name}={before!r}, and this job has {value!r}: "
                    "restore the config that it was saved with, or start in a new workdir"
                )
        _close(self._running)
        self._step, self._place = saved["step"], saved.get("place")
        self.bad, self.skipped = self.bad.restored(saved["bad"]), saved.get("skipped", 0)
        self.dropped = collections.Counter(saved["dropped"] if isinstance(saved.get("dropped"), dict) else {})

    def _changes(self, before: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Lists what differs from the data of a state, by name. Raises DataError unless changes are accepted."""
        found = {
            name: identity.changes(before[name], self._lists) for name, identity in self._data.items() if name in before
        }
        changes = {name: said for name, said in found.items() if said}
        if changes and not self._accept_changes:
            raise DataError(
                f"{changed(changes)}. Put them back, start in a new workdir, or go on with --accept_changed_data"
            )
        return changes

    def _start(self) -> grain.DatasetIterator:
        if isinstance(self._plan, StreamPlan):
            return running.stream(self._plan, self._workers, self._place)
        return running.iterate(self._plan, self._workers, start=self._step)

    @property
    def balance(self) -> Balance | None:
        return self._plan.balance

    def close(self) -> None:
        """Ends worker processes and threads. Closing twice is fine."""
        self._closed = True
        _close(self._running)

    def __enter__(self) -> "TrainBatches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class EvalBatches:
    """Exactly one pass, as often as one iterates; see `eval_batches`.

    Attributes:
      bad: the unreadable images of the current or last pass.
      dropped: how many rows of fields operations left out of it, as of `TrainBatches`.
      image_shape: (H, W, C); None for batches without images.
    """

    def __init__(self, plan: EvalPlan, workers: int, bad: Unreadable):
        self.bad = bad
        self.dropped: collections.Counter[str] = collections.Counter()
        self.image_shape = plan.loader.image_shape
        self._plan = plan
        self._workers = workers
        self._naming = _Naming(_LOG.warning)

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        """Workers end with the pass, and also when the iteration is left early."""
        self.bad = dataclasses.replace(self.bad, seen=0, count=0, names={}, epochs={})
        self.dropped = collections.Counter()
        batches = running.iterate(self._plan, self._workers, start=0)
        try:
            for _ in range(len(self)):
                batch, dropped = _take(batches, self.bad, self._naming)
                self.dropped.update(dropped)
                yield batch
        finally:
            batches.close()


def left_out(dropped: Mapping[str, int]) -> str:
    """Says in words what operations left out of examples; "" for nothing."""
    told = ", ".join(f"{count:,} {why}" for why, count in sorted(dropped.items()))
    return f"left out by operations: {told}" if told else ""


def changed(changes: Mapping[str, str]) -> str:
    """Says in words which data are not those of the checkpoint, and what differs."""
    named = {TRAINING: "training data"}
    return ". ".join(
        f"the {named.get(name, f'data of {name}')} are not those of the checkpoint: {differences}"
        for name, differences in changes.items()
    )


def train_batches(
    source: Source,
    operations: str,
    batch_size: int,
    seed: int,
    workers: int = 0,
    max_unreadable_fraction: float = 0.01,
    bad_after: int = 1000,
    shuffle_buffer: int = 1000,
    data: Mapping[str, Identity] | None = None,
    accept_changes: bool = False,
    lists: epath.Path | None = None,
    balance: float = 0.0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Endless shuffled batches for one process.

    Each epoch holds every example once, in its own order; a batch may reach into the next epoch, so that no example is
    ever left out. With a `balance` it is as many draws as there are examples, by class.

    Args:
      source: see `sources.open`.
      operations: see `operations.parse`; they must end in float pixels of one size (`normalize`).
      batch_size: of the global batch; this process gets its share of each.
      seed: of the shuffling and of the operations.
      workers: processes that make batches ahead; with 0, a thread of this process does. A small data set
        (loader.KEPT_BYTES) is decoded once and kept in memory.
      max_unreadable_fraction: more unreadable images than this share of those seen stop the job (TooManyUnreadable).
      bad_after: least number of images to take the share of (one epoch, if that is shorter).
      shuffle_buffer: examples that each reader of a streamed source holds, encoded, and draws from.
      balance: 1 draws each class equally often, 0 each example once an epoch; see `balance.Balance`. A streamed source
        is then read by random access.
      data: identities of what a job reads, by name: TRAINING of the examples, others of what evaluations judge. A state
        is then only accepted with the same data.
      accept_changes: continue with changed data too.
      lists: the folder where `data` was listed, for naming what has changed.
      process_index, process_count: which of how many processes this one is (`jax.process_index()` and so on).

    Raises ConfigError for arguments that cannot be meant, and DataError if the operations do not fit the images.
    """
    _check(source, batch_size, seed, workers, process_index, process_count)
    loader = make_loader(source, parse(operations), seed, bad_after)
    known = (data, accept_changes, lists)
    if source.streams and not balance:
        if shuffle_buffer < 1:
            raise ConfigError(f"shuffle_buffer={shuffle_buffer} must be 1 (no shuffling within shards) or more")
        stream = StreamPlan(loader, batch_size, shuffle_buffer, workers, process_index, process_count)
        return TrainBatches(stream, workers, Unreadable(max_unreadable_fraction, bad_after), *known)
    drawn = Balance(source, balance, seed) if balance else None
    plan = TrainPlan(loader, batch_size, process_index, process_count, drawn)
    return TrainBatches(plan, workers, Unreadable(max_unreadable_fraction, min(bad_after, len(source))), *known)


def eval_batches(
    source: Source,
    operations: str,
    batch_size: int,
    seed: int = 0,
    workers: int = 0,
    max_unreadable_fraction: float = 0.01,
    bad_after: int = 1000,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Every example exactly once and in order; the last batch is filled up with rows of example_mask 0.

    Every process gets the same number of batches, of the same size. The arguments are those of `train_batches`.
    """
    _check(source, batch_size, seed, workers, process_index, process_count)
    loader = make_loader(source, parse(operations), seed, bad_after)
    plan = EvalPlan(loader, batch_size, process_index, process_count)
    return EvalBatches(plan, workers, Unreadable(max_unreadable_fraction, min(bad_after, len(source))))


def zero_batch(source: Source, operations: str, batch_size: int) -> Batch:
    """Returns a batch of padding with the shapes and dtypes that `operations` give, to initialise a model with."""
    batch = make_loader(source, parse(operations), seed=0, tries=1000).batch([None] * batch_size)
    return {name: array for name, array in batch.items() if name not in INTERNAL}


def _close(batches: list[grain.DatasetIterator]) -> None:
    while batches:
        batches.pop().close()


def _take(batches: Iterator[dict[str, Any]], bad: Unreadable, naming: "_Naming") -> tuple[Batch, dict[str, int]]:
    """Returns the next batch, and how many rows of its examples' fields operations left out, by what and why."""
    batch = dict(next(batches))
    unreadable, epochs, dropped = batch.pop(UNREADABLE), batch.pop(EPOCHS), batch.pop(DROPPED)
    naming.name(bad.add(epochs[epochs >= 0].tolist(), unreadable))
    return batch, dropped


class _Naming:
    """Names unreadable images as they are met; of many, the first few."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self._said: set[str] = set()

    def name(self, met: Sequence[Bad]) -> None:
        for bad in met:
            if len(self._said) < _NAMED and bad.name not in self._said:
                self._said.add(bad.name)
                more = "" if len(self._said) < _NAMED else "; further ones are counted, and not named one by one"
                self.say(f"cannot be read: {bad.name}: {bad.reason}{more}")

    def first(self, dropped: Iterable[str]) -> None:
        """Says what operations leave out when it is met for the first time; the end of the training says how often."""
        for why in sorted(dropped):
            self.say(f"operations leave out {why}: they are counted")


def _check(source: Source, batch_size: int, seed: int, workers: int, process_index: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"batch_size={batch_size} must be a positive multiple of the {process_count} processes")
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index={process_index} is not one of {process_count} processes")
    if seed < 0:
        raise ConfigError(f"seed={seed} must be 0 or more")
    if workers < 0:
        raise ConfigError(f"workers={workers} must be 0 or more")
    if not source.streams and not len(source):
        raise DataError(f"{source.name}: is empty")

"""Batches: deterministic, reshuffled each epoch, shared out among processes, made ahead by threads or workers.

A batch is a dictionary of arrays: image float32 [B, H, W, C], label int32 [B], mask float32 [B] (1 for an example,
0 for padding or an unreadable image), index int64 [B] (position in the source, -1 for padding), and the text fields
that the operations `keep`.

What example stands where, and which random numbers its operations draw, follows from the seed, the epoch and the
index alone. So the number of workers never shows in a batch, the global batch is the same for any number of processes,
and the state of the iterator is the number of batches taken.
"""

import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError, TooManyUnreadable, UnreadableImage
from vitvlm.data.operations.parsing import Pipeline, parse
from vitvlm.data.sources.base import Example, Source

Batch = dict[str, np.ndarray]

_UNREADABLE = "unreadable"
_NAMES_KEPT = 1000
_NAMES_SHOWN = 5


@dataclasses.dataclass
class Unreadable:
    """Unreadable images among those that this process has seen so far, an image counted as often as it came up.

    `names` has the id of each and the reason (of the first thousand). More than `share` of the images is an error; the
    share is taken of at least `after` images, so that one bad image at the start does not stop the job.
    """

    share: float
    after: int
    seen: int = 0
    count: int = 0
    names: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, seen: int, unreadable: list[tuple[str, str]]) -> None:
        """Counts one batch. Raises TooManyUnreadable."""
        self.seen += seen
        self.count += len(unreadable)
        for name, reason in unreadable:
            if len(self.names) < _NAMES_KEPT:
                self.names.setdefault(name, reason)
        if self.count > self.share * max(self.seen, self.after):
            raise TooManyUnreadable(
                f"{self.count} of {self.seen} images cannot be read, more than bad_share={self.share:g}: {self}; "
                "repair or remove them, or raise bad_share"
            )

    def __str__(self) -> str:
        shown = [f"{name}: {reason}" for name, reason in itertools.islice(self.names.items(), _NAMES_SHOWN)]
        more = len(self.names) - len(shown)
        return "; ".join(shown) + (f"; and {more} more" if more else "")


class TrainBatches(Iterator[Batch]):
    """Endless batches; see `train_batches`.

    Attributes:
      bad: the unreadable images among the batches taken so far.
      image_shape: (H, W, C).
    """

    def __init__(self, plan: "_TrainPlan", workers: int, bad: Unreadable):
        self.bad = bad
        self.image_shape = plan.maker.shape
        self._plan = plan
        self._workers = workers
        self._step = 0
        self._batches: grain.DatasetIterator | None = None
        self._closed = False

    def __next__(self) -> Batch:
        """The next batch. Raises TooManyUnreadable; ValueError once closed."""
        if self._closed:
            raise ValueError("these batches are closed")
        if self._batches is None:
            self._batches = _iterate(self._plan, self._workers, start=self._step)
        batch = _take(self._batches, self.bad)
        self._step += 1
        return batch

    def get_state(self) -> bytes:
        """JSON from which `set_state` goes on with the batch after the last one taken."""
        state = {"step": self._step, "bad": dataclasses.asdict(self.bad), "made_for": self._plan.identity()}
        return json.dumps(state, sort_keys=True).encode()

    def set_state(self, state: bytes) -> None:
        """Goes on from a state, with any number of workers and processes.

        Raises ConfigError if the state belongs to another source, seed or batch size.
        """
        saved = json.loads(state)
        here = self._plan.identity()
        for name, value in here.items():
            if saved["made_for"][name] != value:
                raise ConfigError(
                    f"the data iterator was saved with {name}={saved['made_for'][name]!r}, and this job has {value!r}: "
                    "restore the config that it was saved with, or start in a new workdir"
                )
        self._stop()
        self._step = saved["step"]
        counts = {name: saved["bad"][name] for name in ("seen", "count", "names")}
        self.bad = dataclasses.replace(self.bad, **counts)

    def close(self) -> None:
        """Ends worker processes and threads. Closing twice is fine."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def __enter__(self) -> "TrainBatches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class EvalBatches:
    """Exactly one pass, as often as one iterates; see `eval_batches`.

    Attributes:
      bad: the unreadable images of the current or last pass.
      image_shape: (H, W, C).
    """

    def __init__(self, plan: "_EvalPlan", workers: int, bad: Unreadable):
        self.bad = bad
        self.image_shape = plan.maker.shape
        self._plan = plan
        self._workers = workers

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        """Workers end with the pass, and also when the iteration is left early."""
        self.bad = dataclasses.replace(self.bad, seen=0, count=0, names={})
        batches = _iterate(self._plan, self._workers, start=0)
        try:
            for _ in range(len(self._plan)):
                yield _take(batches, self.bad)
        finally:
            batches.close()


def train_batches(
    source: Source,
    operations: str,
    batch_size: int,
    seed: int,
    workers: int = 0,
    bad_share: float = 0.01,
    bad_after: int = 1000,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Endless shuffled batches for one process.

    Each epoch holds every example once, in its own order; a batch may reach into the next epoch, so that no example is
    ever left out.

    Args:
      source: see `sources.open`.
      operations: see `operations.parse`; they must end in float pixels of one size (`normalize`).
      batch_size: of the global batch; this process gets its share of each.
      seed: of the shuffling and of the operations.
      workers: processes that make batches ahead; with 0, a thread of this process does.
      bad_share: more unreadable images than this share of those seen stop the job (TooManyUnreadable).
      bad_after: the share is taken of at least so many images (or of one epoch, where that is shorter).
      process_index, process_count: which of how many processes this one is (`jax.process_index()` and so on).

    Raises ConfigError for arguments that cannot be meant, and DataError if the operations do not fit the images.
    """
    _check_shares(source, batch_size, workers, process_index, process_count)
    maker = _make_maker(source, parse(operations), seed, bad_after)
    plan = _TrainPlan(maker, batch_size, process_index, process_count)
    return TrainBatches(plan, workers, Unreadable(bad_share, min(bad_after, len(source))))


def eval_batches(
    source: Source,
    operations: str,
    batch_size: int,
    seed: int = 0,
    workers: int = 0,
    bad_share: float = 0.01,
    bad_after: int = 1000,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Every example exactly once and in order; the last batch is filled up with rows of mask 0.

    Every process gets the same number of batches, of the same size. The arguments are those of `train_batches`.
    """
    _check_shares(source, batch_size, workers, process_index, process_count)
    maker = _make_maker(source, parse(operations), seed, bad_after)
    plan = _EvalPlan(maker, batch_size, process_index, process_count)
    return EvalBatches(plan, workers, Unreadable(bad_share, min(bad_after, len(source))))


def zero_batch(source: Source, operations: str, batch_size: int) -> Batch:
    """A batch of padding, in the shapes and dtypes that `operations` give: what a model is initialised with."""
    batch = _make_maker(source, parse(operations), seed=0, tries=1000).batch([None] * batch_size)
    del batch[_UNREADABLE]
    return batch


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Makes arrays of examples: what a worker needs to know."""

    source: Source
    pipeline: Pipeline
    seed: int
    shape: tuple[int, ...]

    def example(self, epoch: int, index: int) -> Example:
        """One example, its random numbers drawn from (seed, epoch, index). Raises UnreadableImage and DataError."""
        # Philox counts: each (epoch, index) starts a stream of its own, at a third of the cost of seeding a generator.
        bits = np.random.Philox(key=(self.seed, _OPERATIONS), counter=(0, 0, index, epoch))
        return self.pipeline(self.source[index], np.random.Generator(bits))

    def batch(self, rows: list[tuple[int, int] | None]) -> dict[str, Any]:
        """The examples (epoch, index) of the rows; None is padding."""
        images = np.zeros((len(rows), *self.shape), np.float32)
        labels = np.zeros(len(rows), np.int32)
        mask = np.zeros(len(rows), np.float32)
        texts = {name: [""] * len(rows) for name in self.pipeline.fields}
        unreadable = []
        for row, place in enumerate(rows):
            if place is None:
                continue
            try:
                example = self.example(*place)
            except UnreadableImage as error:
                unreadable.append((error.name, error.reason))
                continue
            images[row] = _checked(example, self.shape)
            labels[row], mask[row] = example["label"], 1
            for name in texts:
                texts[name][row] = example[name]
        index = np.array([-1 if place is None else place[1] for place in rows], np.int64)
        batch = {"image": images, "label": labels, "mask": mask, "index": index, _UNREADABLE: unreadable}
        return batch | {name: np.array(text) for name, text in texts.items()}


@dataclasses.dataclass(frozen=True)
class _TrainPlan:
    """Random access to an endless stream: [step] is this process's part of that global batch."""

    maker: _Maker
    batch_size: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size

    def __getitem__(self, step: int) -> dict[str, Any]:
        return self.maker.batch([self._place(position) for position in _share(self, step)])

    def identity(self) -> dict[str, Any]:
        """What a saved step number means nothing without."""
        source = self.maker.source
        return {"source": source.name, "examples": len(source), "seed": self.maker.seed, "batch_size": self.batch_size}

    def _place(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, len(self.maker.source))
        return epoch, int(_shuffled(len(self.maker.source), self.maker.seed, epoch)[place])


@dataclasses.dataclass(frozen=True)
class _EvalPlan:
    """Random access to one pass in order, padded to whole batches."""

    maker: _Maker
    batch_size: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return -(-len(self.maker.source) // self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        count = len(self.maker.source)
        return self.maker.batch([(0, place) if place < count else None for place in _share(self, step)])


# Streams of random numbers that must differ for equal seeds.
_SHUFFLE, _OPERATIONS = 1, 2


@functools.lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((_SHUFFLE, seed, epoch)).permutation(count)


def _share(plan: _TrainPlan | _EvalPlan, step: int) -> range:
    """The positions in the global stream that this process makes for a step."""
    rows = plan.batch_size // plan.process_count
    start = step * plan.batch_size + plan.process_index * rows
    return range(start, start + rows)


def _iterate(plan: _TrainPlan | _EvalPlan, workers: int, start: int) -> grain.DatasetIterator:
    """Batches from step `start` on, made ahead, two in each thread or worker."""
    batches = grain.MapDataset.source(plan)[start:]
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    iterable = batches.to_iter_dataset(reading)
    if workers:
        if not flags.FLAGS.is_parsed():  # as a library; under absl's app.run they are
            flags.FLAGS.mark_as_parsed()
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=2))
    return iter(iterable)


def _take(batches: Iterator[dict[str, Any]], bad: Unreadable) -> Batch:
    batch = dict(next(batches))
    unreadable = batch.pop(_UNREADABLE)
    bad.add(int(np.sum(batch["index"] >= 0)), unreadable)
    return batch


def _make_maker(source: Source, pipeline: Pipeline, seed: int, tries: int) -> _Maker:
    """Runs the operations on the first readable example: its size is every batch's, and mistakes show now."""
    unreadable: dict[str, str] = {}
    trial = _Maker(source, pipeline, seed, shape=())
    for index in range(min(tries, len(source))):
        try:
            image = trial.example(0, index)["image"]
        except UnreadableImage as error:
            unreadable[error.name] = error.reason
            continue
        if not isinstance(image, np.ndarray) or image.dtype != np.float32 or image.ndim != 3:
            raise ConfigError(f"operations {pipeline.text!r} must end in float pixels: add normalize")
        return dataclasses.replace(trial, shape=image.shape)
    counts = Unreadable(0, 0, len(unreadable), len(unreadable), unreadable)
    raise TooManyUnreadable(f"{source.name}: none of the first {len(unreadable)} images can be read: {counts}")


def _checked(example: Example, shape: tuple[int, ...]) -> np.ndarray:
    image = example["image"]
    if image.shape != shape:
        raise DataError(
            f"{example['id']}: the operations give an image of {image.shape}, and {shape} for the first example; "
            "add resize or a crop"
        )
    return image


def _check_shares(source: Source, batch_size: int, workers: int, process_index: int, process_count: int) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"batch_size={batch_size} must be a positive multiple of the {process_count} processes")
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index={process_index} is not one of {process_count} processes")
    if workers < 0:
        raise ConfigError(f"workers={workers} must be 0 or more")
    if not len(source):
        raise DataError(f"{source.name}: is empty")

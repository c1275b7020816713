"""Plans of batches: random access to the batch of any step, so that an iterator's state is one number."""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.data.balance import Balance
from vitvlm.data.errors import DataError, TooManyUnreadable, UnreadableImage
from vitvlm.data.operations.fields import as_array
from vitvlm.data.operations.parsing import Pipeline
from vitvlm.data.sources.base import Example, Source
from vitvlm.data.unreadable import Unreadable

# Entries of a batch that those given out do not have: its unreadable images, and each row's epoch, -1 for padding.
UNREADABLE, EPOCHS = "unreadable", "epochs"

# A data set whose decoded images fit into this is decoded once (in each worker), not once an epoch.
KEPT_BYTES = 256 * 2**20

# Streams of random numbers that must differ for equal seeds.
_SHUFFLE, _OPERATIONS = 1, 2


@dataclasses.dataclass(frozen=True)
class Loader:
    """Makes arrays of examples; all that a worker needs to know.

    `shape` is that of an image; `rows` are zeros of the other arrays that the operations make, such as "text_tokens".
    """

    source: Source
    pipeline: Pipeline
    seed: int
    shape: tuple[int, ...] = ()
    rows: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    kept: dict[int, Example] | None = None

    @functools.cached_property
    def parts(self) -> tuple[Pipeline, Pipeline]:
        return self.pipeline.split()

    def example(self, epoch: int, index: int, out: np.ndarray | None = None, draw: int = 0) -> Example:
        """One example, its random numbers drawn from (seed, epoch, index, draw). Raises UnreadableImage and DataError.

        Its image may be in `out`; see `parsing.Operation`. `draw` counts where an epoch holds an example repeatedly.
        """
        return self.finish(self.fixed(index), epoch, index, out, draw)

    def finish(self, example: Example, epoch: int, index: int, out: np.ndarray | None = None, draw: int = 0) -> Example:
        """Applies the operations that differ from epoch to epoch to the fixed part of an example."""
        # Philox counts: each place starts a stream of its own, at a third of the cost of seeding a generator.
        bits = np.random.Philox(key=(self.seed, _OPERATIONS), counter=(0, draw, index, epoch))
        return self.parts[1](example, np.random.Generator(bits), out)

    def fixed(self, index: int) -> Example:
        """The part of an example that is the same in every epoch; decoded once where it is kept."""
        if self.kept is None:
            return self.parts[0](self.source[index])
        if index not in self.kept:
            example = self.parts[0](self.source[index])
            example["image"].setflags(write=False)
            self.kept[index] = example
        return self.kept[index]

    def batch(self, rows: list[tuple[int, int] | None], draws: Sequence[int] | None = None) -> dict[str, Any]:
        """The examples (epoch, index) of the rows, perhaps with the draw of each; None is padding."""
        draws = draws or [0] * len(rows)
        makers = [
            None if place is None else functools.partial(self.example, *place, draw=draw)
            for place, draw in zip(rows, draws, strict=True)
        ]
        return self.collate(makers, [(-1, -1) if place is None else place for place in rows])

    def collate(
        self, rows: Sequence[Callable[..., Example] | None], places: Sequence[tuple[int, int]]
    ) -> dict[str, Any]:
        """Makes a batch of examples from rows; those that raise UnreadableImage are masked and listed; None is padding.

        A row is called with `out`, its place in the batch, and may put its image there. `places` are (epoch, index).
        """
        images = np.empty((len(rows), *self.shape), np.float32)
        several = self.source.multi_label
        labels = (
            np.zeros((len(rows), self.source.num_classes), np.float32) if several else np.zeros(len(rows), np.int32)
        )
        mask = np.zeros(len(rows), np.float32)
        arrays = {name: np.zeros((len(rows), *zeros.shape), zeros.dtype) for name, zeros in self.rows.items()}
        texts = {name: [""] * len(rows) for name in self.pipeline.fields}
        unreadable = []
        for row, make in enumerate(rows):
            try:
                example = None if make is None else make(out=images[row])
            except UnreadableImage as error:
                unreadable.append((error.name, error.reason, error.examples, places[row][0]))
                example = None
            if example is None:
                images[row] = 0
                continue
            image = _checked(example, self.shape)
            if not np.may_share_memory(image, images):
                images[row] = image
            mask[row] = 1
            if several:
                labels[row, example["label"]] = 1
            else:
                labels[row] = example["label"]
            for name, array in arrays.items():
                array[row] = example[name]
            for name in texts:
                texts[name][row] = example[name]
        epochs, index = np.array(places, np.int64).T
        batch = {"image": images, "labels" if several else "label": labels, "example_mask": mask, "index": index}
        batch |= {UNREADABLE: unreadable, EPOCHS: epochs}
        return batch | arrays | {name: as_array(text) for name, text in texts.items()}


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """Random access to an endless stream: [step] is this process's part of that global batch.

    An epoch holds each example once, or is drawn by classes where there is a `balance`.
    """

    loader: Loader
    batch_size: int
    process_index: int
    process_count: int
    balance: Balance | None = None

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size

    def __getitem__(self, step: int) -> dict[str, Any]:
        if self.balance is None:
            return self.loader.batch([self._place(position) for position in _share(self, step)])
        rows, draws = zip(*map(self._balanced_place, _share(self, step)), strict=True)
        return self.loader.batch(list(rows), list(draws))

    def identity(self) -> dict[str, Any]:
        """Settings that must stay the same for a saved step number to mean the same batch."""
        same = {"examples": len(self.loader.source), "seed": self.loader.seed, "batch_size": self.batch_size}
        return same | ({"balance": self.balance.balance} if self.balance else {})

    @property
    def most_lost(self) -> int:
        """Number of unreadable images in a row from which on all are taken to be unreadable."""
        return 2 * len(self.loader.source)

    def _place(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, len(self.loader.source))
        return epoch, int(shuffled(len(self.loader.source), self.loader.seed, epoch)[place])

    def _balanced_place(self, position: int) -> tuple[tuple[int, int], int]:
        """Returns ((epoch, index), draw) at a position of the balanced stream."""
        epoch, place = divmod(position, len(self.loader.source))
        drawn = self.balance.epoch(epoch)
        return (epoch, int(drawn.index[place])), int(drawn.draw[place])


@dataclasses.dataclass(frozen=True)
class EvalPlan:
    """Random access to one pass in order, padded to whole batches."""

    loader: Loader
    batch_size: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return -(-len(self.loader.source) // self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        count = len(self.loader.source)
        return self.loader.batch([(0, place) if place < count else None for place in _share(self, step)])


@functools.lru_cache(maxsize=2)
def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((_SHUFFLE, seed, epoch)).permutation(count)


def _share(plan: TrainPlan | EvalPlan, step: int) -> range:
    """The positions in the global stream that this process makes for a step."""
    rows = plan.batch_size // plan.process_count
    start = step * plan.batch_size + plan.process_index * rows
    return range(start, start + rows)


def make_loader(source: Source, pipeline: Pipeline, seed: int, tries: int) -> Loader:
    """Runs the operations on the first readable example: its size is every batch's, and mistakes show now."""
    unreadable: dict[str, str] = {}
    trial = Loader(source, pipeline, seed)
    for raw in itertools.islice(source.first(), tries):
        try:
            if isinstance(raw, UnreadableImage):
                raise raw
            fixed = trial.parts[0](raw)
            example = trial.finish(fixed, 0, 0)
        except UnreadableImage as error:
            unreadable[error.name] = error.reason
            continue
        image = example["image"]
        if not isinstance(image, np.ndarray) or image.dtype != np.float32 or image.ndim != 3:
            raise ConfigError(f"operations {pipeline.text!r} must end in float pixels: add normalize")
        rows = {name: np.zeros_like(example[name]) for name in pipeline.arrays}
        kept = {} if not source.streams and _worth_keeping(raw, fixed, len(source)) else None
        return dataclasses.replace(trial, shape=image.shape, rows=rows, kept=kept)
    counts = Unreadable(0.0, 0, len(unreadable), len(unreadable), unreadable)
    raise TooManyUnreadable(f"{source.name}: none of the first {len(unreadable)} images can be read: {counts}")


def _worth_keeping(raw: Example, fixed: Example, count: int) -> bool:
    """Tells whether images are encoded and would all fit decoded into KEPT_BYTES, judged by one of them."""
    pixels = fixed["image"]
    encoded = isinstance(raw["image"], bytes) and isinstance(pixels, np.ndarray)
    return encoded and pixels.nbytes * count <= KEPT_BYTES


def _checked(example: Example, shape: tuple[int, ...]) -> np.ndarray:
    image = example["image"]
    if image.shape != shape:
        raise DataError(
            f"{example['id']}: the operations give an image of {image.shape}, and {shape} for the first example; "
            "add resize or a crop"
        )
    return image

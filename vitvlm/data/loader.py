"""Making examples and batches of them: reading, operations with their random numbers, and collating.

Which examples stand in a batch is for `plans` and `streams` to say.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError, TooManyUnreadable, UnreadableImage
from vitvlm.data.operations import tracing
from vitvlm.data.operations.fields import DROPPED, as_array
from vitvlm.data.operations.parsing import LOST, TOGETHER, Pipeline
from vitvlm.data.sources.base import Example, Source
from vitvlm.data.unreadable import Unreadable

# Entries of a batch that those given out do not have: its unreadable images, the epoch of each example (-1 for padding;
# of a row of several examples, as often), and the number of rows of fields, such as boxes, that operations left out.
UNREADABLE, EPOCHS = "unreadable", "epochs"
INTERNAL = (UNREADABLE, EPOCHS, DROPPED)

# A data set whose decoded images fit into this is decoded once (in each worker), not once an epoch.
KEPT_BYTES = 256 * 2**20

# A stream of random numbers; that of the shuffling differs for equal seeds.
_OPERATIONS = 2


@dataclasses.dataclass(frozen=True)
class Loader:
    """Makes arrays of examples; all that a worker needs to know.

    Attributes:
      source, pipeline, seed: what is read, what becomes of it, and what its random numbers begin with.
      arrays: zeros shaped as the numbers in an example, by field; the batch stacks them.
      strings: fields of text that the batch has, on the host.
      labelled: examples have a label.
      kept: fixed parts of examples, where they are kept.
    """

    source: Source
    pipeline: Pipeline
    seed: int
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    strings: tuple[str, ...] = ()
    labelled: bool = True
    kept: dict[int, Example] | None = None

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Shape (H, W, C) of the field "image"; None if batches have none."""
        return self.arrays["image"].shape if "image" in self.arrays else None

    @functools.cached_property
    def parts(self) -> tuple[Pipeline, Pipeline]:
        return self.pipeline.bind(self.source.fields).split()

    def example(self, epoch: int, index: int, out: Mapping[str, np.ndarray] | None = None, draw: int = 0) -> Example:
        """One example, its random numbers drawn from (seed, epoch, index, draw). Raises UnreadableImage and DataError.

        Its images may be in `out`; see `parsing.Pipeline`. `draw` counts where an epoch holds an example repeatedly.
        """
        return self.finish(self.fixed(index), epoch, index, out, draw)

    def finish(
        self,
        example: Example,
        epoch: int,
        index: int,
        out: Mapping[str, np.ndarray] | None = None,
        draw: int = 0,
    ) -> Example:
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
            for pixels in _pixels(example, self.pipeline):
                pixels.setflags(write=False)
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

        A row is called with `out`, its places in the batch by field of images, and may put its pixels there. `places`
        are (epoch, index).
        """
        arrays = {name: np.zeros((len(rows), *zeros.shape), zeros.dtype) for name, zeros in self.arrays.items()}
        images = [name for name in self.pipeline.images if name in arrays and arrays[name].ndim == 4]
        strings: dict[str, list[Any]] = {name: [""] * len(rows) for name in self.strings}
        labels, mask = self._no_labels(len(rows)), np.zeros(len(rows), np.float32)
        unreadable, dropped, seen = [], collections.Counter(), []
        for row, make in enumerate(rows):
            try:
                example = None if make is None else make(out={name: arrays[name][row] for name in images})
            except UnreadableImage as error:
                unreadable.append((error.name, error.reason, error.examples, places[row][0]))
                example = None
            seen += [places[row][0]] * (1 if example is None else example.get(TOGETHER, 1))
            if example is None:
                for name in images:
                    arrays[name][row] = 0
                continue
            mask[row] = 1
            dropped.update(example.get(DROPPED, {}))
            for lost in example.get(LOST, ()):
                unreadable.append((lost.name, lost.reason, lost.examples, places[row][0]))
            for name, array in arrays.items():
                self._put(array, row, name, example)
            for name in strings:
                strings[name][row] = example[name]
            if self.labelled and self.source.multi_label:
                labels[row, example["label"]] = 1
            elif self.labelled:
                labels[row] = example["label"]
        index = np.array(places, np.int64)[:, 1]
        batch = {"labels" if self.source.multi_label else "label": labels} if self.labelled else {}
        batch |= {
            "example_mask": mask,
            "index": index,
            UNREADABLE: unreadable,
            EPOCHS: np.array(seen, np.int64),
            DROPPED: dict(dropped),
        }
        return arrays | batch | {name: as_array(text) for name, text in strings.items()}

    def _no_labels(self, rows: int) -> np.ndarray:
        if self.source.multi_label:
            return np.zeros((rows, self.source.num_classes), np.float32)
        return np.zeros(rows, np.int32)

    def _put(self, array: np.ndarray, row: int, name: str, example: Example) -> None:
        """Puts an example's field into its row; one without rows of its own, such as no image at all, stays zeros."""
        value = _as_numbers(example, name)
        if np.may_share_memory(value, array):
            return
        if not value.size and array.shape[1:] != value.shape:
            array[row] = 0
            return
        if value.shape != array.shape[1:]:
            raise DataError(
                f"{example['id']}: the operations give an {name} of {value.shape}, and {array.shape[1:]} for the first "
                f"example; {_remedy(name, value, self.pipeline)}"
            )
        array[row] = value


def make_loader(source: Source, pipeline: Pipeline, seed: int, tries: int) -> Loader:
    """Runs the operations on the first readable example: its shapes are every batch's, and mistakes show now."""
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
        if any(not np.size(example[name]) for name in pipeline.images if name in example):
            unreadable[example["id"]] = "holds no image, which could tell the size"
            continue
        arrays, strings = shapes_of(example, pipeline)
        kept = {} if not source.streams and _worth_keeping(raw, fixed, len(source), pipeline) else None
        return dataclasses.replace(trial, arrays=arrays, strings=strings, labelled="label" in example, kept=kept)
    counts = Unreadable(0.0, 0, len(unreadable), len(unreadable), unreadable)
    raise TooManyUnreadable(f"{source.name}: none of the first {len(unreadable)} images can be read: {counts}")


def shapes_of(example: Example, pipeline: Pipeline) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Zeros shaped as what a batch holds of an example, and the names of its strings.

    Raises ConfigError for images that are no float pixels, and for a pipeline that leaves nothing.
    """
    named = [name for name in pipeline.batched if name in example and name not in ("label", "labels")]
    strings = tuple(name for name in named if name in pipeline.kept and _is_text(example[name]))
    arrays = {name: np.zeros_like(_as_numbers(example, name)) for name in named if name not in strings}
    for name in (each for each in pipeline.images if each in arrays):  # of one image, tiles may have taken the place
        if arrays[name].dtype != np.float32 or arrays[name].ndim < 3:
            raise ConfigError(f"operations {pipeline.text!r} must end in float pixels: add normalize")
    if not arrays:
        raise ConfigError(
            f"operations {pipeline.text!r} leave nothing for a batch: decode and normalize an image, or tokenize a text"
        )
    return arrays, strings


def _is_text(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, str)
        or (isinstance(value, tuple) and all(isinstance(item, str) for item in value))
    )


def _as_numbers(example: Example, name: str) -> np.ndarray:
    value = example[name]
    if isinstance(value, np.ndarray):
        return value
    shapes = {np.shape(item) for item in value} if isinstance(value, (list, tuple)) else set()
    if isinstance(value, bytes) or any(isinstance(item, bytes) for item in value if shapes):
        raise ConfigError(f"the field {name!r} is still encoded: add decode and normalize with field={name!r}")
    if len(shapes) > 1:
        raise DataError(f"{example['id']}: the {name} have shapes {sorted(shapes)}: add resize or a crop")
    return np.stack(value) if shapes else np.asarray(value)


def _remedy(name: str, value: np.ndarray, pipeline: Pipeline) -> str:
    if name in pipeline.images and not tracing.several(value):
        return "add resize or a crop"
    return f"add pad({name!r}, SIZE) for as many rows in each"


def _pixels(example: Example, pipeline: Pipeline) -> list[np.ndarray]:
    """The decoded images of an example."""
    found = [example[name] for name in pipeline.images if name in example]
    each = [image for value in found for image in (value if isinstance(value, (list, tuple)) else [value])]
    return [image for image in each if isinstance(image, np.ndarray)]


def _worth_keeping(raw: Example, fixed: Example, count: int, pipeline: Pipeline) -> bool:
    """Tells whether images are encoded and would all fit decoded into KEPT_BYTES, judged by one example."""
    brought = [raw[name] for name in pipeline.images if name in raw]
    files = [image for value in brought for image in (value if isinstance(value, (list, tuple)) else [value])]
    pixels = _pixels(fixed, pipeline)
    decoded = len(pixels) == len(files) > 0 and all(isinstance(image, bytes) for image in files)
    return decoded and sum(image.nbytes for image in pixels) * count <= KEPT_BYTES

"""Base of sources: random access to labelled images.

A source gives, for each position, a dictionary with
  image: the encoded file (bytes), or uint8 pixels [H, W, C] where the data set stores pixels,
  label: the class, 0 <= label < num_classes; of a multi-label source, an array of those that apply, int32 [k], k >= 0,
  id: a stable readable name, for error messages and pages,
and whatever text the data set has (names, keywords, captions): a string, a tuple of strings where an image has several,
or None where this image has none.
"""

import abc
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vitvlm.data.accounting import Files
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.kinds import Field, Fields

Example = dict[str, Any]


class Source(abc.ABC):
    """A split of a data set with random access.

    Attributes:
      name: the data set and split, for messages and protocols: "tfds:fashion_mnist train[:10%]".
      label_names: one readable name per class, in the order of the labels; empty if the source is unlabelled, and every
        label is then 0.
      label_doubt: why the classes can hardly be what is meant, for those who use labels; "" where nothing speaks
        against them.
      multi_label: examples have any number of classes; `label_sets` has them, and `labels` raises DataError.
      renames: the classes that were renamed on the way here, by their own names.
      has_quick_texts: `text` spares reading the image.
      label_remedy: what to do if it is unlabelled and should not be, for messages.
      streams: training reads it from front to back (`sources.webdataset.TarSource`); `len` and `[]` take a first pass.
    """

    streams = False
    has_quick_texts = False
    label_doubt = ""
    multi_label = False
    label_remedy = "choose a source that has some"
    name: str
    label_names: tuple[str, ...]
    renames: Mapping[str, str] = types.MappingProxyType({})

    @property
    def fields(self) -> Fields:
        """The kinds of the fields that its examples have besides label, id and texts; see `data.kinds`."""
        return {"image": Field("image")}

    @property
    def labelled(self) -> bool:
        return bool(self.label_names)

    @property
    def num_classes(self) -> int:
        return len(self.label_names)

    @property
    @abc.abstractmethod
    def labels(self) -> Int[np.ndarray, " n"]:
        """The label of every example, without reading images. Raises DataError if they have several each."""
        raise DataError(f"{self.name}: its images have several labels each, and this needs one label per image")

    @property
    def label_sets(self) -> Sequence[Int[np.ndarray, " k"]]:
        """The labels of every example of a multi-label source, sorted, without reading images."""
        raise DataError(f"{self.name}: its images have one label each, and this needs lists of labels")

    @property
    @abc.abstractmethod
    def ids(self) -> Sequence[str]:
        """The id of every example, without reading images."""

    @property
    def groups(self) -> Sequence[str]:
        """A name for each example; those of one name, such as all that are of one image, belong into one split."""
        return self.ids

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Reads one example. Raises UnreadableImage if its file cannot be read."""

    @property
    def files(self) -> tuple[Files, ...]:
        """Accounts for every file, for each place that the examples come from; empty if they are not files."""
        return ()

    def stamps(self) -> Mapping[str, str]:
        """The files or rows that the examples are read from by name, and of each a text that differs if it does.

        Names are the ids of the examples where each has a file of its own. Contents of files are not read. There are
        none for examples that are made on the fly.
        """
        return {}

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        """One example's text field; None if it has none. Raises UnreadableImage like `[]`."""
        return self[index].get(name)

    def outline(self, index: int) -> Example:
        """One example for which no image is read, where that is quicker: in place of each stands an empty file."""
        return self[index]

    def holds_one_text(self, name: str) -> bool:
        """Tells whether it is known, without reading any example, that no text field of this name holds several."""
        return False

    def __len__(self) -> int:
        return len(self.labels)

    def __str__(self) -> str:
        """Describes the size of the source, as far as it is known."""
        return f"{len(self):,} images"

    def first(self) -> Iterator[Example | UnreadableImage]:
        """The examples in order, and the errors of those that cannot be read."""
        for index in range(len(self)):
            try:
                yield self[index]
            except UnreadableImage as error:
                yield error


def check_classes(source: Source, user: str) -> None:
    """Raises DataError if `source` has no labels that `user`, "config.task" for one, can learn from or judge by.

    That is: no classes, one class, or directories that are hardly the classes meant.
    """
    if source.label_doubt:
        raise DataError(f"{user} needs classes: {source.label_doubt}")
    if not source.num_classes:
        raise DataError(f"{user} needs classes, and {source.name} has no labels: {source.label_remedy}")
    if source.num_classes == 1 and not source.multi_label:
        raise DataError(
            f"{user} needs two classes or more, and {source.name} has one, {source.label_names[0]!r}: every answer "
            "would be right; choose another source (folder:PATH is read as PATH/CLASS/… or PATH/SPLIT/CLASS/…)"
        )


class Subset(Source):
    """Some of the examples of another source; positions count within the subset."""

    def __init__(self, source: Source, indices: Sequence[int] | Int[np.ndarray, " k"], name: str):
        self.name = name
        self.label_names = source.label_names
        self.label_doubt = source.label_doubt
        self.multi_label = source.multi_label
        self.label_remedy = source.label_remedy
        self.renames = source.renames
        self.has_quick_texts = source.has_quick_texts
        self._source = source
        self._indices = np.asarray(indices)

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " k"]:
        return self._source.labels[self._indices]

    @functools.cached_property
    def label_sets(self) -> Sequence[Int[np.ndarray, " k"]]:
        own = self._source.label_sets
        return [own[i] for i in self._indices]

    @property
    def ids(self) -> Sequence[str]:
        ids = self._source.ids
        return [ids[i] for i in self._indices]

    @property
    def groups(self) -> Sequence[str]:
        groups = self._source.groups
        return [groups[i] for i in self._indices]

    @functools.cached_property
    def files(self) -> tuple[Files, ...]:
        return tuple(files.of(self.ids) for files in self._source.files)

    def stamps(self) -> Mapping[str, str]:
        found = self._source.stamps()
        own = [name for name in self.ids if name in found]
        return {name: found[name] for name in own} if len(own) == len(self) else found

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]

    @property
    def fields(self) -> Fields:
        return self._source.fields

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        return self._source.text(int(self._indices[index]), name)

    def outline(self, index: int) -> Example:
        return self._source.outline(int(self._indices[index]))

    def holds_one_text(self, name: str) -> bool:
        return self._source.holds_one_text(name)

    def __len__(self) -> int:
        return len(self._indices)

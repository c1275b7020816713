"""A source without its images, for a training that has their features: blanks stand where the images were."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vitvlm.data.errors import UnreadableImage
from vitvlm.data.kinds import Fields
from vitvlm.data.operations.parsing import MEMBERS, Pipeline
from vitvlm.data.operations.tracing import several
from vitvlm.data.sources.base import Example, Source

# Operations besides those on images that ask of an image only whether it is there.
_BLIND = ("keep", "pack", "pad", "supervise")
_BLANK = np.zeros((1, 1, 3), np.float32)


def allows(pipeline: Pipeline) -> bool:
    """Tells whether nothing that a batch holds besides images depends on their pixels or sizes; `pipeline` is bound."""
    others = [operation for operation in pipeline.operations if not operation.function.on_image]
    moved = {name for operation in pipeline.operations for name in operation.moved}
    return moved.isdisjoint(pipeline.batched) and all(operation.function.name in _BLIND for operation in others)


def without_images(pipeline: Pipeline) -> str:
    """The operations that are left, as one writes them."""
    return "|".join(operation.text for operation in pipeline.operations if not operation.function.on_image)


class Blanks(Source):
    """Examples of a source with a blank in the place of each image, which is not read.

    Those of `unreadable` rows are read, so that they are counted and named as they would be.
    """

    def __init__(self, source: Source, pipeline: Pipeline, unreadable: Collection[int]):
        self.name = source.name
        self.label_names = source.label_names
        self.multi_label = source.multi_label
        images = tuple(each for each in pipeline.bind(source.fields).operations if each.function.on_image)
        self._source, self._images, self._unreadable = source, Pipeline(pipeline.text, images), frozenset(unreadable)

    @property
    def fields(self) -> Fields:
        return self._source.fields

    @property
    def labels(self) -> np.ndarray:
        return self._source.labels

    @property
    def ids(self) -> Sequence[str]:
        return self._source.ids

    def stamps(self) -> Mapping[str, str]:
        return self._source.stamps()

    def __getitem__(self, index: int) -> Example:
        read = index in self._unreadable
        example = self._images(self._source[index]) if read else self._source.outline(index)
        return self._blank(example)

    def __len__(self) -> int:
        return len(self._source)

    def _blank(self, example: Example | UnreadableImage) -> Any:
        if isinstance(example, UnreadableImage):
            return example
        blanks = {
            name: [_BLANK] * len(example[name]) if several(example[name]) else _BLANK
            for name in self._images.images
            if name in example
        }
        members = {MEMBERS: [self._blank(each) for each in example[MEMBERS]]} if MEMBERS in example else {}
        return {**example, **blanks, **members}

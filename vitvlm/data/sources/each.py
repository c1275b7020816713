"""Each text of a field as an example of its own: the five captions of an image are five records."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError
from vitvlm.data.accounting import Files
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.kinds import Fields
from vitvlm.data.operations.text import texts_of
from vitvlm.data.sources.base import Example, Source


class EachText(Source):
    """Examples of a source, once for each text of `field`, which is then that one text; without any there is none.

    Ids are those of the source, numbered where an example has several texts: "a.jpg#2". All texts of an example are in
    one split. Labels are those of the source.

    Raises ConfigError for a source that is only streamed, or none of whose examples has such a text.
    """

    has_quick_texts = True

    def __init__(self, source: Source, field: str):
        if source.streams:
            raise ConfigError(f"each:{field}: {source.name} is streamed, and its texts are counted first")
        self._source, self._field = source, field
        self.label_names, self.multi_label = source.label_names, source.multi_label
        self.label_doubt, self.label_remedy, self.renames = source.label_doubt, source.label_remedy, source.renames
        self._places = [(i, k) for i in range(len(source)) for k in range(len(_texts(source, i, field)))]
        if not self._places:
            raise ConfigError(f"each:{field}: no example of {source.name} has a text in {field!r}")

    @property
    def fields(self) -> Fields:
        return self._source.fields

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        return self._source.labels[[i for i, _ in self._places]]

    @property
    def label_sets(self) -> Sequence[Int[np.ndarray, " k"]]:
        own = self._source.label_sets
        return [own[i] for i, _ in self._places]

    @functools.cached_property
    def ids(self) -> Sequence[str]:
        own, several = self._source.ids, {i for i, k in self._places if k}
        return [f"{own[i]}#{k + 1}" if i in several else own[i] for i, k in self._places]

    @property
    def groups(self) -> Sequence[str]:
        own = self._source.groups
        return [own[i] for i, _ in self._places]

    @property
    def files(self) -> tuple[Files, ...]:
        return self._source.files

    def stamps(self) -> Mapping[str, str]:
        return self._source.stamps()

    def __getitem__(self, index: int) -> Example:
        return self._with_text(self._source[self._places[index][0]], index)

    def outline(self, index: int) -> Example:
        return self._with_text(self._source.outline(self._places[index][0]), index)

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        place, number = self._places[index]
        return _texts(self._source, place, name)[number] if name == self._field else self._source.text(place, name)

    def holds_one_text(self, name: str) -> bool:
        return name == self._field or self._source.holds_one_text(name)

    def __len__(self) -> int:
        return len(self._places)

    def __str__(self) -> str:
        return f"{len(self):,} texts of {len(self._source):,} examples"

    def _with_text(self, example: Example, index: int) -> Example:
        return {**example, self._field: self.text(index, self._field), "id": self.ids[index]}


def _texts(source: Source, index: int, field: str) -> list[str]:
    try:
        return texts_of(source.text(index, field))
    except UnreadableImage:
        return []

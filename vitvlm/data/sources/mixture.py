"""Several sources as one, by weights: "mix:3*emoji+1*jsonl:PATH"."""

import functools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import NoneType

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError
from vitvlm.data.accounting import Files
from vitvlm.data.errors import DataError
from vitvlm.data.kinds import Fields
from vitvlm.data.sources.base import Example, Source
from vitvlm.data.sources.columns import RESERVED
from vitvlm.data.sources.relabelled import placed

_PART = re.compile(r"(?:(\d+)\*)?([^*:]+(?::.*)?)")


class MixedSource(Source):
    """A pattern of sources that repeats, each as often in it as its weight and as evenly spread as can be.

    So any position is an example of one source without any state, and shares are exact in any window of whole patterns,
    wherever it begins, of an unshuffled pass; of a shuffled one, in each epoch. A source that is used up begins again.
    The length is that of the fewest whole patterns that hold every example of every source.

    Examples have the field "source", the spec they come from (a field of that name that they have already becomes
    "source_"), and the text fields of all sources, None where their own has no such field. Classes are those of all
    sources, by name; there are none if a source has none.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[int], specs: Sequence[str]):
        self._sources, self._weights, self._specs = list(sources), list(weights), list(specs)
        self._pattern = spread(weights)
        self._patterns = max(math.ceil(len(source) / weight) for source, weight in zip(sources, weights, strict=True))
        several = {source.multi_label: spec for source, spec in zip(sources, specs, strict=True) if source.labelled}
        if len(several) > 1:
            raise DataError(
                f"mix: the images of {several[True]} have lists of labels, and those of {several[False]} have one each"
            )
        names = [source.label_names for source in sources]
        self.multi_label = all(names) and True in several
        self.label_names = tuple(dict.fromkeys(name for some in names for name in some)) if all(names) else ()
        if self.label_names:
            self._sources = [placed(source, self.label_names, "the mixture", "") for source in sources]

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        if not self.label_names:
            return np.zeros(len(self), np.int32)
        if self.multi_label:
            return super().labels
        own = [source.labels for source in self._sources]
        return np.array([own[which][place] for which, place in map(self._place, range(len(self)))], np.int32)

    @functools.cached_property
    def label_sets(self) -> Sequence[Int[np.ndarray, " k"]]:
        if not self.multi_label:
            return super().label_sets
        own = [source.label_sets for source in self._sources]
        return [own[which][place] for which, place in map(self._place, range(len(self)))]

    @functools.cached_property
    def ids(self) -> Sequence[str]:
        own = [source.ids for source in self._sources]
        return [own[which][place] for which, place in map(self._place, range(len(self)))]

    @functools.cached_property
    def groups(self) -> Sequence[str]:
        own = [source.groups for source in self._sources]
        return [own[which][place] for which, place in map(self._place, range(len(self)))]

    def stamps(self) -> Mapping[str, str]:
        """Returns the stamps of all sources, and the weight of each source."""
        parts = list(zip(self._specs, self._weights, self._sources, strict=True))
        own = {f"{spec}: {name}": stamp for spec, _, source in parts for name, stamp in source.stamps().items()}
        return own | {f"weight {number}, of {spec}": str(weight) for number, (spec, weight, _) in enumerate(parts, 1)}

    def __getitem__(self, index: int) -> Example:
        which, place = self._place(index)
        return self._told(which, self._sources[which][place])

    def outline(self, index: int) -> Example:
        which, place = self._place(index)
        return self._told(which, self._sources[which].outline(place))

    def _told(self, which: int, own: Example) -> Example:
        example = dict.fromkeys(self._texts) | own
        if "source" in example:
            example["source_"] = example.pop("source")
        label = example["label"] if self.label_names else 0
        return {**example, "label": label, "source": self._specs[which]}

    @functools.cached_property
    def _texts(self) -> tuple[str, ...]:
        """The text fields of all sources, by the first example of each that can be read."""
        firsts = [next((one for one in source.first() if isinstance(one, dict)), {}) for source in self._sources]
        texts = [name for first in firsts for name, value in first.items() if isinstance(value, (str, tuple, NoneType))]
        return tuple(name for name in dict.fromkeys(texts) if name not in RESERVED)

    @property
    def has_quick_texts(self) -> bool:
        return all(source.has_quick_texts for source in self._sources)

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        which, place = self._place(index)
        return self._specs[which] if name == "source" else self._sources[which].text(place, name)

    def holds_one_text(self, name: str) -> bool:
        return name == "source" or all(source.holds_one_text(name) for source in self._sources)

    @property
    def fields(self) -> Fields:
        return {name: field for source in reversed(self._sources) for name, field in source.fields.items()}

    @property
    def files(self) -> tuple[Files, ...]:
        return tuple(files for source in self._sources for files in source.files)

    @property
    def label_doubt(self) -> str:
        without = [spec for spec, source in zip(self._specs, self._sources, strict=True) if not source.labelled]
        if 0 < len(without) < len(self._specs):
            return f"{without[0]} has no labels, and others of the mixture have: it has none as a whole"
        return next((source.label_doubt for source in self._sources if source.label_doubt), "")

    def __len__(self) -> int:
        return self._patterns * len(self._pattern)

    def _place(self, index: int) -> tuple[int, int]:
        """Returns (number of the source, position in it)."""
        round_, slot = divmod(index, len(self._pattern))
        which, turn = self._pattern[slot]
        return which, (round_ * self._weights[which] + turn) % len(self._sources[which])


def open_mixture(parts: str, kinds: Collection[str], open_one: Callable[[str], Source]) -> Source:
    """Opens a mixture such as "3*emoji+1*jsonl:PATH"; weights are whole numbers, 1 by default.

    A plus begins another source if a weight or one of the `kinds` of sources follows; any other belongs to a path.
    """
    weights, specs = [], []
    begin = re.compile(rf"\+(?=\s*(?:-?[\d.]*\*|(?:{'|'.join(kinds)})\s*(?:[:+]|$)|$))")
    for part in begin.split(parts):
        found = _PART.fullmatch(part.strip())
        if not found or int(found[1] or 1) < 1:
            raise ConfigError(
                f"data source 'mix:{parts}': {part!r} is not WEIGHT*SOURCE with a whole weight; "
                "write mix:3*emoji+1*jsonl:PATH"
            )
        weights.append(int(found[1] or 1))
        specs.append(found[2])
    return MixedSource([open_one(spec) for spec in specs], weights, specs)


def spread(weights: Sequence[int]) -> list[tuple[int, int]]:
    """Returns (source, turn) for each slot of a pattern: turn t of weight w is at (t + 1/2) / w of the way."""
    turns = [((turn + 0.5) / weight, which, turn) for which, weight in enumerate(weights) for turn in range(weight)]
    return [(which, turn) for _, which, turn in sorted(turns)]

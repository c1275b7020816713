"""Scores of records as a column of a source, and the records that they leave: by id, from a file of an evaluation."""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vitvlm.core import files, json_texts
from vitvlm.core.config import ConfigError, suggest
from vitvlm.data.errors import DataError
from vitvlm.data.kinds import Field, Fields
from vitvlm.data.sources.base import Example, Source, Subset

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Scores:
    """A file of scores, and which records these leave.

    Attributes:
      path: JSON lines, each with "id" and the column, or an NPZ with arrays of these names; "" for no scores.
      column: the score: "visual_dependency", the log-likelihood of the answer with the image minus that without, in
        nats, as `evaluate.py` writes it.
      least: records with less are left out.
      share: only this share of the records is kept, those with the highest scores.
    """

    path: str = ""
    column: str = "visual_dependency"
    least: float | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"keep_share={self.share!r} must be above 0 and at most 1")
        if not self.path and (self.least is not None or self.share < 1):
            raise ConfigError("min_score and keep_share need scores: name their file")


class Scored(Subset):
    """Records of a source with the column of their scores, float32, those left out that it says."""

    def __init__(self, source: Source, scores: Float[np.ndarray, " n"], chosen: np.ndarray, rule: Scores, name: str):
        super().__init__(source, chosen, name)
        self._scores, self._column = scores, rule.column

    @property
    def fields(self) -> Fields:
        return {**super().fields, self._column: Field("array")}

    def stamps(self) -> Mapping[str, str]:
        """Returns the stamps of the records, and one of all scores."""
        digest = hashlib.blake2b(self._scores[self._indices].tobytes(), digest_size=8).hexdigest()
        return {**super().stamps(), f"scores {self._column!r}": digest}

    def __getitem__(self, index: int) -> Example:
        return self._with_score(super().__getitem__(index), index)

    def outline(self, index: int) -> Example:
        return self._with_score(super().outline(index), index)

    def _with_score(self, example: Example, index: int) -> Example:
        return {**example, self._column: np.array(self._scores[int(self._indices[index])])}


def scored(source: Source, rule: Scores) -> Source:
    """The source with scores joined by id, and without the records that the rule leaves out; the log says how many.

    Raises DataError for a file that cannot be read, a record without a score, and a rule that leaves nothing.
    """
    if not rule.path:
        return source
    found = read(Path(rule.path).expanduser(), rule.column)
    missing = [id_ for id_ in source.ids if id_ not in found]
    if missing:
        raise DataError(
            f"{rule.path}: has no {rule.column!r} of {len(missing):,} of the {len(source):,} records of {source.name}, "
            f"{', '.join(map(repr, missing[:3]))} among them: score this very split"
        )
    scores = np.array([found[id_] for id_ in source.ids], np.float32)
    order = np.argsort(-scores, kind="stable")[: max(1, round(rule.share * len(scores)))]
    chosen = np.sort(order if rule.least is None else order[scores[order] >= rule.least])
    if not len(chosen):
        raise DataError(
            f"{source.name}: no record has {rule.column} >= {rule.least:g}; the highest is {scores.max():g}"
        )
    name = source.name
    if len(chosen) < len(scores):
        least = f"{rule.column} >= {scores[chosen].min():.4g}"
        name = f"{source.name}, {len(chosen):,} of {len(scores):,} by {least}"
        _LOG.info("%s: %s of %s records kept, %s", source.name, f"{len(chosen):,}", f"{len(scores):,}", least)
    return Scored(source, scores, chosen, rule, name)


def read(path: Path, column: str) -> dict[str, float]:
    """Scores by record id, from JSON lines or NPZ. Raises DataError for what is no such file, and for NaN."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of scores")
    pairs = _of_npz(path, column) if path.suffix == ".npz" else _of_lines(path, column)
    found: dict[str, float] = {}
    for id_, value in pairs:
        try:
            score = float(value)
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"{path}: the {column!r} of {id_!r} is no number: {value!r:.40}") from None
        if math.isnan(score):
            raise DataError(f"{path}: the {column!r} of {id_!r} is NaN")
        if found.setdefault(str(id_), score) != score:
            raise DataError(f"{path}: has two scores of {id_!r}: {found[str(id_)]:g} and {score:g}")
    return found


def _of_npz(path: Path, column: str) -> list[tuple[Any, Any]]:
    try:
        files.check_regular(path, files.LARGEST_JSON)
        with np.load(path, allow_pickle=False) as arrays:
            ids, values = (_column(arrays, name, path, arrays.files) for name in ("id", column))
    except (*files.DAMAGE, MemoryError) as error:
        raise error if isinstance(error, DataError) else DataError(f"{path}: is no NPZ of scores: {error}") from None
    if ids.shape != values.shape or ids.ndim != 1:
        raise DataError(f"{path}: 'id' is {list(ids.shape)} and {column!r} {list(values.shape)}: one score for each id")
    return list(zip(ids.tolist(), values.tolist()))


def _of_lines(path: Path, column: str) -> list[tuple[Any, Any]]:
    pairs = []
    try:
        lines = files.read_text(path, files.LARGEST_JSON).split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_texts.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number}: is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: is no object with 'id' and {column!r}")
        pairs.append(tuple(_column(row, name, f"{path}: line {number}", list(row)) for name in ("id", column)))
    return pairs


def _column(values: Mapping[str, Any], name: str, where: Any, names: Sequence[str]) -> Any:
    if name not in names:
        raise DataError(f"{where}: has no {name!r}; {suggest(name, names)}")
    return values[name]

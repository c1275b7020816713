"""Files of predictions, CSV or JSON lines, that a second run goes on with; embeddings lie beside them."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitvlm.core import own_files
from vitvlm.core.config import ConfigError
from vitvlm.pretrained.predicting import Prediction

SUFFIXES = (".csv", ".jsonl")
FEATURES, SETTINGS = ".features.npy", ".settings.json"


class Records:
    """Predictions in a file, one a line, each on disk when `add` returns.

    `OUT.features.npy`, float32 [n, E], has the embeddings where they were asked for: row i is of line i, NaN for an
    image that cannot be read. `OUT.settings.json` says what the predictions depend on.

    Args:
      out: the file, .csv or .jsonl.
      settings: what the predictions depend on.
      top: classes of each image; of a CSV they are columns.
      features: whether there are embeddings.

    Raises ConfigError for another suffix, and for a file that was begun with other settings or is none of ours.
    """

    def __init__(self, out: str, settings: Mapping[str, Any], top: int, features: bool):
        self.path = Path(out)
        if self.path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"--out: {out}: give a file that ends in {' or '.join(SUFFIXES)}")
        self._csv, self._top, self._features = self.path.suffix.lower() == ".csv", top, features
        self.features_path = Path(f"{out}{FEATURES}")
        settings, beside = json.loads(json.dumps(settings)), Path(f"{out}{SETTINGS}")
        self.done = {one.image for one in self.read()} if self.path.exists() else set()
        if self.done and (before := own_files.read(beside) if beside.exists() else None) is not None:
            changed = [name for name in settings if before.get(name) != settings[name]]
            if changed:
                told = "; ".join(f"{name} {before.get(name)!r} before, {settings[name]!r} now" for name in changed)
                raise ConfigError(f"{out}: was begun otherwise ({told}): give another --out, or take these back")
        self._prepare(beside, settings)

    def _prepare(self, beside: Path, settings: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        kept = content[: content.rfind(b"\n") + 1]  # a last line that was cut is taken away
        if kept != content:
            self.path.write_bytes(kept)
        if not kept and self._csv:
            columns = [f"{kind}_{i + 1}" for i in range(self._top) for kind in ("class", "probability")]
            self.path.write_text(_line(["image", *columns, "error"]), encoding="utf-8")
        if self._features and not self.done:
            self.features_path.unlink(missing_ok=True)
        own_files.write(beside, settings)

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Appends them, embeddings first, so that a line on disk has its row."""
        if self._features:
            self._append_features(predictions)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            for one in predictions:
                file.write(self._row(one) if self._csv else json.dumps(_json(one), ensure_ascii=False) + "\n")
        self.done |= {one.image for one in predictions}

    def read(self) -> Iterator[Prediction]:
        """All predictions of the file, without embeddings."""
        text = self.path.read_bytes().decode("utf-8", "surrogateescape")
        lines = text[: text.rfind("\n") + 1].splitlines()
        try:
            yield from (_of_csv(lines) if self._csv else (_of_json(json.loads(line)) for line in lines))
        except (ValueError, KeyError, TypeError, IndexError):
            raise ConfigError(f"{self.path}: is not a file of predictions; give another --out") from None

    def _row(self, one: Prediction) -> str:
        cells = [cell for name, share in one.classes for cell in (name, f"{share:.6g}")]
        return _line([one.image, *cells, *[""] * (2 * self._top - len(cells)), one.error])

    def _append_features(self, predictions: Sequence[Prediction]) -> None:
        """Writes rows behind those of the lines that are on disk; numpy's header leaves room for more of them."""
        width = next((len(one.features) for one in predictions if one.features is not None), None)
        before = np.load(self.features_path, mmap_mode="r") if self.features_path.exists() else None
        width = before.shape[1] if before is not None and before.shape[1] else width or 0  # 0: none could be read yet
        have = len(self.done)
        rows = np.full((len(predictions), width), np.nan, np.float32)
        for row, one in zip(rows, predictions):
            if one.features is not None:
                row[:] = one.features
        if before is None or not before.shape[1]:
            np.save(self.features_path, np.concatenate([np.full((have, width), np.nan, np.float32), rows]))
            return
        del before
        with self.features_path.open("r+b") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            file.truncate(start + 4 * width * have)
            file.seek(0, io.SEEK_END)
            file.write(rows.tobytes())
            file.seek(0)
            header = {"descr": "<f4", "fortran_order": False, "shape": (have + len(rows), width)}
            np.lib.format.write_array_header_1_0(file, header)


def _json(one: Prediction) -> dict[str, Any]:
    if one.error:
        return {"image": one.image, "error": one.error}
    return {"image": one.image, "classes": [{"name": name, "probability": share} for name, share in one.classes]}


def _of_json(record: Mapping[str, Any]) -> Prediction:
    classes = tuple((each["name"], each["probability"]) for each in record.get("classes", ()))
    return Prediction(record["image"], classes, error=record.get("error", ""))


def _of_csv(lines: Sequence[str]) -> Iterator[Prediction]:
    rows = csv.reader(lines)
    if (head := next(rows, None)) is not None and (head[0], head[-1]) != ("image", "error"):
        raise ValueError(head)
    for image, *cells, error in rows:
        pairs = zip(cells[::2], cells[1::2])
        yield Prediction(image, tuple((name, float(share)) for name, share in pairs if share), error=error)


def _line(cells: Sequence[str]) -> str:
    """A row of CSV on one line: line breaks inside cells, as in the names of classes, become spaces."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([" ".join(cell.splitlines()) for cell in cells])
    return buffer.getvalue()

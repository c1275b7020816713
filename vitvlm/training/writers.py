"""Where metrics go: `metrics.jsonl` always; TensorBoard and Weights & Biases on request.

A row is `{"step": 300, "loss": 1.25, …}`: numbers and words by name. Names under "time/" are measurements of the
machine; all others are the same in an undisturbed run and in one that was killed and went on.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Protocol

from etils import epath

Value = float | int | str


class Writer(Protocol):
    """Takes one row per call. `rewind(step)` forgets rows past that step, after a restart."""

    def write(self, step: int, row: Mapping[str, Value]) -> None: ...

    def rewind(self, step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """One JSON object per line in `path`, on disk as soon as it is written."""

    def __init__(self, path: epath.PathLike):
        self.path = epath.Path(path)
        self._file = self.path.open("a")

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()

    def rewind(self, step: int) -> None:
        self._file.close()
        kept = [line for line, row in read_lines(self.path) if row["step"] <= step]
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(self.path)
        self._file = self.path.open("a")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Writers:
    """Several writers as one."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        for writer in self._writers:
            writer.write(step, row)

    def rewind(self, step: int) -> None:
        for writer in self._writers:
            writer.rewind(step)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def read_lines(path: epath.PathLike) -> list[tuple[str, dict[str, Value]]]:
    """Whole lines of a metrics file and their rows; a last line cut off by a crash is left out."""
    lines = epath.Path(path).read_text().split("\n")
    return [(line, json.loads(line)) for line in lines[:-1] if line]

"""Writers of metrics: `metrics.jsonl` always; TensorBoard and Weights & Biases on request.

A row is `{"step": 300, "train/loss": 1.25, …}`: numbers and words by name. Names under "time/" are measurements of
the machine; all others are the same in an undisturbed training and in one that was killed and went on.
"""

import errno
import importlib
import json
import logging
import os
import pathlib
import secrets
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from vitvlm.core import own_files
from vitvlm.core.config import ConfigError
from vitvlm.training.records import line
from vitvlm.training.workdir import WorkdirError

Value = float | int | str
Mark = Any  # JSON

_LOG = logging.getLogger(__name__)


@runtime_checkable
class Writer(Protocol):
    """Takes one row per call, in the order of steps."""

    def write(self, step: int, row: Mapping[str, Value]) -> None: ...

    def mark(self) -> Mark:
        """A place in what is written so far; saved with a checkpoint."""

    def rewind(self, step: int, mark: Mark) -> None:
        """Forgets what was written after the mark, which was made at that step; `rewind(0, 0)` forgets all."""

    def close(self) -> None: ...


class JsonlWriter:
    """One JSON object per line, handed to the operating system at once and to the disk at each mark.

    What others do to the file meanwhile loses no row silently: if it is removed or replaced, it is written again with
    all rows; of one that is cut, what is lost is said.
    """

    def __init__(self, path: str | os.PathLike[str], check: Callable[[], None] = lambda: None):
        """Opens the file, or begins it.

        `check` raises if the folder is no longer this job's; it is asked before anything is written. Raises
        WorkdirError for a device or pipe, which could be read for ever.
        """
        self.path = pathlib.Path(path)
        self._check = check
        self._open()

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        """Raises WorkdirError if the disk is full, or takes no more for another reason."""
        self._check()
        try:
            self._mend()
            self._put(json.dumps({"step": step, **row}).encode() + b"\n")
        except OSError as error:
            raise WorkdirError(
                f"{self.path}: the row of step {step} could not be written: {line(error)}; "
                "make room, and run the same command again to go on from the last checkpoint"
            ) from error

    def mark(self) -> dict[str, int]:
        """Length of the written file in bytes and rows, and its checksum."""
        self._check()
        self._mend()
        os.fsync(self._file.fileno())
        return {"bytes": self._bytes, "rows": self._rows, "crc32": self._crc}

    def rewind(self, step: int, mark: dict[str, int] | int) -> None:
        """Cuts the file at a mark. Where it is no longer as it was then, its whole rows up to the step stay."""
        place = {"bytes": mark} if isinstance(mark, int) else mark
        self._file.seek(0)
        content = self._file.read()
        kept = content[: place["bytes"]]
        whole = len(kept) == place["bytes"] and (not kept or kept.endswith(b"\n"))
        if whole and place.get("crc32", zlib.crc32(kept)) == zlib.crc32(kept):
            self._file.truncate(len(kept))
        else:
            rows, _ = _parsed(content)
            kept = b"".join(json.dumps(row).encode() + b"\n" for row in rows if row["step"] <= step)
            were = f", of {place['rows']} then" if "rows" in place else ""
            _LOG.warning(
                "%s: is not as it was at checkpoint %d: %d whole rows up to there are kept%s%s",
                self.path,
                step,
                kept.count(b"\n"),
                were,
                f"; as it was found, it is {own_files.set_aside(self.path)}" if content else "",
            )
            self._file.close()
            self.path.write_bytes(kept)
            self._file = self.path.open("a+b", buffering=0)
        self._count(kept)

    def close(self) -> None:
        self._file.close()

    def _open(self) -> None:
        if self.path.exists() and not self.path.is_file():
            raise WorkdirError(f"{self.path}: is not a regular file; remove it, or choose another --workdir")
        self._file = self.path.open("a+b", buffering=0)
        self._file.seek(0)
        self._count(self._file.read())

    def _count(self, content: bytes) -> None:
        self._bytes, self._rows, self._crc = len(content), content.count(b"\n"), zlib.crc32(content)

    def _put(self, content: bytes) -> None:
        written = self._file.write(content)
        self._bytes, self._rows = self._bytes + written, self._rows + content[:written].count(b"\n")
        self._crc = zlib.crc32(content[:written], self._crc)
        if written < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _mend(self) -> None:
        """Sees to it that rows go to the file of this name, which is as it was left, and begins a new line."""
        own = os.fstat(self._file.fileno())
        try:
            there = self.path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino):
            self._file.seek(0)
            content = self._file.read()
            what = "removed" if there is None else f"replaced (by what is now {own_files.set_aside(self.path).name})"
            self._file.close()
            self.path.write_bytes(content)
            _LOG.warning("%s: was %s while the job ran; it is written again, with all rows", self.path, what)
            self._open()
        elif own.st_size != self._bytes:
            change = "cut" if own.st_size < self._bytes else "added to"
            before = self._rows
            self._file.seek(0)
            self._count(self._file.read())
            _LOG.warning(
                "%s: was %s while the job ran: it holds %d rows, and held %d", self.path, change, self._rows, before
            )
        if self._bytes:
            self._file.seek(self._bytes - 1)
            if self._file.read(1) != b"\n":
                self._put(b"\n")


class TensorBoardWriter:
    """Event files for TensorBoard; words become text summaries."""

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = str(folder)
        self._tensorboard = _import("tensorboardX", "log.tensorboard", "tensorboard")
        self._events: Any = None

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        if self._events is None:
            self._open(purge_step=None)
        for name, value in row.items():
            add = self._events.add_text if isinstance(value, str) else self._events.add_scalar
            add(name, value, step)

    def mark(self) -> int:
        if self._events is not None:
            self._events.flush()
        return 0

    def rewind(self, step: int, mark: Mark) -> None:
        self.close()
        self._open(purge_step=step + 1)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()

    def _open(self, purge_step: int | None) -> None:
        # The library names files by the second: a job that is started again at once would overwrite its own.
        suffix = f".{time.time_ns()}"
        self._events = self._tensorboard.SummaryWriter(self._folder, purge_step=purge_step, filename_suffix=suffix)


class WandbWriter:
    """One run of Weights & Biases per workdir; `WANDB_MODE=offline` keeps it on this machine."""

    def __init__(self, folder: str | os.PathLike[str], config: Mapping[str, Any], **fields: Any):
        """`fields` go to `wandb.init`: project, entity, name, tags, mode …"""
        wandb = _import("wandb", "log.wandb", "wandb")
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        identity = folder / "wandb_id"
        if not identity.exists() or not identity.read_text().strip():
            identity.write_text(secrets.token_hex(4))
        self._run = wandb.init(dir=str(folder), id=identity.read_text(), resume="allow", config=dict(config), **fields)
        # W&B's own step may not go back, as it must when a training goes on from an older checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        self._run.log({"step": step, **row})

    def mark(self) -> int:
        return 0

    def rewind(self, step: int, mark: Mark) -> None:
        """Does nothing: rows of the same step are plotted over the ones before."""

    def close(self) -> None:
        self._run.finish()


class Writers:
    """Several writers as one; the first one's mark counts."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        for writer in self._writers:
            writer.write(step, row)

    def mark(self) -> Mark:
        marks = [writer.mark() for writer in self._writers]
        return marks[0] if marks else 0

    def rewind(self, step: int, mark: Mark) -> None:
        for writer in self._writers:
            writer.rewind(step, mark)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def read(path: str | os.PathLike[str]) -> list[dict[str, Value]]:
    """The rows of a metrics file; damaged lines, and a last one that a crash cut off, are left out and counted in the
    log, and so is a file that is not there."""
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        _LOG.warning("%s: cannot be read, so there are no rows: %s", path, line(error))
        return []
    rows, damaged = _parsed(content)
    if damaged:
        _LOG.warning(
            "%s: %d of %d lines are damaged and left out, the first of them line %d",
            path,
            len(damaged),
            len(rows) + len(damaged),
            damaged[0],
        )
    return rows


def numbers(rows: Sequence[Mapping[str, Value]], name: str) -> list[tuple[int, float]]:
    """Returns (step, value) of a metric in the rows that hold it as a number."""
    return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]


def _parsed(content: bytes) -> tuple[list[dict[str, Value]], list[int]]:
    """The whole rows, and the numbers of the lines that are none, counted from 1."""
    rows, damaged = [], []
    lines = content.split(b"\n")
    for number, text in enumerate(lines[:-1], 1):
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        whole = isinstance(row, dict) and isinstance(row.get("step"), int)
        if whole and all(isinstance(value, (int, float, str)) for value in row.values()):
            rows.append(row)
        else:
            damaged.append(number)
    return rows, damaged + ([len(lines)] if lines[-1] else [])


def _import(module: str, field: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{field}: {module} is not installed; pip install 'vitvlm[{extra}]', or unset it") from error

"""Where metrics go: `metrics.jsonl` always; TensorBoard and Weights & Biases on request.

A row is `{"step": 300, "train/loss": 1.25, …}`: numbers and words by name. Names under "time/" are measurements of
the machine; all others are the same in an undisturbed training and in one that was killed and went on.
"""

import importlib
import json
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from vitvlm.core.config import ConfigError
from vitvlm.training.records import line
from vitvlm.training.workdir import WorkdirError

Value = float | int | str


@runtime_checkable
class Writer(Protocol):
    """Takes one row per call, in the order of steps."""

    def write(self, step: int, row: Mapping[str, Value]) -> None: ...

    def mark(self) -> int:
        """A place in what is written so far; saved with a checkpoint."""

    def rewind(self, step: int, mark: int) -> None:
        """Forgets what was written after the mark, which was made at that step; `rewind(0, 0)` forgets all."""

    def close(self) -> None: ...


class JsonlWriter:
    """One JSON object per line, handed to the operating system at once and to the disk at each mark."""

    def __init__(self, path: str | os.PathLike[str], check: Callable[[], None] = lambda: None):
        """`check` raises if the folder is no longer this job's; it is asked before anything is written."""
        self.path = pathlib.Path(path)
        self._check = check
        self._file = self.path.open("a")

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        """Raises WorkdirError if the disk is full, or takes no more for another reason."""
        self._check()
        try:
            self._file.write(json.dumps({"step": step, **row}) + "\n")
            self._file.flush()
        except OSError as error:
            raise WorkdirError(
                f"{self.path}: the row of step {step} could not be written: {line(error)}; "
                "make room, and run the same command again to go on from the last checkpoint"
            ) from error

    def mark(self) -> int:
        self._check()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def rewind(self, step: int, mark: int) -> None:
        """A file that is shorter than its mark was changed by someone else, and is left as it is."""
        if mark < os.fstat(self._file.fileno()).st_size:
            self._file.truncate(mark)

    def close(self) -> None:
        self._file.close()


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

    def rewind(self, step: int, mark: int) -> None:
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
        if not identity.exists():
            identity.write_text(secrets.token_hex(4))
        self._run = wandb.init(dir=str(folder), id=identity.read_text(), resume="allow", config=dict(config), **fields)
        # W&B's own step may not go back, as it must when a training goes on from an older checkpoint.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        self._run.log({"step": step, **row})

    def mark(self) -> int:
        return 0

    def rewind(self, step: int, mark: int) -> None:
        """Nothing: rows of the same step are plotted over the ones before."""

    def close(self) -> None:
        self._run.finish()


class Writers:
    """Several writers as one; the first one's mark counts."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write(self, step: int, row: Mapping[str, Value]) -> None:
        for writer in self._writers:
            writer.write(step, row)

    def mark(self) -> int:
        marks = [writer.mark() for writer in self._writers]
        return marks[0] if marks else 0

    def rewind(self, step: int, mark: int) -> None:
        for writer in self._writers:
            writer.rewind(step, mark)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def read(path: str | os.PathLike[str]) -> list[dict[str, Value]]:
    """The rows of a metrics file; a last line that a crash cut off is left out."""
    lines = pathlib.Path(path).read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _import(module: str, field: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{field}: {module} is not installed; pip install 'vitvlm[{extra}]', or unset it") from error

"""Checkpoints that are written while training continues, appear whole or not at all, and are checked when read.

Orbax writes the arrays; frozen parameters, which never change, once for all checkpoints (`bases`). Beside them each
checkpoint has a record: shape, dtype and fingerprint of every array, the resolved config, the metrics, and where the
loop was; with a digest of itself. So a damaged byte is found, where Orbax alone would restore it, or cast a wrong
dtype, without a word.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath

from vitvlm.core import config as config_lib
from vitvlm.core import paths, placing
from vitvlm.training import integrity, older, stored
from vitvlm.training.arrays import as_arrays, like
from vitvlm.training.bases import Bases
from vitvlm.training.best import Best
from vitvlm.training.records import CheckpointError, DamagedError, Record, Restored, line, mismatches

T = TypeVar("T")
Tree = Any
Json = Any

_LOG = logging.getLogger(__name__)
FROZEN = "frozen/"  # before the paths of frozen parameters in a train state


class _NoEchoes(logging.Filter):
    """Drops what Orbax logs, tracebacks of every thread above all: its errors reach the caller as CheckpointError."""

    def filter(self, record: logging.LogRecord) -> bool:
        return _LOG.isEnabledFor(logging.DEBUG) or f"{os.sep}orbax{os.sep}" not in record.pathname


_NO_ECHOES = _NoEchoes()


class Checkpoints:
    """The checkpoints of one training, in one folder; call it on every process.

    Use it as a context manager: leaving it waits for the running save.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        config: Mapping[str, Any] | None = None,
        keep_last: int = 2,
        best: Best | None = None,
        read_only: bool = False,
    ):
        """Opens a folder of checkpoints.

        Args:
          folder: made if it is not there; unfinished checkpoints of a killed job are cleared from it.
          config: the resolved config, JSON values only; goes into every checkpoint.
          keep_last: how many of the newest checkpoints stay.
          best: which others stay.
          read_only: changes nothing on disk; for evaluation beside a running job.

        Raises CheckpointError if the folder cannot be written, or is not there when read-only.
        """
        if keep_last < 1:
            raise config_lib.ConfigError(f"keep_last: {keep_last}; at least the newest checkpoint has to stay")
        self.folder = _absolute(folder)
        self._config = dict(config or {})
        self._keep_last = keep_last
        self._best = best
        self._read_only = read_only
        self._saving: int | None = None
        self._metrics: dict[int, Mapping[str, Any]] = {}
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: no folder of checkpoints")
        logging.getLogger("absl").addFilter(_NO_ECHOES)
        self._manager = self._open()
        self._bases = Bases(self.folder)
        if not read_only:
            self._collect_bases()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first, and of the one being written."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step whose metric is best; None if no checkpoint has the metric."""
        scores = self._scores(sorted(self.steps()))
        return max(scores, key=scores.__getitem__) if scores else None  # of equal ones the first

    def save(self, step: int, state: Tree, *, resume: Json = None, metrics: Mapping[str, Any] | None = None) -> None:
        """Copies the state to the host and returns; it is written while training continues.

        Args:
          step: names the checkpoint.
          state: a pytree of arrays; it may be donated as soon as this returns.
          resume: JSON for the loop itself, the data iterator's state above all.
          metrics: of the evaluations at this step, as far as they are known; `add_metrics` adds others.

        Raises CheckpointError if the save before this one, or the start of this one, failed.
        """
        self.wait()
        arrays, frozen = _apart(as_arrays(state))
        marks = integrity.fingerprints(arrays)
        record = Record(
            arrays={path: (tuple(leaf.shape), str(leaf.dtype), marks[path]) for path, leaf in arrays.items()},
            config=self._config,
            metrics=dict(metrics or {}),
            resume=resume,
            base=self._bases.save(frozen) if frozen else None,
        )
        self._metrics[step] = record.metrics
        self._saving = step
        tree = paths.unflatten(arrays)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(tree), record=ocp.args.JsonSave(record.json()))
        try:
            self._manager.save(step, args=args)
        except Exception as error:  # Orbax and TensorStore raise many kinds; all mean that nothing was committed.
            self._failed(error)

    def add_metrics(self, step: int, metrics: Mapping[str, Any], *, resume: Json) -> None:
        """Puts an evaluation's metrics into the checkpoint of its step, and drops the best before if these are better.

        Args:
          metrics: join those that are there.
          resume: in place of the one before: what the loop would go on from now.

        Raises ConfigError if they come from the evaluation that `best` names, but lack its metric, and CheckpointError
        if that checkpoint cannot be read or written; its state is untouched by either.
        """
        if self._best is not None:
            self._best.check(metrics)
        self.wait()
        try:
            before = self.record(step)
            record = dataclasses.replace(before, metrics={**before.metrics, **metrics}, resume=resume)
            if jax.process_index() == 0:
                record.write(self._record_file(step))
        except (DamagedError, OSError) as error:
            raise CheckpointError(
                f"{self.folder}: checkpoint {step} could not be given its metrics: {line(error)}; {self._all()}"
            ) from error
        ocp.multihost.sync_global_processes("vitvlm: metrics are put beside a checkpoint")
        self._metrics[step] = record.metrics
        for unwanted in sorted(set(self.steps()) - self._kept(self.steps())):
            self._manager.delete(unwanted)

    def check(self) -> None:
        """Raises CheckpointError if the running save has failed by now; never waits."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the running save is on disk. Raises CheckpointError if it failed."""
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed(error)
        self._saving = None

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore(self, target: Tree, step: int | None = None) -> Restored:
        """The newest whole checkpoint, or that of one step, checked against its fingerprints.

        Args:
          target: tree of `jax.ShapeDtypeStruct` with shardings: the structure to restore, and where to put it.
          step: only this one; if it is damaged, that is an error.

        Raises CheckpointError if there is no checkpoint, none is whole, or it holds other arrays than the target.
        """
        return self.first_whole(functools.partial(self._read, target=target), step)

    def variables(self, target: Tree, step: int | None = None, ema: bool | None = None) -> Restored:
        """A model's variables from the newest whole checkpoint, or that of one step; no other array is read.

        Args:
          target: {"params": …}, a tree of `jax.ShapeDtypeStruct` with shardings: where each array goes, part by part;
            quantized matrices stay so.
          ema: see `stored.variables`.

        Raises CheckpointError as `restore` does.
        """

        def read(candidate: int) -> Restored:
            opened = self.open(candidate)
            found, wanted = paths.flatten(stored.variables(opened.state, ema, whole=False)), as_arrays(target)
            if problems := mismatches(found, wanted):
                raise self._unfit(candidate, "model", problems)
            placed = placing.place_tree(found, {path: leaf.sharding for path, leaf in wanted.items()})
            return dataclasses.replace(opened, state=like(target, placed))

        return self.first_whole(read, step)

    def open(self, step: int) -> Restored:
        """A checkpoint with lazy arrays, in nested dictionaries: see `stored.open_arrays`.

        Raises DamagedError, and CheckpointError if its frozen parameters are gone.
        """
        record = self.record(step)
        arrays = stored.open_arrays(self.folder / str(step) / "state", record.arrays, DamagedError)
        if record.base is not None:
            arrays |= self._bases.open(record.base)
        return Restored(step, paths.unflatten(arrays), record.resume, record.metrics, record.config)

    def first_whole(self, read: Callable[[int], T], step: int | None = None) -> T:
        """Returns what `read(step)` gives for the newest checkpoint, or for one step, without raising DamagedError.

        Damaged ones are reported and, unless read-only, renamed to "<step>.damaged", so that training can go on
        from the one before and write that step again.

        Raises CheckpointError if there is no checkpoint, or none is whole.
        """
        self.wait()
        wanted = self._wanted(step)
        reasons = []
        for candidate in wanted:
            try:
                found = read(candidate)
            except DamagedError as error:
                reasons.append(f"checkpoint {candidate} is damaged: {error}")
                _LOG.warning("%s: %s", self.folder, reasons[-1])
                continue
            if reasons:
                _LOG.warning("%s: going back to checkpoint %d", self.folder, candidate)
                self._set_aside([damaged for damaged in wanted if damaged > candidate])
            return found
        raise CheckpointError(f"{self.folder}: no whole checkpoint: {'; '.join(reasons)}")

    def _wanted(self, step: int | None) -> list[int]:
        """Steps to look at: that one, or all, newest first. Raises CheckpointError if there is none."""
        wanted = [step] if step is not None else self.steps()[::-1]
        if not wanted or not set(wanted) <= set(self.steps()):
            which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise CheckpointError(f"{self.folder}: {which}; {self._all()}")
        return wanted

    def metrics(self, step: int) -> Mapping[str, Any]:
        """Metrics of a checkpoint's evaluations, as this process has saved them or found them at its start."""
        return self._metrics.get(step, {})

    def record(self, step: int) -> Record:
        """Reads a checkpoint's record: arrays, config, metrics. Raises DamagedError."""
        return Record.read(self._record_file(step))

    def _record_file(self, step: int) -> epath.Path:
        return self.folder / str(step) / "record" / "metadata"

    def _read(self, step: int, target: Tree) -> Restored:
        record = self.record(step)
        wanted = as_arrays(target)
        if record.base is None and older.is_older(wanted, record.arrays):
            found = older.renamed(self._arrays(step, record, older.target(wanted, record.arrays)), wanted)
        else:
            found = self._arrays(step, record, wanted)
        return Restored(step, like(target, found), record.resume, record.metrics, record.config)

    def _arrays(self, step: int, record: Record, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of a checkpoint and its base by path, checked against their fingerprints."""
        if problems := record.mismatches(wanted):
            raise self._unfit(step, "model and optimizer", problems)
        tree = paths.unflatten({path: wanted[path] for path in record.arrays})
        args = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
        )
        try:
            found = paths.flatten(self._manager.restore(step, args=args).state)
        except Exception as error:
            raise DamagedError(line(error)) from error
        expected = {path: fingerprint for path, (_, _, fingerprint) in record.arrays.items()}
        differing = integrity.differing(integrity.fingerprints(found), expected)
        if differing:
            raise DamagedError(f"checksums differ: {integrity.some(differing)}")
        if record.base is None:
            return found
        return found | self._bases.restore(record.base, {path: wanted[path] for path in record.base.arrays})

    def _unfit(self, step: int, what: str, problems: list[str]) -> CheckpointError:
        return CheckpointError(f"{self.folder}: checkpoint {step} does not fit this {what}: {integrity.some(problems)}")

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            create=not self._read_only,
            read_only=self._read_only,
            cleanup_tmp_directories=not self._read_only,
            preservation_policy=self,
            # Made in the background, a folder that cannot be made leaves threads waiting for it for five minutes.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        )
        try:
            manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot keep checkpoints here: {line(error)}") from error
        self._metrics = {step: self._metrics_on_disk(step) for step in manager.all_steps()}
        return manager

    def _metrics_on_disk(self, step: int) -> Mapping[str, Any]:
        try:
            return self.record(step).metrics
        except DamagedError:
            return {}  # `restore` is where damage is reported; here it only means: never the best.

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Orbax's preservation policy: the newest, and the best."""
        kept = self._kept([info.step for info in checkpoints])
        return [info.step in kept for info in checkpoints]

    def _kept(self, steps: list[int]) -> set[int]:
        scores = self._scores(steps)
        best = sorted(scores, key=lambda step: (-scores[step], step))[: self._best.keep] if self._best else []
        return {*sorted(steps)[-self._keep_last :], *best}

    def _scores(self, steps: list[int]) -> dict[int, float]:
        if self._best is None:
            return {}
        scores = {step: self._best.score(self._metrics.get(step, {})) for step in steps}
        return {step: score for step, score in scores.items() if score is not None}

    def _collect_bases(self) -> None:
        """Deletes frozen parameters that no checkpoint refers to, set aside or not; none, if a record is damaged."""
        files = self.folder.glob("*/record/metadata")
        try:
            bases = [Record.read(file).base for file in files]
        except DamagedError:
            return
        self._bases.collect({base.name for base in bases if base})

    def _failed(self, error: Exception) -> None:
        step, self._saving = self._saving, None
        reason = line(error)
        try:
            self._manager.close()
        except Exception:
            _LOG.debug("closing after a failed save", exc_info=True)
        self._manager = self._open()
        raise CheckpointError(
            f"{self.folder}: checkpoint {step} could not be saved: {reason}; {self._all()}; "
            "nothing else is lost: make room or mend the folder, and run the same command again to go on"
        ) from error

    def _all(self) -> str:
        steps = self.steps()
        return f"the folder holds {', '.join(map(str, steps)) or 'none'}"

    def _set_aside(self, steps: list[int]) -> None:
        if self._read_only:
            return
        if jax.process_index() == 0:
            for step in steps:
                (self.folder / str(step)).rename(_free_name(self.folder / f"{step}.damaged"))
        ocp.multihost.sync_global_processes("vitvlm: damaged checkpoints are set aside")
        self._manager.reload()


def _apart(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separates what goes into every checkpoint from the frozen parameters, which are saved once."""
    frozen = {path: leaf for path, leaf in arrays.items() if path.startswith(FROZEN)}
    return {path: leaf for path, leaf in arrays.items() if path not in frozen}, frozen


def _free_name(path: epath.Path) -> epath.Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _absolute(folder: epath.PathLike) -> epath.Path:
    """Orbax takes no relative paths; addresses such as gs://bucket/folder are absolute as they are."""
    path = epath.Path(folder)
    return path if "://" in os.fspath(path) else path.absolute()

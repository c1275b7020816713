"""Frozen parameters on disk: written once for a training, in a folder that is named by their content.

Each checkpoint refers to them by that name and by a fingerprint of every array. The folder appears whole or not at all,
and before any checkpoint that refers to it.
"""

import contextlib
import functools
import hashlib
import json
import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from vitvlm.core import paths
from vitvlm.core.placing import Stored
from vitvlm.training import integrity
from vitvlm.training.records import Base, CheckpointError, DamagedError, line
from vitvlm.training.stored import open_arrays

PREFIX = "frozen-"
_NAME = re.compile(PREFIX + "[0-9a-f]{16}")
REMEDY = (
    "put that folder back from a copy of the workdir, or begin another workdir with the weights that this one "
    "began with (config.init_from)"
)
_LOG = logging.getLogger(__name__)


class Bases:
    """The sets of frozen parameters in a folder of checkpoints; call it on every process."""

    def __init__(self, folder: epath.Path):
        self._folder = folder

    def save(self, arrays: Mapping[str, Any]) -> Base:
        """Writes the arrays, by path, unless they are there, and returns what a checkpoint keeps of them.

        Raises CheckpointError if they cannot be written.
        """
        marks = integrity.fingerprints(arrays)
        described = {path: (tuple(leaf.shape), str(leaf.dtype), marks[path]) for path, leaf in arrays.items()}
        base = Base(_name(described), described)
        if not (self._folder / base.name).exists():
            try:
                with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as checkpointer:
                    checkpointer.save(self._folder / base.name, args=ocp.args.PyTreeSave(paths.unflatten(arrays)))
            except Exception as error:  # Orbax and TensorStore raise many kinds; all mean that nothing was committed.
                raise CheckpointError(
                    f"{self._folder}: the frozen parameters, {base.name}, could not be saved: {line(error)}; "
                    "make room or mend the folder, and run the same command again"
                ) from error
        return base

    def restore(self, base: Base, target: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of a base, checked against their fingerprints.

        Args:
          target: `jax.ShapeDtypeStruct`s with shardings, by path.

        Raises CheckpointError if they are gone, or are not those that were saved.
        """
        folder = self._find(base)
        tree = paths.unflatten(target)
        args = ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
        try:
            with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as checkpointer:
                found = paths.flatten(checkpointer.restore(folder, args=args))
            expected = {path: mark for path, (_, _, mark) in base.arrays.items()}
            if differing := integrity.differing(integrity.fingerprints(found), expected):
                raise DamagedError(f"checksums differ: {integrity.some(differing)}")
        except Exception as error:
            raise self._changed(base, line(error)) from error
        return found

    def open(self, base: Base) -> dict[str, Stored]:
        """The arrays of a base as lazy ones, by path: see `stored.open_arrays`.

        Raises CheckpointError if they are gone, and when one is read that is not as it was saved.
        """
        return open_arrays(self._find(base), base.arrays, functools.partial(self._changed, base))

    def _find(self, base: Base) -> epath.Path:
        folder = self._folder / base.name
        if not folder.exists():
            raise CheckpointError(
                f"{folder}: the frozen parameters are gone: checkpoints hold only what trains; {REMEDY}"
            )
        return folder

    def _changed(self, base: Base, reason: str) -> CheckpointError:
        folder = self._folder / base.name
        return CheckpointError(f"{folder}: the frozen parameters are not those that were saved: {reason}; {REMEDY}")

    def collect(self, used: Collection[str]) -> None:
        """Deletes the bases that are not `used`; what a killed job left of one is cleared by Orbax."""
        if jax.process_index() == 0:
            for path in self._folder.iterdir():
                if _NAME.fullmatch(path.name) and path.name not in used:
                    _LOG.info("%s: no checkpoint refers to it; it is deleted", path)
                    path.rmtree()
        ocp.multihost.sync_global_processes("vitvlm: frozen parameters that nothing refers to are deleted")


def _name(described: Mapping[str, Any]) -> str:
    """Returns a name that follows from the arrays' paths, shapes, dtypes and fingerprints."""
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return PREFIX + hashlib.sha256(text.encode()).hexdigest()[:16]

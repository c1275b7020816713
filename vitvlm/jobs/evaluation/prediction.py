"""A task's prediction functions as evaluators call them: by name, compiled once, on the job's devices."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vitvlm.core import compiling
from vitvlm.core import config as config_lib
from vitvlm.jobs.evaluation import generating
from vitvlm.tasks import Task
from vitvlm.training import sharding


def functions(task: Task) -> Mapping[str, Any]:
    """The prediction functions of a task, and those that generation adds to a model which writes."""
    return {**generating.functions(task.model), **task.predict_fns}


class Predictor:
    """`predictor(name, variables, batch)` runs one prediction function on this process's part of a batch."""

    def __init__(self, task: Task, mesh: Mesh):
        self._functions = functions(task)
        self._mesh = mesh
        self._rows = sharding.batch_sharding(mesh)
        self._compiled = functools.cache(self._compile)

    def __call__(
        self, name: str, variables: Mapping[str, Any], batch: Mapping[str, np.ndarray], **how: Any
    ) -> dict[str, np.ndarray]:
        """Arrays `[B, ...]` for this process's examples.

        Args:
          how: keyword arguments of the function, each of its values compiled for itself.

        Raises ConfigError for a function that the task does not have, and names the nearest.
        """
        if name not in self._functions:
            raise config_lib.ConfigError(
                f"this task predicts nothing named {name!r}; {config_lib.suggest(name, self._functions)}"
            )
        outputs = self._compiled(name, **how)(variables, sharding.put_batch(batch, self._mesh))
        return {key: _local_rows(value) for key, value in outputs.items()}

    def _compile(self, name: str, **how: Any) -> Any:
        function = functools.partial(self._functions[name], **how) if how else self._functions[name]
        return jax.jit(
            sharding.keep_examples_split(function, self._mesh),
            out_shardings=self._rows,
            compiler_options=compiling.compiler_options(self._mesh.devices.ravel()),
        )


def _local_rows(array: jax.Array) -> np.ndarray:
    """The rows of a batch-sharded array that this process holds, each once, in order."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

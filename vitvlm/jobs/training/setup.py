"""Setup of a training from its config: its length, optimizer and state, around a model. Nothing here compiles."""

import dataclasses
import functools
from collections.abc import Mapping, Sized
from typing import Any

import jax
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vitvlm.core import config as config_lib
from vitvlm.core.durations import Clock
from vitvlm.jobs import fields
from vitvlm.jobs.setup import memory
from vitvlm.jobs.setup.data import DataSetup
from vitvlm.jobs.setup.model import ModelSetup, placed
from vitvlm.training import adapters, optimizer, sharding
from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.state import TrainState
from vitvlm.training.workdir import CHECKPOINTS

# The optimizer's state has the same shapes at any rate, so a plan needs no length of the training.
_ANY_RATE = {"name": "constant", "peak": 1.0}, Clock(1, None, total_steps=1)


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
    """A model's training: how long, by which optimizer, from which state.

    Attributes:
      model: what is trained.
      section: the config's fields of the training.
      checkpoint, log: two sections of these.
      examples: how many an epoch has, or what has that length; None for a plan without the data.
    """

    model: ModelSetup
    section: fields.Training
    checkpoint: fields.Checkpoint
    log: fields.Log
    examples: int | Sized | None = None

    @classmethod
    def of(
        cls, config: ConfigDict | Mapping[str, Any], model: ModelSetup, examples: int | Sized | None = None
    ) -> "TrainingSetup":
        """Checks the fields of `fields.Training`, and the shapes and shardings of the state.

        Raises ConfigError (or RuleError) that names the field.
        """
        own = fields.read(fields.Training, config_lib.plain(config))
        checkpoint = config_lib.call(fields.Checkpoint, own.checkpoint, "config.checkpoint")
        log = config_lib.call(fields.Log, own.log, "config.log")
        if own.batch_size % own.accumulate:
            raise config_lib.ConfigError(
                f"config.accumulate: a batch of {own.batch_size} does not divide into {own.accumulate} micro-batches"
            )
        found = cls(model, own, checkpoint, log, examples)
        _ = found.state_shardings
        return found

    @functools.cached_property
    def clock(self) -> Clock:
        """Turns durations into steps; `clock.total_steps` is the length of the training.

        Raises ConfigError for a training of no step, and for one of epochs without the data.
        """
        clock = Clock(self.section.batch_size, self.examples)
        clock = dataclasses.replace(clock, total_steps=clock.steps(self.section.total, "config.total"))
        if not clock.total_steps:
            raise config_lib.ConfigError(
                f"config.total: {self.section.total!r} is less than one step at batch size {self.section.batch_size} "
                f"and {self.examples}"
            )
        return clock

    def optimizer(self) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The gradient transformation of the model's parameters that train, and the learning rate by step."""
        return self._optimizer(self.section.schedule, self.clock)

    def _optimizer(self, schedule: fields.Section, clock: Clock) -> tuple[optax.GradientTransformation, optax.Schedule]:
        params = self.model.parameter_shapes
        return optimizer.build(self.section.optimizer, schedule, params, clock, self.model.roles())

    def init_state(self, seed: jax.Array) -> TrainState:
        """The state before the first step; pure."""
        init_rng, train_rng = jax.random.split(jax.random.key(seed))
        return self.make_state(self.model.init_variables(init_rng), train_rng)

    def make_state(self, variables: Mapping[str, Any], rng: jax.Array) -> TrainState:
        """The state before the first step, from the model's variables; pure."""
        tx, _ = self._optimizer(*_ANY_RATE)
        params, frozen = self.model.split(variables["params"], rng)
        averaged = self.section.ema_decay is not None
        return adapters.begun(TrainState.create({**variables, "params": params}, tx, rng, ema=averaged, frozen=frozen))

    @functools.cached_property
    def state_shapes(self) -> TrainState:
        """Shapes and dtypes of the whole train state."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(self.make_state, self.model.variable_shapes, key)

    @functools.cached_property
    def state_shardings(self) -> Any:
        """The place of each array of the state on the mesh."""
        return sharding.state_shardings(self.state_shapes, self.model.shard_by, self.model.mesh)

    @property
    def target(self) -> TrainState:
        """Shapes, dtypes and shardings of the train state: what a checkpoint is restored onto."""
        return placed(self.state_shapes, self.state_shardings)


@dataclasses.dataclass(frozen=True)
class Setup:
    """A checked config and the three parts that it describes.

    Attributes:
      config: resolved, as plain dictionaries: what a workdir keeps.
      data: the data, the training split opened under the classes of the head, if there is one.
      model, training: see their classes.
      evals: the config's sections of evaluations.
    """

    config: dict[str, Any]
    data: DataSetup
    model: ModelSetup
    training: TrainingSetup
    evals: Mapping[str, fields.Section]


def setup(config: ConfigDict | Mapping[str, Any], mesh: Mesh | None = None) -> Setup:
    """Checks every field of a config, and that its state and a batch can be held, and builds what it names.

    Args:
      mesh: the devices; by default those that `config.mesh` makes of all there are.

    Raises ConfigError (or RuleError) that names the field, and DataError if the data set is not there.
    """
    plain = config_lib.plain(config)
    data = DataSetup.of(plain).open()
    model = ModelSetup.of(plain, data, mesh)
    data = data.under(model.head)
    training = TrainingSetup.of(plain, model, data.source)
    what = f"its {model.parameter_count:,} parameters, with what trains them,"
    memory.check_state(training.state_shapes, training.state_shardings, model.section, what)
    memory.check_batch(model.example_batch, data.batch_size, "config.batch_size")
    _ = training.optimizer()
    if data.section.class_names:
        plain["data"] = {**plain["data"], "class_names": data.train.class_names}
    plain["model"] = model.section
    if model.head is not None:
        plain["classes"] = list(model.head.names)
    return Setup(plain, data, model, training, fields.read(fields.Evaluations, plain).evals)


def load_state(training: TrainingSetup, folder: epath.PathLike, step: int | None = None) -> TrainState:
    """The train state of a checkpoint (the latest by default) in a workdir, checked, on the training's mesh.

    Raises CheckpointError if there is no whole checkpoint, or it does not fit the training.
    """
    with Checkpoints(epath.Path(folder) / CHECKPOINTS, read_only=True) as checkpoints:
        return checkpoints.restore(training.target, step).state

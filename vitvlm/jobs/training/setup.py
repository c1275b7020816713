"""Setup of a job's parts from its config: data, task, mesh, optimizer and state. Nothing here compiles or trains."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vitvlm import models
from vitvlm.core import config as config_lib
from vitvlm.core import flops
from vitvlm.core.durations import Clock
from vitvlm.core.paths import flatten
from vitvlm.data import operations, sources
from vitvlm.data.batches import zero_batch
from vitvlm.data.errors import DataError
from vitvlm.data.shapes import batch_shapes
from vitvlm.data.texts import check_texts
from vitvlm.jobs import fields
from vitvlm.jobs.classes import Head
from vitvlm.jobs.training import class_weights, teachers
from vitvlm.nn.roles import Role, roles_of
from vitvlm.tasks import TASKS, Task
from vitvlm.training import freezing, optimizer, sharding, storage
from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Setup:
    """A checked config and what it describes.

    Attributes:
      config: the resolved config as plain dictionaries.
      job, data, checkpoint, log: its sections.
      train_split: the training examples and their operations.
      source: the opened training split, under the classes of the head if there is one; None `without_data`.
      head: the classes of the model's logits, by name; None for a model without a head.
      task: the model with its objective.
      mesh: the devices.
      clock: turns durations into steps; `clock.total_steps` is the length of the training.
    """

    config: dict[str, Any]
    job: fields.Job
    data: fields.Data
    checkpoint: fields.Checkpoint
    log: fields.Log
    train_split: fields.Split
    source: sources.Source | None
    head: Head | None
    task: Task
    mesh: sharding.AnyMesh
    clock: Clock

    @functools.cached_property
    def example_batch(self) -> dict[str, np.ndarray]:
        """One row of padding, shaped as the training data that devices see."""
        if self.source is None:
            labels = self.task.model.num_classes if self.task.labelled else None
            return batch_shapes(self.train_split.ops, 1, num_classes=labels)
        return sharding.numbers(zero_batch(self.source, self.train_split.ops, 1))

    def optimizer(self, params: Any) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The gradient transformation of the model's parameters that train, and the learning rate by step.

        `params` are all of them; shapes suffice.
        """
        return optimizer.build(self.job.optimizer, self.job.schedule, params, self.clock, self.roles(params))

    def roles(self, params: Any) -> dict[str, Role]:
        """Returns the role of each parameter by its path. Raises ConfigError for one without a role."""
        return roles_of(self.task.model, flatten(params))

    def init_variables(self, rng: jax.Array) -> dict[str, Any]:
        """Fresh variables; pure, so that it can be traced for shapes."""
        return self.task.init(rng, self.example_batch)

    def init_state(self, seed: jax.Array) -> TrainState:
        """The state before the first step; pure."""
        init_rng, train_rng = jax.random.split(jax.random.key(seed))
        return self.make_state(self.init_variables(init_rng), train_rng)

    def make_state(self, variables: Mapping[str, Any], rng: jax.Array) -> TrainState:
        """The state before the first step, from the model's variables; pure."""
        tx, _ = self.optimizer(variables["params"])
        trainable = optimizer.trainable(self.job.optimizer, variables["params"])
        params, frozen = freezing.split(variables["params"], trainable)
        frozen = storage.store(frozen, self.job.frozen_dtype)
        averaged = self.job.ema_decay is not None
        return TrainState.create({**variables, "params": params}, tx, rng, ema=averaged, frozen=frozen)

    @functools.cached_property
    def variable_shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of the model's variables, trained and frozen, as `init` makes them.

        Raises ConfigError if the model does not fit its data.
        """
        try:
            return jax.eval_shape(lambda: self.init_variables(jax.random.key(0)))
        except (config_lib.ConfigError, DataError):
            raise
        except ValueError as error:
            raise config_lib.ConfigError(f"config.model on {self.train_split.source}: {error}") from error

    @functools.cached_property
    def state_shapes(self) -> TrainState:
        """Shapes and dtypes of the whole train state. Raises ConfigError if the model does not fit its data."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(self.make_state, self.variable_shapes, key)

    @functools.cached_property
    def forward_flops(self) -> int:
        """Analytic FLOPs of the training loss on one example, forward only; the mean, if steps draw from several."""
        variables = {**self.state_shapes.variables(), **self.task.constants}
        key = jax.eval_shape(lambda: jax.random.key(0))
        counts = [
            flops.count(
                lambda variables, rng, loss=loss: loss(variables, self.example_batch, rng, True)[0], variables, key
            )
            for loss in self.task.losses
        ]
        return round(sum(counts) / len(counts))

    @functools.cached_property
    def state_shardings(self) -> Any:
        return sharding.state_shardings(self.state_shapes, self.job.sharding, self.mesh)


def setup(
    config: ConfigDict | Mapping[str, Any],
    training: bool = True,
    task: Task | None = None,
    head: Head | None = None,
    mesh: Mesh | None = None,
) -> Setup:
    """Checks every field of a config and builds what it names.

    Args:
      training: False if it will only be evaluated or read: what training alone needs, a teacher, is left out, and
        data.train need not have the head's classes.
      task: a task to use instead of the one in config.model and config.task, with its `head`, if any.
      mesh: the devices; by default those that `config.mesh` makes of all there are.

    Raises ConfigError (or RuleError) that names the field, and DataError if the data set is not there.
    """
    plain = config_lib.plain(config)
    job = config_lib.call(fields.Job, plain, "config")
    data = config_lib.call(fields.Data, job.data, "config.data")
    train_split = data.split(data.train, "config.data.train")
    eval_split = data.split(data.eval, "config.data.eval")
    operations.parse(train_split.ops)
    mesh = sharding.make_mesh(job.mesh) if mesh is None else mesh
    source = open_split(train_split)
    check_texts(source, operations.parse(train_split.ops), "config.data.train")
    if data.class_names:
        plain = {**plain, "data": {**plain["data"], "class_names": train_split.class_names}}
        check_renames(train_split, source, open_split(eval_split))
    if task is None:
        if training and TASKS.get(take_name(job.task, "config.task")[0]).labelled:
            sources.check_classes(source, f"config.task: {job.task['name']}")
        names = source.label_names if job.classes is None else tuple(job.classes)
        if job.model.get("num_classes") == "data":
            if training or job.classes is None:
                sources.check_classes(source, "config.model.num_classes: 'data'")
            job = dataclasses.replace(job, model={**job.model, "num_classes": len(names)})
        task = build_task(job, names, training, mesh, source)
        if count := task.model.num_classes:
            if training:
                sources.check_classes(source, "config.model.num_classes")
            check_classes(count, names, source)
            given = "config.classes, which a workdir keeps" if job.classes else source.name
            head = Head(names, count, f"the training's classes, {given}")
            job = dataclasses.replace(job, classes=names)
            if training:
                source = head.score(source).source
        elif job.classes is not None:
            raise config_lib.ConfigError("config.classes: names of classes, and the model has no head for them")
        plain = {**plain, "model": job.model} | ({} if job.classes is None else {"classes": list(job.classes)})
    clock = Clock(job.batch_size, source)
    clock = dataclasses.replace(clock, total_steps=clock.steps(job.total, "config.total"))
    if not clock.total_steps:
        raise config_lib.ConfigError(
            f"config.total: {job.total!r} is less than one step at batch size {job.batch_size} and {source}"
        )
    checked = Setup(
        config=plain,
        job=job,
        data=data,
        checkpoint=config_lib.call(fields.Checkpoint, job.checkpoint, "config.checkpoint"),
        log=config_lib.call(fields.Log, job.log, "config.log"),
        train_split=train_split,
        source=source,
        head=head,
        task=task,
        mesh=mesh,
        clock=clock,
    )
    _ = checked.state_shapes, checked.state_shardings
    return checked


def without_data(config: ConfigDict | Mapping[str, Any], mesh: sharding.AnyMesh | None = None) -> Setup:
    """Sets up the model, its task and the shapes of its state from a config alone, without data, teacher or weights.

    Shapes of batches follow from the training operations. The number of classes is `config.model.num_classes`, or that
    of `config.classes` if it is "data". `mesh` may be abstract: a plan for 256 chips needs none of them. The length of
    a training may count epochs of data that are not here, so the schedule is left out: there is no `source`, and
    `clock` is of one step.

    Raises ConfigError that names the field.
    """
    plain = config_lib.plain(config)
    job = config_lib.call(fields.Job, plain, "config")
    data = config_lib.call(fields.Data, job.data, "config.data")
    if job.model.get("num_classes") == "data":
        if job.classes is None:
            raise config_lib.ConfigError(
                "config.model.num_classes: 'data' counts the classes of the data, which is not opened here: give a "
                "number, or their names as config.classes"
            )
        job = dataclasses.replace(job, model={**job.model, "num_classes": len(job.classes)})
    job = dataclasses.replace(job, schedule={"name": "constant", "peak": 1.0})
    mesh = sharding.make_mesh(job.mesh) if mesh is None else mesh
    found = Setup(
        config={**plain, "model": job.model},
        job=job,
        data=data,
        checkpoint=config_lib.call(fields.Checkpoint, job.checkpoint, "config.checkpoint"),
        log=config_lib.call(fields.Log, job.log, "config.log"),
        train_split=data.split(data.train, "config.data.train"),
        source=None,
        head=None,
        task=build_task(job, job.classes or (), training=False, mesh=mesh),
        mesh=mesh,
        clock=Clock(job.batch_size, 1, total_steps=1),
    )
    _ = found.state_shapes, found.state_shardings
    return found


def restore_target(job: Setup) -> TrainState:
    """Shapes, dtypes and shardings of the job's train state: what a checkpoint is restored onto."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        job.state_shapes,
        job.state_shardings,
    )


def load_state(job: Setup, folder: epath.PathLike, step: int | None = None) -> TrainState:
    """The train state of a checkpoint (the latest by default) in a workdir, checked, on the job's mesh.

    Raises CheckpointError if there is no whole checkpoint, or it does not fit the job.
    """
    with Checkpoints(epath.Path(folder) / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(restore_target(job), step).state


def build_task(
    job: fields.Job,
    names: Sequence[str],
    training: bool = True,
    mesh: sharding.AnyMesh | None = None,
    source: sources.Source | None = None,
) -> Task:
    """The model by name with the task's objective around it; for training, with its teacher and its class weights.


    `names` are those of the job's classes, and `source` is what weights are balanced for. A task that declares
    `mesh` among its `needs` is given it, and `axes`: those over which batches are split.
    """
    model_name, model_fields = take_name(job.model, "config.model")
    task_name, task_fields = take_name(job.task, "config.task")
    model = models.build(model_name, **model_fields)
    if task_fields.get("distillation") is not None:
        described = task_fields["distillation"]
        task_fields["distillation"] = teachers.build(described, job.data, names, mesh) if training else None
    if (weights := task_fields.get("class_weights")) is not None:
        task_fields["class_weights"] = class_weights.resolve(weights, names, source) if training and source else None
    given: dict[str, Any] = {"model": model}
    if mesh is not None and "mesh" in TASKS.get(task_name).needs:
        given |= {"mesh": mesh, "axes": tuple(axis for axis in sharding.BATCH_AXES if axis in mesh.shape)}
    return TASKS.build(task_name, task_fields, "config.task", **given)


def take_name(section: fields.Section, where: str) -> tuple[str, dict[str, Any]]:
    """A section's `name`, and its other fields."""
    if "name" not in section:
        raise config_lib.ConfigError(f"{where}: missing field name")
    return section["name"], {field: value for field, value in section.items() if field != "name"}


def open_split(split: fields.Split) -> sources.Source:
    """The source of a split, its classes called as the split's `class_names` say."""
    source = sources.open(split.source, split.split, labels_fraction=split.labels_fraction, labelling=split.labelling)
    return sources.renamed(source, split.class_names)


def check_renames(split: fields.Split, *opened: sources.Source) -> None:
    """Raises ConfigError for a class of `class_names` that none of the sources has."""
    own = {name for source in opened for name in (*source.renames, *source.label_names)}
    if unknown := [name for name in split.class_names if name not in own]:
        looked = " nor ".join(source.name for source in opened)
        raise config_lib.ConfigError(
            f"config.data.class_names: no class {unknown[0]!r} in {looked}; {config_lib.suggest(unknown[0], own)} "
            "(classes of an evaluator's own data go into that data section)"
        )


def check_classes(count: int, names: Sequence[str], source: sources.Source) -> None:
    """Raises ConfigError if the model's head has not as many classes as the job."""
    if count != len(names):
        whose = f"{source.name} has" if tuple(names) == source.label_names else "config.classes names"
        raise config_lib.ConfigError(
            f"config.model.num_classes: {count}, but {whose} {len(names)} classes; set it to {len(names)}"
        )

"""A job's model from its config: the task around it, and the shapes and places of its variables, without any data."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vitvlm import models
from vitvlm.core import config as config_lib
from vitvlm.core import flops
from vitvlm.core.paths import count_values, flatten
from vitvlm.data import sources
from vitvlm.data.errors import DataError
from vitvlm.jobs import fields
from vitvlm.jobs.setup import needs
from vitvlm.jobs.setup.classes import Head
from vitvlm.jobs.setup.data import DataSetup
from vitvlm.nn.lora import Lora, attach
from vitvlm.nn.roles import Role, roles_of
from vitvlm.tasks import TASKS, Task
from vitvlm.training import adapters, freezing, heads, optimizer, sharding, storage

Tree = Any


@dataclasses.dataclass(frozen=True)
class ModelSetup:
    """A model with its task on a mesh: what can be planned, restored and evaluated without a training.

    Attributes:
      task: the model with its objective.
      head: the classes of the model's logits, by name; None without a head, or where its classes have no names.
      mesh: the devices; a plan takes an abstract mesh, of devices that are not here.
      example_batch: one row of zeros, shaped as the training data that devices see.
      section: the config's `model`, its number of classes resolved; empty for a model that came from elsewhere.
      shard_by: a preset, or rules over the paths of parameters; see `training.sharding`.
      freeze: rules over the paths of parameters: which do not train; None if all do.
      frozen_dtype: how those are stored; see `training.storage.store`.
      lora: which matrices have low-rank adapters; see `training.adapters.plan`. With such, by default, all else is
        frozen.
    """

    task: Task
    head: Head | None
    mesh: sharding.AnyMesh
    example_batch: Mapping[str, np.ndarray]
    section: fields.Section = dataclasses.field(default_factory=dict)
    shard_by: Any = "replicated"
    freeze: Any = None
    frozen_dtype: Any = None
    lora: fields.Section | None = None

    @classmethod
    def of(
        cls,
        config: ConfigDict | Mapping[str, Any],
        data: DataSetup | None = None,
        mesh: sharding.AnyMesh | None = None,
    ) -> "ModelSetup":
        """Builds the model and the task that a config names.

        Args:
          data: the job's data. Opened, they are what the model is to be trained on: the classes are theirs, and what
            the loss alone needs, such as a teacher, is made. By default the config's own, which are not opened: then
            the number of classes is `config.model.num_classes`, or that of `config.classes` if it is "data".
          mesh: the devices; by default those that `config.mesh` makes of all there are.

        Raises ConfigError (or RuleError) that names the field, and DataError for data without the labels it needs.
        """
        plain = config_lib.plain(config)
        own = fields.read(fields.Model, plain)
        data = DataSetup.of(plain) if data is None else data
        mesh = sharding.make_mesh(own.mesh) if mesh is None else mesh
        kind, _ = take_name(own.task, "config.task")
        if TASKS.get(kind).labelled and data.source is not None:
            sources.check_classes(data.source, f"config.task: {kind}")
        names = _class_names(own, data.source)
        section = own.model
        if section.get("num_classes") == "data":
            section = {**section, "num_classes": _count(names, data.source)}
        task = build_task(section, own.task, needs.Known(mesh, names or (), data))
        head = _head(task.model.num_classes, own, names, data.source)
        labels = task.model.num_classes if task.labelled else None
        return cls(
            task=task,
            head=head,
            mesh=mesh,
            example_batch=data.under(head).example_batch(labels),
            section=section,
            shard_by=own.sharding,
            freeze=own.optimizer.get("freeze"),
            frozen_dtype=own.frozen_dtype,
            lora=own.lora,
        ).checked(data)

    @classmethod
    def around(
        cls, task: Task, head: Head | None, config: ConfigDict | Mapping[str, Any], data: DataSetup
    ) -> "ModelSetup":
        """Sets up a task whose model is there already, such as that of published weights, on `config.mesh`."""
        own = fields.read(fields.Devices, config_lib.plain(config))
        labels = task.model.num_classes if task.labelled else None
        batch = data.example_batch(labels)
        return cls(task, head, sharding.make_mesh(own.mesh), batch, shard_by=own.sharding).checked(data)

    def checked(self, data: DataSetup) -> "ModelSetup":
        """Returns this setup. Raises ConfigError if the model does not fit the data, or the mesh."""
        try:
            _ = self.variable_shapes
        except (config_lib.ConfigError, DataError):
            raise
        except ValueError as error:
            raise config_lib.ConfigError(f"config.model on {data.train.source}: {error}") from error
        if any(size > 1 for axis, size in self.mesh.shape.items() if axis not in sharding.BATCH_AXES):
            heads.check_heads(heads.heads_of(self.init_variables, jax.random.key(0)), self.shardings["params"])
        return self

    def roles(self) -> dict[str, Role]:
        """Returns the role of each parameter by its path. Raises ConfigError for one without a role."""
        own = roles_of(self.task.model, flatten(self.variable_shapes["params"]))
        return own | adapters.roles_of(self.adapters, own)

    @functools.cached_property
    def adapters(self) -> dict[str, Lora]:
        """The low-rank adapter of each matrix that has one, by path. Raises ConfigError and RuleError."""
        params = self.variable_shapes["params"]
        return adapters.plan(self.lora, params, roles_of(self.task.model, flatten(params)))

    def init_variables(self, rng: jax.Array) -> dict[str, Any]:
        """Fresh variables; pure, so that it can be traced for shapes."""
        return self.task.init(rng, self.example_batch)

    @functools.cached_property
    def variable_shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of the model's variables, trained and frozen, as `init` makes them."""
        return jax.eval_shape(lambda: self.init_variables(jax.random.key(0)))

    @property
    def parameter_count(self) -> int:
        """Number of the model's parameters, trained and frozen."""
        return count_values(self.variable_shapes["params"])

    @functools.cached_property
    def parameter_shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of the model's parameters and of its adapters', as they are made."""
        own = self.variable_shapes["params"]
        return own | jax.eval_shape(lambda: adapters.fresh(self.adapters, own, jax.random.key(0)))

    def split(self, params: Tree, rng: jax.Array) -> tuple[Tree, Tree]:
        """Returns the parameters that train, new adapters among them, and the frozen ones as they are stored; pure."""
        params = params | adapters.fresh(self.adapters, params, rng)
        trained, frozen = freezing.split(params, optimizer.trainable({"freeze": self.freeze}, params))
        adapters.check_frozen(self.adapters, trained)
        return trained, storage.store(frozen, self.frozen_dtype) | adapters.fixed(self.adapters, params)

    @functools.cached_property
    def stored_shapes(self) -> dict[str, Any]:
        """Shapes and dtypes of the variables as a training holds them, frozen parameters as `frozen_dtype` says."""

        def stored(variables: Mapping[str, Any]) -> dict[str, Any]:
            return {**variables, "params": freezing.join(*self.split(variables["params"], jax.random.key(0)))}

        return jax.eval_shape(stored, self.variable_shapes)

    @functools.cached_property
    def shardings(self) -> dict[str, Any]:
        """The place of each of the stored variables on the mesh."""
        return sharding.variables_by(self.shard_by, self.mesh)(self.stored_shapes)

    @property
    def target(self) -> dict[str, Any]:
        """The stored shapes with their shardings: what a checkpoint's variables are restored onto."""
        return placed(self.stored_shapes, self.shardings)

    @functools.cached_property
    def forward_flops(self) -> int:
        """Analytic FLOPs of the training loss on one example, forward only; the mean, if steps draw from several."""
        params = jax.eval_shape(attach, self.stored_shapes["params"])
        variables = {**self.stored_shapes, "params": params, **self.task.constants}
        key = jax.eval_shape(lambda: jax.random.key(0))
        counts = [
            flops.count(
                lambda variables, rng, loss=loss: loss(variables, self.example_batch, rng, True)[0], variables, key
            )
            for loss in self.task.on_one_device().losses
        ]
        return round(sum(counts) / len(counts))


def placed(shapes: Tree, shardings: Tree) -> Tree:
    """Adds the sharding of each array to its shape."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
    )


def build_task(model: fields.Section, task: fields.Section, known: needs.Known) -> Task:
    """The model by name with the task's objective around it, and what the task needs of the job."""
    model_name, model_fields = take_name(model, "config.model")
    task_name, task_fields = take_name(task, "config.task")
    built = models.build(model_name, **model_fields)
    own, made = needs.resolve(TASKS.get(task_name).needs, task_fields, known)
    return TASKS.build(task_name, own, "config.task", model=built, **made)


def take_name(section: fields.Section, where: str) -> tuple[str, dict[str, Any]]:
    """A section's `name`, and its other fields."""
    if "name" not in section:
        raise config_lib.ConfigError(f"{where}: missing field name")
    return section["name"], {field: value for field, value in section.items() if field != "name"}


def _class_names(own: fields.Model, source: sources.Source | None) -> tuple[str, ...] | None:
    """The classes of the job: the config's, or those of its data; None if neither says."""
    if own.classes is not None:
        return tuple(own.classes)
    return None if source is None else tuple(source.label_names)


def _count(names: Sequence[str] | None, source: sources.Source | None) -> int:
    where = "config.model.num_classes: 'data'"
    if source is not None:
        sources.check_classes(source, where)
    if names is None:
        raise config_lib.ConfigError(
            f"{where} counts the classes of the data, which is not opened here: give a number, or their names as "
            "config.classes"
        )
    return len(names)


def _head(count: int, own: fields.Model, names: tuple[str, ...] | None, source: sources.Source | None) -> Head | None:
    """The head's classes by name. Raises ConfigError if it has not as many as the job."""
    if not count:
        if own.classes is not None:
            raise config_lib.ConfigError("config.classes: names of classes, and the model has no head for them")
        return None
    if source is not None:
        sources.check_classes(source, "config.model.num_classes")
    if names is None:
        return None
    if count != len(names):
        whose = "config.classes names" if own.classes is not None else f"{source.name} has"
        raise config_lib.ConfigError(
            f"config.model.num_classes: {count}, but {whose} {len(names)} classes; set it to {len(names)}"
        )
    given = "config.classes, which a workdir keeps" if own.classes else source.name
    return Head(names, count, f"the training's classes, {given}")

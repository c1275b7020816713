"""Fine-tuning starts here: parameters of another training, or of published weights, by rules over paths.

Other collections, such as batch statistics, follow the same rules: a norm's "stem/norm/mean" lies beside its
"stem/norm/scale". Those that are the task's own (`Task.own_collections`) begin afresh.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from vitvlm import pretrained
from vitvlm.core import config as config_lib
from vitvlm.core.paths import flatten, map_with_path, unflatten
from vitvlm.jobs import fields
from vitvlm.jobs.setup import classes
from vitvlm.jobs.setup.classes import Head
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.nn import lora
from vitvlm.nn.roles import Role, roles_of
from vitvlm.training import freezing, partial, storage
from vitvlm.training.state import TrainState
from vitvlm.training.workdir import CHECKPOINTS, latest_stage


def apply(model: ModelSetup, section: fields.Section | None, state: TrainState, donate: bool = False) -> TrainState:
    """The fresh state of a model with the parameters that `config.init_from` names; the state itself if it names none.

    Each is read from its file straight into the parts that the devices hold.

    Several sources by name are applied in turn: what a later one's rules leave as it is keeps the earlier one's values.

    Args:
      section: `config.init_from`.
      donate: delete each fresh array when another takes its place, so that no device holds both.

    Raises DataError for classes that a head which is taken does not know, ConfigError if there is no such checkpoint or
    for the reasons of `training.partial.restore`.
    """
    if section is None:
        return state
    own = {name: tree for name, tree in freezing.join(state.params, state.frozen).items() if name != lora.ROOT}
    of_model = {name: tree for name, tree in state.collections.items() if name not in model.task.own_collections}
    taken, roles = merged({"params": own, **of_model}), model.roles()
    for where, each in _sections(section):
        wanted = config_lib.call(fields.InitFrom, each, where)
        source = _with_our_classes(model.head, wanted, where, taken, roles, _open(wanted, where))
        try:
            taken = partial.restore(taken, source, wanted.rules, roles, f"{where}.rules", wanted.ignore, donate)
        except pretrained.WeightsError as error:
            raise config_lib.ConfigError(f"{where}.path: {error}") from error
    values = flatten(taken, storage.is_quantized)

    def filled(tree: Any) -> Any:
        return map_with_path(lambda path, leaf: values.get(path, leaf), tree, is_leaf=storage.is_quantized)

    params, frozen = filled(state.params), filled(state.frozen)
    collections = {**state.collections, **{name: filled(tree) for name, tree in of_model.items()}}
    # The average starts where the parameters start, in arrays of its own: the step donates both.
    ema = None if state.ema is None else jax.tree.map(lambda mean, leaf: jnp.array(leaf, mean.dtype), state.ema, params)
    return state.replace(params=params, collections=collections, ema=ema, frozen=frozen)


def describe(model: ModelSetup, section: fields.Section | None) -> str:
    """Says where a new training begins: the sources of its parameters, and which are fresh besides."""
    if section is None:
        return "from the start"
    shapes = {name: tree for name, tree in model.variable_shapes.items() if name not in model.task.own_collections}
    paths, fresh, sources = list(flatten(merged(shapes))), None, []
    for where, each in _sections(section):
        wanted = config_lib.call(fields.InitFrom, each, where)
        left = set(paths) - partial.source_paths(paths, wanted.rules, f"{where}.rules").keys()
        fresh = left if fresh is None else fresh & left
        step = "" if wanted.step is None else f" at checkpoint {wanted.step}"
        sources.append(f"{wanted.path}{step}{' (averaged)' * wanted.ema}")
    new = sorted({path.split("/")[0] for path in fresh or ()})
    besides = f"fresh are {len(fresh)} of {len(paths)} arrays ({', '.join(new)})" if fresh else "none is fresh"
    return f"from the parameters of {' and '.join(sources)}; {besides}"


def _sections(section: fields.Section) -> list[tuple[str, fields.Section]]:
    """Returns each source with its name for error messages: one source, or several by name."""
    if section and all(isinstance(value, Mapping) for value in section.values()):
        return [(f"config.init_from.{name}", source) for name, source in section.items()]
    return [("config.init_from", section)]


def merged(variables: Mapping[str, Any]) -> dict[str, Any]:
    """All collections as one tree."""
    return unflatten(
        {path: leaf for tree in variables.values() for path, leaf in flatten(tree, storage.is_quantized).items()}
    )


def _with_our_classes(
    head: Head | None,
    wanted: fields.InitFrom,
    where: str,
    target: Mapping[str, Any],
    roles: Mapping[str, Role],
    loaded: pretrained.Pretrained,
) -> dict[str, Any]:
    """All collections of the source as one tree, lazy; a head that the rules take has the job's classes, by name.

    The log says what is not plain in that. Raises DataError for classes that the source's head does not know.
    """
    source = flatten(merged(loaded.variables))
    count = loaded.model.num_classes
    if head is None or not count:
        return unflatten(source)
    paths = partial.source_paths(flatten(target, storage.is_quantized), wanted.rules, f"{where}.rules")
    heads = _heads(roles_of(loaded.model, flatten(loaded.variables["params"])))
    heads &= {paths[path] for path in _heads(roles) if path in paths}  # their last axis is the classes
    if heads & source.keys():
        renames = classes.renames(wanted.class_names, head.names, f"{where}.class_names")
        names = [renames.get(name, name) for name in head.names]
        remedy = (
            "leave the head fresh by a first rule ('.*head/.*', None) and ignore=('.*head/.*',), or say which class is "
            f"which by {where}.class_names={{class: class of the source}}"
        )
        places, note = classes.find(names, loaded.class_names, count, where, f"{wanted.path}'s classes", remedy)
        if note or len(places) < count:
            logging.warning("%s: %d of the head's %d classes are taken; %s", where, len(places), count, note)
        source |= {path: np.asarray(source[path])[..., places] for path in heads & source.keys()}
    return unflatten(source)


def _heads(roles: Mapping[str, Role]) -> set[str]:
    return {path for path, role in roles.items() if role.part == "head"}


def _open(wanted: fields.InitFrom, where: str) -> pretrained.Pretrained:
    """A workdir's checkpoint, or weights from elsewhere."""
    own: dict[str, Any] = {"step": wanted.step, "ema": wanted.ema}
    if not (latest_stage(wanted.path) / CHECKPOINTS).is_dir():
        if wanted.step is not None or wanted.ema:
            raise config_lib.ConfigError(f"{where}: {wanted.path} is not a workdir: it has no step and no ema")
        own = {}
    try:
        return pretrained.open(wanted.path, **own, **wanted.fields)
    except pretrained.WeightsError as error:
        raise config_lib.ConfigError(f"{where}.path: {error}") from error

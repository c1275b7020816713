"""Optimizers from a config section: which parameters learn, by which method, at which rate, by rules over paths.

One update, in this order: the gradients of the trainable parameters are clipped by their global norm; the method turns
them into an update, with its weight decay; each update is multiplied by its parameter's own factor (`lr_rules`,
`layer_decay`) and by the schedule's learning rate, and subtracted.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, Float

from vitvlm.core import config, rules
from vitvlm.core.durations import Clock
from vitvlm.core.limits import NotNegative
from vitvlm.core.paths import Tree, flatten, map_with_path
from vitvlm.nn import lora
from vitvlm.nn.roles import Role
from vitvlm.training import layers, methods, schedules

Factor = float | Float[np.ndarray, "depth"]


@dataclasses.dataclass(frozen=True)
class Common:
    """Fields that every optimizer takes besides its own. Rules are `(regex, value)` pairs, see core.rules.

    Attributes:
      clip_norm: largest global norm of the gradients of all trainable parameters.
      weight_decay: strength; multiplied by the learning rate, as PyTorch does.
      weight_decay_rules: factor on `weight_decay` per path. By default matrices decay (`nn.roles`), and nothing else
        does: no bias, norm, layer scale, token, position or register.
      lr_rules: factor on the learning rate per path, above 0.
      freeze: True or False per path of the model's own; adapters train, and with them, by default, nothing else.
      layer_decay: learning-rate factor from one layer to the layer below it, see `layers.depth_factors`.
    """

    clip_norm: float | None = None
    weight_decay: NotNegative = 0.0
    weight_decay_rules: rules.Rules | None = None
    lr_rules: rules.Rules | None = None
    freeze: rules.Rules | None = None
    layer_decay: float | None = None


def build(
    fields: Mapping[str, Any],
    schedule: Mapping[str, Any],
    params: Tree,
    clock: Clock,
    roles: Mapping[str, Role],
    where: str = "config.optimizer",
    schedule_where: str = "config.schedule",
) -> tuple[optax.GradientTransformation, schedules.Schedule]:
    """The gradient transformation of the parameters that train, and its learning rate as a function of the step.

    Args:
      fields: `name` (see `methods`), that method's hyper-parameters, and those of `Common`.
      schedule: see `schedules.build`.
      params: all the model's parameters, as arrays or `jax.ShapeDtypeStruct`s: a layer's depth counts frozen ones too.
      clock: what durations are relative to.
      roles: what each parameter is to its model, by path; see `nn.roles`.
      where, schedule_where: what error messages call the two sections.

    The transformation is for the tree of those that train alone (`trainable`, `freezing.split`). A model whose layers
    are scanned is trained exactly as one that loops over them.

    Raises ConfigError for a field that the optimizer does not take, and RuleError for rules that do not fit the
    parameters.
    """
    learning_rate = schedules.build(schedule, clock, schedule_where)
    name, own, common = _split(config.plain(fields), where)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    frozen = _frozen(common.freeze, shapes, f"{where}.freeze")
    learning = {path: shape for path, shape in shapes.items() if not frozen[path]}

    decay = _add_decayed_weights(_decays(common, learning, roles, where))
    asked = inspect.signature(methods.METHODS[name]).parameters
    given = {name: value for name, value in {"decay": decay, "roles": roles}.items() if name in asked}
    method = config.call(methods.METHODS[name], own, where, **given)
    if name not in methods.ELEMENTWISE:
        method = layers.per_layer(method, learning)
    steps = [method, _scale_by_factors(_factors(common, shapes, learning, roles, where))]
    if common.clip_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(common.clip_norm))
    return optax.chain(*steps, optax.scale_by_learning_rate(learning_rate)), learning_rate


def trainable(fields: Mapping[str, Any], params: Tree, where: str = "config.optimizer") -> Tree:
    """A tree of booleans like `params`: False where the section's `freeze` rules hold a parameter still."""
    frozen = _frozen(config.plain(fields).get("freeze"), flatten(params), f"{where}.freeze")
    return map_with_path(lambda path, _: not frozen[path], params)


def _split(fields: dict[str, Any], where: str) -> tuple[str, dict[str, Any], Common]:
    """Name, the method's own fields, and the common ones, all checked."""
    if "name" not in fields:
        raise config.ConfigError(f"{where}.name: missing; there is: {', '.join(sorted(methods.METHODS))}")
    name = fields.pop("name")
    if name not in methods.METHODS:
        raise config.ConfigError(f"{where}.name: no optimizer {name!r}; {config.suggest(name, methods.METHODS)}")
    of_common = {field.name for field in dataclasses.fields(Common)}
    of_method = set(inspect.signature(methods.METHODS[name]).parameters) - {"decay", "roles"}
    config.check_names(fields, of_common | of_method, where)
    own = {field: value for field, value in fields.items() if field in of_method}
    common = config.call(Common, {field: value for field, value in fields.items() if field in of_common}, where)
    for field in ("clip_norm", "layer_decay"):
        value = getattr(common, field)
        if value is not None and value <= 0:
            raise config.ConfigError(f"{where}.{field}: {value} is not above 0; None turns it off")
    return name, own, common


def _frozen(freeze: rules.Rules | None, paths: Iterable[str], where: str) -> dict[str, bool]:
    own, adapters = [], []
    for path in paths:
        (adapters if lora.is_adapter(path) else own).append(path)
    frozen = dict.fromkeys(own, bool(adapters)) if freeze is None else rules.match(freeze, own, where)
    for path, value in frozen.items():
        if not isinstance(value, bool):
            raise config.ConfigError(f"{where}: {value!r} for {path!r} is neither True nor False")
    frozen |= dict.fromkeys(adapters, False)
    if all(frozen.values()):
        raise config.ConfigError(f"{where}: freezes every parameter; nothing is left to train")
    return frozen


def _decays(common: Common, paths: Iterable[str], roles: Mapping[str, Role], where: str) -> dict[str, float]:
    """Weight decay of each trainable parameter."""
    if common.weight_decay_rules is None:
        factors = {path: float(roles[path].kind == "matrix") for path in paths}
    else:
        factors = _numbers(common.weight_decay_rules, paths, f"{where}.weight_decay_rules")
    return {path: common.weight_decay * factor for path, factor in factors.items()}


def _factors(
    common: Common,
    shapes: Mapping[str, tuple[int, ...]],
    paths: Iterable[str],
    roles: Mapping[str, Role],
    where: str,
) -> dict[str, Factor]:
    """Learning-rate factor of each trainable parameter: its rule's times its layer's."""
    factors: dict[str, Factor] = dict.fromkeys(paths, 1.0)
    if common.lr_rules is not None:
        factors = _numbers(common.lr_rules, paths, f"{where}.lr_rules")
        for path, factor in factors.items():
            if not factor:
                raise config.ConfigError(f"{where}.lr_rules: 0 for {path!r}; to hold a parameter still, freeze it")
    if common.layer_decay is not None:
        own = {path: shape for path, shape in shapes.items() if not lora.is_adapter(path)}
        depth = layers.depth_factors(common.layer_decay, own, roles, f"{where}.layer_decay")
        at = {path: lora.base_path(path) if lora.is_adapter(path) else path for path in factors}
        factors = {path: factor * depth[at[path]] for path, factor in factors.items()}
    return factors


def _numbers(by: rules.Rules, paths: Iterable[str], where: str) -> dict[str, float]:
    values = rules.match(by, paths, where)
    for path, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise config.ConfigError(f"{where}: {value!r} for {path!r} is not a number of 0 or more")
    return values


def _add_decayed_weights(decays: Mapping[str, float]) -> optax.GradientTransformation:
    def decay(path: str, update: Array, param: Array) -> Array:
        return update + decays[path] * param if decays[path] else update

    return optax.stateless(lambda updates, params: map_with_path(decay, updates, params))


def _scale_by_factors(factors: Mapping[str, Factor]) -> optax.GradientTransformation:
    def scale(path: str, update: Array) -> Array:
        factor = factors[path]
        if isinstance(factor, np.ndarray):
            factor = factor.astype(update.dtype).reshape(-1, *[1] * (update.ndim - 1))
        return update * factor

    return optax.stateless(lambda updates, _: map_with_path(scale, updates))

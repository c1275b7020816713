"""Low-rank adapters of a training: which matrices have one, by rules, and the parameters that they add to the state.

A state's `params` hold the adapters' "lora" tree and whatever else trains; its `frozen` hold the model's own parameters
and each adapter's scale. See `nn.lora` for the trees.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Key

from vitvlm.core import config, rules
from vitvlm.core.paths import flatten, map_with_path, unflatten
from vitvlm.nn import lora
from vitvlm.nn.lora import Lora
from vitvlm.nn.roles import Role
from vitvlm.nn.stacking import is_scanned
from vitvlm.training import freezing
from vitvlm.training.state import TrainState

Tree = Any
Adapters = Mapping[str, Lora]


def plan(
    section: Mapping[str, Any] | None, shapes: Tree, roles: Mapping[str, Role], where: str = "config.lora"
) -> dict[str, Lora]:
    """The adapter of each matrix that has one, by its path; empty for None.

    Args:
      section: `rules`, pairs (regex over the paths of a model's parameters, fields of `nn.lora.Lora` as a dictionary,
        or None for no adapter), of which the first that matches wins and paths that none matches have no adapter; and
        fields of `Lora` that all rules share.
      shapes: the model's own parameters, as arrays or `jax.ShapeDtypeStruct`s; roles: what each is to the model.

    Raises ConfigError for an unknown field, a value that cannot be meant, a rule that matches what is no matrix, and
    dropout of a matrix that is no linear layer's; RuleError for a rule that is never used.
    """
    if section is None:
        return {}
    shared = config.plain(section)
    given = shared.pop("rules", None)
    if not given:
        raise config.ConfigError(f'{where}.rules: missing; pairs such as ((".*attention/(query|value)/kernel", {{}}),)')
    leaves, patterns = flatten(shapes), rules.compiled(given, f"{where}.rules")
    covered = [path for path in leaves if any(pattern.fullmatch(path) for pattern in patterns)]
    planned = {}
    for path, fields in rules.match(given, covered, f"{where}.rules").items():
        if fields is None:
            continue
        if not isinstance(fields, Mapping):
            value = f"{fields!r} for {path!r}"
            raise config.ConfigError(f"{where}.rules: {value} is neither a dictionary of fields nor None")
        adapter = config.call(Lora, {**shared, **fields}, where)
        _check(path, leaves[path].shape, adapter, roles[path], where)
        planned[path] = adapter
    if not planned:
        raise config.ConfigError(f"{where}.rules: give no matrix an adapter; leave config.lora out")
    return planned


def fresh(adapters: Adapters, params: Tree, rng: Key[Array, ""]) -> Tree:
    """The parameters of new adapters, under "lora", in their matrices' dtypes: they change nothing yet. Pure.

    Each draws from a key of its own path, so that a rule more or less leaves the others as they are.
    """
    leaves, made = flatten(params), {}
    for path, adapter in adapters.items():
        own = jax.random.fold_in(rng, zlib.crc32(path.encode()))
        leaf = leaves[path]
        parts = adapter.fresh(leaf.shape, int(is_scanned(path)), own, leaf.dtype)
        made |= {f"{path}/{name}": value for name, value in parts.items()}
    return {lora.ROOT: unflatten(made)} if made else {}


def fixed(adapters: Adapters, params: Tree) -> Tree:
    """Returns what adapters have besides and nothing trains, under "lora"."""
    leaves, made = flatten(params), {}
    for path, adapter in adapters.items():
        parts = adapter.fixed(leaves[path].shape[: is_scanned(path)])
        made |= {f"{path}/{name}": value for name, value in parts.items()}
    return {lora.ROOT: unflatten(made)} if made else {}


def roles_of(adapters: Adapters, roles: Mapping[str, Role]) -> dict[str, Role]:
    """The roles of the adapters' parameters, by path: matrices, and DoRA's factors, where the matrix stands."""
    found = {}
    for path, adapter in adapters.items():
        for name in ("a", "b", *(["magnitude"] if adapter.dora else [])):
            kind = "scale" if name == "magnitude" else "matrix"
            found[f"{lora.ROOT}/{path}/{name}"] = Role(kind, roles[path].part)
    return found


def check_frozen(adapters: Adapters, trained: Tree, where: str = "config.lora") -> None:
    """Raises ConfigError for a matrix that has an adapter and trains besides."""
    if both := sorted(adapters.keys() & flatten(trained).keys()):
        raise config.ConfigError(
            f"{where}: {both[0]!r} has an adapter and trains itself: freeze it by config.optimizer.freeze, or leave it "
            "out of the rules"
        )


def begun(state: TrainState) -> TrainState:
    """The state with DoRA's magnitudes as they begin: what its matrices, which may be quantized, have. Pure."""
    if lora.ROOT not in state.params:
        return state
    whole = flatten(lora.attach(freezing.join(state.params, state.frozen)), lambda leaf: isinstance(leaf, lora.Adapted))

    def begin(path: str, leaf: Array) -> Array:
        if not (lora.is_adapter(path) and path.endswith("/magnitude")):
            return leaf
        return whole[lora.base_path(path)].norm().astype(leaf.dtype)

    params = map_with_path(begin, state.params)
    ema = None if state.ema is None else map_with_path(begin, state.ema)
    return state.replace(params=params, ema=ema)


def _check(path: str, shape: tuple[int, ...], adapter: Lora, role: Role, where: str) -> None:
    layer = shape[is_scanned(path) :]
    if role.kind != "matrix" or len(layer) < 2:
        raise config.ConfigError(
            f"{where}.rules: {path!r} {list(shape)} is no matrix, but a {role.kind}: only matrices have adapters"
        )
    if adapter.dropout and len(layer) > 2:
        raise config.ConfigError(
            f"{where}.rules: dropout for {path!r} {list(shape)}: only linear layers can drop inputs"
        )
    if adapter.rank > min(math.prod(layer[:-1]), layer[-1]):
        raise config.ConfigError(f"{where}.rules: rank {adapter.rank} for {path!r} {list(shape)} is above the matrix's")

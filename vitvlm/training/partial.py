"""Part of a model from the parameters of another: a fine-tuned encoder from a masked autoencoder, say.

Rules go from each parameter of the model to the path of the parameter that it is taken from:

    rules = [
        ("head/.*", None),              # stays as initialised
        ("(.*)", r"vit/\\1"),            # everything else: the autoencoder's encoder
    ]
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import regex

from vitvlm.core import patterns, placing
from vitvlm.core import rules as core_rules
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import Tree, flatten, map_with_path
from vitvlm.nn.roles import Role
from vitvlm.nn.stacking import Periods, is_scanned, layer_paths, periods
from vitvlm.training import storage


def restore(
    params: Tree,
    source: Tree,
    rules: core_rules.Rules,
    roles: Mapping[str, Role],
    where: str = "config.init_from.rules",
    ignore: Sequence[str] = (),
    donate: bool = False,
) -> Tree:
    """Replaces values of `params` by those of `source` as the rules say.

    Each rule is `(regex over the paths of params, template of a path in source)`, the template in the syntax of
    `re.Match.expand`, or None to keep the initial value. The first that matches wins and every parameter must be
    covered. Scanned blocks ("blocks/...") are filled from looped ones ("blocks_0/...") and the other way round. What
    has the size of an image, a patch or a window is resampled as its role says: a table of positions [h, w, D] to
    another grid, and relative positions [(2w - 1)^2, K] to another window, as PyTorch's bicubic interpolation does; a
    patch embedding's kernel [P, P, C, D] to another patch size by FlexiViT's PI-resize.
    Values take the dtype, and for `jax.Array`s the sharding, of the parameters that they replace: each device is given
    its own part. Where a parameter is quantized, so is its value.

    Args:
      source: arrays, or lazy ones, which are read one at a time, and only if they are taken.
      roles: what the parameters of params are to their model, by path; see `nn.roles`.
      ignore: regexes over paths of source that may stay unused, such as "decoder/.*".
      donate: delete each array on devices that is replaced, so that no device ever holds both.

    Raises RuleError for rules that do not fit params, and ConfigError that lists every parameter without a source,
    every one of another shape than its source, and every source that is neither used nor ignored.
    """
    targets = flatten(params, storage.is_quantized)
    values = matched(targets, source, rules, roles, where, ignore)
    found = {path: _like(targets[path], values[path], donate) for path in placing.reading_order(values)}
    return map_with_path(lambda path, leaf: found.get(path, leaf), params, is_leaf=storage.is_quantized)


def matched(
    targets: Mapping[str, Any],
    source: Tree,
    rules: core_rules.Rules,
    roles: Mapping[str, Role],
    where: str = "config.init_from.rules",
    ignore: Sequence[str] = (),
) -> dict[str, placing.Lazy]:
    """The value that each parameter takes, by its path, unread; arguments and errors are those of `restore`.

    Args:
      targets: parameters by path, of which only the shapes matter.
    """
    sources = flatten(source)
    of_stacks = periods(sources)
    layers = {path: _by_layer(path, leaf, of_stacks) for path, leaf in sources.items()}
    available = {part: value for parts in layers.values() for part, value in parts.items()}
    wanted_paths = source_paths(targets, rules, where)
    of_targets = periods(wanted_paths.values())
    used: set[str] = set()
    missing, misshapen, heads, values = [], [], [], {}
    for path, wanted in wanted_paths.items():
        target = targets[path]
        scanned = is_scanned(path) and is_scanned(wanted)
        parts = layer_paths(wanted, target.shape[0], of_targets) if scanned else [wanted]
        used.update(parts)
        if absent := [part for part in parts if part not in available]:
            missing.append(f"{path} <- {', '.join(absent)}")
            continue
        value = placing.stacked([available[part] for part in parts]) if scanned else available[wanted]
        role = roles.get(path)
        value = _resampled(value, target.shape, role)
        if value.shape != target.shape:
            misshapen.append(f"{path} {tuple(target.shape)} <- {wanted} {value.shape}")
            heads += [path] if role is not None and role.part == "head" else []
        values[path] = value

    unused = _unused(layers, used, ignore, where)
    problems = (("no source for", missing), ("of another shape:", misshapen), ("unused, and not in ignore:", unused))
    if any(paths for _, paths in problems):
        hint = f"; to begin a head anew, put ({heads[0]!r}, None) before the other rules" if heads else ""
        listed = "; ".join(f"{kind} {', '.join(paths)}" for kind, paths in problems if paths)
        raise ConfigError(f"{where}: {listed}{hint}")
    return values


def source_paths(
    paths: Iterable[str], rules: core_rules.Rules, where: str = "config.init_from.rules"
) -> dict[str, str]:
    """The path in the source of each parameter that the rules take from there. Raises RuleError as `restore` does."""
    winners = core_rules.match_indices(rules, paths, where)
    taken = {path: rules[index] for path, index in winners.items() if rules[index][1] is not None}
    return {path: _expand(pattern, template, path, where) for path, (pattern, template) in taken.items()}


def _resampled(value: placing.Lazy, shape: tuple[int, ...], role: Role | None) -> placing.Lazy:
    """The value at the parameter's own size, where its role can be brought to another: on the host."""
    if value.shape == shape or role is None or role.resample is None or not _like_but_for_size(value.shape, shape):
        return value
    return placing.Stored(shape, value.dtype, lambda: role.resample(np.asarray(value), shape), value.origin)


def _like_but_for_size(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Tells whether shapes agree in all but the axes of a size: the first two, or the first of a table of two axes."""
    axes = 2 if len(new) > 2 else 1
    return len(old) == len(new) and old[axes:] == new[axes:]


def _expand(pattern: str, template: str, path: str, where: str) -> str:
    try:
        return patterns.pattern(pattern).fullmatch(path).expand(template)
    except (regex.error, re.error, IndexError) as error:
        raise core_rules.RuleError(
            f"{where}: template {template!r} does not fit the regex {pattern!r}: {error}"
        ) from None


def _by_layer(path: str, leaf: Any, of_stacks: Periods) -> dict[str, placing.Lazy]:
    """A scanned parameter as one part for each layer, under the looped paths; any other as it is."""
    array = placing.lazy(leaf)
    return dict(zip(layer_paths(path, len(array), of_stacks), array)) if is_scanned(path) else {path: array}


def _unused(layers: dict[str, dict[str, Any]], used: set[str], ignore: Sequence[str], where: str) -> list[str]:
    """Lists sources that are neither used nor ignored, and unused layers of scanned sources that are used in part."""
    unused = {path: [part for part in parts if part not in used] for path, parts in layers.items()}
    unused = {path: parts for path, parts in unused.items() if parts}
    for pattern in ignore:
        if not any(patterns.pattern(pattern).fullmatch(path) for path in unused):
            raise core_rules.RuleError(f"{where}: ignore {pattern!r} matches no unused source; remove it")
    listed = []
    for path, parts in unused.items():
        if not any(patterns.pattern(pattern).fullmatch(path) for pattern in ignore):
            listed += [path] if len(parts) == len(layers[path]) else parts
    return listed


def _like(target: Any, value: placing.Lazy, donate: bool) -> Any:
    """Gives `value` the dtype and the placement of the parameter that it replaces."""
    if storage.is_quantized(target):
        quantized = storage.quantized_like(target, np.asarray(value))
        if donate:
            jax.tree.map(lambda leaf: leaf.delete(), target)
        return quantized
    if not isinstance(target, jax.Array):
        return np.asarray(value, target.dtype)
    placed = placing.place(value, target.sharding, target.dtype)
    if donate:
        target.delete()
    return placed

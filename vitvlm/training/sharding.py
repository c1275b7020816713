"""Placement of arrays: a mesh of devices, and rules from a parameter's path and shape to its `PartitionSpec`.

A rule is `(regex, value)`, see core.rules. A value is
  "replicate": every device holds the whole parameter;
  "fsdp": its largest dimension that the fsdp axis divides is split over that axis (none divides: it stays whole);
  a tuple with a mesh axis, a tuple of mesh axes, or None for each dimension, such as `("fsdp", "tensor")`; with a
    question mark, "tensor?", only a dimension that the axis divides is split;
  the name of a preset: as that has it for this path.
Dimensions are those of one layer: the leading depth axis of scanned blocks is never split, so the same rules hold for
scanned and for looped layers. PRESETS are rule lists by name.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vitvlm.core import rules
from vitvlm.core.config import ConfigError, suggest
from vitvlm.core.paths import Tree, flatten, map_with_path
from vitvlm.nn.stacking import is_scanned
from vitvlm.training.freezing import join
from vitvlm.training.storage import is_quantized

T = TypeVar("T")

# An abstract mesh has axes but no devices: enough for a plan.
AnyMesh = Mesh | AbstractMesh

# Examples are split over every axis along which parameters are gathered before use; "tensor" shares the work on each.
BATCH_AXES = ("data", "fsdp")


def _megatron(rows: str | None, rest: str) -> rules.Rules:
    """Columns of the first product and rows of the second over "tensor", so that a pair ends in one sum over devices
    (Shoeybi et al. 2019, section 3), and the words of a vocabulary, if it divides; the other dimension over `rows`."""
    return (
        (r"(.*/)?(attention|cross)/(query|key|value)/kernel", (rows, "tensor")),
        (r"(.*/)?(attention|cross)/(query|key|value)/bias", ("tensor",)),
        (r"(.*/)?(attention|cross)/out/kernel", ("tensor", rows)),
        (r"(.*/)?relative_buckets", (None, "tensor")),
        (r"(.*/)?(text_)?mlp/(gate|up)/kernel", (rows, "tensor")),
        (r"(.*/)?(text_)?mlp/(gate|up)/bias", ("tensor",)),
        (r"(.*/)?(text_)?mlp/down/kernel", ("tensor", rows)),
        (r"(.*/)?embed/embedding", ("tensor?", rows and f"{rows}?")),
        (r"(.*/)?head/kernel", (rows and f"{rows}?", "tensor?")),
        (r"(.*/)?(head/bias|head_bias|mlm_bias)", ("tensor?",)),
        (r"lora/(.*/)?((attention|cross)/(query|key|value)|(text_)?mlp/(gate|up))/kernel/b", (None, "tensor")),
        (r"lora/(.*/)?((attention|cross)/out|(text_)?mlp/down)/kernel/a", ("tensor", None)),
        (".*", rest),
    )


PRESETS: dict[str, rules.Rules] = {
    "replicated": ((".*", "replicate"),),
    "fsdp": ((".*", "fsdp"),),
    "tensor": _megatron(None, "replicate"),
    "fsdp+tensor": _megatron("fsdp", "fsdp"),
}


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None, where: str = "config.mesh") -> Mesh:
    """A mesh over all devices (of all processes) with named axes: `{"data": -1, "fsdp": 2, "tensor": 2}`.

    Axes may have any names; -1, at most once, takes what the others leave.
    Raises ConfigError if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(axes)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise ConfigError(f"{where}: sizes must be positive, and at most one of them -1, not {sizes}")
    taken = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % taken == 0:
        sizes[free[0]] = len(devices) // taken
    if math.prod(sizes.values()) != len(devices):
        raise ConfigError(f"{where}: {dict(axes)} does not make up {len(devices)} devices; use -1 for what is left")
    # jax.make_mesh defaults to Explicit axes, which put shardings into types: Linen's parameters and jit's
    # in_shardings are written for Auto, where the compiler propagates them.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices)


def shardings(tree: Tree, by: str | rules.Rules, mesh: AnyMesh, where: str = "config.sharding") -> Tree:
    """A `NamedSharding` for every parameter.

    Args:
      tree: parameters, arrays or `jax.ShapeDtypeStruct`s. The parts of a quantized matrix lie as the matrix would, as
        far as they can be divided.
      by: the name of a preset, or rules. A preset may hold rules that match nothing in this model; your own may not.
      where: the config field, for error messages.

    Raises ConfigError for an unknown preset or axis, and for a spec that does not fit a parameter's shape; RuleError
    for rules that do not fit the paths.
    """
    paths = flatten(tree, is_quantized)
    if isinstance(by, str):
        if by not in PRESETS:
            raise ConfigError(f"{where}: no preset {by!r}; {suggest(by, PRESETS)}")
        chosen = dict.fromkeys(paths, by)
    else:
        chosen = rules.match(by, paths, where)

    def place(path: str, leaf: Any) -> Any:
        spec = _spec(path, tuple(leaf.shape), _of_preset(path, chosen[path]), mesh, where)
        if not is_quantized(leaf):
            return NamedSharding(mesh, spec)
        return jax.tree.map(lambda part: NamedSharding(mesh, _fitting(spec, part.shape, mesh)), leaf)

    return map_with_path(place, tree, is_leaf=is_quantized)


def variables_by(by: str | rules.Rules, mesh: AnyMesh, where: str = "config.sharding") -> Callable[[Tree], Tree]:
    """A function from a model's variables, {"params": …}, to their shardings: a `place` of `pretrained.load`.

    Parameters lie as `shardings` says; other collections, such as batch statistics, are replicated.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    def place(variables: Tree) -> Tree:
        others = {name: jax.tree.map(lambda _: whole, tree) for name, tree in variables.items() if name != "params"}
        return {"params": shardings(variables["params"], by, mesh, where), **others}

    return place


def state_shardings(state: Tree, by: str | rules.Rules, mesh: AnyMesh, where: str = "config.sharding") -> Tree:
    """Shardings for a whole train state: its parameters by rules, everything that mirrors a parameter like it.

    An array mirrors a parameter if its path ends in the parameter's and their shapes are equal: moments, averages.
    All other arrays (counters, keys, factored moments, batch statistics) are replicated.
    """
    whole_model = join(state.params, state.frozen)
    params = flatten(whole_model)
    placed = flatten(shardings(whole_model, by, mesh, where))
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path: str, leaf: Any) -> NamedSharding:
        names = path.split("/")
        suffixes = ("/".join(names[start:]) for start in range(len(names)))
        owner = next((suffix for suffix in suffixes if suffix in params), None)
        return placed[owner] if owner is not None and params[owner].shape == leaf.shape else whole

    return map_with_path(place, state)


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Examples, the first axis of every array of a batch, split over the mesh's data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(tuple(axis for axis in BATCH_AXES if axis in mesh.shape)))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from this process's examples (all of them, when there is one process).

    Strings, which operations may `keep` for evaluators to read, have no place on a device and stay on the host.

    Raises ConfigError if the examples cannot be split evenly over this process's devices.
    """
    sharding = batch_sharding(mesh)
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape)
    batch = numbers(batch)
    for name, value in batch.items():
        if len(value) * jax.process_count() % shards:
            raise ConfigError(
                f"batch {name!r} {value.shape} on each of {jax.process_count()} processes does not divide into "
                f"{shards} parts ({' x '.join(BATCH_AXES)}): change batch_size or the mesh"
            )
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def numbers(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch's arrays that devices can hold: all but those of strings or of tuples of strings."""
    return {name: value for name, value in batch.items() if value.dtype.kind not in "OSU"}


def keep_examples_split(function: Callable[..., T], mesh: Mesh) -> Callable[..., T]:
    """The same `function(variables, batch, ...)`, in which no device computes on another's examples.

    Pins to `batch_sharding` what the Flax modules inside return: every array whose first axis is as long as the
    batch's, from a module that was given such an array; and as long as all its `images` [B, I, ...] together, which
    encoders read one by one. Without it, the compiler may carry the sharding of the parameters over to the activations:
    under "fsdp" it was seen to gather all examples on every device, where it should gather each layer's parameters.
    Values stay the same. A (micro-)batch that does not divide over the devices is left to the compiler.
    """
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
    parts = math.prod(mesh.shape[axis] for axis in axes)

    @functools.wraps(function)
    def pinned(variables: Tree, batch: Mapping[str, Any], *rest: Any) -> T:
        size = len(next(iter(batch.values())))
        if parts == 1 or size % parts:
            return function(variables, batch, *rest)
        lengths = {size, *(math.prod(leaf.shape[:2]) for leaf in jax.tree.leaves(batch.get("images")))}

        def is_batch(leaf: Any) -> bool:
            return isinstance(leaf, jax.Array) and leaf.ndim > 0 and leaf.shape[0] in lengths

        def pin(leaf: Any) -> Any:
            if not is_batch(leaf):
                return leaf
            others = [PartitionSpec.UNCONSTRAINED] * (leaf.ndim - 1)
            return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec(axes, *others)))

        def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            given = context.method_name == "__call__" and any(map(is_batch, jax.tree.leaves((args, kwargs))))
            return jax.tree.map(pin, output) if given else output

        with nn.intercept_methods(intercept):
            return function(variables, batch, *rest)

    return pinned


def _of_preset(path: str, value: Any) -> Any:
    """The value of a preset's first rule for this path, if the value is its name; rules that match nothing are idle."""
    if not isinstance(value, str) or value not in PRESETS:
        return value
    return next(each for pattern, each in PRESETS[value] if re.fullmatch(pattern, path))


def _spec(path: str, shape: tuple[int, ...], value: Any, mesh: AnyMesh, where: str) -> PartitionSpec:
    lead, layer = ((None,), shape[1:]) if is_scanned(path) else ((), shape)
    if value == "replicate":
        return PartitionSpec()
    if value == "fsdp":
        return PartitionSpec(*lead, *_split_largest(layer, _axis_size("fsdp", mesh, where)))
    if isinstance(value, str):
        raise ConfigError(
            f'{where}: {value!r} for {path!r}; write "replicate", the name of a preset ({", ".join(PRESETS)}), or a '
            "tuple of mesh axes"
        )
    if len(value) != len(layer):
        raise ConfigError(f"{where}: {tuple(value)} for {path!r} does not fit the dimensions {layer} of one layer")
    spec = tuple(
        _if_divided(axes, size, mesh, where) if isinstance(axes, str) else None if axes is None else tuple(axes)
        for axes, size in zip(value, layer)
    )
    for size, axes in zip(layer, spec):
        names = () if axes is None else (axes,) if isinstance(axes, str) else axes
        parts = math.prod(_axis_size(name, mesh, where) for name in names)
        if size % parts:
            raise ConfigError(
                f"{where}: {path!r} {shape} cannot be split {spec}: {size} is not divisible by "
                f"{' x '.join(names)} = {parts}; change the mesh, or the rule for this path"
            )
    return PartitionSpec(*lead, *spec)


def _if_divided(axis: str, size: int, mesh: AnyMesh, where: str) -> str | None:
    """The name of the axis; None if it ends in a question mark and does not divide the dimension."""
    name = axis.removesuffix("?")
    return name if name == axis or size % _axis_size(name, mesh, where) == 0 else None


def _fitting(spec: PartitionSpec, shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """The spec without the axes that do not divide the shape: a quantized matrix has fewer rows than the matrix."""
    names = [() if axes is None else (axes,) if isinstance(axes, str) else axes for axes in spec]
    parts = [math.prod(mesh.shape[name] for name in each) for each in names]
    return PartitionSpec(*(axes if size % count == 0 else None for axes, size, count in zip(spec, shape, parts)))


def _split_largest(shape: tuple[int, ...], parts: int) -> tuple[str | None, ...]:
    """The largest dimension that divides, the last of several; all None when there is none."""
    fitting = [(size, index) for index, size in enumerate(shape) if size % parts == 0]
    chosen = max(fitting)[1] if fitting else None
    return tuple("fsdp" if index == chosen else None for index in range(len(shape)))


def _axis_size(name: str, mesh: AnyMesh, where: str) -> int:
    if name not in mesh.shape:
        raise ConfigError(f"{where}: the mesh has no axis {name!r}; {suggest(name, mesh.shape)}")
    return mesh.shape[name]

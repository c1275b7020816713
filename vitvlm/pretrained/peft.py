"""Low-rank adapters as the `peft` package saves them: adapter_config.json beside adapter_model.safetensors.

`peft` names a linear layer by its module in `transformers`, which the tables of families know. Their A is [r, in] and
their B [out, r]; a layer that is one for them and several for us (fused queries, keys and values) has one A for all.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.core.patterns import PatternError, pattern
from vitvlm.core.placing import Stored
from vitvlm.nn.lora import Adapted
from vitvlm.nn.stacking import periods, stack_blocks, unstack_blocks
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.families import Family
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.tables import Row, listed
from vitvlm.pretrained.tensors import open_file, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PART = re.compile(r"(?P<module>.*)\.lora_(?P<part>A|B|magnitude_vector)(\.weight)?")

Parts = dict[str, np.ndarray]  # a, b, scale and perhaps magnitude, see `nn.lora`

# Fields of adapter_config.json that mean something else than an adapter beside a matrix, with the values that do not.
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "modules_to_save": (None, []),
    "lora_bias": (False,),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False,),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others change the matrix itself
}


def open(loaded: Pretrained, family: Family, folder: Path, merge: bool = True) -> Pretrained:
    """The model with an adapter: merged into its matrices, so that it is a plain model, or beside them.

    Args:
      loaded: the model that the adapter was trained on, its variables lazy.
      family: the model's, whose names the adapter has.
      merge: if not, an `nn.lora.Adapted` stands in each matrix's place.

    Raises WeightsError for a folder that is damaged, that is no LoRA, or that does not fit the model.
    """
    params = loaded.variables["params"]
    of_stacks = periods(paths.flatten(params))
    leaves = paths.flatten(unstack_blocks(params))
    adapters = read(folder, family, loaded.model)
    for path, parts in adapters.items():
        if path not in leaves or not _fits(leaves[path].shape, parts):
            found = leaves[path].shape if path in leaves else "no such parameter"
            raise WeightsError(f"{folder}: is not of this model: its adapter of {path} is of another shape: {found}")
        del leaves[path]
        base = paths.flatten(unstack_blocks(params))[path]
        if merge:
            leaves[path] = Stored(base.shape, base.dtype, functools.partial(_merged, base, parts), base.origin)
        else:
            leaves |= {f"{path}/base": base} | {f"{path}/{name}": _stored(part) for name, part in parts.items()}
    tree = paths.unflatten(leaves)
    if any("blocks/" in path for path in paths.flatten(params)):
        try:
            tree = stack_blocks(tree, of_stacks)
        except ValueError as error:
            raise WeightsError(f"{folder}: {error}: its layers are not alike: load it with scan=False") from None
    return dataclasses.replace(
        loaded,
        variables={**loaded.variables, "params": tree if merge else _boxed(tree)},
        adapters=adapters,
        source={**loaded.source, "adapter": str(folder)},
    )


def read(folder: Path, family: Family, model: Any) -> dict[str, Parts]:
    """The adapters in a folder by the path of their matrix, as a loop of blocks has it; see `nn.lora`.

    Raises WeightsError as `open` does.
    """
    config = read_json(folder / CONFIG)
    for field, values in PLAIN.items():
        if (value := config.get(field, values[0])) not in values:
            raise WeightsError(f"{folder / CONFIG}: {field} {value!r} is not understood: only {values[0]!r} is")
    by_name = {each.theirs[0]: each for each in family.rows(model, ()) if each.theirs}
    found: dict[str, Parts] = {}
    for module, tensors in _modules(folder).items():
        name = family.rename(f"{module}.weight")
        if name not in by_name or not by_name[name].ours:
            raise WeightsError(f"{folder / WEIGHTS}: the model has no linear layer {module}")
        if not {"A", "B"} <= tensors.keys() or ("magnitude_vector" in tensors) != bool(config.get("use_dora")):
            raise WeightsError(f"{folder / WEIGHTS}: {module} has only lora_{', lora_'.join(sorted(tensors))}")
        scale = _scale(config, module, tensors["A"].shape[0], folder)
        found |= _ours(by_name[name], tensors, scale, folder)
    if not found:
        raise WeightsError(f"{folder / WEIGHTS}: holds no adapter")
    return found


def save(loaded: Pretrained, family: Family, folder: Path) -> None:
    """Writes the adapters of a model, which `PeftModel.from_pretrained` puts on the model that it was trained on.

    Raises ConfigError for a model without adapters, and for one of which more was trained than adapters.
    """
    if not loaded.adapters:
        raise ConfigError("format peft: this model has no adapters: it was trained without config.lora")
    if others := loaded.source.get("trained_besides"):
        raise ConfigError(
            f"format peft: {listed(others)} {'was' if len(others) == 1 else 'were'} trained besides the adapters, "
            "which the files of an adapter do not hold: write the merged model, in another format"
        )
    adapters = looped(loaded.adapters)
    merged = paths.flatten(unstack_blocks(loaded.variables["params"]))
    tensors, modules, left = {}, {}, set(adapters)
    for each in family.rows(loaded.model, ()):
        if having := [path for path in each.ours if path in adapters]:
            module = each.theirs[0].removesuffix(".weight")
            parts, modules[module] = _theirs(each, adapters, merged)
            tensors |= {f"{PREFIX}{module}.lora_{name}": value for name, value in parts.items()}
            left -= set(having)
    if left:
        raise ConfigError(f"format peft: the tables have no linear layer for the adapter of {listed(sorted(left))}")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(_config(loaded, modules), indent=2, sort_keys=True) + "\n")


def _modules(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Reads the tensors of each module, by part."""
    if not (folder / WEIGHTS).is_file():
        raise WeightsError(f"{folder}: has no {WEIGHTS}")
    tensors, found, unknown = open_file(folder / WEIGHTS), {}, []
    for name in tensors:
        if part := PART.fullmatch(name.removeprefix(PREFIX)):
            value = np.asarray(tensors[name]).astype(np.float32)
            found.setdefault(part["module"], {})[part["part"]] = value
        else:
            unknown.append(name)
    if unknown:
        raise WeightsError(f"{folder / WEIGHTS}: tensors that are no linear layer's adapter: {listed(unknown)}")
    return found


def _scale(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    def of(field: str, pattern: str) -> Any:
        own = config.get(pattern) or {}
        try:
            return next((value for key, value in own.items() if _names(key, module)), config[field])
        except PatternError as error:
            raise WeightsError(f"{folder / CONFIG}: {pattern}: {error}") from None

    if (said := of("r", "rank_pattern")) != rank:
        raise WeightsError(f"{folder / CONFIG}: rank {said} for {module}, and its tensors have {rank}")
    return of("lora_alpha", "alpha_pattern") / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _names(key: str, module: str) -> bool:
    """Tells whether a key of PEFT's patterns names a module, or the end of its name."""
    return pattern(rf"(.*\.)?({key})$").match(module) is not None


def _ours(row: Row, theirs: Mapping[str, np.ndarray], scale: float, folder: Path) -> dict[str, Parts]:
    """One of their layers' adapter as that of each of our matrices."""
    A, B = theirs["A"], theirs["B"].reshape(theirs["B"].shape[:2])
    shape = (len(B), *A.shape[1:])
    flat = A.reshape(len(A), -1)
    inputs = np.broadcast_to(np.arange(flat.shape[1]).reshape(1, *A.shape[1:]), shape)
    outputs = np.broadcast_to(np.arange(len(B)).reshape(-1, *[1] * (A.ndim - 1)), shape)
    delta = (B @ flat).reshape(shape)
    try:
        places = [_read(row, each) for each in (inputs, outputs, delta)]
    except (ValueError, IndexError) as error:
        raise WeightsError(f"{folder}: {row.theirs[0]} is of another shape: {error}") from None
    found = {}
    for path, into, out, expected in zip(row.ours, *places, strict=True):
        order = out.reshape(-1, out.shape[-1])[0]
        a, b = flat.T[into[..., 0].reshape(-1)].reshape(*into.shape[:-1], len(A)), B.T[:, order]
        if not np.allclose(a @ b, expected, rtol=1e-3, atol=1e-5 * (np.abs(expected).max() + 1e-30)):
            raise WeightsError(f"{folder}: the adapter of {row.theirs[0]} cannot be taken apart for {path}")
        found[path] = {"a": a, "b": b, "scale": np.float32(scale)}
        if "magnitude_vector" in theirs:
            found[path]["magnitude"] = theirs["magnitude_vector"].reshape(-1)[order]
    return found


def _read(row: Row, value: np.ndarray) -> Sequence[np.ndarray]:
    """Ours of a tensor that is given in the order [out, in, …], also where theirs is [in, out] (GPT-2's)."""
    value = value.T if _inputs_first(row) else value
    return row.transform.read(*[value] * len(row.theirs))


def _inputs_first(row: Row) -> bool:
    """Tells whether their matrix is [in, out], as ours is, rather than [out, in]."""
    probe = np.zeros((6, 12), np.int8)  # the number of fused parts divides both
    try:
        return all(ours.shape[0] == 6 for ours in row.transform.read(*[probe] * len(row.theirs)))
    except ValueError:
        return False  # a convolution's


def _theirs(
    row: Row, adapters: Mapping[str, Parts], merged: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of one of their layers by the ends of their names, and its rank and alpha.

    Where ours are several that have not the same A, theirs has all of them one below the other, and zeros in B.
    """
    having = {path: adapters[path] for path in row.ours if path in adapters}
    shapes = {path: merged[path].shape for path in row.ours}
    first = next(iter(having.values()))
    shared = all(np.array_equal(np.asarray(parts["a"]), np.asarray(first["a"])) for parts in having.values())
    ranks = {path: parts["a"].shape[-1] for path, parts in having.items()}
    rank, scale = first["a"].shape[-1] if shared else sum(ranks.values()), float(np.asarray(first["scale"]))
    starts, columns, magnitudes, place = {}, [], [], 0
    for path in having:
        starts[path] = 0 if shared else place
        place += ranks[path]
    for path in row.ours:
        b = np.zeros((rank, shapes[path][-1]), np.float32)
        if path in having:
            own = np.asarray(having[path]["b"], np.float32) * (float(np.asarray(having[path]["scale"])) / scale)
            b[starts[path] : starts[path] + ranks[path]] = own
        columns.append(b)
        if "magnitude" in first:
            plain = np.asarray(merged[path], np.float32)
            norm = np.sqrt((plain**2).sum(axis=tuple(range(plain.ndim - 1))))
            magnitudes.append(np.asarray(having[path]["magnitude"]) if path in having else norm)
    offsets = np.cumsum([0, *(b.shape[1] for b in columns[:-1])])
    marks = [np.broadcast_to(offset + np.arange(shape[-1]), shape) for offset, shape in zip(offsets, shapes.values())]
    order = np.asarray(row.transform.write(*marks)[0])
    if _inputs_first(row):
        order = order.T
    order = order.reshape(len(order), -1)[:, 0]
    a = [np.asarray(parts["a"], np.float32) for parts in having.values()]
    a = a[0] if shared else np.concatenate(a, axis=-1)
    B = np.concatenate(columns, axis=1).T[order]
    convolution = a.ndim > 2
    tensors = {
        "A.weight": a.transpose(3, 2, 0, 1) if convolution else a.T,
        "B.weight": B[:, :, None, None] if convolution else B,
    }
    if magnitudes:
        magnitude = np.concatenate(magnitudes).astype(np.float32)[order]
        tensors["magnitude_vector"] = magnitude[None, :, None, None] if convolution else magnitude
    return tensors, {"rank": rank, "scale": scale, "inputs_first": _inputs_first(row)}


def _config(loaded: Pretrained, modules: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    section = loaded.source.get("config", {}).get("lora") or {}
    rslora = bool(section.get("rslora", False))

    def alpha(module: Mapping[str, Any]) -> float:
        value = module["scale"] * (math.sqrt(module["rank"]) if rslora else module["rank"])
        return int(value) if value == int(value) else value

    first = next(iter(modules.values()))
    own = {name: module for name, module in modules.items() if module["rank"] != first["rank"]}
    others = {name: alpha(module) for name, module in modules.items() if alpha(module) != alpha(first)}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": loaded.source.get("base"),
        "r": first["rank"],
        "lora_alpha": alpha(first),
        "lora_dropout": section.get("dropout", 0.0),
        "use_rslora": rslora,
        "use_dora": any("magnitude" in parts for parts in loaded.adapters.values()),
        "rank_pattern": {f"^{re.escape(name)}": module["rank"] for name, module in own.items()},
        "alpha_pattern": {f"^{re.escape(name)}": value for name, value in others.items()},
        "target_modules": sorted(modules),
        "fan_in_fan_out": all(module["inputs_first"] for module in modules.values()),
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def looped(adapters: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Adapters by the path of their matrix as a loop of blocks has it."""
    leaves = {f"{path}/{name}": part for path, parts in adapters.items() for name, part in parts.items()}
    found: dict[str, dict[str, Any]] = {}
    for leaf, part in paths.flatten(unstack_blocks(paths.unflatten(leaves))).items():
        path, _, name = leaf.rpartition("/")
        found.setdefault(path, {})[name] = part
    return found


def _fits(shape: tuple[int, ...], parts: Parts) -> bool:
    return shape == (*parts["a"].shape[:-1], parts["b"].shape[-1])


def _merged(base: Any, parts: Parts) -> np.ndarray:
    base = np.asarray(base)
    return np.asarray(Adapted(base, **parts).whole(base.dtype))


def _stored(part: np.ndarray) -> Stored:
    part = np.asarray(part)
    return Stored(part.shape, part.dtype, lambda: part)


def _boxed(tree: Any) -> Any:
    """The tree with an `Adapted` for each dictionary of one's parts."""
    if not isinstance(tree, Mapping):
        return tree
    return Adapted(**tree) if {"base", "a", "b"} <= tree.keys() else {name: _boxed(each) for name, each in tree.items()}

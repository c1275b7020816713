"""A checkpoint's arrays one by one, as lazy arrays: parameters are read without the optimizer beside them."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath

from vitvlm.core import paths
from vitvlm.core.placing import Stored
from vitvlm.nn import lora
from vitvlm.nn.quantized import Quantized
from vitvlm.training import integrity
from vitvlm.training.records import Described, line

Tree = Any


def open_arrays(
    folder: epath.Path, arrays: Mapping[str, Described], damaged: Callable[[str], Exception]
) -> dict[str, Stored]:
    """Arrays that lie in a folder of Orbax's as lazy ones, by path; nothing is read yet.

    Each is read whole, since its fingerprint is of the whole, and the one that was read last is kept, so that the
    layers of scanned blocks are best used one after the other.

    Args:
      arrays: as a record lists them.
      damaged: makes the error to raise, from its message, where an array cannot be read or lacks its fingerprint.
    """
    read = functools.lru_cache(maxsize=1)(functools.partial(_read, folder, arrays, damaged))
    return {
        path: Stored(shape, np.dtype(jnp.dtype(dtype)), functools.partial(read, path), origin=path)
        for path, (shape, dtype, _) in arrays.items()
    }


def variables(arrays: Tree, ema: bool | None = None, *, whole: bool = True) -> dict[str, Tree]:
    """The lazy variables of a model, {"params": …}, among the arrays of a train state.

    Args:
      ema: whether to take the averaged parameters, in the parameters' dtypes; by default, exactly if there are such.
        What is not averaged, being frozen, is taken as it is.
      whole: quantized matrices are float32 again, and adapters are merged into their matrices; otherwise each stays the
        arrays "values" and "scales", and adapters the tree "lora" (`nn.lora.attach`).

    Raises KeyError for averaged parameters that are asked for and not there.
    """
    frozen = paths.flatten(arrays.get("frozen", {}))
    params = paths.flatten(arrays["params"]) | (_made_whole(frozen) if whole else frozen)
    if ema is None:
        ema = "ema" in arrays
    averaged = paths.flatten(arrays["ema"]) if ema else {}
    taken = {
        path: Stored(leaf.shape, leaf.dtype, averaged.get(path, leaf).read, averaged.get(path, leaf).origin)
        for path, leaf in params.items()
    }
    for path, parts in _adapters(taken).items() if whole else ():
        matrix, merged = taken[path], lora.Adapted(taken[path], **parts)
        taken[path] = Stored(matrix.shape, matrix.dtype, functools.partial(_merged, merged), matrix.origin)
    own = {path: leaf for path, leaf in taken.items() if not (whole and lora.is_adapter(path))}
    return {"params": paths.unflatten(own), **arrays.get("collections", {})}


def adapters(arrays: Tree, ema: bool | None = None) -> dict[str, dict[str, Stored]]:
    """The parts of each low-rank adapter of a train state, by the path of its matrix; see `nn.lora`."""
    trained = paths.flatten(arrays["params"])
    if ema is None:
        ema = "ema" in arrays
    averaged = paths.flatten(arrays["ema"]) if ema else {}
    return _adapters(trained | averaged | paths.flatten(arrays.get("frozen", {})))


def _adapters(leaves: Mapping[str, Stored]) -> dict[str, dict[str, Stored]]:
    found: dict[str, dict[str, Stored]] = {}
    for path, leaf in leaves.items():
        if lora.is_adapter(path) and (name := path.rpartition("/")[2]) != "dropout":
            found.setdefault(lora.base_path(path), {})[name] = leaf
    return found


def _merged(adapted: lora.Adapted) -> np.ndarray:
    read = jax.tree.map(lambda leaf: jnp.asarray(leaf.read()), adapted, is_leaf=lambda leaf: isinstance(leaf, Stored))
    return np.asarray(read.whole(read.base.dtype))


def _made_whole(frozen: Mapping[str, Stored]) -> dict[str, Stored]:
    """The frozen parameters by path, with one lazy matrix in the place of the two arrays of a quantized one."""
    found = dict(frozen)
    for path, values in frozen.items():
        matrix = path.removesuffix("/values")
        if matrix != path and values.dtype in (np.int8, np.uint8) and f"{matrix}/scales" in frozen:
            stored = Quantized(found.pop(path), found.pop(f"{matrix}/scales"))
            found[matrix] = Stored(stored.shape, np.dtype(np.float32), functools.partial(_whole, stored), matrix)
    return found


def _whole(stored: Quantized) -> np.ndarray:
    return np.asarray(Quantized(jnp.asarray(stored.values.read()), jnp.asarray(stored.scales.read())).whole())


def _read(
    folder: epath.Path, arrays: Mapping[str, Described], damaged: Callable[[str], Exception], path: str
) -> np.ndarray:
    _, _, fingerprint = arrays[path]
    where = os.fspath(folder)
    base = where if "://" in where else f"file://{os.path.abspath(where)}"
    kvstore = {"driver": "ocdbt", "base": f"{base}/", "path": f"{path.replace('/', '.')}/"}
    try:
        array = tensorstore.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True).result().read().result()
    except (ValueError, OSError) as error:
        raise damaged(f"{path}: {line(error)}") from error
    if integrity.of_host(array) != fingerprint:
        raise damaged(f"checksums differ: {path}")
    array.flags.writeable = False  # it is kept for the next use
    return array

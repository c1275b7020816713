"""Checks that a job's arrays can be held at all, by an estimate from their shapes before any is allocated.

What is counted is certain to be needed: the training's state, in the dtypes and the share of it that each device holds,
and one batch on its host. Activations and gradients are not, so a job that passes may still be too
large; one that does not pass cannot run.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding

from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten

Tree = Any

_CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")


def check_state(shapes: Tree, shardings: Tree, section: Mapping[str, Any], what: str) -> None:
    """Raises ConfigError for arrays that the devices of this process cannot hold.

    Devices that are not here, such as those of a plan, are not judged.

    Args:
      shapes, shardings: of the arrays; any pytree.
      section: the config's `model`, whose fields are named.
      what: what the arrays are, for the message: "its parameters".
    """
    found, places = flatten(shapes), flatten(shardings)
    held = {path: _bytes(leaf, places[path]) for path, leaf in found.items()}
    here = jax.local_devices()
    if not held or not _on_these(next(iter(places.values())), here):
        return
    need, room = sum(held.values()), _room(here)
    if need <= room:
        return
    largest = max(held, key=held.__getitem__)
    shape = found[largest].shape
    raise ConfigError(
        f"{_field(section, shape)}: {what} would take {size(need)} on each device, estimated from their shapes, and a "
        f"device has {size(room)}; the largest is {largest}, {' x '.join(f'{side:,}' for side in shape)}: make the "
        "model smaller, or spread it over more devices with config.sharding"
    )


def check_batch(example: Mapping[str, np.ndarray], batch_size: int, where: str) -> None:
    """Raises ConfigError for a batch of which this process cannot hold its share.

    Args:
      example: arrays of any number of rows, shaped as those of a batch.
      where: the field that says the batch size.
    """
    row = sum(array.nbytes / max(len(array), 1) for array in example.values())
    need, room = row * batch_size / jax.process_count(), host_bytes()
    if need > room:
        raise ConfigError(
            f"{where}: {batch_size:,} examples of {size(row)} would take {size(need)} in each process, and this "
            f"machine has {size(room)}: make it smaller"
        )


def host_bytes() -> float:
    """Bytes of memory that this process may use: the machine's, or its container's if that has fewer."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
    try:
        limit = _CGROUP.read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdecimal() else physical


def size(count: float) -> str:
    """Writes a number of bytes in a unit that a reader can weigh."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB", "EB"):
        if count < 1000 or unit == "EB":
            return f"{count:,.3g} {unit}" if count < 1e6 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError("there is a last unit")


def _bytes(leaf: Any, place: NamedSharding) -> int:
    return math.prod(place.shard_shape(leaf.shape)) * getattr(leaf.dtype, "itemsize", 8)


def _on_these(place: NamedSharding, here: list[jax.Device]) -> bool:
    return not isinstance(place.mesh, AbstractMesh) and bool(place.device_set & set(here))


def _room(here: list[jax.Device]) -> float:
    """Bytes of one device; simulated devices share their host's memory."""
    stats = here[0].memory_stats() or {}
    return stats.get("bytes_limit") or host_bytes() / len(here)


def _field(section: Mapping[str, Any], shape: tuple[int, ...]) -> str:
    """The field of a model that an array's largest side comes from: the largest of those that divide it."""
    side = max(shape, default=0)
    numbers = {path: value for path, value in flatten(_numbers(section)).items() if value > 1 and side % value == 0}
    if not numbers:
        return "config.model"
    path = max(numbers, key=lambda path: (numbers[path], "width" in path))
    return f"config.model.{path.replace('/', '.')}={numbers[path]}"


def _numbers(section: Mapping[str, Any]) -> dict[str, Any]:
    """The whole numbers of a section and of those in it."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, Mapping):
            found[name] = _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            found[name] = value
    return found

"""Loads a folder of weights once, in a process of its own, and prints what that took as JSON.

python loading_once.py FOLDER scan|loop time|memory

It is run by its path, so that PYTHONPATH says which version of vitvlm is measured: one that places each tensor where it
belongs, or one from before, which loads onto the default device, copies to the host and then to the devices.
"""

import gc
import inspect
import json
import sys
import threading
import time
from pathlib import Path

import jax
from jax.sharding import AxisType

from vitvlm import pretrained
from vitvlm.training import sharding

SAMPLE_SECONDS = 0.02


def main(folder: str, scan: bool, memory: bool) -> None:
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), (AxisType.Auto,))
    jax.block_until_ready([jax.device_put(0.0, device) for device in jax.devices()])
    gc.collect()
    most, done = dict.fromkeys(jax.devices(), 0), threading.Event()
    watcher = threading.Thread(target=_watch, args=(most, done))
    if memory:  # whose watching takes time
        watcher.start()
        if hasattr(pretrained, "open"):
            pretrained.open(folder, scan=scan)  # traces the model, which takes memory of its own; reads headers only
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, start = _resident("VmRSS"), time.perf_counter()
    variables = _load(folder, scan, mesh)
    seconds, peak = time.perf_counter() - start, _resident("VmHWM")
    done.set()
    if memory:
        watcher.join()
    _sample(most)
    leaves = jax.tree.leaves(variables)
    share = max(sum(s.data.nbytes for leaf in leaves for s in leaf.addressable_shards if s.device == d) for d in most)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "host": peak - before,
                "device": max(most.values()),
                "share": share,
                "bytes": sum(leaf.nbytes for leaf in leaves),
            }
        )
    )


def _load(folder: str, scan: bool, mesh: jax.sharding.Mesh):
    if "place" in inspect.signature(pretrained.load).parameters:
        return pretrained.load(folder, sharding.variables_by("fsdp", mesh), scan=scan).variables
    params = jax.device_get(pretrained.load(folder, scan=scan).variables["params"])
    where = sharding.shardings(params, "fsdp", mesh)
    return {"params": jax.block_until_ready(jax.tree.map(jax.device_put, params, where))}


def _watch(most: dict[jax.Device, int], done: threading.Event) -> None:
    while not done.is_set():
        _sample(most)
        time.sleep(SAMPLE_SECONDS)


def _sample(most: dict[jax.Device, int]) -> None:
    """Notes the bytes of the arrays that live on each device, if they are the most so far.

    A buffer counts once, though an array over several devices and its part on one of them may both live.
    """
    buffers: dict[tuple[jax.Device, int], int] = {}
    for array in jax.live_arrays():
        try:
            for shard in array.addressable_shards:
                buffers[shard.device, shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
        except RuntimeError:  # deleted since
            continue
    for device in most:
        most[device] = max(most[device], sum(size for (place, _), size in buffers.items() if place == device))


def _resident(which: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "scan", sys.argv[3] == "memory")

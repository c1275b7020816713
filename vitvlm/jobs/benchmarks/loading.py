"""Time and memory of loading weights: against reading the same file into NumPy, and onto the shards of many devices."""

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table
from safetensors.numpy import load_file

from vitvlm import models, pretrained
from vitvlm.jobs.benchmarks import loading_once, quartiles
from vitvlm.pretrained.tensors import SINGLE

SAMPLE_SECONDS = 0.002


def write_example(folder: Path, variant: str) -> None:
    """A Hugging Face folder with a ViT of that size, of random numbers."""
    model = models.build("vit", variant=variant, num_classes=1000)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    pretrained.save(pretrained.Pretrained(model, variables, None, None, {}), folder)


def measure(folder: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Measures (seconds, bytes of added memory) of each round, alternating, after an uncounted round of each."""
    ways: dict[str, Callable[[], Any]] = {
        "NumPy": lambda: load_file(folder / SINGLE),
        "pretrained.load": lambda: jax.block_until_ready(pretrained.load(folder).variables),
        "pretrained.load, scanned": lambda: jax.block_until_ready(pretrained.load(folder, scan=True).variables),
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            found = _watched(way)
            if number:
                seen[name].append(found)
    return seen


def table(folder: Path, seen: dict[str, list[tuple[float, float]]]) -> Table:
    """Medians [quartiles], and the ratio to NumPy round by round."""
    size = (folder / SINGLE).stat().st_size
    shown = Table("what", "seconds", "ratio", "memory / file", title=f"{size / 1e6:,.0f} MB of safetensors")
    base = np.array([seconds for seconds, _ in seen["NumPy"]])
    for name, rounds in seen.items():
        seconds, memory = np.array(rounds).T
        times, ratios = (quartiles.shown(values, 2) for values in (seconds, seconds / base))
        shown.add_row(name, times, ratios, f"{np.median(memory) / size:.2f}")
    return shown


def measure_shards(
    folder: Path, rounds: int, devices: int, versions: Mapping[str, Path]
) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Measures `loading_once` under FSDP on simulated devices, each time in a fresh process, versions in turn.

    Args:
      versions: the checkout of each version by its name.

    Returns what it prints of each round, by version and by whether blocks are scanned; the last is that of a round
    whose memory was watched, which takes time.
    """
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        watched = "memory" if number == rounds else "time"
        for blocks in ("scan", "loop"):
            for name, checkout in versions.items():
                environment = {"PYTHONPATH": str(checkout), "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
                done = subprocess.run(
                    [sys.executable, loading_once.__file__, str(folder), blocks, watched],
                    env=os.environ | environment,
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    raise RuntimeError(f"{name}: {done.stderr.strip()[-2000:]}")
                found.setdefault((name, blocks), []).append(json.loads(done.stdout.splitlines()[-1]))
    return found


def shards_table(folder: Path, found: Mapping[tuple[str, str], list[dict[str, float]]]) -> Table:
    """Median seconds [quartiles], what the host held at most and what a device did, its share being 1."""
    size = (folder / SINGLE).stat().st_size
    title = f"{size / 1e6:,.0f} MB of safetensors onto FSDP shards"
    shown = Table("version", "blocks", "seconds", "host, MB", "most on a device / its share", title=title)
    for (name, blocks), (*timed, watched) in found.items():
        seconds = quartiles.shown([each["seconds"] for each in timed], 2)
        device = f"{watched['device'] / watched['share']:.2f}"
        shown.add_row(name, blocks, seconds, f"{watched['host'] / 1e6:,.0f}", device)
    return shown


def _watched(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that a call takes, and how far the process's resident memory rises meanwhile."""
    ctypes.CDLL(None).malloc_trim(0)  # what was kept for later goes back: each call starts with as much
    done, highest, before = threading.Event(), [0], _resident()

    def watch() -> None:
        while not done.is_set():
            highest[0] = max(highest[0], _resident())
            time.sleep(SAMPLE_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    del result
    return seconds, highest[0] - before


def _resident() -> int:
    """Bytes of this process that are in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

"""Time and memory of loading weights, against reading the same file into NumPy."""

import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table
from safetensors.numpy import load_file

from vitvlm import models, pretrained
from vitvlm.jobs import quartiles
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

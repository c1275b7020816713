"""Step time of models against their PyTorch peers on the same machine, in one run.

A step is the loss and its gradient by every parameter, without an optimizer. Rounds alternate between the two, so that
other load slows both alike. Medians, their quartiles, and the median of the ratios are reported.
"""

import contextlib
import dataclasses
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from rich.table import Table

from vitvlm import models
from vitvlm.core import compiling
from vitvlm.core.config import ConfigError, suggest
from vitvlm.jobs.benchmarks import awake, peers, quartiles, tables
from vitvlm.models.vit import SIZES
from vitvlm.tasks.classify import Classify
from vitvlm.tasks.reconstruct import Reconstruct
from vitvlm.training.gradients import make_gradients

CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and one batch.

    Fields:
      name: for the reader, "ViT-S/16"; family: "vit" or "mae".
      sizes: width, depth, heads, mlp_width and patch_size; MAE's decoder is the paper's, 8 blocks of width 512.
      image_size: side in pixels; batch_size: images per step.
    """

    name: str
    family: str
    sizes: Mapping[str, int]
    image_size: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of one case. Times in seconds, one per round; `peer_seconds` is empty without a peer.

    `temporary_bytes` is the peak of the step's temporary buffers; parameters, gradients and the batch come on top.
    """

    case: Case
    seconds: tuple[float, ...]
    peer_seconds: tuple[float, ...]
    compile_seconds: float
    temporary_bytes: int

    @property
    def ratios(self) -> tuple[float, ...]:
        """Our time over the peer's, round by round."""
        return tuple(ours / theirs for ours, theirs in zip(self.seconds, self.peer_seconds, strict=False))


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of a benchmark run.

    Fields:
      environment: machine, threads and versions.
      scan: whether our layers are under `nn.scan`; micro_batches: how many we run side by side.
    """

    measured: tuple[Measured, ...]
    environment: Mapping[str, str]
    scan: bool
    micro_batches: int


def parse_case(name: str, image_size: int, batch_size: int) -> Case:
    """Parses `"vit_s16"` or `"mae_b16"`: family, size and patch side. Raises ConfigError for an unknown model."""
    sizes = {size.lower(): size for size in SIZES}
    parsed = re.fullmatch(r"(vit|mae)_([a-z]+)(\d+)", name)
    if parsed is None or parsed[2] not in sizes:
        near = suggest(name, [f"{family}_{size}16" for family in ("vit", "mae") for size in sizes])
        raise ConfigError(f"--models: {name!r} is not family_sizepatch, such as vit_s16; {near}")
    family, size, patch = parsed[1], sizes[parsed[2]], int(parsed[3])
    name = f"{'ViT' if family == 'vit' else 'MAE'}-{size}/{patch}"
    return Case(name, family, SIZES[size] | {"patch_size": patch}, image_size, batch_size)


def run(
    cases: Sequence[Case],
    *,
    rounds: int,
    peer: bool,
    scan: bool,
    workdir: str,
    micro_batches: int = 1,
    keep_awake: bool = False,
) -> Report:
    """Measures the cases and writes benchmark.json and benchmark.md to `workdir`.

    Args:
      rounds: alternating rounds, after a warm-up of each side.
      peer: whether to run the PyTorch peers; they need the [test] extra.
      scan: whether our layers are under `nn.scan`, which compiles faster and runs slower than a loop.
      micro_batches: into how many, side by side, we split the batch.
      keep_awake: whether the cores are kept from sleeping, for both sides (see `awake`).

    Raises ConfigError if the peers' packages are not installed.
    """
    if peer:
        peers.require(threads())
    with awake.cores_awake(threads()) if keep_awake else contextlib.nullcontext():
        measured = tuple(measure(case, rounds, peer, scan, micro_batches) for case in cases)
    cores = {"cores": "kept awake" if keep_awake else "may sleep"}
    report = Report(measured, environment() | cores, scan, micro_batches)
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(as_json(report), indent=2) + "\n")
    (folder / "benchmark.md").write_text(markdown(report))
    return report


def measure(case: Case, rounds: int, peer: bool, scan: bool, micro_batches: int) -> Measured:
    """Compiles, warms up, and takes alternating rounds of one case."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((case.batch_size, case.image_size, case.image_size, 3), np.float32)
    label = rng.integers(CLASSES, size=case.batch_size)
    step, compile_seconds, temporary_bytes = _compile(case, image, label, scan, micro_batches)
    sides = [step, peers.make_step(case.family, case.sizes, image, label, CLASSES)] if peer else [step]
    for side in sides:
        side()
    seconds = [[_time(side) for side in sides] for _ in range(rounds)]
    ours, *theirs = zip(*seconds, strict=True)
    return Measured(case, ours, theirs[0] if theirs else (), compile_seconds, temporary_bytes)


def _compile(
    case: Case, image: np.ndarray, label: np.ndarray, scan: bool, micro_batches: int
) -> tuple[Callable[[], None], float, int]:
    """Our step, the seconds that its compilation took, and the bytes of its temporary buffers."""
    head = {"num_classes": CLASSES} if case.family == "vit" else {}
    model = models.build(case.family, **case.sizes, image_size=case.image_size, scan=scan, **head)
    task = Classify(model) if case.family == "vit" else Reconstruct(model)
    gradients = make_gradients(task.losses, accumulate=micro_batches, unroll=micro_batches > 1)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label), "example_mask": jnp.ones(case.batch_size)}
    key = jax.random.key(0)
    params = jax.jit(task.init)(key, batch)["params"]

    lowered = jax.jit(gradients).lower(params, {}, batch, key)
    start = time.perf_counter()
    compiled = lowered.compile(compiler_options=compiling.compiler_options(jax.devices()))
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    return lambda: jax.block_until_ready(compiled(params, {}, batch, key)), compile_seconds, memory.temp_size_in_bytes


def _time(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def threads() -> int:
    """Cores that this process may use; JAX on CPU runs as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, str]:
    """Machine, threads and versions: what a figure means nothing without."""
    versions = {}
    for package in ("jax", "jaxlib", "flax", "torch", "transformers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processor": _processor(),
        "threads": str(threads()),
        "load average": f"{os.getloadavg()[0]:.1f} at the end",
        **versions,
    }


def _processor() -> str:
    """The processor's name and the widest vectors it has."""
    try:
        text = epath.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"model name\s*: (.*)", text)
    vectors = next((isa for isa in ("avx512f", "avx2", "avx") if re.search(rf"\b{isa}\b", text)), "no AVX")
    return f"{name[1] if name else platform.machine()} ({vectors})"


COLUMNS = ("model", "batch", "ms", "PyTorch ms", "ratio", "images/s", "PyTorch images/s", "compile s", "temporary MB")


def rows(measured: Sequence[Measured]) -> list[tuple[str, ...]]:
    """The table's cells, under COLUMNS: medians, with quartiles in brackets."""
    return [
        (
            one.case.name,
            f"{one.case.batch_size} x {one.case.image_size} px",
            quartiles.shown([1e3 * s for s in one.seconds], 0),
            quartiles.shown([1e3 * s for s in one.peer_seconds], 0),
            quartiles.shown(one.ratios, 2),
            _rate(one.case, one.seconds),
            _rate(one.case, one.peer_seconds),
            f"{one.compile_seconds:.1f}",
            f"{one.temporary_bytes / 1e6:.0f}",
        )
        for one in measured
    ]


def _rate(case: Case, seconds: Sequence[float]) -> str:
    return f"{case.batch_size / np.median(seconds):.1f}" if seconds else "-"


def table(report: Report) -> Table:
    """Makes the table for the terminal: one column per model."""
    shown = Table(title="Forward and backward, float32: medians [quartiles]", caption=_facts(report))
    names, *quantities = zip(COLUMNS, *rows(report.measured), strict=True)
    for name in names:
        shown.add_column(name)
    for quantity in quantities:
        shown.add_row(*quantity)
    return shown


def markdown(report: Report) -> str:
    """The table as it can be pasted into a README."""
    note = f"Forward and backward, float32: medians [quartiles]. {_facts(report)}."
    return tables.markdown(COLUMNS, rows(report.measured), note)


def as_json(report: Report) -> dict[str, Any]:
    """Everything measured, every round."""
    ratios = [float(np.median(one.ratios)) if one.ratios else None for one in report.measured]
    cases = [dataclasses.asdict(one) | {"ratio": ratio} for one, ratio in zip(report.measured, ratios, strict=True)]
    settings = {"dtype": "float32", "scan": report.scan, "micro_batches": report.micro_batches}
    return {"environment": report.environment, **settings, "cases": cases}


def _facts(report: Report) -> str:
    rounds = f"{max((len(one.seconds) for one in report.measured), default=0)} alternating rounds"
    layers = f"layers in a {'scan' if report.scan else 'loop'}"
    split = f"batch in {report.micro_batches} parts side by side" if report.micro_batches > 1 else "batch whole"
    return ", ".join([rounds, layers, split, *(f"{name} {value}" for name, value in report.environment.items())])

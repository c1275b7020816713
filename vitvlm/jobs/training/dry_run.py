"""A dry run of a training: everything but the training. It is set up, compiled, and takes a few steps that are lost."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vitvlm.core import config as config_lib
from vitvlm.core.paths import count_values, flatten
from vitvlm.data import sources
from vitvlm.jobs import data_files, fields
from vitvlm.jobs.evaluation import evaluations
from vitvlm.jobs.training import stages, train
from vitvlm.jobs.training.setup import Setup, setup
from vitvlm.training import sharding, storage
from vitvlm.training.progress import duration

STEPS = 3
"""Steps that are timed, after one that is not."""
MOST_CLASSES = 40
"""Classes that are listed one by one."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Costs of a training on a device, and its time.

    Attributes:
      compile_seconds: of the training step's program.
      state, batch, temporary: bytes on each device: the train state with what the loss reads besides, a batch, and
        what the program holds in between.
      step_seconds, batch_seconds: of a step on the devices, and of making a batch on the host; medians.
    """

    compile_seconds: float
    state: int
    batch: int
    temporary: int
    step_seconds: float
    batch_seconds: float


def run(config: ConfigDict | Mapping[str, Any], say: Callable[[str], None] = print) -> None:
    """Reports what a training would do, on these devices: data, parameters, memory and time; writes no file.

    A later stage of a training in stages is timed with fresh parameters. Raises ConfigError or DataError as the
    training would.
    """
    plain = config_lib.plain(config)
    if fields.STAGES not in plain:
        _run(plain, say)
        return
    for name, section in stages.configs(plain).items():
        say(f"\nStage {name}")
        _run(section, say)


def _run(config: Mapping[str, Any], say: Callable[[str], None]) -> None:
    job = setup(config)
    evals = evaluations.build(job.model, job.data, job.evals)
    train.best_checkpoint(job, evals)
    for line in data_files.lines({"train": job.data.source.files} | {each.name: each.source.files for each in evals}):
        say(line)
    used = {"Training": job.data.source} | {f"Evaluation {each.name}": each.source for each in evals}
    for name, source in used.items():
        say(f"\n{name}: {source.name} ({source})")
        for line in table(class_counts(source)):
            say(f"  {line}")
    say(f"\nModel: {job.config['task']['name']} with {job.model.section['name']}")
    for line in table(parameters(job)):
        say(f"  {line}")
    found = cost(job)
    clock, size = job.training.clock, job.data.batch_size
    epochs = clock.total_steps * size / max(len(job.data.source), 1) if not job.data.source.streams else None
    say(f"\nTraining: {clock.total_steps:,} steps of {size} examples{f', {epochs:.3g} epochs' if epochs else ''}")
    device = jax.local_devices()[0]
    say(f"  devices: {jax.device_count()} x {device.device_kind} ({device.platform})")
    whole = found.state + found.batch + found.temporary
    say(
        f"  memory of each device: {_bytes(whole)}: state {_bytes(found.state)}, batch {_bytes(found.batch)}, "
        f"computation {_bytes(found.temporary)}"
    )
    say(f"  arithmetic: {train.step_flops(job.training) / 1e9:,.3g} GFLOPs per step")
    slower = "the batches" if found.batch_seconds > found.step_seconds else "the devices"
    each = max(found.step_seconds, found.batch_seconds)
    say(
        f"  time: compiling {found.compile_seconds:.1f} s; a step {found.step_seconds:.3g} s, making a batch "
        f"{found.batch_seconds:.3g} s"
    )
    say(
        f"  estimate: {duration(clock.total_steps * each)} for {clock.total_steps:,} steps at "
        f"{size / each:,.0f} examples/s "
        f"({slower} set the pace), without evaluations and checkpoints"
    )


def class_counts(source: sources.Source) -> list[tuple[str, ...]]:
    """Rows of (class, examples, share), the most frequent first; of many classes the first and the last."""
    if not source.labelled:
        return [("without classes", "", "")]
    if source.multi_label:
        found = np.concatenate([*source.label_sets, np.zeros(0, int)]).astype(int)
    else:
        found = source.labels[source.labels >= 0]
    counts = np.bincount(found, minlength=source.num_classes)
    order = np.argsort(-counts, kind="stable")
    total = max(int(counts.sum()), 1)
    rows = [(source.label_names[place], f"{counts[place]:,}", f"{counts[place] / total:.1%}") for place in order]
    if len(rows) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        rows = [*rows[:half], (f"… {len(rows) - 2 * half} more", "", ""), *rows[-half:]]
    return rows


def parameters(job: Setup) -> list[tuple[str, ...]]:
    """Rows of (module, arrays, parameters, trained) by the two upper levels of paths, and their sum."""
    state = job.training.state_shapes
    rows: dict[str, list[int]] = {}
    for tree, learns in ((state.params, True), (state.frozen or {}, False)):
        for path, leaf in flatten(tree, storage.is_quantized).items():
            module = "/".join(path.split("/")[:-1][:2]) or path
            size = count_values(leaf)
            row = rows.setdefault(module, [0, 0, 0])
            row[:] = row[0] + 1, row[1] + size, row[2] + size * learns
    whole = [sum(column) for column in zip(*rows.values())]
    head = ("module", "arrays", "parameters", "trained")
    return [head, *((name, *(f"{count:,}" for count in row)) for name, row in [*rows.items(), ("all", whole)])]


def cost(job: Setup) -> Cost:
    """Compiles the training step and takes a few steps on batches of the training data; the state is thrown away."""
    training, mesh = job.training, job.model.mesh
    with job.data.batches() as batches:
        made = []
        for _ in range(STEPS + 1):
            start = time.perf_counter()
            host = next(batches)
            made.append(time.perf_counter() - start)
    batch = sharding.put_batch(host, mesh)
    step = train.compiled_step(training)
    start = time.perf_counter()
    program = step.lower(training.target, batch).compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    state = train.first_state(training)
    took = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        state, metrics = program(state, batch, step.constants)
        jax.block_until_ready(metrics)
        took.append(time.perf_counter() - start)
    of_batch = sum(leaf.nbytes for leaf in batch.values()) // mesh.size
    arguments = memory.argument_size_in_bytes if memory is not None else 0
    temporary = memory.temp_size_in_bytes if memory is not None else 0
    return Cost(
        compile_seconds=seconds,
        state=max(arguments - of_batch, 0),
        batch=of_batch,
        temporary=temporary,
        step_seconds=float(np.median(took[1:])),
        batch_seconds=float(np.median(made[1:])),
    )


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines, the first column to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"

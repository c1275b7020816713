"""Training steps of our models shared by all chips of a TPU topology under FSDP, as compiled: memory, and what travels.

The step is that of `benchmarks.tpu`, with layers in a scan and each recomputed in the backward pass. Parameters and
moments are split over all chips, examples too, so that weights are gathered before use and their gradients scattered;
activations should stay where they are.
"""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from rich.table import Table

from vitvlm.jobs.benchmarks import tables, tpu
from vitvlm.jobs.benchmarks.loss_memory import devices
from vitvlm.training.sharding import batch_sharding, keep_examples_split, make_mesh, state_shardings
from vitvlm.training.state import TrainState

FILE = "benchmark_tpu_fsdp.json"
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Travel:
    """Collectives of one kind in a program's text; a loop's count once.

    Fields:
      count: how many there are.
      bytes: of their results on a chip, summed; largest: of the largest result.
    """

    count: int
    bytes: int
    largest: int


@dataclasses.dataclass(frozen=True)
class Shared:
    """A compiled step of one model.

    Fields:
      state_bytes: arguments on a chip; whole_bytes: parameters and moments of the whole model.
      temporary_bytes: on a chip.
      travel: by kind of collective.
    """

    name: str
    batch_size: int
    chips: int
    state_bytes: int
    whole_bytes: int
    temporary_bytes: int
    travel: Mapping[str, Travel]


def run(names: Sequence[str], *, batch_size: int, image_size: int, topology: str, workdir: str) -> list[Shared]:
    """Compiles each model's step for all chips of the topology; writes benchmark_tpu_fsdp.json and .md to `workdir`.

    Args: those of `tpu.run`; the batch is that of all chips together.

    Raises ConfigError as `tpu.run` does, and for a batch that the chips do not divide.
    """
    cases = [tpu.parse(name) for name in names]
    chips = devices(topology)
    measured = [measure(*case, batch_size, image_size, chips) for case in cases]
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"device": f"{len(chips)} x {chips[0].device_kind}", "image_size": image_size}
    facts |= {package: metadata.version(package) for package in ("jax", "flax", "libtpu")}
    written = {"environment": facts, "cases": [dataclasses.asdict(one) for one in measured]}
    (folder / FILE).write_text(json.dumps(written, indent=2) + "\n")
    note = f"As compiled, nothing was run; collectives in the program's text, a loop's once; {tables.listed(facts)}."
    (folder / "benchmark_tpu_fsdp.md").write_text(tables.markdown(COLUMNS, rows(measured), note))
    return measured


def measure(family: str, size: str, patch: int, batch_size: int, image_size: int, chips: Sequence[Any]) -> Shared:
    """Compiles a training step for all chips, in whose one mesh axis, "fsdp", the state and the examples are split."""
    mesh = make_mesh({"fsdp": -1}, chips, where="--topology")
    compiled, state = compile_step(family, size, patch, batch_size, image_size, mesh)
    memory = compiled.memory_analysis()
    whole = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state))
    )
    sizes = (memory.argument_size_in_bytes, whole, memory.temp_size_in_bytes)
    return Shared(tpu.title(family, size, patch), batch_size, len(chips), *sizes, travel(compiled.as_text()))


def compile_step(family: str, size: str, patch: int, batch_size: int, image_size: int, mesh: Any) -> tuple[Any, Any]:
    """Returns the compiled step and the shapes of its state."""
    init, loss = tpu.ours(family, size, patch, image_size, scan=True, remat="full")
    batch = dict(tpu.abstract_batch(family, batch_size, image_size, *((patch,) if family == "smollm2" else ())))
    optimizer = optax.adamw(1e-3)

    def create(key: Any) -> TrainState:
        return TrainState.create({"params": init(key, batch_of_zeros(batch))["params"]}, optimizer, key)

    state = jax.eval_shape(create, jax.eval_shape(lambda: jax.random.key(0)))
    split = keep_examples_split(loss, mesh)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        value, gradients = jax.value_and_grad(lambda params: split({"params": params}, batch))(state.params)
        updates, moments = optimizer.update(gradients, state.opt_state, state.params)
        return state.replace(params=optax.apply_updates(state.params, updates), opt_state=moments), value

    placed = state_shardings(state, "fsdp", mesh)
    whole, examples = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)
    inputs = {name: whole if name == "key" else examples for name in batch}
    jitted = jax.jit(step, in_shardings=(placed, inputs), out_shardings=(placed, whole), donate_argnums=0)
    return jitted.lower(state, batch).compile(), state


def batch_of_zeros(batch: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Returns arrays of those shapes; to be traced, never computed."""
    return {
        name: jax.random.key(0) if name == "key" else np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
        for name, leaf in batch.items()
    }


def travel(program: str) -> dict[str, Travel]:
    """Counts the collectives of a compiled program's text, by kind; those of asynchronous pairs once."""
    found = collections.defaultdict(list)
    for result, kind in re.findall(rf"= ([^=]*?) ({'|'.join(KINDS)})(?:-start)?\(", program):
        found[kind].append(max(map(_bytes, re.findall(r"([a-z]+\d+)\[([\d,]*)\]", result)), default=0))
    return {kind: Travel(len(each), sum(each), max(each)) for kind in KINDS if (each := found[kind])}


def _bytes(shape: tuple[str, str]) -> int:
    """Bytes of an array such as ("bf16", "8,128")."""
    bits = int(re.sub(r"\D", "", shape[0]))
    return math.prod(int(size) for size in shape[1].split(",") if size) * bits // 8


COLUMNS = ("model", "batch", "chips", "state MB a chip", "of an even share", "temporary MB", *KINDS)


def rows(measured: Sequence[Shared]) -> list[tuple[str, ...]]:
    """The table's cells, under COLUMNS."""
    return [
        (
            one.name,
            str(one.batch_size),
            str(one.chips),
            f"{one.state_bytes / 1e6:.0f}",
            f"{one.state_bytes * one.chips / one.whole_bytes:.2f}",
            f"{one.temporary_bytes / 1e6:.0f}",
            *(_cell(one.travel.get(kind)) for kind in KINDS),
        )
        for one in measured
    ]


def _cell(travel: Travel | None) -> str:
    if travel is None:
        return "-"
    return f"{travel.count}: {travel.bytes / 1e6:.1f} MB, largest {travel.largest / 1e6:.1f}"


def table(measured: Sequence[Shared]) -> Table:
    """Makes the table for the terminal."""
    return tables.terminal(COLUMNS, rows(measured), "A training step on all chips, as compiled")

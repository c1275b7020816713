"""Memory of a training step, as compiled, of a model that trains as a whole, in part or by adapters: nothing is run."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from etils import epath
from rich.table import Table

from vitvlm.core.config import ConfigError
from vitvlm.core.paths import count_bytes, count_values
from vitvlm.jobs.benchmarks import tables
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import TrainingSetup
from vitvlm.training import sharding
from vitvlm.training.arrays import as_arrays

COLUMNS = (
    *("trained as", "trains", "state", "frozen", "trained", "moments", "arguments", "temporaries", "in all"),
    *("checkpoint", "once"),
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Bytes of one step on one device, and of a checkpoint.

    Fields:
      name: of the way to train; trains: number of parameters that do.
      frozen, trained, moments: of the state, as stored: the frozen parameters, those that train, and the optimizer's.
      arguments, temporaries: of the compiled program; the state is an argument, and the new one takes its place.
      checkpoint: of each checkpoint, whatever the devices; once: what is written once for all of them, the frozen ones.
    """

    name: str
    trains: int
    frozen: int
    trained: int
    moments: int
    arguments: int
    temporaries: int
    checkpoint: int
    once: int

    @property
    def state(self) -> int:
        return self.frozen + self.trained + self.moments

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries


def measure(name: str, config: Mapping[str, Any], devices: Sequence[Any]) -> Measured:
    """Compiles one step of a job's config for its mesh of the devices; neither data nor weights are opened.

    On one device a config's mesh is left out. Raises ConfigError for a mesh that is not of so many devices.
    """
    mesh = sharding.make_mesh(config.get("mesh") or {"data": -1} if len(devices) > 1 else {"data": 1}, devices)
    plain = {**config, "mesh": {}, "init_from": None} | ({"sharding": "replicated"} if len(devices) == 1 else {})
    model = ModelSetup.of(plain, mesh=mesh)
    training = TrainingSetup.of(plain, model)
    rows = training.section.batch_size
    batch = {
        name: jax.ShapeDtypeStruct((rows, *row.shape[1:]), row.dtype)
        for name, row in model.example_batch.items()
        if name not in ("index", "learned_bytes", "learned_words", "label")
    }
    state, places = training.state_shapes, training.state_shardings
    memory = train.compiled_step(training).lower(state, batch).compile().memory_analysis()
    return Measured(
        name=name,
        trains=count_values(state.params),
        frozen=_on_one(state.frozen, places.frozen),
        trained=_on_one(state.params, places.params),
        moments=_on_one((state.opt_state, state.ema), (places.opt_state, places.ema)),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        checkpoint=count_bytes(as_arrays(state.replace(frozen={}))),
        once=count_bytes(state.frozen),
    )


def _on_one(shapes: Any, places: Any) -> int:
    """Bytes of a tree's arrays that one device holds."""
    held = jax.tree.map(
        lambda leaf, place: math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize, shapes, places
    )
    return sum(jax.tree.leaves(held))


def run(configs: Mapping[str, Mapping[str, Any]], devices: Sequence[Any], workdir: str) -> list[Measured]:
    """Measures each config, by the name of its row, and writes adapting.json and adapting.md to `workdir`.

    Raises ConfigError without any config, and for one that cannot be set up.
    """
    if not configs:
        raise ConfigError("--ways: name one or more")
    measured = [measure(name, config, devices) for name, config in configs.items()]
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        **{name: metadata.version(name) for name in ("jax", "flax")},
    }
    cases = [dataclasses.asdict(one) | {"state": one.state, "total": one.total} for one in measured]
    (folder / "adapting.json").write_text(json.dumps({"environment": facts, "cases": cases}, indent=2) + "\n")
    note = f"MB of a step, as compiled, nothing was run; {tables.listed(facts)}."
    (folder / "adapting.md").write_text(tables.markdown(COLUMNS, rows(measured), note))
    return measured


def rows(measured: Sequence[Measured]) -> list[tuple[str, ...]]:
    """The table's cells, under COLUMNS: numbers of parameters, and MB."""
    return [
        (
            one.name,
            f"{one.trains:,}",
            *(
                f"{size / 1e6:,.1f}"
                for size in (
                    *(one.state, one.frozen, one.trained, one.moments),
                    *(one.arguments, one.temporaries, one.total, one.checkpoint, one.once),
                )
            ),
        )
        for one in measured
    ]


def table(measured: Sequence[Measured]) -> Table:
    """Makes the table for the terminal."""
    return tables.terminal(COLUMNS, rows(measured), "MB of a training step on each device, as compiled")

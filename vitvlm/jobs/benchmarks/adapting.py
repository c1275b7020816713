"""Memory of a training step, as compiled, of a model that trains as a whole, by LoRA and by QLoRA: nothing is run."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import AxisType, Mesh
from rich.table import Table

from vitvlm.core.config import ConfigError
from vitvlm.core.paths import count_bytes, count_values
from vitvlm.jobs.benchmarks import tables
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import TrainingSetup

COLUMNS = ("trained as", "trains", "state", "frozen", "trained", "moments", "arguments", "temporaries", "in all")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Bytes of one step on one device.

    Fields:
      name: of the way to train; trains: number of parameters that do.
      frozen, trained, moments: of the state, as stored: the frozen parameters, those that train, and the optimizer's.
      arguments, temporaries: of the compiled program; the state is an argument, and the new one takes its place.
    """

    name: str
    trains: int
    frozen: int
    trained: int
    moments: int
    arguments: int
    temporaries: int

    @property
    def state(self) -> int:
        return self.frozen + self.trained + self.moments

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries


def measure(name: str, config: Mapping[str, Any], device: Any) -> Measured:
    """Compiles one step of a job's config for one device; neither data nor weights are opened."""
    mesh = Mesh(np.array([[[device]]]), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    plain = {**config, "mesh": {}, "init_from": None}
    model = ModelSetup.of(plain, mesh=mesh)
    training = TrainingSetup.of(plain, model)
    rows = training.section.batch_size
    batch = {
        name: jax.ShapeDtypeStruct((rows, *row.shape[1:]), row.dtype)
        for name, row in model.example_batch.items()
        if name not in ("index", "learned_bytes", "learned_words", "label")
    }
    state = training.state_shapes
    memory = train.compiled_step(training).lower(state, batch).compile().memory_analysis()
    return Measured(
        name=name,
        trains=count_values(state.params),
        frozen=count_bytes(state.frozen),
        trained=count_bytes(state.params),
        moments=count_bytes((state.opt_state, state.ema)),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
    )


def run(configs: Mapping[str, Mapping[str, Any]], device: Any, workdir: str) -> list[Measured]:
    """Measures each config, by the name of its row, and writes adapting.json and adapting.md to `workdir`.

    Raises ConfigError without any config, and for one that cannot be set up.
    """
    if not configs:
        raise ConfigError("--ways: name one or more")
    measured = [measure(name, config, device) for name, config in configs.items()]
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"device": device.device_kind, **{name: metadata.version(name) for name in ("jax", "flax")}}
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
                    *(one.arguments, one.temporaries, one.total),
                )
            ),
        )
        for one in measured
    ]


def table(measured: Sequence[Measured]) -> Table:
    """Makes the table for the terminal."""
    return tables.terminal(COLUMNS, rows(measured), "MB of a training step on one device, as compiled")

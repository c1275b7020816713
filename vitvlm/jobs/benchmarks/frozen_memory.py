"""Memory of training steps of which most parameters are frozen, as compiled, beside the sum of the parts it holds.

A step is a job's own (`jobs.training`): a ViT that classifies, under AdamW, with scanned layers. Some 90 % of its
parameters are frozen: the patch embedding, queries, keys, values and MLPs. Attention's output projections, norms,
biases, positions and the head train, so that gradients flow through every layer. Nothing is run.
"""

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

from vitvlm.core.config import ConfigError, suggest
from vitvlm.core.paths import count_bytes, count_values
from vitvlm.jobs.benchmarks import tables
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import TrainingSetup
from vitvlm.training import freezing

Tree = Any

FREEZE = (
    ("patches/.*", True),
    ("blocks/attention/(query|key|value)/kernel", True),
    ("blocks/mlp/.*/kernel", True),
    (".*", False),
)
# How frozen parameters are stored, by the name of a row; vectors, which are not quantized, stay as they are.
STORED: dict[str, tuple | None] = {
    "all train": None,
    "float32": None,
    "bfloat16": (("blocks/.*", "bfloat16"), (".*", None)),
    "int8": (("blocks/.*", "int8"), (".*", None)),
    "nf4": (("blocks/.*", "nf4"), (".*", None)),
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate": 2},
    "ema": {"ema_decay": 0.999},
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the model and its batch; B examples of `image_size` pixels a side."""

    width: int = 256
    depth: int = 8
    heads: int = 4
    patch_size: int = 8
    image_size: int = 32
    batch_size: int = 8
    classes: int = 10


@dataclasses.dataclass(frozen=True)
class Measured:
    """Bytes of one step on one device: what the compiler says, and the parts, computed from shapes.

    Fields:
      way, stored: names of `WAYS` and `STORED`.
      frozen_share: of the parameters.
      arguments, outputs, alias, temporaries: of the compiled program; `alias` is the part of the outputs that takes the
        place of arguments, as the state is donated.
      parameters: those that train; frozen: as stored; moments: the optimizer's state; ema: averages; batch: examples,
        with the state's counters and key. These are the arguments.
      gradients: of what trains; buffer: in which they are accumulated; activations: all that the backward pass of a
        (micro-)batch keeps from the forward pass, parameters apart. These are the temporaries that a step cannot do
        without; above them a program has room for the layer that it works on.
    """

    way: str
    stored: str
    frozen_share: float
    arguments: int
    outputs: int
    alias: int
    temporaries: int
    parameters: int
    frozen: int
    moments: int
    ema: int
    batch: int
    gradients: int
    buffer: int
    activations: int

    @property
    def held(self) -> int:
        """The sum of the parts that are arguments."""
        return self.parameters + self.frozen + self.moments + self.ema + self.batch

    @property
    def needed(self) -> int:
        """The sum of the parts that are temporaries."""
        return self.gradients + self.buffer + self.activations


def config(sizes: Sizes, stored: str, way: str) -> dict[str, Any]:
    """The job's config. Raises ConfigError for a name that is not in `STORED` or `WAYS`."""
    for name, there, flag in ((stored, STORED, "stored"), (way, WAYS, "ways")):
        if name not in there:
            raise ConfigError(f"--{flag}: {name!r}; {suggest(name, there)}")
    split = {"split": "train", "ops": f"decode(3)|resize({sizes.image_size})|normalize('half')"}
    shape = {name: getattr(sizes, name) for name in ("width", "depth", "heads", "patch_size", "image_size")}
    model = {"name": "vit", **shape, "mlp_width": 4 * sizes.width, "num_classes": sizes.classes}
    freeze = {} if stored == "all train" else {"freeze": FREEZE}
    return {
        "model": model,
        "task": {"name": "classify"},
        "data": {"source": "emoji", "train": split, "eval": split},
        "total": 1,
        "batch_size": sizes.batch_size,
        "optimizer": {"name": "adamw", "weight_decay": 0.05, **freeze},
        "schedule": {"name": "constant", "peak": 1e-3},
        "frozen_dtype": STORED[stored],
        **WAYS[way],
    }


def measure(sizes: Sizes, stored: str, way: str, device: Any) -> Measured:
    """Compiles one step for one device."""
    mesh = Mesh(np.array([[[device]]]), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    plain = config(sizes, stored, way)
    model = ModelSetup.of(plain, mesh=mesh)
    training = TrainingSetup.of(plain, model)
    read = {name: value for name, value in model.example_batch.items() if name != "index"}  # the program drops it
    batch = {name: jax.ShapeDtypeStruct((sizes.batch_size, *row.shape[1:]), row.dtype) for name, row in read.items()}
    state, accumulate = training.state_shapes, training.section.accumulate
    memory = train.compiled_step(training).lower(state, batch).compile().memory_analysis()
    micro_batch = {
        name: jax.ShapeDtypeStruct((sizes.batch_size // accumulate, *row.shape[1:]), row.dtype)
        for name, row in batch.items()
    }
    trained = count_values(state.params)
    frozen = model.parameter_count - trained
    return Measured(
        way=way,
        stored=stored,
        frozen_share=frozen / (trained + frozen),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        alias=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        parameters=count_bytes(state.params),
        frozen=count_bytes(state.frozen),
        moments=count_bytes(state.opt_state),
        ema=count_bytes(state.ema),
        batch=count_bytes((batch, state.step, jax.eval_shape(jax.random.key_data, state.rng))),
        gradients=count_bytes(state.params),
        buffer=4 * trained if accumulate > 1 else 0,
        activations=kept(training, micro_batch),
    )


def kept(training: TrainingSetup, batch: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    """Bytes that the backward pass of a batch takes from its forward pass, arguments apart."""
    state, task = training.state_shapes, training.model.task

    def pull_back(params: Tree, frozen: Tree, batch: Tree, rng: Any) -> list[Any]:
        def loss(params: Tree) -> Any:
            variables = {"params": freezing.join(params, frozen), **state.collections}
            return task.losses[0](variables, batch, rng, True)[0]

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    jaxpr = jax.make_jaxpr(pull_back)(state.params, state.frozen, batch, state.rng).jaxpr
    made = {id(each) for equation in jaxpr.eqns for each in equation.outvars}
    results = {id(each): each.aval for each in jaxpr.outvars if id(each) in made}
    return sum(each.size * each.dtype.itemsize for each in results.values())


def run(sizes: Sizes, stored: Sequence[str], ways: Sequence[str], device: Any, workdir: str) -> list[Measured]:
    """Measures each way with each storage; writes frozen_memory.json and .md to `workdir`.

    Raises ConfigError for a name that is not in `STORED` or `WAYS`, and for sizes that do not fit one another.
    """
    for way, each in ((way, each) for way in ways for each in stored):
        config(sizes, each, way)
    measured = [measure(sizes, each, way, device) for way in ways for each in stored]
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"device": device.device_kind, **{name: metadata.version(name) for name in ("jax", "flax")}}
    content = {
        "environment": facts,
        "sizes": dataclasses.asdict(sizes),
        "freeze": FREEZE,
        "cases": [dataclasses.asdict(one) | {"held": one.held, "needed": one.needed} for one in measured],
    }
    (folder / "frozen_memory.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "frozen_memory.md").write_text(markdown(measured, sizes, facts))
    return measured


COLUMNS = (
    *("step", "frozen as", "arguments", "their parts", "that train", "frozen", "moments", "average", "batch"),
    *("new outputs", "temporaries", "their parts", "gradients", "buffer", "activations"),
)


def rows(measured: Sequence[Measured]) -> list[tuple[str, ...]]:
    """The table's cells in MB, under COLUMNS."""
    return [
        (
            one.way,
            one.stored,
            *(
                f"{size / 1e6:.2f}"
                for size in (
                    *(one.arguments, one.held, one.parameters, one.frozen, one.moments, one.ema, one.batch),
                    *(one.outputs - one.alias, one.temporaries, one.needed),
                    *(one.gradients, one.buffer, one.activations),
                )
            ),
        )
        for one in measured
    ]


def table(measured: Sequence[Measured]) -> Table:
    """Makes the table for the terminal."""
    return tables.terminal(COLUMNS, rows(measured), "MB of a training step on one device, as compiled")


def markdown(measured: Sequence[Measured], sizes: Sizes, facts: Mapping[str, str]) -> str:
    """The table as it can be pasted into a page."""
    shape = tables.listed(dataclasses.asdict(sizes))
    share = f"{100 * max(one.frozen_share for one in measured):.1f} % of the parameters frozen"
    note = f"MB, as compiled, nothing was run; {share}; {shape}; {tables.listed(facts)}."
    return tables.markdown(COLUMNS, rows(measured), note)

"""Training steps of our models and of plain ones as the TPU compiler sees them: nothing is run, no TPU is needed.

A step is the loss, its gradient by every parameter and AdamW, with bfloat16 products, float32 parameters, tanh GELU and
layers in a Python loop, for one chip. The compiler notes with each operation how many cycles it expects it to take; the
sum over the program does not jitter. It stands for the chip's time as well as the compiler's model does.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array
from rich.table import Table

from vitvlm import models
from vitvlm.core import flops
from vitvlm.core.config import ConfigError, suggest
from vitvlm.jobs.benchmarks import plain_models, tables
from vitvlm.jobs.benchmarks.loss_memory import devices
from vitvlm.models.vit import SIZES
from vitvlm.objectives import contrastive

Batch = Mapping[str, jax.ShapeDtypeStruct]
# Loss of a module's variables and a batch.
Loss = Callable[[Any, Mapping[str, Array]], Array]

FILE = "benchmark_tpu.json"
CLASSES, DECODER = 1000, {"width": 512, "depth": 8, "heads": 16, "mlp_width": 2048}
FAMILIES = {"vit": "ViT", "mae": "MAE", "siglip": "SigLIP", "smollm2": "SmolLM2"}
LANGUAGE_MODELS = {"S": "SmolLM2-135M", "M": "SmolLM2-360M", "L": "SmolLM2-1.7B"}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Figures of one compiled step.

    Fields:
      cycles: the compiler's estimates, summed over the operations of the entry computation.
      peak_bytes: arguments, temporaries and outputs, less those outputs that take an argument's place.
      flops: of the step's products, counted before the compilation.
    """

    cycles: int
    peak_bytes: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """Our step of one model beside the plain one's."""

    name: str
    batch_size: int
    ours: Compiled
    plain: Compiled

    @property
    def ratio(self) -> float:
        """Our cycles over the plain model's."""
        return self.ours.cycles / self.plain.cycles


def run(names: Sequence[str], *, batch_size: int, image_size: int, topology: str, workdir: str) -> list[Measured]:
    """Compiles each model's step and the plain one's; writes benchmark_tpu.json and .md to `workdir` after each.

    What the workdir has of other models stays, if it was measured alike: so a long table can be made piece by piece.

    Args:
      names: family, size and patch, such as "vit_b16", "mae_b16" and "siglip_b16"; or of SmolLM2, by which we mean its
        shape, the tokens of a text: "smollm2_s512".
      topology: as libtpu names it, such as "v5e:2x2"; the programs are for one of its chips.

    Raises ConfigError for an unknown model or topology, or without libtpu: pip install "vitvlm[aot]".
    """
    cases = [parse(name) for name in names]
    device = devices(topology)[0]
    facts = {"device": f"{device.device_kind} of {topology}", "image_size": image_size}
    facts |= {package: metadata.version(package) for package in ("jax", "flax", "libtpu")}
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    measured = read(folder, facts)
    for family, size, patch in cases:
        name = title(family, size, patch)
        both = (ours(family, size, patch, image_size), plain(family, size, patch))
        batch = abstract_batch(family, batch_size, image_size, *((patch,) if family == "smollm2" else ()))
        measured[name] = Measured(name, batch_size, *(measure(init, loss, batch, device) for init, loss in both))
        rows = [dataclasses.asdict(one) | {"ratio": one.ratio} for one in measured.values()]
        (folder / FILE).write_text(json.dumps({"environment": facts, "cases": rows}, indent=2) + "\n")
        (folder / "benchmark_tpu.md").write_text(markdown(list(measured.values()), facts))
    return list(measured.values())


def read(folder: epath.Path, facts: Mapping[str, Any]) -> dict[str, Measured]:
    """Reads by name what a workdir has of models that were measured with the same facts."""
    if not (folder / FILE).exists():
        return {}
    written = json.loads((folder / FILE).read_text())
    if written["environment"] != facts:
        return {}
    cases = [{name: case[name] for name in ("name", "batch_size", "ours", "plain")} for case in written["cases"]]
    sides = [case | {side: Compiled(**case[side]) for side in ("ours", "plain")} for case in cases]
    return {case["name"]: Measured(**case) for case in sides}


def parse(name: str) -> tuple[str, str, int]:
    """Parses `"vit_b16"`: family, size and patch side (of SmolLM2 the length). Raises ConfigError for unknown ones."""
    sizes = {size.lower(): size for size in SIZES}
    parsed = re.fullmatch(rf"({'|'.join(FAMILIES)})_([a-z]+)(\d+)", name)
    known = parsed is not None and parsed[2] in sizes
    if not known or (parsed[1] == "smollm2" and sizes[parsed[2]] not in LANGUAGE_MODELS):
        near = suggest(name, [f"{family}_{size}16" for family in FAMILIES for size in sizes])
        raise ConfigError(f"--models: {name!r} is not family_sizepatch, such as vit_b16; {near}")
    return parsed[1], sizes[parsed[2]], int(parsed[3])


def title(family: str, size: str, patch: int) -> str:
    """Returns a model's name for people: "ViT-B/16"."""
    if family == "smollm2":
        return f"{LANGUAGE_MODELS[size]}, {patch} tokens"
    return f"{FAMILIES[family]}-{size}/{patch}"


def abstract_batch(family: str, batch_size: int, image_size: int, length: int = 64) -> Batch:
    """Shapes of a batch; MAE's has the random key by which patches are masked."""
    if family == "smollm2":
        return {"text_tokens": jax.ShapeDtypeStruct((batch_size, length), jnp.int32)}
    batch = {"image": jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.float32)}
    if family == "vit":
        batch["label"] = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    elif family == "siglip":
        batch["text_tokens"] = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    else:
        batch["key"] = jax.eval_shape(lambda: jax.random.key(0))
    return batch


def ours(
    family: str, size: str, patch: int, image_size: int, *, scan: bool = False, remat: str = "none"
) -> tuple[Callable[..., Any], Loss]:
    """Returns our model's init(rng, batch) and its loss; scan, remat: see `nn.stack.apply_blocks`."""
    fields = {"dtype": jnp.bfloat16, "scan": scan, "remat": remat}
    if family == "smollm2":
        decoder = models.build("decoder", variant=LANGUAGE_MODELS[size], **fields)

        def loss(variables: Any, batch: Mapping[str, Array]) -> Array:
            """All logits at once: what is in chunks is a loop, whose cycles are not among the entry's."""
            logits = decoder.apply(variables, batch["text_tokens"], train=True).logits.astype(jnp.float32)
            labels = batch["text_tokens"][:, 1:]
            return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], labels).mean()

        return lambda rng, batch: decoder.init(rng, batch["text_tokens"]), loss
    vit = {**SIZES[size], "patch_size": patch, "image_size": image_size, "activation": "gelu_tanh"}
    if family == "vit":
        model = models.build("vit", **vit, **fields, num_classes=CLASSES)

        def loss(variables: Any, batch: Mapping[str, Array]) -> Array:
            logits = model.apply(variables, batch["image"], train=True).logits.astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

        return lambda rng, batch: model.init(rng, batch["image"]), loss
    if family == "mae":
        mae = models.build("mae", **vit, **fields)

        def loss(variables: Any, batch: Mapping[str, Array]) -> Array:
            return mae.apply(variables, batch["image"], train=True, rngs={"mask": batch["key"]}).loss

        return lambda rng, batch: mae.init({"params": rng, "mask": rng}, batch["image"]), loss
    towers = models.build("two_towers", variant=f"SigLIP-{size}/{patch}", **fields)

    def loss(variables: Any, batch: Mapping[str, Array]) -> Array:
        both = towers.apply(variables, batch["image"], batch["text_tokens"], train=True)
        real = jnp.ones(len(batch["image"]))
        return contrastive.sigmoid(both.image_embedding, both.text_embedding, both.scale, both.bias, real)

    return lambda rng, batch: towers.init(rng, batch["image"], batch["text_tokens"]), loss


def plain(family: str, size: str, patch: int) -> tuple[Callable[..., Any], Loss]:
    """Returns the plain model's init(rng, batch) and its loss."""
    model = {
        "vit": lambda: plain_models.ViT(SIZES[size], patch, CLASSES),
        "mae": lambda: plain_models.MAE(SIZES[size], patch, DECODER),
        "siglip": lambda: plain_models.SigLIP(SIZES[size], patch, vocab_size=32_000),
        "smollm2": lambda: plain_language_model(LANGUAGE_MODELS[size]),
    }[family]()
    return model.init, model.apply


def plain_language_model(variant: str) -> plain_models.LLaMA:
    """Returns a plain model of a published one's sizes."""
    sizes = ("width", "depth", "heads", "kv_heads", "mlp_width", "vocab_size")
    fields = {name: getattr(models.build("decoder", variant=variant), name) for name in sizes}
    return plain_models.LLaMA(**fields | {"kv_heads": fields["kv_heads"] or fields["heads"]})


def measure(init: Callable[..., Any], loss: Loss, batch: Batch, device: Any) -> Compiled:
    """Compiles a training step for one device."""
    optimizer = optax.adamw(1e-3)
    params = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), batch)["params"]
    state = (params, jax.eval_shape(optimizer.init, params))

    def step(state: Any, batch: Any) -> tuple[Any, Array]:
        params, moments = state
        value, gradients = jax.value_and_grad(lambda params: loss({"params": params}, batch))(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    where = SingleDeviceSharding(device)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), (state, dict(batch)))
    compiled = jax.jit(step, donate_argnums=0).trace(*placed).lower().compile()
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return Compiled(estimated_cycles(compiled.as_text()), peak - memory.alias_size_in_bytes, flops.count(step, *placed))


def estimated_cycles(program: str) -> int:
    """Sums the cycles that the TPU compiler notes in the entry computation of a compiled program's text.

    Raises ValueError for a program without such notes, which is none for a TPU.
    """
    entry = re.search(r"^ENTRY .*?^}", program, re.MULTILINE | re.DOTALL)
    cycles = re.findall(r'"estimated_cycles":"(\d+)"', entry[0] if entry else "")
    if not cycles:
        raise ValueError("the compiled program has no estimated cycles: only the TPU compiler notes them")
    return sum(map(int, cycles))


COLUMNS = ("model", "batch", "M cycles", "plain", "ratio", "peak GB", "plain GB", "GFLOPs", "plain GFLOPs")


def rows(measured: Sequence[Measured]) -> list[tuple[str, ...]]:
    """The table's cells, under COLUMNS."""
    return [
        (
            one.name,
            str(one.batch_size),
            *(f"{side.cycles / 1e6:.1f}" for side in (one.ours, one.plain)),
            f"{one.ratio:.2f}",
            *(f"{side.peak_bytes / 1e9:.2f}" for side in (one.ours, one.plain)),
            *(f"{side.flops / 1e9:,.0f}" for side in (one.ours, one.plain)),
        )
        for one in measured
    ]


def table(measured: Sequence[Measured]) -> Table:
    """Makes the table for the terminal."""
    return tables.terminal(COLUMNS, rows(measured), "A training step on one chip, as compiled")


def markdown(measured: Sequence[Measured], facts: Mapping[str, str]) -> str:
    """The table as it can be pasted into a page."""
    return tables.markdown(COLUMNS, rows(measured), f"As compiled, nothing was run; {tables.listed(facts)}.")

"""Packing against padding: how many places of a mixed set are tokens, and how many of these a step takes a second.

The set is written for it: captions, questions, long answers, texts without an image and comparisons of two images, of
scenes and emoji. Steps alternate between padded batches and packed rows of as many places.
"""

import dataclasses
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.table import Table

from vitvlm.data import sources
from vitvlm.data.operations import decoding, geometry, pixels
from vitvlm.jobs.benchmarks import tables
from vitvlm.jobs.setup.data import DataSetup
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import setup
from vitvlm.training import sharding

COLUMNS = ("batches", "rows", "places", "tokens", "filled", "images", "ms a step", "tokens/s", "of padded")
KINDS = 5  # of records


LONGEST = 192  # tokens of a record
TOKENIZER = "emoji"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the set, of the batches and of the model.

    Fields:
      records: of the set; length, rows, images: of a batch of packed rows.
      width, depth: of both towers; side: of images in pixels, with patches of 16, each a token.
    """

    records: int = 1000
    length: int = 512
    rows: int = 2
    images: int = 16
    width: int = 192
    depth: int = 6
    side: int = 64


@dataclasses.dataclass(frozen=True)
class Measured:
    """One way to make batches, over all its steps.

    Fields:
      name: "padded" or "packed"; rows, places, images: of a batch, [rows, L] and [rows, I].
      tokens: real ones of each step; filled: their share of all places of the whole set.
      seconds: of each step.
    """

    name: str
    rows: int
    places: int
    images: int
    tokens: tuple[int, ...]
    filled: float
    seconds: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Real tokens per second, of all steps together."""
        return sum(self.tokens) / sum(self.seconds)


def records(count: int, side: int) -> Iterator[dict[str, Any]]:
    """Records of KINDS kinds in turn, with "images" as PNG files' contents; lengths differ by their texts."""
    scenes = sources.open(f"scenes:side={side},train={count},test=1", "train")
    emoji = sources.open("emoji", "train")
    for i in range(count):
        scene, face = scenes[i], emoji[i % len(emoji)]
        picture, icon = _png(scene["image"], side), _png(face["image"], side)
        asked = list(zip(scene["questions"], scene["answers"], strict=True))
        question, answer = asked[i // KINDS % len(asked)]
        yield (
            {"images": [picture], "prompt": "what is in the picture?", "output": scene["caption"]},
            {"images": [picture], "prompt": question, "output": answer},
            {
                "images": [picture],
                "prompt": "describe the picture and answer all: " + " ".join(q for q, _ in asked),
                "output": " ".join([*scene["captions"], *(a for _, a in asked)]),
            },
            {"images": [], "prompt": f"keywords of {face['name']}", "output": ", ".join(face["keywords"])},
            {"images": [picture, icon], "prompt": "which of <image> and <image> is an emoji?", "output": face["name"]},
        )[i % KINDS]


def _png(image: Any, side: int) -> bytes:
    """The file of an image of side x side pixels."""
    content = io.BytesIO()
    pixels.to_pillow(geometry.resize(decoding.decode(image), side)).save(content, "PNG")
    return content.getvalue()


def write(folder: Path, count: int, side: int) -> str:
    """Writes `records` below a folder; returns the spec of the source."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, record in enumerate(records(count, side)):
        names = [f"{i}-{k}.png" for k in range(len(record["images"]))]
        for name, content in zip(names, record["images"], strict=True):
            (folder / name).write_bytes(content)
        rows.append({**record, "images": names, "id": str(i), "split": "train"})
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"jsonl:{folder / 'records.jsonl'}"


def operations(packed: bool, tokenizer: str, side: int, longest: int, length: int, images: int, each: int) -> str:
    """The operations of either way; `longest` is the room of a record, `length` and `images` that of a packed row."""
    pixels = f"decode(field='images')|resize({side}, field='images')|normalize(field='images')"
    said = f"supervise('{tokenizer}', {longest}, image_tokens={each}, surplus='cut')"
    return f"{pixels}|{said}|pack({length}, images={images})" if packed else f"{pixels}|pad('images', 2)|{said}"


def configs(sizes: Sizes, folder: Path) -> dict[str, dict[str, Any]]:
    """Two trainings on the same set, in batches of about as many places: padded, and packed. Writes the set."""
    source = write(folder, sizes.records, sizes.side)
    given = (TOKENIZER, sizes.side, LONGEST, sizes.length, sizes.images, (sizes.side // 16) ** 2)
    tower = dict(width=sizes.width, depth=sizes.depth, heads=max(sizes.width // 64, 1), mlp_width=2 * sizes.width)
    shared = dict(
        seed=0,
        total="1000 steps",
        task=dict(name="next_token"),
        model=dict(
            name="vlm",
            image=dict(name="vit", patch_size=16, image_size=sizes.side, **tower),
            connector=dict(name="linear"),
            text=dict(name="decoder", vocab_size=2000, length=max(sizes.length, LONGEST), **tower),
        ),
        optimizer=dict(name="adamw"),
        schedule=dict(name="cosine", peak=1e-4),
    )

    def config(packed: bool) -> dict[str, Any]:
        ops = operations(packed, *given)
        data = dict(source=source, train=dict(split="train", ops=ops), eval=dict(split="train", ops=ops))
        rows = sizes.rows if packed else sizes.rows * sizes.length // LONGEST
        return {**shared, "data": data, "batch_size": rows}

    return {"padded": config(False), "packed": config(True)}


def measure(configs: Mapping[str, Mapping[str, Any]], steps: int) -> list[Measured]:
    """Runs steps of each config in turn, one of each, after one that compiles it; by name of its row."""
    running = {name: _Running.of(config) for name, config in configs.items()}
    for each in running.values():
        each.step()
    timed: dict[str, list[tuple[float, int]]] = {name: [] for name in running}
    for _ in range(steps):
        for name, each in running.items():
            timed[name].append(each.step())
    return [running[name].measured(name, found) for name, found in timed.items()]


class _Running:
    """A training of which single steps are taken."""

    def __init__(self, data: DataSetup, step: Any, state: Any, batches: Any, mesh: Any):
        self._data, self._step, self._state, self._batches, self._mesh = data, step, state, batches, mesh
        self._shape: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "_Running":
        whole = setup(config)
        training = whole.training
        step, state = train.compiled_step(training), train.first_state(training)
        return cls(whole.data, step, state, whole.data.batches(), whole.model.mesh)

    def step(self) -> tuple[float, int]:
        """Takes a step; returns its seconds, without making the batch, and its real tokens."""
        batch = next(self._batches)
        tokens = int(batch["text_mask"].sum())
        self._shape = (*batch["text_mask"].shape, batch["image_mask"].shape[1])
        placed = sharding.put_batch(sharding.numbers(batch), self._mesh)
        began = time.perf_counter()
        self._state, metrics = self._step(self._state, placed)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began, tokens

    def measured(self, name: str, timed: Sequence[tuple[float, int]]) -> Measured:
        rows, places, images = self._shape
        whole = self._data.evaluation_pass(self._data.train, self._data.source)()
        tokens, held = 0, 0
        for batch in whole:
            tokens += int(batch["text_mask"].sum())
            held += int(batch["example_mask"].sum()) * places
        self._batches.close()
        seconds, real = zip(*timed, strict=True)
        return Measured(name, rows, places, images, real, tokens / held, seconds)


def rows(measured: Sequence[Measured]) -> list[tuple[str, ...]]:
    """The table's cells, under COLUMNS; the last is the rate over that of the first row."""
    return [
        (
            one.name,
            f"{one.rows}",
            f"{one.places}",
            f"{np.mean(one.tokens):,.0f}",
            f"{100 * one.filled:.1f} %",
            f"{one.images}",
            f"{1e3 * np.median(one.seconds):,.1f}",
            f"{one.rate:,.0f}",
            f"{one.rate / measured[0].rate:.2f}",
        )
        for one in measured
    ]


def report(measured: Sequence[Measured], model: str, workdir: epath.Path) -> Table:
    """Writes packing.json and packing.md, and makes the table for the terminal."""
    device = jax.devices()[0]
    facts = {"device": device.device_kind, "model": model, "jax": metadata.version("jax")}
    cases = [dataclasses.asdict(one) | {"tokens_per_second": one.rate} for one in measured]
    (workdir / "packing.json").write_text(json.dumps({"environment": facts, "cases": cases}, indent=2) + "\n")
    note = f"Steps of training, alternating; real tokens only, those of images among them; {tables.listed(facts)}."
    (workdir / "packing.md").write_text(tables.markdown(COLUMNS, rows(measured), note))
    return tables.terminal(COLUMNS, rows(measured), "packing against padding, a mixed set with images")

"""Classes, probabilities and embeddings of a user's images, from weights of any format."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from vitvlm.core import compiling
from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.data.errors import TooManyUnreadable, UnreadableImage
from vitvlm.data.loader import INTERNAL, UNREADABLE, Loader, make_loader
from vitvlm.data.operations import Pipeline
from vitvlm.data.plans import EvalPlan
from vitvlm.data.running import iterate
from vitvlm.data.sources.given import Unlabelled
from vitvlm.pretrained import scoring
from vitvlm.tasks import task_for
from vitvlm.training import sharding

BATCH_SIZE = 32
Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Classes and embedding that a model gives one image.

    Attributes:
      image: the image's id: its path, or "image 3" of pictures in memory.
      classes: (name, probability) of the likeliest, best first; none from a model without classes.
      features: [E], float32, where they were asked for.
      error: why the image cannot be read; "" for one that was.
    """

    image: str
    classes: tuple[tuple[str, float], ...] = ()
    features: Float[np.ndarray, " E"] | None = None
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Request:
    """Wishes about the predictions of a model.

    Attributes:
      top: how many classes of each image.
      classes: of a model of images and texts, the classes to choose from, in words.
      templates: sentences for these, see `evaluation.zero_shot.TEMPLATES`.
      features: whether its embedding too: `pooled`, what a head reads.
      temperature: logits are divided by it; see `evaluation.calibration`.
      preprocessing: operations in the place of the weights' own.
      batch_size: images at a time; rounded up to a multiple of the devices.
      workers: processes that read images ahead; with 0 a thread does.
    """

    top: int = 5
    classes: tuple[str, ...] = ()
    templates: str | tuple[str, ...] = "photo"
    features: bool = False
    temperature: float = 1.0
    preprocessing: str | None = None
    batch_size: int = BATCH_SIZE
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("top", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)}; give 1 or more")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature: {self.temperature}; give a number above 0")


def probabilities(
    logits: Float[np.ndarray, "B S"], temperature: float = 1.0, multi_label: bool = False
) -> Float[np.ndarray, "B S"]:
    """softmax(logits / temperature), or the sigmoid of a model whose classes do not exclude each other."""
    scaled = logits.astype(np.float64) / temperature
    if multi_label:
        return np.exp(-np.logaddexp(0, -scaled))
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


class Outputs:
    """`Outputs(loaded, names)(batch)` gives outputs of the model by name: "logits" [B, S], "features" [B, E].

    Batches are split over this process's devices. Raises ConfigError for an output that the model does not have.
    """

    def __init__(self, loaded: scoring.Loaded, names: Sequence[str]):
        functions = task_for(loaded.model).predict_fns
        if lacking := [name for name in names if name not in functions]:
            kind = type(loaded.model).__name__
            hint = "ask for features" if "features" in functions else "it reads no images alone"
            raise ConfigError(f"{loaded.source.get('path')}: a {kind} gives no {lacking[0]} of images: {hint}")
        self.mesh = Mesh(np.array(jax.local_devices()), ("data",))
        variables = loaded.variables
        if self.mesh.size > 1:
            variables = jax.device_put(variables, NamedSharding(self.mesh, PartitionSpec()))
        self._variables = variables
        options = compiling.compiler_options(self.mesh.devices.ravel())
        self._run = jax.jit(functools.partial(_run, tuple(functions[name] for name in names)), compiler_options=options)

    def rows(self, wanted: int) -> int:
        """A batch size that divides over the devices, `wanted` or the next."""
        return -(-wanted // self.mesh.size) * self.mesh.size

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        placed = sharding.put_batch(batch, self.mesh)
        return {name: np.asarray(value) for name, value in self._run(self._variables, placed).items()}


def _run(functions: Sequence[Any], variables: Any, batch: Any) -> dict[str, jax.Array]:
    found: dict[str, jax.Array] = {}
    for function in functions:
        found |= function(variables, batch)
    return found


def passed(loader: Loader, batch_size: int, workers: int = 0) -> Iterator[tuple[Batch, dict[str, str]]]:
    """One pass over a loader's source in order: batches, and why images of theirs cannot be read, by id.

    The last batch is filled up with rows of example_mask 0.
    """
    plan = EvalPlan(dataclasses.replace(loader, kept=None), batch_size, 0, 1)
    running = iterate(plan, workers, 0)
    try:
        for _ in range(len(plan)):
            batch = dict(next(running))
            reasons = {name: reason for name, reason, *_ in batch.pop(UNREADABLE)}
            yield {name: value for name, value in batch.items() if name not in INTERNAL}, reasons
    finally:
        running.close()


def stream(loaded: scoring.Loaded, source: Unlabelled, request: Request) -> Iterator[list[Prediction]]:
    """The predictions of a source's images in order, a batch at a time; an image that cannot be read has an `error`.

    Raises ConfigError for a model that cannot give what is asked for, and for weights that do not say how images are
    prepared, before the first image is read.
    """
    ops = request.preprocessing or loaded.preprocessing
    if ops is None:
        raise ConfigError(
            f"{loaded.source.get('path')}: does not say how images are prepared: give preprocessing, operations such "
            "as decode(3)|resize_small(256)|central_crop(224)|normalize"
        )
    pipeline = operations.parse(ops)
    scores = scoring.of(loaded, request.classes, request.templates)
    if scores is None and not request.features:
        raise ConfigError(
            f"{loaded.source.get('path')}: a {type(loaded.model).__name__} without classes: ask for features, or train "
            "it on labelled images first"
        )
    outputs = Outputs(loaded, [scores.reads] * (scores is not None) + ["features"] * request.features)
    return _stream(outputs, scores, source, pipeline, request)


def _stream(
    outputs: Outputs, scores: scoring.Scores | None, source: Unlabelled, pipeline: Pipeline, request: Request
) -> Iterator[list[Prediction]]:
    try:
        loader = make_loader(source, pipeline, seed=0, tries=len(source))
    except TooManyUnreadable:  # each is named, as it would be among others
        yield [Prediction(name, error=_reason(source, pipeline, i)) for i, name in enumerate(source.ids)]
        return
    ids, begin = source.ids, 0
    for batch, reasons in passed(loader, outputs.rows(request.batch_size), request.workers):
        found = outputs(batch)
        shares = (
            None if scores is None else probabilities(scores.logits(found), request.temperature, scores.multi_label)
        )
        made = []
        for row, name in enumerate(ids[begin : begin + len(batch["example_mask"])]):
            if name in reasons:
                made.append(Prediction(name, error=reasons[name]))
                continue
            features = np.asarray(found["features"][row], np.float32) if request.features else None
            best = () if shares is None else _best(shares[row], scores.names, request.top)
            made.append(Prediction(name, best, features))
        begin += len(made)
        yield made


def _best(shares: Float[np.ndarray, " S"], names: Sequence[str], top: int) -> tuple[tuple[str, float], ...]:
    return tuple((names[place], float(shares[place])) for place in np.argsort(-shares, kind="stable")[:top])


def _reason(source: Unlabelled, pipeline: Pipeline, index: int) -> str:
    try:
        Loader(source, pipeline, 0).example(0, index)
    except UnreadableImage as error:
        return error.reason
    return "holds no image"

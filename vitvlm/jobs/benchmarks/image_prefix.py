"""Speed of a LLaVA, training and writing behind an image, against `transformers`' with the same weights, in one run.

A step is the loss, its gradient by every parameter and AdamW, all in float32. Both sides begin with the same random
weights, and their losses and first tokens are compared. Rounds alternate, so that other load slows both alike.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

from vitvlm import generation, pretrained
from vitvlm.core.config import ConfigError, suggest
from vitvlm.jobs.benchmarks import peers, quartiles, step_time, tables
from vitvlm.jobs.benchmarks.generation import OURS, Report, in_turn, options_of
from vitvlm.tasks.next_token import NextToken
from vitvlm.training import sharding
from vitvlm.training.gradients import make_gradients
from vitvlm.training.state import TrainState
from vitvlm.training.step import jit_train_step, make_train_step

THEIRS = "transformers"
RATE = {"learning_rate": 1e-5, "weight_decay": 0.01}  # of AdamW; the other numbers are alike in optax and PyTorch
TOLERANCE = 1e-3  # of the first step's loss, in nats


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a LLaVA: by default CLIP's ViT-S/14 at 224 pixels, two linear maps, and SmolLM2-135M.

    Fields:
      image_width, image_depth, image_heads, patch, side: of the encoder, whose MLP is four times as wide; its features
        are those before the last block, without CLS.
      width, depth, heads, kv_heads, mlp_width, vocabulary: of the language model, whose head is the table of tokens.
        The last id is that of image tokens.
    """

    image_width: int = 384
    image_depth: int = 12
    image_heads: int = 6
    patch: int = 14
    side: int = 224
    width: int = 576
    depth: int = 30
    heads: int = 9
    kv_heads: int = 3
    mlp_width: int = 1536
    vocabulary: int = 49_152

    @property
    def image_tokens(self) -> int:
        return (self.side // self.patch) ** 2


@dataclasses.dataclass(frozen=True)
class Steps:
    """Seconds of one system's steps of training, one per round, and the loss of its first."""

    system: str
    seconds: tuple[float, ...]
    loss: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """Results of a run.

    Fields:
      batch_size, length: of a batch of training; every place is a token, those of its image among them.
      steps: of training; writing: of generation.
      same_tokens: of the tokens that both sides wrote after the same prompts, the share that is the same.
    """

    sizes: Sizes
    batch_size: int
    length: int
    steps: tuple[Steps, ...]
    writing: Report
    same_tokens: float


def measure(
    sizes: Sizes,
    *,
    weights: str,
    batch_sizes: Sequence[int],
    train_batch: int,
    text: int,
    tokens: int,
    rounds: int,
) -> Measured:
    """Measures both sides in turn, after a round for each that is not counted.

    Args:
      weights: how ours are stored for writing, one of `generation.OURS`.
      batch_sizes: prompts at once, for writing; train_batch: examples of a step.
      text: tokens behind the image, of a prompt and of an example; tokens: that are written after the first.

    Raises ConfigError without PyTorch and transformers, for another kind of weights, and for sides whose losses differ.
    """
    if weights not in OURS:
        raise ConfigError(f"--weights: {weights!r}; {suggest(weights, OURS)}")
    peers.require(step_time.threads())
    loaded, theirs = models(sizes)
    rng = np.random.default_rng(0)
    largest = max(*batch_sizes, train_batch)
    images = rng.standard_normal((largest, 1, sizes.side, sizes.side, 3), np.float32)
    behind = rng.integers(sizes.vocabulary // 10, sizes.vocabulary - 1, (largest, text))
    places = np.concatenate([np.full((largest, sizes.image_tokens), sizes.vocabulary - 1), behind], axis=1)
    systems = {weights: _ours(loaded, weights, images), THEIRS: _theirs(theirs, images)}
    prompts = {B: places[:B].tolist() for B in batch_sizes}
    first, expected = ([systems[name](prompts[batch_sizes[0]], 1 + tokens)] for name in systems)
    writing = in_turn(systems, prompts, tokens, rounds)
    title = f"LLaVA, {sizes.image_tokens} image tokens"
    report = Report(step_time.environment(), title, places.shape[1], tokens, writing)
    steps = train(loaded, theirs, images[:train_batch], places[:train_batch], sizes.image_tokens, rounds)
    return Measured(
        sizes, train_batch, places.shape[1], steps, report, float(np.mean(np.array(first) == np.array(expected)))
    )


def models(sizes: Sizes) -> tuple[pretrained.Pretrained, Any]:
    """Returns our model and theirs, with the same random weights."""
    theirs = peers.make_llava(sizes)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return pretrained.load(folder), theirs


def _ours(loaded: pretrained.Pretrained, weights: str, images: np.ndarray) -> Callable[..., list[list[int]]]:
    writer = generation.Writer(generation.stored(loaded, weights))

    def write(prompts: Any, count: int) -> list[list[int]]:
        written = writer.write_ids(prompts, options_of(count), inputs={"images": images[: len(prompts)]})
        return [list(text.ids) for (text,) in written]

    return write


def _theirs(model: Any, images: np.ndarray) -> Callable[..., list[list[int]]]:
    pixels = peers.pixel_values(images)
    model.eval()
    return lambda prompts, count: peers.generate(model, prompts, count, pixel_values=pixels[: len(prompts)])


def train(
    loaded: pretrained.Pretrained, theirs: Any, images: np.ndarray, places: np.ndarray, prefix: int, rounds: int
) -> tuple[Steps, ...]:
    """Times steps of training in turn, after one of each side that is not counted; theirs change its weights.

    Args:
      images, places, prefix: see `our_step`.

    Raises ConfigError if the losses of the first steps differ.
    """
    sides = {
        "float32": our_step(loaded, images, places, prefix),
        THEIRS: peers.make_llava_step(theirs, images, places, prefix, **RATE),
    }
    losses = {name: side() for name, side in sides.items()}
    ours, expected = losses.values()
    if not abs(ours - expected) < TOLERANCE:
        raise ConfigError(f"the losses of the first step are {ours:.5f}, and {expected:.5f} of {THEIRS}: not one model")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            begun = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - begun)
    return tuple(Steps(name, tuple(seconds[name]), losses[name]) for name in sides)


def our_step(loaded: pretrained.Pretrained, images: np.ndarray, places: np.ndarray, prefix: int) -> Callable[[], float]:
    """One call is one step of training as the jobs take it, on the same batch; returns the loss.

    Args:
      images [B, 1, H, W, 3]; places [B, L]: ids, of which the first `prefix` are the image's and not learned.
    """
    B, L = places.shape
    batch = {
        "images": images,
        "text_tokens": places.astype(np.int32),
        "text_mask": np.ones((B, L), np.int32),
        "text_learned": np.broadcast_to((np.arange(L) >= prefix).astype(np.int32), (B, L)),
        "example_mask": np.ones(B, np.int32),
    }
    optimizer = optax.adamw(**RATE)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    variables = jax.tree.map(jnp.array, dict(loaded.variables))  # copies: a step takes its state
    state = TrainState.create(variables, optimizer, jax.random.key(0))
    step = make_train_step(
        make_gradients(NextToken(loaded.model).losses), optimizer, schedule=lambda _: RATE["learning_rate"]
    )
    step = jit_train_step(step, sharding.state_shardings(state, "replicated", mesh), sharding.batch_sharding(mesh))
    placed = sharding.put_batch(batch, mesh)

    def take() -> float:
        nonlocal state
        state, metrics = step(state, placed)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return take


COLUMNS = ("system", "tokens/s", "ms a step", f"times {THEIRS}")


def training_table(measured: Measured) -> Table:
    """Makes the table of training; tokens are all places of a batch, those of images among them."""
    title = f"Training: loss, gradients and AdamW, {measured.batch_size} x {measured.length} tokens, float32"
    return tables.terminal(COLUMNS, training_rows(measured), title)


def training_rows(measured: Measured) -> list[tuple[str, ...]]:
    """The cells under COLUMNS: medians [quartiles]; the last is the median of the rounds' ratios."""
    count = measured.batch_size * measured.length
    peer = next(each for each in measured.steps if each.system == THEIRS)
    return [
        (
            each.system,
            quartiles.shown([count / seconds for seconds in each.seconds], 0),
            quartiles.shown([1e3 * seconds for seconds in each.seconds], 0),
            "-" if each is peer else quartiles.shown([b / a for a, b in zip(each.seconds, peer.seconds)], 2),
        )
        for each in measured.steps
    ]


def as_json(measured: Measured) -> Mapping[str, Any]:
    """Everything measured, every round."""
    return dataclasses.asdict(measured)

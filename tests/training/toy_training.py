"""A training of a few parameters with everything that a resume must carry; also run as a program, to be killed.

python toy_training.py WORKDIR TOTAL_STEPS [SIGNAL AT_BATCH]
"""

import contextlib
import functools
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitvlm.training import loop, resume, sharding, step, workdir, writers
from vitvlm.training.best import Best
from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.gradients import make_gradients
from vitvlm.training.interrupts import Interrupted, Interrupts
from vitvlm.training.progress import Progress
from vitvlm.training.speed import Speed
from vitvlm.training.state import TrainState

BATCH = 8
TX = optax.adamw(optax.cosine_decay_schedule(0.1, 30))


def loss(variables, batch, rng, train):
    """Masked mean of squared errors of a two-layer model with noise and a running mean, as batch norm keeps one."""
    params = variables["params"]
    hidden = jnp.tanh(batch["image"] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    if train:
        hidden = hidden * (1 + 0.1 * jax.random.normal(rng, hidden.shape))
    errors = (hidden @ params["head"]["kernel"])[:, 0] - batch["label"]
    mask = batch["example_mask"]
    count = jnp.maximum(mask.sum(), 1)
    mean = (errors**2 * mask).sum() / count
    running = 0.9 * variables["statistics"]["mean"] + 0.1 * (hidden * mask[:, None]).sum(axis=0) / count
    return mean, {"accuracy": ((jnp.abs(errors) < 1) * mask).sum() / count}, {"statistics": {"mean": running}}


def variables(seed: int = 0):
    rng = np.random.default_rng(seed)
    kernel, head, zeros = rng.normal(size=(4, 5)), rng.normal(size=(5, 1)), np.zeros(5)
    tree = {"params": {"hidden": {"kernel": kernel, "bias": zeros}, "head": {"kernel": head}}}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree | {"statistics": {"mean": zeros}})


def init() -> TrainState:
    return TrainState.create(variables(), TX, jax.random.key(1), ema=True)


def batch_of(number: int, size: int = BATCH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    return {
        "image": rng.normal(size=(size, 4)).astype(np.float32),
        "label": rng.normal(size=size).astype(np.float32),
        "example_mask": (rng.random(size) < 0.8).astype(np.float32),
    }


class Batches:
    """Numbered batches; may send this process a signal before giving batch number `at`."""

    def __init__(self, number: int | None = None, at: int | None = None):
        self.taken = 0
        self._signal, self._at = number, at

    def __iter__(self):
        return self

    def __next__(self):
        self.taken += 1
        if self.taken == self._at:
            os.kill(os.getpid(), self._signal)
        return batch_of(self.taken)

    def get_state(self) -> bytes:
        return str(self.taken).encode()

    def set_state(self, state: bytes) -> None:
        self.taken = int(state)


def validate(state: TrainState, number: int) -> dict[str, float]:
    value = loss(state.variables(ema=True), batch_of(10**6, 64), jax.random.key(0), False)[0]
    return {"loss": float(value)}


def target_on(mesh) -> tuple[TrainState, TrainState]:
    shapes = jax.eval_shape(init)
    places = sharding.state_shardings(shapes, "fsdp", mesh)
    target = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), shapes, places)
    return target, places


def make_step(losses, tx, *, schedule, ema_decay=None, **how) -> step.TrainStep:
    """A step with the gradients that `make_gradients` makes."""
    return step.make_train_step(make_gradients(losses, **how), tx, schedule=schedule, ema_decay=ema_decay)


def train(folder: pathlib.Path, total_steps: int, batches: Batches) -> TrainState:
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1})
    target, places = target_on(mesh)
    train_step = make_step(loss, TX, schedule=optax.cosine_decay_schedule(0.1, 30), accumulate=2, ema_decay=0.9)
    config = {"model": {"width": 5}}
    folder = workdir.claim(folder, config)
    with (
        Interrupts() as interrupts,
        Checkpoints(folder / "checkpoints", config=config, best=Best("val/loss", "min")) as checkpoints,
        contextlib.closing(writers.JsonlWriter(folder / "metrics.jsonl")) as writer,
        Progress(total_steps, lines_every=5) as progress,
    ):
        start = resume.restore_or_init(checkpoints, target, jax.jit(init, out_shardings=places), batches, writer)
        return loop.fit(
            step.jit_train_step(train_step, places, sharding.batch_sharding(mesh)),
            start,
            batches,
            total_steps=total_steps,
            place=functools.partial(sharding.put_batch, mesh=mesh),
            writer=writer,
            progress=progress,
            speed=Speed(BATCH),
            interrupts=interrupts,
            evaluations=(loop.Scheduled("val", validate, every=3, at_start=True),),
            checkpoints=checkpoints,
            save_every=4,
        )


if __name__ == "__main__":
    number, at = (signal.Signals[sys.argv[3]], int(sys.argv[4])) if len(sys.argv) > 3 else (None, None)
    try:
        train(pathlib.Path(sys.argv[1]), int(sys.argv[2]), Batches(number, at))
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise

"""Learning rate as a function of the step: linear warm-up, then constant, linear, cosine or reciprocal square root."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.core.durations import Clock
from vitvlm.core.limits import Count

Schedule = Callable[[Any], Float[Array, ""]]
NAMES = ("constant", "cosine", "linear", "rsqrt")


def build(fields: Mapping[str, Any], clock: Clock, where: str = "config.schedule") -> Schedule:
    """A schedule from its config section, for example `{"name": "cosine", "peak": 1e-3, "warmup": "5 epochs"}`.

    The rate rises linearly from 0 at step 0 to the peak at the end of the warm-up. Then, by name:
      constant: stays at the peak.
      rsqrt: peak sqrt(T / (T + s)), s steps after the warm-up (Zhai et al. 2022, section 3.5); T is `timescale`.
        With T = warm-up this is the original transformer's peak sqrt(warm-up / step).
      linear, cosine: falls to `end`, reached when the training is over, in a line or along half a cosine
        (Loshchilov & Hutter 2017).

    The other fields are those of `make`; durations are those of core.durations.

    Returns a function from the step (an int, or a traced one) to a float32 scalar.
    Raises ConfigError for an unknown field, one that the named schedule does not use, and for durations that do
    not fit into the training.
    """

    return config.call(functools.partial(make, clock, where), fields, where)


def make(
    clock: Clock,
    where: str,
    name: str,
    peak: float,
    warmup: str | int = 0,
    end: float = 0.0,
    cooldown: str | int | None = None,
    timescale: str | int | None = None,
    base_batch: Count | None = None,
) -> Schedule:
    """Makes the schedule of a config's section; see `build`.

    Args:
      clock: what durations are relative to.
      where: the section's name, for error messages.
      name: how the rate goes after the warm-up: "constant", "cosine", "linear" or "rsqrt".
      peak: the highest rate.
      warmup: duration in which the rate rises linearly from 0 to the peak.
      end: the last rate.
      cooldown: constant and rsqrt only: the last stretch of the training, in which the rate falls linearly to `end`.
      timescale: T of rsqrt, a duration; only rsqrt takes it, and needs it.
      base_batch: the batch size for which peak and end are given: they are multiplied by batch size / base_batch
        (Goyal et al. 2017; MAE's recipes quote the rate for a batch of 256).
    """
    if name not in NAMES:
        raise config.ConfigError(f"{where}.name: no schedule {name!r}; {config.suggest(name, NAMES)}")
    if peak <= 0 or not 0 <= end <= peak:
        raise config.ConfigError(f"{where}: needs 0 <= end <= peak and peak > 0, not peak {peak} and end {end}")
    if cooldown is not None and name in ("linear", "cosine"):
        raise config.ConfigError(f"{where}.cooldown: {name} falls to `end` by itself; remove it")
    if end and not cooldown and name in ("constant", "rsqrt"):
        raise config.ConfigError(f"{where}.end: {name} reaches it in the cool-down; give `cooldown` a duration")
    if (timescale is not None) != (name == "rsqrt"):
        raise config.ConfigError(f"{where}.timescale: a duration that rsqrt needs, and only rsqrt; this is {name}")
    if clock.total_steps is None:
        raise config.ConfigError(f"{where}: a schedule needs the training's length, which is not known here")

    if base_batch is not None:
        peak, end = (rate * clock.batch_size / base_batch for rate in (peak, end))
    up = clock.steps(warmup, f"{where}.warmup")
    down = clock.steps(cooldown or 0, f"{where}.cooldown")
    middle = clock.total_steps - up - down
    if middle < 0:
        raise config.ConfigError(
            f"{where}: warmup ({up} steps) and cooldown ({down} steps) are longer than the training "
            f"({clock.total_steps} steps)"
        )
    if name == "constant":
        main = optax.constant_schedule(peak)
    elif name == "rsqrt":
        main = _rsqrt(peak, max(1, clock.steps(timescale, f"{where}.timescale")))
    elif name == "linear":
        main = optax.linear_schedule(peak, end, max(1, middle))
    else:
        main = optax.cosine_decay_schedule(peak, max(1, middle), alpha=end / peak)

    pieces, boundaries = [main], []
    if up:
        pieces, boundaries = [optax.linear_schedule(0.0, peak, up), main], [up]
    if down:
        pieces.append(optax.linear_schedule(main(middle), end, down))
        boundaries.append(up + middle)
    joined = optax.join_schedules(pieces, boundaries)
    return lambda step: jnp.asarray(joined(step), jnp.float32)


def _rsqrt(peak: float, timescale: int) -> Schedule:
    # join_schedules also asks for steps before 0, to throw the answer away; with those the root may not exist.
    return lambda step: peak * jnp.sqrt(timescale / (timescale + jnp.maximum(step, 0)))

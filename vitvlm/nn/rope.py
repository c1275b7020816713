"""Rotary positions (Su et al. 2021): queries and keys are turned by angles that grow with the position."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vitvlm.core.config import ConfigError, suggest
from vitvlm.nn.relative import Positional

SCALINGS = ("linear", "dynamic_linear", "ntk", "dynamic", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Change of the frequencies for texts longer than those of the training.

    Attributes:
      kind: "linear", all frequencies divided by the factor (Chen et al. 2023); "ntk", the base times
        factor^(d / (d - 2)); "dynamic" and "dynamic_linear", ntk and linear with a factor that grows with the tokens of
        the call beyond `original_length`, from 1 on, so that keys cached earlier keep the angles of their own call;
        "llama3", low frequencies divided, high ones as they are, a smooth step between; "yarn", a ramp between the two
        (Peng et al. 2023), whose rotated queries and keys are multiplied by `magnitude`.
      factor: by which texts are longer.
      original_length: L, tokens of the texts that were trained on.
      low, high: of llama3, frequencies with fewer than `low` turns in L are divided by the factor, those with more than
        `high` stay. Of yarn, the same between its beta_slow and beta_fast.
      magnitude: of yarn; by default 0.1 ln(factor) + 1.
      truncate: of yarn, whether the ends of the ramp are whole channels.

    Raises ConfigError for an unknown kind.
    """

    kind: str
    factor: float
    original_length: int = 2048
    low: float = 1.0
    high: float = 4.0
    magnitude: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            raise ConfigError(f"model.rope.scaling: no kind {self.kind!r}; {suggest(self.kind, SCALINGS)}")


@dataclasses.dataclass(frozen=True)
class Rope(Positional):
    """Rotation of each pair of channels of a head by position * frequency, pair i having base^(-2i / channels).

    Attributes:
      channels: the first ones of each head, which are rotated; None: all.
      pairs: "half", channels i and i + channels / 2 (LLaMA); "interleaved", channels 2i and 2i + 1 (GPT-J).
      axes: the axis of the position that each pair is turned by, for positions of several axes; None: of one axis.
        `sections(16, 24, 24)` are those of Qwen2-VL's M-RoPE.
      restart: whether frequencies begin anew in each axis, as in the 2-D positions of image patches (pair j of an axis
        with n pairs has base^(-j / n)); otherwise they go on through all pairs (M-RoPE).
      scaling: see `Scaling`.

    Raises ValueError for an odd number of channels, or axes that are not one for each pair.
    """

    base: float = 10_000.0
    channels: int | None = None
    pairs: Literal["half", "interleaved"] = "half"
    axes: tuple[int, ...] | None = None
    restart: bool = False
    scaling: Scaling | None = None

    def rotate(
        self,
        query: Float[Array, "B K N d"],
        key: Float[Array, "B Kv N d"],
        positions: Int[Array, "B N *axes"] | Float[Array, "B N *axes"],
    ) -> tuple[Float[Array, "B K N d"], Float[Array, "B Kv N d"]]:
        channels = self.channels or query.shape[-1]
        if channels % 2 or channels > query.shape[-1]:
            head = query.shape[-1]
            raise ValueError(f"rotary positions of {channels} channels in heads of {head}: give an even part of them")
        angles = self.angles(positions, channels)[:, None]
        cos, sin = jnp.cos(angles) * self.magnitude, jnp.sin(angles) * self.magnitude
        return self._rotate(query, cos, sin, channels), self._rotate(key, cos, sin, channels)

    def angles(self, positions: Array, channels: int) -> Float[Array, "B N pairs"]:
        """Angles in radians of each position and pair of channels, float32."""
        wide = positions.astype(jnp.float32)
        if self.axes is None:
            if positions.ndim != 2:
                raise ValueError(f"positions of shape {positions.shape}: several axes need Rope's `axes`")
            return wide[..., None] * self.frequencies(channels, wide)
        if len(self.axes) != channels // 2:
            raise ValueError(f"{len(self.axes)} axes for {channels // 2} pairs of channels: give one for each pair")
        if positions.ndim == 2:  # a text's, alike on all axes
            wide = jnp.repeat(wide[..., None], max(self.axes) + 1, axis=-1)
        return wide[..., np.asarray(self.axes)] * self.frequencies(channels, wide)

    def frequencies(self, channels: int, positions: Array | None = None) -> Float[Array, "pairs"]:
        """Radians per position of each pair, float32; a dynamic scaling looks at the positions of the call."""
        exponents = self._exponents(channels)
        plain = self.base**-exponents
        scaling = self.scaling
        if scaling is None:
            return jnp.asarray(plain, jnp.float32)
        if scaling.kind == "linear":
            return jnp.asarray(plain / scaling.factor, jnp.float32)
        if scaling.kind == "llama3":
            return jnp.asarray(_llama3(plain, scaling), jnp.float32)
        if scaling.kind == "yarn":
            return jnp.asarray(_yarn(plain, scaling, self.base, channels), jnp.float32)
        grown = scaling.factor
        if scaling.kind.startswith("dynamic"):
            length = jnp.maximum(positions.max() + 1, scaling.original_length)
            grown = scaling.factor * length / scaling.original_length - (scaling.factor - 1)
        if scaling.kind == "dynamic_linear":
            return jnp.asarray(plain, jnp.float32) / grown
        base = self.base * grown ** (channels / (channels - 2))
        return jnp.asarray(base, jnp.float32) ** jnp.asarray(-exponents, jnp.float32)

    @property
    def magnitude(self) -> float:
        """Factor of rotated queries and keys: 1, but for yarn."""
        if self.scaling is None or self.scaling.kind != "yarn":
            return 1.0
        factor, given = self.scaling.factor, self.scaling.magnitude
        return given if given is not None else 0.1 * math.log(factor) + 1 if factor > 1 else 1.0

    def _exponents(self, channels: int) -> np.ndarray:
        pairs = channels // 2
        if self.axes is None or not self.restart:
            return np.arange(pairs) / pairs
        axes = np.asarray(self.axes)
        return np.array([np.sum(axes[:i] == axis) / np.sum(axes == axis) for i, axis in enumerate(axes)])

    def _rotate(self, x: Array, cos: Array, sin: Array, channels: int) -> Array:
        turned, rest = x[..., :channels].astype(jnp.float32), x[..., channels:]
        if self.pairs == "half":
            a, b = jnp.split(turned, 2, axis=-1)
        else:
            a, b = turned[..., ::2], turned[..., 1::2]
        a, b = a * cos - b * sin, b * cos + a * sin
        together = jnp.concatenate([a, b], -1) if self.pairs == "half" else jnp.stack([a, b], -1).reshape(turned.shape)
        return jnp.concatenate([together.astype(x.dtype), rest], axis=-1)


def sections(*pairs: int) -> tuple[int, ...]:
    """Axes of `Rope` by how many pairs each has, one after the other: sections(2, 1) is (0, 0, 1)."""
    return tuple(axis for axis, count in enumerate(pairs) for _ in range(count))


def grid_positions(h: int, w: int) -> Int[np.ndarray, "N 2"]:
    """Rows and columns of a grid's patches, row by row: positions of two axes."""
    return np.stack(np.divmod(np.arange(h * w), w), axis=-1)


def _llama3(frequencies: np.ndarray, scaling: Scaling) -> np.ndarray:
    turns = scaling.original_length * frequencies / (2 * math.pi)
    kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn(frequencies: np.ndarray, scaling: Scaling, base: float, channels: int) -> np.ndarray:
    def pair_of(turns: float) -> float:
        """The pair, as a real number, that turns so often in the original length."""
        return channels * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_of(scaling.high), pair_of(scaling.low)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, channels - 1)
    divided = np.clip((np.arange(channels // 2) - first) / max(last - first, 1e-3), 0, 1)
    return divided * frequencies / scaling.factor + (1 - divided) * frequencies

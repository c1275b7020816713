"""Low-rank adapters: a frozen matrix W learns W + s A B (Hu et al. 2022, LoRA), or that with a magnitude (DoRA).

Adapters are a tree of parameters of their own, under "lora/" and the path of their matrix, which keeps its own:

    blocks/attention/query/kernel                  [..., in, out], frozen, and perhaps quantized
    lora/blocks/attention/query/kernel/a           [..., in, r]
    lora/blocks/attention/query/kernel/b           [..., r, out]
    lora/blocks/attention/query/kernel/magnitude   [..., out], of DoRA
    lora/blocks/attention/query/kernel/scale       [...]: s, which nothing trains
    lora/blocks/attention/query/kernel/dropout     [...]: of the adapter's input in training, which nothing trains

"..." is the depth of scanned blocks. `attach` puts each adapter on its matrix. An `Adapted` stands in a parameter tree
in the place of an array: `Dense` computes with its parts, and any other module is handed the sum (`unbox`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from vitvlm.core.config import ConfigError
from vitvlm.nn import quantized
from vitvlm.nn.boxed import Boxed

Tree = Any
ROOT = "lora"  # name of the adapters' tree beside a model's own parameters
TRAINED, FIXED = ("a", "b", "magnitude"), ("scale", "dropout")


@dataclasses.dataclass(frozen=True)
class Lora:
    """Fields of one adapter, under the names of the papers; `peft` calls them r, lora_alpha and lora_dropout.

    Attributes:
      rank: r, the inner size of A B.
      alpha: of the scale s = alpha / r; by default r, for a scale of 1.
      dropout: rate at which inputs of A are dropped in training; in linear layers only.
      rslora: whether s = alpha / sqrt(r) (Kalajdzievski 2023).
      dora: whether each output has a magnitude m of its own: m (W + s A B) / |W + s A B|, the norm taken over the
        inputs and not differentiated (Liu et al. 2024, equation 5 and section 4.3).
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"config.lora.rank: {self.rank} must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"config.lora.dropout: {self.dropout} must lie in [0, 1)")
        if self.alpha is not None and not self.alpha > 0:
            raise ConfigError(f"config.lora.alpha: {self.alpha} must be above 0; None makes it the rank")

    @property
    def scale(self) -> float:
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def fresh(self, shape: tuple[int, ...], lead: int, rng: Key[Array, ""], dtype: DTypeLike) -> dict[str, Array]:
        """A new adapter that changes nothing: A uniform in +-1 / sqrt(inputs), as `peft` has it, and B of zeros.

        DoRA's magnitude, which follows from the matrix, is 1 here; see `Adapted.norm`.

        Args:
          shape: of the matrix: `lead` axes of layers, then its inputs, several for a convolution, and outputs.
        """
        *inputs, outputs = shape[lead:]
        bound = 1 / math.sqrt(math.prod(inputs))
        made = {
            "a": jax.random.uniform(rng, (*shape[:-1], self.rank), dtype, -bound, bound),
            "b": jnp.zeros((*shape[:lead], self.rank, outputs), dtype),
        }
        return made | ({"magnitude": jnp.ones((*shape[:lead], outputs), dtype)} if self.dora else {})

    def fixed(self, lead: tuple[int, ...]) -> dict[str, Array]:
        """Returns what an adapter has besides and nothing trains, for each of the layers `lead`."""
        made = {"scale": jnp.full(lead, self.scale, jnp.float32)}
        return made | ({"dropout": jnp.full(lead, self.dropout, jnp.float32)} if self.dropout else {})


class Adapted(Boxed):
    """A matrix W [..., in, out] with an adapter; a convolution's kernel has several axes of inputs.

    Attributes:
      base: W, an array or `quantized.Quantized`.
      a [..., in, r], b [..., r, out], scale [...]: see the module.
      magnitude [..., out]: of DoRA, or None.
      dropout [...]: rate, in training; None: nothing is dropped.
      path: of W in its model, for messages.
    """

    base: Any
    a: Any
    b: Any
    scale: Any
    magnitude: Any = None
    dropout: Any = None
    path: str = struct.field(pytree_node=False, default="")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> jnp.dtype:
        return self.base.dtype

    def whole(self, dtype: DTypeLike = jnp.float32) -> Float[Array, "... in out"]:
        """Returns the merged matrix, computed in float32."""
        merged = self._sum()
        if self.magnitude is not None:
            share = self.magnitude.astype(jnp.float32) / jax.lax.stop_gradient(self._norm_of(merged))
            merged = merged * self._over_inputs(share)
        return merged.astype(dtype)

    def norm(self) -> Float[Array, "... out"]:
        """Returns |W + s A B| of each output, float32, which is not differentiated: what DoRA's magnitude begins as."""
        return jax.lax.stop_gradient(self._norm_of(self._sum()))

    def unbox(self) -> Float[Array, "... in out"]:
        """Returns the merged matrix for a module that is no `Dense`. Raises ConfigError for an adapter with dropout."""
        if self.dropout is not None:
            raise ConfigError(
                f"config.lora: {self.path!r} is no linear layer's, which alone can drop inputs: dropout=0 in its rule"
            )
        return self.whole(self.dtype)

    def replace_boxed(self, val: Array) -> "Adapted":
        raise TypeError("an adapted matrix is never replaced: its parts are")

    @property
    def _lead(self) -> int:
        return self.b.ndim - 2

    def _sum(self) -> Float[Array, "... in out"]:
        lead = self.shape[: self._lead]
        a, b = (part.astype(jnp.float32) for part in (self.a, self.b))
        update = a.reshape(*lead, -1, a.shape[-1]) @ b
        scale = jnp.reshape(self.scale, (*lead, *[1] * (self.ndim - self._lead)))
        return quantized.whole(self.base, jnp.float32) + scale * update.reshape(self.shape)

    def _norm_of(self, matrix: Float[Array, "... in out"]) -> Float[Array, "... out"]:
        return jnp.sqrt(jnp.sum(matrix**2, axis=tuple(range(self._lead, self.ndim - 1))))

    def _over_inputs(self, values: Float[Array, "... out"]) -> Float[Array, "... #in out"]:
        return values.reshape(*values.shape[:-1], *[1] * (self.ndim - self._lead - 1), values.shape[-1])


def is_adapter(path: str) -> bool:
    """Tells whether a parameter's path is in the adapters' tree."""
    return path.startswith(f"{ROOT}/")


def base_path(path: str) -> str:
    """The path of the matrix that a parameter of an adapter belongs to."""
    return path.removeprefix(f"{ROOT}/").rpartition("/")[0]


def attach(params: Tree, train: bool = False) -> Tree:
    """A model's parameters with each adapter of "lora" on its matrix; the tree itself where there are none.

    Args:
      train: whether adapters drop inputs.
    """
    if ROOT not in params:
        return params
    own = {name: tree for name, tree in params.items() if name != ROOT}
    return _attached(own, params[ROOT], train, "")


def _attached(params: Tree, adapters: Mapping[str, Any], train: bool, path: str) -> Tree:
    if not isinstance(params, Mapping):
        parts = {name: value for name, value in adapters.items() if train or name != "dropout"}
        return Adapted(params, **parts, path=path.strip("/"))
    return {
        name: _attached(tree, adapters[name], train, f"{path}/{name}") if name in adapters else tree
        for name, tree in params.items()
    }

"""Convolutions with batch norm (Ioffe and Szegedy 2015), padded and averaged as PyTorch does it."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.nn.activations import activation
from vitvlm.nn.patches import Pair
from vitvlm.nn.roles import LINEAR, NORM, Roles, under


class BatchNorm(nn.Module):
    """Normalises each channel over the batch and all positions: in training by their own mean and variance, otherwise
    by running averages, which are the collection "batch_stats" (`mean` and `var` [C], float32).

    Fields:
      momentum: m in `running = m running + (1 - m) new`, after each training step; PyTorch's momentum is 1 - m. The
        new variance is the unbiased one, while the batch itself is normalised by the biased one (PyTorch; algorithms 1
        and 2 of the paper).
      dtype: of the result; statistics and normalisation are float32.

    Training's statistics count every row of the batch. Padding is in evaluation only, which takes none; an unreadable
    image counts as the zeros that stand for it. Under `jit` with the batch split over devices, the mean over the batch
    axis is that of the whole batch; micro-batches of an accumulated gradient are normalised each by its own.

    Raises flax's ModifyScopeVariableError in training if "batch_stats" is not `mutable`.
    """

    roles: ClassVar[Roles] = NORM

    eps: float = 1e-5
    momentum: float = 0.9
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *positions C"], train: bool = False) -> Float[Array, "B *positions C"]:
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), channels, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), channels, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            positions = tuple(range(x.ndim - 1))
            mean, var = x.mean(positions), x.var(positions)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                self._update(running_mean, mean)
                self._update(running_var, var * (count / max(count - 1, 1)))
        else:
            mean, var = running_mean.value, running_var.value
        factor = jax.lax.rsqrt(var + self.eps) * scale
        return ((x - mean) * factor + bias).astype(self.dtype)

    def _update(self, running: nn.Variable, new: Float[Array, "C"]) -> None:
        average = self.momentum * running.value + (1 - self.momentum) * new
        running.value = average.astype(running.value.dtype)  # bfloat16 if they were loaded so


class ConvNorm(nn.Module):
    """act(BN(conv(x))), the convolution without a bias.

    Fields:
      features: channels of the output; None: depthwise, one filter for each channel of the input.
      kernel, stride: sides of the square kernel, and its step.
      padding: zeros (before, after) the rows, and the columns alike; None is kernel // 2 on both ends.
      activation: a name of `nn.activations`, or None.
    """

    roles: ClassVar[Roles] = (*under("conv/", LINEAR), *under("norm/", BatchNorm.roles))

    features: int | None
    kernel: int
    stride: int = 1
    padding: Pair | None = None
    activation: str | None = None
    norm_eps: float = 1e-5
    norm_momentum: float = 0.9
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w D"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        channels = x.shape[-1]
        depthwise = self.features is None
        # By fan-out (He et al. 2015, section 2.2, backward case); flax calls that of a depthwise kernel its fan-in.
        conv = nn.Conv(
            features=self.features or channels,
            kernel_size=(self.kernel, self.kernel),
            strides=self.stride,
            padding=[self.padding or (self.kernel // 2, self.kernel // 2)] * 2,
            feature_group_count=channels if depthwise else 1,
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_in" if depthwise else "fan_out", "normal"),
            name="conv",
            **dtypes,
        )
        x = BatchNorm(self.norm_eps, self.norm_momentum, name="norm", **dtypes)(conv(x), train)
        return x if self.activation is None else activation(self.activation)(x)


class Stage(nn.Module):
    """Blocks one after the other, named "blocks_0", "blocks_1", …; each is made from its `name`."""

    blocks: Sequence[Callable[..., nn.Module]]

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> list[Float[Array, "B _ _ _"]]:
        """Returns the output of every block, each called as `block(x, train)` on the output of the one before."""
        outputs = []
        for i, make_block in enumerate(self.blocks):
            x = make_block(name=f"blocks_{i}")(x, train)
            outputs.append(x)
        return outputs

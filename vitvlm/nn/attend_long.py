"""Attention that keeps nothing of size N M for the backward pass, block by block or by a kernel of the platform."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vitvlm.core.config import ConfigError
from vitvlm.core.lowering import by_platform
from vitvlm.nn import attend_blockwise, attend_kernels
from vitvlm.nn.visibility import Visibility

# What computes each kind, by platform as in `by_platform`; block by block where there is no entry.
# The compiler cannot share a Pallas kernel between devices, so that "auto" takes splash for one TPU alone.
KERNELS = {
    "blockwise": {},
    "splash": {"tpu": "splash", "cpu": "interpreted splash", "cuda": "no splash", "rocm": "no splash"},
    "cudnn": {"cuda": "cudnn", "cpu": "no cudnn", "tpu": "no cudnn", "rocm": "no cudnn"},
    "auto": {"one_tpu": "splash", "cuda": "cudnn"},
}
LACKS = {"splash": attend_kernels.splash_lacks, "cudnn": attend_kernels.cudnn_lacks}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def attend(
    kind: str,
    scale: float | None,
    soft_cap: float | None,
    query: Float[Array, "B K N d"],
    key: Float[Array, "B Kv M d"],
    value: Float[Array, "B Kv M dv"],
    mask: Bool[Array, "#B #K #N #M"] | None,
    bias: Float[Array, "#B #K #N #M"] | None,
    rules: Visibility | None,
) -> Float[Array, "B K N dv"]:
    """Computes `attend_plain.attend` as a kind of KERNELS, who sees whom being said by rules too; reverse mode only.

    The residuals are the same on every platform. A kernel's own are not among them: its backward pass runs its forward
    pass again.

    Raises ConfigError for what the kind cannot do, and when lowered for a platform that has no such kernel.
    """
    return _forward(kind, scale, soft_cap, query, key, value, mask, bias, rules)[0]


def _forward(kind, scale, soft_cap, *arrays):
    def by(kernel: Callable) -> Callable:
        def output(query, *others):
            unused = jnp.zeros((*query.shape[:3], 1), jnp.float32)
            return kernel(scale, soft_cap, query, *others), unused, unused

        return output

    default = functools.partial(attend_blockwise.forward, scale, soft_cap)
    mixed, highest, total = by_platform(default, *arrays, **_cases(kind, by, arrays, soft_cap))
    return mixed, (*arrays, mixed, highest, total)


def _backward(kind, scale, soft_cap, saved, d_mixed):
    arrays = saved[:6]

    def by(kernel: Callable) -> Callable:
        def gradients(query, key, value, mask, bias, rules, mixed, highest, total, d_mixed):
            if bias is None:
                _, vjp = jax.vjp(lambda *heads: kernel(scale, soft_cap, *heads, mask, None, rules), query, key, value)
                return (*vjp(d_mixed), None)
            function = functools.partial(kernel, scale, soft_cap)
            _, vjp = jax.vjp(lambda *x: function(*x[:3], mask, x[3], rules), query, key, value, bias)
            return vjp(d_mixed)

        return gradients

    default = functools.partial(attend_blockwise.gradients, scale, soft_cap)
    *heads, d_bias = by_platform(default, *saved, d_mixed, **_cases(kind, by, arrays, soft_cap))
    return *heads, None, d_bias, None


attend.defvjp(_forward, _backward)


def _cases(kind: str, by: Callable, arrays: tuple, soft_cap: float | None) -> dict[str, Callable]:
    """Returns `by(kernel)` for each platform that has one; "auto" leaves out a kernel that cannot do what is asked."""
    if kind in LACKS and (lack := LACKS[kind](*arrays, soft_cap)):
        raise ConfigError(f"attention: {kind!r} cannot do {lack}; write 'auto' or 'blockwise'")
    names = KERNELS[kind].items()
    if kind == "auto":
        names = [(platform, name) for platform, name in names if LACKS[name](*arrays, soft_cap) is None]
    return {platform: by(_kernel(name)) for platform, name in names}


def _kernel(name: str) -> Callable:
    if name == "splash":
        return attend_kernels.splash
    if name == "interpreted splash":
        return functools.partial(attend_kernels.splash, interpret=True)
    if name == "cudnn":
        return attend_kernels.cudnn

    def refuse(*_: object) -> Array:
        device = "a TPU" if name == "no splash" else "an NVIDIA GPU"
        kind = name.removeprefix("no ")
        raise ConfigError(f"attention: {kind!r} is a kernel of {device}, not of this platform; write 'auto'")

    return refuse

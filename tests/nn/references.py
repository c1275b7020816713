"""References of the toys: a PyTorch model's weights, outputs, gradients, and dL/dA of each of its layers."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from vitvlm.core import paths
from vitvlm.nn.stacking import unstack_blocks

TOLERANCE = 1e-4
WAYS = [(False, "none"), (True, "full")]  # scan, remat


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module in evaluation mode, with random numbers in every parameter, norms near their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.1 * noise if parameter.ndim == 1 else 0.2 * noise)
    return module.eval()


@contextlib.contextmanager
def softmaxes():
    """Every softmax of the PyTorch code inside, in order; their gradients are kept."""
    original, kept = torch.nn.functional.softmax, []

    def softmax(*args, **kwargs):
        weights = original(*args, **kwargs)
        weights.retain_grad()
        kept.append(weights)
        return weights

    torch.nn.functional.softmax = softmax
    try:
        yield kept
    finally:
        torch.nn.functional.softmax = original


def linear(module: torch.nn.Linear) -> dict[str, torch.Tensor]:
    """A linear layer's parameters, or their gradients, as ours."""
    return {"kernel": module.weight.T} | ({} if module.bias is None else {"bias": module.bias})


def norm(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    bias = getattr(module, "bias", None)
    return {"scale": module.weight} | ({} if bias is None else {"bias": bias})


def values(tree: Any) -> Any:
    """Tensors as NumPy arrays."""
    return jax.tree.map(lambda leaf: leaf.detach().numpy().copy(), tree)


def gradients(module: torch.nn.Module, convert: Callable[[torch.nn.Module], Any]) -> Any:
    """The gradients of a module's parameters as our tree of parameters, by the function that converts those."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return values(convert(module))


def close(found: Any, expected: Any, name: str, tolerance: float = TOLERANCE) -> None:
    """Every array equal within the tolerance, of the largest number if that is above one."""
    found, expected = (paths.flatten(tree) if isinstance(tree, dict) else {name: tree} for tree in (found, expected))
    assert found.keys() == expected.keys(), name
    for path, leaf in expected.items():
        scale = max(1.0, float(np.abs(leaf).max(initial=0)))
        np.testing.assert_allclose(found[path], leaf, atol=tolerance * scale, err_msg=f"{name}: {path}")


def measure(model: Any, params: Any, inputs: tuple, direction: np.ndarray) -> dict[str, Any]:
    """Output, attention weights, gradients of sum(tokens * direction), and dL/dA by zeros added to the weights."""
    apply = functools.partial(model.apply, capture=("attention",))

    shapes = jax.eval_shape(lambda params: _attention(apply({"params": params}, *inputs)), params)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)

    @jax.jit
    def run(params, zeros):
        def loss(params, zeros):
            out = model.apply({"params": params}, *inputs, perturb=zeros)
            return jnp.vdot(out.tokens, direction)

        captured = apply({"params": params}, *inputs)
        d_params, d_weights = jax.grad(loss, (0, 1))(params, zeros)
        return captured.tokens, _attention(captured), d_params, d_weights

    names = ("tokens", "attention", "gradients", "d_attention")
    return dict(zip(names, jax.device_get(run(params, zeros)), strict=True))


def _attention(out: Any) -> Mapping[str, Any]:
    """The weights by kind, of a stack of blocks, or of a model that has one kind."""
    return out.attention if isinstance(out.attention, Mapping) else {"attention": out.attention}


def looped_gradients(found: dict[str, Any]) -> Any:
    return unstack_blocks(found["gradients"])

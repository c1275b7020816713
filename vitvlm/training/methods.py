"""Optimizers by name, made of optax's parts: from gradients to updates, before the learning rate is applied.

Each is given `decay`, which adds every parameter's weight decay, and puts it where its paper does; one that treats
parameters by what they are is given their `roles`, by path. Fields have optax's names and defaults unless the docstring
says otherwise.

Fields of several:
  b1, b2: how much of the running means of the gradients, and of their squares, stays at each step.
  eps: added where something is divided by, against zero.
  momentum: how much of the sum of updates stays at each step; 0 or None for none.
  nesterov: whether the momentum looks a step ahead.
  mu_dtype: dtype of the first moment or momentum; None for the parameters' own.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vitvlm.core.limits import NotNegative, Share
from vitvlm.core.paths import Tree, map_with_path
from vitvlm.nn.roles import Role

Transform = optax.GradientTransformation


def adamw(
    decay: Transform,
    b1: Share = 0.9,
    b2: Share = 0.999,
    eps: NotNegative = 1e-8,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> Transform:
    """Loshchilov & Hutter 2019, algorithm 2, with the decay multiplied by the learning rate."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype, nesterov=nesterov), decay)


def lamb(decay: Transform, b1: Share = 0.9, b2: Share = 0.999, eps: NotNegative = 1e-6) -> Transform:
    """You et al. 2020, algorithm 2: Adam with decay, rescaled to each tensor's own norm."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps), decay, optax.scale_by_trust_ratio())


def lion(decay: Transform, b1: Share = 0.9, b2: Share = 0.99, mu_dtype: DTypeLike | None = None) -> Transform:
    """Chen et al. 2023, algorithm 2: the sign of the momentum."""
    return optax.chain(optax.scale_by_lion(b1, b2, mu_dtype), decay)


def sgd(
    decay: Transform, momentum: Share = 0.9, nesterov: bool = False, mu_dtype: DTypeLike | None = None
) -> Transform:
    """Gradient descent as PyTorch's: the decay is part of the gradient, so the momentum sees it."""
    return optax.chain(decay, _momentum(momentum, nesterov, mu_dtype))


def lars(
    decay: Transform,
    momentum: Share = 0.9,
    nesterov: bool = False,
    trust_coefficient: NotNegative = 0.001,
    mu_dtype: DTypeLike | None = None,
) -> Transform:
    """You et al. 2017, as in MAE's linear probe: only tensors of rank 2 and more are rescaled to their norm.

    Args:
      trust_coefficient: the update's length as a share of the tensor's, before the learning rate.
    """
    trust = optax.masked(
        optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient),
        lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
    )
    return optax.chain(decay, trust, _momentum(momentum, nesterov, mu_dtype))


def adafactor(
    decay: Transform,
    decay_rate: NotNegative = 0.8,
    b2_cap: Share = 1.0,
    clipping_threshold: NotNegative | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    momentum: Share | None = None,
    mu_dtype: DTypeLike = jnp.float32,
    min_dim_size_to_factor: int = 128,
    eps: NotNegative = 1e-30,
) -> Transform:
    """Shazeer & Stern 2018, algorithm 4; the decay is applied last and multiplied by the learning rate.

    `b2_cap` bounds the second moment's decay from above (0.999 in Zhai et al. 2022, section 3.4, who also take
    momentum 0.9 in bfloat16 and no parameter scale).

    Args:
      decay_rate: r of the second moment's decay at step t, 1 - t^-r.
      b2_cap: largest decay of the second moment.
      clipping_threshold: largest root mean square of a tensor's update; None for no such limit.
      multiply_by_parameter_scale: whether an update is multiplied by the root mean square of its tensor.
      min_dim_size_to_factor: sides of a matrix from which its second moment is kept as row and column means.
    """

    def b2(step: Int[Array, ""], rate: float) -> Float[Array, ""]:
        return jnp.minimum(1.0 - jnp.asarray(step + 1, jnp.float32) ** -rate, b2_cap)

    parts = [optax.scale_by_factored_rms(True, decay_rate, 0, min_dim_size_to_factor, eps, b2)]
    if clipping_threshold is not None:
        parts.append(optax.clip_by_block_rms(clipping_threshold))
    if multiply_by_parameter_scale:
        parts.append(optax.scale_by_param_block_rms())
    if momentum is not None:
        parts.append(optax.ema(momentum, debias=False, accumulator_dtype=mu_dtype))
    return optax.chain(*parts, decay)


def muon(
    decay: Transform,
    roles: Mapping[str, Role],
    beta: Share = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    consistent_rms: float | None = 0.2,
    adam_b1: Share = 0.9,
    adam_b2: Share = 0.999,
    eps: NotNegative = 1e-8,
    mu_dtype: DTypeLike | None = None,
) -> Transform:
    """Jordan et al. 2024: hidden matrices get their momentum orthogonalised, everything else is trained by Adam.

    As its authors do it, the embeddings (of patches and of tokens) and the heads are not hidden and left to Adam, and a
    convolution's kernel [k, k, I, O] is one matrix of k k I inputs and O outputs.

    `consistent_rms` multiplies a matrix's update by that number times sqrt(max(inputs, outputs)), so that its
    entries are as large as AdamW's and both share one learning rate (Liu et al. 2025, section 2.2); None takes the
    original factor, sqrt(max(1, outputs / inputs)).

    Args:
      beta: how much of the momentum of hidden matrices stays at each step.
      ns_steps: Newton-Schulz iterations of the orthogonalisation.
      consistent_rms: root mean square of a hidden matrix's update, 0.2 as AdamW's; None for the original factor.
      adam_b1, adam_b2: b1 and b2 of everything else.
    """

    def rescale(update: Float[Array, "*I O"]) -> Float[Array, "*I O"]:
        inputs, outputs = math.prod(update.shape[:-1]), update.shape[-1]
        if consistent_rms is None:
            return update * max(1.0, outputs / inputs) ** 0.5
        return update * consistent_rms * max(inputs, outputs) ** 0.5

    def matrices(tree: Tree) -> Tree:
        return jax.tree.map(
            lambda leaf: optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1), tree
        )

    orthogonal = optax.contrib.scale_by_muon(
        ns_steps=ns_steps, beta=beta, eps=eps, mu_dtype=mu_dtype, nesterov=nesterov, weight_dimension_numbers=matrices
    )
    hidden = optax.chain(orthogonal, optax.stateless_with_tree_map(lambda update, _: rescale(update)))
    others = optax.scale_by_adam(adam_b1, adam_b2, eps, mu_dtype=mu_dtype, nesterov=nesterov)

    def labels(tree: Tree) -> Tree:
        return map_with_path(lambda path, _: "muon" if roles[path].is_hidden_matrix else "adam", tree)

    return optax.chain(optax.partition({"muon": hidden, "adam": others}, labels), decay)


def _momentum(momentum: float, nesterov: bool, dtype: DTypeLike | None) -> Transform:
    return optax.trace(momentum, nesterov, dtype) if momentum else optax.identity()


METHODS = {method.__name__: method for method in (adafactor, adamw, lamb, lars, lion, muon, sgd)}

# What these do to a number depends on no other number of its tensor.
ELEMENTWISE = {"adamw", "lion", "sgd"}

"""Equal computations of which the fastest is taken for the platform that a program is lowered for.

The host that traces a program need not be the machine that it will run on: a laptop compiles for a pod, with a
`jax.sharding.Mesh` of devices that it has not. So the choice is made when the program is lowered.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir, xla


def by_platform(default: Callable[..., Any], *args: Any, **cases: Callable[..., Any] | None) -> Any:
    """Returns `default(*args)`, computed by the case of the platform that the program is lowered for, if there is one.

    It has no derivative: call it from the rules of a `jax.custom_vjp`. Tracing and shapes are those of `default`; the
    other functions are traced only for their platform, and close over no arrays.

    Args:
      default: function of arrays, or trees of them, for all platforms that have no case.
      **cases: functions of the same arguments, whose results have the same shapes and dtypes, by "cpu", "cuda", "rocm"
        and "tpu", and by "one_cpu", ... for programs on a single device, which go before those. None is none. A program
        that is exported for several platforms takes the default.
    """
    flat, tree = jax.tree.flatten(args)

    def over_leaves(function: Callable[..., Any]) -> Callable[..., list[jax.Array]]:
        return lambda *leaves: jax.tree.leaves(function(*tree.unflatten(leaves)))

    jaxpr, shapes = jax.make_jaxpr(lambda *leaves: default(*tree.unflatten(leaves)), return_shape=True)(*flat)
    functions = {name: over_leaves(function) for name, function in cases.items() if function is not None}
    outputs = _by_platform.bind(*flat, jaxpr=jaxpr, cases=tuple(functions.items()))
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


_by_platform = Primitive("by_platform")
_by_platform.multiple_results = True
_by_platform.def_impl(lambda *args, **params: xla.apply_primitive(_by_platform, *args, **params))
_by_platform.def_abstract_eval(lambda *_, jaxpr, cases: jaxpr.out_avals)


def _lower(ctx: mlir.LoweringRuleContext, *args: Any, jaxpr: ClosedJaxpr, cases: tuple) -> Any:
    function = _chosen(ctx, dict(cases)) or jaxpr_as_fun(jaxpr)
    return mlir.lower_fun(function, multiple_results=True)(ctx, *args)


def _chosen(ctx: mlir.LoweringRuleContext, cases: Mapping[str, Callable]) -> Callable | None:
    platforms = ctx.platforms or ctx.module_context.platforms
    if len(platforms) != 1:
        return None
    context = ctx.module_context.axis_context
    devices = context.num_devices if isinstance(context, mlir.ShardingContext) else context.mesh.size
    anywhere = cases.get(platforms[0])
    return cases.get(f"one_{platforms[0]}", anywhere) if devices == 1 else anywhere


def _batch(args: Any, axes: Any, *, jaxpr: ClosedJaxpr, cases: tuple) -> Any:
    def batched(function: Callable) -> Callable:
        return jax.vmap(function, in_axes=tuple(axes))

    jaxpr = jax.make_jaxpr(batched(jaxpr_as_fun(jaxpr)))(*args)
    outputs = _by_platform.bind(*args, jaxpr=jaxpr, cases=tuple((name, batched(function)) for name, function in cases))
    return outputs, [0] * len(outputs)


# A lowering that is kept for a second call would be that of the first call's devices.
mlir.register_lowering(_by_platform, _lower, cacheable=False)
batching.primitive_batchers[_by_platform] = _batch

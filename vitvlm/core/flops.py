"""Analytic FLOPs of a JAX function, counted on its jaxpr before anything is compiled.

The compiler's own `cost_analysis` counts the body of a scan only once; this counts every iteration.
Only products count (matrix products and convolutions, 2 FLOPs per multiply-add), as papers and MFU figures do.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def count(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of one call `function(*args)`; arguments may be `jax.ShapeDtypeStruct`s, nothing is computed.

    Raises ValueError for a `while` loop that holds products, whose number of trips is not in the program.
    """
    return _count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _count_jaxpr(jaxpr: Any) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contract)
        return 2 * math.prod(equation.outvars[0].aval.shape) * depth
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
    if name == "scan":
        return params["length"] * _count_jaxpr(params["jaxpr"].jaxpr)
    if name == "cond":
        return max(_count_jaxpr(branch.jaxpr) for branch in params["branches"])
    if name == "while":
        if _count_jaxpr(params["body_jaxpr"].jaxpr):
            raise ValueError("a while loop holds matrix products: its trips, and so its FLOPs, are not in the program")
        return 0
    # Calls of every other kind (jit, remat, custom derivatives) hold the program that runs forward as one parameter.
    for key in ("call_jaxpr", "jaxpr", "fun_jaxpr"):
        inner = params.get(key)
        if inner is not None and (hasattr(inner, "eqns") or hasattr(inner, "jaxpr")):
            return _count_jaxpr(getattr(inner, "jaxpr", inner))
    return 0

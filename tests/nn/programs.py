"""Equations of a traced function."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """All of a program's equations, those of the programs inside them too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
                if isinstance(inner, Jaxpr):
                    yield from equations(inner)


def products(jaxpr: Jaxpr) -> list[Any]:
    """The matrix products among them."""
    return [equation for equation in equations(jaxpr) if equation.primitive.name == "dot_general"]


def kept_bytes(function: Callable[[Any], Any], argument: Any) -> int:
    """Bytes that the backward pass of a scalar function takes from its forward pass, the argument apart."""
    jaxpr = jax.make_jaxpr(lambda argument: jax.tree.leaves(jax.vjp(function, argument)[1]))(argument).jaxpr
    made = {id(result) for equation in jaxpr.eqns for result in equation.outvars}
    kept = {id(result): result.aval for result in jaxpr.outvars if id(result) in made}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())

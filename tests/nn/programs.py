"""Equations of a traced function."""

from collections.abc import Iterator
from typing import Any

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

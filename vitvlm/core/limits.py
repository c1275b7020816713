"""Limits of numbers in configs and operations, declared with a field's type: `batch_size: Count`.

Whatever the field, a whole number fits into 32 bits, and any other is finite and no larger than float32 holds; a field
with a narrower range says so by one of the types here, or by its own `Annotated[int, Within(1, 8)]`.
"""

import dataclasses
import functools
import operator
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

MOST = 2**31 - 1
MOST_FLOAT = 3.4e38  # float32's largest
MOST_SIDE = 16_384
_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Within:
    """The least and the most that a number, or each number of a tuple, may be."""

    least: int | float
    most: int | float


Whole = Annotated[int, Within(0, MOST)]
Count = Annotated[int, Within(1, MOST)]
Seed = Annotated[int, Within(0, MOST)]
Depth = Annotated[int, Within(1, 10_000)]
Depths = Annotated[tuple[int, ...], Within(1, 10_000)]
Side = Annotated[int, Within(1, MOST_SIDE)]
Sides = Annotated[int | tuple, Within(1, MOST_SIDE)]
Margin = Annotated[int, Within(0, MOST_SIDE)]
Rows = Annotated[int, Within(1, 10_000)]
Length = Annotated[int, Within(1, 2**24)]
Share = Annotated[float, Within(0, 1)]
NotNegative = Annotated[float, Within(0, MOST_FLOAT)]

_ANY_WHOLE, _ANY_NUMBER = Within(-MOST, MOST), Within(-MOST_FLOAT, MOST_FLOAT)


def kinds(annotation: Any) -> tuple[Any, ...]:
    """Returns the types that an annotation allows, without their limits: (int, NoneType) of `Count | None`."""
    if typing.get_origin(annotation) is Annotated:
        return kinds(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(kind for each in typing.get_args(annotation) for kind in kinds(each))
    return (annotation,)


def bare(annotation: Any) -> Any:
    """Returns an annotation without its limits, as one writes it: int of `Count`."""
    return functools.reduce(operator.or_, kinds(annotation))


def problem(value: Any, annotation: Any, where: str) -> str | None:
    """Says, in one line that begins with its place, which number of a value is beyond its limits; None if none is.

    Looks into tuples, lists and mappings. Numbers of a type without limits of its own have those of any config.

    Args:
      annotation: the value's type, such as `Count | None`.
      where: the field, such as "config.batch_size".
    """
    own = _limits(annotation)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        whole = int in kinds(annotation) and float not in kinds(annotation)
        return _beyond(value, own or (_ANY_WHOLE if whole else _ANY_NUMBER), where)
    if isinstance(value, Mapping):
        found = (problem(item, Any, f"{where}.{name}") for name, item in value.items())
    elif isinstance(value, (list, tuple)):
        found = (problem(item, annotation if own else Any, where) for item in value)
    else:
        return None
    return next(filter(None, found), None)


def shown(value: Any) -> str:
    """Writes a value for an error message, its end cut off if it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a number of {value.bit_length():,} bits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


def _limits(annotation: Any) -> Within | None:
    if typing.get_origin(annotation) is Annotated:
        return next((each for each in annotation.__metadata__ if isinstance(each, Within)), None)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(_limits, typing.get_args(annotation))), None)
    return None


def _beyond(value: int | float, limits: Within, where: str) -> str | None:
    within = limits.least <= value <= limits.most  # which NaN is not
    return None if within else f"{where}: {shown(value)} is not between {limits.least:,} and {limits.most:,}"

"""Config fields onto functions and classes: an unknown field is an error that names the nearest one."""

import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import ml_dtypes  # noqa: F401  (makes names such as bfloat16 dtypes of NumPy)
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from vitvlm.core import limits, renames
from vitvlm.core.shortening import shortened

T = TypeVar("T")

_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", types.NoneType: "None"}


class ConfigError(ValueError):
    """A config that cannot be run; the message says which field is wrong and what to do."""

    def __init__(self, message: str = ""):
        super().__init__(shortened(message))


def call(function: Callable[..., T], fields: Mapping[str, Any], where: str, **given: Any) -> T:
    """Calls `function(**fields, **given)` after checking the fields against its signature.

    Works for functions, dataclasses and Flax modules. Nested ConfigDicts are passed on as plain dictionaries,
    so nothing below the jobs layer ever sees a ConfigDict.

    Args:
      function: what the config section configures.
      fields: the section, for example `config.optimizer`.
      where: its name in the config, for error messages ("config.optimizer").
      **given: arguments that the caller supplies; a section may not set them.

    Raises ConfigError for an unknown field (the nearest name is offered), a field the caller supplies, a missing
    required one, or a value of another type than a parameter that is annotated with int, float, bool or str.
    """
    fields = plain(fields)
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name not in ("parent",)
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    allowed = [name for name in parameters if name not in given and not (name == "name" and _is_module(function))]
    if not takes_any:
        check_names(fields, allowed, where)
    required = {name for name in allowed if parameters[name].default is inspect.Parameter.empty}
    missing = sorted(required - set(fields))
    if missing:
        raise ConfigError(f"{where}: missing field{'s' * (len(missing) > 1)} {', '.join(missing)}")
    for name, value in fields.items():
        if name in parameters:
            check_type(value, parameters[name].annotation, f"{where}.{name}")
    return function(**fields, **given)


def check_type(value: Any, annotation: Any, where: str) -> None:
    """Raises ConfigError for a value that an annotation, such as `float | None` or `limits.Count`, does not allow.

    A whole number does for a float; a type that is none of int, float, bool, str and None allows anything, but for
    numbers beyond any limit (`core.limits`) and names that are no dtype.
    """
    allowed = limits.kinds(annotation)
    if set(limits.kinds(DTypeLike)) <= set(allowed):
        _check_dtype(value, where)
    elif set(allowed) <= set(_KINDS):
        if isinstance(value, bool):
            fits = bool in allowed
        elif isinstance(value, int):
            fits = int in allowed or float in allowed
        else:
            fits = isinstance(value, allowed)
        if not fits:
            wanted = " or ".join(_KINDS[kind] for kind in dict.fromkeys(allowed))
            raise ConfigError(f"{where}: {limits.shown(value)} is not {wanted}")
    if problem := limits.problem(value, annotation, where):
        raise ConfigError(problem)


def _check_dtype(value: Any, where: str) -> None:
    try:
        np.dtype(value)
    except TypeError:
        raise ConfigError(f"{where}: {limits.shown(value)} is no dtype such as 'float32' or 'bfloat16'") from None


def check_names(names: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Raises ConfigError for the first of `names` that is not in `allowed`: with what an old name is called now, or
    with the nearest allowed name.
    """
    allowed = list(allowed)
    for name in names:
        if name in allowed:
            continue
        if new := renames.new_name(name, allowed):
            raise ConfigError(f"{where}.{name}: is called {new} now")
        raise ConfigError(f"{where}.{name}: no such field; {suggest(name, allowed)}")


def suggest(name: str, allowed: Iterable[str]) -> str:
    """`did you mean "x"?` for the nearest of the allowed names, or the list of them when none is near."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name)[:200], allowed, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else f"there is: {', '.join(allowed) or 'nothing'}"


def plain(value: Any) -> Any:
    """Plain dictionaries, lists and tuples from a (nested) ConfigDict, its references resolved."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    return value


def _is_module(function: Any) -> bool:
    """Flax modules have a `name` field that is the framework's, not the user's."""
    return isinstance(function, type) and hasattr(function, "scope") and hasattr(function, "apply")

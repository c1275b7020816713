"""JSON from anywhere: one error for everything that is wrong with a text, and no nesting that breaks what reads it."""

import json
from collections.abc import Callable
from typing import Any

DEEPEST = 100  # lists and objects inside each other; data sets nest some five


def loads(text: str | bytes, hook: Callable[[list[tuple[str, Any]]], Any] | None = None, **options: Any) -> Any:
    """The value of a JSON text.

    Args:
      hook: makes an object of its pairs, as `object_pairs_hook` of `json.loads`.
      options: others of `json.loads`.

    Raises ValueError for a text that is no JSON, and for one that nests deeper than DEEPEST.
    """
    try:
        value = json.loads(text, object_pairs_hook=hook, **options)
    except RecursionError:
        raise too_deep() from None
    check_depth(value, text)
    return value


def check_depth(value: Any, text: str | bytes = "") -> None:
    """Raises ValueError for a value whose lists and objects nest deeper than DEEPEST.

    A text that has so few brackets that it cannot be is not gone through.
    """
    opening = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if text and sum(map(text.count, opening)) <= DEEPEST:
        return
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for each in level for inner in _inside(each) if isinstance(inner, list | dict)]
        if not level:
            return
    raise too_deep()


def too_deep() -> ValueError:
    """The error for nesting that is too deep."""
    return ValueError(f"nested deeper than {DEEPEST} lists and objects")


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()

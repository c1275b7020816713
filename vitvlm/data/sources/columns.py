"""Text columns: what a data set tells of an image besides its class, as fields of an example."""

import json
from collections.abc import Mapping
from typing import Any

RESERVED = ("image", "label", "id")  # fields that every example has with a meaning of their own


def as_fields(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Values as examples hold them: a string, a tuple of strings (several texts), or None.

    Numbers and truth values are given as JSON writes them, and so is what nests deeper. A column with the name of a
    RESERVED field gets a trailing underscore.
    """
    return {f"{name}_" if name in RESERVED else name: _as_field(value) for name, value in columns.items()}


def _as_field(value: Any) -> str | tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return json.dumps(value, ensure_ascii=False)

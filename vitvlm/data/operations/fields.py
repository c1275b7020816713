"""Operations on whole examples rather than on pixels."""

from collections.abc import Sequence
from types import NoneType
from typing import Any

import numpy as np

from vitvlm.core.config import suggest
from vitvlm.data.operations.parsing import example_operation


@example_operation("keep")
def keep(example: dict[str, Any], *names: str) -> dict[str, Any]:
    """Batches these text fields too, as in keep("name", "keywords"); a batch has no text otherwise.

    A field is an array of strings, None being ""; where some example has several texts, of tuples of strings.
    """
    for name in names:
        if name not in example:
            raise ValueError(f"no field {name!r}; {suggest(name, set(example) - {'image', 'label'})}")
    texts = {name for name, value in example.items() if isinstance(value, (str, tuple, NoneType))} - {"id", *names}
    kept = {name: value for name, value in example.items() if name not in texts}
    return kept | {name: "" if example[name] is None else example[name] for name in names}


def as_array(values: Sequence[str | tuple[str, ...]]) -> np.ndarray:
    """A field of a batch, [B], see `keep`."""
    if all(isinstance(value, str) for value in values):
        return np.array(values)
    array = np.empty(len(values), object)
    for row, value in enumerate(values):
        array[row] = value if isinstance(value, tuple) else (value,) if value else ()
    return array

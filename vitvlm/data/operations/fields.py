"""Operations on whole examples rather than on pixels."""

from types import NoneType
from typing import Any

from vitvlm.core.config import suggest
from vitvlm.data.operations.parsing import example_operation


@example_operation("keep")
def keep(example: dict[str, Any], *names: str) -> dict[str, Any]:
    """Batches these text fields too, as in keep("name", "keywords"); a batch has no text otherwise.

    Several texts of a field are joined by "|"; None is "".
    """
    for name in names:
        if name not in example:
            raise ValueError(f"no field {name!r}; {suggest(name, set(example) - {'image', 'label'})}")
    texts = {name for name, value in example.items() if isinstance(value, (str, tuple, NoneType))} - {"id", *names}
    kept = {name: value for name, value in example.items() if name not in texts}
    return kept | {name: _as_string(example[name]) for name in names}


def _as_string(value: Any) -> Any:
    if value is None:
        return ""
    return "|".join(value) if isinstance(value, tuple) else value

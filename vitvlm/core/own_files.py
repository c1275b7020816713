"""Reading and writing this code's own JSON files, which may have been cut, emptied or overwritten in the meantime."""

import json
import logging
from typing import Any

from etils import epath

from vitvlm.core import json_texts

_LOG = logging.getLogger(__name__)


def read(path: epath.PathLike, *fields: str) -> dict[str, Any] | None:
    """The object in a file; None, and a line in the log, if it is not there, damaged, or lacks one of the fields."""
    path = epath.Path(path)
    try:
        found = json_texts.loads(path.read_bytes())
    except FileNotFoundError:
        problem = "there is no such file"
    except (OSError, ValueError) as error:
        problem = f"damaged: {' '.join(str(error).split())}"
    else:
        missing = [field for field in fields if not isinstance(found, dict) or field not in found]
        if isinstance(found, dict) and not missing:
            return found
        kind = f"{type(found).__name__} instead of an object" if not isinstance(found, dict) else f"no {missing[0]!r}"
        problem = f"damaged: it holds {kind}"
    _LOG.warning("%s: %s", path, problem)
    return None


def write(path: epath.PathLike, value: Any) -> None:
    """Replaces the file as a whole, so that a crash leaves the one before or this one."""
    path = epath.Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    temporary.replace(path)


def set_aside(path: epath.PathLike) -> epath.Path:
    """Renames what is damaged, so that it can be looked at; returns its new place."""
    path = epath.Path(path)
    number, free = 1, path.with_name(f"{path.name}.damaged")
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(free)
    return free

"""Record of a checkpoint: shapes and checksums of its arrays, and everything else about it, under one digest."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from vitvlm.core import paths

Json = Any


class DamagedError(RuntimeError):
    """A checkpoint whose bytes are not those that were written."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Content of a checkpoint's record.

    Attributes:
      arrays: shape, dtype name and fingerprint of each array, by its path.
      config: the resolved config of the job that wrote it.
      metrics: metrics of the evaluations at this step.
      resume: state of the loop, such as the places of iterators and writers.
    """

    arrays: Mapping[str, tuple[tuple[int, ...], str, str]]
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    resume: Json

    def json(self) -> dict[str, Json]:
        content = dataclasses.asdict(self)
        return {"content": content, "sha256": _digest(content)}

    @classmethod
    def read(cls, path: epath.PathLike) -> "Record":
        """Raises DamagedError if the file is missing, is not a record, or does not match its digest."""
        try:
            found = json.loads(epath.Path(path).read_bytes())
            content = found["content"]
            whole = found["sha256"] == _digest(content)
            if not whole:
                raise DamagedError("its record does not have its digest")
            arrays = {path: (tuple(shape), dtype, mark) for path, (shape, dtype, mark) in content.pop("arrays").items()}
            return cls(arrays=arrays, **content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"its record cannot be read: {line(error)}") from error

    def write(self, path: epath.PathLike) -> None:
        """Replaces the file as a whole. Raises OSError."""
        path = epath.Path(path)
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps(self.json()))
        temporary.replace(path)

    def mismatches(self, target: Mapping[str, Any]) -> list[str]:
        """Lists how the arrays differ from a target's in name, shape and dtype: one phrase per array."""
        wanted = {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in paths.flatten(target).items()}
        found = {path: (shape, dtype) for path, (shape, dtype, _) in self.arrays.items()}
        return [
            f"{path} is {_show(found.get(path))} in the checkpoint and {_show(wanted.get(path))} in the model"
            for path in sorted({*wanted, *found})
            if wanted.get(path) != found.get(path)
        ]


def line(error: BaseException, most: int = 160) -> str:
    """An error as part of one line: without TensorStore's specs, and of a long one the end, which names the cause."""
    text = " ".join(str(error).split())
    text = re.sub(r" \[[\w\[\]]+='.*|\. See full TensorStore details.*", "", text)
    if isinstance(error, KeyError) or not text:
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= most else f"… {text[-most:]}"


def _digest(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _show(array: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if array is None else f"{array[1]}{list(array[0])}"

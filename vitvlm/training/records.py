"""Record of a checkpoint: shapes and checksums of its arrays, and everything else about it, under one digest."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

Json = Any


# Shape, dtype name and fingerprint of an array.
Described = tuple[tuple[int, ...], str, str]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found or used; one line that says which and what to do."""


class DamagedError(RuntimeError):
    """A checkpoint whose bytes are not those that were written."""


@dataclasses.dataclass(frozen=True)
class Base:
    """Frozen parameters that a checkpoint refers to: the name of their folder, and what each array is, by its path."""

    name: str
    arrays: Mapping[str, Described]


@dataclasses.dataclass(frozen=True)
class Record:
    """Content of a checkpoint's record.

    Attributes:
      arrays: each array that the checkpoint itself holds, by its path.
      config: the resolved config of the job that wrote it.
      metrics: metrics of the evaluations at this step.
      resume: state of the loop, such as the places of iterators and writers.
      base: the frozen parameters, which lie outside the checkpoint; None if there are none.
    """

    arrays: Mapping[str, Described]
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    resume: Json
    base: Base | None = None

    @property
    def all_arrays(self) -> dict[str, Described]:
        """The arrays of the checkpoint and of its base."""
        return {**self.arrays, **(self.base.arrays if self.base else {})}

    def json(self) -> dict[str, Json]:
        content = dataclasses.asdict(self)
        if self.base is None:
            del content["base"]
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
            if base := content.pop("base", None):
                base = Base(base["name"], _described(base["arrays"]))
            return cls(arrays=_described(content.pop("arrays")), base=base, **content)
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
        wanted = {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in target.items()}
        found = {path: (shape, dtype) for path, (shape, dtype, _) in self.all_arrays.items()}
        return _moved(wanted, found) or _differences(found, wanted)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint that was read and found whole.

    Attributes:
      step: number of updates done.
      state: the arrays, in the target's structure.
      resume: what the loop saved for itself.
      metrics: of the evaluations at this step.
      config: the resolved config of the job that wrote it.
    """

    step: int
    state: Any
    resume: Json
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]


def mismatches(arrays: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
    """Lists how arrays of a checkpoint differ from a target's in name, shape and dtype: one phrase per array."""
    return _differences(
        *({path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in each.items()} for each in (arrays, target))
    )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f"{path} is {_show(found.get(path))} in the checkpoint and {_show(wanted.get(path))} in the model"
        for path in sorted({*wanted, *found})
        if wanted.get(path) != found.get(path)
    ]


def _described(arrays: Mapping[str, Json]) -> dict[str, Described]:
    return {path: (tuple(shape), dtype, mark) for path, (shape, dtype, mark) in arrays.items()}


def _moved(wanted: Collection[str], found: Collection[str]) -> list[str]:
    """Lists the parameters that are frozen on one side only: one phrase each."""
    return [
        f"{path} {here} in this job and {there} in the checkpoint (config.optimizer.freeze)"
        for ours, theirs, here, there in (
            ("params", "frozen", "trains", "is frozen"),
            ("frozen", "params", "is frozen", "trains"),
        )
        for path in (each.removeprefix(f"{ours}/") for each in sorted(wanted) if each.startswith(f"{ours}/"))
        if f"{theirs}/{path}" in found and f"{ours}/{path}" not in found
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

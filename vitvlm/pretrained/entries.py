"""Tensors by name from any kind of file: shapes and dtypes are known at once, values are read one by one."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitvlm.core.shortening import shortened

Shape = tuple[int, ...]
MOST_AXES = 32
MOST_NUMBERS = 2**48  # of one tensor, each length of an axis counted as 1 or more


class WeightsError(ValueError):
    """Weights on disk that cannot be used; the message names the file and what is wrong with it."""

    def __init__(self, message: str = ""):
        super().__init__(shortened(message))


def checked_shape(shape: Iterable[Any], where: str) -> Shape:
    """The shape, once it is sure that NumPy can have it. Raises WeightsError."""
    shape = tuple(shape)
    if len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise WeightsError(f"{where}: damaged: {shape!r:.60} is no shape")
    if math.prod(max(n, 1) for n in shape) > MOST_NUMBERS:
        raise WeightsError(f"{where}: damaged: its shape is {shape!r:.60}")
    return shape


@contextlib.contextmanager
def blamed(path: Path, config: Path | None = None) -> Iterator[None]:
    """Turns errors raised inside into a WeightsError that names the file, or `config` (if given) for a missing key."""
    try:
        yield
    except WeightsError:
        raise
    except KeyError as error:
        raise WeightsError(f"{config or path}: has no {error}") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise WeightsError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor in a file: its shape and dtype, known from the file's header, and how it is read.

    `read` gives an array mapped from the file, whose pages are read where they are used, if the format allows that.
    """

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
    """Mapping of names to arrays, each read at its use and not kept: a large model is never held twice.

    Fields:
      opaque: names of the classes of objects that lie beside the tensors and are not read.
    """

    def __init__(self, entries: Mapping[str, Entry], opaque: tuple[str, ...] = ()):
        self.entries = entries
        self.opaque = opaque

    def __getitem__(self, name: str) -> np.ndarray:
        return self.entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def shapes(self) -> dict[str, Shape]:
        """Returns the shape of every tensor by name, without reading any values."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def renamed(self, rename: Callable[[str], str | None]) -> "Tensors":
        """The same under other names, without those that have none. Raises ValueError if two would have the same."""
        found: dict[str, Entry] = {}
        for name, entry in self.entries.items():
            if (new := rename(name)) in found:
                raise ValueError(f"two tensors are {new}, under different spellings; one of them is {name}")
            if new is not None:
                found[new] = entry
        return Tensors(found, self.opaque)

    def under(self, prefix: str) -> "Tensors":
        """Returns the tensors whose names begin with `prefix`, and removes it from their names."""
        starting = {name: entry for name, entry in self.entries.items() if name.startswith(prefix)}
        return Tensors({name.removeprefix(prefix): entry for name, entry in starting.items()})


def in_memory(arrays: Mapping[str, np.ndarray]) -> Tensors:
    """Tensors that have been read already."""
    return Tensors({name: Entry(array.shape, array.dtype, lambda array=array: array) for name, array in arrays.items()})

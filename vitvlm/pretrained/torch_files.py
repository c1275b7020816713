"""The tensors of PyTorch's .pth and .bin files (zip archives with a pickle in them), read without unpickling.

A pickle is a program that may call anything. Here its instructions are read by `pickletools`, and a small machine
follows those that a file of tensors needs: containers, strings, numbers, and three calls that it knows. Anything else
is refused by name; nothing of the file is ever called.
"""

import dataclasses
import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vitvlm.pretrained.entries import Entry, Tensors, WeightsError

LARGEST_PICKLE = 64 * 2**20  # bytes; it holds names and shapes only

DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that the pickle would import; here it is only compared."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in a file of the archive."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class Strided:
    """A tensor: where in a storage it lies."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def open_torch(path: Path) -> Tensors:
    """The tensors of a file; names inside nested dictionaries are joined by dots: "model.patch_embed.proj.weight".

    Raises WeightsError for a file that is no such archive, is cut short, asks to call anything but the rebuilding of
    tensors, or holds a tensor that lies outside its storage.
    """
    try:
        archive = zipfile.ZipFile(path)
        members = {name.partition("/")[2]: archive.getinfo(name) for name in archive.namelist()}
        if "data.pkl" not in members:
            raise WeightsError(f"{path}: no PyTorch archive: it holds no data.pkl; save it again with a recent PyTorch")
        if (size := members["data.pkl"].file_size) > LARGEST_PICKLE:
            raise WeightsError(f"{path}: data.pkl of {size:,} bytes; at most {LARGEST_PICKLE:,} are read")
        content = _Machine(path).run(archive.read(members["data.pkl"]))
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise WeightsError(f"{path}: no whole PyTorch archive: {error}; copy it again") from None
    found: dict[str, Strided] = {}
    _collect(content, "", found)
    for name, tensor in found.items():
        _check(path, name, tensor, members.get(f"data/{tensor.storage.key}"))
    return Tensors(
        {
            name: Entry(tensor.shape, partial(_read, archive, members[f"data/{tensor.storage.key}"], tensor))
            for name, tensor in found.items()
        }
    )


def _collect(value: Any, name: str, found: dict[str, Strided]) -> None:
    """Tensors of nested dictionaries, by their joined keys; other values, such as an epoch's number, are no weights."""
    if isinstance(value, Strided):
        found[name] = value
    elif isinstance(value, dict):
        for key, item in value.items():
            _collect(item, f"{name}.{key}" if name else str(key), found)


def _check(path: Path, name: str, tensor: Strided, member: zipfile.ZipInfo | None) -> None:
    storage = tensor.storage
    if member is None or member.file_size != storage.size * storage.dtype.itemsize:
        held = "not there" if member is None else f"{member.file_size:,} bytes"
        raise WeightsError(f"{path}: {name}: its storage of {storage.size:,} {storage.dtype} is {held}; copy it again")
    if member.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(f"{path}: {name}: compressed, which PyTorch's own files never are")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides))
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if any(number < 0 for number in numbers) or (math.prod(tensor.shape) and last >= storage.size):
        raise WeightsError(f"{path}: {name}: shape {tensor.shape}, strides {tensor.strides} lie outside its storage")
    if math.prod(tensor.shape) > storage.size:
        raise WeightsError(f"{path}: {name}: shape {tensor.shape} repeats its storage of {storage.size:,} numbers")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, tensor: Strided) -> np.ndarray:
    """Checked by its checksum as it is read."""
    try:
        numbers = np.frombuffer(archive.read(member), tensor.storage.dtype)[tensor.offset :]
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{archive.filename}: damaged: {error}; copy it again") from None
    steps = tuple(step * numbers.itemsize for step in tensor.strides)
    return np.lib.stride_tricks.as_strided(numbers, tensor.shape, steps, writeable=False)


class _Machine:
    """Follows the instructions of a pickle of tensors; see the standard library's `pickletools` for what each does."""

    def __init__(self, path: Path):
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(io.BytesIO(pickle)):
                if opcode.name == "STOP":
                    return self.stack[-1]
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{self.path}: data.pkl is no pickle of tensors: {error!r}") from None
        raise WeightsError(f"{self.path}: data.pkl is cut short; copy it again")

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self.stack.append(_PUSH[name](argument))
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "TUPLE":
            self.stack.append(tuple(self._since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(self._pop(int(name[-1]))))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._since_mark()
            self.stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._since_mark()
            self.stack[-1].update(zip(items[::2], items[1::2]))
        elif name == "STACK_GLOBAL":
            self.stack.append(Global(".".join(self._pop(2))))
        elif name == "BINPERSID":
            self.stack.append(_storage(*self._pop(1)))
        elif name == "REDUCE":
            self.stack.append(self._call(*self._pop(2)))
        elif name == "BUILD":  # attributes of a state_dict, of no use here
            self._pop(1)
            if not isinstance(self.stack[-1], dict):
                raise WeightsError(f"{self.path}: sets attributes of {self.stack[-1]!r}; only tensors are read")
        else:
            raise WeightsError(f"{self.path}: instruction {name} has no place in a file of tensors; nothing was run")

    def _call(self, function: Any, arguments: tuple) -> Any:
        if not isinstance(function, Global) or function.name not in CALLS:
            asked = function.name if isinstance(function, Global) else repr(function)
            raise WeightsError(f"{self.path}: asks to call {asked}; only tensors are read, and nothing was run")
        return CALLS[function.name](*arguments)

    def _pop(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError("stack is empty")
        del self.stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        return self._pop(count) if (count := len(self.stack) - self.marks.pop()) else []


def _storage(identity: tuple) -> Storage:
    """("storage", its type, its file in the archive, device, number of elements)."""
    _, kind, key, _, size = identity
    return Storage(str(key), np.dtype(DTYPES[kind.name.rpartition(".")[2]]), int(size))


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> Strided:
    return Strided(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


# What may be "called", and what stands for it.
CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda items=(): dict(items),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
}

_PUSH: Mapping[str, Callable[[Any], Any]] = {
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "GLOBAL": lambda argument: Global(argument.replace(" ", ".")),
    **dict.fromkeys(
        ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        lambda argument: argument,
    ),
}

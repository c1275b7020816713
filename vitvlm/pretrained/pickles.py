"""Pickles of tensors, followed without unpickling: what PyTorch's files hold, and nothing of it is ever called.

A pickle is a program that may call anything. Here its instructions are read by `pickletools`, and a small machine
follows them with stand-ins: a tensor is where its numbers lie, a module is a dictionary of its tensors, and any other
object, such as the `args=Namespace(...)` of a training, is opaque: its class is kept as a name and its contents are
dropped.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vitvlm.pretrained.entries import WeightsError

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

LARGEST_NUMBER_OF_VALUES = 2_000_000  # in nested dictionaries; the largest published models hold some thousands

TORCHSCRIPT = "__torch__."  # what its classes begin with

# Calls that no training's settings ask for, and a file made to do harm does; and kinds of tensors that are not read.
REFUSED = tuple(
    f"{module}."
    for module in (
        *("os", "posix", "nt", "sys", "subprocess", "builtins", "__builtin__", "shutil", "socket", "importlib", "imp"),
        *("runpy", "code", "pty", "ctypes", "pickle", "_pickle", "cPickle", "marshal", "webbrowser", "multiprocessing"),
        *("torch._utils", "torch._tensor", "torch.storage", "torch.jit", "torch.serialization", "torch.hub"),
    )
)
HARMLESS = frozenset(
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("list", "dict", "tuple", "frozenset", "bytearray", "complex", "slice", "range", "object")
)
# Called with a class first: a member of an enumeration, and objects before protocol 2.
BY_CLASS = ("builtins.getattr", "__builtin__.getattr", "copyreg._reconstructor", "copy_reg._reconstructor")


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that the pickle would import; here it is only compared."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers elsewhere in the file."""

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


class Object(dict):
    """Stand-in for an object: its class's name, and a module's tensors or a dictionary's items if it has any."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.opaque = True


def read(path: Path, pickle: io.BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """Returns the content of a pickle, with stand-ins for objects; leaves the stream at the pickle's end.

    Args:
      storages: receives all storages that the pickle names, by key.

    Raises WeightsError for a pickle that is cut off or damaged, that holds a kind of tensor which cannot be read, or
    that asks to call something that no file of tensors needs.
    """
    return _Machine(path, {} if storages is None else storages).run(pickle)


def tensors_in(path: Path, content: Any) -> tuple[dict[str, Strided], list[str]]:
    """Tensors of nested dictionaries by their keys joined by dots, and the names of the classes that are opaque.

    Numbers and texts, such as an epoch's, are not weights. Raises WeightsError for absurdly many values.
    """
    found: dict[str, Strided] = {}
    opaque: dict[str, None] = {}
    waiting, seen = [("", content)], 0
    while waiting:
        name, value = waiting.pop()
        if (seen := seen + 1) > LARGEST_NUMBER_OF_VALUES:
            raise WeightsError(f"{path}: more than {LARGEST_NUMBER_OF_VALUES:,} values: no file of weights")
        if isinstance(value, Strided):
            found[name] = value
        elif isinstance(value, Object) and value.opaque and not value:
            opaque[value.name] = None
        elif isinstance(value, dict):
            waiting += [(f"{name}.{key}" if name else str(key), item) for key, item in reversed(value.items())]
    return found, list(opaque)


class _Machine:
    """Follows the instructions of a pickle; see the standard library's `pickletools` for what each does."""

    def __init__(self, path: Path, storages: dict[str, Storage]):
        self.path = path
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, pickle: io.BytesIO) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(pickle):
                if opcode.name == "STOP":
                    return self.stack[-1]
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{self.path}: no pickle of tensors: {error!r}") from None
        raise WeightsError(f"{self.path}: its pickle is cut short, or too long; copy it again")

    def _step(self, name: str, argument: Any) -> None:
        if name in _PUSH:
            self.stack.append(_PUSH[name](argument))
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(argument)])
        elif name in ("POP", "POP_MARK"):
            self._pop(1) if name == "POP" else self._since_mark()
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            items = self._since_mark()
            self.stack.append(items if name == "LIST" else tuple(items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self.stack.append(tuple(self._pop(int(name[-1]))))
        elif name == "DICT":
            self.stack.append(self._put({}, self._since_mark()))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = self._pop(1) if name == "APPEND" else self._since_mark()
            if not isinstance(self.stack[-1], Object):
                self.stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._since_mark()
            self._put(self.stack[-1], items)
        elif name == "STACK_GLOBAL":
            self.stack.append(Global(".".join(self._pop(2))))
        elif name == "BINPERSID":
            self.stack.append(self._persistent(*self._pop(1)))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            made, arguments, *_ = self._pop(3 if name == "NEWOBJ_EX" else 2)
            self.stack.append(self._make(made, arguments))
        elif name == "BUILD":
            self._build(*self._pop(1))
        else:
            raise WeightsError(f"{self.path}: instruction {name} has no place in a file of tensors; nothing was run")

    def _put(self, target: dict, items: list[Any]) -> dict:
        target.update((k, v) for k, v in zip(items[::2], items[1::2]) if isinstance(k, str | int | float | bytes))
        return target

    def _persistent(self, identity: tuple) -> Storage | Global:
        """A storage; or a module's class, with its source, which files from before 1.6 have."""
        if identity[0] == "module":
            return identity[1]
        storage = _storage(self.path, identity)
        return self.storages.setdefault(storage.key, storage)

    def _make(self, made: Any, arguments: Any) -> Any:
        """Returns the stand-in for the result of a call or for an object of a class."""
        if isinstance(made, Object):  # a method of one
            return made
        if not isinstance(made, Global):
            raise WeightsError(f"{self.path}: asks to call {made!r}; only tensors are read, and nothing was run")
        if made.name in CALLS:
            return CALLS[made.name](*arguments)
        if made.name in BY_CLASS:
            return self._make(arguments[0], ())
        if made.name.startswith(REFUSED) and made.name not in HARMLESS:
            raise WeightsError(f"{self.path}: asks to call {made.name}; only tensors are read, and nothing was run")
        return Object(made.name)

    def _build(self, state: Any) -> None:
        """Sets attributes of an object: a module keeps its tensors; those of other objects are ignored."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise WeightsError(f"{self.path}: sets attributes of {target!r}; only tensors are read")
        if isinstance(target, Object) and isinstance(state, dict):
            if target.name.startswith(TORCHSCRIPT):
                target.update(state)
                target.opaque = False
            elif {"_parameters", "_modules"} <= state.keys():
                target.update(_module(state))
                target.opaque = False

    def _pop(self, count: int) -> list[Any]:
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError("stack is empty")
        del self.stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        return self._pop(count) if (count := len(self.stack) - self.marks.pop()) else []


def _module(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters, the persistent buffers and the modules of a pickled `torch.nn.Module`."""
    dropped = state.get("_non_persistent_buffers_set", ())
    buffers = {name: value for name, value in state.get("_buffers", {}).items() if name not in dropped}
    return {**state["_parameters"], **buffers, **state["_modules"]}


def _storage(path: Path, identity: tuple) -> Storage:
    """Makes a storage from ("storage", type, key, device, number of elements); older files add a part of another."""
    _, kind, key, _, size, *view = identity
    name = kind.name.rpartition(".")[2]
    if name not in DTYPES:
        raise WeightsError(f"{path}: holds numbers of type {name}; there is: {', '.join(DTYPES)}")
    if any(part is not None for part in view):
        raise WeightsError(f"{path}: a storage that is part of another, as PyTorch 0.1 had them; save it again")
    return Storage(str(key), np.dtype(DTYPES[name]), int(size))


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> Strided:
    return Strided(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


# What may be "called", and what stands for it.
CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda items=(): dict(items),
    "collections.defaultdict": lambda *factory: {},
    "__builtin__.set": lambda items=(): list(items),
    "builtins.set": lambda items=(): list(items),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch.jit._pickle.build_intlist": lambda items: list(items),
    "torch.jit._pickle.build_doublelist": lambda items: list(items),
    "torch.jit._pickle.build_boollist": lambda items: list(items),
    "torch.jit._pickle.build_tensorlist": lambda items: list(items),
    "torch.jit._pickle.restore_type_tag": lambda value, *rest: value,
}

_PUSH: Mapping[str, Callable[[Any], Any]] = {
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_SET": lambda _: [],
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "GLOBAL": lambda argument: Global(argument.replace(" ", ".")),
    **dict.fromkeys(
        (
            *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
            *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
        ),
        lambda argument: argument,
    ),
}

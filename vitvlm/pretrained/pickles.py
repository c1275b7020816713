"""Pickles of tensors, followed without unpickling: what PyTorch's files hold, and nothing of it is ever called.

A pickle is a program that may call anything. Here its instructions are read by `pickletools`, and a small machine
follows them with stand-ins: a tensor is where its numbers lie, a module is a dictionary of its tensors, and any other
object, such as the `args=Namespace(...)` of a training, is opaque: its class is kept as a name and its contents are
dropped.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable, Mapping, Sized
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

# The largest published models hold some thousands of tensors, a few dictionaries deep.
LARGEST_NUMBER_OF_VALUES = 500_000  # in nested dictionaries, each counted as often as it is reached
MOST_STEPS = 2_000_000  # instructions, and items that calls copy: some 100 bytes of memory each
DEEPEST = 100  # dictionaries inside each other
LONGEST_NAME = 2_000  # characters of a tensor's or a class's name
MOST_LETTERS = 2**26  # of all names of tensors
MOST_AXES = 32
LARGEST = 2**62  # of sizes, strides and keys; NumPy counts in 64 bits

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
_HELD = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")  # of a module
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

    Numbers and texts, such as an epoch's, are not weights. Raises WeightsError for absurdly many values, for
    dictionaries that nest too deep or hold themselves, and for names that are too long.
    """
    found: dict[str, Strided] = {}
    opaque: dict[str, None] = {}
    waiting, seen, letters = [("", 0, content)], 1, 0
    while waiting:
        name, depth, value = waiting.pop()
        if isinstance(value, Strided):
            found[name] = value
            letters += len(name)
            if letters > MOST_LETTERS:
                raise WeightsError(f"{path}: the names of its tensors have more than {MOST_LETTERS:,} characters")
        elif isinstance(value, Object) and value.opaque and not value:
            opaque[value.name] = None
        elif isinstance(value, dict):
            if (seen := seen + len(value)) > LARGEST_NUMBER_OF_VALUES:
                raise WeightsError(f"{path}: more than {LARGEST_NUMBER_OF_VALUES:,} values: no file of weights")
            if depth >= DEEPEST:
                raise WeightsError(f"{path}: dictionaries more than {DEEPEST} deep, or within themselves: no weights")
            if len(name) > LONGEST_NAME:
                raise WeightsError(f"{path}: a name of more than {LONGEST_NAME:,} characters: {name[:60]!r}…")
            items = reversed(value.items())
            waiting += [(f"{name}.{key}" if name else str(key), depth + 1, item) for key, item in items]
    return found, list(opaque)


class _Machine:
    """Follows the instructions of a pickle; see the standard library's `pickletools` for what each does."""

    def __init__(self, path: Path, storages: dict[str, Storage]):
        self.path = path
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def run(self, pickle: io.BytesIO) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(pickle):
                if opcode.name == "STOP":
                    return self.stack[-1]
                self._spend(1)
                self._step(opcode.name, argument)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{self.path}: no pickle of tensors: {error!r:.200}") from None
        raise WeightsError(f"{self.path}: its pickle is cut short, or too long; copy it again")

    def _spend(self, steps: int) -> None:
        """Counts what is done, by which a file of a few bytes could fill the memory."""
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise WeightsError(f"{self.path}: a pickle of more than {MOST_STEPS:,} steps: no file of weights")

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
            self.stack.append(_global(".".join(self._pop(2))))
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
        """Sets keys that names can be made of; of others, such as nested tuples, not even the hash is asked for."""
        target.update((key, value) for key, value in zip(items[::2], items[1::2]) if is_key(key))
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
            kind = type(made).__name__
            raise WeightsError(f"{self.path}: asks to call a {kind}; only tensors are read, and nothing was run")
        if made.name in CALLS:
            if not isinstance(arguments, tuple):
                raise TypeError("arguments that are no tuple")
            self._spend(sum(len(each) for each in arguments if isinstance(each, Sized)))
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
            raise WeightsError(f"{self.path}: sets attributes of a {type(target).__name__}; only tensors are read")
        if isinstance(target, Object) and isinstance(state, dict):
            self._spend(len(state) + sum(len(state[name]) for name in _HELD if isinstance(state.get(name), Sized)))
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
    dropped = {name for name in state.get("_non_persistent_buffers_set", ()) if isinstance(name, str)}
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
    if not isinstance(key, str | int) or not is_key(key):
        raise WeightsError(f"{path}: a storage is called by a {type(key).__name__}, not by a name or number")
    return Storage(str(key), np.dtype(DTYPES[name]), *_sizes((size,)))


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> Strided:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise ValueError(f"a tensor of {len(shape)} axes and {len(strides)} strides")
    return Strided(storage, *_sizes((offset,)), _sizes(shape), _sizes(strides))


def _sizes(given: Any) -> tuple[int, ...]:
    """Whole numbers from 0 on, as sizes are. Raises ValueError."""
    if not all(type(size) is int and 0 <= size < LARGEST for size in given):
        raise ValueError("sizes or strides that are no whole numbers from 0 on")
    return tuple(given)


def is_key(key: Any) -> bool:
    """Tells whether a part of a name can be made of a dictionary's key."""
    if isinstance(key, str | bytes):
        return True
    return isinstance(key, int | float) and abs(key) < LARGEST


def _global(name: str) -> Global:
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a class's name of {len(name):,} characters")
    return Global(name)


def _ordered(items: Any = ()) -> dict:
    """An OrderedDict from its pairs."""
    return {key: value for key, value in items if is_key(key)}


# What may be "called", and what stands for it.
CALLS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
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
    "GLOBAL": lambda argument: _global(argument.replace(" ", ".")),
    **dict.fromkeys(
        (
            *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
            *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT"),
        ),
        lambda argument: argument,
    ),
}

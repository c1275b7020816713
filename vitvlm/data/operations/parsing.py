"""The language of operation strings: names with literal arguments, joined by "|". Nothing is ever evaluated."""

import ast
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.core.registry import Registry
from vitvlm.data.errors import DataError, UnreadableImage

OPERATIONS = Registry("operation")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation with its arguments: `operation(example, rng, out) -> example`.

    `out` is float pixels that may be overwritten: an image of that shape may be returned in it, without a copy.
    """

    text: str
    function: Callable[..., Any]
    positional: tuple[Any, ...]
    named: Mapping[str, Any]

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator | None = None, out: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Raises UnreadableImage for damaged images and DataError, naming operation and example, for anything else."""
        given = {"rng": rng} if self.function.random else {"out": out} if self.function.writes else {}
        named = {**self.named, **given}
        try:
            if self.function.random and rng is None:
                raise ValueError("it draws random numbers, and was given no rng")
            if self.function.on_image:
                if isinstance(example["image"], bytes) and self.function.name != "decode":
                    raise ValueError("the image is still encoded: put decode first")
                return {**example, "image": self.function(example["image"], *self.positional, **named)}
            return self.function(example, *self.positional, **named)
        except UnreadableImage as error:
            error.name = example["id"]
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"operation {self.text} on {example.get('id', 'an example')}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Operations in order; `fields` are those that `keep` names."""

    text: str
    operations: tuple[Operation, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(name for op in self.operations if op.function.name == "keep" for name in op.positional)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that examples have besides the image."""
        return tuple(dict.fromkeys(name for op in self.operations for name in op.function.arrays))

    def split(self) -> tuple["Pipeline", "Pipeline"]:
        """The operations whose result never changes and is still bytes or uint8 pixels, and the rest."""
        changes = (op.function.random or op.function.name == "normalize" for op in self.operations)
        count = next((i for i, change in enumerate(changes) if change), len(self.operations))
        return Pipeline(self.text, self.operations[:count]), Pipeline(self.text, self.operations[count:])

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator | None = None, out: np.ndarray | None = None
    ) -> dict[str, Any]:
        """See `Operation`; what is in `out` afterwards is the image, or nothing of use."""
        for operation in self.operations:
            example = operation(example, rng, out if operation is self._last_on_image else None)
        return example

    @functools.cached_property
    def _last_on_image(self) -> Operation | None:
        return next((operation for operation in reversed(self.operations) if operation.function.on_image), None)


def image_operation(name: str, random: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `function(image, arguments…, [*, rng or out]) -> image`; an operation string gives the arguments."""
    return _register(name, random, on_image=True)


def example_operation(
    name: str, random: bool = False, arrays: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `function(example, arguments…, [*, rng]) -> example`; `arrays` are what it makes for batches."""
    return _register(name, random, on_image=False, arrays=arrays)


def parse(text: object) -> Pipeline:
    """Reads a string of operations, such as "decode|resize(64, interpolation='bicubic')|normalize('imagenet')".

    Arguments are Python literals. Raises ConfigError for anything else, for an unknown operation (the nearest is named)
    and for arguments that do not fit (the signature is shown).
    """
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"operations {text!r}: write a string such as 'decode|resize(224)|normalize'")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise ConfigError(f"operations {text!r}: not operations joined by '|' ({reason})") from None
    try:
        return Pipeline(text, tuple(_operation(node, text) for node in _split(tree)))
    except RecursionError:
        raise ConfigError(f"operations {text!r}: nested too deeply") from None


def describe() -> str:
    """Every operation with its signature and first line of documentation, one per line."""
    return "\n".join(
        f"{signature(name)}: {inspect.getdoc(OPERATIONS.get(name)).splitlines()[0]}" for name in OPERATIONS.names()
    )


def signature(name: str) -> str:
    """An operation as one writes it: "random_crop(size: int, padding: int = 0)"."""
    return f"{name}{inspect.Signature(list(_parameters(OPERATIONS.get(name)).values()))}"


def _register(
    name: str, random: bool, on_image: bool, arrays: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        function.name, function.random, function.on_image, function.arrays = name, random, on_image, arrays
        function.writes = "out" in inspect.signature(function).parameters
        return OPERATIONS.register(name)(function)

    return add


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    _, *parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.name not in ("rng", "out")}


def _split(node: ast.expr) -> list[ast.expr]:
    parts = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts.append(node.right)
        node = node.left
    return [node, *reversed(parts)]


def _operation(node: ast.expr, text: str) -> Operation:
    if isinstance(node, ast.Name):
        name, positional, named = node.id, [], {}
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        name = node.func.id
        positional = [_literal(argument, text) for argument in node.args]
        if any(keyword.arg is None for keyword in node.keywords):
            raise ConfigError(f"operations {text!r}: ** is not allowed")
        named = {keyword.arg: _literal(keyword.value, text) for keyword in node.keywords}
    else:
        raise ConfigError(f"operations {text!r}: {ast.unparse(node)!r} is neither a name nor a call of one")
    function = OPERATIONS.get(name)
    parameters = _parameters(function)
    try:
        bound = inspect.Signature(list(parameters.values())).bind(*positional, **named)
    except TypeError as error:
        raise ConfigError(f"operation {ast.unparse(node)}: {error}; it is {signature(name)}") from None
    for argument, value in bound.arguments.items():
        parameter = parameters[argument]
        if parameter.kind is parameter.VAR_POSITIONAL:
            bound.arguments[argument] = tuple(_typed(parameter, item, node) for item in value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            bound.arguments[argument] = {name: _typed(parameter, item, node) for name, item in value.items()}
        else:
            bound.arguments[argument] = _typed(parameter, value, node)
    return Operation(ast.unparse(node), function, bound.args, bound.kwargs)


def _literal(node: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError):
        raise ConfigError(
            f"operations {text!r}: the argument {ast.unparse(node)!r} is not a number, string, tuple, None or bool"
        ) from None


def _typed(parameter: inspect.Parameter, value: Any, node: ast.expr) -> Any:
    """The value, which must be of the annotated type; an int becomes a float where only that fits."""
    allowed = typing.get_args(parameter.annotation) or (parameter.annotation,)
    if type(value) is int and int not in allowed and float in allowed:
        return float(value)
    if type(value) not in allowed:
        raise ConfigError(
            f"operation {ast.unparse(node)}: {parameter.name}={value!r} is not {_type_name(parameter.annotation)}"
        )
    return value


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)

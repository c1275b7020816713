"""The language of operation strings: names with literal arguments, joined by "|". Nothing is ever evaluated."""

import ast
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitvlm.core import limits, renames
from vitvlm.core.config import ConfigError
from vitvlm.core.registry import Registry
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.kinds import MOVED, STANDARD, Field, Fields
from vitvlm.data.operations import tracing
from vitvlm.data.operations.moving import visible
from vitvlm.data.operations.steps import Steps, apply

OPERATIONS = Registry("operation")
IMAGE_OPTIONS = {  # of every operation on images
    "field": inspect.Parameter("field", inspect.Parameter.KEYWORD_ONLY, default="image", annotation=str),
    "same_draw": inspect.Parameter("same_draw", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | None),
}
# Entries of an example that is several in one row (`data.packing`): the examples, or the errors of those that cannot be
# read; and of one that was put together, of how many, and the errors of those that were left out.
MEMBERS, TOGETHER, LOST = "@members", "@together", "@lost"
LONGEST = 10_000  # characters of a string of operations
Out = Mapping[str, np.ndarray]
Arguments = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation with its arguments: `operation(example, rng, out) -> example`.

    Attributes:
      text: how it is written.
      function, positional, named: the call, without the options of operations on images.
      field: of an operation on images, the field that it reads and writes: an image, or several.
      same_draw: whether all images of an example share their random numbers, as frames of a video do.
      moved: the fields that its geometry moves, by name; see `Pipeline.bind`.
    """

    text: str
    function: Callable[..., Any]
    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    field: str = "image"
    same_draw: bool | None = None
    moved: Fields = dataclasses.field(default_factory=dict)

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator | None = None, out: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Applies the operation.

        Args:
          example: named fields.
          rng: gives the random numbers.
          out: float pixels that may be overwritten: an image of that shape may be returned in it, without a copy.

        Of several examples in one row, it is applied to each; see MEMBERS.

        Raises UnreadableImage for damaged images and DataError, naming operation and example, for anything else.
        """
        if MEMBERS in example and self.function.name != "pack":
            return {**example, MEMBERS: [self._on_member(each, rng) for each in example[MEMBERS]]}
        try:
            if self.function.random and rng is None:
                raise ValueError("it draws random numbers, and was given no rng")
            if self.function.on_image:
                return tracing.on_images(self, example, rng, out)
            given = {"rng": rng} if self.function.random else {}
            return self.function(example, *self.positional, **self.named, **given)
        except UnreadableImage as error:
            error.name = error.name or example["id"]
            raise
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DataError(f"operation {self.text} on {example.get('id', 'an example')}: {error}") from error

    def _on_member(
        self, member: dict[str, Any] | UnreadableImage, rng: np.random.Generator | None
    ) -> dict[str, Any] | UnreadableImage:
        """The operation on one of several examples in a row; what cannot be read stays an error in its place."""
        if isinstance(member, UnreadableImage):
            return member
        try:
            return self(member, rng)
        except UnreadableImage as error:
            return error

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """All arguments by name, defaults among them."""
        bound = inspect.Signature(list(_own_parameters(self.function).values())).bind(*self.positional, **self.named)
        bound.apply_defaults()
        return bound.arguments

    @property
    def reads(self) -> dict[str, str]:
        """The fields that it reads, with the kind that it takes each for where nothing is declared."""
        if self.function.on_image:
            return {self.field: STANDARD[self.field].kind if self.field in STANDARD else "image"}
        return dict(self.function.reads(self.arguments))

    @property
    def writes(self) -> tuple[str, ...]:
        """The fields that it makes for batches."""
        return (self.field,) if self.function.on_image else tuple(self.function.writes(self.arguments))

    def bind(self, fields: Fields) -> "Operation":
        """The operation on examples with fields of these kinds. Raises ConfigError for what it would not move."""
        if not self.function.on_image:
            return self
        kind = fields.get(self.field, STANDARD.get(self.field, Field("image"))).kind
        same = kind == "video" if self.same_draw is None else self.same_draw
        moved = {name: each for name, each in fields.items() if each.kind in MOVED and each.of == self.field}
        return dataclasses.replace(self, same_draw=same, moved=moved if self.function.traced else {})


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Operations in order."""

    text: str
    operations: tuple[Operation, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """The fields that `keep` names."""
        return tuple(name for op in self.operations if op.function.name == "keep" for name in op.positional)

    @property
    def images(self) -> tuple[str, ...]:
        """The fields that operations on images act on: pixels at the end."""
        return tuple(dict.fromkeys(op.field for op in self.operations if op.function.on_image))

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that examples have besides the image."""
        written = (name for op in self.operations for name in op.writes)
        return tuple(name for name in dict.fromkeys(written) if name != "image")

    @property
    def batched(self) -> tuple[str, ...]:
        """The fields of an example that its batch has: those that an operation writes, and those that are kept."""
        return tuple(dict.fromkeys((*(name for op in self.operations for name in op.writes), *self.kept)))

    @property
    def reads(self) -> dict[str, str]:
        """The fields that an example must bring, with the kind that operations take each for."""
        needed, made = {}, set()
        for op in self.operations:
            needed |= {name: kind for name, kind in op.reads.items() if name not in made and name not in needed}
            made |= (
                set(op.writes)
                | {visible(name) for name in op.moved}
                | set(getattr(op.function, "makes", lambda given: ())(op.arguments))
            )
        return needed

    def bind(self, fields: Fields) -> "Pipeline":
        """The pipeline on examples with fields of these kinds, which says what each operation moves with its image."""
        bound, known = [], dict(fields)
        for op in self.operations:
            bound.append(op.bind(known))
            declares = getattr(op.function, "declares", None)
            known |= declares(known, op.arguments) if declares else {}
        return Pipeline(self.text, tuple(bound))

    def split(self) -> tuple["Pipeline", "Pipeline"]:
        """The operations whose result never changes and is still bytes or uint8 pixels, and the rest."""
        changes = (op.function.random or op.function.name == "normalize" for op in self.operations)
        count = next((i for i, change in enumerate(changes) if change), len(self.operations))
        return Pipeline(self.text, self.operations[:count]), Pipeline(self.text, self.operations[count:])

    def __call__(
        self, example: dict[str, Any], rng: np.random.Generator | None = None, out: Out | None = None
    ) -> dict[str, Any]:
        """Applies all operations; what is in `out`, by field, is its image afterwards, or nothing of use."""
        for place, operation in enumerate(self.operations):
            last = out is not None and self._last_on.get(operation.field) == place
            example = operation(example, rng, out.get(operation.field) if last else None)
        return example

    @functools.cached_property
    def _last_on(self) -> dict[str, int]:
        return {op.field: place for place, op in enumerate(self.operations) if op.function.on_image}


def image_operation(name: str, random: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `function(image, arguments…, [*, rng or out]) -> image`; an operation string gives the arguments."""
    return functools.partial(_register, name, random)


def traced_operation(name: str, function: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers an image operation whose `function` returns (image, steps), so that geometry follows it."""
    return functools.partial(_register, name, False, traced=function)


def geometric_operation(name: str, random: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `plan(shape, arguments…, [*, rng]) -> steps`, and makes it a function of the image itself."""

    def add(plan: Callable[..., Steps]) -> Callable[..., Any]:
        def traced(image: np.ndarray, *arguments: Any, **named: Any) -> tuple[np.ndarray, Steps]:
            steps = plan(image.shape, *arguments, **named)
            return apply(image, steps), steps

        @functools.wraps(plan)
        def function(image: np.ndarray, *arguments: Any, **named: Any) -> np.ndarray:
            return traced(image, *arguments, **named)[0]

        return _register(name, random, function, traced=traced)

    return add


def example_operation(
    name: str,
    random: bool = False,
    reads: Callable[[Arguments], Mapping[str, str]] = lambda given: {},
    writes: Callable[[Arguments], tuple[str, ...]] = lambda given: (),
    makes: Callable[[Arguments], tuple[str, ...]] = lambda given: (),
    declares: Callable[[Fields, Arguments], Fields] | None = None,
    shapes: Callable[[Arguments], Mapping[str, np.ndarray]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `function(example, arguments…, [*, rng]) -> example`.

    Args:
      name: what it is called in operation strings.
      random: it draws random numbers.
      reads: from the arguments, the fields that it reads with the kind that each is taken for.
      writes: from the arguments, the fields that it makes for batches.
      makes: from the arguments, the fields that it makes for other operations.
      declares: from the kinds of fields before it and the arguments, the kinds of the fields that it makes.
      shapes: from the arguments, zeros shaped as the arrays that it makes, where these are known without running it:
        it reads a tokenizer's files.
    """

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        function.reads, function.writes, function.makes, function.declares = reads, writes, makes, declares
        function.shapes = shapes
        return _register(name, random, function, on_image=False)

    return add


def parse(text: object) -> Pipeline:
    """Reads a string of operations, such as "decode|resize(64, interpolation='bicubic')|normalize('imagenet')".

    Arguments are Python literals. Raises ConfigError for anything else, for an unknown operation (the nearest is named)
    and for arguments that do not fit (the signature is shown).
    """
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"operations {text!r:.60}: write a string such as 'decode|resize(224)|normalize'")
    if len(text) > LONGEST:
        raise ConfigError(f"operations {text!r:.60}…: {len(text):,} characters; at most {LONGEST:,} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise ConfigError(f"operations {text!r:.200}: not operations joined by '|' ({reason})") from None
    try:
        return Pipeline(text, tuple(_operation(node, text) for node in _split(tree))).bind({})
    except RecursionError:
        raise ConfigError(f"operations {text!r:.200}: nested too deeply") from None


def describe() -> str:
    """Every operation with its signature and first line of documentation, one per line."""
    return "\n".join(
        f"{signature(name)}: {inspect.getdoc(OPERATIONS.get(name)).splitlines()[0]}" for name in OPERATIONS.names()
    )


def signature(name: str) -> str:
    """An operation as one writes it: "random_crop(size: int, padding: int = 0)"."""
    return f"{name}{inspect.Signature([_written(each) for each in _parameters(OPERATIONS.get(name)).values()])}"


def _register(
    name: str,
    random: bool,
    function: Callable[..., Any],
    on_image: bool = True,
    traced: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    function.name, function.random, function.on_image, function.traced = name, random, on_image, traced
    function.in_place = "out" in inspect.signature(function).parameters
    return OPERATIONS.register(name)(function)


def _own_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    _, *parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.name not in ("rng", "out")}


def _written(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(annotation=limits.bare(parameter.annotation))


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return _own_parameters(function) | (IMAGE_OPTIONS if function.on_image else {})


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
            raise ConfigError(f"operations {text!r:.200}: ** is not allowed")
        named = {keyword.arg: _literal(keyword.value, text) for keyword in node.keywords}
    else:
        raise ConfigError(f"operations {text!r:.200}: {ast.unparse(node)!r:.100} is neither a name nor a call of one")
    function = OPERATIONS.get(name)
    parameters = _parameters(function)
    named = {renames.ARGUMENTS.get((name, key), key): value for key, value in named.items()}
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
    options = {key: bound.arguments.pop(key) for key in IMAGE_OPTIONS if function.on_image and key in bound.arguments}
    return Operation(ast.unparse(node), function, bound.args, bound.kwargs, **options)


def _literal(node: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError):
        told = f"the argument {ast.unparse(node)!r:.100} is not a number, string, tuple, None or bool"
        raise ConfigError(f"operations {text!r:.200}: {told}") from None


def _typed(parameter: inspect.Parameter, value: Any, node: ast.expr) -> Any:
    """The value, which must be of the annotated type and in its limits; an int becomes a float where only that fits."""
    allowed = limits.kinds(parameter.annotation)
    if type(value) is int and int not in allowed and float in allowed:
        value = float(value)
    if type(value) not in allowed:
        raise ConfigError(
            f"operation {ast.unparse(node)}: {parameter.name}={value!r} is not {_type_name(parameter.annotation)}"
        )
    if problem := limits.problem(value, parameter.annotation, f"operation {ast.unparse(node)}: {parameter.name}"):
        raise ConfigError(problem)
    return value


def _type_name(annotation: Any) -> str:
    annotation = limits.bare(annotation)
    return annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)

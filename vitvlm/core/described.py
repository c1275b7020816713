"""The fields of functions and classes as their docstrings describe them: what `--help` and the reference are made of.

A docstring lists fields under "Attributes:", "Args:", "Fields:" or a line that begins so, as Google's style has it:

    Fields, besides those of `Transformer`:
      patch_size, image_size: a number or (height, width).
      crop: whether pixels that fill no patch are left out; a description goes on in lines that are
        indented further.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from jax.typing import DTypeLike

REQUIRED = inspect.Parameter.empty

_HEADING = re.compile(r"(?:.*\. )?(Attributes|Args|Fields)\b.*:$")
_ENTRY = re.compile(r"`?(\w+(?:, \w+)*)`?: (.*)")


@dataclasses.dataclass(frozen=True)
class Field:
    """A field: its name, its type in words of Python, its default (`REQUIRED` for none) and what it is."""

    name: str
    type: str
    default: Any
    text: str

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def value(self) -> str:
        """The default as it is written in Python."""
        return shown(self.default)


def fields(
    builder: Callable[..., Any], leave_out: Collection[str] = (), texts: Mapping[str, str] | None = None
) -> list[Field]:
    """Lists what a function, a dataclass or a Flax module takes by name, in its order, but for `leave_out`.

    `texts` describe those that its docstrings do not.
    """
    texts = {**(texts or {}), **texts_of(builder)}
    defaults = _factories(builder)
    found = []
    for name, parameter in inspect.signature(builder).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name in leave_out:
            continue
        default = defaults.get(name, parameter.default)
        found.append(Field(name, type_name(parameter.annotation), default, texts.get(name, "")))
    return found


def texts_of(builder: Callable[..., Any]) -> dict[str, str]:
    """Reads the descriptions of what a class or a function takes, by name.

    What a class inherits is described where it is declared, and what several functions of a module share in the
    docstring of the module.
    """
    owners = inspect.getmro(builder) if inspect.isclass(builder) else (builder, inspect.getmodule(builder))
    texts: dict[str, str] = {}
    for owner in reversed(owners):
        own = described(owner.__doc__ or "")
        texts |= {name: text for name, text in own.items() if name not in texts or not text.startswith("see ")}
    return texts


def _factories(builder: Callable[..., Any]) -> dict[str, Any]:
    """Defaults of a dataclass that are made anew each time, such as an empty dictionary."""
    if not dataclasses.is_dataclass(builder):
        return {}
    made = {field.name: field.default_factory for field in dataclasses.fields(builder)}
    return {name: factory() for name, factory in made.items() if factory is not dataclasses.MISSING}


def described(docstring: str) -> dict[str, str]:
    """Reads the descriptions of fields in a docstring, by name; several names may share one."""
    texts: dict[str, str] = {}
    for names, text in _entries(inspect.cleandoc(docstring)):
        # "width: of the output; expansion: of its input": an entry may hold another.
        pieces = re.split(r"(?:;|\.) (?=[a-z]\w*(?:, [a-z]\w*)*: )", text)
        entries = [
            (names, pieces[0]),
            *((found[1], found[2]) for piece in pieces[1:] if (found := _ENTRY.match(piece))),
        ]
        for each, meaning in entries:
            texts |= dict.fromkeys(each.split(", "), meaning)
    return texts


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Yields (names, description) of each entry below a heading."""
    inside, indent, entry = False, 0, None
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        if not depth and line:
            inside, indent = bool(_HEADING.match(line)), 0
        elif inside and line:
            indent = indent or depth
            found = _ENTRY.match(line.strip()) if depth == indent else None
            if found:
                if entry:
                    yield entry
                entry = (found[1], found[2])
                continue
            if entry and depth > indent:
                entry = (entry[0], f"{entry[1]} {line.strip()}")
                continue
        if entry:
            yield entry
        entry = None
    if entry:
        yield entry


def first_sentence(item: Any) -> str:
    """Returns the first paragraph of a docstring as one line; "" for what a dataclass writes itself."""
    text = inspect.cleandoc(item.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return "" if inspect.isclass(item) and text.startswith(f"{item.__name__}(") else text


def type_name(annotation: Any) -> str:
    """Returns a type as one writes a value of it in a config: "int | None", "(float, ...)", "section", "dtype"."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if annotation in (REQUIRED, Any):
        return "any"
    if annotation is types.NoneType:
        return "None"
    if isinstance(annotation, types.UnionType) or origin is typing.Union:
        if set(arguments) >= set(typing.get_args(DTypeLike)):
            arguments = ("dtype", *(each for each in arguments if each not in typing.get_args(DTypeLike)))
        return " | ".join(dict.fromkeys(map(type_name, arguments)))
    if origin is typing.Literal:
        return " | ".join(map(repr, arguments))
    if origin is tuple:
        return f"({', '.join('...' if each is ... else type_name(each) for each in arguments)})"
    if isinstance(annotation, str):
        return annotation
    kind = origin or annotation
    if issubclass(kind, str) or kind in (int, float, bool):
        return kind.__name__
    if issubclass(kind, Mapping) or dataclasses.is_dataclass(kind):
        return "section"
    if issubclass(kind, Sequence):
        return "tuple"
    return getattr(kind, "__name__", str(kind))


def shown(value: Any) -> str:
    """Returns a default as it is written in Python."""
    return value.__name__ if callable(value) else repr(value)

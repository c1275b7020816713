"""Jinja's sandbox for chat templates, with the names that `transformers` gives them.

Templates come with weights from anywhere: in the sandbox they see values and change none, and reach nothing else.
"""

import functools
import json
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox

TemplateError = jinja2.TemplateError


@functools.lru_cache(maxsize=64)
def program(source: str, generation: tuple[str, str] = ("", "")) -> jinja2.Template:
    """Compiles a template.

    Args:
      generation: what is written before and after a `{% generation %}` block.

    Raises TemplateError.
    """
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols], undefined=Missing
    )
    environment.generation = generation
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "namespace": Namespace,
    }
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"line {error.lineno}: {error.message}") from None


class Generation(ext.Extension):
    """`{% generation %} … {% endgeneration %}`, around what an assistant writes."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_enclosed"), [], [], body).set_lineno(line)

    def _enclosed(self, caller: Any) -> str:
        before, after = self.environment.generation
        return f"{before}{caller()}{after}"


class Missing(jinja2.Undefined):
    """A variable that is not there. It is written as nothing, but a special token is an error."""

    def __str__(self) -> str:
        if str(self._undefined_name).endswith("_token"):
            raise jinja2.UndefinedError(f"it writes {self._undefined_name}, which the tokenizer does not have")
        return super().__str__()


class Namespace(jinja2.utils.Namespace):
    """A namespace of Jinja's that holds nothing whose name begins with an underscore."""

    def __init__(*args: Any, **kwargs: Any):
        self, *values = args
        fields = dict(*values, **kwargs)
        for name in fields:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, fields)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace holds no {name!r}")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Plain JSON; Jinja's own filter is for web pages and escapes their characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

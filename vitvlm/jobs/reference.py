"""The reference of a job's config: every field with its type, its default and what it is, from where it is declared.

`--help` prints it, of one config or of all there is; docs/config.md is the same as a page.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from flax import linen as nn

from vitvlm import evaluation, models
from vitvlm.core import described
from vitvlm.core.described import Field
from vitvlm.jobs import fields
from vitvlm.jobs.evaluation.evaluations import Section
from vitvlm.models import registry
from vitvlm.models.registry import MODELS
from vitvlm.nn.lora import Lora
from vitvlm.tasks import TASKS
from vitvlm.tasks.base import NEEDS
from vitvlm.training import methods, optimizer, schedules

NAME = "NAME"
"""The name of an evaluation in the paths of the reference, where no config says which there are."""

FLAX = ("name", "parent")  # the framework's own fields of a module


@dataclasses.dataclass(frozen=True)
class Part:
    """The fields of one section of a config, or of one thing that the section may name.

    Attributes:
      path: the section below the config, such as "data.train"; "" for the config itself.
      chosen: what the section's name or type is for these fields, such as 'name="adamw"'; "" for any.
      text: what it is, in a sentence.
      fields: in the order in which they are declared.
    """

    path: str
    chosen: str
    text: str
    fields: tuple[Field, ...]

    @property
    def title(self) -> str:
        section = f"config.{self.path}" if self.path else "config"
        return f"{section}, {self.chosen}" if self.chosen else section


def everything() -> list[Part]:
    """Lists the fields of every config: of its sections, and of all tasks, models, optimizers and evaluators."""
    named = (
        *(_task(name) for name in TASKS.names()),
        *(_model("model", name) for name in models.names()),
        *(_method(name) for name in methods.METHODS),
        *(_evaluator(NAME, name) for name in evaluation.names()),
    )
    return [*_sections((NAME,)), *named]


def of(config: Mapping[str, Any]) -> list[Part]:
    """Lists the fields of one config: of its sections, and of the task, model, optimizer and evaluators it names.

    A name that there is none of is left out: the job's setup says so.
    """
    evals = {name: section for name, section in (config.get("evals") or {}).items() if isinstance(section, Mapping)}
    found = _sections(tuple(evals))
    if (name := _name(config, "task")) in TASKS.names():
        found.append(_task(name))
    found += _models("model", config.get("model"))
    if (name := _name(config, "optimizer")) in methods.METHODS:
        found.append(_method(name))
    return found + [
        _evaluator(name, each["type"]) for name, each in evals.items() if each.get("type") in evaluation.names()
    ]


def help_text(config: Mapping[str, Any] | None = None, width: int = 120) -> str:
    """The reference as a terminal shows it, a paragraph per field; with a config's own values, if one is given."""
    lines = []
    for part in everything() if config is None else of(config):
        lines += ["", *textwrap.wrap(f"{part.title}: {part.text}" if part.text else f"{part.title}:", width)]
        for field in part.fields:
            given = "" if config is None else _given(config, part, field)
            head = f"--{_path(part, field)}{given}"
            text = f"{head}  ({field.type}, {_default(field)}) {field.text}"
            lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    return "\n".join(lines).strip() + "\n"


def page() -> str:
    """The reference as a page of the manual, in Markdown."""
    lines = [
        "# Every field of a config",
        "",
        "This page is made from the code (`python -m tests.docs.reference` writes it again): each field with its type,",
        "its default and what it is. `python scripts/train.py --help` prints the same in a terminal, and with",
        "`--config=FILE` the fields of that config with their values. Any field is set as in `--config.batch_size=32`.",
    ]
    for part in everything():
        lines += ["", f"## `{part.title}`", ""]
        lines += [*textwrap.wrap(_escaped(part.text), 118), ""] if part.text else []
        lines += ["| field | type | default | |", "|---|---|---|---|"] if part.fields else ["No fields of its own."]
        for field in part.fields:
            default = "required" if field.required else f"`{field.value}`"
            cells = (f"`{field.name}`", f"`{field.type}`", default, field.text)
            lines.append(f"| {' | '.join(_escaped(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _sections(evals: Collection[str]) -> list[Part]:
    """The sections that every config has or may have."""
    return [
        _part("", fields.Job),
        _part("data", fields.Data),
        _part("data.train", fields.Split),
        _part("data.eval", fields.Split),
        _part("optimizer", optimizer.Common),
        _part("schedule", schedules.make, leave_out=("clock", "where")),
        *(_part(f"evals.{name}", Section) for name in evals),
        _part("checkpoint", fields.Checkpoint),
        _part("log", fields.Log),
        _part("init_from", fields.InitFrom),
        _part("feature_cache", fields.FeatureCache),
        _part("lora", Lora),
    ]


def _task(name: str) -> Part:
    """Fields of a task; of what a job makes for it, those that a config describes."""
    task = TASKS.get(name)
    made = {need for need in NEEDS if need in task.needs and need in ("mesh", "axes")}
    return _part("task", task, f'name="{name}"', ("model", *made))


def _models(path: str, section: Any) -> Iterator[Part]:
    """The fields of a model, and of the models that its sections name."""
    if not isinstance(section, Mapping):
        return
    if section.get("name") in models.names():
        yield _model(path, section["name"])
    for inner, value in section.items():
        yield from _models(f"{path}.{inner}", value)


def _model(path: str, name: str) -> Part:
    """Fields of a model: those of the function that builds it, and those of the module that takes the rest."""
    builder = MODELS.get(name)
    part = _part(path, builder, f'name="{name}"', FLAX, described.described(registry.__doc__))
    parameters = inspect.signature(builder).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return part
    module = inspect.signature(builder).return_annotation
    texts = described.texts_of(module)
    first = tuple(dataclasses.replace(field, text=texts.get(field.name) or field.text) for field in part.fields)
    left_out = {*FLAX, *(field.name for field in part.fields), *_not_fields(builder)}
    return dataclasses.replace(
        part, text=described.first_sentence(module), fields=(*first, *_of_module(module, left_out))
    )


def _of_module(module: type[nn.Module], leave_out: Collection[str]) -> Iterator[Field]:
    """Fields of a module; where one of them is a module of a known kind, the fields of that: a builder makes it."""
    inside = [field for field in dataclasses.fields(module) if _is_module(field.type) and field.name not in leave_out]
    own = described.fields(module, {*leave_out, *(field.name for field in inside)})
    yield from own
    for field in inside:
        yield from described.fields(field.type, {*leave_out, *(each.name for each in own)})


def _is_module(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, nn.Module) and kind is not nn.Module


def _not_fields(builder: Callable[..., Any]) -> list[str]:
    """Names that a builder's docstring says "are not fields"."""
    found = re.search(r"([a-z_]+(?:, [a-z_]+)*(?: and [a-z_]+)?) are not fields", " ".join(builder.__doc__.split()))
    return re.split(", | and ", found[1]) if found else []


def _method(name: str) -> Part:
    return _part("optimizer", methods.METHODS[name], f'name="{name}"', ("decay", "roles"))


def _evaluator(name: str, kind: str) -> Part:
    return _part(f"evals.{name}", evaluation.EVALUATORS.get(kind), f'type="{kind}"', tuple(evaluation.GIVEN))


def _part(
    path: str,
    builder: Callable[..., Any],
    chosen: str = "",
    leave_out: Collection[str] = (),
    texts: Mapping[str, str] | None = None,
) -> Part:
    return Part(path, chosen, described.first_sentence(builder), tuple(described.fields(builder, leave_out, texts)))


def _name(config: Mapping[str, Any], section: str) -> Any:
    found = config.get(section)
    return found.get("name") if isinstance(found, Mapping) else None


def _path(part: Part, field: Field) -> str:
    return ".".join(filter(None, ("config", part.path, field.name)))


def _given(config: Mapping[str, Any], part: Part, field: Field) -> str:
    """Returns "=VALUE" for a field that the config sets to something other than a section."""
    found: Any = config
    for name in filter(None, (*part.path.split("."), field.name)):
        if not isinstance(found, Mapping) or name not in found:
            return ""
        found = found[name]
    return "" if isinstance(found, Mapping) else f"={found}"


def _default(field: Field) -> str:
    return "required" if field.required else f"default {field.value}"


def _escaped(text: str) -> str:
    """The text for a cell of a table: no bar ends it, and nothing in it is taken for a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")

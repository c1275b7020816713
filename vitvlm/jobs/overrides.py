"""Fields of a config set on the command line: `--config.model.patch_size=8`, any field of any section."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vitvlm.core.config import ConfigError, plain

_FLAG = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)

Override = tuple[str, str]
"""A field's path below the config, such as "model.patch_size", and the text of its value."""


def take_overrides(argv: Sequence[str]) -> tuple[list[str], list[Override]]:
    """Splits a command line into its other arguments and the overrides of config fields, in their order.

    `--config.log.tensorboard` and `--noconfig.log.tensorboard` stand for True and False.
    """
    rest, overrides = [], []
    for argument in argv:
        if found := _FLAG.fullmatch(argument):
            switched_off, path, text = found.groups()
            overrides.append((path, text if text is not None else str(not switched_off)))
        else:
            rest.append(argument)
    return rest, overrides


def apply_overrides(config: ConfigDict, overrides: Iterable[Override]) -> None:
    """Sets fields of a config, and with them the fields that refer to them.

    Sections that the config does not name are made; a section that is set to None is taken out, which leaves it at its
    default. Values are Python literals, and anything else is text: `16`, `1e-3`, `(8, 4)`, `None`, `S/16`.

    Raises ConfigError for a field of something that has no fields, and for text in place of a number or a flag.
    """
    for path, text in overrides:
        *sections, field = path.split(".")
        section = _open_section(config, sections, path)
        value = _value(text, section.get(field), f"--config.{path}")
        if value is None and isinstance(section.get(field), ConfigDict):
            del section[field]
        else:
            with section.ignore_type():
                section[field] = value


def written(config: ConfigDict | Mapping[str, Any]) -> Iterator[Override]:
    """Yields every field of a config as an override that sets it: a file of them (`--flagfile`) is the config again."""
    for name, value in plain(config).items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{name}.{path}", text) for path, text in written(value))
        else:
            yield name, value if isinstance(value, str) and _literal(value) == value else repr(value)


def _open_section(config: ConfigDict, path: Sequence[str], field: str) -> ConfigDict:
    """The section at a path, made with those above it."""
    section, where = config, "config"
    for part in path:
        where += f".{part}"
        if section.get(part) is None:
            with section.ignore_type():
                section[part] = ConfigDict()
        section = section[part]
        if not isinstance(section, ConfigDict):
            raise ConfigError(f"--config.{field}: {where} is {section!r}, which has no fields")
    return section


def _value(text: str, current: Any, where: str) -> Any:
    """The text as a value of the kind that the field holds now, if it holds one."""
    value = _literal(text)
    if isinstance(current, bool) and not isinstance(value, bool):
        raise ConfigError(f"{where}={text}: the field is {current}; write True or False")
    if isinstance(current, ConfigDict):
        if not (value is None or isinstance(value, dict)):
            raise ConfigError(
                f"{where}={text}: this is a section; set its fields ({', '.join(current)}), or give a dict"
            )
        return None if value is None else ConfigDict(value)
    if isinstance(current, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(current, str) and _is_number(value):
        return text if _is_number(_literal(current)) else value  # "50" names a ResNet, "data" a number of classes
    if type(current) is float and type(value) is int:
        return float(value)
    if type(current) is int and type(value) is float and value.is_integer():
        return int(value)
    return ConfigDict(value) if isinstance(value, dict) else value


def _literal(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

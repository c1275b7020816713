"""The argument of a config file: `--config=configs/vit_imagenet.py:B/32,debug,epochs=30`."""

from types import SimpleNamespace
from typing import Any

from vitvlm.core.config import ConfigError, suggest


def parse(text: str, /, **defaults: Any) -> SimpleNamespace:
    """Reads "name=value" parts separated by commas; a bare name switches a flag on.

    A bare part that names no argument is the value of the first argument that is not a flag: "B/32" can stand for
    "variant=B/32".

    Args:
      text: what follows the colon; "" gives the defaults.
      **defaults: every argument with its default: False (a flag), a number or a string.

    Raises ConfigError for an unknown name (the nearest is offered) or a value of another type than the default's.
    """
    values = dict(defaults)
    plain = [name for name, default in defaults.items() if not isinstance(default, bool)]
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals and isinstance(defaults.get(name), bool):
            values[name] = True
        elif not equals and plain:
            values[plain[0]] = _convert(plain[0], part, defaults[plain[0]])
        elif equals and name in defaults:
            values[name] = _convert(name, value, defaults[name])
        else:
            raise ConfigError(f"config argument {part!r}: no such argument; {suggest(name, defaults)}")
    return SimpleNamespace(**values)


def _convert(name: str, value: str, default: Any) -> Any:
    if isinstance(default, bool):
        if value not in ("True", "False"):
            raise ConfigError(f"config argument {name}={value}: write {name}, {name}=True or {name}=False")
        return value == "True"
    try:
        return type(default)(value)
    except ValueError:
        kind = type(default).__name__
        raise ConfigError(f"config argument {name}={value}: {value!r} is not of type {kind}") from None

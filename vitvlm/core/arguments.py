"""The argument of a config file: `--config=configs/vit_imagenet.py:B/32,debug,epochs=30`.

    def get_config(arg: str = "") -> ConfigDict:
        args = arguments.training(arg, variant="B/16")
        …
        return arguments.apply(args, config)

makes a config that understands, besides its own `variant`, what all configs of trainings do, `COMMON`: `source`,
`init`, `epochs`, `size` and `debug`. This is here and not beside the configs so that one's own, anywhere, can do it.
"""

from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from vitvlm.core.config import ConfigError, suggest

COMMON = MappingProxyType({"source": "", "init": "", "epochs": 0.0, "size": 0, "debug": False})
"""Arguments of every config of a training, with defaults that leave the config as it is.

  source: the data that is trained and evaluated on: "folder:PATH", "csv:FILE", ….
  init: where the parameters come from: a workdir, or weights that `pretrained.load` reads.
  epochs: length of the training.
  size: side of the images in pixels.
  debug: tiny, for a look at whether it runs.
"""


def parse(text: str, /, **defaults: Any) -> SimpleNamespace:
    """Reads "name=value" parts separated by commas; a bare name switches a flag on.

    A bare part that names no argument is the value of the first argument that is not a flag: "B/32" can stand for
    "variant=B/32".

    Args:
      text: what follows the colon; "" gives the defaults.
      **defaults: every argument with its default: False (a flag), a number or a string.

    Raises ConfigError for an unknown name (the nearest is offered) or a value of another type than the default's.
    """
    return SimpleNamespace(**{**defaults, **_given(text, defaults, {})})


def training(text: str, /, **defaults: Any) -> SimpleNamespace:
    """Reads the argument of a training's config: its own `defaults`, as `parse` does, and `COMMON`.

    Those of the common ones that were given, and that the config does not read itself, are in `common` of what is
    returned, where `apply` finds them. Raises what `parse` raises.
    """
    common = {name: default for name, default in COMMON.items() if name not in defaults}
    given = _given(text, defaults, common)
    values = {**defaults, "debug": False, **given}
    set_later = {name: value for name, value in given.items() if name in common and name != "debug"}
    return SimpleNamespace(**{name: value for name, value in values.items() if name not in set_later}, common=set_later)


def _given(text: str, own: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments in a text; a bare part may be the value of the first of a config's own."""
    defaults = {**own, **common}
    plain = [name for name, default in own.items() if not isinstance(default, bool)]
    values = {}
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
    return values


def apply(args: SimpleNamespace, config: ConfigDict) -> ConfigDict:
    """The config with the common arguments that were given to `training` and that it does not read itself.

    Raises ConfigError for one that this config has no place for.
    """
    given = args.common
    if "epochs" in given:
        if not given["epochs"] > 0:
            raise ConfigError(f"config argument epochs={given['epochs']:g}: is not above 0")
        if "stages" in config:
            raise ConfigError("config argument epochs: each stage has its own length: --config.stages.NAME.total")
        with config.ignore_type():
            config.total = f"{given['epochs']:g} epochs"
    if "size" in given:
        if given["size"] < 1:
            raise ConfigError(f"config argument size={given['size']}: is not a number of pixels")
        if config.get("image_size") is None:
            raise ConfigError(f"config argument size={given['size']}: the images of this config have one size")
        with config.ignore_type():
            config.image_size = given["size"]
    if "source" in given:
        _set_source(config, given["source"])
    if "init" in given:
        before = config.get("init_from")
        if before is not None and "path" not in before:
            raise ConfigError(f"config argument init: the config begins with several: set {', '.join(before)}")
        with config.unlocked(), config.ignore_type():
            config.init_from = ConfigDict({**(before or {}), "path": given["init"]})
    return config


def _set_source(config: ConfigDict, source: str) -> None:
    data = config.data
    for split in (data.train, data.eval):
        if "source" in split:
            del split["source"]
    data.source = source
    model = config.model
    if config.task.get("name") == "classify" and isinstance(model.get("num_classes"), int):
        with model.ignore_type():
            model.num_classes = "data"


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

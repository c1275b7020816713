"""Config files by name: what `--config=configs/vit_fashion.py:debug` loads, from Python."""

import importlib.util
import pathlib

from ml_collections import ConfigDict

from vitvlm.core.config import ConfigError


def load(spec: str, where: str) -> ConfigDict:
    """The config of a file, with the argument after a colon if there is one.

    Args:
      spec: "configs/vit_fashion.py" or "configs/vit_fashion.py:debug", from the working directory.
      where: the field that names it, for error messages.

    Raises ConfigError if there is no such file, or it defines no `get_config`.
    """
    name, _, argument = spec.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        raise ConfigError(f"{where}: no config file {name}; paths start at the working directory, {pathlib.Path.cwd()}")
    found = importlib.util.spec_from_file_location(f"vitvlm_config_{path.stem}", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{where}: {name} defines no get_config")
    return module.get_config(argument) if argument else module.get_config()

"""Weights from one format to another, checked by reading them again."""

from typing import Any

import numpy as np

from vitvlm import pretrained
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import count_values, flatten
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.pretrained import Pretrained


def convert(source: str, target: str, format: str, **fields: Any) -> Pretrained:
    """Writes `target` from `source`, reads it again, and compares every number.

    Raises ConfigError if the source cannot be read, the format cannot express the model, or what was written differs.
    """
    try:
        loaded = pretrained.open(source, **fields)
        pretrained.save(loaded, target, format)
        if format == "peft":
            before, after = pretrained.adapters(loaded), pretrained.adapters(loaded, target)
        else:
            before, after = (flatten(unstack_blocks(each.variables)) for each in (loaded, pretrained.open(target)))
        different = [path for path in before if path not in after or not np.array_equal(before[path], after[path])]
    except pretrained.WeightsError as error:
        raise ConfigError(str(error)) from error
    if different:
        raise ConfigError(f"{target}: the written weights differ from those read: {', '.join(different)}")
    return loaded


def described(loaded: Pretrained) -> str:
    """One line: format, model, number of parameters, preprocessing."""
    count = count_values(loaded.variables["params"])
    name = type(loaded.model).__name__
    return (
        f"{loaded.source['format']}: {name}, {count:,} parameters; {loaded.preprocessing or 'no preprocessing given'}"
    )

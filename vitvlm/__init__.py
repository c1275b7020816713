"""vitvlm: train, ablate, evaluate and look inside vision transformers and vision-language models, in JAX.

`vitvlm.load`, `vitvlm.open` and `vitvlm.save` are those of `vitvlm.pretrained`, which is imported at their first use.
"""

import importlib
from typing import Any

_OF_PRETRAINED = ("load", "open", "save")


def __getattr__(name: str) -> Any:
    if name in _OF_PRETRAINED:
        return getattr(importlib.import_module("vitvlm.pretrained"), name)
    raise AttributeError(f"module 'vitvlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_OF_PRETRAINED])

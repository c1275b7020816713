"""Roles of parameters, declared once by each module: decay, optimizers, layer-wise rates and loading follow from them.

A module has `roles`: pairs of a regex over the paths of its own parameters and their `Role`. The first that matches the
whole path wins, and some may match nothing. A module that is made of others puts their roles under their names:

    roles = (
        *under("patches/", PatchEmbed.roles, "embedding"),
        *under(STACK, Block.roles, "block"),
        *under("norm/", NORM),
        *under("head/", Dense.roles, "head"),
    )
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

from vitvlm.core.config import ConfigError

Kind = Literal["matrix", "bias", "norm", "token", "table", "scale"]
Part = Literal["embedding", "block", "top", "head"]

STACK = r"blocks(/every_\d+|_\d+)?/"  # before the parameters of blocks: scanned, scanned in a pattern, looped


@dataclasses.dataclass(frozen=True)
class Role:
    """Role of a parameter in its model.

    Attributes:
      kind: "matrix", what activations are multiplied by, outputs last and all other axes inputs (convolutions too);
        "bias"; "norm", a norm's scale or bias; "token", a learned token or query; "table", a vector for each place or
        id; "scale", a learned factor or offset.
      part: where it stands: "embedding", before the first block; "block"; "top", after the last block, or on top of an
        encoder; "head", a last layer whose outputs are the task's, such as classes.
      resample: `(value, shape) -> value` for a parameter whose shape depends on the image, patch or window size.
    """

    kind: Kind
    part: Part = "top"
    resample: Callable[[Any, tuple[int, ...]], Any] | None = None

    @property
    def is_hidden_matrix(self) -> bool:
        """True for a matrix between activations: neither the first layer nor the last."""
        return self.kind == "matrix" and self.part in ("block", "top")


Roles = tuple[tuple[str, Role], ...]

LINEAR: Roles = (("kernel", Role("matrix")), ("bias", Role("bias")))  # a linear layer, or a convolution
NORM: Roles = (("scale|bias", Role("norm")),)
EMBED: Roles = (("embedding", Role("table")),)


def under(prefix: str, roles: Roles, part: Part | None = None) -> Roles:
    """The roles of a module inside another one, by a regex of its name with the slash; all of one part, if given."""
    return tuple(
        (f"{prefix}(?:{pattern})", role if part is None else dataclasses.replace(role, part=part))
        for pattern, role in roles
    )


def roles_of(module: Any, paths: Iterable[str]) -> dict[str, Role]:
    """The role of each parameter of a module. Raises ConfigError for one that the module has not declared."""
    declared: Roles = getattr(module, "roles", ())
    found = {path: _find(declared, path) for path in paths}
    if unknown := [path for path, role in found.items() if role is None]:
        raise ConfigError(
            f"model {type(module).__name__} declares no role for its parameter {unknown[0]}"
            f"{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}: add it to the model's `roles` "
            "(see vitvlm/nn/roles.py)"
        )
    return found


def _find(declared: Roles, path: str) -> Role | None:
    return next((role for pattern, role in declared if _compiled(pattern).fullmatch(path)), None)


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)

"""Fields of a model that another code base's format can say. Everything else must be as it is by default.

So a field that a model is given tomorrow is never left out of a file in silence: until a format names it, a model that
sets it is refused. What acts in training alone (IN_TRAINING) changes no answer of the weights: where a format cannot
say it, it is left out with a warning that names it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from flax import linen as nn

from vitvlm.core.config import ConfigError
from vitvlm.models.registry import module_fields

# How a model is computed, which no format says and which changes no result.
HOW = frozenset({"scan", "remat", "unroll", "attention", "dtype", "param_dtype"})

# What acts in training alone: with `train=False` a model computes the same without it.
IN_TRAINING = frozenset({"drop_path", "dropout", "attention_dropout", "embed_dropout", "norm_momentum"})


class Anything:
    """Stands for every value of a field."""


ANY = Anything()

Values = Any  # ANY, a tuple, a function of the module, or an Expressible


def anything(*names: str) -> dict[str, Values]:
    """Fields that may have any value."""
    return dict.fromkeys(names, ANY)


@dataclasses.dataclass(frozen=True)
class Expressible:
    """Names what one format can say of one kind of module.

    Fields:
      format: its name in messages.
      kind: the module.
      fields: the fields that it can say, each with the values that it may have: ANY; a tuple of them; a function of the
        module that tells whether the value is one; or, for a module inside, another Expressible. Fields that are not
        named, but for those of HOW and IN_TRAINING, must have their default.
    """

    format: str
    kind: type[nn.Module]
    fields: Mapping[str, Values]

    def __post_init__(self):
        own = module_fields(self.kind)
        required = [each.name for each in dataclasses.fields(self.kind) if each.name in own and _is_required(each)]
        if wrong := [*(self.fields.keys() - set(own)), *(name for name in required if name not in self.fields)]:
            raise TypeError(f"{self.format}: {', '.join(sorted(wrong))}: no field of {self.kind.__name__}, or required")

    def check(self, model: nn.Module) -> None:
        """Raises ConfigError that lists the fields, with their values, that the format cannot say and that matter."""
        if found := [field for name, field in self.problems(model) if not _acts_in_training_alone(name)]:
            raise ConfigError(f"{self.format} has no {', '.join(found)}")

    def left_out(self, model: nn.Module) -> list[str]:
        """Fields that act in training alone and that the format cannot say, with their values."""
        return [field for name, field in self.problems(model) if _acts_in_training_alone(name)]

    def problems(self, model: nn.Module, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Yields each field that cannot be said, by its path in the model, and the field with its value."""
        inner = {name: each for name, each in self.fields.items() if isinstance(each, Expressible)}
        if others := [name for name, each in inner.items() if not isinstance(getattr(model, name), each.kind)]:
            for name in others:  # what is said of a module of another kind has no meaning
                yield f"{prefix}{name}", f"{prefix}{name} = {type(getattr(model, name)).__name__}"
            return
        defaults = _defaults(self.kind)
        for name in module_fields(self.kind):
            value = getattr(model, name)
            if name in inner:
                yield from inner[name].problems(value, f"{prefix}{name}.")
            elif not (name in HOW or _is_among(self.fields.get(name, (defaults[name],)), value, model)):
                yield f"{prefix}{name}", f"{prefix}{name} = {value!r}"


@dataclasses.dataclass(frozen=True)
class OneOf(Expressible):
    """Names what several formats can say of one kind of module: what any one of them can.

    Fields, besides those of `Expressible`, which are the first one's:
      others: the other formats.
    """

    others: tuple[Expressible, ...] = ()

    @classmethod
    def of(cls, first: Expressible, *others: Expressible) -> "OneOf":
        return cls(first.format, first.kind, first.fields, others)

    def problems(self, model: nn.Module, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Yields the problems of the format that has the fewest."""
        found = [[*super().problems(model, prefix)], *([*each.problems(model, prefix)] for each in self.others)]
        yield from min(found, key=len)


def _acts_in_training_alone(path: str) -> bool:
    return path.rpartition(".")[2] in IN_TRAINING


def _is_among(values: Values, value: Any, model: nn.Module) -> bool:
    if isinstance(values, Anything):
        return True
    return value in values if isinstance(values, tuple) else values(model)


def _defaults(kind: type[nn.Module]) -> dict[str, Any]:
    return {
        each.name: each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        for each in dataclasses.fields(kind)
    }


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING

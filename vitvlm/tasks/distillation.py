"""A teacher for a classifier (Touvron et al. 2021, section 3): any other classifier, whose answers join the loss."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitvlm.core.config import ConfigError, suggest
from vitvlm.objectives import distillation
from vitvlm.tasks.base import Variables

KINDS = ("hard", "soft")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained classifier.

    Attributes:
      model: an image encoder whose output has `logits [B, S]`.
      variables: its own; they are never changed.
      scale, shift: numbers, or one per channel, that make its pixels from the student's: scale * x + shift, for two
        models whose images are normalised differently.
      classes: which of its classes are the student's, in the student's order; all, if None.
    """

    model: nn.Module
    variables: Variables
    scale: Any = 1.0
    shift: Any = 0.0
    classes: tuple[int, ...] | None = None

    @property
    def num_classes(self) -> int:
        return self.model.num_classes if self.classes is None else len(self.classes)

    def logits(self, variables: Variables, images: Float[Array, "B H W C"]) -> Float[Array, "B S"]:
        """Logits of the teacher for the student's images, at the student's resolution; no gradient reaches the teacher.

        `variables` are the teacher's: a compiled step is given them as an argument.
        """
        output = self.model.apply(variables, images * self.scale + self.shift)
        logits = output.logits if self.classes is None else output.logits[:, jnp.array(self.classes)]
        return jax.lax.stop_gradient(logits)


@dataclasses.dataclass(frozen=True)
class Distillation:
    """Teacher and weight of a distillation: the loss is (1 - weight) label loss + weight distillation loss.

    Attributes:
      kind: "hard", the teacher's decision; "soft", its distribution.
      weight: lambda of equation 2; 1/2 in equation 3.
      temperature: tau, for "soft".
    """

    teacher: Teacher
    kind: Literal["hard", "soft"] = "hard"
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        where = "task.distillation"
        if self.kind not in KINDS:
            raise ConfigError(f"{where}.kind: no kind {self.kind!r}; {suggest(self.kind, KINDS)}")
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"{where}.weight: {self.weight} is not a share: it lies from 0 (labels only) to 1")
        if self.temperature <= 0:
            raise ConfigError(f"{where}.temperature: {self.temperature} is not above 0")
        if self.kind == "hard" and self.temperature != 1:
            raise ConfigError(f'{where}.temperature: {self.temperature}, but a "hard" decision has none: leave it out')

    def loss(self, student: Float[Array, "B S"], teacher: Float[Array, "B S"]) -> Float[Array, "B"]:
        """The distillation loss of each example."""
        if self.kind == "hard":
            return distillation.hard(student, teacher)
        return distillation.soft(student, teacher, self.temperature)

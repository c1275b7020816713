"""Durations in configs: "300 steps", "20 epochs", "50_000 examples" or "5%" (of the whole training)."""

import dataclasses
import re
from collections.abc import Sized

from vitvlm.core import limits
from vitvlm.core.config import ConfigError

_PATTERN = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[0-9]+)?)\s*(steps?|epochs?|examples?|%|percent)\s*")


@dataclasses.dataclass(frozen=True)
class Clock:
    """Batch size, training set and length of a training, by which durations become steps.

    Attributes:
      batch_size: examples per step.
      train_examples: the number of training examples, or an object with that length; its length is computed only where
        a duration counts epochs. None where the data are not at hand: then no duration may count epochs.
      total_steps: the length of the training; None while that itself is being resolved.
    """

    batch_size: int
    train_examples: int | Sized | None
    total_steps: int | None = None

    def steps(self, duration: str | int, where: str) -> int:
        """Returns a duration as a whole number of steps, rounded to the nearest; an int already counts steps.

        Raises ConfigError for a value that is not a duration, for epochs of an unknown number of examples, for a
        percentage while the total is unknown, and for more steps than are counted (`limits.MOST`).
        """
        if isinstance(duration, int) and not isinstance(duration, bool):
            amount, unit = duration, "step"
        else:
            parsed = _PATTERN.fullmatch(duration) if isinstance(duration, str) else None
            if parsed is None:
                raise ConfigError(
                    f"{where}: {limits.shown(duration)} is not a duration; "
                    'write "300 steps", "20 epochs", "50_000 examples" or "5%"'
                )
            amount, unit = float(parsed[1].replace("_", "")), parsed[2].rstrip("s")
        if unit == "step":
            steps = amount
        elif unit == "epoch":
            if self.train_examples is None:
                raise ConfigError(
                    f"{where}: {duration!r} counts epochs of data that are not opened here: give steps or examples"
                )
            known = isinstance(self.train_examples, int)
            steps = amount * (self.train_examples if known else len(self.train_examples)) / self.batch_size
        elif unit == "example":
            steps = amount / self.batch_size
        elif self.total_steps is None:
            raise ConfigError(f"{where}: {duration!r} is a share of the training's length, which is not known here")
        else:
            steps = amount / 100 * self.total_steps
        if steps < 0:
            raise ConfigError(f"{where}: {limits.shown(duration)} is negative")
        if steps > limits.MOST:
            raise ConfigError(f"{where}: {limits.shown(duration)} is more than {limits.MOST:,} steps")
        return round(steps)

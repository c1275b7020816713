"""Checkpoints of a workdir by name: "latest", "best", a step, and whether its averaged parameters are meant."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitvlm.core.config import ConfigError, suggest
from vitvlm.training.best import Best
from vitvlm.training.checkpoints import CheckpointError, Checkpoints

LATEST, BEST = "latest", "best"
EMA, RAW = "ema", "raw"
Which = int | str | None
SYNTAX = 'write "latest", "best" or a step, and ":ema" or ":raw" behind it for the averaged parameters or the others'


@dataclasses.dataclass(frozen=True)
class Choice:
    """A checkpoint as the user names it.

    Attributes:
      name: "latest", "best" or a step.
      ema: whether its averaged parameters are meant; None for these exactly if there are such.
    """

    name: str | int = LATEST
    ema: bool | None = None

    @classmethod
    def of(cls, which: Which, ema: bool | None = None) -> "Choice":
        """Parses "best", "1200:ema", "raw", 1200 or None, which is the latest.

        Raises ConfigError for anything else, and for a name that `ema` contradicts.
        """
        name, _, kind = ("" if which is None else str(which)).strip().partition(":")
        if name in (EMA, RAW) and not kind:
            name, kind = LATEST, name
        if kind not in ("", EMA, RAW):
            raise ConfigError(f"step: {which!r}: {suggest(kind, (EMA, RAW))}; {SYNTAX}")
        if kind and ema is not None and ema != (kind == EMA):
            raise ConfigError(f"step: {which!r} and ema={ema}: one says the averaged parameters, the other not")
        ema = kind == EMA if kind else ema
        if name.isdecimal():
            return cls(int(name), ema)
        if name not in ("", LATEST, BEST):
            raise ConfigError(f"step: {which!r}: {suggest(name, (LATEST, BEST, EMA, RAW))}; {SYNTAX}")
        return cls(name or LATEST, ema)

    def step(self, checkpoints: Checkpoints) -> int | None:
        """The step that is meant; None for the latest, of which a damaged one gives way to the one before.

        Raises CheckpointError if no checkpoint is the best.
        """
        if isinstance(self.name, int):
            return self.name
        if self.name == LATEST:
            return None
        if checkpoints.best_step() is None:
            raise CheckpointError(
                f"{checkpoints.folder}: no checkpoint is the best: config.checkpoint.best of this training names no "
                "metric, or none has been taken yet; give a step, or leave it out for the latest"
            )
        return checkpoints.best_step()


def rule(config: Mapping[str, Any]) -> Best | None:
    """The rule for the best checkpoint that a training's config has; None for none."""
    section = config.get("checkpoint") or {}
    return Best(section["best"], section.get("best_mode") or "max") if section.get("best") else None


def described(checkpoints: Checkpoints, step: int, best: Best | None, averaged: bool) -> str:
    """Says which checkpoint that is: "checkpoint 400, the latest, the best by test/top1 (0.912)"."""
    told = [f"checkpoint {step}"]
    if step == checkpoints.latest_step():
        told.append("the latest")
    if best is not None and step == checkpoints.best_step():
        told.append(f"the best by {best.metric} ({checkpoints.metrics(step)[best.metric]:.4g})")
    return ", ".join(told) + ("; averaged parameters (EMA)" if averaged else "")

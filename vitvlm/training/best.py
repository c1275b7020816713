"""Ranking of checkpoints by one metric of an evaluation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitvlm.core import config as config_lib


@dataclasses.dataclass(frozen=True)
class Best:
    """Rule for the best checkpoints: those with the highest or lowest value of one metric, such as "val/accuracy"."""

    metric: str
    mode: str = "max"
    keep: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise config_lib.ConfigError(f'config.checkpoint.best_mode: {self.mode!r} is neither "max" nor "min"')

    def score(self, metrics: Mapping[str, Any]) -> float | None:
        """Returns a score, higher is better; None if the metric is missing or not a number."""
        value = metrics.get(self.metric)
        if not isinstance(value, (int, float)) or value != value:
            return None
        return value if self.mode == "max" else -value

    def check(self, metrics: Mapping[str, Any]) -> None:
        """Raises ConfigError if the metrics come from the evaluation that this names, but lack its metric."""
        group = self.metric.rpartition("/")[0]
        if self.metric not in metrics and any(name.rpartition("/")[0] == group for name in metrics):
            near = config_lib.suggest(self.metric, metrics)
            raise config_lib.ConfigError(f"config.checkpoint.best: no metric {self.metric!r}; {near}")

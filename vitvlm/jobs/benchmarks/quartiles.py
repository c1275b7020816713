"""Medians and quartiles of times and rates from alternating rounds, as text."""

from collections.abc import Sequence

import numpy as np


def shown(values: Sequence[float], digits: int) -> str:
    """Median [lower quartile, upper quartile], with `digits` digits after the point; "-" without values."""
    if not len(values):
        return "-"
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

"""Statistics of weights: how large and how spread out the matrices between image and text are."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitvlm.core.paths import flatten

COLUMNS = ("parameter", "shape", "mean", "deviation", "norm", "largest_singular", "effective_rank", "near_zero")
NEAR_ZERO = 1e-6


def of_matrices(params: Mapping[str, Any], begin: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Returns a row of `COLUMNS` for each parameter of two axes or more whose path begins with one of the names.

    The effective rank is exp of the entropy of the singular values over their sum (Roy and Vetterli 2007), of a matrix
    whose last axis is the output; a share near_zero of the numbers is below 1e-6.
    """
    rows = []
    for path, leaf in flatten(params).items():
        if not path.startswith(tuple(f"{name}/" for name in begin)) or getattr(leaf, "ndim", 0) < 2:
            continue
        values = np.asarray(leaf).astype(np.float64)
        singular = np.linalg.svd(values.reshape(-1, values.shape[-1]), compute_uv=False)
        shares = singular / max(singular.sum(), 1e-300)
        rank = float(np.exp(-np.sum(shares * np.log(np.maximum(shares, 1e-300)))))
        figures = (
            values.mean(),
            values.std(),
            np.linalg.norm(values),
            singular[0],
            rank,
            np.mean(abs(values) < NEAR_ZERO),
        )
        rows.append((path, "x".join(map(str, values.shape)), *(f"{value:.5g}" for value in figures)))
    return rows

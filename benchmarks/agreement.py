"""How well rankings of heads agree, and how sure a ratio of gains is."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import bootstrap, spearmanr


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation."""
    found: Any = spearmanr(a, b)
    return float(found.statistic)


def split_half(scores: np.ndarray, rounds: int = 200) -> float:
    """How well the ranking of candidates (rows) by a random half of the pairs (columns) agrees with that by
    the other half: Spearman's coefficient, the mean over splits."""
    rng = np.random.default_rng(0)
    half = scores.shape[1] // 2
    found = []
    for _ in range(rounds):
        order = rng.permutation(scores.shape[1])
        found.append(spearman(scores[:, order[:half]].mean(1), scores[:, order[half : 2 * half]].mean(1)))
    return fmean(found)


def share_interval(part: np.ndarray, whole: np.ndarray, rounds: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `part` over that of `whole`, pairs resampled together."""

    def share(part: np.ndarray, whole: np.ndarray, axis: int = -1) -> np.ndarray:
        return part.mean(axis) / whole.mean(axis)

    options: dict[str, Any] = {"paired": True, "method": "percentile", "n_resamples": rounds, "rng": 0}
    found = bootstrap((part, whole), share, **options).confidence_interval
    return float(found.low), float(found.high)

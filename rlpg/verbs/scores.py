"""Comparing agents over few runs: interquartile means, bootstrap intervals, profiles.

Agarwal, Schwarzer, Castro, Courville and Bellemare 2021, "Deep Reinforcement Learning at the Edge
of the Statistical Precipice". A *stratum* has the runs of one agent on one environment, `[R, ...]`;
resampling draws runs with replacement within each stratum, so every environment keeps its runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000

Array = np.ndarray[Any, Any]


def interquartile_mean(scores: Array) -> Array:
    """Mean of the middle half of `scores` [R, ...] over the first axis, `[...]`.

    A quarter of the runs, rounded down, is cut at each end: with fewer than four it is the mean.
    """
    cut = len(scores) // 4
    middle: Array = np.sort(scores, axis=0)[cut : len(scores) - cut]
    return np.asarray(middle.mean(axis=0))


def interval(strata: Sequence[Array], statistic: Callable[..., Any]) -> Array:
    """95 % percentile interval of `statistic(*strata)` by the stratified bootstrap, `[2, ...]`.

    Its resampling is seeded, so the interval is a function of the scores.
    """
    generator = np.random.default_rng(0)
    values = [
        statistic(*(runs[generator.integers(len(runs), size=len(runs))] for runs in strata))
        for _ in range(RESAMPLES)
    ]
    return np.asarray(np.percentile(values, [2.5, 97.5], axis=0))


def performance_profile(scores: Array, thresholds: Array) -> Array:
    """Share of the runs [R] whose score is greater than each threshold [K], `[K]`."""
    return np.asarray((scores[:, None] > thresholds).mean(axis=0))


def probability_of_improvement(*strata: Array) -> float:
    """P(X > Y) + P(X = Y) / 2 for a run of X and one of Y, averaged over the environments.

    Args:
        strata: X's runs on each environment, then Y's on the same ones; each `[R]`.
    """
    half = len(strata) // 2
    pairs = zip(strata[:half], strata[half:], strict=True)
    better = [((x[:, None] > y).mean() + (x[:, None] == y).mean() / 2) for x, y in pairs]
    return float(np.mean(better))

"""Statistics over few runs: by hand, and against rliable where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from rlpg.verbs.scores import (
    interquartile_mean,
    interval,
    performance_profile,
    probability_of_improvement,
)

SCORES = np.random.default_rng(1).normal(size=(9, 4))  # 9 runs on 4 environments
OTHERS = np.random.default_rng(2).normal(0.3, size=(9, 4))


def test_the_interquartile_mean_cuts_a_quarter_at_each_end() -> None:
    scores = np.array([[100.0, 1], [1, 2], [2, 3], [4, 9], [-50, 0]])
    # five runs: one is cut at each end: (1 + 2 + 4) / 3, (1 + 2 + 3) / 3
    assert interquartile_mean(scores).tolist() == [7 / 3, 2.0]
    assert interquartile_mean(scores[:3]).tolist() == [103 / 3, 2.0]  # three: nothing is cut


def test_the_bootstrap_keeps_the_runs_of_each_stratum() -> None:
    strata = [np.array([1.0, 1.0]), np.array([5.0, 5.0])]
    low, high = interval(strata, lambda a, b: float(np.concatenate([a, b]).mean()))
    assert (low, high) == (3.0, 3.0)  # without strata it would be 1 to 5


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    runs = np.random.default_rng(0).normal(10.0, 2.0, size=400)
    low, high = interval([runs], lambda drawn: drawn.mean())
    half = 1.96 * runs.std() / 20  # the standard error of a mean of 400
    assert low == pytest.approx(runs.mean() - half, abs=0.03)
    assert high == pytest.approx(runs.mean() + half, abs=0.03)


def test_a_profile_counts_the_runs_above() -> None:
    profile = performance_profile(np.array([1.0, 2.0, 2.0, 4.0]), np.array([0.0, 2.0, 3.0, 4.0]))
    assert profile.tolist() == [1.0, 0.25, 0.25, 0.0]


def test_the_probability_of_improvement_counts_pairs_and_half_of_ties() -> None:
    first, second = np.array([1.0, 3.0]), np.array([1.0, 2.0])
    # pairs: 1 = 1, 1 < 2, 3 > 1, 3 > 2
    assert probability_of_improvement(first, second) == 2.5 / 4
    assert probability_of_improvement(first, first, second, second + 9) == 2.5 / 8


@pytest.mark.filterwarnings("ignore")  # of packages that rliable imports
def test_as_rliable_computes_them() -> None:
    try:
        from rliable import library, metrics
    except (ImportError, TypeError):  # TypeError: its arch does not know a newer pandas
        pytest.skip("rliable is not installed, or does not work with what is")
    iqm = {"ours": np.ravel(SCORES)}
    assert interquartile_mean(iqm["ours"]) == pytest.approx(metrics.aggregate_iqm(SCORES))
    ours = probability_of_improvement(*SCORES.T, *OTHERS.T)
    assert ours == pytest.approx(metrics.probability_of_improvement(SCORES, OTHERS))
    at = np.linspace(-2, 2, 9)
    theirs = library.score_distributions(SCORES, at)
    assert performance_profile(SCORES.ravel(), at) == pytest.approx(theirs)
    try:
        _, intervals = library.get_interval_estimates(
            {"a": SCORES}, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=2000
        )
    except TypeError:  # it passes a keyword that versions of arch above its own have given away
        pytest.skip("rliable's intervals do not work with this arch; its points were compared")
    found = interval(list(SCORES.T), lambda *runs: interquartile_mean(np.concatenate(runs)))
    assert found == pytest.approx(intervals["a"].ravel(), abs=0.05)  # two bootstraps of 2000
    _, intervals = library.get_interval_estimates(
        {"a": (SCORES, OTHERS)},
        lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
        reps=1000,
    )
    found = interval([*SCORES.T, *OTHERS.T], probability_of_improvement)
    assert found == pytest.approx(intervals["a"].ravel(), abs=0.04)

"""Figures 2 and 3 of the survey: closed forms by numerical integration, then the tape."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from survey_figures import COSTS, SCORE, TAPES, measure, moments


def integrate(cost: str, parameter: str, k: float) -> dict[str, tuple[float, float]]:
    """Mean and variance of score and path by the trapezoidal rule, derivatives by autograd."""
    eps = torch.linspace(-12, 12, 40_001, dtype=torch.float64)
    x = (1 + eps).requires_grad_()
    f = COSTS[cost].of(x, k)
    slope = torch.autograd.grad(f.sum(), x)[0].numpy()
    e, values = eps.numpy(), f.detach().numpy()
    probability = np.exp(-(e**2) / 2) / np.sqrt(2 * np.pi) * (e[1] - e[0])
    score, path = (e, np.ones_like(e)) if parameter == "mu" else (e**2 - 1, e)

    def pair(g: np.ndarray) -> tuple[float, float]:
        mean = probability @ g
        return float(mean), float(probability @ (g - mean) ** 2)

    # The variance is a parabola in the constant that is subtracted: three points have its minimum.
    below, zero, above = (pair((values - b) * score)[1] for b in (-1.0, 0.0, 1.0))
    best = (below - above) / (2 * (below + above - 2 * zero))
    return {
        "score": pair(values * score),
        "score, best constant": pair((values - best) * score),
        "pathwise": pair(slope * path),
    }


@pytest.mark.parametrize(("cost", "parameter"), list(product(COSTS, SCORE)))
def test_closed_forms_by_integration(cost: str, parameter: str) -> None:
    for k in (COSTS[cost].k[2], COSTS[cost].k[9]):
        for estimator, (mean, variance) in integrate(cost, parameter, float(k)).items():
            found = moments(cost, parameter, estimator, float(k))
            assert found[0] == pytest.approx(mean, rel=1e-9, abs=1e-11)
            assert found[1] == pytest.approx(variance, rel=1e-8)


def test_all_estimators_estimate_the_same() -> None:
    for cost, parameter in product(COSTS, SCORE):
        k = float(COSTS[cost].k[4])
        means = [moments(cost, parameter, estimator, k)[0] for estimator in TAPES]
        assert means == pytest.approx([means[0]] * len(means), rel=1e-9)


def test_known_points_of_the_figures() -> None:
    # (x - k)^2 at mu = sigma = 1: path for mu has variance 4 at every k; coupled weak has none at
    # k = mu; with k = 0, E x^4 eps^2 - 4 = 30 for the score.
    assert moments("quadratic", "mu", "pathwise", -2.0)[1] == pytest.approx(4)
    assert moments("quadratic", "mu", "weak, coupled", 1.0)[1] == pytest.approx(0, abs=1e-12)
    assert moments("quadratic", "mu", "score", 0.0)[1] == pytest.approx(30)
    # cos(k x): the path's variance grows as k^2 / 2, the score's stays at 1 / 2.
    assert moments("cosine", "mu", "pathwise", 5.0)[1] == pytest.approx(12.5, rel=1e-3)
    assert moments("cosine", "mu", "score", 5.0)[1] == pytest.approx(0.5, rel=1e-3)


def test_tape_draws_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cost in COSTS.items():
        monkeypatch.setitem(
            COSTS,
            name,
            type(cost)(**{**vars(cost), "k": cost.k[[1, 7]]}),  # type: ignore[index]
        )
    rows = measure(num_lanes=20_000, seed=0).values()
    assert len(rows) == 3 * 2 * 4 * 2
    for row in rows:
        assert abs(row.mean_z) < 4, row
        assert row.variance_z is not None
        assert abs(row.variance_z) < 4, row

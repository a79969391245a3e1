"""The ladder: figures from the literature of the project, two routes to each, then the tape."""

from __future__ import annotations

import math

import lqr_ladder
import numpy as np
import pytest
from gaussian_polynomials import normals
from lqr_ladder import GAIN, GRADIENT, LADDER, STD, exact, measure

FIGURES = {
    "REINFORCE": 336,
    "mean baseline": 69,
    "reward-to-go": 189,
    "state baseline": 29,
    "exact advantage": 16,
    "pathwise": 5.2,
    "all-action": 1.2,
}


def test_exact_variances_are_the_ladder() -> None:
    found = exact()
    assert found.keys() == LADDER.keys() == FIGURES.keys()
    for name, figure in FIGURES.items():
        digits = 1 if figure < 10 else 0
        assert round(found[name].variance(), digits) == figure, name
        assert found[name].mean() == pytest.approx(GRADIENT, rel=1e-12), name


def test_exact_moments_by_another_route() -> None:
    # Two steps: the path is eps_0, w_0, eps_1, so a Gauss-Hermite grid gives every moment exactly.
    node, weight = np.polynomial.hermite_e.hermegauss(12)
    weight = weight / weight.sum()
    e0, w0, e1 = np.meshgrid(node, node, node, indexing="ij")
    probability = weight[:, None, None] * weight[:, None] * weight

    def path(gain: float) -> tuple[np.ndarray, ...]:
        x0 = np.ones_like(e0)
        u0 = gain * x0 + STD * e0
        x1 = 1.1 * x0 + 0.5 * u0 + 0.1 * w0
        u1 = gain * x1 + STD * e1
        return -(x0**2) - 0.1 * u0**2, -(x1**2) - 0.1 * u1**2, x1

    r0, r1, x1 = path(GAIN)
    s0, s1 = e0 / STD, e1 * x1 / STD
    step = 1e-4
    values = [sum(path(GAIN + side)[:2]) for side in (step, -step)]
    # V_1(x) = -(x^2 + 0.1 (K^2 x^2 + std^2)): known without any recursion.
    v1 = -(x1**2) * (1 + 0.1 * GAIN**2) - 0.1 * STD**2
    v0 = (probability * (r0 + r1)).sum()
    estimates = {
        "REINFORCE": (s0 + s1) * (r0 + r1),
        "mean baseline": (s0 + s1) * (r0 + r1 - v0),
        "reward-to-go": s0 * (r0 + r1) + s1 * r1,
        "state baseline": s0 * (r0 + r1 - v0) + s1 * (r1 - v1),
        "pathwise": (values[0] - values[1]) / (2 * step),
    }
    for name, g in estimates.items():
        mean = (probability * g).sum()
        polynomial = exact(num_steps=2)[name]
        assert polynomial.mean() == pytest.approx(mean, rel=1e-6), name
        assert polynomial.variance() == pytest.approx(
            (probability * (g - mean) ** 2).sum(), rel=1e-6
        ), name


def test_polynomials_know_gaussian_moments() -> None:
    x, y = normals(2)
    p = x * x * y + 2 * x - 3.0
    assert p.mean() == -3.0
    assert p.variance() == 3.0 + 4.0  # E x^4 y^2 + 4 E x^2, no cross term: E x^3 y = 0
    with pytest.raises(ValueError, match="at most 15"):
        normals(16)


def test_tape_climbs_the_ladder() -> None:
    repeats = 150
    lines = measure(num_lanes=200, repeats=repeats, seed=0)
    assert len(lines) == len(FIGURES)
    for row in lines:
        assert abs(row.mean_z) < 4, row
        # A surrogate averages 200 paths, is nearly Gaussian: its variance errs by sqrt(2 / R).
        relative = row.variance / row.exact_variance - 1
        assert abs(relative) < 4 * math.sqrt(2 / repeats), row


def test_gradient_is_that_of_the_environment() -> None:
    gain = lqr_ladder.MATRIX.clone().requires_grad_()
    value = lqr_ladder.SYSTEM.expected_return(gain, lqr_ladder.DEVIATION)
    value.backward()
    assert gain.grad is not None
    assert float(gain.grad) == pytest.approx(GRADIENT, rel=1e-12)

"""Samples that feed the next step: recursions by propagating a density, then tape and GRU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recurrent_sampling import (
    START,
    TAPES,
    exact,
    exact_gradient,
    expected_loss,
    linear,
    measure,
    recurrent,
    spreads,
    target,
    weight,
    what_torch_normal_does,
)

import rlpg


def by_density(a: float, b: float, s: float, steps: int) -> float:
    """The expected loss from the density of x, carried forward on a grid."""
    grid = np.linspace(-4, 5, 1201)
    width = grid[1] - grid[0]
    kernel = np.exp(-(((grid[:, None] - a * grid - b) / s) ** 2) / 2) / (s * np.sqrt(2 * np.pi))
    density = np.exp(-(((grid - a - b) / s) ** 2) / 2) / (s * np.sqrt(2 * np.pi))
    loss = 0.0
    for t in range(1, steps + 1):
        loss += weight(t, steps) * float(density @ (grid - target(t)) ** 2) * width
        density = kernel @ density * width
    return loss


def test_recursions_by_propagating_the_density() -> None:
    values = [torch.tensor(value, dtype=torch.float64) for value in START.values()]
    steps = 4
    assert by_density(*START.values(), steps) == pytest.approx(
        float(expected_loss(*values, steps=steps)), rel=1e-9
    )
    gradient = exact_gradient(steps)
    for name in START:
        above, below = ({**START, name: START[name] + h} for h in (1e-4, -1e-4))
        slope = (by_density(*above.values(), steps) - by_density(*below.values(), steps)) / 2e-4
        assert gradient[name] == pytest.approx(slope, rel=1e-6), name


def test_exact_means_are_the_gradient() -> None:
    gradient = exact_gradient(5)
    for (estimator, name), polynomial in exact(5).items():
        assert polynomial.mean() == pytest.approx(gradient[name], rel=1e-9), estimator


def test_path_variance_by_simulation() -> None:
    # dx'/da = a dx/da + x along paths drawn by NumPy.
    generator, steps = np.random.default_rng(3), 5
    a, b, s = START.values()
    x, dx, g = np.ones(200_000), np.zeros(200_000), np.zeros(200_000)
    for t in range(1, steps + 1):
        x, dx = a * x + b + s * generator.standard_normal(len(x)), a * dx + x
        g += weight(t, steps) * 2 * (x - target(t)) * dx
    square = (g - g.mean()) ** 2
    z = (square.mean() - exact(steps)["pathwise", "a"].variance()) / (
        square.std() / np.sqrt(len(g))
    )
    assert abs(z) < 4


def test_tape_agrees_in_mean_and_variance() -> None:
    lines = measure(num_lanes=60_000, seed=0, steps=5)
    assert len(lines) == 9
    for row in lines:
        assert abs(row.mean_z) < 4, row
        assert row.variance_z is not None
        assert abs(row.variance_z) < 4, row
    spread = {row.estimator: row.variance for row in lines if row.parameter == "a"}
    assert spread["score"] > spread["score, leave one out"] > 3 * spread["pathwise"]


def test_torch_normal_gives_no_gradient_and_is_found_out() -> None:
    gradients, verdict = what_torch_normal_does()
    assert set(gradients.values()) == {0.0}
    assert "torch.normal was called with" in verdict


def test_gru_orders_its_estimators_as_the_linear_case_does() -> None:
    found = spreads(recurrent(0), repeats=16, seed=0)
    order = [found[name] for name in TAPES]
    assert order == sorted(order, reverse=True)
    assert order[0] > 5 * order[2]


def test_gradcheck_agrees_with_the_recursions() -> None:
    leaf = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in START.items()}

    def program(tape: rlpg.Tape, lanes: int) -> None:
        linear(tape, {name: value.expand(lanes) for name, value in leaf.items()}, 4)

    want = {name: torch.tensor(value) for name, value in exact_gradient(4).items()}
    for how in ("pathwise", lambda: rlpg.Tape("score", baseline=rlpg.LeaveOneOut())):
        found = rlpg.gradcheck(program, leaf, how, against=want, num_lanes=4000, resolution=0.1)
        assert found.resolution < 0.1

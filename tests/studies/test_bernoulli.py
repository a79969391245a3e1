"""One coin and one bandit: closed forms by enumeration and differences, then the tape."""

from __future__ import annotations

import math

import bernoulli
import numpy as np
import pytest
from bernoulli import BIASED, ETA, LOGITS, TAPES, TARGET, bandit, gradient, measure, moments
from rlpg.envs.bandit import REWARDS
from study import per_lane

import rlpg


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_gradient_is_the_slope_of_the_objective() -> None:
    def objective(eta: float) -> float:
        p = sigmoid(eta)
        return p * (1 - TARGET) ** 2 + (1 - p) * TARGET**2

    slope = (objective(ETA + 1e-5) - objective(ETA - 1e-5)) / 2e-5
    assert gradient(ETA) == pytest.approx(slope, rel=1e-7)


@pytest.mark.parametrize("name", [name for name in TAPES if name not in BIASED])
@pytest.mark.parametrize("eta", [-1.5, 0.3, 2.0])
def test_unbiased_estimators_have_the_right_mean(name: str, eta: float) -> None:
    assert moments(name, eta)[0] == pytest.approx(gradient(eta), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_relaxed_mean_is_the_slope_of_the_relaxed_objective(temperature: float) -> None:
    # E (y - t)^2 over uniform u by the midpoint rule, and its difference quotient.
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    noise = np.log(u / (1 - u))

    def objective(eta: float) -> float:
        y = 1 / (1 + np.exp(-(eta + noise) / temperature))
        return float(((y - TARGET) ** 2).mean())

    slope = (objective(ETA + 1e-3) - objective(ETA - 1e-3)) / 2e-3
    assert moments(f"Gumbel, {temperature}", ETA)[0] == pytest.approx(slope, rel=1e-3)


def test_stand_ins_point_the_wrong_way() -> None:
    assert gradient(ETA) == pytest.approx(0.01491, abs=1e-5)
    assert moments("straight-through", ETA)[0] == pytest.approx(-0.0798, abs=1e-4)
    assert moments("Gumbel, 0.5", ETA)[0] == pytest.approx(-0.0202, abs=1e-4)
    # Colder is less biased, and noisier than REINFORCE without any baseline.
    assert 0 < moments("Gumbel, 0.1", ETA)[0] < gradient(ETA)
    assert moments("Gumbel, 0.1", ETA)[1] > 4 * moments("score", ETA)[1]


def test_tape_agrees_in_mean_and_variance() -> None:
    for row in measure([ETA, 0.5], num_lanes=40_000, seed=0).values():
        assert abs(row.mean_z) < 4, row
        assert row.variance_z is None or abs(row.variance_z) < 4, row


def test_best_constant_leaves_one_coin_without_variance() -> None:
    # (f(1) - c)(1 - p) = -(f(0) - c) p has a solution c: of two outcomes nothing random is left.
    tape = rlpg.Tape("score", baseline=rlpg.OptimalConstant())
    found = per_lane(bernoulli.program, tape, {"eta": ETA}, 10_000, seed=0)["eta"]
    assert found.tolist() == pytest.approx([gradient(ETA)] * len(found), abs=1e-3)
    assert float(found.var()) < 1e-4 * moments("score", ETA)[1]


def test_tape_shows_the_wrong_sign() -> None:
    # Predicted: 0.0202 + 0.0149 off at a standard error of sqrt(0.00875 / 40 000) = 0.0005.
    lines = measure([ETA], num_lanes=40_000, seed=1)
    for name in ("straight-through", "Gumbel, 0.5"):
        row = lines[name, ETA]
        assert row.mean + 6 * math.sqrt(row.variance / 40_000) < 0 < gradient(ETA)


def test_bandit_agrees_in_mean_and_variance() -> None:
    # J by hand, differentiated by differences: independent of the environment's formula.
    def value(logits: np.ndarray) -> float:
        p = np.exp(logits) / np.exp(logits).sum()
        return float(p @ np.array(REWARDS))

    lines = bandit(num_lanes=40_000, seed=0)
    for row in lines:
        shift = 1e-5 * np.eye(len(LOGITS))[int(row.parameter.split()[1])]
        slope = (value(np.array(LOGITS) + shift) - value(np.array(LOGITS) - shift)) / 2e-5
        assert row.exact_mean == pytest.approx(slope, abs=1e-8)
        assert abs(row.mean_z) < 4, row
        assert row.variance_z is not None
        assert abs(row.variance_z) < 4, row


def test_descent_on_a_stand_in_ends_elsewhere() -> None:
    ends = {
        name: bernoulli.descend(name, steps=120, seed=0)[-1]
        for name in ("score, leave one out", "straight-through")
    }
    assert ends["score, leave one out"] < 0.03  # the optimum is p = 0
    assert ends["straight-through"] == pytest.approx(TARGET, abs=0.05)

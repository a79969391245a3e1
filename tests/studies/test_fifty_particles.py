"""Particles that meet in their mean and deviation: exact values by simulation, then the tape."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fifty_particles import (
    NUM,
    START,
    bent_network,
    cloud_lines,
    exact_gradient,
    exact_variances,
    finite,
    objective,
    shaped_lines,
)


def simulate(resamples: int, num: int, clouds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loss, score and path derivative for mu of clouds drawn by NumPy, particle by particle."""
    generator = np.random.default_rng(7)
    eps = generator.standard_normal((clouds, num))
    x, w = START["mu"] + eps, START["w"]
    for _ in range(resamples):
        z = w * x
        fresh = generator.standard_normal((clouds, num))
        x = z.mean(1, keepdims=True) + z.std(1, ddof=1, keepdims=True) * fresh
    loss = ((w * x) ** 2).mean(1)
    return loss, eps.sum(1), 2 * w * x.mean(1) * w ** (resamples + 1)


@pytest.mark.parametrize("resamples", [0, 2])
def test_exact_variances_by_simulation(resamples: int) -> None:
    loss, score, path = simulate(resamples, NUM, 40_000)
    estimates = {
        "score, batch loss": loss * score,
        "score, batch loss, baseline": (loss - loss.mean()) * score,
        "pathwise": path,
    }
    exact = exact_variances(resamples=resamples)
    for name, g in estimates.items():
        square = (g - g.mean()) ** 2
        z = (square.mean() - exact[name]) / (square.std() / math.sqrt(len(g)))
        assert abs(z) < 4, name


def test_batch_loss_is_800_times_noisier_than_the_path_and_30_times_with_a_baseline() -> None:
    exact = exact_variances(resamples=0)
    assert 750 < exact["score, batch loss"] / exact["pathwise"] < 850
    assert 28 < exact["score, batch loss, baseline"] / exact["pathwise"] < 40


@pytest.mark.parametrize("resamples", [0, 3])
def test_clouds_agree_in_mean_and_variance(resamples: int) -> None:
    for row in cloud_lines(resamples=resamples, num_clouds=8_000, seed=0):
        assert abs(row.mean_z) < 4, row
        assert row.variance_z is None or abs(row.variance_z) < 4, row


def test_shaped_reward_is_unbiased_for_a_linear_network_and_quiet() -> None:
    path = exact_variances(resamples=2)["pathwise"]
    for row in shaped_lines(resamples=2, repeats=600, seed=0):
        assert abs(row.mean_z) < 4, row
        if row.parameter == "mu":
            assert row.variance < 6 * path


def test_objective_of_n_particles_is_not_that_of_infinitely_many() -> None:
    mu, w = (torch.tensor(value, dtype=torch.float64) for value in START.values())
    for num, (mean, error) in finite(num_clouds=10_000, seed=0).items():
        assert abs(mean - float(objective(mu, w, resamples=3, num=num))) < 4 * error
        if num <= 10:  # and from the other one they differ visibly
            assert mean - float(objective(mu, w, resamples=3, num=math.inf)) > 6 * error
    fifty, infinite = exact_gradient(resamples=3), exact_gradient(resamples=3, num=math.inf)
    assert fifty["w"] / infinite["w"] - 1 == pytest.approx(0.055, abs=0.01)


def test_objective_by_simulation() -> None:
    loss, _, _ = simulate(2, 10, 100_000)
    mu, w = (torch.tensor(value, dtype=torch.float64) for value in START.values())
    error = loss.std() / math.sqrt(len(loss))
    assert abs(loss.mean() - float(objective(mu, w, resamples=2, num=10))) < 4 * error


@pytest.mark.slow
def test_shaped_reward_is_biased_by_a_bent_network_and_few_particles() -> None:
    # The other half of "exactly unbiased for a linear network": it is not so in general.
    row = bent_network(10, repeats=4000, seed=0)[0]
    assert row.shaped - row.pathwise < -3 * row.error

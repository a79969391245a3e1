"""The mixture of score and pathwise gradients: its weights, and that they cost no bias."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Independent, Normal

from rlpg.gradients.baselines import LeaveOneOut, OptimalConstant
from rlpg.gradients.combine import mixing_weight
from rlpg.gradients.tape import How, Tape


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_weight_minimizes_the_variance_of_the_mixture() -> None:
    path = torch.randn(4000, 2) * 2
    score = 0.5 * path + torch.randn(4000, 2) * 3
    k = mixing_weight(path, score)
    for other in (k - 0.05, k + 0.05):
        at_k = (k * score + (1 - k) * path).var(0).sum()
        assert at_k < (other * score + (1 - other) * path).var(0).sum()
    # Var a = 4, Var s = 1 + 9 = 10, Cov = 2 per dimension: (4 - 2) / (4 + 10 - 4) and 4 / 14
    assert k == pytest.approx(2 / 10, abs=0.03)
    assert mixing_weight(path, score, exact_ivw=True) == pytest.approx(4 / 14, abs=0.02)


def test_weight_of_what_has_exploded_is_zero() -> None:
    fine, exploded = torch.randn(10, 1), torch.full((10, 1), float("inf"))
    assert mixing_weight(exploded, fine) == 1.0
    assert mixing_weight(fine, exploded) == 0.0
    assert mixing_weight(torch.ones(10, 1), torch.ones(10, 1)) == 0.0


def estimates(how: How, *, lanes: int, repeats: int, exact_ivw: bool = False) -> Tensor:
    """`[repeats, 2]` gradients of E[exp(a z)] with z ~ N(mean, scale), few lanes, steep cost."""
    found = []
    for _ in range(repeats):
        theta = torch.tensor([0.2, 0.8], dtype=torch.float64, requires_grad=True)
        tape = Tape(how, exact_ivw=exact_ivw)
        z = tape.sample(Normal(theta[0].expand(lanes), theta[1].expand(lanes)))
        tape.add((1.5 * z).sin() + 3 * z.square())
        tape.surrogate().backward()
        assert theta.grad is not None
        found.append(theta.grad)
    return torch.stack(found)


def test_cross_fitted_weights_are_unbiased_where_in_sample_weights_are_not() -> None:
    # E[sin(a z) + 3 z^2] = exp(-a^2 s^2 / 2) sin(a m) + 3 (m^2 + s^2)
    a, m, s = 1.5, 0.2, 0.8
    decay = math.exp(-(a**2) * s**2 / 2)
    exact = torch.tensor(
        [decay * a * math.cos(a * m) + 6 * m, -decay * a**2 * s * math.sin(a * m) + 6 * s],
        dtype=torch.float64,
    )

    def z_scores(found: Tensor) -> Tensor:
        return (found.mean(0) - exact) / (found.std(0) / math.sqrt(len(found)))

    crossed = estimates("combine", lanes=6, repeats=1500)
    assert z_scores(crossed).abs().max() < 4
    in_sample = estimates("combine", lanes=6, repeats=1500, exact_ivw=True)
    assert z_scores(in_sample).abs().max() > 6


def test_mixture_is_unbiased_through_several_steps_and_beats_both_parts() -> None:
    # x' = w x + s e, three steps, cost x_3^2 + sin(6 x_3): the path is noisy from the sine, the
    # score from the square. E x_3^2 and E sin(6 x_3) are closed forms in mean and variance.
    steps, repeats, lanes = 3, 400, 32

    def moments(theta: Tensor) -> Tensor:
        mean, var = torch.tensor(1.0, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for _ in range(steps):
            mean, var = theta[0] * mean, theta[0] ** 2 * var + theta[1] ** 2
        return mean**2 + var + torch.exp(-18 * var) * torch.sin(6 * mean)

    start = torch.tensor([0.9, 0.3], dtype=torch.float64)
    exact = torch.autograd.functional.jacobian(moments, start)
    spread: dict[str, float] = {}
    for how in ("score", "pathwise", "combine"):
        found = []
        for _ in range(repeats):
            theta = start.clone().requires_grad_()
            tape = Tape(how, baseline=LeaveOneOut())
            x = torch.ones(lanes, dtype=torch.float64)
            for _ in range(steps):
                x = tape.sample(Normal(theta[0] * x, theta[1].expand(lanes)))
            tape.add(x**2 + torch.sin(6 * x))
            tape.surrogate().backward()
            found.append(theta.grad)
        batch = torch.stack([grad for grad in found if grad is not None])
        z = (batch.mean(0) - exact) / (batch.std(0) / math.sqrt(repeats))
        assert z.abs().max() < 4, how
        spread[how] = float(batch.var(0).sum())
    assert spread["combine"] < 1.05 * min(spread["score"], spread["pathwise"])


def test_mixture_works_for_other_reparametrized_families_and_baselines() -> None:
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    tape = Tape("combine", baseline=OptimalConstant())
    lanes = 4000
    first = tape.sample(Gamma(torch.full((lanes,), 3.0, dtype=torch.float64), rate.expand(lanes)))
    second = tape.sample(Independent(Normal(mean.expand(lanes, 3), 1.0), 1))
    tape.add(first + second.square().sum(1) + 2 * second[:, 0])
    tape.surrogate().backward()
    assert rate.grad is not None
    assert mean.grad is not None
    # d/d rate of 3 / rate; d/d mean of mean^2 + 2 mean_0. Standard errors below 4 / sqrt(lanes).
    assert float(rate.grad) == pytest.approx(-0.75, abs=0.1)
    torch.testing.assert_close(
        mean.grad, torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64), atol=0.15, rtol=0.0
    )


def test_an_exploding_path_leaves_the_score() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    tape = Tape("combine")
    x = tape.sample(Normal(theta.expand(8), 1.0))
    steep = x
    for _ in range(40):
        steep = 1e3 * torch.sin(1e3 * steep)
    tape.add(torch.tanh(steep))
    tape.surrogate().backward()
    assert theta.grad is not None
    assert bool(torch.isfinite(theta.grad))

"""Weak derivatives against closed forms: means by z-test, variances where they are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Exponential, Gamma, Normal, Poisson

from rlpg.errors import EstimatorError
from rlpg.gradients.tape import Tape
from rlpg.gradients.weak import weak_branches

Family = Callable[[Tensor, int], Distribution]
LANES = 20_000

CASES: dict[str, tuple[list[float], Family, Callable[[Tensor], Tensor], list[float]]] = {
    # name: parameters, distribution, f, exact gradient of E f
    "normal, square": (
        [0.7, 0.9],
        lambda theta, n: Normal(theta[0].expand(n), theta[1].expand(n)),
        lambda x: (x - 0.2).square(),
        [2 * (0.7 - 0.2), 2 * 0.9],
    ),
    "normal, step": (
        [0.7, 0.9],
        lambda theta, n: Normal(theta[0].expand(n), theta[1].expand(n)),
        lambda x: (x > 1.0).double(),
        # density at the step over scale, times 1 and (1 - m) / s
        [
            math.exp(-0.5 * (0.3 / 0.9) ** 2) / (0.9 * math.sqrt(2 * math.pi)),
            math.exp(-0.5 * (0.3 / 0.9) ** 2) / (0.9 * math.sqrt(2 * math.pi)) * 0.3 / 0.9,
        ],
    ),
    "poisson, square": (
        [1.3],
        lambda theta, n: Poisson(theta[0].expand(n)),
        lambda x: x.square(),
        [2 * 1.3 + 1],  # E x^2 = l + l^2
    ),
    "exponential, square": (
        [1.3],
        lambda theta, n: Exponential(theta[0].expand(n)),
        lambda x: x.square(),
        [-4 / 1.3**3],  # E x^2 = 2 / l^2
    ),
    "gamma, square": (
        [1.3],
        lambda theta, n: Gamma(2.5, theta[0].expand(n)),
        lambda x: x.square(),
        [-2 * 2.5 * 3.5 / 1.3**3],  # E x^2 = a (a + 1) / r^2
    ),
    "bernoulli": (
        [0.3],
        lambda theta, n: Bernoulli(probs=theta[0].expand(n)),
        lambda x: (x - 0.45).square(),
        [0.55**2 - 0.45**2],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_weak_derivative_equals_the_closed_form(name: str) -> None:
    start, family, cost, exact = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        points, weights = weak_branches(family(theta, LANES))
    assert weights.sum(0).detach().eq(1).all()
    per_lane = (weights * cost(points)).sum(0)  # [lanes]
    # Every lane has its own sample of the gradient: read it off lane weights one by one.
    total = torch.autograd.grad(per_lane.sum(), theta)[0] / LANES
    pairs = cost(points)[1::2] - cost(points)[2::2]  # [parameters, lanes], times the factors
    spread = pairs.std(1) * (total / pairs.mean(1)).abs()
    z = (total - torch.tensor(exact, dtype=torch.float64)) / (spread / math.sqrt(LANES)).clamp(
        min=1e-12
    )
    if name == "bernoulli":
        torch.testing.assert_close(total, torch.tensor(exact, dtype=torch.float64))
    else:
        assert z.abs().max() < 4


def test_gaussian_mean_of_a_square_has_the_variance_of_the_closed_form() -> None:
    # f = x^2, x+- = m +- s W with W Rayleigh: (f+ - f-) c = 4 m s W / (s sqrt(2 pi)), and
    # Var W = 2 - pi / 2, so the variance is 16 m^2 (2 - pi / 2) / (2 pi).
    mean, exact = 0.7, 16 * 0.7**2 * (2 - math.pi / 2) / (2 * math.pi)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        dist = Normal(torch.full((LANES,), mean).double().requires_grad_(), 0.9)
        points, _ = weak_branches(dist)
    change = (points[1].square() - points[2].square()) / (0.9 * math.sqrt(2 * math.pi))
    # The variance of a variance estimate is about 2 sigma^4 / n (kurtosis near 3).
    z = (float(change.var()) - exact) / (exact * math.sqrt(2 / LANES))
    assert abs(z) < 4


def test_vectors_get_branches_per_coordinate_on_the_tape() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        mean = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
        tape = Tape("weak")
        x = tape.sample(Normal(mean.expand(4000, 2), 0.5))
        assert x.shape == (9, 4000, 2)
        tape.add(x[..., 0] * x[..., 1] + x[..., 0].square())
        tape.surrogate().backward()
    # E = m0 m1 + m0^2 + const: gradient (m1 + 2 m0, m0)
    assert mean.grad is not None
    torch.testing.assert_close(
        mean.grad, torch.tensor([0.0, 0.5], dtype=torch.float64), atol=0.05, rtol=0.0
    )


def test_unsupported_shapes_are_refused() -> None:
    with pytest.raises(EstimatorError, match=r"expected batch shape \[lanes\] or \[lanes, D\]"):
        weak_branches(Normal(torch.zeros(2, 2, 2), 1.0))

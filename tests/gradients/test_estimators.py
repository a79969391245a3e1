"""The pure functions, each against a closed form that needs no sampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, OneHotCategorical

from rlpg.errors import EstimatorError
from rlpg.gradients.estimators import (
    biased_gumbel_softmax,
    biased_straight_through,
    expectation,
    log_prob_of,
    magic_box,
)


def test_expectation_over_the_support_is_the_softmax_policy_gradient() -> None:
    # d/d logit_a of sum p f is p_a (f_a - E f).
    logits = torch.tensor([0.2, -0.4, 1.0], dtype=torch.float64, requires_grad=True)
    payoff = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
    probs = torch.softmax(logits, 0)
    mean = expectation(probs, payoff)
    mean.backward()
    expected = (probs * (payoff - mean)).detach()
    torch.testing.assert_close(logits.grad, expected)


def test_enumerated_magic_box_gives_the_second_derivative() -> None:
    # E f over b ~ Bernoulli(p) is p f_1 + (1 - p) f_0, with p = sigmoid(theta).
    def by_boxes(theta: Tensor) -> Tensor:
        dist = Bernoulli(logits=theta)
        total = torch.zeros((), dtype=torch.float64)
        for b, payoff in ((0.0, 2.0), (1.0, 5.0)):
            log_prob = dist.log_prob(torch.tensor(b, dtype=torch.float64))
            total = total + log_prob.detach().exp() * payoff * magic_box(log_prob)
        return total

    def exact(theta: Tensor) -> Tensor:
        return 2.0 + 3.0 * torch.sigmoid(theta)

    at = torch.tensor(0.3, dtype=torch.float64)
    for derivative in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian):
        torch.testing.assert_close(derivative(by_boxes, at), derivative(exact, at))
    torch.testing.assert_close(by_boxes(at), exact(at))


def test_log_prob_of_a_reparametrized_sample_is_refused() -> None:
    dist = Normal(torch.zeros(2, requires_grad=True), 1.0)
    fine = torch.zeros(2)
    torch.testing.assert_close(log_prob_of(dist, fine), dist.log_prob(fine))
    with pytest.raises(EstimatorError, match="got a reparametrized one"):
        log_prob_of(dist, fine + dist.mean)


def test_straight_through_is_exact_for_affine_functions_only() -> None:
    # E (b - t)^2 has gradient p (1 - p) (1 - 2 t); straight-through averages 2 (b - t) p (1 - p),
    # whose mean is 2 (p - t) p (1 - p).
    logits = torch.tensor([-1.5], dtype=torch.float64, requires_grad=True)
    p = torch.sigmoid(logits).detach()
    affine, square = torch.zeros(1), torch.zeros(1)
    for b in (0.0, 1.0):

        class Forced(Bernoulli):
            value = b

            def sample(self, sample_shape: object = None) -> Tensor:
                return torch.full_like(self.logits, self.value).detach()

        prob = p if b else 1 - p
        x = biased_straight_through(Forced(logits=logits))
        assert x.item() == b
        affine = affine + prob * torch.autograd.grad(3 * x + 1, logits, retain_graph=True)[0]
        square = square + prob * torch.autograd.grad((x - 0.45) ** 2, logits)[0]
    torch.testing.assert_close(affine, 3 * p * (1 - p))
    torch.testing.assert_close(square, 2 * (p - 0.45) * p * (1 - p))


def test_relaxed_samples_stay_in_the_simplex_and_carry_a_gradient() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        logits = torch.zeros(5, 3, requires_grad=True)
        soft = biased_gumbel_softmax(OneHotCategorical(logits=logits), 0.5)
        cold = biased_gumbel_softmax(Bernoulli(logits=logits), 1e-3)
    torch.testing.assert_close(soft.sum(1), torch.ones(5))
    assert bool(((cold < 1e-3) | (cold > 1 - 1e-3)).all())
    (gradient,) = torch.autograd.grad((soft * torch.arange(3.0)).sum(), logits)
    assert bool((gradient[:, 2] > 0).all())  # more weight on the best is more
    with pytest.raises(EstimatorError, match="expected Bernoulli or OneHotCategorical, got Normal"):
        biased_gumbel_softmax(Normal(logits, 1.0), 0.5)

"""The pure functions, each against a closed form that needs no sampling."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, OneHotCategorical

from rlpg.errors import EstimatorError
from rlpg.gradients.estimators import (
    biased_gumbel_softmax,
    biased_straight_through,
    clipped_likelihood_ratio,
    expectation,
    importance_weighted_bound,
    likelihood_ratio,
    log_prob_of,
    magic_box,
    score_function,
)
from rlpg.gradients.tape import Tape


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


ARMS = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)  # what each arm pays
OLD = torch.tensor([0.1, 0.4, -0.3], dtype=torch.float64)  # logits the samples were drawn with


@pytest.mark.parametrize("distance", [0.0, 1.5])
def test_likelihood_ratio_is_unbiased_for_one_sample_whatever_the_distance(distance: float) -> None:
    # sum over all arms of q(a) r(a) A(a) = sum p(a) A(a), and so is its gradient p (A - E A)
    logits = (OLD + distance * torch.tensor([1.0, -1.0, 0.0])).requires_grad_()
    log_p, log_q = torch.log_softmax(logits, 0), torch.log_softmax(OLD, 0)
    p, q = log_p.detach().exp(), log_q.exp()
    term = likelihood_ratio(log_p, log_q, ARMS, weight=q)
    assert term.item() == pytest.approx(float(p @ ARMS))
    term.backward()
    torch.testing.assert_close(logits.grad, p * (ARMS - p @ ARMS))


def test_likelihood_ratio_has_the_variance_of_importance_weights() -> None:
    # Var_q (r A) = sum p^2 / q A^2 - (sum p A)^2 with p = (3/4, 1/4), q = (1/4, 3/4), A = (1, 0)
    log_p = torch.tensor([0.75, 0.25]).log().requires_grad_()
    q, paid = torch.tensor([0.25, 0.75]), torch.tensor([1.0, 0.0])
    one = [slice(0, 1), slice(1, 2)]
    values = torch.stack(
        [likelihood_ratio(log_p[k], q[k].log(), paid[k], weight=1.0) for k in one]
    ).detach()
    mean, square = q @ values, q @ values**2
    assert float(mean) == pytest.approx(0.75)
    assert float(square - mean**2) == pytest.approx(0.75**2 / 0.25 - 0.75**2)


def test_likelihood_ratio_of_two_steps_is_exact_at_the_old_policy_only() -> None:
    # Step 1 pays nothing and chooses the state; step 2 pays its action where step 1 was 1. One
    # ratio per step leaves out the ratio that leads to the state.
    def gradients(theta: float) -> tuple[float, float]:
        new, total = torch.tensor(theta, dtype=torch.float64, requires_grad=True), torch.zeros(())
        log_p = Bernoulli(logits=new).log_prob(torch.tensor([0.0, 1.0], dtype=torch.float64))
        log_q = Bernoulli(logits=torch.tensor(0.2, dtype=torch.float64)).log_prob(
            torch.tensor([0.0, 1.0], dtype=torch.float64)
        )
        for first in (0, 1):
            for second in (0, 1):
                steps, paid = [first, second], float(first * second)
                returns = torch.full((2,), paid, dtype=torch.float64)
                prob = (log_q[first] + log_q[second]).exp()
                total = total + likelihood_ratio(
                    log_p[steps], log_q[steps], returns, weight=float(prob)
                )
        p = torch.sigmoid(new.detach())
        return float(torch.autograd.grad(total, new)[0]), float(2 * p * p * (1 - p))  # of p^2

    got, exact = gradients(0.2)
    assert got == pytest.approx(exact)
    got, exact = gradients(1.2)
    assert abs(got - exact) > 0.05 * exact


def test_clipping_by_hand() -> None:
    # ratios 0.5, 0.9, 1.1, 2 with A = +1 and -1, c = 0.2: min(r A, clip(r) A) and its slope in r
    ratio = torch.tensor([0.5, 0.9, 1.1, 2.0] * 2, dtype=torch.float64)
    advantage = torch.tensor([1.0] * 4 + [-1.0] * 4, dtype=torch.float64)
    log_prob = ratio.log().requires_grad_()
    term = clipped_likelihood_ratio(
        log_prob, torch.zeros(8).double(), advantage, clip_range=0.2, weight=0.25
    )
    values = [0.5, 0.9, 1.1, 1.2, -0.8, -0.9, -1.1, -2.0]
    assert term.item() == pytest.approx(sum(values) / 4)
    slopes = torch.tensor([1.0, 1, 1, 0, 0, -1, -1, -1], dtype=torch.float64)
    term.backward()
    torch.testing.assert_close(log_prob.grad, slopes * ratio / 4)


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_a_ratio_that_float32_cannot_hold_has_a_finite_gradient(advantage: float) -> None:
    # 1,000 action dimensions: PPO stopped at NaN = 0 * inf, the slope of exp where it is clipped.
    log_prob = torch.tensor([0.0, 200.0], requires_grad=True)
    term = clipped_likelihood_ratio(
        log_prob, torch.zeros(2), torch.full((2,), advantage), clip_range=0.2, weight=1.0
    )
    term.backward()
    steep = min(0.0, advantage) * math.exp(20.0)
    assert term.item() == pytest.approx(advantage + (steep if advantage < 0 else 1.2 * advantage))
    torch.testing.assert_close(log_prob.grad, torch.tensor([advantage, steep]))


@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_at_a_ratio_of_one_both_have_the_gradient_of_the_score_function(
    clip_range: float | None,
) -> None:
    generator = torch.Generator().manual_seed(0)
    advantage = torch.randn(3, 2, generator=generator)
    weight = torch.rand(3, 2, generator=generator)
    weight[1, 1] = 0.0  # there the others may hold anything
    found = []
    for function in ("score", "ratio"):
        log_prob = -torch.rand(3, 2, generator=torch.Generator().manual_seed(1))
        old, log_prob = log_prob.clone(), log_prob.requires_grad_()
        advantage[1, 1], old[1, 1] = float("nan"), -float("inf")
        if function == "score":
            term = score_function(log_prob, advantage, weight=weight)
        elif clip_range is None:
            term = likelihood_ratio(log_prob, old, advantage, weight=weight)
        else:
            term = clipped_likelihood_ratio(
                log_prob, old, advantage, clip_range=clip_range, weight=weight
            )
        found.append(torch.autograd.grad(term, log_prob)[0])
    torch.testing.assert_close(found[0], found[1])
    assert bool(found[1].isfinite().all())


def test_ratios_of_the_wrong_shape_are_refused() -> None:
    log_prob = torch.zeros(3, requires_grad=True)
    with pytest.raises(EstimatorError, match=r"^likelihood_ratio: expected log_prob, adv"):
        likelihood_ratio(log_prob, torch.zeros(3, 1), torch.zeros(3), weight=1.0)
    with pytest.raises(EstimatorError, match="carries a gradient, got one without"):
        likelihood_ratio(log_prob.detach(), torch.zeros(3), torch.zeros(3), weight=1.0)
    with pytest.raises(EstimatorError, match="clip_range: expected a number above 0, got 0"):
        clipped_likelihood_ratio(log_prob, log_prob, log_prob, clip_range=0, weight=1.0)


@pytest.mark.parametrize(("num", "eta"), [(2, 0.3), (3, -1.2), (4, 1.0)])
def test_importance_weighted_bound_has_the_exact_gradient_and_less_variance(
    num: int, eta: float
) -> None:
    # z ~ Bernoulli(sigmoid(eta)) from q; log p(x, z) = phi z - z^2 / 3 - 1. Over all 2^K outcomes.
    theta = torch.tensor([eta, 0.7], dtype=torch.float64, requires_grad=True)
    exact, plain, vimco = torch.zeros(()), [], []
    for outcome in itertools.product((0.0, 1.0), repeat=num):
        z = torch.tensor(outcome, dtype=torch.float64)[:, None]  # [K, 1]
        log_q = Bernoulli(logits=theta[0]).log_prob(z)
        log_weight = theta[1] * z - z / 3 - 1 - log_q
        bound = log_weight.logsumexp(0).sum() - math.log(num)
        prob = log_q.sum().exp()
        exact = exact + prob * bound
        surrogate = importance_weighted_bound(log_weight, log_q).sum()
        assert surrogate.item() == pytest.approx(bound.item())
        scored = bound + bound.detach() * log_q.sum()
        for found, term in ((vimco, surrogate), (plain, scored)):
            (gradient,) = torch.autograd.grad(term, theta, retain_graph=True)
            found.append((prob.detach(), gradient))
    (want,) = torch.autograd.grad(exact, theta)
    variance = {}
    for name, found in (("plain", plain), ("vimco", vimco)):
        mean = sum(p * g for p, g in found)
        torch.testing.assert_close(mean, want)
        variance[name] = float(sum(p * (g - want).square().sum() for p, g in found))  # type: ignore[misc]
    assert variance["vimco"] < 0.85 * variance["plain"]


def test_bug_a_sample_of_weight_0_made_the_bound_nan() -> None:
    log_weight = torch.tensor([[-math.inf], [0.0], [1.0]], requires_grad=True)
    log_prob = torch.zeros(3, 1, requires_grad=True)
    bound = importance_weighted_bound(log_weight, log_prob)
    bound.sum().backward()
    whole, e = math.log((1.0 + math.e) / 3), math.e
    left_out = [math.log((1.0 + e + math.exp(0.5)) / 3), math.log(e / 3), math.log(1.0 / 3)]
    assert bound.item() == pytest.approx(whole, abs=1e-6)
    expected = torch.tensor([whole - without for without in left_out])[:, None]
    torch.testing.assert_close(log_prob.grad, expected)
    torch.testing.assert_close(log_weight.grad, log_weight.detach().softmax(0))


@pytest.mark.parametrize(
    "estimator", [likelihood_ratio, functools.partial(clipped_likelihood_ratio, clip_range=0.2)]
)
def test_a_weight_got_a_gradient_of_the_clipped_ratio(estimator: Any) -> None:
    log_prob, weight = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    estimator(log_prob, torch.zeros(3), torch.ones(3), weight=weight).backward()
    assert weight.grad is None
    torch.testing.assert_close(log_prob.grad, torch.ones(3))


def test_importance_weighted_bound_by_hand() -> None:
    # K = 2: without sample k its weight is the other's, so L - L_k = log((w_1 + w_2) / 2 w_other)
    log_weight = torch.tensor([[1.0], [3.0]]).log()
    log_prob = torch.zeros(2, 1, requires_grad=True)
    importance_weighted_bound(log_weight, log_prob).sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad[:, 0].tolist() == pytest.approx([math.log(2 / 3), math.log(2)])
    with pytest.raises(EstimatorError, match=r"expected log_weight and log_prob \[K, N\]"):
        importance_weighted_bound(log_weight[:1], log_prob[:1])


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


@pytest.mark.parametrize("temperature", [0.0, -0.5, float("nan")])
def test_a_temperature_that_is_none_gave_numbers(temperature: float) -> None:
    tape = Tape("biased_gumbel_softmax", temperature=temperature)
    with pytest.raises(EstimatorError, match="temperature above 0"):
        tape.sample(Bernoulli(torch.full((3,), 0.5)))

"""Control variates: exact means and variances by quadrature and over every outcome."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Normal, Poisson

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import LeaveOneOut
from rlpg.gradients.controls import Control, DeltaMethod, KnownMean, Relax
from rlpg.gradients.tape import Tape

NODES, WEIGHTS = (torch.from_numpy(part) for part in hermegauss(12))
WEIGHTS = WEIGHTS / WEIGHTS.sum()  # exact for polynomials up to degree 23


class AtNodes(Normal):
    """A normal whose samples are the nodes of a quadrature, one per lane."""

    def sample(self, sample_shape: object = None) -> Tensor:
        return (self.loc + self.scale * NODES).detach()


def moments(
    prob: Tensor, theta: Tensor, program: Callable[[Tape, Tensor], None], control: Control | None
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the gradient `[D]` when lane n has the probability `prob[n]`."""
    tape = Tape("score", control=control, num_lanes=len(prob))
    copies = tape.per_lane(theta.clone().requires_grad_())
    program(tape, copies)
    gradient = len(prob) * torch.autograd.grad(tape.surrogate(), copies)[0]
    mean = prob @ gradient
    return mean, prob @ gradient.square() - mean.square()


MEAN_AND_SCALE = torch.tensor([0.7, 0.9], dtype=torch.float64)


def normal(power: int) -> Callable[[Tape, Tensor], None]:
    def program(tape: Tape, theta: Tensor) -> None:
        tape.add(tape.sample(AtNodes(theta[:, 0], theta[:, 1])) ** power)

    return program


def test_the_delta_method_takes_the_whole_variance_of_a_quadratic_return() -> None:
    control = DeltaMethod(lambda x: x**2)
    mean, variance = moments(WEIGHTS, MEAN_AND_SCALE, normal(2), control)
    torch.testing.assert_close(mean, torch.tensor([2 * 0.7, 2 * 0.9]).double())  # of m^2 + s^2
    torch.testing.assert_close(variance, torch.zeros(2).double(), atol=1e-10, rtol=0)
    _, plain = moments(WEIGHTS, MEAN_AND_SCALE, normal(2), None)
    m, s = 0.7, 0.9  # (m + s e)^2 e / s has the second moment (m^4 + 18 m^2 s^2 + 15 s^4) / s^2
    assert float(plain[0]) == pytest.approx((m**4 + 18 * m**2 * s**2 + 15 * s**4) / s**2 - 4 * m**2)


def test_the_delta_method_leaves_the_noise_of_the_third_order() -> None:
    # x^3 less its expansion at m is (s e)^3. Times the score e / s: s^2 e^4, of mean 3 s^2 and
    # variance s^4 (105 - 9); times (e^2 - 1) / s: s^2 (e^5 - e^3), of mean 0 and variance
    # s^4 (945 - 2 * 105 + 15).
    mean, variance = moments(WEIGHTS, MEAN_AND_SCALE, normal(3), DeltaMethod(lambda x: x**3))
    m, s = 0.7, 0.9
    torch.testing.assert_close(mean, torch.tensor([3 * m**2 + 3 * s**2, 6 * m * s]).double())
    torch.testing.assert_close(variance, torch.tensor([96 * s**4, 750 * s**4]).double())


def test_the_delta_method_sums_over_coordinates() -> None:
    """f has a product of coordinates, which the expansion leaves out, and a linear one."""
    theta = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64, requires_grad=True)

    def model(x: Tensor) -> Tensor:
        return x[:, 0] * x[:, 1] + 2 * x[:, 2] + x[:, 0] ** 2

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tape = Tape("score", num_lanes=4000, control=DeltaMethod(model))
        copies = tape.per_lane(theta)
        tape.add(model(tape.sample(Normal(copies, 0.5))))
        gradient = 4000 * torch.autograd.grad(tape.surrogate(), copies)[0]
    exact = torch.tensor([-0.8 + 2 * 0.3, 0.3, 2.0], dtype=torch.float64)
    # What is left is (x_0 - m_0) (x_1 - m_1) score_d: variance of e_0 e_1 e_d s^2 / s.
    spread = 0.5 * torch.tensor([3.0, 3.0, 1.0], dtype=torch.float64).sqrt()
    z = (gradient.mean(0) - exact) / spread * math.sqrt(4000)
    assert float(z.abs().max()) < 4
    torch.testing.assert_close(gradient.std(0), spread, rtol=0.15, atol=0)


def test_a_known_mean_over_every_count() -> None:
    """Poisson with c(x) = 3 x, whose mean is 3 l; the return is x^2."""
    counts = torch.arange(60, dtype=torch.float64)
    rate = torch.tensor([1.3], dtype=torch.float64)

    class AtCounts(Poisson):
        def sample(self, sample_shape: object = None) -> Tensor:
            return counts

    def program(tape: Tape, theta: Tensor) -> None:
        tape.add(tape.sample(AtCounts(theta[:, 0])) ** 2)

    prob = Poisson(rate).log_prob(counts).exp()
    control = KnownMean(lambda x: 3 * x, lambda dist: 3 * dist.mean)
    mean, variance = moments(prob, rate, program, control)
    torch.testing.assert_close(mean, 2 * rate + 1)  # E x^2 = l + l^2
    score = counts / rate - 1
    by_hand = (counts**2 - 3 * counts) * score + 3
    torch.testing.assert_close(variance, (prob @ by_hand.square() - mean.square()))
    assert float(variance) < 0.3 * float(moments(prob, rate, program, None)[1])


def two_coins(tape: Tape, theta: Tensor) -> None:
    outcomes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2))).double()

    class First(Bernoulli):
        def sample(self, sample_shape: object = None) -> Tensor:
            return outcomes[:, 0]

    class Second(Bernoulli):
        def sample(self, sample_shape: object = None) -> Tensor:
            return outcomes[:, 1]

    x = tape.sample(First(logits=theta[:, 0]))
    tape.add(2 * x, discount=0.5)
    y = tape.sample(Second(logits=theta[:, 1] + x))
    tape.add(x * y - 3 * y)


def test_controls_of_two_coins_with_a_discount_between_them() -> None:
    theta = torch.tensor([0.4, -0.7], dtype=torch.float64)
    free = theta.clone().requires_grad_()
    x, y = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2))).double().unbind(1)
    prob = Bernoulli(logits=free[0]).log_prob(x) + Bernoulli(logits=free[1] + x).log_prob(y)
    value = prob.exp() @ (2 * x + 0.5 * (x * y - 3 * y))
    exact = torch.autograd.grad(value, free)[0]
    for scale in (0.0, -2.5, 4.0):
        control = KnownMean(
            lambda b, scale=scale: scale * b,  # type: ignore[misc]
            lambda dist, scale=scale: scale * dist.mean,  # type: ignore[misc]
        )
        mean, variance = moments(prob.exp().detach(), theta, two_coins, control)
        torch.testing.assert_close(mean, exact)
        if scale == -2.5:
            plain = moments(prob.exp().detach(), theta, two_coins, None)[1]
            assert float(variance[1]) < 0.1 * float(plain[1])  # y earns about -2.5


# ---- RELAX and REBAR ---------------------------------------------------------------------------


def soft_cost(z: Tensor) -> Tensor:
    return 0.2 + 0.1 * torch.sigmoid(z / 0.7)


@pytest.mark.parametrize("logit", [-1.5, 0.0, 0.9])
def test_relax_of_a_coin_by_quadrature(logit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and variance over b and both uniform numbers, and the formula written out in NumPy."""
    grid = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    p = 1 / (1 + math.exp(-logit))
    b, v, w = (
        part.reshape(-1)
        for part in torch.meshgrid(torch.arange(2.0).double(), grid, grid, indexing="ij")
    )
    numbers = itertools.cycle([v, w])
    monkeypatch.setattr(torch, "rand_like", lambda like: next(numbers))

    class Given(Bernoulli):
        def sample(self, sample_shape: object = None) -> Tensor:
            return b

    def program(tape: Tape, theta: Tensor) -> None:
        tape.add((tape.sample(Given(logits=theta[:, 0])) - 0.45).square())

    prob = torch.where(b == 1, p, 1 - p).double() / 200**2
    theta = torch.tensor([logit], dtype=torch.float64)
    mean, variance = moments(prob, theta, program, Relax(soft_cost))
    assert float(mean) == pytest.approx(p * (1 - p) * (0.55**2 - 0.45**2), abs=5e-6)

    def latent(u: np.ndarray, eta: float) -> np.ndarray:
        q = 1 / (1 + math.exp(-eta))
        place = np.where(b.numpy() == 1, 1 - q + u * q, u * (1 - q))
        return eta + np.log(place) - np.log1p(-place)

    def cost(z: np.ndarray) -> np.ndarray:
        return np.asarray(soft_cost(torch.from_numpy(z)))

    h, z, again = 1e-5, latent(w.numpy(), logit), latent(v.numpy(), logit)
    moved = cost(latent(v.numpy(), logit + h)) - cost(latent(v.numpy(), logit - h))
    path = (cost(z + h) - cost(z - h) - moved) / (2 * h)
    paid = (b.numpy() - 0.45) ** 2
    by_hand = (paid - cost(again)) * (b.numpy() - p) + path
    second = float(prob.numpy() @ by_hand**2)
    assert float(variance) == pytest.approx(second - float(mean) ** 2, rel=1e-5)
    assert float(variance) < float(moments(prob, theta, program, None)[1])


def test_relax_is_unbiased_with_any_network_through_coins_and_choices() -> None:
    """A choice, then coins that depend on it, with a baseline on top."""
    theta = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
    lanes = 30_000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        nets = [torch.nn.Linear(3, 1).double(), torch.nn.Linear(2, 1).double()]
        wide = Relax(lambda z: nets[0](z).tanh())
        narrow = Relax(lambda z: nets[1](z).tanh()[:, 0])
        tape = Tape("score", baseline=LeaveOneOut(), num_lanes=lanes)
        copies = tape.per_lane(theta.clone().requires_grad_())
        a = tape.sample(Categorical(logits=copies), control=wide)
        b = tape.sample(Bernoulli(probs=torch.sigmoid(copies[:, :2] + a[:, None])), control=narrow)
        tape.add(a * b[:, 0] - b[:, 1])
        found = lanes * torch.autograd.grad(tape.surrogate(), copies)[0]
        assert all(net.weight.grad is None for net in nets)
    free = theta.clone().requires_grad_()
    p, k = torch.softmax(free, 0), torch.arange(3)
    coins = torch.sigmoid(free[None, :2] + k[:, None])
    exact = torch.autograd.grad(p @ (k * coins[:, 0] - coins[:, 1]), free)[0]
    z = (found.mean(0) - exact) / (found.std(0) / math.sqrt(lanes))
    assert float(z.abs().max()) < 4


def test_the_loss_is_the_second_moment_and_training_lowers_the_variance() -> None:
    weights = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    # REBAR's softened cost, and a constant: offset, eta, temperature
    control = Relax(
        lambda z: weights[0] + weights[1] * (torch.sigmoid(z / weights[2]) - 0.45).square()
    )
    optimizer = torch.optim.Adam([weights], lr=0.02)
    logit = torch.tensor(-0.2, dtype=torch.float64, requires_grad=True)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for _ in range(150):
            tape = Tape("score", control=control, num_lanes=200)
            copies = tape.per_lane(logit)
            tape.add((tape.sample(Bernoulli(logits=copies)) - 0.45).square())
            gradient = 200 * torch.autograd.grad(tape.surrogate(), copies)[0]
            loss = control.loss()
            assert float(loss.detach()) == pytest.approx(float(gradient.square().mean()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert logit.grad is None
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])


def test_a_coefficient_of_a_control_added_its_own_gradient() -> None:
    """`theta x` with the mean `theta m` is paid back for m only: 3.5 for a derivative of 3."""
    theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for k in (theta, theta.detach()):
        control = KnownMean(lambda x, k=k: k * x, lambda dist, k=k: k * dist.mean)
        tape = Tape(control=control)
        dist = Normal(theta.expand(6), 1.0)
        if k.requires_grad:
            with pytest.raises(EstimatorError, match="sample 0: expected a control whose mean"):
                tape.sample(dist)
        else:
            tape.add(tape.sample(dist))
            assert bool(torch.autograd.grad(tape.surrogate(), theta)[0].isfinite())


def test_what_a_control_cannot_do_is_refused() -> None:
    mean = torch.zeros(4, requires_grad=True)
    control = KnownMean(lambda x: x, lambda dist: dist.mean)
    with pytest.raises(EstimatorError, match="expected how='score' for a control, got 'pathwise'"):
        Tape().sample(Normal(mean, 1.0), how="pathwise", control=control)
    with pytest.raises(EstimatorError, match="sample 0: Relax: expected Bernoulli or Categorical"):
        Tape(control=Relax(lambda z: z)).sample(Normal(mean, 1.0))
    tape = Tape(control=control)
    b = tape.sample(Bernoulli(logits=mean), how="expect")
    with pytest.raises(EstimatorError, match="sample 1: expected no control inside branches"):
        tape.sample(Normal(mean + b, 1.0))
    wrong = KnownMean(lambda x: x.sum(), lambda dist: dist.mean)
    with pytest.raises(EstimatorError, match=r"expected control and mean \[4\]"):
        Tape().sample(Normal(mean, 1.0), control=wrong)
    for model in (lambda x: x[:, None] ** 2, lambda x: (x > 0).float()):  # a network's; a step
        with pytest.raises(EstimatorError, match="sample 0: expected a differentiable model"):
            Tape().sample(Normal(mean, 1.0), control=DeltaMethod(model))
    tape = Tape(control=control)
    tape.add(tape.sample(Normal(mean, 1.0)))
    with pytest.raises(EstimatorError, match="expected order=1, got 2; use 'score' without a con"):
        tape.surrogate(order=2)
    with pytest.raises(EstimatorError, match=r"expected a surrogate before loss\(\)"):
        Relax(lambda z: z).loss()


def test_a_second_surrogate_of_a_tape_does_not_teach_the_control_twice() -> None:
    seen: list[Tensor] = []

    class Watched(Control):
        def __call__(self, dist: Distribution, x: Tensor):  # type: ignore[no-untyped-def]
            found = KnownMean(lambda x: 2 * x, lambda dist: 2 * dist.mean)(dist, x)
            return type(found)(found.value, found.repaid, seen.append)

    tape = Tape(control=Watched(), baseline=0.5)
    x = tape.sample(Normal(torch.zeros(3, requires_grad=True), 1.0))
    tape.add(x**2)
    tape.surrogate()
    tape.surrogate()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], x**2 - 0.5)  # the return less the baseline

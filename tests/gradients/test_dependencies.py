"""Credit by dependency, over every outcome: the same mean, and the variance that it saves."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import LeaveOneOut
from rlpg.gradients.tape import Tape

THETA = torch.tensor([0.4, -0.7, 0.9], dtype=torch.float64)
OUTCOMES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3))).double()  # [8, 3]


class Coins:
    """Three coins of which every lane has another outcome, and their probability."""

    def __init__(self, tape: Tape, declared: bool) -> None:
        self.tape, self.declared, self.drawn = tape, declared, 0
        self.prob = torch.ones(8, dtype=torch.float64)

    def draw(self, logits: Tensor, *of: Tensor) -> Tensor:
        outcome = OUTCOMES[:, self.drawn].clone()
        self.drawn += 1

        class Given(Bernoulli):
            def sample(self, sample_shape: object = None) -> Tensor:
                return outcome

        dist = Given(logits=logits)
        self.prob = self.prob * dist.log_prob(outcome).exp()
        return self.tape.sample(dist, depends_on=of if self.declared else None)

    def pay(self, term: Tensor, *of: Tensor, discount: Tensor | float = 1.0) -> None:
        self.tape.add(term, discount, depends_on=of if self.declared else None)


def apart(coins: Coins, theta: Tensor) -> None:
    x, y, z = (coins.draw(theta[:, k]) for k in range(3))
    coins.pay(2 * x, x)
    coins.pay(3 - y, y)
    coins.pay(4 * z, z)


def in_a_chain(coins: Coins, theta: Tensor) -> None:
    x = coins.draw(theta[:, 0])
    y = coins.draw(theta[:, 1] + x, x)
    z = coins.draw(theta[:, 2])
    coins.pay(x * z, x, z)
    coins.pay(5 * y, y)  # and so on x
    coins.pay(2 * z, z)


def discounted(coins: Coins, theta: Tensor) -> None:
    x = coins.draw(theta[:, 0])
    y = coins.draw(theta[:, 1])
    coins.pay(1 + x, x, discount=0.4 + 0.5 * y)
    z = coins.draw(theta[:, 2] + y, y)
    coins.pay(3 * x, x, y, discount=0.5)
    coins.pay(z, z, y)


Program = Callable[[Coins, Tensor], None]


def moments(program: Program, *, declared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Exact gradient of the objective, mean and variance of the estimator `[D]`."""
    tape = Tape("score", num_lanes=8)
    copies = tape.per_lane(THETA.clone().requires_grad_())
    coins = Coins(tape, declared)
    program(coins, copies)
    lanes = 8 * torch.autograd.grad(tape.surrogate(), copies, retain_graph=True)[0]
    mean = coins.prob.detach() @ lanes
    paid = torch.stack([event.weighted() for event in tape.events if hasattr(event, "weighted")])
    exact = torch.autograd.grad((coins.prob * paid.sum(0)).sum(), copies)[0].sum(0)
    return exact, mean, (coins.prob.detach() @ lanes.square() - mean.square())


@pytest.mark.parametrize("program", [apart, in_a_chain, discounted])
def test_the_mean_is_exact_and_the_variance_smaller(program: Program) -> None:
    exact, mean, plain = moments(program, declared=False)
    torch.testing.assert_close(mean, exact)
    exact, mean, credited = moments(program, declared=True)
    torch.testing.assert_close(mean, exact)
    assert bool((credited <= plain + 1e-12).all())
    assert float(credited.sum()) < 0.8 * float(plain.sum())


def test_the_saved_variance_in_closed_form() -> None:
    """Alone, 2 x (x - p) has the second moment 4 p q^2. With the other coins' W beside it,
    E (2 x + W)^2 (x - p)^2 = E W^2 p q + 4 E W p q^2 + 4 p q^2, and both have the mean 2 p q."""
    _, mean, plain = moments(apart, declared=False)
    _, _, credited = moments(apart, declared=True)
    p, other, last = torch.sigmoid(THETA).tolist()
    q = 1 - p
    w, w_var = 3 - other + 4 * last, other * (1 - other) + 16 * last * (1 - last)
    assert float(credited[0]) == pytest.approx(4 * p * q**2 - 4 * p**2 * q**2)
    second = (w**2 + w_var) * p * q + 4 * w * p * q**2 + 4 * p * q**2
    assert float(plain[0]) == pytest.approx(second - 4 * p**2 * q**2)
    assert float(mean[0]) == pytest.approx(2 * p * q)


def test_the_baseline_sees_what_the_node_is_credited_with() -> None:
    tape = Tape("score", baseline=LeaveOneOut())
    x = tape.sample(Normal(torch.zeros(5, requires_grad=True), 1.0))
    y = tape.sample(Normal(torch.zeros(5, requires_grad=True), 1.0), depends_on=[])
    tape.add(x, depends_on=[x])
    tape.add(100 * y, depends_on=[y])
    tape.surrogate()
    first, second = (event.subtracted for event in tape.events[:2])
    torch.testing.assert_close(first, (x.sum() - x) / 4)
    torch.testing.assert_close(second, 25 * (y.sum() - y))


def test_what_it_cannot_do_is_refused() -> None:
    mean = torch.zeros(5, requires_grad=True)
    tape = Tape("score")
    x = tape.sample(Normal(mean, 1.0))
    with pytest.raises(EstimatorError, match="term 0: expected samples of this tape in depends_on"):
        tape.add(x, depends_on=[2 * x])
    tape.add(x, depends_on=[x])
    with pytest.raises(
        EstimatorError, match="expected order=1, gae_lambda=1 and no resample where"
    ):
        tape.surrogate(order=2)
    other = Tape("score")
    with pytest.raises(EstimatorError, match="sample 0: expected samples of this tape"):
        other.sample(Normal(mean, 1.0), depends_on=[x])

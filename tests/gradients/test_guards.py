"""What a tape refuses, by name; and what it once refused, or let pass, wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Binomial,
    Categorical,
    Distribution,
    Gamma,
    Gumbel,
    Normal,
    OneHotCategoricalStraightThrough,
    Poisson,
    TransformedDistribution,
    Uniform,
)

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import LeaveOneOut, MovingAverage, Value
from rlpg.gradients.gradcheck import gradcheck
from rlpg.gradients.tape import How, Tape


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def slope(tape: Tape, theta: Tensor) -> Tensor:
    return torch.autograd.grad(tape.surrogate(), theta, retain_graph=True)[0]


# ---- refused, with the node's name -------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "make"),
    [
        ("weak", lambda p: Gamma(p, 1.0)),
        ("weak", lambda p: Categorical(torch.stack([p, p], dim=1))),
        ("biased_straight_through", lambda p: Normal(p, 1.0)),
        ("biased_straight_through", lambda p: Categorical(torch.stack([p, p], dim=1))),
        ("biased_gumbel_softmax", lambda p: Normal(p, 1.0)),
        ("pathwise", lambda p: OneHotCategoricalStraightThrough(torch.stack([p, p], dim=1))),
        ("score", lambda p: p),
    ],
)
def test_an_unsupported_distribution_is_refused_by_the_nodes_name(
    how: How, make: Callable[[Tensor], Distribution]
) -> None:
    with pytest.raises(EstimatorError, match=r"^spin: .*expected"):
        Tape(how).sample(make(leaf(0.5).expand(4)), name="spin")


@pytest.mark.parametrize("how", ["score", "combine"])
def test_a_support_that_moves_with_the_parameter_has_no_score(how: How) -> None:
    theta = leaf(0.5)
    tape = Tape(how)
    tape.add(tape.sample(Uniform(0.0, theta.expand(8)), name="width"))
    with pytest.raises(EstimatorError, match=r"^width: expected a support that does not depend"):
        tape.surrogate()


@pytest.mark.parametrize(
    ("discount", "sentence"),
    [
        (torch.ones(3), r"expected a discount \[4\]"),
        (torch.full((4,), 1.5), r"in \[0, 1\], got 1.5"),
        (torch.full((4,), torch.nan), r"in \[0, 1\], got nan"),
        (leaf(0.5), "without a gradient"),
    ],
)
def test_a_discount_that_cannot_be_one_is_refused(discount: Tensor, sentence: str) -> None:
    with pytest.raises(EstimatorError, match=f"^pay: .*{sentence}"):
        Tape().add(torch.zeros(4), discount=discount, name="pay")


def test_a_discount_of_another_kind_is_refused() -> None:
    for discount in ("0.9 a step", "0.9", [1.0] * 4, np.ones(4)):
        with pytest.raises(EstimatorError, match=r"^term 0: expected a discount in \[0, 1\], got"):
            Tape().add(torch.ones(4), discount)  # type: ignore[arg-type]
    with pytest.raises(EstimatorError, match=r"expected gae_lambda in \[0, 1\], got 2"):
        Tape(gae_lambda=2.0)


@pytest.mark.parametrize("baseline", ["leave_one_out", LeaveOneOut, np.ones(4)])
def test_a_baseline_of_another_kind_is_refused(baseline: Any) -> None:
    """A class, for one, ended in "Boolean value of Tensor is ambiguous" when it was used."""
    with pytest.raises(
        EstimatorError, match=r"^spin: expected a number, tensor, Baseline or funct"
    ):
        Tape(baseline=baseline).sample(Bernoulli(logits=leaf(0.5).expand(4)), name="spin")


def test_combine_names_the_node_whose_parameter_all_lanes_share() -> None:
    theta = leaf(0.5)
    dist = TransformedDistribution(Normal(theta.expand(8), 1.0), [AffineTransform(theta, 2.0)])
    tape = Tape("combine")
    tape.add(tape.sample(dist, name="shared") ** 2)
    with pytest.raises(EstimatorError, match=r"^shared: expected distribution parameters with 8"):
        tape.surrogate()


# ---- bugs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["affine", "gumbel"])
def test_combine_sees_the_parameters_inside_transforms(kind: str) -> None:
    """They got no gradient along the path: here 1 in place of the 2 of x = 2 theta + noise."""
    theta, lanes = leaf(0.5), 4000
    p = theta.expand(lanes)
    dist: Distribution = Gumbel(2 * p, torch.ones(lanes, dtype=torch.float64))
    if kind == "affine":
        dist = TransformedDistribution(Normal(p, 0.1), [AffineTransform(p, 1.0)])
    torch.manual_seed(0)
    tape = Tape("combine", baseline=LeaveOneOut())
    tape.add(tape.sample(dist))
    torch.testing.assert_close(slope(tape, theta), torch.full_like(theta, 2.0), rtol=0.0, atol=0.02)


def test_a_second_surrogate_subtracts_what_the_first_did() -> None:
    """It subtracted a moving average that the first had filled with the same samples."""
    theta, average = leaf(0.5), MovingAverage()
    tape = Tape(baseline=average)
    tape.add(tape.sample(Normal(theta.expand(6), 1.0)) ** 2 + 7.0)
    first = slope(tape, theta)
    learned = average.state_dict()
    assert torch.equal(slope(tape, theta), first)
    second_order = torch.autograd.grad(tape.surrogate(order=2), theta)[0]
    torch.testing.assert_close(second_order, first)
    assert average.state_dict() == learned  # its mean would not have told: the returns are the same


@pytest.mark.parametrize("order", [1, 2])
def test_a_node_after_the_last_term_may_lie_in_branches(order: int) -> None:
    theta = leaf(0.5)
    tape = Tape("expect")
    b = tape.sample(Bernoulli(logits=theta.expand(3)))
    tape.add(3.0 * b)
    tape.sample(Normal(b * theta, 1.0), how="score")
    found = torch.autograd.grad(tape.surrogate(order=order), theta)[0]
    p = theta.detach().sigmoid()
    torch.testing.assert_close(found, 3 * p * (1 - p))


def test_gae_stands_in_for_a_branch_with_the_branchs_weight() -> None:
    """Every branch got the whole value. With lambda 0 and an exact value of the state the credit of
    the score node before the branches is exact, whatever is drawn in them."""
    theta, gradients = leaf(0.5), []
    q = theta.detach().sigmoid()
    for bit in (0.0, 1.0):

        class Scripted(Bernoulli):
            drawn = bit

            def sample(self, sample_shape: object = None) -> Tensor:
                return torch.full((3,), self.drawn, dtype=torch.float64)

        tape = Tape(gae_lambda=0.0)
        a = tape.sample(Scripted(logits=theta.expand(3)), name="a")
        b = tape.sample(Bernoulli(logits=torch.zeros(3, dtype=torch.float64)), how="expect")
        value = 2.0 * a + 0.5  # of the state before c, whose c is 0 on average
        c = tape.sample(Normal(theta.detach().expand(2, 3) * 0.0 + 0 * theta, 1.0), baseline=value)
        tape.add(2.0 * a + b + c)
        gradients.append(slope(tape, theta))
    # E over a of (2 a + 0.5) d log p(a): 2 q (1 - q); c itself has no effect on average.
    mean = (1 - q) * gradients[0] + q * gradients[1]
    torch.testing.assert_close(mean, 2 * q * (1 - q))


@pytest.mark.parametrize("seed", range(5))
def test_a_function_that_leaves_one_out_by_subtraction_is_no_false_alarm(seed: int) -> None:
    torch.manual_seed(seed)
    theta = torch.tensor(0.5, requires_grad=True)
    tape = Tape(baseline=lambda returns: (returns.sum() - returns) / (len(returns) - 1))
    tape.add(100.0 * tape.sample(Normal(theta.expand(777), 1.0)) ** 2 + 3.0)
    tape.surrogate()


@pytest.mark.parametrize("constant", [0.5, torch.tensor(0.5)])
def test_a_function_may_return_one_number(constant: Tensor | float) -> None:
    theta = leaf(0.5)
    surrogates = []
    for baseline in (lambda returns: constant, 0.5):
        torch.manual_seed(0)
        tape = Tape(baseline=baseline)
        tape.add(tape.sample(Normal(theta.expand(6), 1.0)) ** 2)
        surrogates.append(slope(tape, theta))
    torch.testing.assert_close(*surrogates)


def test_a_value_networks_loss_stays_out_of_what_led_to_the_state() -> None:
    theta, value = leaf(0.5), Value(nn.Linear(1, 1).double())
    tape = Tape()
    state = tape.sample(Normal(theta.expand(6), 1.0), how="pathwise")
    action = tape.sample(Normal(theta * state, 1.0), baseline=value.at(state[:, None]))
    tape.add(action**2 + state)
    tape.surrogate().backward()
    before = theta.grad.clone() if theta.grad is not None else None
    value.loss().backward()  # the graph of the state is gone by now
    assert before is not None
    assert torch.equal(before, theta.grad)  # type: ignore[arg-type]
    assert float(value.net.weight.grad.abs().sum()) > 0  # type: ignore[union-attr, operator]


def test_gradcheck_takes_a_sample_that_bounds_the_next() -> None:
    """Its probe for coupled lanes asked for the probability of more successes than trials."""
    theta = leaf(2.0, 0.4)

    def thinned(tape: Tape, lanes: int) -> None:
        trials = tape.sample(Poisson(theta[0].expand(lanes)), name="trials")
        tape.add(tape.sample(Binomial(trials, theta[1].expand(lanes))))

    exact = torch.tensor([0.4, 2.0], dtype=torch.float64)
    maker = lambda: Tape(baseline=LeaveOneOut())  # noqa: E731
    gradcheck(thinned, theta, maker, against=exact, resolution=0.1)

    def coupled(tape: Tape, lanes: int) -> None:
        trials = tape.sample(Poisson(theta[0].expand(lanes)), name="trials")
        successes = tape.sample(Binomial(trials, theta[1].expand(lanes)), name="successes")
        tape.add(successes - successes.mean() * trials)

    with pytest.raises(EstimatorError, match="expected independent lanes"):
        gradcheck(coupled, theta, maker)


@pytest.mark.parametrize("seed", range(4))
def test_a_loop_that_lane_0_makes_longer_was_taken_for_coupled_lanes(seed: int) -> None:
    # A term of one run stood beside a log-probability of the other. Tosses until heads: 1 / p.
    theta = leaf(0.4)

    def loop(tape: Tape, lanes: int) -> None:
        goes_on = torch.ones(lanes, dtype=torch.bool)
        while goes_on.any():
            heads = tape.sample(Bernoulli(logits=theta.expand(lanes)))
            tape.add(goes_on.double())
            goes_on = goes_on & (heads == 0)

    p = torch.sigmoid(theta.detach())
    maker = lambda: Tape(baseline=LeaveOneOut())  # noqa: E731
    exact = -(1 - p) / p
    gradcheck(loop, theta, maker, against=exact, num_lanes=4, resolution=0.5, seed=seed)


@pytest.mark.parametrize("how", ["maker", "node"])
def test_lanes_may_meet_along_a_path_however_it_is_asked_for(how: str) -> None:
    """A tape's maker, or a node, that says "pathwise" was refused and told to."""
    theta = leaf(0.4)

    def batch(tape: Tape, lanes: int, scored: bool = False) -> None:
        x = tape.sample(Normal(theta.expand(lanes), 1.0), "pathwise" if how == "node" else None)
        coin = tape.sample(Bernoulli(logits=x.detach()), "score") if scored else 0.0
        tape.add((x - x.mean() + theta) ** 2 + (coin - 0.5) ** 2 * x)
        if scored:
            tape.add((coin - coin.mean()) ** 2)  # type: ignore[union-attr]

    maker = "score" if how == "node" else lambda: Tape("pathwise")
    gradcheck(batch, theta, maker)  # type: ignore[arg-type]
    with pytest.raises(EstimatorError, match="sample 1: expected independent lanes"):
        gradcheck(lambda tape, lanes: batch(tape, lanes, True), theta, maker)  # type: ignore[arg-type]


def test_gradcheck_takes_a_path_without_a_density() -> None:
    class Sampler(Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            raise NotImplementedError

    theta = leaf(0.4)

    def program(tape: Tape, lanes: int) -> None:
        x = tape.sample(Sampler(theta.expand(lanes), 1.0), "pathwise")
        tape.add(x * tape.sample(Bernoulli(logits=x)))

    gradcheck(program, theta, lambda: Tape(baseline=LeaveOneOut()), resolution=0.2)


def test_gradcheck_takes_own_noise_after_draws_of_varying_cost() -> None:
    theta = leaf(1.5)

    def noisy(tape: Tape, lanes: int) -> None:
        first = tape.sample(Gamma(theta.expand(lanes), 1.0))
        second = tape.sample(Gamma(first + 0.1, theta.expand(lanes)))
        tape.add(torch.tanh(second + torch.randn(lanes, dtype=torch.float64)))

    maker = lambda: Tape(baseline=LeaveOneOut())  # noqa: E731
    gradcheck(noisy, theta, maker, against="score", resolution=0.3)


@pytest.mark.parametrize("after_compiling", [False, True])
def test_gradcheck_shortens_a_step_that_leaves_a_parameters_range(
    after_compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first torch.compile of a process turns off the checks by which the range is known.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", not after_compiling)
    theta = leaf(0.01)

    def narrow(tape: Tape, lanes: int) -> None:
        z = tape.sample(Normal(torch.zeros(lanes, dtype=torch.float64), theta.expand(lanes)))
        tape.add((50 * z) ** 2)

    gradcheck(narrow, theta, "pathwise", resolution=0.1)
    assert theta.tolist() == [0.01]

    def nowhere(tape: Tape, lanes: int) -> None:
        if theta.item() != 0.01:
            raise ValueError
        narrow(tape, lanes)

    with pytest.raises(EstimatorError, match="choose a smaller step"):
        gradcheck(nowhere, theta, "pathwise")

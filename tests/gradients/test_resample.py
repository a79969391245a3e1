"""Lanes that meet in their mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import LeaveOneOut
from rlpg.gradients.events import Node
from rlpg.gradients.tape import How, Tape

START = torch.tensor([0.4, 0.7, 1.2], dtype=torch.float64)  # mean, scale, weight of the network
LANES = 3  # the fewest: what is forgotten of N / (N - 1) is most there


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def program(tape: Tape, theta: Tensor, lanes: int = LANES) -> None:
    """Two resamples, a linear network before each and after the last, a quadratic cost."""
    x = tape.sample(Normal(theta[0].expand(lanes), theta[1].expand(lanes)))
    tape.add(0.5 * x)
    for _ in range(2):
        x = tape.resample(theta[2] * x + 0.3)
    tape.add(-((theta[2] * x - 1.0) ** 2))


def exact(theta: Tensor) -> Tensor:
    """The objective with N lanes, exactly: an empirical mean M has E M^2 = E[M]^2 + var / N, and a
    resampled batch of mean M, variance V has mean M and lanes of variance V around it."""
    second = theta[1] ** 2  # E V, the expected sample variance of the batch
    mean, mean_square = theta[0], theta[0] ** 2 + theta[1] ** 2 / LANES  # of the batch's mean
    income = 0.5 * mean
    for _ in range(2):
        w, b = theta[2], 0.3
        mean_square = w**2 * mean_square + 2 * w * b * mean + b**2
        mean, second = w * mean + b, w**2 * second
        mean_square = mean_square + second / LANES  # mean of the new batch around the old mean
    w = theta[2]
    square = mean_square + second * (1 - 1 / LANES)  # E x^2 of one lane
    return income - (w**2 * square - 2 * w * mean + 1.0)


def z_scores(how: How, run: Callable[[Tape, Tensor], None], want: Tensor, repeats: int) -> Tensor:
    found = []
    for _ in range(repeats):
        theta = START.clone().requires_grad_()
        tape = Tape(how)
        run(tape, theta)
        tape.surrogate().backward()
        assert theta.grad is not None
        found.append(theta.grad)
    batch = torch.stack(found)
    return (batch.mean(0) - want) / (batch.std(0) / math.sqrt(repeats))


@pytest.mark.parametrize("how", ["pathwise", "score"])
def test_linear_network_is_exactly_unbiased(how: How) -> None:
    want = torch.autograd.functional.jacobian(exact, START)
    assert z_scores(how, program, want, 600).abs().max() < 4


def test_pathwise_samples_between_score_nodes_carry_the_shaped_reward() -> None:
    def mixed(tape: Tape, theta: Tensor) -> None:
        x = tape.sample(Normal(theta[0].expand(LANES), theta[1].expand(LANES)), how="score")
        tape.add(0.5 * x)
        x = tape.resample(theta[2] * x + 0.3, how="pathwise")
        x = tape.resample(theta[2] * x + 0.3, how="score")
        tape.add(-((theta[2] * x - 1.0) ** 2))

    want = torch.autograd.functional.jacobian(exact, START)
    assert z_scores("score", mixed, want, 600).abs().max() < 4


@pytest.mark.parametrize("how", ["pathwise", "score"])
def test_the_discount_reaches_beyond_a_resample(how: How) -> None:
    # x ~ N(m, s^2) pays x / 2; after the discount, the resampled x pays -(w x - 1)^2. A resampled
    # lane has E x^2 = m^2 + s^2 / N (of the mean) + s^2 / N (of the new mean) + s^2 (1 - 1 / N).
    def run(tape: Tape, theta: Tensor) -> None:
        x = tape.sample(Normal(theta[0].expand(LANES), theta[1].expand(LANES)))
        tape.add(0.5 * x, discount=0.4)
        tape.add(0.2 * x, discount=0.5)
        x = tape.resample(x)
        tape.add(-((theta[2] * x - 1.0) ** 2))

    def objective(theta: Tensor) -> Tensor:
        m, s, w = theta
        square = m**2 + s**2 + s**2 / LANES
        return 0.5 * m + 0.4 * 0.2 * m - 0.2 * (w**2 * square - 2 * w * m + 1.0)

    want = torch.autograd.functional.jacobian(objective, START)
    assert z_scores(how, run, want, 600).abs().max() < 4


@pytest.mark.parametrize("how", ["score", "pathwise"])
def test_a_discount_before_a_resample_was_not_that_of_what_comes_after_it(how: How) -> None:
    """Discounting by hand, with the discount in the term itself, gives the same gradient."""

    def gradient(is_by_hand: bool) -> Tensor:
        torch.manual_seed(3)
        theta = START.clone().requires_grad_()
        tape, rest = Tape(how), 1.0
        x = tape.sample(Normal(theta[0].expand(LANES), theta[1].expand(LANES)), how="score")
        for discount in (0.5, 0.8):
            term = 0.5 * x
            tape.add(rest * term if is_by_hand else term, 1.0 if is_by_hand else discount)
            rest *= discount
            x = tape.resample(theta[2] * x + 0.3)
        term = -((theta[2] * x - 1.0) ** 2)
        tape.add(rest * term if is_by_hand else term)
        tape.surrogate().backward()
        assert theta.grad is not None
        return theta.grad

    torch.testing.assert_close(gradient(False), gradient(True), rtol=1e-10, atol=1e-12)


def test_baseline_of_earlier_nodes_leaves_the_shaped_reward_alone() -> None:
    # The shaped rewards sum to almost 0: leaving one out of them would scale them by N / (N - 1).
    def with_baseline(tape: Tape, theta: Tensor) -> None:
        dist = Normal(theta[0].expand(LANES), theta[1].expand(LANES))
        x = tape.sample(dist, baseline=LeaveOneOut())
        tape.add(0.5 * x)
        for _ in range(2):
            x = tape.resample(theta[2] * x + 0.3)
        tape.add(-((theta[2] * x - 1.0) ** 2))

    want = torch.autograd.functional.jacobian(exact, START)
    assert z_scores("score", with_baseline, want, 600).abs().max() < 4


def test_what_lies_beyond_a_resample_is_not_in_the_return_of_a_node_before_it() -> None:
    """A lane's own later terms would count twice, once more by the shaped reward: off by 1 / N."""
    theta = START.clone().requires_grad_()
    tape = Tape("score", baseline=LeaveOneOut())
    x = tape.sample(Normal(theta[0].expand(LANES), theta[1].expand(LANES)))
    tape.add(0.5 * x)
    tape.add(100 * tape.resample(theta[2] * x))
    tape.surrogate()
    (first,) = (event for event in tape.events[:1] if isinstance(event, Node))
    torch.testing.assert_close(first.subtracted, 0.5 * (x.sum() - x) / (LANES - 1))


def test_value_is_the_finite_objective_not_the_infinite_one() -> None:
    values = []
    for _ in range(600):  # the infinite one is more than 5 standard errors away
        tape = Tape("pathwise")
        program(tape, START.clone().requires_grad_(), LANES)
        values.append(tape.surrogate().detach())
    batch = torch.stack(values)
    assert abs(float((batch.mean() - exact(START)) / (batch.std() / math.sqrt(len(values))))) < 4


def test_what_cannot_be_resampled_is_refused() -> None:
    mean = torch.tensor(0.0, requires_grad=True)
    tape = Tape("expect")
    x = tape.sample(Bernoulli(logits=mean.expand(4)))
    with pytest.raises(EstimatorError, match="expected 'score' and 'pathwise' nodes before it"):
        tape.resample(x, how="score")
    tape = Tape("combine")
    x = tape.sample(Normal(mean.expand(4), 1.0))
    with pytest.raises(EstimatorError, match="expected 'score' and 'pathwise' nodes before it"):
        tape.resample(x, how="score")
    with pytest.raises(EstimatorError, match="expected how='score' or 'pathwise', got 'combine'"):
        tape.resample(x)
    with pytest.raises(EstimatorError, match="cloud: expected at least 3 lanes, got 2"):
        Tape().resample(torch.zeros(2), name="cloud")
    with pytest.raises(EstimatorError, match="got a standard deviation of 0"):
        Tape().resample(torch.zeros(4))
    tape = Tape()
    tape.add(tape.resample(torch.randn(4) * mean.exp()))
    with pytest.raises(EstimatorError, match="expected order=1, got 2"):
        tape.surrogate(order=2)

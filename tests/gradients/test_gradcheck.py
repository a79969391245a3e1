"""gradcheck passes what is right, and names each classic mistake."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Exponential,
    Independent,
    LogNormal,
    MixtureSameFamily,
    Normal,
    Poisson,
    Uniform,
)

from rlpg.errors import EstimatorError, InconclusiveError
from rlpg.gradients.baselines import (
    Baseline,
    Lanes,
    LeaveOneOut,
    MovingAverage,
    OptimalConstant,
    Samples,
)
from rlpg.gradients.compare import compare
from rlpg.gradients.controls import KnownMean, Relax
from rlpg.gradients.draws import antithetic, sobol
from rlpg.gradients.experiment import TapeMaker
from rlpg.gradients.gradcheck import gradcheck
from rlpg.gradients.tape import How, Tape


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def quadratic(theta: Tensor) -> Callable[[Tape, int], None]:
    """E (z - 1)^2 with z ~ N(mean, scale): gradient 2 (mean - 1), 2 scale."""

    def problem(tape: Tape, lanes: int) -> None:
        z = tape.sample(Normal(theta[0].expand(lanes), theta[1].expand(lanes)), name="z")
        tape.add((z - 1.0) ** 2)

    return problem


def chain(theta: Tensor, steps: int = 4) -> Callable[[Tape, int], None]:
    def problem(tape: Tape, lanes: int) -> None:
        x = torch.full((lanes,), 1.0, dtype=torch.float64)
        for _ in range(steps):
            x = tape.sample(Normal(theta[0] * x, theta[1].expand(lanes)))
            tape.add(-(x**2), discount=0.7)

    return problem


# ---- right ones pass ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["score", "pathwise", "combine", "weak"])
def test_right_estimators_pass_against_every_reference(how: How) -> None:
    theta = leaf(0.5, 0.8)
    exact = torch.tensor([2 * (0.5 - 1), 2 * 0.8], dtype=torch.float64)
    gradcheck(quadratic(theta), theta, how, against=exact, resolution=0.1)
    found = gradcheck(quadratic(theta), theta, how, resolution=0.1)
    torch.testing.assert_close(found.reference, exact, rtol=0.1, atol=0.05)
    gradcheck(quadratic(theta), theta, how, against="score", resolution=0.1)
    assert theta.tolist() == [0.5, 0.8]
    assert theta.grad is None
    assert "gradient agrees in 2 directions" in str(found)


@pytest.mark.parametrize(
    "baseline", [0.5, LeaveOneOut(), OptimalConstant(), MovingAverage()], ids=lambda b: str(type(b))
)
def test_right_baselines_pass_where_a_wrong_one_would_show(baseline: Baseline | float) -> None:
    theta = leaf(0.5, 0.8)
    maker = lambda: Tape("score", baseline=baseline)  # noqa: E731
    gradcheck(quadratic(theta), theta, maker, num_lanes=2, resolution=0.45, max_repeats=20_000)


def test_episodes_with_discount_pass() -> None:
    theta = leaf(0.9, 0.5)
    maker = lambda: Tape("score", baseline=LeaveOneOut())  # noqa: E731
    gradcheck(chain(theta), theta, maker, resolution=0.1)
    gradcheck(chain(theta), theta, "pathwise")


def test_enumeration_is_checked_without_noise() -> None:
    theta = leaf(-1.5)

    def problem(tape: Tape, lanes: int) -> None:
        b = tape.sample(Bernoulli(logits=theta.expand(lanes)))
        tape.add((b - 0.45) ** 2)

    found = gradcheck(problem, theta, "expect", num_lanes=3, tolerance=1e-6, resolution=1e-6)
    p = 1 / (1 + math.exp(1.5))
    assert float(found.estimate) == pytest.approx(p * (1 - p) * (0.55**2 - 0.45**2))


def test_many_parameters_are_checked_along_random_directions() -> None:
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)

    def problem(tape: Tape, lanes: int) -> None:
        state = torch.ones(lanes, 2, dtype=torch.float64)
        action = tape.sample(Normal(net(state)[:, 0], 0.5))
        tape.add(-((action - 0.3) ** 2))

    maker = lambda: Tape("score", baseline=LeaveOneOut())  # noqa: E731
    found = gradcheck(problem, dict(net.named_parameters()), maker, resolution=0.1)
    assert len(found.estimate) == 12


@pytest.mark.parametrize("how", ["score", "pathwise"])
def test_second_derivatives_pass(how: How) -> None:
    theta = leaf(0.5, 0.8)
    maker = lambda: Tape(how, baseline=LeaveOneOut() if how == "score" else None)  # noqa: E731
    gradcheck(quadratic(theta), theta, maker, order=2, resolution=0.15, num_lanes=4000)


def test_the_global_random_numbers_are_left_as_they_were() -> None:
    theta = leaf(0.5, 0.8)
    before = torch.random.get_rng_state()
    gradcheck(quadratic(theta), theta, "pathwise")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("spread", [antithetic, sobol])
def test_bug_a_maker_that_draws_moved_the_global_random_numbers(spread: Any) -> None:
    theta = leaf(0.5, 0.8)

    def make() -> Tape:
        return Tape("pathwise", uniforms=spread(64, 1, torch.float64))

    before = torch.random.get_rng_state()
    gradcheck(quadratic(theta), theta, make, num_lanes=64, resolution=0.5)
    compare(quadratic(theta), theta, {"spread": make}, num_lanes=64, repeats=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_bug_differences_forgot_the_temperature_of_the_tape() -> None:
    """Of a node that says itself that it is relaxed: its objective is that of the relaxed one."""
    theta = leaf(0.5)

    def relaxed(tape: Tape, lanes: int) -> None:
        coin = Bernoulli(logits=theta.expand(lanes))
        tape.add(tape.sample(coin, "biased_gumbel_softmax") ** 2)

    gradcheck(relaxed, theta, lambda: Tape(temperature=2.0))


@pytest.mark.parametrize("how", ["expect", "weak", "disarm", "without_replacement"])
@pytest.mark.parametrize("is_made", [False, True])
def test_bug_differences_were_taken_without_the_branches_of_the_tape(
    how: How, is_made: bool
) -> None:
    """A program that uses its K points was said to have a distribution that refuses parameters."""
    logits = leaf(0.4, -0.2, 0.1)

    def points(tape: Tape, lanes: int) -> None:
        x = Categorical(logits=logits.expand(lanes, 3))
        coin = Bernoulli(logits=logits[0].expand(lanes))
        drawn = tape.sample(coin if how in ("weak", "disarm") else x).double()
        _, width = drawn.shape  # [K, lanes]
        tape.add(drawn.reshape(-1, width) ** 2)

    gradcheck(points, logits, (lambda: Tape(how)) if is_made else how, resolution=0.2)


def test_bug_a_wrong_program_that_uses_its_branches_ended_in_an_error_of_its_own() -> None:
    logits = leaf(0.4, -0.2, 0.1)

    def wrong(tape: Tape, lanes: int) -> Tensor:
        x = tape.sample(Categorical(logits=logits.expand(lanes, 3)), "expect")
        _, width = x.shape  # [3, lanes]
        tape.add(x.reshape(3, width).double())
        return -(logits.softmax(0) * torch.arange(3.0)).sum()

    with pytest.raises(EstimatorError, match=r"^gradcheck: expected .* is -1 times the right one"):
        gradcheck(wrong, logits)


# ---- classic mistakes --------------------------------------------------------------------------


class FollowingAverage(Baseline):
    """A moving average that takes the current returns in first."""

    def __init__(self) -> None:
        self.mean = 0.0

    def __call__(self, samples: Samples, returns: Tensor) -> Tensor:
        for value in returns[0].tolist():
            self.mean = 0.5 * self.mean + 0.5 * value
        return torch.full_like(returns, self.mean)


class GroupMean(Baseline):
    def __call__(self, samples: Samples, returns: Tensor) -> Tensor:
        return returns.mean().expand_as(returns)


class InSampleOptimal(Baseline):
    def __call__(self, samples: Samples, returns: Tensor) -> Tensor:
        assert isinstance(samples, Lanes)
        square = samples.score_square()
        return ((square * returns).sum() / square.sum()).expand_as(returns)


@pytest.mark.parametrize(
    ("baseline", "lanes"), [(FollowingAverage, 1), (GroupMean, 2), (InSampleOptimal, 3)]
)
def test_baselines_that_contain_their_sample(baseline: type[Baseline], lanes: int) -> None:
    theta = leaf(0.5)

    def problem(tape: Tape, lanes: int) -> None:
        z = tape.sample(Normal(theta.expand(lanes), 1.0))
        tape.add((z - 2.0) ** 2)

    one = baseline()
    with pytest.raises(EstimatorError, match="the baseline of 'sample 0' depends on the re"):
        gradcheck(
            problem,
            theta,
            lambda: Tape(baseline=one),
            num_lanes=lanes,
            resolution=0.02,
            max_repeats=20_000,
        )


def by_hand(
    theta: Tensor, surrogate: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tape, int], Tensor]:
    """Four discounted steps on the tape, and a surrogate of (log_prob, reward), both [T, lanes]."""

    def problem(tape: Tape, lanes: int) -> Tensor:
        log_probs, rewards = [], []
        x = torch.full((lanes,), 1.0, dtype=torch.float64)
        for _ in range(4):
            dist = Normal(theta[0] * x + theta[1], 0.5)
            x = tape.sample(dist)
            log_probs.append(dist.log_prob(x))
            rewards.append(-((x - 1.5) ** 2))
            tape.add(rewards[-1], discount=0.5)
        return surrogate(torch.stack(log_probs), torch.stack(rewards))

    return problem


def exact(theta: Tensor) -> Tensor:
    """The gradient of that program: its states are Gaussian, its rewards quadratic."""
    mean, variance, objective = torch.ones(()), torch.zeros(()), torch.zeros(())
    for step in range(4):
        mean, variance = theta[0] * mean + theta[1], theta[0] ** 2 * variance + 0.5**2
        objective = objective - 0.5**step * ((mean - 1.5) ** 2 + variance)
    return torch.autograd.grad(objective, theta)[0]


GAMMAS = 0.5 ** torch.arange(4, dtype=torch.float64)[:, None]  # [T, 1]


def to_go(reward: Tensor) -> Tensor:
    """`[T, lanes]` of gamma^t times reward-to-go, less the mean over all other lanes."""
    total = (GAMMAS * reward).flip(0).cumsum(0).flip(0)
    return total - (total.sum(1, keepdim=True) - total) / (total.shape[1] - 1)


def test_a_right_surrogate_by_hand_passes() -> None:
    theta = leaf(0.6, 0.3)
    right = by_hand(theta, lambda log_prob, reward: (log_prob * to_go(reward)).sum(0).mean())
    gradcheck(right, theta, resolution=0.1)


def test_mean_log_prob_times_summed_returns() -> None:
    theta = leaf(0.6, 0.3)

    def wrong(log_prob: Tensor, reward: Tensor) -> Tensor:
        total = to_go(reward)[0]
        return (log_prob.mean(0) * total).mean()

    with pytest.raises(EstimatorError, match="log_prob is averaged over the 4 samples of a lane"):
        gradcheck(by_hand(theta, wrong), theta, against=exact(theta))


def test_dropped_discount_weight() -> None:
    theta = leaf(0.6, 0.3)
    wrong = by_hand(
        theta, lambda log_prob, reward: (log_prob * to_go(reward) / GAMMAS).sum(0).mean()
    )
    with pytest.raises(EstimatorError, match=r"gradient without the weight gamma\^t"):
        gradcheck(wrong, theta, against=exact(theta))


def test_wrong_sign() -> None:
    theta = leaf(0.6, 0.3)
    wrong = by_hand(theta, lambda log_prob, reward: -(log_prob * to_go(reward)).sum(0).mean())
    with pytest.raises(EstimatorError, match="the minus sign belongs to the optimizer"):
        gradcheck(wrong, theta, against=exact(theta))


@pytest.mark.parametrize("lanes", [1, 400])
@pytest.mark.parametrize(
    ("of_log_probs", "sentence"),
    [
        (lambda coin, step: -(coin + step), "the minus sign belongs to the optimizer"),
        (lambda coin, step: (coin + step) / 2, "averaged over the 2 samples of a lane"),
    ],
)
def test_bug_no_cause_was_named_beside_a_coin_or_in_one_lane(
    lanes: int, of_log_probs: Callable[[Tensor, Tensor], Tensor], sentence: str
) -> None:
    """Coins have no rsample, and one lane has no others: one mistake that could not be made on
    purpose kept all of them from being made."""
    theta = leaf(0.6, 0.3)

    def wrong(tape: Tape, lanes: int) -> Tensor:
        coin = Bernoulli(logits=theta[0].expand(lanes))
        a = tape.sample(coin)
        step = Normal(theta[1] * a, 1.0)
        x = tape.sample(step)
        tape.add(3.0 * x + a)
        return ((3.0 * x + a) * of_log_probs(coin.log_prob(a), step.log_prob(x))).mean()

    p = torch.sigmoid(theta.detach()[0])
    right = torch.stack([p * (1 - p) * 1.9, 3.0 * p])  # of p + 3 p theta_1
    with pytest.raises(EstimatorError, match=sentence):
        gradcheck(wrong, theta, against=right, num_lanes=lanes, resolution=0.3, max_repeats=8192)


def test_bug_rsample_with_log_prob_was_not_named_beside_a_coin() -> None:
    theta = leaf(0.6, 0.3)

    def wrong(tape: Tape, lanes: int) -> Tensor:
        coin = Bernoulli(logits=theta[0].expand(lanes))
        a = tape.sample(coin)
        step = Normal(theta[1] * a, 1.0)
        x = tape.sample(step, how="pathwise")
        tape.add(3.0 * x + a)
        paid = (3.0 * x + a).detach()
        return (paid * (coin.log_prob(a) + step.log_prob(x))).mean()

    with pytest.raises(EstimatorError, match="log_prob at a reparametrized sample"):
        gradcheck(wrong, theta)


def test_rsample_with_log_prob() -> None:
    theta = leaf(0.5, 0.8)

    def problem(tape: Tape, lanes: int) -> Tensor:
        dist = Normal(theta[0].expand(lanes), theta[1].expand(lanes))
        z = tape.sample(dist, how="pathwise")
        cost = (z.detach() - 1.0) ** 2
        tape.add((z - 1.0) ** 2)
        return (dist.log_prob(z) * cost).mean()

    with pytest.raises(EstimatorError, match="log_prob at a reparametrized sample"):
        gradcheck(problem, theta)


def test_pathwise_through_a_step_function() -> None:
    theta = leaf(0.5, 0.8)

    def digital(tape: Tape, lanes: int) -> None:
        z = tape.sample(Normal(theta[0].expand(lanes), theta[1].expand(lanes)), name="price")
        tape.add((z > 1.0).double() * theta[0])

    with pytest.raises(EstimatorError, match="price: expected terms that carry the gradient"):
        gradcheck(digital, theta, "pathwise")
    gradcheck(digital, theta, "score", num_lanes=4000, resolution=0.1)

    def hidden(tape: Tape, lanes: int) -> None:
        z = tape.sample(Normal(theta[0].expand(lanes), theta[1].expand(lanes)))
        tape.add((z > 1.0).double() + 0.0 * z)  # the zero hides the cut from the tape

    with pytest.raises(EstimatorError, match="the gradient is 0 in every repeat"):
        gradcheck(hidden, theta, "pathwise")

    def half(tape: Tape, lanes: int) -> None:
        z = tape.sample(Normal(theta[0].expand(lanes), theta[1].expand(lanes)))
        tape.add(torch.where(z > 1.0, z + 1.0, 0.0))

    with pytest.raises(EstimatorError, match="along the samples' paths, with their random numbers"):
        gradcheck(half, theta, "pathwise")


def test_autodiff_gamma_of_a_call() -> None:
    spot = leaf(1.0)

    def call(tape: Tape, lanes: int) -> None:
        growth = tape.sample(Normal(torch.zeros(lanes, dtype=torch.float64), 0.2))
        price = spot * torch.exp(growth - 0.02)
        tape.add((price - 1.0).clamp(min=0.0))

    gradcheck(call, spot, "pathwise")
    with pytest.raises(EstimatorError, match="first derivative moves where autodiff says"):
        gradcheck(call, spot, "pathwise", order=2, resolution=0.1)


def test_torch_normal_with_gradient_inputs() -> None:
    theta = leaf(0.5, 0.8)

    def problem(tape: Tape, lanes: int) -> None:
        z = tape.sample(Normal(theta[0].expand(lanes), 1.0), how="pathwise")
        y = torch.normal(z, theta[1].expand(lanes))
        tape.add(y**2 + z)

    with pytest.raises(EstimatorError, match=r"torch\.normal was called with"):
        gradcheck(problem, theta, "pathwise")


@pytest.mark.parametrize("how", [name for name in get_args(How) if name.startswith("biased")])
def test_biased_estimators_are_found_out(how: How) -> None:
    theta = leaf(-1.5)

    def problem(tape: Tape, lanes: int) -> None:
        b = tape.sample(Bernoulli(logits=theta.expand(lanes)))
        tape.add((b - 0.45) ** 2)

    exact = 0.14914645207 * 0.1
    with pytest.raises(EstimatorError, match=r"gradcheck: expected 0\.0149"):
        gradcheck(problem, theta, how, against=[torch.tensor([exact], dtype=torch.float64)])


def test_lanes_that_meet_in_a_batch_statistic() -> None:
    theta = leaf(0.5, 0.8)

    def problem(tape: Tape, lanes: int) -> None:
        z = tape.sample(Normal(theta[0].expand(lanes), theta[1].expand(lanes)), name="cloud")
        tape.add((z - z.mean()) ** 2)

    with pytest.raises(EstimatorError, match="cloud: expected independent lanes"):
        gradcheck(problem, theta, "score", num_lanes=20)
    gradcheck(problem, theta, "pathwise", num_lanes=20)


@pytest.mark.parametrize("how", ["score", "pathwise", "combine"])
def test_a_program_may_differentiate_on_its_way(how: How) -> None:
    theta = leaf(0.5, 0.8)

    def problem(tape: Tape, lanes: int) -> None:
        """A step of Langevin dynamics in the potential theta x^4 / 4."""
        x = tape.sample(Normal(theta[0].expand(lanes), 0.6))
        x = x if x.requires_grad else x.requires_grad_()
        (slope,) = torch.autograd.grad((theta[1] * x**4 / 4).sum(), x, create_graph=True)
        tape.add(tape.sample(Normal(x - 0.2 * slope, 0.5)))

    m, s = theta.detach()
    third = m**3 + 3 * m * 0.6**2  # E x^3
    exact = torch.stack([1 - 0.6 * s * (m**2 + 0.6**2), -0.2 * third])
    gradcheck(problem, theta, how)
    gradcheck(problem, theta, how, against=exact)
    compare(problem, theta, [how], num_lanes=50, repeats=4)


def test_noise_that_hides_a_bias_is_neither_agreement_nor_a_mistake() -> None:
    theta = leaf(0.5, 0.8)
    with pytest.raises(InconclusiveError, match="got noise that hides up to"):
        gradcheck(quadratic(theta), theta, num_lanes=10, max_repeats=64, resolution=0.01)
    wrong = by_hand(theta, lambda log_prob, reward: -(log_prob * to_go(reward)).sum(0).mean())
    with pytest.raises(EstimatorError) as caught:
        gradcheck(wrong, theta, against=exact(theta))
    assert not isinstance(caught.value, InconclusiveError)


# ---- no cause is named that was not tested -----------------------------------------------------


def test_a_program_that_overwrites_its_buffers_is_right_and_so_is_the_reference() -> None:
    theta, buffer = leaf(0.5, 0.8), torch.zeros(1000, dtype=torch.float64)

    def problem(tape: Tape, lanes: int) -> None:
        for k in range(2):
            z = tape.sample(Normal(theta[0].expand(lanes), theta[1].expand(lanes)))
            tape.add(buffer.copy_((1 + k) * z**2))

    gradcheck(problem, theta, lambda: Tape(baseline=LeaveOneOut()), resolution=0.2)


NOT_KNOWN = "so what is wrong is not known|none of the mistakes known here"
Surrogate = Callable[[Tensor, Tensor], Tensor]
G = GAMMAS
MISTAKES: dict[str, tuple[Surrogate, str]] = {
    # name: surrogate of log_prob and reward, both [T, lanes]; what may be said
    "wrong axis": (
        lambda log_prob, reward: (
            (log_prob * (G * reward).cumsum(1) / torch.arange(1, 1001)).sum(0).mean()
        ),
        NOT_KNOWN,
    ),
    "past rewards": (
        lambda log_prob, reward: (log_prob * (G * reward).cumsum(0)).sum(0).mean(),
        NOT_KNOWN,
    ),
    "immediate rewards": (
        lambda log_prob, reward: (log_prob * G * reward).sum(0).mean(),
        NOT_KNOWN,
    ),
    "mean over valid steps": (
        lambda log_prob, reward: (log_prob * to_go(reward)).sum() / (reward < -0.1).sum(),
        NOT_KNOWN,
    ),
    "standardized": (
        lambda log_prob, reward: (
            (log_prob * (to_go(reward) - to_go(reward).mean()) / to_go(reward).std()).sum(0).mean()
        ),
        NOT_KNOWN,
    ),
    "half": (
        lambda log_prob, reward: 0.5 * (log_prob * to_go(reward)).sum(0).mean(),
        NOT_KNOWN,
    ),
    "last step dropped": (
        lambda log_prob, reward: (log_prob[:-1] * to_go(reward)[:-1]).sum(0).mean(),
        NOT_KNOWN,
    ),
    "discount twice": (
        lambda log_prob, reward: (log_prob * G * to_go(reward)).sum(0).mean(),
        NOT_KNOWN,
    ),
    "summed over lanes": (
        lambda log_prob, reward: (log_prob * to_go(reward)).sum(),
        "that is the number of lanes: a sum over the 1000 lanes",
    ),
    "averaged over steps": (
        lambda log_prob, reward: (log_prob * to_go(reward)).mean(),
        "log_prob is averaged over the 4 samples",
    ),
    "sign": (
        lambda log_prob, reward: -(log_prob * to_go(reward)[0]).sum(0).mean(),
        "maximize the surrogate",
    ),
    "no weight": (
        lambda log_prob, reward: (log_prob * to_go(reward) / G).sum(0).mean(),
        r"without the weight gamma\^t",
    ),
    "probability for log-probability": (
        lambda log_prob, reward: (log_prob.exp() * to_go(reward)).sum(0).mean(),
        NOT_KNOWN,
    ),
    "one lane's return for all": (
        lambda log_prob, reward: (log_prob * (G * reward).sum(0).roll(1)).sum(0).mean(),
        "is 0 in every repeat|" + NOT_KNOWN,
    ),
    "detached": (
        lambda log_prob, reward: (log_prob.detach() * to_go(reward)).sum(0).mean(),
        "the gradient is 0 in every repeat",
    ),
    "another lane's log-probability": (
        lambda log_prob, reward: (log_prob.roll(1, 1) * to_go(reward)).sum(0).mean(),
        NOT_KNOWN,
    ),
    "squared advantages": (
        lambda log_prob, reward: (log_prob * to_go(reward).square()).sum(0).mean(),
        NOT_KNOWN,
    ),
    "clipped advantages": (
        lambda log_prob, reward: (log_prob * to_go(reward).clamp(-0.3, 0.3)).sum(0).mean(),
        NOT_KNOWN,
    ),
    "first step only": (
        lambda log_prob, reward: (log_prob[0] * to_go(reward)[0]).mean(),
        NOT_KNOWN,
    ),
    "twice": (
        lambda log_prob, reward: 2 * (log_prob * to_go(reward)).sum(0).mean(),
        NOT_KNOWN,
    ),
    "no discount at all": (
        lambda log_prob, reward: (log_prob * (reward - reward.mean(1, True)).sum(0)).sum(0).mean(),
        NOT_KNOWN,
    ),
    "sign of one step": (
        lambda log_prob, reward: (
            (log_prob * torch.tensor([[-1.0], [1], [1], [1]]) * to_go(reward)).sum(0).mean()
        ),
        NOT_KNOWN,
    ),
    "steps in reverse": (
        lambda log_prob, reward: (log_prob * to_go(reward).flip(0)).sum(0).mean(),
        NOT_KNOWN,
    ),
    "only lanes that did well": (
        lambda log_prob, reward: (log_prob * to_go(reward))[:, to_go(reward)[0] > 0].sum(0).mean(),
        NOT_KNOWN,
    ),
}


def test_the_lists_are_as_long_as_they_are_said_to_be() -> None:
    assert (len(tried(leaf(0.3, 0.9))), len(MISTAKES)) == (25, 24)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_caught_and_its_cause_named_right_or_not_at_all(name: str) -> None:
    surrogate, sentence = MISTAKES[name]
    theta = leaf(0.6, 0.3)
    with pytest.raises(EstimatorError, match=sentence) as caught:
        gradcheck(by_hand(theta, surrogate), theta, against=exact(theta), resolution=0.3)
    assert not isinstance(caught.value, InconclusiveError)


def test_differences_catch_a_mistake_as_well() -> None:
    surrogate, sentence = MISTAKES["sign"]
    theta = leaf(0.6, 0.3)
    with pytest.raises(EstimatorError, match=sentence):
        gradcheck(by_hand(theta, surrogate), theta, resolution=0.3)


def test_differences_are_the_exact_gradient() -> None:
    theta = leaf(0.6, 0.3)
    right = by_hand(theta, lambda log_prob, reward: (log_prob * to_go(reward)).sum(0).mean())
    agreement = gradcheck(right, theta, resolution=0.3)
    torch.testing.assert_close(agreement.reference, exact(theta), rtol=0.05, atol=0.02)


def test_a_step_plus_a_smooth_term_has_no_baseline_to_blame() -> None:
    theta = leaf(0.5)

    def problem(tape: Tape, lanes: int) -> None:
        x = tape.sample(Normal(theta.expand(lanes), 1.0))
        tape.add((x > 0).double() + 0.1 * x)

    with pytest.raises(EstimatorError, match="cuts or jumps there"):
        gradcheck(problem, theta, "pathwise")


def tried(theta: Tensor) -> dict[str, tuple[How | TapeMaker, Callable[[Tape, int], None]]]:
    """Right programs of the kinds that the docs show."""

    def coins(tape: Tape, lanes: int) -> None:
        b = tape.sample(Bernoulli(logits=theta[:1].expand(lanes, 3)))
        tape.add(b.sum(-1) ** 2 * theta[1])

    def choice(tape: Tape, lanes: int) -> None:
        logits = torch.stack([theta[0], theta[1], -theta[0]])
        a = tape.sample(Categorical(logits=logits.expand(lanes, 3)))
        tape.add(torch.tensor([1.0, 3.0, -1.0], dtype=torch.float64)[a])

    def counts(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Poisson(theta[0].exp().expand(lanes))) * theta[1])

    def waits(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Exponential(theta[0].exp().expand(lanes))).sqrt())

    def edge(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Uniform(0.0, theta[1].expand(lanes))) ** 2)

    def ended(tape: Tape, lanes: int) -> None:
        alive = torch.ones(lanes, dtype=torch.float64)
        for _ in range(3):
            b = tape.sample(Bernoulli(logits=theta[0].expand(lanes)))
            tape.add(alive * (1 + b), discount=1 - b)
            alive = alive * (1 - b)

    def kinked(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Normal(theta[0].expand(lanes), theta[1])).clamp(min=0.0))

    def stepped(tape: Tape, lanes: int) -> None:
        tape.add((tape.sample(Normal(theta[0].expand(lanes), theta[1])) > 0).double())

    def apart(tape: Tape, lanes: int) -> None:
        x = tape.sample(Normal(theta[0].expand(lanes), theta[1]))
        b = tape.sample(Bernoulli(logits=theta[1].expand(lanes)), depends_on=[])
        tape.add(x**2, depends_on=[x])
        tape.add(b, depends_on=[b])

    def cloud(tape: Tape, lanes: int) -> None:
        x = tape.sample(Normal(theta[0].expand(lanes), theta[1]))
        tape.add(tape.resample(2 * x) ** 2)

    def skewed(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(LogNormal(theta[0].expand(lanes), 0.3 * theta[1])))

    def two_modes(tape: Tape, lanes: int) -> None:
        logits = torch.stack([theta[0], -theta[0]]).expand(lanes, 2)
        parts = Normal(torch.stack([theta[1], theta[0] - 1]).expand(lanes, 2), 0.5)
        tape.add(tape.sample(MixtureSameFamily(Categorical(logits=logits), parts)))

    def vectors(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Independent(Normal(theta.expand(lanes, 2), 0.5), 1)).prod(1))

    known = KnownMean(lambda x: 3 * x, lambda dist: 3 * dist.mean)
    soft = Relax(lambda z: torch.sigmoid(z).sum(1) ** 2)
    grouped = LeaveOneOut(groups=4)
    return {
        "coins in pairs": ("disarm", coins), "choice of two": ("without_replacement", choice),
        "coins, controlled": (lambda: Tape(control=soft), coins),
        "counts, controlled": (lambda: Tape(control=known), counts),
        "stepped, grouped": (lambda: Tape(baseline=grouped), stepped),
        "kinked in pairs": (
            lambda: Tape("pathwise", uniforms=antithetic(1000, 1, torch.float64)), kinked),
        "waits, even": (lambda: Tape("pathwise", uniforms=sobol(1000, 1, torch.float64)), waits),
        "apart": ("score", apart), "cloud": ("pathwise", cloud), "skewed": ("score", skewed),
        "two modes": ("score", two_modes), "vectors": ("combine", vectors),
        "coins": ("score", coins), "choice": ("score", choice), "choice, exact": ("expect", choice),
        "counts": ("score", counts), "counts, weak": ("weak", counts), "waits": ("pathwise", waits),
        "waits, weak": ("weak", waits), "edge": ("pathwise", edge), "ended": ("score", ended),
        "kinked": ("pathwise", kinked), "stepped": ("score", stepped),
        "stepped, weak": ("weak", stepped), "kinked, mixed": ("combine", kinked),
    }  # fmt: skip


@pytest.mark.parametrize("name", tried(leaf(0.3, 0.9)))
def test_right_programs_are_never_accused(name: str) -> None:
    theta = leaf(0.3, 0.9)
    how, problem = tried(theta)[name]

    def make() -> Tape:
        if callable(how):
            return how()
        return Tape(how, baseline=LeaveOneOut() if how in ("score", "combine") else None)

    gradcheck(problem, theta, make, resolution=0.2, step=0.1, tolerance=0.03)


def test_bad_arguments_are_named() -> None:
    theta = leaf(0.5, 0.8)
    with pytest.raises(EstimatorError, match="parameter: expected a leaf tensor"):
        gradcheck(quadratic(theta), theta * 2)
    net = nn.Linear(1, 1)
    for several in (net, net.named_parameters()):
        with pytest.raises(EstimatorError, match=r"parameter 0: expected a leaf tensor .* got"):
            gradcheck(quadratic(theta), several)  # type: ignore[arg-type]
    with pytest.raises(EstimatorError, match="against: expected 'finite_difference'"):
        gradcheck(quadratic(theta), theta, against="autodiff")  # type: ignore[arg-type]
    with pytest.raises(EstimatorError, match="one per parameter"):
        gradcheck(quadratic(theta), theta, against=[torch.zeros(3)])


PLACES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    ),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", [how for how in get_args(How) if not how.startswith("biased")])
def test_programs_are_differentiated_where_their_tensors_are(how: Any, place: str) -> None:
    """Each estimator, with a baseline, a loop and a discount, on the device of the parameters."""
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, device=place, requires_grad=True)

    def problem(tape: Tape, lanes: int) -> None:
        x = torch.zeros(lanes, dtype=torch.float64, device=place)
        for t in range(2):
            mean = theta[0] + 0.5 * x
            if how in ("expect", "disarm"):
                x = tape.sample(Bernoulli(logits=mean))
            elif how == "without_replacement":
                other = torch.stack((mean, theta[1].expand_as(mean)), dim=-1)
                x = tape.sample(Categorical(logits=other)).to(torch.float64)
            else:
                x = tape.sample(Normal(mean, theta[1].exp().expand(lanes)))
            tape.add(-((x - 0.7 - 0.1 * t) ** 2) + theta[1] * x, discount=0.9)
        assert x.device.type == place

    num_draws = {"num_draws": 2} if how == "without_replacement" else {}
    gradcheck(problem, theta, lambda: Tape(how, **num_draws), resolution=0.1)
    if how in ("score", "combine", "disarm"):
        gradcheck(problem, theta, lambda: Tape(how, baseline=LeaveOneOut()), resolution=0.1)


@pytest.mark.parametrize("against", ["score", torch.tensor([-2.0, -2.0])])
def test_a_second_derivative_was_compared_with_a_first_one(against: Any) -> None:
    theta = leaf(0.5, 0.8)
    with pytest.raises(EstimatorError, match="against: expected 'finite_difference' with order=2"):
        gradcheck(quadratic(theta), theta, "pathwise", against=against, order=2)


@pytest.mark.parametrize("against", ["finite_difference", {"large": [300.0], "small": [1.0]}])
def test_a_small_parameters_lost_gradient_agreed_beside_a_large_one(against: Any) -> None:
    params = {"large": leaf(0.5), "small": leaf(0.8)}
    if isinstance(against, dict):
        against = {name: torch.tensor(value) for name, value in against.items()}

    def problem(tape: Tape, lanes: int) -> None:
        x = tape.sample(Normal(300 * params["large"].expand(lanes), 1.0))
        tape.add(x + params["small"].detach())

    with pytest.raises(EstimatorError, match="expected 1 for small, got 0"):
        gradcheck(problem, params, "pathwise", against=against)


def test_a_step_that_was_too_long_called_a_right_gradient_wrong() -> None:
    theta = leaf(0.5)

    def problem(tape: Tape, lanes: int) -> None:
        tape.add(torch.cos(60 * tape.sample(Normal(theta.expand(lanes), 0.005))))

    with pytest.raises(InconclusiveError, match=r"half the step.* choose a smaller step"):
        gradcheck(problem, theta, "pathwise")
    gradcheck(problem, theta, "pathwise", step=0.005)


def test_what_was_computed_outside_of_the_program_made_a_right_gradient_wrong() -> None:
    """A step moves the parameter, not what was made of it before."""
    mean, log_scale = leaf(0.5), leaf(-0.3)
    scale = log_scale.exp()

    def problem(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Normal(mean.expand(lanes), scale.expand(lanes))) ** 2)

    with pytest.raises(EstimatorError, match="log_scale: expected a program that computes"):
        gradcheck(problem, {"mean": mean, "log_scale": log_scale}, "pathwise")
    gradcheck(problem, mean, "pathwise")
    theta = leaf(0.5, 0.8)
    views = theta[0].expand(1000), theta[1]  # a step moves these

    def viewed(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Normal(*views)) ** 2)

    gradcheck(viewed, theta, "pathwise")
    gradcheck(problem, log_scale, "pathwise", against="score", resolution=0.2)


def test_a_gradient_agreed_that_no_parameter_takes_part_in() -> None:
    unused, theta = leaf(0.5), leaf(0.5, 0.8)
    with pytest.raises(InconclusiveError, match="an objective that moves with the parameters"):
        gradcheck(quadratic(theta), unused, "pathwise")
    gradcheck(quadratic(theta), unused, "pathwise", against=torch.zeros(1))
    gradcheck(quadratic(theta), {"unused": unused, "used": theta}, "pathwise")


def test_a_parameter_that_is_given_twice_was_moved_once() -> None:
    theta = leaf(0.5, 0.8)
    with pytest.raises(EstimatorError, match="parameter 0: expected each tensor once"):
        gradcheck(quadratic(theta), [theta, theta], "pathwise")


@pytest.mark.parametrize("lanes", [1, 20])
def test_parameters_that_the_program_changes_are_refused(lanes: int) -> None:
    """compare took every repeat at another place, and left them there."""
    theta = leaf(0.5, 0.8)

    def problem(tape: Tape, lanes: int) -> None:
        quadratic(theta)(tape, lanes)
        theta.data.mul_(0.99)

    for check in (gradcheck, compare):
        with pytest.raises(EstimatorError, match="parameter: expected a program that leaves"):
            check(problem, theta, num_lanes=lanes)  # type: ignore[operator]


@pytest.mark.parametrize("kind", [float, Tensor.detach])
def test_a_surrogate_that_is_no_scalar_is_named(kind: Callable[[Tensor], Any]) -> None:
    theta = leaf(0.5, 0.8)

    def problem(tape: Tape, lanes: int) -> Any:
        quadratic(theta)(tape, lanes)
        return kind(torch.ones(lanes)[: lanes if kind is Tensor.detach else 1])

    for check in (gradcheck, compare):
        with pytest.raises(EstimatorError, match="problem: expected None or a scalar surrogate"):
            check(problem, theta)  # type: ignore[operator]


@pytest.mark.parametrize("seed", [0, 2, 4])
def test_one_lane_whose_coin_no_step_had_turned_yet_was_called_wrong(seed: int) -> None:
    theta = leaf(0.5)

    def problem(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Bernoulli(logits=theta.expand(lanes))))

    with pytest.raises(InconclusiveError):
        gradcheck(problem, theta, num_lanes=1, max_repeats=512, seed=seed)

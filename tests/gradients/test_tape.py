"""The tape: exact by enumeration of every outcome, then its guards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Gamma, Independent, Normal, Poisson

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import LeaveOneOut, MovingAverage, OptimalConstant, Value
from rlpg.gradients.estimators import score_function
from rlpg.gradients.returns import reward_to_go
from rlpg.gradients.tape import How, Tape

THETA = torch.tensor([0.3, -0.5], dtype=torch.float64)
GAMMA = 0.8
Program = Callable[[Tape, Tensor, int, "Coin"], None]


class Coin:
    """Makes Bernoulli distributions whose `sample` returns what the script says."""

    def __init__(self, script: Iterator[Tensor] | None = None) -> None:
        self.script = script
        self.log_probs: list[Tensor] = []

    def __call__(self, logits: Tensor) -> Bernoulli:
        script, log_probs = self.script, self.log_probs
        if script is None:
            return Bernoulli(logits=logits)

        class Scripted(Bernoulli):
            def sample(self, sample_shape: object = None) -> Tensor:
                draw = next(script)
                log_probs.append(self.log_prob(draw).detach().sum())
                return draw

        return Scripted(logits=logits)


def walk(tape: Tape, theta: Tensor, lanes: int, coin: Coin) -> None:
    """Two states, three steps; the first episode ends after step 1, at a time the actions do not
    change: what an episode earns then depends on its own actions only."""
    state = torch.zeros(lanes, dtype=torch.float64)
    for t in range(3):
        action = tape.sample(coin(theta[0] + theta[1] * state))
        reward = torch.where(action == 1, 1.0 + state, 0.2 - theta[0] * state)
        tape.add(reward, discount=torch.zeros(lanes) if t == 1 else GAMMA)
        state = torch.zeros(lanes, dtype=torch.float64) if t == 1 else torch.maximum(action, state)


def walk_that_ends(tape: Tape, theta: Tensor, lanes: int, coin: Coin) -> None:
    """The same until action 1 in state 1 ends a lane's episode; nothing is paid after that."""
    state, alive = torch.zeros(2, lanes, dtype=torch.float64)
    for _ in range(3):
        action = tape.sample(coin(theta[0] + theta[1] * state))
        reward = torch.where(action == 1, 1.0 + state, 0.2 - theta[0] * state)
        ended = (action == 1) & (state == 1)
        tape.add(reward * (1 - alive), discount=torch.where(ended, 0.0, GAMMA))
        alive = torch.maximum(alive, ended.double())
        state = torch.maximum(action, state)


def exact(program: Program) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and Hessian of the objective: all branches of one lane, no sampling."""
    theta = THETA.clone().requires_grad_()
    tape = Tape(how="expect")
    program(tape, theta, 1, Coin())
    value = tape.surrogate(order=2)
    gradient = torch.autograd.grad(value, theta, create_graph=True)[0]
    hessian = torch.stack([torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gradient])
    return value.detach(), gradient.detach(), hessian


def enumerate_moments(
    program: Program, make: Callable[[], Tape], *, lanes: int, steps: int, order: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean value, mean gradient (Hessian for order 2) and summed variance over all outcomes."""
    value, first, second = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for outcome in itertools.product((0.0, 1.0), repeat=lanes * steps):
        draws = torch.tensor(outcome, dtype=torch.float64).reshape(steps, lanes)
        theta = THETA.clone().requires_grad_()
        tape, coin = make(), Coin(iter(draws))
        program(tape, theta, lanes, coin)
        surrogate = tape.surrogate(order=order)
        estimate = torch.autograd.grad(surrogate, theta, create_graph=order == 2)[0]
        if order == 2:
            rows = [torch.autograd.grad(g, theta, retain_graph=True)[0] for g in estimate]
            estimate = torch.stack(rows)
        prob = torch.stack(coin.log_probs).sum().exp()
        value = value + prob * surrogate.detach()
        first = first + prob * estimate.detach()
        second = second + prob * estimate.detach().square()
    return value, first, (second - first.square()).sum()


BASELINES: dict[str, Callable[[], Tape]] = {
    "none": lambda: Tape(),
    "number": lambda: Tape(baseline=0.7),
    "tensor": lambda: Tape(baseline=torch.tensor([0.3, 0.9], dtype=torch.float64)),
    "function": lambda: Tape(baseline=lambda returns: returns.flip(0) * 0.5),
    "leave one out": lambda: Tape(baseline=LeaveOneOut()),
    "optimal constant": lambda: Tape(baseline=OptimalConstant()),
    "moving average": lambda: Tape(baseline=MovingAverage()),
}


@pytest.mark.parametrize("program", [walk, walk_that_ends])
@pytest.mark.parametrize("name", BASELINES)
def test_score_is_exactly_unbiased_with_every_baseline(name: str, program: Program) -> None:
    value, gradient, _ = enumerate_moments(program, BASELINES[name], lanes=2, steps=3)
    true_value, true_gradient, _ = exact(program)
    torch.testing.assert_close(value, true_value)
    torch.testing.assert_close(gradient, true_gradient)


@pytest.mark.parametrize("name", ["none", "number", "leave one out", "optimal constant"])
def test_second_order_surrogate_gives_the_exact_hessian(name: str) -> None:
    value, hessian, _ = enumerate_moments(walk, BASELINES[name], lanes=2, steps=3, order=2)
    true_value, _, true_hessian = exact(walk)
    torch.testing.assert_close(value, true_value)
    torch.testing.assert_close(hessian, true_hessian)


def test_enumerated_objective_equals_the_sum_over_all_trajectories() -> None:
    # The oracle of this file, itself checked: probability times discounted sum, by hand.
    def by_hand(theta: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for actions in itertools.product((0, 1), repeat=3):
            prob, weight, state, lane = 1.0, 1.0, 0, 0.0
            for t, action in enumerate(actions):
                p = torch.sigmoid(theta[0] + theta[1] * state)
                prob = prob * (p if action else 1 - p)
                lane = lane + weight * (1.0 + state if action else 0.2 - theta[0] * state)
                weight = 1.0 if t == 1 else weight * GAMMA
                state = 0 if t == 1 else max(action, state)
            total = total + prob * lane
        return total

    value, gradient, hessian = exact(walk)
    torch.testing.assert_close(value, by_hand(THETA))
    torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(by_hand, THETA))
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(by_hand, THETA))


def test_variance_falls_with_better_baselines() -> None:
    def bandit(tape: Tape, theta: Tensor, lanes: int, coin: Coin) -> None:
        action = tape.sample(coin(theta[:1].expand(lanes)))
        tape.add(3.0 + action)

    def variance(make: Callable[[], Tape], lanes: int = 6) -> float:
        return float(enumerate_moments(bandit, make, lanes=lanes, steps=1)[2]) * lanes

    # One lane: score (a - p), return 3 + a; E[(a-p)^2 (3+a)^2] - (p(1-p))^2 by hand.
    p = float(torch.sigmoid(THETA[0]))
    plain = p * (1 - p) ** 2 * 16 + (1 - p) * p**2 * 9 - (p * (1 - p)) ** 2
    assert variance(BASELINES["none"]) == pytest.approx(plain)
    best = 3 + (1 - p)  # E[s^2 G] / E[s^2] for two outcomes: both terms equal, variance 0
    assert variance(lambda: Tape(baseline=best)) == pytest.approx(0.0, abs=1e-12)
    mean = variance(lambda: Tape(baseline=3 + p))
    assert mean < variance(BASELINES["leave one out"]) < plain


def test_nodes_of_different_kinds_depend_on_each_other_exactly() -> None:
    def program(tape: Tape, theta: Tensor, lanes: int, coin: Coin) -> None:
        first = tape.sample(coin(theta[:1].expand(lanes)))
        second = tape.sample(Bernoulli(logits=theta[1] * (1.0 + first)), how="expect")  # [2, lanes]
        tape.add(first * theta[1], discount=GAMMA)
        third = tape.sample(Bernoulli(logits=theta[0] - second + first), how="expect")
        tape.add((second + 0.5) * (third - first) ** 2)

    make = BASELINES["leave one out"]
    value, gradient, _ = enumerate_moments(program, make, lanes=3, steps=1)
    true_value, true_gradient, _ = exact(program)
    torch.testing.assert_close(value, true_value)
    torch.testing.assert_close(gradient, true_gradient)


def test_score_node_inside_branches_is_weighted_by_their_probability() -> None:
    def program(tape: Tape, theta: Tensor, lanes: int, coin: Coin) -> None:
        first = tape.sample(Bernoulli(logits=theta[:1].expand(lanes)), how="expect")  # [2, lanes]
        second = tape.sample(coin(theta[1] * (1.0 + first)), baseline=0.4)
        tape.add((first + 1.0) * (second - 0.3) ** 2)

    # Both branches of a lane draw: 2 branches x 1 lane are two coins of one step.
    total_value, total = torch.zeros(()), torch.zeros(2)
    for outcome in itertools.product((0.0, 1.0), repeat=2):
        draw = torch.tensor(outcome, dtype=torch.float64).reshape(2, 1)
        theta = THETA.clone().requires_grad_()
        tape = Tape()
        program(tape, theta, 1, Coin(iter([draw])))
        surrogate = tape.surrogate()
        surrogate.backward()
        logits = THETA[1] * torch.tensor([[1.0], [2.0]], dtype=torch.float64)
        prob = Bernoulli(logits=logits).log_prob(draw).sum().exp()
        total_value = total_value + prob * surrogate.detach()
        assert theta.grad is not None
        total = total + prob * theta.grad

    def everything(tape: Tape, theta: Tensor, lanes: int, coin: Coin) -> None:
        first = tape.sample(Bernoulli(logits=theta[:1].expand(lanes)), how="expect")
        second = tape.sample(Bernoulli(logits=theta[1] * (1.0 + first)), how="expect")
        tape.add((first + 1.0) * (second - 0.3) ** 2)

    true_value, true_gradient, _ = exact(everything)
    torch.testing.assert_close(total_value, true_value)
    torch.testing.assert_close(total, true_gradient)


@pytest.mark.parametrize("baseline", [None, 0.4])
@pytest.mark.parametrize("branching", ["first", "second"])
def test_a_discount_of_the_branches_was_refused_before_a_sample_without_them(
    branching: str, baseline: float | None
) -> None:
    """The score node has no branch dimension (or another one than the discount), its weight has."""

    def program(tape: Tape, theta: Tensor, lanes: int, coin: Coin) -> None:
        first = tape.sample(Bernoulli(logits=theta[:1].expand(lanes)), how="expect")  # [2, lanes]
        tape.add(first, discount=0.5 + 0.3 * first)
        state = torch.zeros(lanes, dtype=torch.float64)
        if branching == "second":
            outcomes = Categorical(logits=torch.stack([theta, -theta, theta * 0], 1).mean(0)[None])
            state = tape.sample(outcomes.expand((lanes,)), how="expect")  # [3, 1, lanes]
            tape.add(state * first)
        second = tape.sample(coin(theta[1] * (1.0 + state)), baseline=baseline)
        tape.add((first + 1.0) * (second - 0.3) ** 2, discount=0.5 + 0.3 * first)
        tape.add(second * (1.0 + state))

    branches = 3 if branching == "second" else 1
    value, gradient = torch.zeros(()), torch.zeros(2)
    for outcome in itertools.product((0.0, 1.0), repeat=branches):
        draw = torch.tensor(outcome, dtype=torch.float64)
        draw = draw.reshape((3, 1, 1) if branching == "second" else (1,))
        theta = THETA.clone().requires_grad_()
        tape, coin = Tape(), Coin(iter([draw]))
        program(tape, theta, 1, coin)
        surrogate = tape.surrogate()
        prob = coin.log_probs[0].exp()
        value = value + prob * surrogate.detach()
        gradient = gradient + prob * torch.autograd.grad(surrogate, theta)[0]
    true_value, true_gradient, _ = exact(lambda *given: program(*given[:3], Coin()))
    torch.testing.assert_close(value, true_value)
    torch.testing.assert_close(gradient, true_gradient)


def test_tape_and_pure_functions_give_the_same_gradient_on_the_same_data() -> None:
    generator = torch.Generator().manual_seed(3)
    num_steps, lanes = 5, 4
    action = torch.randint(2, (num_steps, lanes), generator=generator).double()
    reward = torch.randn(num_steps, lanes, generator=generator, dtype=torch.float64)
    ended = torch.rand(num_steps, lanes, generator=generator) < 0.3
    coin, tape, theta = Coin(iter(action)), Tape(), THETA.clone().requires_grad_()
    for t in range(num_steps):
        tape.sample(coin((theta[0] * (1 + t)).expand(lanes)))
        tape.add(reward[t], discount=torch.where(ended[t], 0.0, GAMMA))
    tape.surrogate().backward()

    other = THETA.clone().requires_grad_()
    logits = (other[0] * torch.arange(1, num_steps + 1))[:, None].expand(num_steps, lanes)
    valid = torch.ones_like(ended)
    to_go = reward_to_go(reward, terminated=ended, truncated=~valid, valid=valid, gamma=GAMMA)
    time = torch.zeros(num_steps, lanes)
    for t in range(1, num_steps):
        time[t] = torch.where(ended[t - 1], 0.0, time[t - 1] + 1)
    log_prob = Bernoulli(logits=logits).log_prob(action)
    score_function(log_prob, to_go, weight=GAMMA**time / lanes).backward()
    torch.testing.assert_close(theta.grad, other.grad)


def test_gae_lambda_is_the_advantage_of_the_valued_nodes() -> None:
    # Two valued steps, gamma g, lambda l: A_0 = d_0 + g l d_1, A_1 = d_1, d_t = r_t + g V' - V.
    lanes, lam = 2, 0.6
    rewards = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 1.5], [2.5, 4.0]], dtype=torch.float64)
    coin = Coin(iter(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)))
    theta, tape = THETA.clone().requires_grad_(), Tape(gae_lambda=lam)
    for t in range(2):
        tape.sample(coin(theta[t].expand(lanes)), baseline=values[t])
        tape.add(rewards[t], discount=GAMMA)
    tape.surrogate().backward()
    last = rewards[1] - values[1]
    first = rewards[0] + GAMMA * values[1] - values[0] + GAMMA * lam * last
    p = torch.sigmoid(THETA)
    score = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64) - p[:, None]
    expected = (score * torch.stack([first, GAMMA * last])).mean(1)
    torch.testing.assert_close(theta.grad, expected)


def test_value_learns_the_return_on_the_side_only() -> None:
    net = nn.Linear(1, 1, dtype=torch.float64)
    with torch.no_grad():
        net.weight.fill_(0.5)
        net.bias.fill_(0.0)
    value, state = Value(net), torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    coin = Coin(iter(torch.tensor([[1.0, 0.0]], dtype=torch.float64)))
    theta, tape = THETA.clone().requires_grad_(), Tape()
    action = tape.sample(coin(theta[0].expand(2)), baseline=value.at(state))
    tape.add(2.0 + action)
    tape.surrogate().backward()
    assert net.weight.grad is None
    p = torch.sigmoid(THETA[0])
    expected = ((1 - p) * (3.0 - 0.5) + (0 - p) * (2.0 - 1.0)) / 2
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad[0], expected)
    assert value.loss().item() == pytest.approx((2.5**2 + 1.0**2) / 2)
    with pytest.raises(EstimatorError, match="expected a surrogate before loss"):
        value.loss()


def test_moving_average_is_used_before_it_learns() -> None:
    average = MovingAverage(decay=0.5)
    coin = Coin(iter(torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)))
    for expected in (0.0, 2.5):
        theta, tape = THETA.clone().requires_grad_(), Tape(baseline=average)
        action = tape.sample(coin(theta[0].expand(2)))
        tape.add(2.0 + action)
        assert average.value == expected
        tape.surrogate().backward()
        p = torch.sigmoid(THETA[0])
        by_hand = ((1 - p) * (3.0 - expected) + (0 - p) * (2.0 - expected)) / 2
        assert theta.grad is not None
        torch.testing.assert_close(theta.grad[0], by_hand)


@pytest.mark.parametrize("how", ["pathwise", "combine"])
def test_the_sign_and_scale_given_to_the_surrogate_reach_every_part(how: str) -> None:
    grads = []
    for factor in (1.0, -3.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            theta, tape = THETA.clone().requires_grad_(), Tape(how)  # type: ignore[arg-type]
            x = tape.sample(Normal(theta[0].expand(8), theta[1].exp().expand(8)))
            tape.add((5 * x).sin() * 10)
            (factor * tape.surrogate()).backward()
            grads.append(theta.grad)
    torch.testing.assert_close(grads[1], -3.0 * grads[0])


# ---- guards ------------------------------------------------------------------------------------


def normal(lanes: int = 4) -> tuple[Tensor, Normal]:
    theta = torch.tensor(0.5, requires_grad=True)
    return theta, Normal(theta.expand(lanes), 1.0)


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_pathwise_through_a_comparison_is_refused_with_the_nodes_name() -> None:
    for how in ("pathwise", "combine"):
        tape = Tape(how)  # type: ignore[arg-type]
        x = tape.sample(normal()[1], name="price")
        tape.add((x > 0.5).float())
        with pytest.raises(EstimatorError, match=r"price: expected terms that carry the gradient"):
            tape.surrogate()


@pytest.mark.parametrize("how", ["pathwise", "combine"])
@pytest.mark.parametrize("choice", ["expect", "weak", "disarm"])
def test_a_path_into_the_probability_of_a_branch_was_taken_for_cut(how: How, choice: How) -> None:
    """E b = E p (1 - p) for the mean of x, where b ~ Bernoulli(p = sigmoid(x)) pays a constant."""
    torch.manual_seed(0)
    theta = torch.full((4000,), 0.5, dtype=torch.float64, requires_grad=True)
    tape = Tape()
    x = tape.sample(Normal(theta, 1.0), how)
    tape.add(tape.sample(Bernoulli(logits=x), choice))
    (slopes,) = torch.autograd.grad(tape.surrogate(), theta)
    p = torch.sigmoid(0.5 + torch.linspace(-8, 8, 4001, dtype=torch.float64))
    density = Normal(0.5, 1.0).log_prob(p.logit()).exp()
    exact = float((p * (1 - p) * density).sum() * 16 / 4000)
    lanes = slopes * len(theta)
    assert abs(float(lanes.mean()) - exact) < 4 * float(lanes.std()) / len(theta) ** 0.5


def test_an_enumerated_sample_as_a_term_was_taken_for_a_batch_statistic() -> None:
    theta = torch.full((4,), 0.5, dtype=torch.float64, requires_grad=True)
    tape = Tape()
    tape.sample(Bernoulli(logits=theta))
    tape.add(tape.sample(Bernoulli(logits=theta), "expect"), depends_on=[])
    p = torch.sigmoid(theta.detach())
    (slopes,) = torch.autograd.grad(tape.surrogate(), theta)
    torch.testing.assert_close(slopes, p * (1 - p) / 4)


def test_a_pathwise_sample_after_the_last_term_is_no_mistake() -> None:
    theta, dist = normal()
    tape = Tape("pathwise")
    tape.add(tape.sample(dist))
    tape.sample(Normal(theta.expand(4), 1.0))
    tape.surrogate().backward()
    assert theta.grad == 1.0


def test_sample_that_secretly_reparametrizes_is_refused() -> None:
    class Secret(Normal):
        def sample(self, sample_shape: object = None) -> Tensor:
            return self.rsample()

    theta = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(EstimatorError, match="log_prob of a reparametrized sample is no score"):
        Tape().sample(Secret(theta.expand(4), 1.0))


def test_distributions_that_cannot_do_it_are_refused() -> None:
    coin = Bernoulli(logits=torch.zeros(4, requires_grad=True))
    with pytest.raises(EstimatorError, match="coin: expected a distribution with rsample"):
        Tape("pathwise").sample(coin, name="coin")
    with pytest.raises(EstimatorError, match="sample 0: expected a finite support"):
        Tape("expect").sample(normal()[1])
    with pytest.raises(EstimatorError, match="expected a finite support and batch shape"):
        Tape("expect").sample(Bernoulli(logits=torch.zeros(4, 3)))
    with pytest.raises(EstimatorError, match="concentration with a gradient"):
        Tape("weak").sample(Gamma(torch.ones(4, requires_grad=True), torch.ones(4)))
    with pytest.raises(EstimatorError, match="Tape: expected how in"):
        Tape("reinforce")  # type: ignore[arg-type]


@pytest.mark.parametrize("lanes", [3, 5])
def test_lanes_that_do_not_match_are_refused(lanes: int) -> None:
    tape = Tape(num_lanes=4)
    with pytest.raises(EstimatorError, match=f"sample 0: expected 4 lanes, got {lanes}"):
        tape.sample(normal(lanes)[1])
    with pytest.raises(EstimatorError, match=f"cost: expected 4 lanes, got {lanes}"):
        tape.add(torch.zeros(lanes), name="cost")


def test_shapes_without_lanes_are_refused() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(EstimatorError, match=r"expected batch shape \[lanes, ...\], got \[\]"):
        Tape().sample(Normal(theta, 1.0))
    tape = Tape()
    x = tape.sample(normal()[1])
    with pytest.raises(EstimatorError, match="expected one number per lane, got \\[\\]"):
        tape.add(x.mean())
    with pytest.raises(EstimatorError, match="expected one number per lane, got float"):
        tape.add(1.0)  # type: ignore[arg-type]


def test_one_loss_for_all_lanes_is_refused_after_a_score_node() -> None:
    tape = Tape()
    x = tape.sample(normal()[1])
    with pytest.raises(EstimatorError, match=r"couples the lanes.*use tape.resample"):
        tape.add(x.mean().expand(4))


def test_baselines_that_are_not_allowed() -> None:
    dist = normal()[1]
    tape = Tape()
    with pytest.raises(EstimatorError, match="node: expected a baseline without a gradient"):
        tape.sample(dist, baseline=torch.zeros(4, requires_grad=True), name="node")
    tape.sample(dist, baseline=lambda returns: returns.mean().expand(4), name="node")
    tape.add(torch.ones(4))
    with pytest.raises(EstimatorError, match="node: expected a baseline that leaves each lane's"):
        tape.surrogate()
    tape = Tape(baseline=lambda returns: returns[:2])
    tape.sample(dist)
    tape.add(torch.ones(4))
    with pytest.raises(EstimatorError, match=r"sample 0: expected a baseline \[4\], got \[2\]"):
        tape.surrogate()
    tape = Tape(baseline=LeaveOneOut())
    tape.sample(normal(1)[1])
    tape.add(torch.ones(1))
    with pytest.raises(EstimatorError, match="sample 0: LeaveOneOut: expected at least 2 lanes"):
        tape.surrogate()


def test_empty_tapes_and_bad_numbers_are_refused() -> None:
    with pytest.raises(EstimatorError, match="expected at least one term"):
        Tape().surrogate()
    tape = Tape()
    tape.add(torch.ones(4, requires_grad=True))
    with pytest.raises(EstimatorError, match="expected at least one node"):
        tape.surrogate()
    tape.sample(normal()[1])
    tape.add(torch.tensor([0.0, float("nan"), 0.0, 0.0]), name="cost")
    with pytest.raises(EstimatorError, match="cost: expected finite terms, got nan in lane 1"):
        tape.surrogate()
    with pytest.raises(EstimatorError, match=r"expected a discount in \[0, 1\], got 1.5"):
        tape.add(torch.ones(4), discount=1.5)


def test_second_order_is_refused_where_there_is_none() -> None:
    for how in ("combine", "weak"):
        tape = Tape(how)  # type: ignore[arg-type]
        tape.add(tape.sample(normal()[1], name="z"))
        with pytest.raises(EstimatorError, match="z: expected order=1, got 2"):
            tape.surrogate(order=2)
    tape = Tape(gae_lambda=0.5)
    tape.add(tape.sample(normal()[1]))
    with pytest.raises(EstimatorError, match="higher derivatives need the sampled return"):
        tape.surrogate(order=2)


def test_ambiguous_branch_and_lane_sizes_are_refused() -> None:
    tape, logits = Tape("expect"), torch.zeros(2, requires_grad=True)
    tape.sample(Bernoulli(logits=logits))
    with pytest.raises(EstimatorError, match="choose a number of lanes that no branch has"):
        tape.sample(Normal(torch.zeros(2, 2), 1.0), how="score")


def test_other_families_work_as_score_nodes() -> None:
    rate = torch.tensor(1.5, requires_grad=True)
    logits = torch.zeros(4, 3, requires_grad=True)
    tape = Tape()
    events = tape.sample(Poisson(rate.expand(4)))
    choice = tape.sample(Categorical(logits=logits))
    vector = tape.sample(Independent(Normal(logits, 1.0), 1))
    tape.add(events * (choice + 1) + vector.sum(1))
    tape.surrogate().backward()
    torch.testing.assert_close(vector.shape, torch.Size([4, 3]))
    assert rate.grad is not None
    credit = (events * (choice + 1) + vector.sum(1)).detach()
    torch.testing.assert_close(rate.grad, ((events / 1.5 - 1) * credit).mean())


def test_the_objective_is_the_mean_over_lanes_of_the_discounted_sum() -> None:
    tape = Tape()
    x = tape.sample(Bernoulli(logits=torch.zeros(4, requires_grad=True)))
    tape.add(x, 0.5)
    tape.add(torch.tensor([1.0, 2.0, 3.0, 6.0]), 0.1)
    tape.add(10 * x)
    expected = (x + 0.5 * torch.tensor([1.0, 2.0, 3.0, 6.0]) + 0.05 * 10 * x).mean()
    torch.testing.assert_close(tape.objective(), expected)
    torch.testing.assert_close(tape.surrogate().detach(), expected)
    assert not tape.objective().requires_grad


@pytest.mark.parametrize("end", [0.0, torch.tensor([0.0, 0.5, 0.0, 0.5])], ids=["all", "some"])
def test_the_second_order_credited_samples_with_the_episode_after_theirs(
    end: float | Tensor,
) -> None:
    """The first derivative of both surrogates is the same estimator, to the bit of rounding."""

    def gradient(order: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            theta = torch.tensor(0.3, requires_grad=True)
            tape = Tape()
            for step in range(3):
                x = tape.sample(Bernoulli(logits=theta.expand(4)))
                tape.add((step + 1) * x + 1.0, end if step == 0 else 0.9)
            return torch.autograd.grad(tape.surrogate(order), theta)[0]

    torch.testing.assert_close(gradient(2), gradient(1))

"""Baselines of a batch: unbiased by enumeration of every outcome, and better than none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

import rlpg
from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import STATISTICAL, MovingAverage, PerTimeStep, leave_one_out
from rlpg.gradients.estimators import score_function
from rlpg.gradients.returns import reward_to_go
from rlpg.learners.values import ValueNetwork

THETA = 0.4


@dataclass
class Slots:
    """Samples by hand."""

    time: Tensor
    valid: Tensor


Baseline = Callable[[Tensor, Tensor, Tensor], Tensor]  # returns, time, valid -> [T, N]


def play(actions: tuple[int, ...], *, stop_after: int | None) -> tuple[list[float], list[bool]]:
    """Rewards and ends of one environment: action 1 pays 1 and ends the episode, 0 pays a little
    more each step; with `stop_after` the environment stops at that number of episodes."""
    rewards, ends, time, episodes = [], [], 0, 0
    for action in actions:
        if stop_after is not None and episodes == stop_after:
            break
        over = action == 1 or time == 2
        rewards.append(1.0 if action else 0.3 + 0.2 * time)
        ends.append(over)
        time = 0 if over else time + 1
        episodes += over
    return rewards, ends


def outcomes(
    num_steps: int, num_envs: int, stop_after: int | None = None
) -> list[dict[str, Tensor]]:
    """Every possible batch with its probability and the score of every action."""
    result = []
    for flat in itertools.product((0, 1), repeat=num_steps * num_envs):
        shape = (num_steps, num_envs)
        reward, valid = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=bool)
        ended, time = torch.zeros(shape, dtype=bool), torch.zeros(shape, dtype=torch.int64)
        counts = True
        for n in range(num_envs):
            actions = flat[n * num_steps : (n + 1) * num_steps]
            rewards, ends = play(actions, stop_after=stop_after)
            counts &= not any(actions[len(rewards) :])  # unplayed actions: count the batch once
            clock = 0
            for t, (paid, over) in enumerate(zip(rewards, ends, strict=True)):
                reward[t, n], ended[t, n], valid[t, n], time[t, n] = paid, over, True, clock
                clock = 0 if over else clock + 1
        if not counts:
            continue
        action = torch.tensor(flat).reshape(num_envs, num_steps).T.double()  # [T, N]
        p = torch.sigmoid(THETA * (1.0 + time.double()))
        prob = torch.where(valid, torch.where(action == 1, p, 1 - p), 1.0).prod()
        score = torch.where(valid, (action - p) * (1.0 + time.double()), 0.0)  # d log p / d THETA
        to_go = reward_to_go(
            reward, terminated=ended, truncated=torch.zeros_like(ended), valid=valid, gamma=0.9
        )
        result.append(
            {"prob": prob, "score": score, "returns": to_go, "time": time, "valid": valid}
        )
    total = sum(float(batch["prob"]) for batch in result)
    assert total == pytest.approx(1.0)
    return result


def moments(batches: list[dict[str, Tensor]], baseline: Baseline | None) -> tuple[float, float]:
    """Exact mean and variance of the estimator with and without subtracting the baseline."""
    first = second = 0.0
    for batch in batches:
        left = batch["returns"]
        if baseline is not None:
            left = left - baseline(batch["returns"], batch["time"], batch["valid"])
        estimate = float((batch["score"] * left).sum())
        first += float(batch["prob"]) * estimate
        second += float(batch["prob"]) * estimate**2
    return first, second - first**2


def others(returns: Tensor, time: Tensor, valid: Tensor) -> Tensor:
    return leave_one_out(returns, time=time, valid=valid)


def other_episodes(returns: Tensor, time: Tensor, valid: Tensor) -> Tensor:
    """The mean at the same time over all episodes but the sample's own, also those of its lane."""
    same = (time[None, None] == time[:, :, None, None]) & valid[None, None]  # [T, N, T, N]
    mean = (same * returns).sum((2, 3)) - returns
    return torch.where(valid, mean / (same.sum((2, 3)) - 1).clamp(min=1), 0.0)


def in_batch_mean(returns: Tensor, time: Tensor, valid: Tensor) -> Tensor:
    return (returns * valid).sum() / valid.sum() * valid


def test_leaving_out_the_environment_is_unbiased_in_rollouts_that_cut_episodes() -> None:
    batches = outcomes(num_steps=4, num_envs=2)
    exact, variance = moments(batches, None)
    mean, reduced = moments(batches, others)
    assert mean == pytest.approx(exact, abs=1e-12)
    assert reduced < variance


def test_leaving_out_only_the_episode_is_biased_in_rollouts_that_cut_episodes() -> None:
    # An action that ends the episode makes room for the next one of the same environment, so what
    # that one earned before the cut depends on the action: why the whole environment is left out.
    batches = outcomes(num_steps=4, num_envs=2)
    assert abs(moments(batches, other_episodes)[0] - moments(batches, None)[0]) > 1e-3


def test_leaving_out_the_environment_is_unbiased_in_whole_episodes() -> None:
    batches = outcomes(num_steps=3, num_envs=3, stop_after=1)
    mean, _ = moments(batches, others)
    assert mean == pytest.approx(moments(batches, None)[0], abs=1e-12)


def test_a_mean_that_contains_the_sample_is_biased() -> None:
    batches = outcomes(num_steps=3, num_envs=2, stop_after=1)
    assert abs(moments(batches, in_batch_mean)[0] - moments(batches, None)[0]) > 1e-2


def test_variance_falls_from_none_to_a_constant_to_one_per_time_step() -> None:
    batches = outcomes(num_steps=3, num_envs=1, stop_after=1)
    sums, counts = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        where = batch["time"][batch["valid"]]
        sums.index_add_(0, where, batch["prob"] * batch["returns"][batch["valid"]])
        counts.index_add_(0, where, batch["prob"].expand(len(where)))
    per_step, overall = sums / counts, sums.sum() / counts.sum()
    exact, none = moments(batches, None)
    mean_a, constant = moments(batches, lambda r, t, v: overall * v)
    mean_b, by_time = moments(batches, lambda r, t, v: per_step[t] * v)
    assert mean_a == pytest.approx(exact, abs=1e-12)
    assert mean_b == pytest.approx(exact, abs=1e-12)
    assert by_time < constant < none


def test_leave_one_out_by_hand() -> None:
    # Three environments; times 0, 1, 2; the second's first episode ends after one step, the third
    # stops after one. Columns: returns with their time in brackets.
    #   9 (0)   2 (0)   6 (0)
    #   5 (1)   4 (0)   -
    #   1 (2)   3 (1)   -
    returns = torch.tensor([[9.0, 2.0, 6.0], [5.0, 4.0, float("nan")], [1.0, 3.0, float("nan")]])
    time = torch.tensor([[0, 0, 0], [1, 0, 7], [2, 1, 7]])
    valid = torch.tensor([[True, True, True], [True, True, False], [True, True, False]])
    got = leave_one_out(returns, time=time, valid=valid)
    # [0, 0]: (2 + 4 + 6) / 3; [1, 0]: 3; [2, 0]: nobody else at time 2, all others' mean 15 / 4
    assert got.tolist() == [[4.0, 7.5, 5.0], [3.0, 7.5, 0.0], [3.75, 5.0, 0.0]]


def test_moving_average_weighs_past_updates_and_starts_at_zero() -> None:
    average, slots = MovingAverage(decay=0.5), Slots(torch.zeros(2, 2).long(), torch.ones(2, 2) > 0)
    assert average.value == 0.0
    returns = torch.tensor([[1.0, 3.0], [float("nan"), 5.0]])
    average.update(slots, returns, torch.tensor([[0.1, 1], [0, 1]]))
    assert average.value == pytest.approx(3.0)  # corrected for the start at 0
    average.update(slots, torch.full((2, 2), 6.0), torch.ones(2, 2))
    assert average.value == pytest.approx(5.0)  # (0.25 * 3 + 0.5 * 6) / 0.75
    average.update(slots, torch.zeros(2, 2), torch.zeros(2, 2))  # nothing seen, nothing learned
    assert average.value == pytest.approx(5.0)
    twin = MovingAverage(decay=0.5)
    twin.load_state_dict(average.state_dict())
    assert twin(slots, returns).tolist() == [[pytest.approx(5.0)] * 2] * 2


def test_per_time_step_averages_each_time_on_its_own() -> None:
    baseline, ones = PerTimeStep(decay=0.5), torch.ones(2, 2)
    slots = Slots(torch.tensor([[0, 0], [1, 0]]), ones > 0)
    assert baseline(slots, ones).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    baseline.update(slots, torch.tensor([[3.0, 6.0], [4.0, 0.0]]), ones)
    later = Slots(torch.tensor([[0, 1, 9]]), torch.ones(1, 3) > 0)
    assert baseline(later, torch.zeros(1, 3)).tolist() == [[3.0, 4.0, 4.0]]
    baseline.update(slots, torch.tensor([[6.0, 9.0], [9.0, 9.0]]), torch.tensor([[0.2, 0], [0, 0]]))
    # time 0: (0.25 * 3 + 0.5 * 6) / 0.75 = 5; time 1 was not seen and keeps its mean
    assert baseline(slots, ones)[:, 0].tolist() == [5.0, 4.0]
    twin = PerTimeStep(decay=0.5)
    twin.load_state_dict(baseline.state_dict())
    assert twin(slots, ones).tolist() == baseline(slots, ones).tolist()


FAMILY: dict[str, Callable[[], rlpg.Baseline]] = {
    "none": rlpg.NoBaseline,
    "moving_average": rlpg.MovingAverage,
    "time_step": rlpg.PerTimeStep,
    "leave_one_out": rlpg.LeaveOneOut,
    "optimal": rlpg.OptimalConstant,
    "value": lambda: rlpg.Value(nn.Linear(1, 1)),
}


def on_a_tape(baseline: rlpg.Baseline) -> tuple[float, Tensor]:
    """Gradient of two nodes whose returns are known, and the returns `[2, lanes]`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theta, tape, state = torch.tensor(0.3, requires_grad=True), rlpg.Tape(), torch.ones(4, 1)
        terms = []
        for k in range(2):
            here = baseline.at(state) if isinstance(baseline, rlpg.Value) else baseline
            b = tape.sample(Bernoulli(logits=theta.expand(4)), baseline=here)
            terms.append(b + 2.0 + 5.0 * k)
            tape.add(terms[-1])
        tape.surrogate().backward()
    assert theta.grad is not None
    return float(theta.grad), torch.stack([terms[0] + terms[1], terms[1]])


@pytest.mark.parametrize("name", FAMILY)
def test_one_family_serves_the_tape(name: str) -> None:
    """The second use subtracts what the first has learned; every value by hand."""
    baseline = FAMILY[name]()
    if isinstance(baseline, rlpg.Value):
        with torch.no_grad():
            baseline.net.weight.fill_(1.5)  # type: ignore[union-attr, operator]
            baseline.net.bias.fill_(1.0)  # type: ignore[union-attr, operator]
    p = torch.sigmoid(torch.tensor(0.3))
    for again in (False, True):
        got, returns = on_a_tape(baseline)
        score = torch.stack([returns[0] - returns[1] - 2, returns[1] - 7]) - p  # [2, lanes]
        others = (returns.sum(1, keepdim=True) - returns) / 3
        square = score.square()
        optimal = ((square * returns).sum(1, keepdim=True) - square * returns) / (
            square.sum(1, keepdim=True) - square
        )
        by_node = returns.mean(1, keepdim=True)
        # both nodes have fed the average, the second first; each weighs 0.9 of the one before it
        average = (0.1 * by_node[0] + 0.09 * by_node[1]) / 0.19
        subtracted = {
            "none": torch.zeros(1),
            "moving_average": average if again else torch.zeros(1),
            "time_step": by_node if again else torch.zeros(1),
            "leave_one_out": others,
            "optimal": optimal,
            "value": torch.tensor(2.5),
        }[name]
        assert got == pytest.approx(float((score * (returns - subtracted)).mean(1).sum()), rel=1e-5)
    if isinstance(baseline, rlpg.Value):
        assert baseline.loss().item() == pytest.approx(float((returns - 2.5).square().mean()))


class Writing(rlpg.Baseline):
    def __call__(self, samples: object, returns: Tensor) -> Tensor:
        return returns.zero_()


@pytest.mark.parametrize(
    ("how", "writing"),
    [("score", Writing()), ("combine", Writing()), ("score", Tensor.zero_)],
    ids=["baseline", "combine", "function"],
)
def test_a_baseline_that_wrote_into_the_returns_took_them_from_the_gradient(
    how: Any, writing: Any
) -> None:
    def gradient(baseline: Any) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            mean, tape = torch.tensor(0.3, requires_grad=True), rlpg.Tape(how, baseline=baseline)
            tape.add((tape.sample(Normal(mean.expand(8), 1.0)) + 9.0) ** 2)
            return torch.autograd.grad(tape.surrogate(), mean)[0]

    assert torch.equal(gradient(writing), gradient(rlpg.NoBaseline()))


@pytest.mark.parametrize("name", FAMILY)
def test_one_family_serves_the_learner(name: str) -> None:
    observations, actions = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)
    generator = torch.Generator().manual_seed(0)
    policy = rlpg.StandardPolicy(observations, actions, hidden=(), generator=generator)
    learner, twin = (
        rlpg.Reinforce(policy, FAMILY[name](), learning_rate_schedule="constant") for _ in range(2)
    )
    shape = (3, 2)
    rollout = rlpg.Rollout(
        obs=torch.rand(4, 2, 1), action=torch.ones(shape).long(), log_prob=None,
        reward=torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        terminated=torch.tensor([[False] * 2, [False] * 2, [True] * 2]),
        truncated=torch.zeros(shape) > 0, valid=torch.ones(shape) > 0,
        time=torch.arange(3)[:, None].expand(shape), carry=None,
        episode_start=torch.tensor([[True] * 2, [False] * 2, [False] * 2, [True] * 2]),
        final_obs=torch.zeros(0, 1),
        final_step=torch.zeros(0).long(), final_env=torch.zeros(0).long(),
        episodes=None,  # type: ignore[arg-type]
    )  # fmt: skip
    if name == "optimal":
        with pytest.raises(
            EstimatorError, match=r"expected samples with score_square\(\), got Rol"
        ):
            learner.update(rollout)
        return
    if name == "value":
        assert isinstance(learner.baseline, ValueNetwork)
        assert isinstance(learner.baseline.network.mlp.module, nn.Linear)
    else:
        assert isinstance(learner.baseline, STATISTICAL[name])
    before = learner.baseline(rollout, rollout.reward).clone()
    metrics = learner.update(rollout)
    assert metrics["gradient/norm"] > 0
    after = learner.baseline(rollout, rollout.reward)
    assert torch.equal(before, after) == (name in ("none", "leave_one_out"))
    twin.baseline.load_state_dict(learner.baseline.state_dict())
    assert torch.equal(twin.baseline(rollout, rollout.reward), after)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_groups_leave_one_out_of_their_own(size: int) -> None:
    """Two items with payments of their own, K coins each: over all outcomes the mean is exact, and
    the variance that of K independent coins with the mean of K - 1 others:
    E s^2 (G - b)^2 with Var b = Var(G) / (K - 1), and the covariance of pairs."""
    theta, pays = torch.tensor(0.4, dtype=torch.float64), torch.tensor([[1.0], [5.0]]).double()
    p = torch.sigmoid(theta)
    found: dict[str, list[tuple[float, float]]] = {"groups": [], "all": []}
    for flat in itertools.product((0.0, 1.0), repeat=2 * size):
        draw = torch.tensor(flat, dtype=torch.float64)
        reward = ((1 + draw).reshape(2, size) * pays).flatten()

        class Scripted(Bernoulli):
            value = draw

            def sample(self, sample_shape: object = None) -> Tensor:
                return self.value

        for name, baseline in (
            ("groups", rlpg.LeaveOneOut(groups=size)),
            ("all", rlpg.LeaveOneOut()),
        ):
            leaf, tape = theta.clone().requires_grad_(), rlpg.Tape(baseline=baseline)
            tape.sample(Scripted(logits=leaf.expand(2 * size)))
            tape.add(reward)
            tape.surrogate().backward()
            prob = torch.where(draw == 1, p, 1 - p).prod()
            found[name].append((float(prob), float(leaf.grad)))  # type: ignore[arg-type]
    moments = {}
    for name, pairs in found.items():
        mean = sum(q * g for q, g in pairs)
        assert mean == pytest.approx(float(p * (1 - p) * 3))  # d/d theta of (1 + 5) / 2 E[1 + b]
        moments[name] = sum(q * g**2 for q, g in pairs) - mean**2
    # One item of payment c: A_k = c (b_k - mean of others), s_k = b_k - p, v = p (1 - p), g = c v:
    # E s^2 A^2 = c^2 (E (b-p)^4 + v^2 / (K - 1)); E s_k A_k s_l A_l = g^2 + c^2 v^2 / (K - 1)^2.
    v = float(p * (1 - p))
    fourth = v * (1 - 3 * v)
    want = 0.0
    for c in (1.0, 5.0):
        one = c**2 * (fourth + v**2 / (size - 1)) - (c * v) ** 2
        pair = c**2 * v**2 / (size - 1) ** 2
        want += (size * one + size * (size - 1) * pair) / (2 * size) ** 2
    assert moments["groups"] == pytest.approx(want)
    assert moments["groups"] < moments["all"]


def test_groups_in_a_rollout_are_neighbouring_environments() -> None:
    slots = Slots(torch.zeros(1, 4).long(), torch.ones(1, 4) > 0)
    returns = torch.tensor([[1.0, 3.0, 10.0, 20.0]])
    assert rlpg.LeaveOneOut(groups=2)(slots, returns).tolist() == [[3.0, 1.0, 20.0, 10.0]]
    with pytest.raises(EstimatorError, match="expected a multiple of 3 lanes, got 4"):
        rlpg.LeaveOneOut(groups=3)(slots, returns)
    with pytest.raises(EstimatorError, match="expected groups of at least 2 lanes, got 1"):
        rlpg.LeaveOneOut(groups=1)
    tape = rlpg.Tape("combine", baseline=rlpg.LeaveOneOut(groups=2))
    tape.add(tape.sample(Normal(torch.zeros(8, requires_grad=True), 1.0)))
    with pytest.raises(EstimatorError, match="got one with groups"):
        tape.surrogate()


def test_what_a_baseline_cannot_do_is_said() -> None:
    state = torch.zeros(4, 3)
    with pytest.raises(EstimatorError, match="expected the network to return"):
        rlpg.Value(nn.Linear(3, 2)).at(state)
    tape = rlpg.Tape(baseline=rlpg.Value(nn.Linear(3, 1)))
    tape.add(tape.sample(Normal(torch.zeros(4, requires_grad=True), 1.0)))
    with pytest.raises(EstimatorError, match=r"write baseline=value\.at\(state\)"):
        tape.surrogate()


def test_score_function_has_value_zero_and_the_estimator_as_gradient() -> None:
    log_prob = torch.tensor([[-1.0, -2.0], [-3.0, float("-inf")]], requires_grad=True)
    advantage = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
    weight = torch.tensor([[0.5, 0.25], [0.25, 0.0]])
    term = score_function(log_prob, advantage, weight=weight)
    assert term.item() == 0.0
    term.backward()
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == [[0.5, 0.5], [0.75, 0.0]]


def test_bad_input_is_named() -> None:
    log_prob = torch.zeros(3, 2)
    with pytest.raises(EstimatorError, match="sum log_prob over the action's dimensions"):
        score_function(log_prob, torch.zeros(3), weight=torch.zeros(3))
    with pytest.raises(EstimatorError, match="carries a gradient, got one without"):
        score_function(log_prob, log_prob, weight=log_prob)
    with pytest.raises(EstimatorError, match=r"decay: expected a number in \[0, 1\), got 1.0"):
        MovingAverage(decay=1.0)
    with pytest.raises(EstimatorError, match="expected returns, time and valid"):
        leave_one_out(log_prob, time=log_prob[0].long(), valid=log_prob > 0)

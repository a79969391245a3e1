"""What each baseline does to the gradient: its mean and its variance, summed over all outcomes.

In float64, where the sums are good to 1e-12. A baseline may still be a float32 number: rounding it
changes the baseline, not the expectation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlpg.envs import bandit, chain
from torch import Tensor

from rlpg import Baseline, Reinforce
from rlpg.learners.values import LinearValue, ValueNetwork
from rlpg.policies import Policy
from rlpg.rollouts import Rollout

sys.path.append(str(Path(__file__).parent))
from listed import (
    Episode,
    Moments,
    TableValue,
    bandit_episodes,
    batches,
    chain_episodes,
    exact,
    log_table,
    make_rollout,
    moments,
    moments_at_once,
    outcome_probability,
    plain,
    side_by_side,
    tabular_policy,
    true_values,
)

UNBIASED = ("none", "moving_average", "time_step", "leave_one_out", "linear", "value")
TOLERANCE = 1e-12
GAMMA = 0.9


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def estimator(policy: Policy, baseline: str | Baseline = "none", **options: Any) -> Reinforce:
    """The learner with the settings in which it claims to be unbiased."""
    settings = {"average": "episodes", "gamma_weight": True, "gamma": 1.0, "value_hidden": (8,)}
    generator = torch.Generator().manual_seed(1)
    return plain(policy, baseline, generator=generator, **(settings | options))


def taught(learner: Reinforce, episodes: list[Episode]) -> Reinforce:
    """With a baseline after two updates on arbitrary episodes: no longer 0, far from right."""
    for start in (0, 3):
        rollout = side_by_side(episodes[start::5])
        advantages = learner.advantages(rollout)
        learner.baseline.update(rollout, advantages.returns + 2.0, (advantages.weight > 0).double())
    return learner


def bandit_policy() -> Policy:
    return tabular_policy(1, 4)


def chain_policy() -> Policy:
    return tabular_policy(2, 2)


def of_all_chains(baseline: str | Baseline, *, scale: float = 1.0, **options: Any) -> Moments:
    """Exact moments of the estimator with one episode of the four-step chain."""
    policy, episodes = tabular_policy(2, 2, scale=scale), chain_episodes()
    if isinstance(baseline, str):
        baseline = taught(estimator(policy, baseline), episodes).baseline
    learner = estimator(
        tabular_policy(2, 2, copies=len(episodes), scale=scale), baseline, **options
    )
    if isinstance(baseline, (LinearValue, ValueNetwork)):  # it knows the two states, not the copies
        baseline._features = lambda obs: policy.features(obs % 2)
    return moments_at_once(learner, policy, episodes)


class TestTheOracle:
    """The enumeration itself, against the closed forms that come with the environments."""

    def test_bandit(self) -> None:
        policy = bandit_policy()
        value, gradient = exact(policy, bandit_episodes())
        known, by_logit = bandit.value_and_gradient(log_table(policy)[0].detach().numpy())
        assert value == pytest.approx(known, abs=TOLERANCE)
        np.testing.assert_allclose(gradient[:, 0], by_logit, atol=TOLERANCE)

    @pytest.mark.parametrize("gamma", [1.0, GAMMA])
    def test_chain(self, gamma: float) -> None:
        policy = chain_policy()
        value, gradient = exact(policy, chain_episodes(), gamma)
        known, by_logit = chain.value_and_gradient(log_table(policy).detach().numpy(), gamma)
        assert value == pytest.approx(known, abs=TOLERANCE)
        np.testing.assert_allclose(gradient.T, by_logit, atol=TOLERANCE)


def assert_unbiased(got: Moments, policy: Policy, episodes: list[Episode], gamma: float) -> None:
    value, gradient = exact(policy, episodes, gamma)
    assert got.value == pytest.approx(value, abs=TOLERANCE)
    torch.testing.assert_close(got.mean, gradient, rtol=0, atol=TOLERANCE)


class TestUnbiased:
    """E[surrogate] is the objective, E[its gradient] is the policy gradient."""

    @pytest.mark.parametrize("num_envs", [1, 3])
    @pytest.mark.parametrize("name", UNBIASED)
    def test_bandit(self, name: str, num_envs: int) -> None:
        policy, episodes = bandit_policy(), bandit_episodes()
        learner = taught(estimator(policy, name), episodes)
        got = moments(learner, batches(policy, episodes, num_envs))
        assert_unbiased(got, policy, episodes, gamma=1.0)

    @pytest.mark.parametrize("gamma", [1.0, GAMMA])
    @pytest.mark.parametrize("name", [name for name in UNBIASED if name != "leave_one_out"])
    def test_chain(self, name: str, gamma: float) -> None:
        got = of_all_chains(name, gamma=gamma)
        assert_unbiased(got, chain_policy(), chain_episodes(), gamma)

    @pytest.mark.parametrize("name", ["none", "leave_one_out", "value"])
    def test_pairs_of_episodes_that_end_at_different_times(self, name: str) -> None:
        # Of one step: 1. Of two: 3 ways to begin, 4 to go on. 13^2 batches, with slots not valid.
        policy, episodes = chain_policy(), chain_episodes(2, stops=True)
        learner = taught(estimator(policy, name, gamma=GAMMA), episodes)
        outcomes = batches(policy, episodes, num_envs=2)
        assert len(outcomes) == 13**2
        assert_unbiased(moments(learner, outcomes), policy, episodes, GAMMA)

    @pytest.mark.parametrize("name", ["linear", "value"])
    def test_gae_of_lambda_one_whatever_the_value_function(self, name: str) -> None:
        got = of_all_chains(name, gamma=GAMMA, gae_lambda=1.0)
        value, gradient = exact(chain_policy(), chain_episodes(), GAMMA)
        # The values enter and leave again; those of `linear` are rounded to float32.
        assert got.value == pytest.approx(value, abs=1e-6)
        torch.testing.assert_close(got.mean, gradient, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("gae_lambda", [0.0, 0.5])
    def test_gae_of_any_lambda_with_the_true_values(self, gae_lambda: float) -> None:
        policy, episodes = chain_policy(), chain_episodes()
        values = TableValue(true_values(policy, episodes, GAMMA))
        got = of_all_chains(values, gamma=GAMMA, gae_lambda=gae_lambda)
        assert_unbiased(got, policy, episodes, GAMMA)

    @pytest.mark.parametrize("gae_lambda", [None, 0.5])
    def test_a_rollout_that_cuts_episodes_bootstraps_with_the_true_values(
        self, gae_lambda: float | None
    ) -> None:
        # Two steps of the four, then the value of the state reached: what the first two actions
        # contribute to the gradient of the whole, and the value of the whole.
        policy, episodes = chain_policy(), chain_episodes()
        values = TableValue(true_values(policy, episodes, GAMMA))
        learner = estimator(policy, values, gamma=GAMMA, gae_lambda=gae_lambda)
        begun: dict[tuple[Any, ...], float] = {}
        for episode in episodes:
            first = (episode.states[:3], episode.actions[:2], episode.rewards[:2])
            begun[first] = begun.get(first, 0.0) + outcome_probability(policy, [episode])
        goes_on = torch.zeros(2, 1, dtype=torch.bool)
        outcomes = [
            (p, make_rollout(*(torch.tensor(part)[:, None] for part in parts), terminated=goes_on))
            for parts, p in begun.items()
        ]
        got = moments(learner, outcomes)
        value, gradient = exact(policy, episodes, GAMMA, until=2)
        assert len(outcomes) == 32
        assert got.value == pytest.approx(value, abs=TOLERANCE)
        torch.testing.assert_close(got.mean, gradient, rtol=0, atol=TOLERANCE)


class BatchMean(Baseline):
    """What not to do: the mean of the batch, the sample itself included."""

    def __call__(self, rollout: Rollout, returns: Tensor) -> Tensor:
        mean = (returns * rollout.valid).sum() / rollout.valid.sum()
        return mean.expand_as(returns)


def bias(got: Moments, policy: Policy, episodes: list[Episode], gamma: float = 1.0) -> float:
    """Length of the bias, as a part of the gradient's."""
    _, gradient = exact(policy, episodes, gamma)
    return float((got.mean - gradient).norm() / gradient.norm())


class TestBiased:
    """The same enumeration finds the bias where one is documented."""

    def test_a_mean_that_contains_the_sample_shrinks_the_gradient(self) -> None:
        # b = (G_1 + G_2) / 2, so A_1 = (G_1 - G_2) / 2: half of what leave-one-out has.
        policy, episodes = bandit_policy(), bandit_episodes()
        got = moments(estimator(policy, BatchMean()), batches(policy, episodes, num_envs=2))
        _, gradient = exact(policy, episodes)
        torch.testing.assert_close(got.mean, gradient / 2, rtol=0, atol=TOLERANCE)

    def test_gae_with_wrong_values(self) -> None:
        policy, episodes = chain_policy(), chain_episodes()
        wrong = TableValue(-3 * true_values(policy, episodes))
        assert bias(of_all_chains(wrong, gae_lambda=1.0), policy, episodes) < TOLERANCE
        assert bias(of_all_chains(wrong, gae_lambda=0.5), policy, episodes) > 0.03

    def test_standardized_advantages(self) -> None:
        policy, episodes = bandit_policy(), bandit_episodes()
        learner = estimator(policy, normalize_advantages=True)
        assert bias(moments(learner, batches(policy, episodes, 3)), policy, episodes) > 0.05

    def test_without_the_gamma_weight(self) -> None:
        got = of_all_chains("none", gamma=GAMMA, gamma_weight=False)
        assert bias(got, chain_policy(), chain_episodes(), GAMMA) > 0.05

    def test_the_average_over_steps_turns_the_gradient_where_lengths_are_random(self) -> None:
        policy, episodes = chain_policy(), chain_episodes(3, stops=True)
        outcomes = batches(policy, episodes)
        assert bias(moments(estimator(policy), outcomes), policy, episodes) < TOLERANCE
        mean = moments(estimator(policy, average="steps"), outcomes).mean
        _, gradient = exact(policy, episodes)
        cosine = (mean * gradient).sum() / mean.norm() / gradient.norm()
        assert cosine < 0.99

    def test_the_average_over_steps_only_scales_where_all_lengths_are_equal(self) -> None:
        policy, episodes = chain_policy(), chain_episodes(2)
        got = moments(estimator(policy, average="steps"), batches(policy, episodes))
        value, gradient = exact(policy, episodes)
        assert got.value == pytest.approx(value / 2, abs=TOLERANCE)
        torch.testing.assert_close(got.mean, gradient / 2, rtol=0, atol=TOLERANCE)

    def test_dropping_truncated_episodes(self) -> None:
        policy, episodes = chain_policy(), chain_episodes(3, stops=True, limit="truncated")
        outcomes = batches(policy, episodes)
        # `terminal`: the time limit belongs to the task.
        learner = estimator(policy, truncated_return="terminal")
        assert bias(moments(learner, outcomes), policy, episodes) < TOLERANCE
        learner = estimator(policy, truncated_return="drop")
        assert bias(moments(learner, outcomes), policy, episodes) > 0.05


class TestVariance:
    def test_falls_with_what_the_baseline_knows(self) -> None:
        # A uniform policy of two actions: all scores have one length, so the best baseline is the
        # mean return given what it knows (Greensmith et al. 2004, theorem 8).
        policy, episodes = tabular_policy(2, 2, scale=0.0), chain_episodes()
        table = true_values(policy, episodes)  # [T + 1, S]
        p = torch.tensor([outcome_probability(policy, [episode]) for episode in episodes])
        by_time = side_by_side(episodes).reward.flip(0).cumsum(0).flip(0) @ p  # [T]
        constant = {"sum": float(by_time.mean()), "weight": 1.0}
        per_step = {"sum": by_time, "weight": torch.ones(4)}
        variance = []
        for name, state in (("none", {}), ("moving_average", constant), ("time_step", per_step)):
            baseline = estimator(policy, name).baseline
            baseline.load_state_dict(state)
            variance.append(of_all_chains(baseline, scale=0.0).variance)
        variance.append(of_all_chains(TableValue(table), scale=0.0).variance)
        variance.append(of_all_chains(TableValue(table), scale=0.0, gae_lambda=0.0).variance)
        assert variance == sorted(variance, reverse=True)

    @pytest.mark.parametrize("num_envs", [2, 3])
    def test_leave_one_out_pays_for_estimating_the_mean(self, num_envs: int) -> None:
        # With G' = G - E G, s the score and N environments: A_i = G'_i - sum_j G'_j / (N - 1).
        # The true mean as baseline leaves V = (E|s|^2 G'^2 - |g|^2) / N. Beyond it come
        #   E|s|^2 Var(G) / (N - 1) per environment, from the others' returns in A_i, and
        #   |g|^2 / (N - 1)^2 per pair, as each has the other's return in its baseline:
        # V + E|s|^2 Var(G) / (N (N - 1)) + |g|^2 / (N (N - 1)).
        policy, episodes = bandit_policy(), bandit_episodes()
        value, gradient = exact(policy, episodes)
        constant = estimator(policy, "moving_average")
        constant.baseline.load_state_dict({"sum": value, "weight": 1.0})
        outcomes = batches(policy, episodes, num_envs)
        known = moments(constant, outcomes).variance
        p = log_table(policy)[0].detach().exp()  # [A]
        rewards = torch.tensor(bandit.REWARDS)
        score_square = float(p @ (torch.eye(4) - p).square().sum(dim=1))
        of_return = float(p @ (rewards - value).square())
        extra = score_square * of_return + float(gradient.square().sum())
        predicted = known + extra / (num_envs * (num_envs - 1))
        got = moments(estimator(policy, "leave_one_out"), outcomes).variance
        assert got == pytest.approx(predicted, rel=1e-12)
        assert got < moments(estimator(policy), outcomes).variance

    def test_of_a_batch_is_that_of_an_episode_divided_by_their_number(self) -> None:
        policy, episodes = bandit_policy(), bandit_episodes()
        learner = estimator(policy)
        one = moments(learner, batches(policy, episodes, 1)).variance
        three = moments(learner, batches(policy, episodes, 3)).variance
        assert three == pytest.approx(one / 3, rel=1e-9)


class TestWhatCounts:
    """One episode of returns 6 and 4, one of 10; the slot after that is no transition."""

    def rollout(self) -> Rollout:
        valid = torch.tensor([[True, True], [True, False]])
        shape = (2, 2)
        return make_rollout(
            torch.zeros(3, 2), torch.zeros(shape), torch.zeros(shape), valid=valid,
            terminated=torch.tensor([[False, True], [True, False]]),
        )  # fmt: skip

    def taught(self, name: str) -> Tensor:
        baseline = estimator(bandit_policy(), name).baseline
        rollout = self.rollout()
        returns = torch.tensor([[6.0, 10.0], [4.0, 99.0]])
        baseline.update(rollout, returns, 0.1 * rollout.valid)
        return baseline(rollout, returns)

    def test_moving_average(self) -> None:
        got = self.taught("moving_average")  # (6 + 4 + 10) / 3
        torch.testing.assert_close(got, torch.full((2, 2), 20 / 3))

    def test_per_time_step(self) -> None:
        got = self.taught("time_step")[:, 0]  # (6 + 10) / 2 and 4
        torch.testing.assert_close(got.double(), torch.tensor([8.0, 4.0]))

    def test_leave_one_out(self) -> None:
        got = self.taught("leave_one_out")
        # at time 0 the other's; at time 1 nobody else is left: the other's mean
        assert got.tolist() == [[10.0, 6.0], [10.0, 0.0]]

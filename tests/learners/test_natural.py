"""The natural gradient: its matrix, its direction, its length, and TRPO's line search."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlpg.envs import bandit
from torch import Tensor
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    kl_divergence,
)
from torch.distributions.kl import register_kl

from rlpg import NaturalGradient, Policy
from rlpg.errors import NumericalFault, UsageError
from rlpg.learners.natural import conjugate_gradient
from rlpg.policies import StandardPolicy
from rlpg.rollouts import Rollout

sys.path.append(str(Path(__file__).parent))
from listed import (
    PLAIN,
    bandit_episodes,
    chain_episodes,
    outcome_probability,
    side_by_side,
    tabular_policy,
)
from made import ACTION_SPACES, SPACE, draw_rollout, flat_state, make_policy, weights

HEADS = [(head, None) for head in ACTION_SPACES] + [("product", "gru"), ("masked", "lstm")]
each_head = pytest.mark.parametrize(("head", "memory"), HEADS)
_PLAIN = {
    name: value for name, value in PLAIN.items() if name not in ("learning_rate", "max_grad_norm")
}


def natural(policy: Policy, baseline: str = "none", **options: Any) -> NaturalGradient:
    return NaturalGradient(policy, baseline, **(_PLAIN | options))


@pytest.fixture
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def kl_on(rollout: Rollout, acted: Policy, now: Policy) -> float:
    """Mean KL over the rollout's real steps, by torch."""
    laws = [p(rollout.obs[:-1], rollout.carry, rollout.episode_start[:-1])[0] for p in (acted, now)]
    return float(kl_divergence(*laws)[rollout.valid].mean().detach())


class TestConjugateGradient:
    def test_solves_in_as_many_steps_as_dimensions(self) -> None:
        generator = torch.Generator().manual_seed(0)
        root = torch.randn(6, 6, dtype=torch.float64, generator=generator)
        matrix, b = root @ root.T + torch.eye(6), torch.randn(6, dtype=torch.float64)
        got = conjugate_gradient(lambda v: matrix @ v, b, 6)
        torch.testing.assert_close(got, torch.linalg.solve(matrix, b), rtol=1e-6, atol=1e-8)

    def test_stops_where_nothing_is_left(self) -> None:
        calls: list[int] = []

        def product(v: Tensor) -> Tensor:
            calls.append(1)
            return 2.0 * v

        got = conjugate_gradient(product, torch.tensor([3.0, 4.0]), 10)
        assert got.tolist() == pytest.approx([1.5, 2.0])
        assert len(calls) == 1

    def test_of_a_singular_matrix_is_the_shortest_solution(self) -> None:
        matrix = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
        b = torch.tensor([2.0, 3.0, 0.0], dtype=torch.float64)
        assert conjugate_gradient(lambda v: matrix @ v, b, 10).tolist() == pytest.approx([1, 3, 0])


@pytest.mark.usefixtures("_double")
@each_head
def test_fisher_products_are_differences_of_the_slope_of_the_kl(
    head: str, memory: str | None
) -> None:
    """F v = (grad KL(w + e v) - grad KL(w - e v)) / 2e, in float64."""
    space, options = ACTION_SPACES[head]
    policy = make_policy(space, memory=memory, memory_size=4, **options)
    policy.features = lambda obs: Policy.features(policy, obs).double()  # type: ignore[method-assign]
    learner = natural(policy, damping=0.3)
    batch = learner.batch(draw_rollout(policy, 0))
    with torch.no_grad():
        acted = batch.distribution(policy)
    product = learner.fisher_product(batch, acted)
    start = learner.optimizer.flat()
    v = torch.randn(len(start), generator=torch.Generator().manual_seed(1))
    got = product(v) - 0.3 * v

    def slope_at(values: Tensor) -> Tensor:
        learner.optimizer.move_to(values)
        return learner.optimizer.gradient(learner.kl(batch, acted))

    expected = (slope_at(start + 1e-5 * v) - slope_at(start - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-8)
    assert expected.norm() > 1e-6


@pytest.mark.usefixtures("_double")
class TestClosedForm:
    """Tabular policies whose logits are all the parameters; batches that are the law itself."""

    def learner(self, policy: Policy, **options: Any) -> NaturalGradient:
        policy.network.mlp.linears[0].bias.requires_grad_(False)  # type: ignore[union-attr,operator]
        settings = {"max_kl": 1e-8, "damping": 0.0, "num_cg_iterations": 50} | options
        return natural(policy, gamma=1.0, truncated_return="terminal", **settings)

    def step(self, learner: NaturalGradient, rollout: Rollout, weight: Tensor) -> Tensor:
        """`[A, S]`, the change of the logits by one update whose steps have these weights."""
        batch = learner.batch(rollout)
        assert batch.weight.shape == weight.shape
        table = learner.optimizer.parameters[0]  # [A, S]
        before = table.detach().clone()
        learner.improve(replace(batch, weight=weight), 1.0)
        return table.detach() - before

    def test_of_a_softmax_bandit(self) -> None:
        # F = diag(p) - p p^T and g = p (R - p.R): F^+ g = R less its plain mean, whatever p.
        policy = tabular_policy(1, 4)
        learner = self.learner(policy)
        p = policy(torch.zeros(1, dtype=torch.int64))[0].probs[0].detach()
        rollout = side_by_side(bandit_episodes())
        got = self.step(learner, rollout, p)[:, 0]
        rewards = torch.tensor(bandit.REWARDS)
        x = rewards - rewards.mean()
        fisher = torch.diag(p) - torch.outer(p, p)
        expected = x * math.sqrt(2e-8 / float(x @ fisher @ x))
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-12)

    def test_of_an_enumerated_decision_process(self) -> None:
        # All episodes of the chain, each step with the probability of its episode: F and g by
        # loops over them, and the pseudo-inverse.
        policy, episodes = tabular_policy(2, 2), chain_episodes(3, stops=True)
        learner = self.learner(policy)
        probability = [outcome_probability(policy, [episode]) for episode in episodes]
        total = sum(p * len(e) for p, e in zip(probability, episodes, strict=True))
        table = policy(torch.arange(2))[0].probs.detach().numpy()  # [S, A]
        fisher, gradient = np.zeros((4, 4)), np.zeros(4)  # index a * 2 + s, as the weights lie
        for p, episode in zip(probability, episodes, strict=True):
            for t, (s, a) in enumerate(zip(episode.states, episode.actions, strict=True)):
                score = np.zeros((2, 2))  # [A, S]
                score[:, s] = -table[s]
                score[a, s] += 1.0
                flat = score.reshape(4)
                gradient += p / total * sum(episode.rewards[t:]) * flat
                for b in range(2):
                    other = np.zeros((2, 2))
                    other[:, s] = -table[s]
                    other[b, s] += 1.0
                    other = other.reshape(4)
                    fisher += p / total * table[s, b] * np.outer(other, other)
        x = np.linalg.pinv(fisher) @ gradient
        expected = x * math.sqrt(2e-8 / (x @ fisher @ x))
        rollout = side_by_side(episodes)
        batch = learner.batch(rollout)
        # The batch is laid group of environments by group, in each by time.
        weight = torch.tensor(probability).expand(rollout.reward.shape)
        halves = [slice(a, b) for a, b in ((0, len(episodes) // 2), (len(episodes) // 2, None))]
        laid = torch.cat([weight[:, n][rollout.valid[:, n]] for n in halves]) / total
        obs = torch.cat([rollout.obs[:-1, n][rollout.valid[:, n]] for n in halves])
        assert torch.equal(obs, batch.obs)
        got = self.step(learner, rollout, laid).reshape(4)
        torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-5, atol=1e-10)

    def test_does_not_depend_on_the_parametrization(self) -> None:
        # Logits that are 10 times the parameters: the law moves all the same.
        laws = []
        for scale in (1.0, 10.0):
            policy = tabular_policy(1, 4)
            network = policy.network  # type: ignore[union-attr]
            with torch.no_grad():
                network.mlp.linears[0].weight.div_(scale)
                network.mlp.linears[0].bias.div_(scale)
            network.mlp.forward = lambda x, m=network.mlp, c=scale: c * type(m).forward(m, x)
            learner = self.learner(policy, max_kl=1e-3)
            rollout = side_by_side(bandit_episodes())
            self.step(learner, rollout, torch.tensor([0.1, 0.2, 0.3, 0.4]))
            laws.append(policy(torch.zeros(1, dtype=torch.int64))[0].probs.detach())
        torch.testing.assert_close(laws[0], laws[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("unit", [2.0**-90, 2.0**90])
@pytest.mark.parametrize("line_search", [False, True])
def test_a_gradient_whose_square_was_0_or_infinite(unit: float, line_search: bool) -> None:
    """In float32; late in long episodes gamma^t is as small. The step has the same bits."""
    found = []
    for factor in (1.0, unit):
        learner = natural(make_policy(), line_search=line_search)
        rollout = draw_rollout(learner.policy, 0)
        learner.update(replace(rollout, reward=rollout.reward * factor))
        found.append(weights(learner))
    assert not torch.equal(found[0], weights(natural(make_policy())))
    assert torch.equal(found[0], found[1])


@each_head
class TestLength:
    def policy(self, head: str, memory: str | None) -> Policy:
        space, options = ACTION_SPACES[head]
        return make_policy(space, memory=memory, memory_size=4, **options)

    def test_of_a_short_step(self, head: str, memory: str | None) -> None:
        """Where the KL is its quadratic model, a step without a line search has its length."""
        policy = self.policy(head, memory)
        learner = natural(policy, max_kl=1e-4, damping=0.0, num_cg_iterations=5)
        rollout, acted = draw_rollout(policy, 0), copy.deepcopy(policy)
        metrics = learner.update(rollout)
        acted.normalizer = policy.normalizer = None
        kl = kl_on(rollout, acted, policy)
        assert metrics["train/approx_kl"] == pytest.approx(kl, rel=1e-3)
        assert kl == pytest.approx(1e-4, rel=0.2)

    @pytest.mark.parametrize("max_kl", [0.01, 0.5])
    def test_of_trpos_step_is_within_the_bound(
        self, head: str, memory: str | None, max_kl: float
    ) -> None:
        policy = self.policy(head, memory)
        learner = natural(
            policy, "leave_one_out", max_kl=max_kl, line_search=True, damping=1e-3,
            normalize_advantages=True, entropy_coef=0.01,
        )  # fmt: skip
        moved = 0
        for k in range(3):
            rollout, acted = draw_rollout(policy, k), copy.deepcopy(policy)
            start = weights(learner)
            normalizer, policy.normalizer = policy.normalizer, None
            batch, acted.normalizer = learner.batch(rollout), None
            before = float(learner.objective(batch)[0].detach())
            metrics = learner.improve(batch, 1.0)
            kl = kl_on(rollout, acted, policy)
            assert kl <= max_kl * (1 + 1e-4)
            assert metrics["train/approx_kl"] == pytest.approx(kl, rel=1e-3, abs=1e-7)
            if torch.equal(weights(learner), start):
                assert metrics["train/line_search_steps"] == 10
            else:
                moved += 1
                after = float(learner.objective(batch)[0].detach())
                assert after > before
            policy.normalizer = normalizer
        assert moved >= 2


class TestLineSearch:
    def learner(self, **options: Any) -> NaturalGradient:
        return natural(make_policy(), line_search=True, max_kl=0.01, **options)

    def test_where_it_fails_the_weights_are_what_they_were(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learner = self.learner()
        rollout, before = draw_rollout(learner.policy, 0), weights(learner)
        start = flat_state(learner.policy.state_dict())
        learner.policy.normalizer = None
        kl = NaturalGradient.kl
        # The slope is as it is; the divergence of every step of the search is not acceptable.
        monkeypatch.setattr(
            NaturalGradient,
            "kl",
            lambda *args: kl(*args) + (0.0 if torch.is_grad_enabled() else 1.0),
        )
        metrics = learner.improve(learner.batch(rollout), 1.0)
        assert torch.equal(weights(learner), before)
        assert metrics["train/line_search_steps"] == 10
        assert metrics["train/approx_kl"] == 0.0
        assert len(start) == len(flat_state(learner.policy.state_dict())) + 6  # the normalizer's

    def test_shortens_the_step_by_its_factor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rollout = draw_rollout(make_policy(), 0)
        steps = []
        for refused in (0, 3):
            learner = self.learner(backtrack_factor=0.5)
            calls = iter(range(100))

            def some_kl(
                *args: Any, calls: Any = calls, refused: int = refused, kl: Any = NaturalGradient.kl
            ) -> Tensor:
                if torch.is_grad_enabled():
                    slope: Tensor = kl(*args)
                    return slope
                return torch.tensor(math.inf if next(calls) < refused else 0.0)

            with monkeypatch.context() as patch:
                patch.setattr(NaturalGradient, "kl", some_kl)
                before = weights(learner)
                metrics = learner.improve(learner.batch(rollout), 1.0)
                steps.append(weights(learner) - before)
            assert metrics["train/line_search_steps"] == refused
        torch.testing.assert_close(steps[1], steps[0] / 8, rtol=1e-3, atol=1e-7)

    def test_lr_scale_shortens_the_bound(self) -> None:
        kls = []
        for lr_scale in (1.0, 0.25, 0.0):
            learner = natural(make_policy(), max_kl=1e-3)
            rollout = draw_rollout(learner.policy, 0)
            kls.append(learner.update(rollout, lr_scale=lr_scale)["train/approx_kl"])
        assert kls[1] == pytest.approx(kls[0] / 4, rel=0.05)
        assert kls[2] == 0.0


class Mixed(Policy):
    """Two Normals: a law whose divergence torch does not know."""

    def __init__(self) -> None:
        super().__init__(SPACE, ACTION_SPACES["clipped"][0])
        self.linear = torch.nn.Linear(3, 4)

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        mean = self.linear(obs).unflatten(-1, (2, 2))
        parts = Independent(Normal(mean, torch.ones_like(mean)), 1)
        mixed = MixtureSameFamily(Categorical(logits=torch.zeros(mean.shape[:-1])), parts)
        return Independent(mixed, 0), None  # the error named Independent, which has a divergence


class Cornered(Normal):
    """A Normal whose divergence has a corner where the two are the same."""


@register_kl(Cornered, Cornered)
def _kl_cornered(p: Cornered, q: Cornered) -> Tensor:
    return (p.loc - q.loc).square().sqrt()


class WithACorner(Policy):
    def __init__(self) -> None:
        super().__init__(SPACE, ACTION_SPACES["clipped"][0])
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        mean = self.linear(obs)
        return Independent(Cornered(mean, torch.ones_like(mean)), 1), None


class TestFaults:
    @pytest.mark.parametrize("line_search", [False, True])
    def test_bug_a_divergence_without_a_curvature_trained_nothing_and_said_nothing(
        self, line_search: bool
    ) -> None:
        learner = natural(WithACorner(), line_search=line_search)
        rollout, before = draw_rollout(learner.policy, 0), flat_state(learner.state_dict())
        with pytest.raises(NumericalFault, match="a finite curvature, got NaN; raise damping"):
            learner.update(rollout)
        assert flat_state(learner.state_dict()) == before

    def test_without_an_analytic_divergence_one_sentence(self) -> None:
        learner = natural(Mixed())
        rollout, before = draw_rollout(learner.policy, 0), weights(learner)
        with pytest.raises(UsageError, match="analytic KL divergence, got MixtureSameFamily"):
            learner.update(rollout)
        assert torch.equal(weights(learner), before)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
    def test_a_gradient_that_is_not_finite_changes_nothing(self, bad: float) -> None:
        learner = natural(make_policy(), line_search=True)
        rollout = draw_rollout(learner.policy, 0)
        reward = rollout.reward.clone()
        reward[rollout.valid.nonzero()[3].unbind()] = bad
        before = flat_state(learner.state_dict())
        with pytest.raises(NumericalFault, match="policy: expected a finite"):
            learner.update(replace(rollout, reward=reward * 10))
        assert flat_state(learner.state_dict()) == before

    def test_no_gradient_no_step(self) -> None:
        learner = natural(make_policy())
        rollout = draw_rollout(learner.policy, 0)
        before = weights(learner)
        metrics = learner.update(replace(rollout, reward=torch.zeros_like(rollout.reward)))
        assert torch.equal(weights(learner), before)
        assert metrics["gradient/norm"] == 0.0

    def test_it_has_no_learning_rate(self) -> None:
        learner = natural(make_policy())
        assert "train/learning_rate" not in learner.update(draw_rollout(learner.policy, 0))
        for name in ("learning_rate", "max_grad_norm"):
            with pytest.raises(UsageError, match=f"{name}: no such setting of NaturalSettings"):
                natural(make_policy(), **{name: 1.0})


@pytest.mark.parametrize("line_search", [False, True])
def test_learns_the_bandit(line_search: bool) -> None:
    policy = tabular_policy(1, 4, scale=0.0)
    assert isinstance(policy, StandardPolicy)
    learner = natural(policy, "leave_one_out", max_kl=0.05, line_search=line_search, gamma=1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        obs = torch.zeros(32, dtype=torch.int64)
        with torch.no_grad():
            arms, _ = policy.draw(obs, None, generator)
        learner.update(side_by_side([bandit_episodes()[arm] for arm in arms.tolist()]))
    p = policy(torch.zeros(1, dtype=torch.int64))[0].probs[0].detach()
    assert float(p @ torch.tensor(bandit.REWARDS)) > 0.97 * max(bandit.REWARDS)

"""PPO: where it is REINFORCE, where it is not, and what its options do."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlpg.envs import bandit
from torch import Tensor

from rlpg import PPO, Baseline, Batch, Learner
from rlpg.errors import UsageError
from rlpg.learners import learner as learner_module
from rlpg.learners import values as values_module
from rlpg.learners.advantages import Advantages
from rlpg.learners.optimizer import Optimizer
from rlpg.learners.settings import AGENTS
from rlpg.learners.values import squares
from rlpg.policies import Policy, StandardPolicy
from rlpg.rollouts import Collector, Rollout, make_envs

sys.path.append(str(Path(__file__).parent))
from listed import PLAIN, log_table, make_rollout, plain, tabular_policy
from made import (
    ACTION_SPACES,
    SPACE,
    draw_rollout,
    flat_state,
    make_policy,
    surrogate_gradient,
    weights,
)

MEMORIES = (None, "gru", "lstm")


def plain_ppo(policy: Policy, baseline: str | Baseline = "none", **options: Any) -> PPO:
    """PPO with one step per rollout, and nothing that the options do not ask for."""
    settings = {"num_epochs": 1, "num_minibatches": 1, "normalize_advantages_over": "batch"}
    return PPO(policy, baseline, **(PLAIN | settings | options))


@pytest.fixture
def _plain_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient ascent instead of Adam."""

    def ascend(self: Optimizer, gradient: Tensor, learning_rate: float) -> None:
        self.move_to(self.flat() + learning_rate * gradient)

    monkeypatch.setattr(Optimizer, "_ascend", ascend)


class TestWhereItIsReinforce:
    @pytest.mark.parametrize("memory", MEMORIES)
    @pytest.mark.parametrize("head", ACTION_SPACES)
    def test_the_gradient_at_the_policy_that_acted(self, head: str, memory: str | None) -> None:
        space, options = ACTION_SPACES[head]
        policy = make_policy(space, memory=memory, memory_size=4, **options)
        rollout = draw_rollout(policy, 0)
        settings = {"normalize_advantages": True, "entropy_coef": 0.1}
        ppo, reinforce = plain_ppo(policy, **settings), plain(policy, **settings)
        got, expected = (surrogate_gradient(each, rollout) for each in (ppo, reinforce))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert ppo.estimate(rollout).item() == pytest.approx(reinforce.estimate(rollout).item())

    @pytest.mark.parametrize("memory", MEMORIES)
    def test_of_every_first_minibatch(self, memory: str | None) -> None:
        policy = make_policy(memory=memory, memory_size=4)
        ppo, reinforce = plain_ppo(policy), plain(policy)
        batch = ppo.batch(draw_rollout(policy, 0))
        for part in batch.minibatches(3, torch.Generator().manual_seed(0)):
            got, expected = (
                learner.optimizer.gradient(learner.objective(part)[0])
                for learner in (ppo, reinforce)
            )
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("memory", MEMORIES)
    @pytest.mark.parametrize("baseline", ["none", "leave_one_out", "linear", "value"])
    def test_one_epoch_of_one_minibatch_is_its_step(
        self, baseline: str, memory: str | None
    ) -> None:
        settings = {
            "normalize_advantages": True,
            "entropy_coef": 0.1,
            "max_grad_norm": 0.5,
            "reward_scaling": True,
            "learning_rate_schedule": "linear",
        }
        ppo, reinforce = (
            make(make_policy(memory=memory, memory_size=4), baseline, **settings)
            for make in (plain_ppo, plain)
        )
        for k in range(3):
            rollout = draw_rollout(reinforce.policy, k)
            first, second = (
                learner.update(rollout, progress=0.2 * k) for learner in (ppo, reinforce)
            )
            assert first["gradient/norm"] == pytest.approx(second["gradient/norm"], rel=1e-3)
            assert first["train/learning_rate"] == second["train/learning_rate"]
            assert first["train/entropy"] == pytest.approx(second["train/entropy"], rel=1e-4)
        torch.testing.assert_close(weights(ppo), weights(reinforce), rtol=1e-3, atol=1e-4)


class TestA2C:
    """REINFORCE with a value baseline and n-step returns, by a loop over steps."""

    def test_its_gradient_by_hand(self) -> None:
        policy = make_policy(normalize_observations=False)
        agent = AGENTS["a2c"]
        options = {
            name.removeprefix("learner."): value
            for name, value in agent.defaults.items()
            if name.startswith("learner.")
        }
        settings = {"reward_scaling": False, "entropy_coef": 0.0, "gamma": 0.9}
        learner = plain(policy, "value", **(settings | options))
        rollout = draw_rollout(policy, 0, num_steps=8)
        with torch.no_grad():
            value = learner.baseline.network(rollout.obs)[0][..., 0]  # type: ignore[attr-defined]
        scores, count = torch.zeros_like(weights(learner)), 0
        for n in range(6):
            to_go = value[8, n]
            for t in reversed(range(8)):
                if not rollout.valid[t, n]:
                    continue
                # Cut by a time limit: the value of the last observation, here obs[t + 1]; cut by
                # the end of the rollout: that of what comes next; terminated: nothing.
                if rollout.truncated[t, n]:
                    to_go = value[t + 1, n]
                elif rollout.terminated[t, n]:
                    to_go = torch.zeros(())
                to_go = rollout.reward[t, n] + 0.9 * to_go
                law, _ = policy(rollout.obs[t, n][None])
                log_prob = law.log_prob(rollout.action[t, n][None])[0]
                parts = torch.autograd.grad(log_prob, list(policy.parameters()))
                scores += (to_go - value[t, n]) * torch.cat([part.reshape(-1) for part in parts])
                count += 1
        torch.testing.assert_close(
            surrogate_gradient(learner, rollout), scores / count, rtol=1e-4, atol=1e-6
        )


class TestByEnumeration:
    """A bandit of four arms, acted in by q and improved at p: E_q over all arms."""

    def policies(self) -> tuple[Policy, Policy]:
        acted, now = tabular_policy(1, 4), tabular_policy(1, 4)
        with torch.no_grad():
            now.network.mlp.linears[0].bias.add_(torch.tensor([0.8, -0.9, 0.05, -0.7]))  # type: ignore[union-attr]
        return acted, now

    def expected_gradient(self, clip_range: float, rewards: Tensor) -> tuple[Tensor, Tensor, float]:
        """E_q of the gradient with respect to p's logits, from one learner call per arm; q, p and
        the expected surrogate."""
        acted, now = self.policies()
        q, p = (log_table(each)[0].detach().exp() for each in (acted, now))
        learner = plain_ppo(now, clip_range=clip_range)
        total, value = torch.zeros(4), 0.0
        for arm in range(4):
            rollout = make_rollout(
                torch.zeros(2, 1, dtype=torch.int64),
                torch.tensor([[arm]]),
                rewards[arm][None, None],
            )
            batch = replace(learner.batch(rollout), log_prob=log_table(acted)[0, arm : arm + 1])
            surrogate, _, _ = learner.objective(batch)
            bias = now.network.mlp.linears[0].bias  # type: ignore[union-attr]
            total += q[arm] * torch.autograd.grad(surrogate, bias)[0]
            value += float(q[arm] * surrogate.detach())
        return torch.stack([total, q, p]), rewards, value

    def test_without_the_clip_it_is_the_gradient_at_the_new_policy(self) -> None:
        # E_q[r A grad log p] = grad E_p[A] = p (A - p.A)
        rewards = torch.tensor(bandit.REWARDS, dtype=torch.float32)
        (got, _, p), _, value = self.expected_gradient(1e9, rewards)
        torch.testing.assert_close(got, p * (rewards - p @ rewards), rtol=1e-4, atol=1e-6)
        assert value == pytest.approx(float(p @ rewards), rel=1e-5)

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_the_clip_takes_away_what_moved_as_the_advantage_asks(self, sign: float) -> None:
        rewards = sign * torch.tensor([1.0, -2.0, 3.0, 0.5])
        (got, q, p), _, value = self.expected_gradient(0.2, rewards)
        ratio = p / q
        clipped = ratio.clamp(0.8, 1.2)
        counts = torch.where(rewards > 0, ratio <= 1.2, ratio >= 0.8)
        assert 0 < counts.sum() < 4  # some are clipped
        kept = p * rewards * counts  # q r A
        torch.testing.assert_close(got, kept - p * kept.sum(), rtol=1e-4, atol=1e-6)
        surrogate = torch.minimum(ratio * rewards, clipped * rewards)
        assert value == pytest.approx(float(q @ surrogate), rel=1e-5)


@pytest.mark.usefixtures("_plain_step")
class TestSteps:
    def test_the_second_step_is_against_the_policy_that_acted(self) -> None:
        """Two epochs of one minibatch: the second gradient is that of the ratio to the first
        policy, written out; with the log-probs taken anew it would be REINFORCE's again."""
        learner = plain_ppo(make_policy(), num_epochs=2, learning_rate=0.5, clip_range=1e9)
        policy = learner.policy
        rollout = draw_rollout(policy, 0)
        acted, advantages = copy.deepcopy(policy), learner.advantages(rollout)
        start = weights(learner)
        first = surrogate_gradient(plain(policy), rollout)
        learner.update(rollout)
        middle = copy.deepcopy(acted)
        torch.nn.utils.vector_to_parameters(start + 0.5 * first, middle.parameters())
        log_probs = [p(rollout.obs[:-1])[0].log_prob(rollout.action) for p in (middle, acted)]
        ratio = (log_probs[0] - log_probs[1].detach()).exp()
        surrogate = (advantages.weight * advantages.normalized * ratio)[rollout.valid].sum()
        parts = torch.autograd.grad(surrogate, list(middle.parameters()))
        second = torch.cat([part.reshape(-1) for part in parts])
        torch.testing.assert_close(
            weights(learner), start + 0.5 * first + 0.5 * second, rtol=1e-4, atol=1e-6
        )
        assert (second - first).norm() > 0.05 * first.norm()

    def test_metrics_are_of_the_policy_before_each_step(self) -> None:
        learner = plain_ppo(make_policy(), num_epochs=3, learning_rate=2.0, clip_range=0.05)
        rollout = draw_rollout(learner.policy, 0)
        laws = [learner.policy(rollout.obs[:-1])[0].log_prob(rollout.action).detach()]
        step = Optimizer.step

        def noted(self: Optimizer, gradient: Tensor, lr_scale: float = 1.0) -> float:
            norm = step(self, gradient, lr_scale)
            if self is learner.optimizer:
                law, _ = learner.policy(rollout.obs[:-1])
                laws.append(law.log_prob(rollout.action).detach())
            return norm

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Optimizer, "step", noted)
            metrics = learner.update(rollout)
        ratios = [(law - laws[0]).exp()[rollout.valid] for law in laws]
        kl = [float((ratio - 1 - ratio.log()).mean()) for ratio in ratios]
        clipped = [float(((ratio - 1).abs() > 0.05).float().mean()) for ratio in ratios]
        assert metrics["train/approx_kl"] == pytest.approx(kl[2], rel=1e-3)  # the last epoch's
        assert metrics["train/clip_fraction"] == pytest.approx(np.mean(clipped[:3]), rel=1e-4)
        assert metrics["train/clip_fraction"] > 0
        assert metrics["train/num_epochs"] == 3.0


@pytest.mark.parametrize("memory", [None, "gru"])
def test_a_single_step_had_not_moved_the_policy(memory: str | None) -> None:
    """Its KL was 0, that of the policy before the step, so `desired_kl` only ever raised the
    learning rate."""
    learner = plain_ppo(
        make_policy(memory=memory), num_epochs=1, learning_rate=0.5, desired_kl=1e-4
    )
    rollout = draw_rollout(learner.policy, 0)
    learner.policy.normalizer = None
    batch = learner.batch(rollout)
    metrics = learner.update(rollout)
    assert metrics["train/approx_kl"] == pytest.approx(float(learner.approx_kl(batch)), rel=1e-3)
    assert metrics["train/approx_kl"] > 2e-4
    assert metrics["train/clip_fraction"] == 0.0
    following = learner.update(draw_rollout(learner.policy, 1))
    assert following["train/learning_rate"] == pytest.approx(0.01)  # its cap, from 0.5 / 1.5


class TestEarlyStop:
    def epochs(self, **options: Any) -> tuple[float, float]:
        learner = plain_ppo(make_policy(), num_epochs=8, learning_rate=0.03, **options)
        metrics = learner.update(draw_rollout(learner.policy, 0))
        return metrics["train/num_epochs"], metrics["train/approx_kl"]

    def test_ends_with_the_epoch_that_passed_target_kl(self) -> None:
        free, _ = self.epochs()
        assert free == 8
        _, far = self.epochs(target_kl=1e9)
        for target_kl in (far / 10, far / 3):
            num_epochs, kl = self.epochs(target_kl=target_kl)
            assert 2 < num_epochs < 8
            assert kl > target_kl
            # one epoch fewer had not passed it
            short = plain_ppo(make_policy(), num_epochs=int(num_epochs) - 1, learning_rate=0.03)
            metrics = short.update(draw_rollout(short.policy, 0))
            assert metrics["train/approx_kl"] <= target_kl


class TestAdaptiveLearningRate:
    def learner(self, **options: Any) -> PPO:
        settings = {"num_epochs": 2, "learning_rate": 1e-3} | options
        return plain_ppo(make_policy(), **settings)

    def rates(self, learner: PPO, num_updates: int) -> list[float]:
        found = []
        for k in range(num_updates):
            metrics = learner.update(draw_rollout(learner.policy, k))
            found.append(metrics["train/learning_rate"])
        return found

    def test_rises_where_the_policy_hardly_moves(self) -> None:
        got = self.rates(self.learner(desired_kl=1e3), 4)
        assert got == pytest.approx([1e-3, 1.5e-3, 2.25e-3, 3.375e-3])

    def test_falls_where_it_moves_too_far(self) -> None:
        got = self.rates(self.learner(desired_kl=1e-12), 3)
        assert got == pytest.approx([1e-3, 1e-3 / 1.5, 1e-3 / 2.25])

    def test_stays_where_the_kl_is_within_a_factor_of_two(self) -> None:
        probe = self.learner()
        kl = probe.update(draw_rollout(probe.policy, 0))["train/approx_kl"]
        assert kl > 0
        for factor, change in ((1.9, 1), (2.1, 1.5), (1 / 1.9, 1), (1 / 2.1, 1 / 1.5)):
            learner = self.learner(desired_kl=kl * factor)
            assert self.rates(learner, 2)[1] == pytest.approx(1e-3 * change)

    def test_has_a_floor_and_a_cap(self) -> None:
        got = self.rates(self.learner(desired_kl=1e3, max_learning_rate=2e-3), 4)
        assert got == pytest.approx([1e-3, 1.5e-3, 2e-3, 2e-3])
        got = self.rates(self.learner(desired_kl=1e-12, min_learning_rate=5e-4), 3)
        assert got == pytest.approx([1e-3, 1e-3 / 1.5, 5e-4])

    def test_is_saved(self) -> None:
        learner, twin = self.learner(desired_kl=1e3), self.learner(desired_kl=1e3)
        self.rates(learner, 2)
        twin.load_state_dict(learner.state_dict())
        rollout = draw_rollout(learner.policy, 9)
        first, second = (each.update(rollout) for each in (learner, twin))
        assert first == second
        assert flat_state(learner.state_dict()) == flat_state(twin.state_dict())


def test_bug_a_minibatch_without_a_step_that_counts_made_the_entropy_nan() -> None:
    options = {"num_minibatches": 6, "gae_lambda": None, "truncated_return": "drop"}
    learner = plain_ppo(make_policy(memory="gru", memory_size=4), "value", **options)
    rollout = draw_rollout(learner.policy, 0)
    rollout.terminated[:, 2] = False  # nothing of it is kept
    metrics = learner.update(rollout)
    assert 0.9 < metrics["train/entropy"] < math.log(3) + 1e-6


class Spy(Baseline):
    """Its value is the number of times it has learned."""

    def __init__(self) -> None:
        self.taught: list[Tensor] = []

    def __call__(self, samples: Any, returns: Tensor) -> Tensor:
        return torch.full_like(returns, float(len(self.taught)))

    def update(
        self, samples: Any, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        self.taught.append(returns)
        return {}


class TestRecomputedAdvantages:
    def test_every_pass_has_the_values_as_they_are_then(self) -> None:
        seen: list[Tensor] = []
        spy = Spy()

        class Noting(PPO):
            def surrogate(self, batch: Batch, log_prob: Tensor) -> Tensor:
                seen.append(batch.advantage)
                return super().surrogate(batch, log_prob)

        settings = {"num_epochs": 3, "num_minibatches": 1, "recompute_advantages": True}
        learner = Noting(make_policy(), spy, **(PLAIN | settings))
        learner.update(draw_rollout(learner.policy, 0))
        assert len(seen) == 3
        for k in (1, 2):
            torch.testing.assert_close(seen[0] - seen[k], torch.full_like(seen[0], float(k)))

    @pytest.mark.parametrize("memory", MEMORIES)
    def test_the_ratio_stays_that_to_the_policy_that_acted(self, memory: str | None) -> None:
        """A baseline that never changes: the same steps, bit for bit."""
        learners = [
            plain_ppo(
                make_policy(memory=memory, memory_size=4), "none", num_epochs=3,
                num_minibatches=3, recompute_advantages=recompute,
            )
            for recompute in (False, True)
        ]  # fmt: skip
        for k in range(2):
            rollout = draw_rollout(learners[0].policy, k)
            for learner in learners:
                learner.update(rollout)
        assert torch.equal(*map(weights, learners))

    def test_the_critic_makes_one_pass_with_each_of_the_policy(self) -> None:
        """It made `num_value_epochs` passes each time, and the advantages were computed twice."""
        asked: list[Tensor] = []

        class Noting(PPO):
            def advantages(self, rollout: Rollout) -> Advantages:
                found = super().advantages(rollout)
                asked.append(found.returns)
                return found

        settings = {"num_epochs": 3, "recompute_advantages": True, "num_value_epochs": 7}
        learner = Noting(make_policy(), "value", **(PLAIN | settings | {"gae_lambda": 0.9}))
        taught: list[Tensor] = []
        teach = learner.baseline.update

        def update(samples: Any, returns: Tensor, *args: Any) -> dict[str, float]:
            taught.append(returns)
            return teach(samples, returns, *args)

        learner.baseline.update = update  # type: ignore[method-assign]
        metrics = learner.update(draw_rollout(learner.policy, 0))
        assert len(asked) == len(taught) == 3
        for returns, target in zip(asked, taught, strict=True):
            assert returns is target, "the critic learns what its pass began with"
        minibatches = PLAIN["num_value_minibatches"]
        assert learner.baseline.state_dict()["optimizer"]["count"] == 3 * minibatches
        assert math.isfinite(metrics["train/value_loss"])

    @pytest.mark.parametrize("memory", ["gru", "lstm"])
    def test_a_critic_with_memory_looks_from_the_rollouts_own_start(self, memory: str) -> None:
        # Its carry went on with every pass, and the second one valued the rollout as if it
        # followed itself. With learning rate 0 all passes must have the same advantages.
        seen: list[Tensor] = []

        class Noting(PPO):
            def surrogate(self, batch: Batch, log_prob: Tensor) -> Tensor:
                seen.append(batch.advantage)
                return super().surrogate(batch, log_prob)

        settings = {"num_epochs": 3, "num_minibatches": 1, "recompute_advantages": True}
        policy = make_policy(memory=memory, memory_size=4)
        learner = Noting(policy, "value", **(PLAIN | settings | {"gae_lambda": 0.9}))
        for k in range(2):
            rollout = draw_rollout(policy, k)
            rollout.episode_start[0] = k == 0
            seen.clear()
            learner.update(rollout, lr_scale=0.0)
            assert torch.equal(seen[0], seen[1])
            assert torch.equal(seen[0], seen[2])

    @pytest.mark.parametrize("baseline", ["moving_average", "time_step", "leave_one_out"])
    def test_bug_a_mean_of_past_returns_contained_those_of_the_rollout(self, baseline: str) -> None:
        learners = [
            plain_ppo(make_policy(), baseline, num_epochs=3, recompute_advantages=recompute)
            for recompute in (False, True)
        ]
        for k in range(3):
            rollout = draw_rollout(learners[0].policy, k)
            for learner in learners:
                learner.update(rollout)
        assert flat_state(learners[0].state_dict()) == flat_state(learners[1].state_dict())

    @pytest.mark.parametrize("shared_torso", [False, True])
    def test_bug_every_pass_let_a_value_move_by_the_clip_range_of_the_update(
        self, shared_torso: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        olds: list[Tensor] = []
        for module in (learner_module, values_module):
            monkeypatch.setattr(
                module, "squares", lambda *args: olds.append(args[2]) or squares(*args)
            )
        learner = PPO(
            make_policy(shared_torso=shared_torso), num_epochs=3, num_minibatches=1,
            recompute_advantages=True, value_clip_range=0.1,
            **({} if shared_torso else {"num_value_minibatches": 1}),
        )  # fmt: skip
        for k in range(2):
            learner.update(draw_rollout(learner.policy, k))
        first, second = olds[:3], olds[3:]
        assert len(first) == len(second) == 3
        assert all(torch.equal(old, first[0]) for old in first)
        assert all(torch.equal(old, second[0]) for old in second)


class TestSchedules:
    """Constant, linear, and any function of progress."""

    WAYS: dict[str, tuple[dict[str, Any], Callable[[float], float]]] = {  # noqa: RUF012
        "constant": ({"_schedule": "constant"}, lambda progress: 1.0),
        "linear": ({"_schedule": "linear"}, lambda progress: 1.0 - progress),
        "cooldown": ({"_schedule": "cooldown"}, lambda progress: min(2.0 - 2.0 * progress, 1.0)),
        "callable": (
            {"_schedule": "constant", "function": lambda progress: 0.3 + progress**2},
            lambda progress: 0.3 + progress**2,
        ),
    }

    def learner(self, setting: str, way: str, **options: Any) -> PPO:
        choice, _ = self.WAYS[way]
        settings = {f"{setting}_schedule": choice["_schedule"]} | options
        schedules = {setting: choice["function"]} if "function" in choice else None
        return plain_ppo(make_policy(), schedules=schedules, **settings)

    @pytest.mark.parametrize("progress", [0.0, 0.25, 0.9])
    @pytest.mark.parametrize("way", WAYS)
    def test_of_the_learning_rate(self, way: str, progress: float) -> None:
        learner = self.learner("learning_rate", way, learning_rate=0.01)
        expected = 0.01 * self.WAYS[way][1](progress)
        before, rollout = weights(learner), draw_rollout(learner.policy, 0)
        metrics = learner.update(rollout, progress=progress)
        assert metrics["train/learning_rate"] == pytest.approx(expected)
        moved = (weights(learner) - before).abs()  # Adam's first step is the rate, or 0
        assert float(moved.max()) == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize("progress", [0.0, 0.25, 0.9])
    @pytest.mark.parametrize("way", WAYS)
    def test_of_the_entropy_bonus(self, way: str, progress: float) -> None:
        learner = self.learner("entropy_coef", way, entropy_coef=0.5)
        learner.progress = progress
        rollout = draw_rollout(learner.policy, 0)
        without = plain_ppo(learner.policy)
        bonus = surrogate_gradient(learner, rollout) - surrogate_gradient(without, rollout)
        entropy = learner.policy(rollout.obs[:-1])[0].entropy()[rollout.valid].mean()
        parts = torch.autograd.grad(entropy, list(learner.policy.parameters()))
        expected = 0.5 * self.WAYS[way][1](progress) * torch.cat([p.reshape(-1) for p in parts])
        torch.testing.assert_close(bonus, expected, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("progress", [0.0, 0.25, 0.9])
    @pytest.mark.parametrize("way", WAYS)
    def test_of_the_clip_range(self, way: str, progress: float) -> None:
        """A ratio of 2 with advantage 1 is worth 1 + clip range."""
        learner = self.learner("clip_range", way, clip_range=0.5)
        learner.progress = progress
        batch = learner.batch(draw_rollout(learner.policy, 0))
        law = batch.log_prob + math.log(2.0)
        batch = replace(batch, advantage=torch.ones_like(batch.advantage))
        value = learner.surrogate(batch, law.requires_grad_())
        assert value.item() == pytest.approx(1 + 0.5 * self.WAYS[way][1](progress), rel=1e-5)

    @pytest.mark.parametrize("setting", ["learning_rate", "entropy_coef", "clip_range"])
    def test_reach_their_end(self, setting: str) -> None:
        learner = self.learner(setting, "linear", entropy_coef=0.1)
        metrics = learner.update(draw_rollout(learner.policy, 0), progress=1.0)
        assert all(map(math.isfinite, weights(learner)))
        assert metrics["train/learning_rate"] == (0 if setting == "learning_rate" else 5e-3)

    def test_a_schedule_of_nothing_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"schedules: expected .*clip_range.*, got 'lr'"):
            plain_ppo(make_policy(), schedules={"lr": lambda progress: 1.0})

    def test_the_name_of_a_function_is_not_silently_constant(self) -> None:
        with pytest.raises(UsageError, match=r"learning_rate_schedule: .*schedules="):
            plain_ppo(make_policy(), learning_rate_schedule="my_schedules:cosine")


class TestMinibatches:
    @pytest.mark.parametrize("memory", MEMORIES)
    @pytest.mark.parametrize("num_minibatches", [2, 4, 5])
    def test_normalized_each_by_itself(self, memory: str | None, num_minibatches: int) -> None:
        seen: list[tuple[Tensor, Tensor]] = []

        class Noting(PPO):
            def surrogate(self, batch: Batch, log_prob: Tensor) -> Tensor:
                seen.append((batch.advantage, batch.weight))
                return super().surrogate(batch, log_prob)

        policy = make_policy(memory=memory, memory_size=4)
        settings = {
            "num_epochs": 1,
            "num_minibatches": num_minibatches,
            "normalize_advantages": True,
            "normalize_advantages_over": "minibatch",
        }
        learner = Noting(policy, "none", **(PLAIN | settings))
        learner.update(draw_rollout(policy, 0))
        assert len(seen) == num_minibatches
        for advantage, weight in seen:
            counts = advantage[weight > 0]
            assert counts.mean().item() == pytest.approx(0.0, abs=1e-5)
            assert counts.std().item() == pytest.approx(1.0, rel=1e-4)
            assert not advantage[weight == 0].any()

    def test_more_than_samples(self) -> None:
        learner = plain_ppo(make_policy(), num_minibatches=1000)
        with pytest.raises(UsageError, match=r"num_minibatches: .* at most the \d+ samples"):
            learner.update(draw_rollout(learner.policy, 0))

    @pytest.mark.parametrize("memory", [None, "gru"])
    @pytest.mark.parametrize("name", ["num_minibatches", "num_value_minibatches"])
    def test_more_than_a_rollout_has_are_refused_before_there_is_one(
        self, name: str, memory: str | None
    ) -> None:
        def with_so_many(count: int) -> PPO:
            settings: dict[str, Any] = {name: count}
            return PPO(make_policy(memory=memory), **settings)

        most, what = (8 * 4, "samples") if memory is None else (4, "environments")
        with_so_many(most).check_rollouts(8, 4)
        learner = with_so_many(most + 1)
        expected = rf"^learner.{name}: expected at most the {most} {what}"
        with pytest.raises(UsageError, match=expected):
            learner.check_rollouts(8, 4)
        if memory is None:
            learner.check_rollouts(None, 4)  # episodes: nobody knows how long they are
        else:
            with pytest.raises(UsageError, match=expected):
                learner.check_rollouts(None, 4)


@pytest.mark.parametrize("memory", MEMORIES)
def test_slots_that_are_not_valid_may_hold_anything(memory: str | None) -> None:
    """Rewards and actions of slots that only reset; with memory the observation there is the last
    one of its episode, which the network sees and no weight reaches."""
    settings = {
        "num_epochs": 2,
        "num_minibatches": 3,
        "normalize_advantages": True,
        "normalize_advantages_over": "minibatch",
        "entropy_coef": 0.1,
        "reward_scaling": True,
        "gae_lambda": 0.9,
    }
    policies = [make_policy(memory=memory, memory_size=4) for _ in range(2)]
    clean, dirty = (PPO(policy, "value", **(PLAIN | settings)) for policy in policies)
    for k in range(2):
        rollout = draw_rollout(clean.policy, k)
        bogus = ~rollout.valid
        assert bogus.any()
        spoilt = replace(
            rollout,
            reward=torch.where(bogus, 1e30, rollout.reward),
            action=torch.where(bogus, (rollout.action + 1) % 3, rollout.action),
        )
        first, second = clean.update(rollout), dirty.update(spoilt)
        assert first == second
    assert flat_state(clean.state_dict()) == flat_state(dirty.state_dict())


@pytest.mark.parametrize("memory", [None, "gru"])
def test_learns_a_bandit_of_observations(memory: str | None) -> None:
    """The best action is told by the observation's sign; 8 updates are enough."""
    policy = make_policy(memory=memory, memory_size=8, normalize_observations=False)
    learner = PPO(
        policy, "none", gae_lambda=None, learning_rate=0.02, num_epochs=6, num_minibatches=3,
        learning_rate_schedule="constant", gamma=0.0, truncated_return="terminal",
    )  # fmt: skip

    def paid(rollout: Rollout) -> Rollout:
        best = 1 + (rollout.obs[:-1, :, 0] > 0).long()
        return replace(rollout, reward=(rollout.action == best).float() * rollout.valid)

    for k in range(8):
        learner.update(paid(draw_rollout(policy, k, num_steps=16, num_envs=12)))
    rollout = paid(draw_rollout(policy, 99, num_steps=50))
    assert rollout.reward[rollout.valid].mean() > 0.8


def test_the_settings_of_another_agent_are_refused() -> None:
    with pytest.raises(UsageError, match="max_kl: no such setting of PPOSettings"):
        PPO(make_policy(), max_kl=0.1)
    with pytest.raises(UsageError, match=r"min_learning_rate: expected at most max_learning_rate"):
        PPO(make_policy(), min_learning_rate=0.1, max_learning_rate=0.01)
    assert SPACE.shape == (3,)
    assert issubclass(PPO, Learner)


@pytest.mark.parametrize(
    ("memory", "num_envs", "expected"),
    [(None, 16, 8), ("gru", 16, 4), ("gru", 10, 2), ("lstm", 7, 1), ("gru", 1, 1)],
)
def test_minibatches_keep_their_size(memory: str | None, num_envs: int, expected: int) -> None:
    """PPO with memory had 32 minibatches of 16 environments, then 16 of a single one."""
    envs, _ = make_envs("CartPole-v1", num_envs, seed=0)
    policy = StandardPolicy(
        envs.single_observation_space, envs.single_action_space,
        generator=torch.Generator().manual_seed(0), memory=memory,
    )  # fmt: skip
    learner = PPO(policy, num_epochs=1)
    learner.update(Collector(envs, policy, seed=0).steps(32))
    state = learner.state_dict()
    assert state["optimizer"]["count"] == expected, "of 64 samples, or 4 environments"
    assert state["baseline"]["optimizer"]["count"] == 10 * expected

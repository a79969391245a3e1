"""Policy and critic on one torso: one objective, whose gradient is the sum of its parts."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import rlpg
from rlpg import PPO, Baseline, Learner, NaturalGradient, Reinforce
from rlpg.errors import UsageError
from rlpg.learners.values import SharedValue, ValueNetwork
from rlpg.policies import Network, Policy, StandardPolicy, map_carry, policy_from
from rlpg.rollouts import Rollout

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from covering import grid
from listed import PLAIN
from made import ACTION_SPACES, draw_rollout, flat_state, make_policy, weights

SETTINGS = {name: PLAIN[name] for name in PLAIN if "value" not in name} | {"gae_lambda": 0.9}
MEMORIES = (None, "gru", "lstm")
each_memory = pytest.mark.parametrize("memory", MEMORIES)


class Torso(nn.Module):
    """A user's network."""

    def __init__(self, num_features: int, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(num_features, 7)
        self.last = nn.Linear(7, num_outputs)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(features)))
        return out


def shared(memory: str | None = None, head: str = "discrete", **options: Any) -> Policy:
    space, more = ACTION_SPACES[head]
    return make_policy(space, memory=memory, memory_size=4, shared_torso=True, **(more | options))


def outputs_of(policy: Policy, rollout: Rollout) -> tuple[Any, Tensor]:
    """The law `[T, N]` and the values `[T + 1, N]`, by the network itself."""
    network = policy.shared_network
    assert network is not None
    starts = rollout.episode_start
    features = policy.features(rollout.obs)
    outputs, _ = network(features, rollout.carry, starts if policy.has_memory else None)
    mask = policy.observations.mask(rollout.obs[:-1])
    return policy.head(outputs[:-1, :, :-1], mask), outputs[..., -1]


class TestTheGradient:
    @each_memory
    @pytest.mark.parametrize("head", ACTION_SPACES)
    def test_is_the_sum_written_by_hand(self, head: str, memory: str | None) -> None:
        policy = shared(memory, head)
        settings = SETTINGS | {"entropy_coef": 0.0, "value_coef": 0.3}
        learner = PPO(policy, **settings)
        rollout = draw_rollout(policy, 0)
        advantages = learner.advantages(rollout)
        batch = learner.batch(rollout)
        got = learner.optimizer.gradient(learner.objective(batch)[0])
        law, value = outputs_of(policy, rollout)
        weight = advantages.weight
        gain = (weight * advantages.normalized * law.log_prob(rollout.action)).sum()
        loss = (weight * (value[:-1] - advantages.returns).square()).sum()
        expected = torch.autograd.grad(gain - 0.3 * loss, list(policy.parameters()))
        flat = torch.cat([part.reshape(-1) for part in expected])
        torch.testing.assert_close(got, flat, rtol=1e-4, atol=1e-6)

    def test_with_the_clip_of_the_value(self) -> None:
        policy = shared()
        learner = PPO(policy, **SETTINGS, value_clip_range=0.1, value_coef=1.0)
        rollout = draw_rollout(policy, 0)
        batch = learner.batch(rollout)
        old = batch.value
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.3
        _, _, terms = learner.objective(batch)
        value = policy.forward_with_value(batch.obs)[1]
        near = old + (value - old).clamp(-0.1, 0.1)
        worst = torch.maximum((value - batch.returns) ** 2, (near - batch.returns) ** 2)
        assert terms["train/value_loss"].item() == pytest.approx(
            (batch.weight * worst).sum().item()
        )
        assert not torch.equal(worst, (value - batch.returns) ** 2)

    @each_memory
    def test_minibatches_estimate_it(self, memory: str | None) -> None:
        """Their mean is the whole batch's, also where sequences stay whole."""
        policy = shared(memory)
        learner = PPO(policy, **SETTINGS)
        batch = learner.batch(draw_rollout(policy, 0))
        whole = learner.optimizer.gradient(learner.objective(batch)[0])
        parts = list(batch.minibatches(2, torch.Generator().manual_seed(0)))
        shares = [len(part) / len(batch) for part in parts]
        gradients = [learner.optimizer.gradient(learner.objective(part)[0]) for part in parts]
        mean = sum(s * g for s, g in zip(shares, gradients, strict=True))
        torch.testing.assert_close(mean, whole, rtol=1e-4, atol=1e-6)


class TestTheValue:
    @each_memory
    def test_is_that_of_a_separate_network_with_the_same_weights(self, memory: str | None) -> None:
        """Also at the true last observations, with the carry of their own episodes."""
        policy = shared(memory)
        network = policy.shared_network
        assert network is not None
        for seed in range(3):
            rollout = draw_rollout(policy, seed)
            rollout.episode_start[0] = False  # it goes on from a carry that is not zero
            rollout = replace(rollout, carry=map_carry(torch.randn_like, rollout.carry))
            separate = ValueNetwork(
                network, policy.features, generator=torch.Generator().manual_seed(0)
            )
            separate._carry = rollout.carry
            got = SharedValue(network, policy.features).predict(rollout)
            for mine, theirs in zip(got, separate.predict(rollout), strict=True):
                assert torch.equal(mine, theirs)
            torch.testing.assert_close(got[0], outputs_of(policy, rollout)[1][:-1].detach())

    @each_memory
    def test_learns_the_returns(self, memory: str | None) -> None:
        policy = shared(memory, normalize_observations=False)
        learner = PPO(
            policy, num_epochs=20, num_minibatches=2, learning_rate=0.01, reward_scaling=False,
            gamma=0.0, gae_lambda=1.0,
        )  # fmt: skip
        for k in range(6):
            rollout = draw_rollout(policy, k, num_steps=16, num_envs=8)
            paid = 2.0 + rollout.obs[:-1, :, 0]
            metrics = learner.update(replace(rollout, reward=paid))
        assert metrics["train/explained_variance"] > 0.8
        assert metrics["train/value_loss"] < 0.2


class TestActing:
    @each_memory
    @pytest.mark.parametrize("head", ["discrete", "clipped", "masked", "product", "beta"])
    def test_ignores_the_last_output(self, head: str, memory: str | None) -> None:
        policy = shared(memory, head)
        rollout = draw_rollout(policy, 0)
        obs, carry = rollout.obs[0], policy.initial_carry(6)
        before = policy.mode(obs, carry)[0]
        actor = policy.actor(None, 6)
        network = policy.shared_network
        assert isinstance(network, Network)
        with torch.inference_mode():
            acted = actor(obs.numpy(), carry, None)[0]
        with torch.no_grad():
            network.mlp.linears[-1].bias[-1] += 5.0  # type: ignore[union-attr]
        assert torch.equal(before, policy.mode(obs, carry)[0])
        torch.testing.assert_close(torch.from_numpy(acted), before, rtol=1e-4, atol=1e-5)

    def test_the_file_brings_it_back(self) -> None:
        policy = shared("gru")
        again = policy_from(policy.describe())
        again.load_state_dict(policy.state_dict())
        assert again.shared_network is not None
        assert again.describe() == policy.describe()
        assert "shared_torso" not in make_policy().describe()


@pytest.mark.parametrize(
    ("agent", "memory", "network"), grid(["ppo", "a2c"], MEMORIES, [None, Torso])
)
def test_resume_is_exact(agent: str, memory: str | None, network: Any, tmp_path: Path) -> None:
    settings = {
        "policy.shared_torso": True, "policy.memory": memory or "none", "policy.hidden": (8,),
        "policy.memory_size": 4, "rollout.num_envs": 4, "rollout.num_steps": 16,
        "checkpoint.every": 128, "evaluation.episodes": 1, "evaluation.final_episodes": 1,
        "evaluation.every": 256, "evaluation.stochastic": False,
    }  # fmt: skip
    if agent == "ppo":
        settings |= {"learner.num_epochs": 2, "learner.num_minibatches": 2}

    def train(name: str, total_steps: int, **options: Any) -> rlpg.Run:
        return rlpg.train(
            "CartPole-v1", agent, total_steps=total_steps, recipe="default",
            run_dir=tmp_path / name, overrides=settings, network=network, **options,
        )  # fmt: skip

    whole = train("whole", 256)
    train("part", 256, on_log=lambda step, metrics: step >= 128)
    resumed = rlpg.resume(tmp_path / "part", total_steps=256, exact=True, network=network)
    states = [run.policy.state_dict() for run in (whole, resumed)]
    assert flat_state(states[0]) == flat_state(states[1])


class TestRefusals:
    def test_of_learners_that_measure_their_step_on_the_policy(self) -> None:
        with pytest.raises(UsageError, match="shared_torso: expected false for NaturalGradient"):
            NaturalGradient(shared())

    @pytest.mark.parametrize("baseline", ["none", "linear", "leave_one_out"])
    def test_of_other_baselines(self, baseline: str) -> None:
        with pytest.raises(UsageError, match=f"baseline: expected value, .* got {baseline}"):
            Reinforce(shared(), baseline)

    def test_of_a_baseline_of_ones_own(self) -> None:
        own: Baseline = rlpg.MovingAverage()
        with pytest.raises(UsageError, match="got MovingAverage"):
            PPO(shared(), own)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("value_hidden", (8,)), ("value_learning_rate", 1.0), ("num_value_epochs", 3),
            ("num_value_minibatches", 3),
        ],
    )  # fmt: skip
    def test_of_settings_of_a_separate_critic(self, name: str, value: Any) -> None:
        settings: dict[str, Any] = {name: value}
        with pytest.raises(UsageError, match=f"^{name}: expected nothing with shared_torso"):
            PPO(shared(), **settings)

    def test_of_a_critic_that_sees_more(self) -> None:
        parts = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (2,))})
        with pytest.raises(UsageError, match="critic_only: expected no entry with shared_torso"):
            StandardPolicy(
                parts, spaces.Discrete(2), generator=torch.Generator(), shared_torso=True,
                critic_only=("b",),
            )  # fmt: skip

    def test_a_separate_critic_has_no_joint_pass(self) -> None:
        with pytest.raises(UsageError, match="expected a torso shared with the critic"):
            make_policy().forward_with_value(torch.zeros(1, 3))


def test_recomputed_advantages_are_of_the_values_after_each_pass() -> None:
    seen: list[Tensor] = []

    class Noting(PPO):
        def advantages(self, rollout: Rollout) -> Any:
            found = super().advantages(rollout)
            seen.append(found.advantage)
            return found

    learner: Learner = Noting(
        shared(), **SETTINGS, num_epochs=3, num_minibatches=2, recompute_advantages=True
    )
    before = weights(learner)
    learner.update(draw_rollout(learner.policy, 0))
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert not torch.equal(before, weights(learner))

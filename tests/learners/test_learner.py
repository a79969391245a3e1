"""The contract: a learner and a baseline of one's own, refusals, and going on from a state."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from rlpg import (
    PPO,
    Baseline,
    Batch,
    Collector,
    Learner,
    LearnerSettings,
    NaturalGradient,
    Policy,
    Reinforce,
    Rollout,
    StandardPolicy,
    Value,
    make_envs,
)
from rlpg.errors import UsageError
from rlpg.policies import policy_from

sys.path.append(str(Path(__file__).parent))
from made import BASELINES, SPACE, draw_rollout, flat_state, make_policy, weights

# ---- begin: a learner of one's own (PPO's penalty, Schulman et al. 2017, section 4)


@dataclass(frozen=True)
class PenaltySettings(LearnerSettings):
    """Epochs on the likelihood ratio, held back by a penalty on its logarithm's square."""

    penalty: float = 1.0
    """weight of the squared log ratio"""
    num_epochs: int = 3
    """steps on every rollout"""


class Penalty(Learner):
    """Several steps on one rollout."""

    Settings: ClassVar[type[LearnerSettings]] = PenaltySettings
    settings: PenaltySettings

    def surrogate(self, batch: Batch, log_prob: Tensor) -> Tensor:
        log_ratio = log_prob - batch.log_prob
        gain = log_ratio.exp() * batch.advantage - self.settings.penalty * log_ratio.square()
        return batch.mean(gain)

    def improve(self, batch: Batch, lr_scale: float) -> dict[str, float]:
        for _ in range(self.settings.num_epochs):
            objective, _, terms = self.objective(batch)
            norm = self.optimizer.step(self.optimizer.gradient(objective), lr_scale)
        return {"train/entropy": float(terms["train/entropy"]), "gradient/norm": norm}


# ---- end


class Halfway(Baseline):
    """A baseline of one's own in five lines: half the mean of the rollout before."""

    mean = 0.0

    def __call__(self, samples: Any, returns: Tensor) -> Tensor:
        return torch.full_like(returns, self.mean / 2)

    def update(
        self, samples: Any, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        self.mean = float((weight * returns).sum() / weight.sum())
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


LEARNERS: dict[str, tuple[type[Learner], dict[str, Any]]] = {
    "reinforce": (Reinforce, {}),
    "a2c": (Reinforce, {"normalize_advantages": False}),
    "ppo": (PPO, {"num_epochs": 2, "num_minibatches": 2}),
    "ppo with everything": (
        PPO,
        {
            "num_epochs": 2,
            "num_minibatches": 3,
            "recompute_advantages": True,
            "value_clip_range": 0.2,
            "desired_kl": 0.01,
            "clip_range_schedule": "linear",
            "entropy_coef_schedule": "linear",
        },
    ),
    "npg": (NaturalGradient, {"max_kl": 1e-3}),
    "trpo": (NaturalGradient, {"line_search": True}),
    "own": (Penalty, {"penalty": 0.5}),
}
each_learner = pytest.mark.parametrize("name", LEARNERS)


def make(
    name: str, baseline: str | Baseline, policy: Policy, seed: int = 0, **more: Any
) -> Learner:
    factory, options = LEARNERS[name]
    generator = torch.Generator().manual_seed(seed)
    return factory(
        policy, baseline, value_hidden=(8,), num_value_epochs=2, num_value_minibatches=2,
        generator=generator, **options, **more,
    )  # fmt: skip


class TestAnOwnLearner:
    def test_is_thirty_lines(self) -> None:
        lines = Path(__file__).read_text(encoding="utf-8").splitlines()
        begin, end = (
            next(i for i, line in enumerate(lines) if line.startswith(f"# ---- {word}"))
            for word in ("begin", "end")
        )
        own = lines[begin + 1 : end]
        assert sum(bool(line.strip()) for line in own) <= 30

    def test_learns(self) -> None:
        """The best action is told by the sign of the observation."""
        policy = make_policy(normalize_observations=False)
        learner = Penalty(
            policy, "none", gae_lambda=None, learning_rate=0.02, penalty=0.1, gamma=0.0,
            learning_rate_schedule="constant", num_epochs=20,
        )  # fmt: skip

        def paid(rollout: Rollout) -> Rollout:
            best = 1 + (rollout.obs[:-1, :, 0] > 0).long()
            reward = (rollout.action == best).float() * rollout.valid
            return Rollout(**(vars(rollout) | {"reward": reward}))

        for k in range(15):
            learner.update(paid(draw_rollout(policy, k, num_steps=16, num_envs=12)))
        rollout = paid(draw_rollout(policy, 99, num_steps=50))
        assert rollout.reward[rollout.valid].mean() > 0.8

    def test_has_settings_of_its_own(self) -> None:
        learner = Penalty(make_policy(), penalty=3, num_epochs=5)
        assert learner.settings.penalty == 3.0
        assert learner.settings.num_epochs == 5
        assert learner.settings.gamma == 0.99
        with pytest.raises(UsageError, match="penalties: no such setting"):
            Penalty(make_policy(), penalties=3)
        with pytest.raises(UsageError, match=r"num_epochs: expected an integer, got 1\.5"):
            Penalty(make_policy(), num_epochs=1.5)

    def test_a_surrogate_that_is_no_scalar_is_named(self) -> None:
        class Each(Learner):
            def surrogate(self, batch: Batch, log_prob: Tensor) -> Tensor:
                return batch.advantage * log_prob

        learner = Each(make_policy())
        with pytest.raises(UsageError, match=r"Each\.surrogate: expected a scalar, got shape \["):
            learner.update(draw_rollout(learner.policy, 0))

    def test_one_gradient_step_is_the_default(self) -> None:
        class Least(Learner):
            def surrogate(self, batch: Batch, log_prob: Tensor) -> Tensor:
                return batch.mean(batch.advantage * log_prob)

        own, reinforce = Least(make_policy()), Reinforce(make_policy())
        for k in range(2):
            rollout = draw_rollout(own.policy, k)
            first, second = (learner.update(rollout) for learner in (own, reinforce))
            assert first.keys() == second.keys()
            assert first["gradient/norm"] == pytest.approx(second["gradient/norm"], rel=1e-4)
        torch.testing.assert_close(weights(own), weights(reinforce), rtol=1e-3, atol=1e-5)

    def test_without_a_surrogate_it_cannot_be_made(self) -> None:
        with pytest.raises(TypeError, match="abstract"):
            type("Mine", (Learner,), {})(make_policy())


class TestBaselines:
    @each_learner
    def test_one_of_ones_own(self, name: str) -> None:
        baseline = Halfway()
        learner = make(name, baseline, make_policy())
        assert learner.reward_scale is not None
        learner.reward_scale.update(draw_rollout(learner.policy, 9))  # the first has a scale, too
        for k in range(2):
            rollout = draw_rollout(learner.policy, k)
            before = baseline.mean
            advantages = learner.advantages(rollout)
            used = (advantages.returns - advantages.advantage)[rollout.valid]
            torch.testing.assert_close(used, torch.full_like(used, before / 2))
            learner.update(rollout)
            counted = advantages.returns[rollout.valid].mean()
            assert baseline.mean == pytest.approx(float(counted), rel=1e-4, abs=1e-6)

    def test_of_another_shape(self) -> None:
        class Flat(Baseline):
            def __call__(self, samples: Any, returns: Tensor) -> Tensor:
                return returns[0]

        learner = Reinforce(make_policy(), Flat())
        with pytest.raises(UsageError, match=r"baseline: expected shape \[T, N\] = \[9, 6\], got"):
            learner.update(draw_rollout(learner.policy, 0))

    def test_a_network_of_ones_own(self) -> None:
        net = torch.nn.Linear(3, 1)
        before = net.weight.detach().clone()
        learner = Reinforce(make_policy(), Value(net))
        assert learner.advantage_rule.gae_lambda == 0.95  # it predicts values
        learner.update(draw_rollout(learner.policy, 0))
        assert not torch.equal(net.weight, before)

    def test_auto_is_what_suits_the_baseline_and_the_actions(self) -> None:
        box = spaces.Box(-1.0, 1.0, (2,))
        for space, coef in ((spaces.Discrete(2), 0.02), (box, 0.0)):
            for baseline, gae_lambda, truncated in (
                ("value", 0.95, "bootstrap"),
                ("linear", 0.95, "bootstrap"),
                ("none", None, "terminal"),
                (Halfway(), None, "terminal"),
            ):
                learner = Reinforce(make_policy(space), baseline)
                assert learner.entropy_coef == coef
                assert learner.advantage_rule.gae_lambda == gae_lambda
                assert learner.advantage_rule.truncated_return == truncated

    def test_the_value_network_is_as_wide_as_the_policy_unless_told(self) -> None:
        for options, width in (({}, 8), ({"value_hidden": (5,)}, 5)):
            network = Reinforce(make_policy(hidden=(8,)), **options).baseline.network  # type: ignore[attr-defined,arg-type]
            assert network.mlp.linears[0].weight.shape == (width, 3)


class TestParameters:
    @each_learner
    def test_what_is_not_used_stays(self, name: str) -> None:
        policy = make_policy()
        policy.spare = torch.nn.Parameter(torch.ones(3))
        learner = make(name, "value", policy)
        for k in range(2):
            learner.update(draw_rollout(policy, k))
        assert policy.spare.tolist() == [1.0, 1.0, 1.0]

    @each_learner
    def test_what_is_frozen_stays(self, name: str) -> None:
        policy = make_policy()
        frozen = policy.network.mlp.linears[0].weight.requires_grad_(False)  # type: ignore[union-attr]
        before, free = frozen.clone(), policy.network.mlp.linears[1].weight.detach().clone()  # type: ignore[union-attr]
        learner = make(name, "value", policy)
        for k in range(2):
            learner.update(draw_rollout(policy, k))
        assert torch.equal(frozen, before)
        assert not torch.equal(policy.network.mlp.linears[1].weight, free)  # type: ignore[union-attr]

    @each_learner
    @pytest.mark.parametrize("change", ["unfrozen", "frozen", "all frozen", "added"])
    def test_what_was_unfrozen_later_never_learned(self, name: str, change: str) -> None:
        """Nothing said so; what was frozen later ended in `One of the differentiated Tensors`."""
        policy = make_policy()
        weight = policy.network.mlp.linears[0].weight  # type: ignore[union-attr]
        weight.requires_grad_(change != "unfrozen")
        learner = make(name, "value", policy)
        learner.update(draw_rollout(policy, 0))
        if change == "added":
            policy.spare = torch.nn.Parameter(torch.ones(3))
        elif change == "all frozen":
            policy.requires_grad_(False)
        else:
            weight.requires_grad_(change == "unfrozen")
        before = weights(learner)
        with pytest.raises(UsageError, match=r"policy: expected .*make another learner"):
            learner.update(draw_rollout(make_policy(), 1))
        assert torch.equal(weights(learner), before)
        make(name, "value", policy.requires_grad_(True)).update(draw_rollout(policy, 1))

    @each_learner
    def test_a_policy_that_is_frozen_as_a_whole(self, name: str) -> None:
        policy = make_policy().requires_grad_(False)
        with pytest.raises(UsageError, match=r"frozen until policy\.requires_grad_\(True\)"):
            make(name, "none", policy)
        policy.requires_grad_(True)
        learner = make(name, "none", policy)
        before = weights(learner)
        learner.update(draw_rollout(policy, 0))
        assert not torch.equal(weights(learner), before)

    @each_learner
    def test_weights_that_were_0_in_float32_moved_them(self, name: str) -> None:
        """Late in long episodes gamma^t is 0, and Adam's momentum went on; PPO refused to cut no
        samples into minibatches. Where every episode is dropped, nothing moves either."""
        for options in ({"gamma_weight": True}, {"truncated_return": "drop"}):
            learner = make(name, "value", make_policy(), gamma=0.5, **options)
            start = weights(learner)
            learner.update(draw_rollout(learner.policy, 0))
            before = weights(learner)
            assert not torch.equal(before, start)
            rollout = draw_rollout(learner.policy, 1)
            nobody = torch.zeros_like(rollout.terminated)
            learner.update(replace(rollout, time=rollout.time + 200, terminated=nobody))
            assert torch.equal(weights(learner), before)

    def test_two_learners_of_one_policy_take_turns(self) -> None:
        policy = make_policy()
        pair = make("ppo", "none", policy), make("trpo", "none", policy)
        for k in range(4):
            learner = pair[k % 2]
            before = weights(learner)
            learner.update(draw_rollout(policy, k))
            assert not torch.equal(weights(learner), before)
            assert torch.equal(weights(pair[0]), weights(pair[1]))


class TestBadSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"gamma": 2}, r"gamma: expected a number in \[0, 1\], got 2"),
            ({"gamma": math.nan}, "gamma: expected a number"),
            ({"gamma": True}, "gamma: expected a number"),
            ({"learning_rate": -1}, "learning_rate: expected a number > 0, got -1"),
            ({"learning_rate": 0}, "learning_rate: expected a number > 0, got 0"),
            ({"learning_rate": "fast"}, "learning_rate: expected a number > 0, got 'fast'"),
            ({"average": "foo"}, "average: expected one of episodes, steps, got 'foo'"),
            ({"max_grad_norm": -1}, "max_grad_norm: expected a number > 0 or none, got -1"),
            ({"entropy_coef": -0.1}, "entropy_coef: expected"),
            ({"baseline": "values"}, "baseline: expected one of none, .*value"),
            ({"gae_lambda": 1.5}, "gae_lambda: expected"),
            ({"num_value_epochs": 0}, "num_value_epochs: expected an integer >= 1, got 0"),
            ({"value_hidden": (0,)}, "value_hidden: expected"),
            ({"learning_rate_schedule": "cosine"}, "learning_rate_schedule: expected"),
            ({"learning_rat": 1e-3}, "learning_rat: no such setting.*learning_rate"),
            ({"n_epochs": 4}, "n_epochs: no such setting"),
            ({"gae_lambda": 0.9, "baseline": "none"}, "gae_lambda: expected auto, none or 1"),
        ],
        ids=str,
    )
    def test_are_one_sentence(self, settings: dict[str, Any], message: str) -> None:
        for learner in (Reinforce, PPO):
            with pytest.raises(UsageError, match=message) as raised:
                learner(make_policy(), **settings)
            assert "\n" not in str(raised.value)

    def test_gae_with_a_baseline_of_ones_own_that_predicts_nothing(self) -> None:
        with pytest.raises(UsageError, match=r"gae_lambda: needs a baseline .* got Halfway"):
            Reinforce(make_policy(), Halfway(), gae_lambda=0.9)


# ------------------------------------------------------------------------------- going on


def collected(memory: str | None, seed: int) -> tuple[Collector, Policy]:
    envs, _ = make_envs("CartPole-v1", 4, seed=7)
    policy = StandardPolicy(
        envs.single_observation_space,
        envs.single_action_space,
        hidden=(8,),
        memory=memory,
        memory_size=5,
        generator=torch.Generator().manual_seed(seed),
    )
    return Collector(envs, policy, seed=seed), policy


def trained(learner: Learner, collector: Collector, updates: range) -> list[dict[str, float]]:
    return [learner.update(collector.steps(16), progress=k / 4) for k in updates]


GRID = [
    (name, baseline, memory)
    for name in LEARNERS
    for baseline in (*BASELINES, "own")
    for memory in (None, "gru", "lstm")
    # Every pair of the three choices once, and the rest of the value network's.
    if (baseline == "value" and not (memory == "gru" and name in ("npg", "trpo")))
    or (memory is None and name in ("reinforce", "ppo"))
    or name == "own"
]


@pytest.mark.parametrize(("name", "baseline", "memory"), GRID)
def test_goes_on_with_the_same_bits(name: str, baseline: str, memory: str | None) -> None:
    """Learner and collector, saved after two updates, loaded into others made from other seeds."""

    def begin(seed: int) -> tuple[Learner, Collector]:
        collector, policy = collected(memory, seed)
        own: str | Baseline = Halfway() if baseline == "own" else baseline
        return make(name, own, policy, seed), collector

    learner, collector = begin(0)
    trained(learner, collector, range(2))
    states = copy.deepcopy((learner.state_dict(), collector.state_dict()))
    twin, again = begin(1)
    twin.load_state_dict(states[0])
    assert again.load_state_dict(states[1]) == ""
    expected = trained(learner, collector, range(2, 4))
    got = trained(twin, again, range(2, 4))
    assert flat_state(got) == pytest.approx(flat_state(expected), abs=0, nan_ok=True)
    assert flat_state(twin.state_dict()) == flat_state(learner.state_dict())
    saved, reached = (flat_state(plain_data(c.state_dict())) for c in (again, collector))
    assert saved == reached
    assert twin.num_updates == 4


def plain_data(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: plain_data(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [plain_data(value) for value in state]
    return state.tobytes() if isinstance(state, np.ndarray) else state


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("baseline", ["value", "linear", "none"])
@each_learner
def test_the_unit_of_rewards_changes_nothing(name: str, baseline: str, sparse: bool) -> None:
    """The first update took rewards as they were, and a value network never got over 1e4 of them:
    a chain of five states was unlearned. Powers of two, so that the bits are the same."""
    found = []
    for unit in (1.0, 2.0**-13, 2.0**13):
        learner = make(name, baseline, make_policy())
        for k in range(4):
            rollout = draw_rollout(learner.policy, k)
            reward = rollout.reward * unit * (0.0 if sparse and k < 2 else 1.0)
            learner.update(Rollout(**(vars(rollout) | {"reward": reward})))
        found.append(weights(learner))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@each_learner
def test_a_state_is_a_copy_that_training_does_not_change(name: str) -> None:
    learner = make(name, "value", make_policy(memory="lstm", memory_size=4))
    learner.update(draw_rollout(learner.policy, 0))
    state = learner.state_dict()
    before = flat_state(state)
    learner.update(draw_rollout(learner.policy, 1))
    assert flat_state(state) == before


# ---------------------------------------------------------------------- an asymmetric critic

HIDDEN = spaces.Dict({"hidden": spaces.Box(-3.0, 3.0, (2,)), "shown": SPACE})
KINDS = {
    "vector": spaces.Box(-3.0, 3.0, (2,)),
    "board": spaces.Box(0, 1, (6, 6, 4), bool),
    "image": spaces.Box(0, 255, (40, 40, 3), np.uint8),
    "image of floats": spaces.Box(0.0, 1.0, (40, 40, 1)),
}


class TestCriticOnly:
    def policy(self, **options: Any) -> StandardPolicy:
        return StandardPolicy(
            HIDDEN,
            spaces.Discrete(3),
            critic_only=["hidden"],
            hidden=(8,),
            generator=torch.Generator().manual_seed(0),
            **options,
        )

    def pair(self) -> tuple[Tensor, Tensor]:
        """Packed observations `[3, 5, 5]` that differ in the hidden entry only."""
        one = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(1))
        other = one.clone()
        other[..., :2] += 1.0  # gymnasium sorts the keys
        return one, other

    @pytest.mark.parametrize("network", [None, torch.nn.Linear])
    @pytest.mark.parametrize("memory", [None, "gru"])
    def test_the_policy_does_not_see_it_and_the_critic_does(
        self, memory: str | None, network: Callable[..., Any] | None
    ) -> None:
        policy = self.policy(memory=memory, memory_size=4, network=network)
        learner = Reinforce(policy, "value")
        assert policy.normalizer is not None
        one, other = self.pair()
        policy.normalizer.update(policy.observations.features(one))
        carry = policy.initial_carry(5)
        first, second = (policy(obs, carry, None)[0].logits for obs in (one, other))
        assert torch.equal(first, second)
        critic = learner.baseline.network  # type: ignore[attr-defined]
        values = [critic(policy.features(obs), None, None)[0] for obs in (one, other)]
        assert (values[0] != values[1]).all()

    def test_acting_does_not_see_it_either(self) -> None:
        policy = self.policy()
        one, other = ({"hidden": np.full(2, x, np.float32), "shown": np.ones(3, np.float32)}
                      for x in (-1.0, 1.0))  # fmt: skip
        for deterministic in (False, True):
            policy.seed(0)
            first = [policy.act(one, deterministic) for _ in range(20)]
            policy.seed(0)
            assert first == [policy.act(other, deterministic) for _ in range(20)]
        again = policy_from(policy.describe())
        again.load_state_dict(policy.state_dict())
        assert again.describe()["critic_only"] == ["hidden"]

    @each_learner
    def test_every_learner_takes_it(self, name: str) -> None:
        class Hidden(gymnasium.Env[Any, Any]):
            observation_space, action_space = HIDDEN, spaces.Discrete(3)

            def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
                self.left = 4
                return self.observation_space.sample(), {}

            def step(self, action: Any) -> Any:
                self.left -= 1
                return self.observation_space.sample(), float(action), self.left == 0, False, {}

        envs = SyncVectorEnv([Hidden] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
        policy = self.policy()
        learner = make(name, "value", policy)
        for _ in range(2):
            metrics = learner.update(Collector(envs, policy).steps(8))
            assert math.isfinite(metrics["gradient/norm"])

    @pytest.mark.parametrize("memory", [None, "gru"])
    @pytest.mark.parametrize("shown", KINDS)
    @pytest.mark.parametrize("hidden", KINDS)
    def test_any_kind_of_entry_is_hidden_beside_any_kind_that_is_shown(
        self, hidden: str, shown: str, memory: str | None
    ) -> None:
        space = spaces.Dict({"hidden": KINDS[hidden], "shown": KINDS[shown]})
        policy = StandardPolicy(
            space, spaces.Discrete(3), critic_only=["hidden"], hidden=(8,), memory=memory,
            memory_size=4, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        learner = Reinforce(policy, "value")
        space.seed(0)
        one, other = ([space.sample() for _ in range(6)] for _ in range(2))
        for a, b in zip(one, other, strict=True):
            b["shown"] = a["shown"]
        both = [
            torch.tensor(np.stack([policy.observations.pack(obs) for obs in side])).unflatten(
                0, (2, 3)
            )
            for side in (one, other)
        ]
        carry = policy.initial_carry(3)
        first, second = (policy(obs, carry, None)[0].logits for obs in both)
        assert torch.equal(first, second)
        critic = learner.baseline.network  # type: ignore[attr-defined]
        values = [critic(policy.features(obs), None, None)[0] for obs in both]
        assert (values[0] != values[1]).all()

    def test_an_entry_that_is_not_there(self) -> None:
        with pytest.raises(UsageError, match=r"critic_only: expected entries .*\(hidden, shown\)"):
            StandardPolicy(HIDDEN, spaces.Discrete(3), critic_only=["state"], generator=None)
        with pytest.raises(UsageError, match="critic_only: expected the policy to see something"):
            StandardPolicy(
                HIDDEN, spaces.Discrete(3), critic_only=["hidden", "shown"], generator=None
            )

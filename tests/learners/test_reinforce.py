"""The update: what it may look at, what it changes and in which order, and that it learns."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from rlpg.envs import bandit, chain
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from rlpg import Baseline, Reinforce
from rlpg.errors import NumericalFault, UsageError
from rlpg.learners.learner import KL_SAMPLES
from rlpg.learners.optimizer import Optimizer
from rlpg.policies import StandardPolicy
from rlpg.rollouts import Collector, Rollout

sys.path.append(str(Path(__file__).parent))
from listed import bandit_episodes, log_table, make_rollout, plain, side_by_side, tabular_policy
from made import (
    ACTION_SPACES,
    BASELINES,
    SPACE,
    draw_rollout,
    flat_state,
    make_policy,
    surrogate_gradient,
    weights,
)


def make_learner(baseline: str | Baseline = "none", **options: Any) -> Reinforce:
    """Of a fresh policy, the same every time."""
    policy = make_policy(normalize_observations=options.pop("normalize_observations", True))
    generator = torch.Generator().manual_seed(5)
    return plain(policy, baseline, value_hidden=(8,), generator=generator, **options)


@pytest.fixture
def _plain_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient ascent with step 1 times lr instead of Adam, so that the step shows the gradient."""

    def ascend(self: Optimizer, gradient: Tensor, learning_rate: float) -> None:
        self.move_to(self.flat() + learning_rate * gradient)

    monkeypatch.setattr(Optimizer, "_ascend", ascend)


class TestSlotsThatAreNotValid:
    """They may hold anything: the bits of the update are the same."""

    @settings(max_examples=25)
    @given(
        seed=st.integers(0, 10**6),
        garbage=st.sampled_from([math.nan, math.inf, -1e38, 1e5]),
        baseline=st.sampled_from(["none", "moving_average", "leave_one_out", "linear", "value"]),
        options=st.sampled_from(
            [
                {},
                {"entropy_coef": 0.1, "normalize_advantages": True, "reward_scaling": True},
                {"gamma_weight": True, "average": "episodes", "truncated_return": "drop"},
            ]
        ),
    )
    def test_may_hold_anything(
        self, seed: int, garbage: float, baseline: str, options: dict[str, Any]
    ) -> None:
        clean, dirty = make_learner(baseline, **options), make_learner(baseline, **options)
        for k in range(2):
            rollout = draw_rollout(clean.policy, seed + k)
            bogus = ~rollout.valid
            # An observation in such a slot is read as the last one of a truncated episode.
            unread = bogus.clone()
            unread[1:] &= ~rollout.truncated[:-1]
            obs = rollout.obs.clone()
            obs[:-1][unread] = garbage
            spoilt = replace(
                rollout,
                obs=obs,
                reward=torch.where(bogus, garbage, rollout.reward),
                action=torch.where(bogus, 10**9, rollout.action),
            )
            first, second = clean.update(rollout), dirty.update(spoilt)
            assert flat_state(first) == pytest.approx(flat_state(second), nan_ok=True, abs=0)
        assert flat_state(clean.state_dict()) == flat_state(dirty.state_dict())

    @pytest.mark.parametrize("gaussian", ["clipped", "squashed", "beta"])
    def test_garbage_actions_of_boxes(self, gaussian: str) -> None:
        space = spaces.Box(-1.0, 1.0, (2,))
        learners = [plain(make_policy(space, gaussian=gaussian), "none") for _ in range(2)]
        rollout = draw_rollout(learners[0].policy, 0)
        action = rollout.action.clone()
        action[~rollout.valid] = math.nan
        learners[0].update(rollout)
        learners[1].update(replace(rollout, action=action))
        assert torch.equal(weights(learners[0]), weights(learners[1]))

    @pytest.mark.parametrize("head", ["own", *ACTION_SPACES])
    def test_a_whole_group_of_environments_may_count_for_nothing(self, head: str) -> None:
        """torch's `Independent` has no log-prob of an empty batch."""
        space, options = ACTION_SPACES.get(head, ACTION_SPACES["clipped"])
        policy = make_policy(space, **options)
        if head == "own":
            forward = policy.forward
            policy.forward = lambda *args: (Independent(forward(*args)[0].base_dist, 1), None)  # type: ignore[assignment]
        learner = Reinforce(policy, "value", truncated_return="drop")
        rollout = draw_rollout(learner.policy, 0, num_envs=4)
        over = torch.zeros_like(rollout.valid)
        over[-1, :2] = True  # the episodes of the last two, a group, go on
        nothing = torch.zeros_like(over)
        rollout = replace(rollout, valid=~nothing, terminated=over, truncated=nothing)
        before = weights(learner)
        metrics = learner.update(rollout)
        assert weights(learner).isfinite().all()
        assert not torch.equal(weights(learner), before)
        assert 0 < metrics["train/approx_kl"] < math.inf

    def test_without_a_finished_episode_there_is_no_step(self) -> None:
        learner = make_learner("value", truncated_return="drop")
        rollout = draw_rollout(learner.policy, 0)
        learner.update(rollout)  # gives Adam momentum
        nothing = torch.zeros_like(rollout.valid)
        before, taught = weights(learner), flat_state(learner.baseline.state_dict())
        learner.update(replace(rollout, terminated=nothing, truncated=nothing))
        assert torch.equal(weights(learner), before)
        assert flat_state(learner.baseline.state_dict()) == taught


class TestSymmetries:
    @pytest.mark.parametrize("baseline", BASELINES)
    def test_the_order_of_environments_does_not_matter(self, baseline: str) -> None:
        learner = make_learner(baseline, average="episodes")
        learner.update(draw_rollout(learner.policy, 0))
        rollout = draw_rollout(learner.policy, 1)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
        entries = {k: v[:, order] for k, v in vars(rollout).items() if k in PER_ENV}
        permuted = replace(rollout, **entries)
        got, expected = (surrogate_gradient(learner, each) for each in (permuted, rollout))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        value, other = learner.estimate(rollout).item(), learner.estimate(permuted).item()
        assert value == pytest.approx(other, rel=1e-5)

    @pytest.mark.parametrize("average", ["steps", "episodes"])
    @pytest.mark.parametrize("baseline", [name for name in BASELINES if name != "leave_one_out"])
    def test_the_same_batch_twice_has_the_same_mean(self, baseline: str, average: str) -> None:
        learner = make_learner(baseline, average=average)
        learner.update(draw_rollout(learner.policy, 0))
        rollout = draw_rollout(learner.policy, 1)
        entries = {k: torch.cat([v, v], 1) for k, v in vars(rollout).items() if k in PER_ENV}
        doubled = replace(rollout, **entries)
        got, expected = (surrogate_gradient(learner, each) for each in (doubled, rollout))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


PER_ENV = ("obs", "action", "reward", "terminated", "truncated", "valid", "time")


@pytest.mark.usefixtures("_plain_step")
class TestStep:
    """With plain gradient ascent the change of the weights is lr times the gradient."""

    @pytest.mark.parametrize("baseline", BASELINES)
    def test_is_along_the_gradient_of_the_surrogate_before_anything_learned(
        self, baseline: str
    ) -> None:
        # Fitted on update 0 only, the baseline of update 1 is not that of its own batch; and the
        # groups of environments add up to the whole.
        learner = make_learner(baseline, learning_rate=0.1, entropy_coef=0.01, reward_scaling=True)
        learner.update(draw_rollout(learner.policy, 0))
        rollout = draw_rollout(learner.policy, 1)
        expected, before = surrogate_gradient(learner, rollout), weights(learner)
        metrics = learner.update(rollout)
        got = (weights(learner) - before) / 0.1
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
        assert metrics["gradient/norm"] == pytest.approx(float(expected.norm()), rel=1e-4)

    def test_lr_scale(self) -> None:
        full, half = make_learner(learning_rate=0.1), make_learner(learning_rate=0.1)
        rollout, before = draw_rollout(full.policy, 0), weights(full)
        assert full.update(rollout)["train/learning_rate"] == 0.1
        assert half.update(rollout, lr_scale=0.5)["train/learning_rate"] == 0.05
        steps = [weights(each) - before for each in (full, half)]
        torch.testing.assert_close(steps[1], steps[0] / 2, rtol=1e-3, atol=1e-7)
        full.update(rollout, lr_scale=0.0)
        again = weights(full)
        full.update(rollout, lr_scale=0.0)
        assert torch.equal(weights(full), again)

    def test_max_grad_norm_shortens_but_does_not_turn(self) -> None:
        rollout = draw_rollout(make_policy(), 0)
        free, long, short = (
            make_learner(learning_rate=1.0, max_grad_norm=m) for m in (None, 1e3, 0.01)
        )
        before = weights(free)
        metrics = [each.update(rollout) for each in (free, long, short)]
        steps = [weights(each) - before for each in (free, long, short)]
        assert torch.equal(steps[0], steps[1])
        assert float(steps[2].norm()) == pytest.approx(0.01, rel=1e-3)
        cosine = torch.cosine_similarity(steps[0], steps[2], dim=0)
        assert float(cosine) == pytest.approx(1.0, abs=1e-5)
        assert metrics[0]["gradient/norm"] == metrics[2]["gradient/norm"] > 0.01

    @pytest.mark.parametrize("entropy_coef", [0.3, 3.0])
    def test_entropy_weight_adds_the_gradient_of_the_mean_entropy(
        self, entropy_coef: float
    ) -> None:
        without, bonus = (
            make_learner(learning_rate=1.0),
            make_learner(learning_rate=1.0, entropy_coef=entropy_coef),
        )
        rollout, before = draw_rollout(without.policy, 0), weights(without)
        entropy = without.policy(rollout.obs[:-1])[0].entropy()[rollout.valid].mean()
        grads = torch.autograd.grad(entropy, list(without.policy.parameters()))
        expected = entropy_coef * torch.cat([grad.reshape(-1) for grad in grads])
        estimates = [surrogate_gradient(each, rollout) for each in (without, bonus)]
        torch.testing.assert_close(estimates[1] - estimates[0], expected, rtol=1e-3, atol=1e-6)
        metrics = [each.update(rollout) for each in (without, bonus)]
        assert metrics[0]["train/entropy"] == pytest.approx(entropy.item(), rel=1e-5)
        got = (weights(bonus) - before) - (weights(without) - before)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


class Recorder(Baseline):
    """Notes what the learner does with it."""

    def __init__(self, learner: Callable[[], Reinforce]) -> None:
        self.calls: list[str] = []
        self._learner = learner

    def __call__(self, rollout: Rollout, returns: Tensor) -> Tensor:
        self.calls.append("use")
        return torch.zeros_like(returns)

    def update(
        self, rollout: Rollout, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        learner = self._learner()
        assert learner.policy.normalizer is not None
        assert learner.reward_scale is not None
        moments = (float(learner.policy.normalizer.count), learner.reward_scale.scale)
        self.calls.append(f"update {moments} {int(weight.sum())} {lr_scale}")
        return {"train/note": 1.0}


def test_the_order_of_an_update() -> None:
    # Baseline used, step, baseline taught while normalizer and scale are still those it was
    # used with, then these two. Only the first rewards are divided by a scale that knows them.
    recorder = Recorder(lambda: learner)
    learner = plain(make_policy(), recorder, reward_scaling=True)
    rollout = draw_rollout(learner.policy, 0)
    metrics = learner.update(rollout, lr_scale=0.5)
    assert learner.policy.normalizer is not None
    assert learner.reward_scale is not None
    scale = learner.reward_scale.scale
    assert scale != 1.0
    assert recorder.calls == ["use", f"update (0.0, {scale}) {rollout.num_steps} 0.5"]
    assert metrics["train/note"] == 1.0
    assert int(learner.policy.normalizer.count) == rollout.num_steps
    recorder.calls.clear()
    second = draw_rollout(learner.policy, 1)
    learner.update(second)
    told = f"update ({float(rollout.num_steps)}, {scale}) {second.num_steps} 1.0"
    assert recorder.calls == ["use", told]
    assert learner.reward_scale.scale != scale


def test_the_learner_sees_rewards_divided_by_their_scale() -> None:
    learner = make_learner("time_step", reward_scaling=True)
    without = make_learner("time_step")
    learner.update(draw_rollout(learner.policy, 0))
    assert learner.reward_scale is not None
    assert abs(learner.reward_scale.scale - 1) > 0.05
    rollout = draw_rollout(learner.policy, 1)
    got, expected = learner.advantages(rollout).returns, without.advantages(rollout).returns
    torch.testing.assert_close(got * learner.reward_scale.scale, expected)


def test_rewards_stay_as_the_environment_paid_them() -> None:
    learner = make_learner("value", reward_scaling=True)
    rollout = draw_rollout(learner.policy, 0)
    before = {k: v.clone() for k, v in vars(rollout).items() if isinstance(v, Tensor)}
    for _ in range(2):
        learner.update(rollout)
    for name, value in before.items():
        assert torch.equal(getattr(rollout, name), value)


class TestApproximateKL:
    def test_is_the_divergence_where_the_batch_is_the_law(self) -> None:
        # Uniform over 4 arms, each drawn 4 times by each group of environments: the mean over the
        # batch is the expectation, and E_old[r - 1 - log r] = KL(old || new) exactly.
        policy = tabular_policy(1, 4, scale=0.0)
        old = copy.deepcopy(policy)
        learner = plain(policy, "none", learning_rate=0.1)
        rollout = side_by_side(bandit_episodes() * 16)
        metrics = learner.update(rollout)
        state = torch.zeros(1, dtype=torch.int64)
        exact = kl_divergence(old(state)[0], policy(state)[0]).item()
        assert exact > 1e-3
        assert metrics["train/approx_kl"] == pytest.approx(exact, rel=1e-4)

    def test_of_each_sample_by_hand(self) -> None:
        # Only the last arm was drawn: r = p_new / p_old = 4 p_new; r - 1 - log r is never negative.
        policy = tabular_policy(1, 4, scale=0.0)
        metrics = plain(policy, "none", learning_rate=0.1).update(
            side_by_side([bandit_episodes()[3]] * 4)
        )
        ratio = 4 * log_table(policy)[0, 3].exp().item()
        expected = ratio - 1 - math.log(ratio)
        assert expected > 1e-3
        assert metrics["train/approx_kl"] == pytest.approx(expected, rel=1e-3)

    def test_looks_at_the_whole_length_of_a_long_rollout(self) -> None:
        # State 1 is seen in the second half only, and nothing else pays: looking at the first
        # KL_SAMPLES steps, nothing has changed. Every fourth step is looked at; of these, one in
        # two had action 1, so that the mean is the expectation.
        policy = tabular_policy(2, 2, scale=0.0)
        policy.network.mlp.layers[0].bias.requires_grad_(False)  # type: ignore[union-attr,operator]
        step = torch.arange(4 * KL_SAMPLES + 1)[:, None]  # [T + 1, 1]
        late, action = (step >= 2 * KL_SAMPLES).long(), step[:-1] // 4 % 2
        over = torch.ones(4 * KL_SAMPLES, 1, dtype=torch.bool)
        rollout = make_rollout(late, action, late[:-1] * action, terminated=over)
        old = copy.deepcopy(policy)
        metrics = plain(policy, "none", learning_rate=0.1).update(rollout)
        exact = kl_divergence(*(each(torch.arange(2))[0] for each in (old, policy)))  # [2]
        assert exact[0] == 0.0
        assert exact[1] > 1e-3
        assert metrics["train/approx_kl"] == pytest.approx(exact.mean().item(), rel=1e-3)


class TestState:
    @pytest.mark.parametrize("baseline", BASELINES)
    def test_continues_bit_for_bit(self, baseline: str) -> None:
        options: dict[str, Any] = {"reward_scaling": True, "entropy_coef": 0.01}
        learner = make_learner(baseline, **options)
        rollouts = [draw_rollout(learner.policy, seed) for seed in range(4)]
        for rollout in rollouts[:2]:
            learner.update(rollout)
        other = torch.Generator().manual_seed(99)
        policy = StandardPolicy(SPACE, spaces.Discrete(3), hidden=(8,), generator=other)
        twin = plain(policy, baseline, value_hidden=(8,), generator=other, **options)
        twin.load_state_dict(learner.state_dict())
        for rollout in rollouts[2:]:
            metrics = [each.update(rollout) for each in (learner, twin)]
            assert flat_state(metrics[0]) == flat_state(metrics[1])
        assert flat_state(twin.state_dict()) == flat_state(learner.state_dict())
        assert twin.num_updates == 4

    @pytest.mark.parametrize("baseline", BASELINES)
    def test_before_the_first_update(self, baseline: str) -> None:
        learner, twin = make_learner(baseline), make_learner(baseline)
        twin.update(draw_rollout(twin.policy, 5))
        twin.load_state_dict(learner.state_dict())
        for each in (learner, twin):
            each.update(draw_rollout(learner.policy, 0))
        assert flat_state(twin.state_dict()) == flat_state(learner.state_dict())

    @pytest.mark.parametrize("baseline", BASELINES)
    def test_is_a_copy_that_training_does_not_change(self, baseline: str) -> None:
        # Parameters and Adam's moments were the live tensors: going back went nowhere.
        learner = make_learner(baseline, reward_scaling=True)
        learner.update(draw_rollout(learner.policy, 0))
        state = learner.state_dict()
        before = flat_state(state)
        learner.update(draw_rollout(learner.policy, 1))
        assert flat_state(state) == before

    def test_two_learners_from_one_state_do_not_share_moments(self) -> None:
        # torch takes the tensors of a state as they are: both went on with the same ones.
        learner = make_learner("value")
        learner.update(draw_rollout(learner.policy, 0))
        state = learner.state_dict()
        first, second = make_learner("value"), make_learner("value")
        first.load_state_dict(state)
        second.load_state_dict(state)
        rollout = draw_rollout(learner.policy, 1)
        for each in (first, second):
            each.update(rollout)
        assert flat_state(first.state_dict()) == flat_state(second.state_dict())


class TestFaults:
    @staticmethod
    def with_one(bad: float, rollout: Rollout) -> Rollout:
        reward = rollout.reward.clone()
        t, n = rollout.valid.nonzero()[7].tolist()
        reward[t, n] = bad
        return replace(rollout, reward=reward)

    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("baseline", BASELINES)
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_leave_everything_as_it_was(self, bad: float, baseline: str, normalize: bool) -> None:
        learner = make_learner(baseline, normalize_advantages=normalize)
        learner.update(draw_rollout(learner.policy, 0))
        rollout = self.with_one(bad, draw_rollout(learner.policy, 1))
        before = flat_state(learner.state_dict())
        with pytest.raises(NumericalFault, match="expected a finite gradient") as raised:
            learner.update(rollout)
        assert "\n" not in str(raised.value)
        assert flat_state(learner.state_dict()) == before

    def test_a_gradient_whose_square_is_no_number(self) -> None:
        # 1e36 is finite; its square in Adam's second moment is not, and no step there would have
        # been larger than 0 ever again.
        learner = make_learner()
        before = flat_state(learner.state_dict())
        with pytest.raises(NumericalFault, match="max_grad_norm"):
            learner.update(self.with_one(3e38, draw_rollout(learner.policy, 0)))
        assert flat_state(learner.state_dict()) == before
        clipped = make_learner(max_grad_norm=1.0)
        start = weights(clipped)
        clipped.update(self.with_one(3e38, draw_rollout(learner.policy, 0)))
        assert weights(clipped).isfinite().all()
        assert not torch.equal(weights(clipped), start)
        moments = clipped.state_dict()["optimizer"]
        assert moments["mean"].isfinite().all()
        assert moments["square"].isfinite().all()

    def test_a_value_network_is_not_spoilt_either(self) -> None:
        # The policy's gradient is normalized and finite, that of the value network is not: the
        # policy has taken its step, and no number anywhere is spoilt.
        learner = make_learner("value", normalize_advantages=True)
        with pytest.raises(NumericalFault, match="value network: expected a finite gradient"):
            learner.update(self.with_one(3e38, draw_rollout(learner.policy, 0)))
        state = learner.state_dict()
        for module in (state["policy"], state["baseline"]["network"]):
            assert all(value.isfinite().all() for value in module.values())

    def test_names_the_parameter_and_the_update(self) -> None:
        learner = make_learner()
        learner.update(draw_rollout(learner.policy, 0))
        rollout = draw_rollout(learner.policy, 1)
        with pytest.raises(
            NumericalFault, match=r"network\.mlp\.layers\.0\.weight.* after 1 steps;"
        ):
            learner.update(replace(rollout, reward=rollout.reward * math.nan))


@pytest.mark.parametrize("head", ACTION_SPACES)
def test_every_kind_of_action_learns(head: str) -> None:
    # One small step along the gradient raises sum w A log pi: by lr |g|^2, up to what bends.
    space, options = ACTION_SPACES[head]
    learner = plain(
        make_policy(space, **options), "leave_one_out", learning_rate=1e-4, entropy_coef=0.1
    )
    rollout = draw_rollout(learner.policy, 0)
    advantages = learner.advantages(rollout)

    def objective() -> float:
        law, _ = learner.policy(rollout.obs[:-1])
        log_prob = law.log_prob(rollout.action).detach().double()
        entropy = law.entropy().detach().double()
        return float((advantages.weight * (advantages.normalized * log_prob + 0.1 * entropy)).sum())

    gradient, before, start = surrogate_gradient(learner, rollout), objective(), weights(learner)
    assert learner.policy.normalizer is not None
    learner.policy.normalizer.update = lambda features: None  # type: ignore[method-assign,assignment,misc]
    metrics = learner.update(rollout)
    predicted = float((weights(learner) - start).double() @ gradient.double())
    assert objective() - before == pytest.approx(predicted, rel=0.05)
    assert predicted > 0
    assert all(math.isfinite(value) for value in metrics.values())


class TestLearning:
    def test_a_bandit_to_its_best_arm(self) -> None:
        policy = tabular_policy(1, 4, scale=0.0)
        learner = plain(policy, "leave_one_out", learning_rate=0.1, average="episodes")
        collector = Collector(bandit.BanditVectorEnv(16), policy, seed=0)
        for _ in range(60):
            learner.update(collector.episodes(per_env=1))
        value, _ = bandit.value_and_gradient(log_table(policy)[0].detach().numpy())
        assert value > 0.97 * max(bandit.REWARDS)

    @pytest.mark.parametrize(
        ("baseline", "learning_rate"), [("leave_one_out", 0.2), ("value", 0.3)]
    )
    def test_the_chain_to_its_best_policy(self, baseline: str, learning_rate: float) -> None:
        policy = tabular_policy(2, 2, scale=0.0)
        generator = torch.Generator().manual_seed(0)
        learner = plain(
            policy,
            baseline,
            learning_rate=learning_rate,
            gamma=1.0,
            value_hidden=(8,),
            generator=generator,
        )
        collector = Collector(chain.ChainVectorEnv(16), policy, seed=0)
        for _ in range(60):
            learner.update(collector.steps(8))
        value, _ = chain.value_and_gradient(log_table(policy).detach().numpy())
        assert value > 0.97 * 4.9875  # the best that does not know the time


def test_an_unknown_baseline_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"baseline: expected one of none, .*, value or module:Class, got 'v'"
    ):
        make_learner("v")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # its compiler uses its own past
def test_a_compiled_update_is_the_same_step() -> None:
    eager, compiled = (
        make_learner("value", learning_rate=0.1),
        make_learner("value", learning_rate=0.1),
    )
    compiled.compile()
    for seed, num_steps in enumerate([9, 17, 9]):  # of changing size, without compiling anew
        rollout = draw_rollout(eager.policy, seed, num_steps=num_steps)
        eager.update(rollout)
        compiled.update(rollout)
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-3, atol=1e-4)

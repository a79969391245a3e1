"""Memory: a sequence at once is its steps one by one, wherever episodes start."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlpg import PPO, Collector, Policy, Rollout, StandardPolicy
from rlpg.errors import SpaceError, UsageError
from rlpg.policies import Carry, map_carry, policy_from, restarted
from rlpg.policies.networks import Memory

KINDS = ("gru", "lstm")
MODES = list(AutoresetMode)
BOX = spaces.Box(-np.inf, np.inf, (4,))
SPACES: dict[str, tuple[spaces.Space[Any], spaces.Space[Any], dict[str, Any]]] = {
    "choice": (BOX, spaces.Discrete(3), {}),
    "squashed": (BOX, spaces.Box(-2.0, 2.0, (2,)), {"gaussian": "squashed", "std": "dependent"}),
    "beta": (BOX, spaces.Box(-2.0, 2.0, (2, 1)), {"gaussian": "beta"}),
    "image": (spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(3), {}),
    "dict of all": (
        spaces.Dict({"i": spaces.Box(0, 255, (8, 8), np.uint8), "v": spaces.Box(-1, 1, (2,))}),
        spaces.Dict({"a": spaces.Box(0, 1, (1,)), "b": spaces.MultiDiscrete([2, 3])}),
        {},
    ),
    "masked tuple": (
        spaces.Dict({"action_mask": spaces.MultiBinary(5), "x": spaces.Box(-1, 1, (2,))}),
        spaces.Tuple((spaces.Discrete(3), spaces.Discrete(2))),
        {},
    ),
}
each_memory = pytest.mark.parametrize("kind", KINDS)


def make(kind: str | None, spaces_of: str = "choice", **options: Any) -> StandardPolicy:
    """A policy whose outputs differ, and that remembers for long."""
    observation_space, action_space, of_head = SPACES[spaces_of]
    policy = StandardPolicy(
        observation_space,
        action_space,
        memory=kind,
        memory_size=5,
        hidden=(6,),
        generator=torch.Generator().manual_seed(0),
        **(of_head | options),
    )
    with torch.no_grad():
        policy.network.mlp.linears[-1].weight.mul_(100.0)  # type: ignore[union-attr]
    return policy


def packed(policy: Policy, num_steps: int, num_envs: int, seed: int = 0) -> Tensor:
    """Random observations `[T, N, *O]`."""
    space = policy.observations.space
    space.seed(seed)
    rows = [policy.observations.pack(space.sample()) for _ in range(num_steps * num_envs)]
    return torch.from_numpy(np.stack(rows)).reshape(num_steps, num_envs, *rows[0].shape)


def one_by_one(policy: Policy, obs: Tensor, starts: Tensor, action: Tensor) -> Tensor:
    """`[T, N]` log-probs by a loop over steps that resets the carry itself."""
    carry, found = policy.initial_carry(obs.shape[1]), []
    for t in range(len(obs)):
        fresh = policy.initial_carry(obs.shape[1])
        parts = zip(as_tuple(fresh), as_tuple(carry), strict=True)
        chosen = tuple(torch.where(starts[t, :, None], new, old) for new, old in parts)
        carry = chosen if len(chosen) > 1 else chosen[0]
        law, carry = policy(obs[t : t + 1], carry, None)
        found.append(law.log_prob(action[t : t + 1])[0])
    return torch.stack(found)


def as_tuple(carry: Carry) -> tuple[Tensor, ...]:
    assert carry is not None
    return carry if isinstance(carry, tuple) else (carry,)


def gradient(policy: Policy, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(policy.parameters()), allow_unused=False))


@each_memory
@pytest.mark.parametrize("spaces_of", SPACES)
@settings(max_examples=8)
@given(data=st.data())
def test_a_sequence_is_its_steps(kind: str, spaces_of: str, data: st.DataObject) -> None:
    """Log-probs and their gradient, episode starts anywhere."""
    num_steps, num_envs = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 3))
    flags = st.lists(st.booleans(), min_size=num_steps * num_envs, max_size=num_steps * num_envs)
    starts = torch.tensor(data.draw(flags)).reshape(num_steps, num_envs)
    policy = make(kind, spaces_of)
    obs = packed(policy, num_steps, num_envs)
    flat = obs.flatten(0, 1)
    with torch.no_grad():
        carry = policy.initial_carry(len(flat))
        action, _ = policy.draw(flat, carry, torch.Generator().manual_seed(1))
    action = action.reshape(num_steps, num_envs, *action.shape[1:])
    law, _ = policy(obs, policy.initial_carry(num_envs), starts)
    at_once, expected = law.log_prob(action), one_by_one(policy, obs, starts, action)
    torch.testing.assert_close(at_once, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn(num_steps, num_envs, generator=torch.Generator().manual_seed(2))
    for got, wanted in zip(
        gradient(policy, (weight * at_once).sum()),
        gradient(policy, (weight * expected).sum()),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


@each_memory
def test_nothing_of_an_episode_reaches_the_next(kind: str) -> None:
    policy = make(kind)
    obs, starts = packed(policy, 6, 2), torch.zeros(6, 2, dtype=torch.bool)
    starts[3, 0] = True
    other = obs.clone()
    other[:3] += 1.0
    (one, _), (two, _) = (policy(each, policy.initial_carry(2), starts) for each in (obs, other))
    assert torch.equal(one.logits[3:, 0], two.logits[3:, 0])
    assert not torch.equal(one.logits[3:, 1], two.logits[3:, 1])


@each_memory
def test_the_carry_at_the_end_continues_the_sequence(kind: str) -> None:
    policy = make(kind)
    obs, starts = packed(policy, 8, 3), torch.rand(8, 3) < 0.3
    whole, last = policy(obs, policy.initial_carry(3), starts)
    _, middle = policy(obs[:5], policy.initial_carry(3), starts[:5])
    rest, end = policy(obs[5:], middle, starts[5:])
    torch.testing.assert_close(rest.logits, whole.logits[5:])
    for a, b in zip(as_tuple(last), as_tuple(end), strict=True):
        torch.testing.assert_close(a, b)


@each_memory
def test_is_what_torchs_own_module_computes(kind: str) -> None:
    memory = Memory(kind, 3, 4, generator=torch.Generator().manual_seed(0))
    peer = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[kind](3, 4)
    peer.load_state_dict(memory.core.state_dict())
    inputs = torch.randn(5, 2, 3)
    outputs, _ = memory(inputs, None, None)
    torch.testing.assert_close(outputs, peer(inputs)[0])


def test_a_carry_restarts_where_it_is_told() -> None:
    pair = (torch.ones(3, 2), torch.ones(3))
    starts = torch.tensor([False, True, False])
    first, second = as_tuple(restarted(pair, starts))
    assert first.tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    assert second.tolist() == [1.0, 0.0, 1.0]
    assert restarted(None, ~starts | starts) is None


# ------------------------------------------------------------------------------- collecting


class Clock(gymnasium.Env[Any, Any]):
    """Shows (index, time in the episode, last action, a number); episodes of 1 to 6 steps."""

    observation_space, action_space = BOX, spaces.Discrete(3)

    def __init__(self, index: int) -> None:
        self.index, self.random = index, np.random.default_rng(index)

    def obs(self, action: int) -> np.ndarray:
        return np.array([self.index, self.time, action, self.random.normal()], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.time, self.length = 0, int(self.random.integers(1, 7))
        return self.obs(-1), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        over, is_end = self.time == self.length, bool(self.random.integers(2))
        obs = self.obs(int(action))
        return obs, float(self.random.normal()), over and is_end, over and not is_end, {}


def clocks(mode: AutoresetMode, num_envs: int = 3) -> SyncVectorEnv:
    return SyncVectorEnv(
        [functools.partial(Clock, n) for n in range(num_envs)], autoreset_mode=mode
    )


@each_memory
@pytest.mark.parametrize("mode", MODES)
class TestCollecting:
    def test_log_probs_are_those_of_a_loop_by_hand(self, kind: str, mode: AutoresetMode) -> None:
        """It knows from what the environment shows where episodes start, and keeps a carry of its
        own from rollout to rollout."""
        policy = make(kind)
        collector = Collector(clocks(mode), policy, seed=1)
        carry = policy.initial_carry(3)
        for rollout in [collector.steps(9), collector.steps(1), collector.steps(14)]:
            assert rollout.log_prob is not None
            for t in range(len(rollout.reward)):
                carry = self.restarted_where_time_is_0(policy, carry, rollout.obs[t])
                law, carry = policy(rollout.obs[t : t + 1], carry, None)
                expected = law.log_prob(rollout.action[t : t + 1])[0]
                real = rollout.valid[t]
                torch.testing.assert_close(
                    rollout.log_prob[t][real], expected[real], rtol=1e-5, atol=1e-6
                )

    @staticmethod
    def restarted_where_time_is_0(policy: Policy, carry: Carry, obs: Tensor) -> Carry:
        parts = zip(as_tuple(policy.initial_carry(3)), as_tuple(carry), strict=True)
        new = tuple(torch.where((obs[:, 1] == 0)[:, None], a, b) for a, b in parts)
        return new if len(new) > 1 else new[0]

    def test_draws_come_from_the_law_with_the_carry(self, kind: str, mode: AutoresetMode) -> None:
        """Actions of nearly certain policies are the most likely of the sequence pass."""
        policy = make(kind)
        with torch.no_grad():
            policy.network.mlp.linears[-1].weight.mul_(1e4)  # type: ignore[union-attr]
        collector = Collector(clocks(mode), policy, seed=1)
        collector.steps(5)
        rollout = collector.steps(20)
        law, _ = policy(rollout.obs[:-1], rollout.carry, rollout.episode_start[:-1])
        sure = law.probs.amax(-1) > 0.9999
        assert sure.float().mean() > 0.9
        real = rollout.valid & sure
        assert torch.equal(rollout.action[real], law.probs.argmax(-1)[real])

    def test_episode_starts_are_where_the_time_is_0(self, kind: str, mode: AutoresetMode) -> None:
        collector = Collector(clocks(mode), make(kind), seed=1)
        for rollout in (collector.steps(9), collector.steps(12), collector.episodes(2)):
            shown = rollout.obs[..., 1] == 0
            inside = slice(None) if rollout.valid.all() or len(rollout.valid) == 12 else slice(-1)
            counted = torch.cat([rollout.valid, torch.ones_like(rollout.valid[-1:])])[inside]
            assert torch.equal(rollout.episode_start[inside][counted], shown[inside][counted])

    def test_whole_episodes_begin_with_nothing_in_mind(
        self, kind: str, mode: AutoresetMode
    ) -> None:
        policy = make(kind)
        collector = Collector(clocks(mode), policy, seed=1)
        collector.steps(7)
        rollout = collector.episodes(2)
        assert all(not part.any() for part in as_tuple(rollout.carry))
        assert rollout.episode_start[0].all()
        again, _ = policy(rollout.obs[:-1], policy.initial_carry(3), rollout.episode_start[:-1])
        assert rollout.log_prob is not None
        expected = again.log_prob(rollout.action)[rollout.valid]
        torch.testing.assert_close(rollout.log_prob[rollout.valid], expected)

    def test_a_saved_collector_goes_on_with_the_same_bits(
        self, kind: str, mode: AutoresetMode
    ) -> None:
        policy = make(kind)
        collector = Collector(clocks(mode), policy, seed=1)
        collector.steps(7)
        state = copy.deepcopy(collector.state_dict())
        envs = copy.deepcopy(collector.envs)
        expected = [collector.steps(5), collector.steps(6)]
        again = Collector(envs, copy.deepcopy(policy), seed=99)
        state["environments"] = again.state_dict()["environments"]
        again._obs = state["obs"]
        again.load_state_dict(state)
        again._obs = state["obs"]  # the copy stands where the original stood
        for rollout in expected:
            got = again.steps(len(rollout.reward))
            same_bits(got, rollout)

    def test_rollouts_are_ordinary_tensors(self, kind: str, mode: AutoresetMode) -> None:
        policy = make(kind)
        collector = Collector(clocks(mode), policy, seed=1)
        for rollout in (collector.steps(4), collector.steps(4)):
            assert not any(part.is_inference() for part in as_tuple(rollout.carry))
            law, _ = policy(rollout.obs[:-1], rollout.carry, rollout.episode_start[:-1])
            law.log_prob(rollout.action).sum().backward()

    def test_a_rollout_keeps_its_carry(self, kind: str, mode: AutoresetMode) -> None:
        collector = Collector(clocks(mode), make(kind), seed=1)
        collector.steps(4)
        rollout = collector.steps(4)
        before = map_carry(torch.clone, rollout.carry)
        collector.steps(4)
        for a, b in zip(as_tuple(before), as_tuple(rollout.carry), strict=True):
            assert torch.equal(a, b)


def same_bits(got: Rollout, expected: Rollout) -> None:
    for name, value in vars(expected).items():
        if isinstance(value, Tensor):
            assert torch.equal(getattr(got, name), value), name
    for a, b in zip(as_tuple(got.carry), as_tuple(expected.carry), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------ acting


@each_memory
class TestAct:
    def expected(self, policy: Policy, obs: np.ndarray, fresh: Tensor) -> np.ndarray:
        """The deterministic actions of observations `[T, B, 4]`, from one sequence pass."""
        with torch.no_grad():
            law, _ = policy(torch.from_numpy(obs), policy.initial_carry(obs.shape[1]), fresh)
        action: np.ndarray = policy.head.to_env(law.base_dist.loc.numpy())
        return action

    def test_remembers_from_call_to_call_until_reset(self, kind: str) -> None:
        policy = make(kind, "squashed", normalize_observations=False)
        obs = np.random.default_rng(0).normal(size=(9, 1, 4)).astype(np.float32)
        got = []
        for t in range(9):
            if t == 5:
                policy.reset()
            got.append(policy.act(obs[t, 0], deterministic=True)[None])
        fresh = torch.zeros(9, 1, dtype=torch.bool)
        without = self.expected(policy, obs, fresh)
        fresh[5] = True
        np.testing.assert_allclose(got, self.expected(policy, obs, fresh), rtol=1e-4, atol=1e-5)
        assert np.abs(np.stack(got)[5:] - without[5:]).max() > 0.01  # else this says nothing

    def test_a_batch_is_reset_by_a_mask(self, kind: str) -> None:
        policy = make(kind, "squashed", normalize_observations=False)
        obs = np.random.default_rng(0).normal(size=(9, 3, 4)).astype(np.float32)
        got = []
        for t in range(9):
            if t == 4:
                policy.reset(np.array([True, False, False]))
                policy.reset(np.array([False, False, True]))  # one after the other: both
            got.append(policy.act(obs[t], deterministic=True))
        fresh = torch.zeros(9, 3, dtype=torch.bool)
        fresh[4, [0, 2]] = True
        np.testing.assert_allclose(got, self.expected(policy, obs, fresh), rtol=1e-4, atol=1e-5)

    def test_a_batch_of_another_size_is_refused(self, kind: str) -> None:
        policy = make(kind)
        policy.act(np.zeros((3, 4), np.float32))
        with pytest.raises(SpaceError, match=r"expected a batch of 3, .*call policy\.reset"):
            policy.act(np.zeros((2, 4), np.float32))
        policy.reset()
        policy.act(np.zeros((2, 4), np.float32))

    def test_a_mask_of_another_size_is_refused(self, kind: str) -> None:
        policy = make(kind)
        policy.act(np.zeros((3, 4), np.float32))
        with pytest.raises(UsageError, match=r"mask: expected \[B\] = \[3\], .* got \[2\]"):
            policy.reset(np.array([True, False]))

    def test_draws_remember_too(self, kind: str) -> None:
        policy = make(kind)
        obs = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
        runs = []
        for forget in (False, False, True):
            policy.reset()
            policy.seed(3)
            drawn = []
            for row in obs:
                if forget:
                    policy.reset()
                drawn.append(int(policy.act(row)))
            runs.append(drawn)
        assert runs[0] == runs[1] != runs[2]


@each_memory
@pytest.mark.parametrize("spaces_of", SPACES)
def test_round_trip(kind: str, spaces_of: str) -> None:
    policy = make(kind, spaces_of)
    data = json.loads(json.dumps(policy.describe(), allow_nan=False))
    again = policy_from(data)
    again.load_state_dict(policy.state_dict())
    assert again.describe() == policy.describe()
    assert again.has_memory
    obs = packed(policy, 1, 4)[0]
    carry = policy.initial_carry(4)
    first, second = (p.draw(obs, carry, torch.Generator().manual_seed(0)) for p in (policy, again))
    assert torch.equal(first[0], second[0])
    for a, b in zip(as_tuple(first[1]), as_tuple(second[1]), strict=True):
        assert torch.equal(a, b)


class TestRefusals:
    def test_an_unknown_memory(self) -> None:
        with pytest.raises(UsageError, match="memory: expected one of gru, lstm or none, got rnn"):
            make("rnn")

    @pytest.mark.parametrize("size", [0, -1, 10**6])
    def test_an_impossible_size(self, size: int) -> None:
        with pytest.raises(UsageError, match="memory_size: expected at least 1"):
            StandardPolicy(BOX, spaces.Discrete(2), memory="gru", memory_size=size, generator=None)

    def test_more_minibatches_than_sequences(self) -> None:
        policy = make("gru")
        rollout = Collector(clocks(AutoresetMode.NEXT_STEP), policy).steps(20)
        learner = PPO(policy, "none", gae_lambda=None, num_minibatches=4)
        with pytest.raises(
            UsageError,
            match=r"num_minibatches: expected at most the 3 environments \(a sequence stays",
        ):
            learner.update(rollout)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_predict_hands_the_memory_through_the_caller(kind: str) -> None:
    """As scripts for Stable-Baselines3 call it; `act` remembers by itself."""
    policy = make(kind)
    obs = np.random.default_rng(0).normal(size=(6, 2, 4)).astype(np.float32)  # [T, B, O]
    starts = np.array([[1, 1], [0, 0], [0, 1], [0, 0], [1, 0], [0, 0]], bool)  # [T, B]
    state = None
    for t in range(6):
        policy.reset(starts[t])
        expected = policy.act(obs[t], deterministic=True)
        remembered = policy._carry
        action, state = policy.predict(obs[t], state, starts[t], deterministic=True)
        assert np.array_equal(action, expected)
        assert policy._carry is remembered  # of `act`, untouched
        assert isinstance(state, tuple)
        assert [part.shape[0] for part in state] == [2] * (2 if kind == "lstm" else 1)


def test_predict_without_memory_has_no_state() -> None:
    obs, policy = np.ones(4, np.float32), make(None)
    action, state = policy.predict(obs, deterministic=True)
    assert state is None
    assert action == policy.act(obs, deterministic=True)
    batch, _ = policy.predict(np.ones((3, 4), np.float32), None, np.ones(3, bool), True)
    assert batch.shape == (3,)

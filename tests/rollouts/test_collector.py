"""The collector against a loop written by hand, in every autoreset mode and backend."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlpg.errors import EnvironmentFault, EnvironmentSetupError, UsageError
from rlpg.policies import Policy, StandardPolicy, restarted
from rlpg.rollouts import Collector, EpisodeSeeds, Rollout, make_envs, probe_action_mask

START = 5  # of the action space: what the environment sees is not what the policy drew
LARGEST = 1000  # number in an observation: in five calls an environment has up to 140 episodes
MODES = list(AutoresetMode)

# ------------------------------------------------------------------ an environment known by heart

Script = tuple[tuple[int, str], ...]  # per episode: length, and which flags end it


def mask_of(obs: np.ndarray) -> np.ndarray:
    """`[3]` bool: the allowed actions after an observation, at least one."""
    env, episode, step, _ = obs
    allowed = np.array([(env + step) % 2 == 0, (episode + step) % 3 == 0, False])
    allowed[int(step) % 3] = True
    return allowed


class Toy(gymnasium.Env[Any, Any]):
    """Shows (index, episode, step, last action); every observation is the same buffer."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, index: int, script: Script, masks: bool = False) -> None:
        self.observation_space = spaces.Box(-LARGEST, LARGEST, (4,), np.float32)
        self.action_space = spaces.Discrete(3, start=START)
        self.script, self.masks = script, masks
        self.buffer = np.zeros(4, np.float32)
        self.buffer[0] = index
        self.episode = -1
        self.over = True

    def info(self) -> dict[str, Any]:
        if not self.masks:
            return {}
        return {"action_mask": np.zeros(3, bool) if self.over else mask_of(self.buffer)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert not options  # gymnasium takes reset_mask out before it calls
        self.episode += 1
        self.buffer[1:] = self.episode, 0, -1
        self.over = False
        return self.buffer, self.info()

    def step(self, action: Any) -> Any:
        assert not self.over, "stepped an episode that had ended"
        assert self.action_space.contains(action)
        length, ending = self.script[self.episode % len(self.script)]
        drawn = int(action) - START
        reward = (1 + self.episode) * (self.buffer[2] - 0.25 * drawn) + self.buffer[0]
        self.buffer[2] += 1
        self.buffer[3] = drawn
        self.over = bool(self.buffer[2] == length)
        terminated = self.over and ending in ("terminated", "both")
        truncated = self.over and ending in ("truncated", "both")
        return self.buffer, float(reward), terminated, truncated, self.info()


class NativeToys(VectorEnv[Any, Any, Any]):
    """A vector environment that implements a mode itself, as unhelpfully as the API allows."""

    def __init__(self, scripts: list[Script], mode: AutoresetMode) -> None:
        self.toys = [Toy(n, script) for n, script in enumerate(scripts)]
        self.num_envs = len(scripts)
        self.metadata = {"autoreset_mode": mode}
        self.mode = mode
        self.single_observation_space = self.toys[0].observation_space
        self.single_action_space = self.toys[0].action_space
        self.obs = np.zeros((self.num_envs, 4), np.float32)
        self.reward = np.zeros(self.num_envs, np.float32)
        self.flags = np.zeros((2, self.num_envs), bool)
        self.final = np.zeros((self.num_envs, 4), np.float32)
        self.due = np.zeros(self.num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        chosen = np.ones(self.num_envs, bool) if not options else options["reset_mask"]
        self.obs[~chosen] = 77.0  # nothing is promised about the others
        for n in np.flatnonzero(chosen):
            self.obs[n] = self.toys[n].reset()[0]
        self.due[chosen] = False
        return self.obs, {}

    def step(self, actions: Any) -> Any:
        info: dict[str, Any] = {}
        for n, toy in enumerate(self.toys):
            if self.due[n]:
                self.obs[n], self.reward[n], self.flags[:, n] = toy.reset()[0], 0, False
                self.due[n] = False
                continue
            obs, self.reward[n], self.flags[0, n], self.flags[1, n], _ = toy.step(actions[n])
            self.obs[n] = obs
            if toy.over and self.mode is AutoresetMode.SAME_STEP:
                self.final[n] = obs
                self.obs[n] = toy.reset()[0]
                info = {"final_obs": self.final, "_final_obs": self.flags.any(axis=0)}
            self.due[n] = toy.over and self.mode is AutoresetMode.NEXT_STEP
        return self.obs, self.reward, self.flags[0], self.flags[1], info


class Rule(Policy):
    """A policy whose action is a function of the observation alone, known to the reference."""

    def __init__(
        self,
        info_mask: int = 0,
        space: spaces.Space[Any] | None = None,
        num_actions: int = 3,
        start: int = START,
    ) -> None:
        space = space or spaces.Box(-LARGEST, LARGEST, (4,), np.float32)
        super().__init__(space, spaces.Discrete(num_actions, start=start), info_mask=info_mask)

    def draw(
        self, obs: Tensor, carry: Any, generator: torch.Generator, episode_start: Any = None
    ) -> tuple[Tensor, Any]:
        assert obs.dtype == torch.float32
        return torch.from_numpy(np.array([rule(row) for row in obs.numpy()])), carry

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> tuple[Any, Any]:
        return torch.distributions.Categorical(logits=obs[..., 1:4]), carry


def rule(obs: np.ndarray) -> int:
    return int(obs[:4] @ np.array([1, 2, 3, 1])) % 3


# --------------------------------------------------------------------- the loop written by hand


@dataclass
class Transition:
    slot: int
    obs: list[float]
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_obs: list[float]
    time: int


class ByHand:
    """One environment, stepped by a loop that anyone can check."""

    def __init__(self, env: Toy, mode: AutoresetMode, resets_again: bool) -> None:
        self.env = env
        self.reset_takes_a_slot = mode is AutoresetMode.NEXT_STEP
        self.resets_again = resets_again
        self.obs: np.ndarray | None = None
        self.must_reset = False

    def reset(self) -> None:
        self.obs = self.env.reset()[0].copy()
        self.time, self.total = 0, 0.0

    def start(self) -> None:
        self.reset()
        self.must_reset &= self.resets_again

    def run(self, num_slots: int) -> tuple[list[Transition], list[tuple[float, int, int]]]:
        """The transitions of the next slots, and (return, length, slot) of the episodes' ends."""
        transitions, ends = [], []
        for slot in range(num_slots):
            if self.obs is None:
                self.start()
            if self.must_reset:
                self.reset()
                self.must_reset = False
                continue
            before, action = self.obs, rule(self.obs)
            obs, reward, terminated, truncated, _ = self.env.step(action + START)
            self.obs = obs.copy()
            truncated = truncated and not terminated
            transitions.append(
                Transition(
                    slot,
                    before.tolist(),
                    action,
                    reward,
                    terminated,
                    truncated,
                    self.obs.tolist(),
                    self.time,
                )
            )
            self.time += 1
            self.total += reward
            if terminated or truncated:
                ends.append((self.total, self.time, slot))
                if self.reset_takes_a_slot:
                    self.must_reset = True
                else:
                    self.reset()
        return transitions, ends


def of_rollout(rollout: Rollout, n: int) -> list[Transition]:
    successor = rollout.successor(rollout.obs, rollout.final_obs)
    return [
        Transition(
            t,
            rollout.obs[t, n].tolist(),
            int(rollout.action[t, n]),
            float(rollout.reward[t, n]),
            bool(rollout.terminated[t, n]),
            bool(rollout.truncated[t, n]),
            successor[t, n].tolist(),
            int(rollout.time[t, n]),
        )
        for t in range(len(rollout.valid))
        if rollout.valid[t, n]
    ]


def ends_of(rollout: Rollout, n: int) -> list[tuple[float, int, int]]:
    episodes = rollout.episodes
    mine = episodes.env == n
    return list(
        zip(
            episodes.returns[mine].tolist(),
            episodes.lengths[mine].tolist(),
            episodes.step[mine].tolist(),
            strict=True,
        )
    )


def check_against_hand(
    envs: VectorEnv[Any, Any, Any],
    scripts: list[Script],
    calls: list[tuple[str, int]],
    mode: AutoresetMode,
    resets_again: bool = False,
) -> None:
    """`calls` of steps(n) and episodes(k), one after the other, equal the loop by hand."""
    collector = Collector(envs, Rule())
    hands = [ByHand(Toy(n, script), mode, resets_again) for n, script in enumerate(scripts)]
    rollouts = []  # compared at the end, so that a buffer that is written again would show
    expected = []
    for what, amount in calls:
        if what == "steps":
            rollouts.append(collector.steps(amount))
            expected.append([hand.run(amount) for hand in hands])
        else:
            rollouts.append(collector.episodes(amount))
            for hand in hands:
                hand.start()
            num_slots = len(rollouts[-1].valid)
            whole = [hand.run(num_slots) for hand in hands]
            slots = [ends[amount - 1][2] for _, ends in whole]  # IndexError: an episode is missing
            assert max(slots) == num_slots - 1  # and not one step more than needed
            expected.append(
                [
                    ([step for step in steps if step.slot <= last], ends[:amount])
                    for (steps, ends), last in zip(whole, slots, strict=True)
                ]
            )
            for hand in hands:
                hand.obs = None
    assert collector.env_steps == sum(len(steps) for call in expected for steps, _ in call)
    for rollout, call in zip(rollouts, expected, strict=True):
        for n, (steps, ends) in enumerate(call):
            assert of_rollout(rollout, n) == steps
            assert ends_of(rollout, n) == ends
        outside = ~rollout.valid
        assert not (rollout.done & outside).any()
        assert not rollout.reward[outside].any()
        assert not (rollout.terminated & rollout.truncated).any()
        num_ends = len(rollout.episodes)
        assert len(rollout.final_obs) == (0 if mode is AutoresetMode.NEXT_STEP else num_ends)
        order = list(zip(rollout.episodes.step, rollout.episodes.env, strict=True))
        assert order == sorted(order)


scripts_st = st.lists(
    st.lists(
        st.tuples(
            st.one_of(st.just(1), st.integers(1, 9)),
            st.sampled_from(["terminated", "truncated", "both"]),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
    min_size=1,
    max_size=4,
)
calls_st = st.lists(
    st.one_of(
        st.tuples(st.just("steps"), st.integers(1, 12)),
        st.tuples(st.just("episodes"), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("copy", [True, False])
@settings(max_examples=60)
@given(scripts=scripts_st, calls=calls_st)
def test_sync_equals_the_loop_by_hand(
    mode: AutoresetMode, copy: bool, scripts: list[Script], calls: list[tuple[str, int]]
) -> None:
    root = np.random.SeedSequence(0)
    envs = SyncVectorEnv(
        [
            lambda n=n, script=script: EpisodeSeeds(Toy(n, script), root, n)
            for n, script in enumerate(scripts)
        ],
        copy=copy,
        autoreset_mode=mode,
    )
    check_against_hand(envs, scripts, calls, mode)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60)
@given(scripts=scripts_st, calls=calls_st)
def test_native_equals_the_loop_by_hand(
    mode: AutoresetMode, scripts: list[Script], calls: list[tuple[str, int]]
) -> None:
    check_against_hand(NativeToys(scripts, mode), scripts, calls, mode)


FIXED: list[Script] = [
    ((1, "both"), (3, "truncated"), (6, "terminated")),
    ((4, "truncated"), (1, "terminated")),
]
CALLS = [("steps", 4), ("steps", 1), ("episodes", 2), ("steps", 8), ("episodes", 1), ("steps", 5)]


@pytest.mark.parametrize(
    ("mode", "shared_memory"), [*((mode, True) for mode in MODES), (AutoresetMode.NEXT_STEP, False)]
)
def test_async_equals_the_loop_by_hand(mode: AutoresetMode, shared_memory: bool) -> None:
    root = np.random.SeedSequence(0)
    envs = AsyncVectorEnv(
        [
            lambda n=n, script=script: EpisodeSeeds(Toy(n, script), root, n)
            for n, script in enumerate(FIXED)
        ],
        shared_memory=shared_memory,
        copy=False,
        autoreset_mode=mode,
    )
    try:
        # Without shared memory the workers reset at the next step although reset() came before.
        check_against_hand(envs, FIXED, CALLS, mode, resets_again=not shared_memory)
    finally:
        envs.close()


# ------------------------------------------------------------------------- real environments


def test_native_cartpole_follows_the_single_environments_dynamics() -> None:
    envs, _ = make_envs("CartPole-v1", 8, seed=3, backend="native", max_episode_steps=20)
    policy = Coin(envs.single_observation_space)
    rollout = Collector(envs, policy).steps(60)
    single: Any = gymnasium.make("CartPole-v1").unwrapped
    single.reset(seed=0)
    successor = rollout.successor(rollout.obs, rollout.final_obs)
    for t, n in rollout.valid.nonzero().tolist():
        single.state = rollout.obs[t, n].numpy().astype(np.float64)
        single.steps_beyond_terminated = None
        obs, reward, terminated, _, _ = single.step(int(rollout.action[t, n]))
        np.testing.assert_allclose(successor[t, n], obs, atol=1e-5)
        assert rollout.terminated[t, n] == terminated
        assert rollout.reward[t, n] == reward
        assert rollout.truncated[t, n] == (rollout.time[t, n] == 19 and not terminated)
    assert rollout.truncated.any()
    assert rollout.terminated.any()


def test_gymnasiums_and_our_native_cartpole_both_continue_over_rollouts() -> None:
    theirs = gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point")
    collector = Collector(theirs, Coin(theirs.single_observation_space), seed=5)
    one, two = collector.steps(17), collector.steps(40)
    assert torch.equal(one.obs[-1], two.obs[0])
    begun = one.time[-1] + 1
    goes_on = one.valid[-1] & ~one.done[-1]
    assert torch.equal(two.time[0][goes_on], begun[goes_on])
    assert torch.equal(two.valid[0], ~one.done[-1])


@pytest.mark.filterwarnings("ignore:.*precision lowered")  # EnvPool's bounds, in what is by hand
def test_envpool_equals_single_envpool_environments_stepped_by_hand() -> None:
    envpool = pytest.importorskip("envpool")
    from rlpg.rollouts import derived_seed

    root = np.random.SeedSequence(11)
    envs, _ = make_envs("CartPole-v1", 3, seed=root, backend="envpool", max_episode_steps=15)
    rollout = Collector(envs, Coin(envs.single_observation_space)).steps(50)
    successor = rollout.successor(rollout.obs, rollout.final_obs)
    for n in range(3):
        alone = envpool.make(
            "CartPole-v1",
            env_type="gymnasium",
            num_envs=1,
            seed=[derived_seed(root, n, 0)],
            max_episode_steps=15,
        )
        obs, _ = alone.reset()
        ended = False
        total, ends = 0.0, []
        for t in range(50):
            action = rollout.action[t, n].numpy()[None].astype(np.int32)
            following, reward, terminated, truncated, _ = alone.step(action)
            assert bool(rollout.valid[t, n]) == (not ended)
            if not ended:
                np.testing.assert_array_equal(rollout.obs[t, n], obs[0])
                np.testing.assert_array_equal(successor[t, n], following[0])
                assert rollout.reward[t, n] == reward[0]
                assert rollout.terminated[t, n] == terminated[0]
                assert rollout.truncated[t, n] == truncated[0]
                total += float(reward[0])
            ended = not ended and bool(terminated[0] | truncated[0])
            if ended:
                ends.append((total, int(rollout.time[t, n]) + 1, t))
                total = 0.0
            obs = following
        assert ends_of(rollout, n) == ends
        assert ends


class Coin(Rule):
    """Draws 0 or 1 from the collector's generator."""

    def __init__(self, space: spaces.Space[Any], start: int = 0) -> None:
        super().__init__(space=space, num_actions=2, start=start)

    def draw(
        self, obs: Tensor, carry: Any, generator: torch.Generator, episode_start: Any = None
    ) -> tuple[Tensor, Any]:
        return torch.randint(2, (len(obs),), generator=generator), carry


# --------------------------------------------------------------------------- masks and carry


class Obeying(Rule):
    """Takes an allowed action, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__(info_mask=3)
        self.shown: list[np.ndarray] = []

    def draw(
        self, obs: Tensor, carry: Any, generator: torch.Generator, episode_start: Any = None
    ) -> tuple[Tensor, Any]:
        self.shown.append(obs.numpy().copy())
        return obs[:, 4:].argmax(-1), carry

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> tuple[Any, Any]:
        return torch.distributions.Categorical(logits=obs[..., 4:]), carry


@pytest.mark.parametrize("mode", MODES)
def test_every_action_is_chosen_under_the_mask_of_its_own_observation(mode: AutoresetMode) -> None:
    envs = SyncVectorEnv(
        [lambda n=n: Toy(n, FIXED[n], masks=True) for n in range(2)], autoreset_mode=mode
    )
    assert probe_action_mask(envs) == 3
    policy = Obeying()
    collector = Collector(envs, policy)
    for rollout in (collector.steps(20), collector.episodes(3), collector.steps(9)):
        for t, n in rollout.valid.nonzero().tolist():
            obs = rollout.obs[t, n].numpy()
            np.testing.assert_array_equal(obs[4:] != 0, mask_of(obs[:4]))
            assert obs[4 + int(rollout.action[t, n])] == 1
        assert torch.isfinite(rollout.obs).all()
        assert torch.isfinite(rollout.final_obs).all()


def test_masks_of_composite_actions_are_laid_side_by_side() -> None:
    from rlpg.rollouts.vector import batched_mask

    one = (np.array([1, 0, 1], np.int8), np.array([0, 1], np.int8))
    envs = VectorEnv[Any, Any, Any]()
    envs.num_envs = 2
    info: dict[str, Any] = {}
    for n in range(2):
        info = envs._add_info(info, {"action_mask": one}, n)
    expected = [[True, False, True, False, True]] * 2
    assert batched_mask(info, 2).tolist() == expected
    stacked = {"action_mask": tuple(np.stack([part, part]) for part in one)}
    assert batched_mask(stacked, 2).tolist() == expected


def test_an_environment_that_forgets_its_mask_is_named() -> None:
    class Forgetful(Toy):
        def info(self) -> dict[str, Any]:
            return {} if self.buffer[2] == 2 and self.buffer[0] == 1 else super().info()

    envs = SyncVectorEnv(
        [lambda n=n: Forgetful(n, ((5, "both"),), masks=True) for n in range(2)],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    with pytest.raises(EnvironmentFault, match=r"step 1: info\[.action_mask.\].*none from \[1\]"):
        Collector(envs, Obeying()).steps(9)


class Counting(Rule):
    """Acts on its memory: the carry counts the steps since it was last zero."""

    def initial_carry(self, num_envs: int) -> Any:
        return torch.zeros(num_envs), torch.zeros(num_envs, 2)

    def draw(
        self, obs: Tensor, carry: Any, generator: torch.Generator, episode_start: Any = None
    ) -> tuple[Tensor, Any]:
        count, extra = restarted(carry, episode_start)
        return (count % 3).long(), (count + 1, extra)


@pytest.mark.parametrize("mode", MODES)
def test_the_carry_is_zero_where_an_episode_begins(mode: AutoresetMode) -> None:
    collector = Collector(NativeToys(FIXED, mode), Counting(), log_prob=False)
    for rollout in (collector.steps(11), collector.steps(7), collector.episodes(3)):
        assert torch.equal(rollout.action[rollout.valid], rollout.time[rollout.valid] % 3)
        assert rollout.log_prob is None


def test_log_prob_is_that_of_the_stored_action() -> None:
    rollout = Collector(NativeToys(FIXED, AutoresetMode.NEXT_STEP), Rule()).steps(9)
    expected = torch.log_softmax(rollout.obs[:-1, :, 1:4], -1)
    expected = expected.gather(-1, rollout.action[..., None])[..., 0]
    assert rollout.log_prob is not None
    torch.testing.assert_close(rollout.log_prob, expected)
    assert not rollout.log_prob.requires_grad
    (rollout.obs * torch.ones((), requires_grad=True)).sum().backward()  # no inference tensors


@pytest.mark.parametrize("call", ["steps", "episodes"])
def test_bug_rollouts_began_anywhere_in_memory(call: str) -> None:
    """MKL promises the same bits in every run only where arrays begin at multiples of 64 bytes."""
    envs = make_envs("CartPole-v1", 3, seed=np.random.SeedSequence(1)).envs
    collector = Collector(envs, Coin(envs.single_observation_space), log_prob=False)
    rollouts = [getattr(collector, call)(7) for _ in range(16)]
    assert {r.obs.data_ptr() % 64 for r in rollouts} == {0}
    assert {r.action.data_ptr() % 64 for r in rollouts} == {0}


# ------------------------------------------------------------------------------ seeds and state


def test_the_same_seed_collects_the_same_and_another_does_not() -> None:
    def collect(seed: int) -> Rollout:
        envs = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="sync")
        return Collector(envs, Coin(envs.single_observation_space), seed=seed).steps(30)

    one, same, other = collect(1), collect(1), collect(2)
    assert torch.equal(one.obs, same.obs)
    assert torch.equal(one.action, same.action)
    assert not torch.equal(one.obs[0], other.obs[0])
    assert not torch.equal(one.action, other.action)


def test_no_global_random_stream_is_used_or_seeded() -> None:
    def collect() -> Rollout:
        envs, _ = make_envs("CartPole-v1", 3, seed=1, backend="sync")
        return Collector(envs, Coin(envs.single_observation_space), seed=1).steps(30)

    one = collect()
    torch.manual_seed(99)
    np.random.seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    two = collect()
    assert torch.equal(one.action, two.action)
    assert torch.equal(one.obs, two.obs)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_a_saved_collector_goes_on_as_if_it_had_not_stopped() -> None:
    class ResumableToys(NativeToys):
        def state_dict(self) -> dict[str, Any]:
            return copy.deepcopy(vars(self))

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            vars(self).update(copy.deepcopy(state_dict))

    envs = ResumableToys(FIXED, AutoresetMode.NEXT_STEP)
    policy = Coin(envs.single_observation_space, start=START)
    collector = Collector(envs, policy, seed=1)
    collector.steps(7)
    state = collector.state_dict()
    expected = [collector.steps(6), collector.steps(6)]
    resumed = Collector(ResumableToys(FIXED, AutoresetMode.NEXT_STEP), policy, seed=99)
    assert resumed.load_state_dict(state) == ""
    for rollout in expected:
        again = resumed.steps(6)
        assert torch.equal(again.obs, rollout.obs)
        assert torch.equal(again.action, rollout.action)
        assert torch.equal(again.time, rollout.time)
        np.testing.assert_array_equal(again.episodes.returns, rollout.episodes.returns)
    assert resumed.env_steps == collector.env_steps


# -------------------------------------------------------------------------------------- faults


def broken(mode: AutoresetMode = AutoresetMode.NEXT_STEP, **faults: Any) -> NativeToys:
    """Two environments whose step returns something else, once: `at` and what to change."""

    class Broken(NativeToys):
        calls = 0

        def step(self, actions: Any) -> Any:
            result = list(super().step(actions))
            self.calls += 1
            if self.calls == 4:
                for place, change in faults.items():
                    at = ["obs", "reward", "terminated", "truncated", "info"].index(place)
                    result[at] = change(np.copy(result[at]) if at < 4 else result[at])
            return tuple(result)

    return Broken([((50, "both"),)] * 2, mode)


def at_one(value: float) -> Any:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float64)
        array[1] = value
        return array

    return change


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"obs": at_one(np.nan)}, r"step 3, environment 1: observation: expected finite.*nan"),
        ({"obs": at_one(1e39)}, r"step 3, environment 1: observation: expected finite.*inf"),
        ({"reward": at_one(-np.inf)}, r"step 3, environment 1: reward: .*-inf"),
        ({"reward": at_one(1e39)}, r"step 3, environment 1: reward: "),
        ({"obs": lambda obs: obs[:, :1]}, r"step 3: observation"),
        ({"obs": lambda obs: obs[:1]}, r"step 3: observation"),
        ({"obs": lambda obs: obs.astype(str)}, r"step 3: observation"),
        ({"reward": lambda reward: reward[:1]}, r"step 3: reward: expected 2 .* got .*\[1\]"),
        ({"reward": lambda reward: reward[:, None]}, r"step 3: reward: .*\[2, 1\]"),
        ({"reward": lambda reward: None}, r"step 3: reward: .*NoneType"),
        ({"terminated": lambda flags: flags.astype(float)}, r"step 3: terminated: .*float"),
        ({"truncated": lambda flags: flags[0]}, r"step 3: truncated: "),
    ],
)
@pytest.mark.parametrize("call", ["steps", "episodes"])
def test_nonsense_from_an_environment_is_named(
    faults: dict[str, Any], message: str, call: str
) -> None:
    collector = Collector(broken(**faults), Rule())
    collect = {"steps": lambda: collector.steps(9), "episodes": collector.episodes}
    with pytest.raises(EnvironmentFault, match=message) as caught:
        collect[call]()
    assert "\n" not in str(caught.value)


def test_final_observations_are_checked_too() -> None:
    envs = NativeToys([((2, "truncated"),)] * 2, AutoresetMode.SAME_STEP)
    step = envs.step

    def with_nan(actions: Any) -> Any:
        *rest, info = step(actions)
        if info:
            info["final_obs"][1, 2] = np.nan
        return *rest, info

    envs.step = with_nan  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFault, match=r"step 1, environment 1: observation.*nan at \[2\]"):
        Collector(envs, Rule()).steps(3)


def test_a_same_step_environment_must_give_the_final_observation() -> None:
    envs = broken(AutoresetMode.SAME_STEP, terminated=lambda flags: ~flags)
    with pytest.raises(EnvironmentFault, match=r"step 3: info\[.final_obs.\]"):
        Collector(envs, Rule()).steps(9)


def test_a_wrong_autoreset_mode_shows_itself() -> None:
    envs = NativeToys([((1, "truncated"),)] * 2, AutoresetMode.SAME_STEP)
    envs.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    with pytest.raises(EnvironmentFault, match=r"step 1, environment 0: .*got another end"):
        Collector(envs, Rule()).steps(5)


@pytest.mark.parametrize("metadata", [{}, {"autoreset_mode": "sometimes"}])
def test_an_unknown_autoreset_mode_is_refused_before_the_first_step(metadata: Any) -> None:
    envs = NativeToys(FIXED, AutoresetMode.NEXT_STEP)
    envs.metadata = metadata
    with pytest.raises(EnvironmentSetupError, match="autoreset_mode: expected"):
        Collector(envs, Rule())


def test_an_info_that_a_wrapper_made_a_list_is_named() -> None:
    """It was told as: 'list' object has no attribute 'get'."""
    envs = NativeToys(FIXED, AutoresetMode.NEXT_STEP)
    listed = DictInfoToList(envs)
    with pytest.raises(EnvironmentFault, match="step 0: info: expected a dict of arrays"):
        Collector(listed, Rule()).steps(3)


def test_an_autoreset_mode_may_be_given_by_its_value() -> None:
    envs = NativeToys(FIXED, AutoresetMode.SAME_STEP)
    envs.metadata = {"autoreset_mode": "SameStep"}  # type: ignore[dict-item]
    assert Collector(envs, Rule()).steps(3).valid.all()


def test_episodes_that_never_end_do_not_hang() -> None:
    envs = NativeToys([((1, "both"),), ((10**9, "both"),)], AutoresetMode.NEXT_STEP)
    with pytest.raises(
        EnvironmentFault, match=r"environment 1: expected 2 .*got 0; give it a time"
    ):
        Collector(envs, Rule()).episodes(2, max_steps=300)


def test_an_error_inside_an_environment_names_it() -> None:
    class Raising(Toy):
        def step(self, action: Any) -> Any:
            if self.buffer[0] == 1 and self.buffer[2] == 2:
                raise ValueError("boom")
            return super().step(action)

    root = np.random.SeedSequence(0)
    envs = SyncVectorEnv(
        [lambda n=n: EpisodeSeeds(Raising(n, ((9, "both"),)), root, n) for n in range(2)]
    )
    with pytest.raises(
        EnvironmentFault, match=r"step 2: environment 1, episode 0 .*ValueError: boom"
    ):
        Collector(envs, Rule()).steps(9)


@pytest.mark.parametrize("call", ["steps", "episodes"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_an_environment_may_differentiate(mode: AutoresetMode, call: str) -> None:
    """It was stepped in inference_mode: "element 0 of tensors does not require grad"."""

    class Differentiating(Toy):
        def reset(self, **options: Any) -> Any:
            self.differentiate()
            return super().reset(**options)

        def step(self, action: Any) -> Any:
            self.differentiate()
            return super().step(action)

        def differentiate(self) -> None:
            x = torch.ones(2, requires_grad=True)
            torch.autograd.grad(x.square().sum(), x)

    make = [lambda: Differentiating(0, ((2, "both"),))]
    collector = Collector(SyncVectorEnv(make, autoreset_mode=mode), Rule())
    assert getattr(collector, call)(5).num_steps >= 4


@pytest.mark.parametrize("call", ["steps", "episodes"])
def test_nothing_to_collect_is_refused(call: str) -> None:
    collector = Collector(NativeToys(FIXED, AutoresetMode.NEXT_STEP), Rule())
    with pytest.raises(UsageError, match=f"{call}: expected at least 1"):
        getattr(collector, call)(0)


# --------------------------------------------------------------------- with the policy of rlpg


@pytest.mark.parametrize(
    ("env_id", "backend"),
    [
        ("CartPole-v1", "native"),
        ("Pendulum-v1", "native"),
        ("Blackjack-v1", "sync"),  # Tuple observations, episodes of one step
        ("FrozenLake-v1", "sync"),  # Discrete observations
        ("Taxi-v4", "sync"),  # an action mask in info
        ("CliffWalking-v1", "sync"),  # never ends by itself
        ("LunarLander-v3", "sync"),
        ("Acrobot-v1", "envpool"),
        ("CartPole-v1", "async"),
    ],
)
def test_the_real_policy_collects_from_real_environments(env_id: str, backend: str) -> None:
    if backend == "envpool":
        pytest.importorskip("envpool")

    envs, _ = make_envs(env_id, 3, seed=0, backend=backend, episode_cap=30)
    try:
        policy = StandardPolicy(
            envs.single_observation_space,
            envs.single_action_space,
            info_mask=probe_action_mask(envs),
            generator=torch.Generator().manual_seed(0),
        )
        collector = Collector(envs, policy, seed=0)
        rollout = collector.steps(40)
        assert rollout.num_steps == collector.env_steps
        assert rollout.log_prob is not None
        assert torch.isfinite(rollout.log_prob).all()
        if env_id not in ("LunarLander-v3", "Acrobot-v1", "Pendulum-v1", "Taxi-v4"):
            rollout = collector.episodes(2)
            assert np.bincount(rollout.episodes.env).tolist() == [2, 2, 2]
            assert rollout.num_steps == rollout.episodes.lengths.sum()
            per_episode = (rollout.reward * rollout.valid).sum()
            assert float(per_episode) == pytest.approx(rollout.episodes.returns.sum())
    finally:
        envs.close()

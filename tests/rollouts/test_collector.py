"""The collector against a loop written by hand, in every autoreset mode and backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlpg.errors import EnvironmentFault, EnvironmentSetupError, UsageError
from rlpg.policies.observations import Observations
from rlpg.rollouts import Collector, EpisodeSeeds, Rollout, make_envs, probe_action_mask

START = 5  # of the action space: what the environment sees is not what the policy drew
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
        self.observation_space = spaces.Box(-100, 100, (4,), np.float32)
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


class Head:
    """Three actions, 0-based, that the environment counts from START."""

    action_shape: tuple[int, ...] = ()
    action_dtype = torch.int64

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return action + START


class Rule(torch.nn.Module):
    """A policy whose action is a function of the observation alone, known to the reference."""

    def __init__(self, info_mask: int = 0, space: spaces.Space[Any] | None = None) -> None:
        super().__init__()
        space = space or spaces.Box(-100, 100, (4,), np.float32)
        self.observations = Observations(space, info_mask=info_mask)
        self.head = Head()

    def draw(self, obs: Tensor, carry: Any, generator: torch.Generator) -> tuple[Tensor, Any]:
        assert obs.dtype == torch.float32
        return torch.from_numpy(np.array([rule(row) for row in obs.numpy()])), carry

    def forward(self, obs: Tensor, carry: Any = None) -> tuple[Any, Any]:
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
@settings(max_examples=60, deadline=None)
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
@settings(max_examples=60, deadline=None)
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

"""Parts of the reward in `info`: means per step, the last step of an episode included."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import rlpg
from rlpg.rollouts.reward_parts import RewardParts


class Parts(gymnasium.Env[Any, Any]):
    """Episodes of three steps; the goal pays in the last one only."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=options.get("seed"))
        self.t = 0
        return np.zeros(1, np.float32), {"reward_walk": 100.0} if options.get("x") else {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        is_last = self.t == 3
        info = {"reward_walk": 1.0, "reward_goal": 6.0 * is_last, "reward_word": "x", "other": 1}
        return np.zeros(1, np.float32), 1.0, is_last, False, info


@pytest.mark.parametrize("mode", list(AutoresetMode)[:2])
def test_means_are_per_step_in_every_autoreset_mode(mode: AutoresetMode) -> None:
    envs = SyncVectorEnv([Parts] * 2, autoreset_mode=mode)
    policy = rlpg.StandardPolicy(
        envs.single_observation_space, envs.single_action_space, generator=torch.Generator()
    )
    collector = rlpg.Collector(envs, policy, seed=0)
    steps = 12 if mode is AutoresetMode.NEXT_STEP else 9  # three episodes; a reset takes a step
    for _ in range(2):  # each rollout begins anew
        rollout = collector.steps(steps)
        assert rollout.reward_parts == {"reward_walk": 1.0, "reward_goal": 2.0}
    collector.close()


def test_entries_without_a_mask_count_for_all_and_others_are_left_out() -> None:
    parts = RewardParts(3)
    parts.add({"reward_a": np.array([1, 2, 3]), "reward_b": np.zeros((3, 2)), "reward_c": "x"})
    parts.add({"reward_a": np.array([True, False, False]), "reward_d": np.full(3, None)})
    assert parts.means() == {"reward_a": 7 / 6}


def test_infos_of_single_environments_add_up_to_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    together, apart = RewardParts(2), [RewardParts(2), RewardParts(2)]
    for t in range(50):
        values, end = rng.normal(size=2), rng.normal()
        info: dict[str, Any] = {"reward_a": values, "_reward_a": np.array([True, t % 3 == 0])}
        infos: list[dict[str, Any]] = [{"reward_a": values[0], "reward_b": "x"}, {}]
        if t % 3 == 0:
            infos[1] = {"reward_a": values[1], "final_info": {"reward_a": end}}
            last = {"reward_a": np.array([0, end]), "_reward_a": np.array([False, True])}
            info |= {"final_info": last}
        together.add(info)
        for n, single in enumerate(infos):
            apart[n].add_single(single, n)
    other = RewardParts(2)
    for n, parts in enumerate(apart):
        rows = slice(n, n + 1)
        other.put(parts.taken(rows), rows)
        assert parts.means() == {}
    assert other.means() == together.means()
    assert together.means().keys() == {"reward_a"}


def test_a_vector_environment_may_tell_things_under_any_key() -> None:
    """`name[:7]` of a number ended the training: 'int' object is not subscriptable."""
    parts = RewardParts(2)
    parts.add({1: np.ones(2), ("reward_", 2): 3, "reward_a": np.array([1.0, 2.0])})
    assert parts.means() == {"reward_a": 1.5}

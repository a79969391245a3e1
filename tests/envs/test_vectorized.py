"""What `ArrayVectorEnv` and `SingleEnv` promise, on our own environments."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gymnasium.error import InvalidAction
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from rlpg.envs.bandit import Bandit, BanditVectorEnv
from rlpg.envs.catch import Catch, CatchVectorEnv
from rlpg.envs.chain import Chain, ChainVectorEnv
from rlpg.envs.hedging import Hedging, HedgingVectorEnv
from rlpg.envs.lqr import LQR, LQRVectorEnv
from rlpg.envs.replenishment import Replenishment, ReplenishmentVectorEnv
from rlpg.envs.swing_up import SwingUp, SwingUpVectorEnv
from rlpg.envs.unit_commitment import UnitCommitment, UnitCommitmentVectorEnv

OWN = [
    (Bandit, BanditVectorEnv),
    (Catch, CatchVectorEnv),
    (Chain, ChainVectorEnv),
    (Hedging, HedgingVectorEnv),
    (LQR, LQRVectorEnv),
    (Replenishment, ReplenishmentVectorEnv),
    (SwingUp, SwingUpVectorEnv),
    (UnitCommitment, UnitCommitmentVectorEnv),
]


@pytest.mark.parametrize(("single", "vector"), OWN)
def test_one_and_many_are_the_same_environment(single: Any, vector: Any) -> None:
    ours = vector(3)
    limit = ours.max_episode_steps or 1000

    def limited() -> TimeLimit[Any, Any]:
        return TimeLimit(single(), limit)

    theirs = SyncVectorEnv([limited] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    seeds = [3, 1, 4]
    np.testing.assert_array_equal(ours.reset(seed=seeds)[0], theirs.reset(seed=seeds)[0])
    ours.action_space.seed(0)
    for _ in range(170):  # two episodes of the longest
        action = ours.action_space.sample()
        *got, info = ours.step(action)
        *expected, expected_info = theirs.step(action)
        for mine, reference in zip(got, expected, strict=True):
            assert mine.dtype == reference.dtype
            np.testing.assert_array_equal(mine, reference)
        assert ("final_obs" in info) == ("final_obs" in expected_info)
        if "final_obs" in info:
            for mine, reference in zip(info["final_obs"], expected_info["final_obs"], strict=True):
                np.testing.assert_array_equal(mine, reference)


@pytest.mark.parametrize("vector", [vector for _, vector in OWN])
def test_resumes_exactly_from_its_state(vector: Any) -> None:
    envs, twin = vector(3, max_episode_steps=50), vector(3, max_episode_steps=50)
    envs.reset(seed=7)
    envs.action_space.seed(1)
    for _ in range(10):
        envs.step(envs.action_space.sample())
    saved = envs.state_dict()
    saved["generators"] = json.loads(json.dumps(saved["generators"]))
    twin.load_state_dict(saved)
    for _ in range(90):
        action = envs.action_space.sample()
        for mine, reference in zip(twin.step(action)[:4], envs.step(action)[:4], strict=True):
            np.testing.assert_array_equal(mine, reference)


def test_goes_on_with_its_streams_after_a_reset_without_a_seed() -> None:
    envs, again = CatchVectorEnv(2), CatchVectorEnv(2)
    for made in (envs, again):
        made.reset(seed=5)
    first, second = envs.reset()[0], envs.reset()[0]
    assert (first != second).any()
    np.testing.assert_array_equal(again.reset()[0], first)


def test_an_unseeded_reset_is_random() -> None:
    first, second = LQRVectorEnv(1), LQRVectorEnv(1)
    first.reset()
    second.reset()
    assert (first.state != second.state).any()


def test_an_integer_seed_counts_up_as_gymnasiums_does() -> None:
    by_number, by_list = CatchVectorEnv(3), CatchVectorEnv(3)
    np.testing.assert_array_equal(by_number.reset(seed=8)[0], by_list.reset(seed=[8, 9, 10])[0])


@pytest.mark.parametrize(
    ("vector", "action"),
    [
        (UnitCommitmentVectorEnv, np.full((2, 4), 2, dtype=np.int8)),
        (ReplenishmentVectorEnv, np.array([[0, 0, 0], [0, 4, 0]])),
    ],
)
def test_refuses_actions_outside_the_space(vector: Any, action: Any) -> None:
    envs = vector(2)
    envs.reset(seed=0)
    with pytest.raises(InvalidAction, match="expected members of"):
        envs.step(action)

"""Observations out of bounds are said once, with their place, and change nothing."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlpg.policies import Policy, StandardPolicy
from rlpg.policies.observations import Observations
from rlpg.rollouts import Collector, make_envs
from rlpg.rollouts.bounds import Bounds

LENGTH = 4


class Straying(gymnasium.Env[Any, Any]):
    """Episodes of four steps; out of bounds at `at`: -1 in reset, 3 in the last observation."""

    action_space = spaces.Discrete(2)

    def __init__(self, at: int | None = None, space: Any = None, value: Any = 1.5) -> None:
        self.at, self.value = at, value
        self.observation_space = space or spaces.Box(-1, 1, (2,), np.float32)

    def seen(self) -> Any:
        obs = np.zeros(2, np.float32)
        obs[1] = self.value if self.at == self.step_number else 0
        if isinstance(self.observation_space, spaces.Dict):
            return {"a": 1, "b": obs}
        return obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.step_number = -1
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        self.step_number += 1
        return self.seen(), 1.0, self.step_number == LENGTH - 1, False, {}


def policy_for(envs: Any) -> Policy:
    generator = torch.Generator().manual_seed(0)
    spaces_of = envs.single_observation_space, envs.single_action_space
    return StandardPolicy(*spaces_of, hidden=(4,), generator=generator)


def said(envs: Any, steps: tuple[int, ...] = (3, 3, 6)) -> list[str]:
    lines: list[str] = []
    collector = Collector(envs, policy_for(envs), warn=lines.append)
    for num_steps in steps:
        assert collector.steps(num_steps).num_steps > 0
    return lines


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize(
    ("at", "place"),
    [
        (-1, "reset before step 0"),
        (0, "step 0"),
        (2, "step 2"),  # the last of the first rollout
        (3, "step 3"),  # the last of the episode, in the second rollout
    ],
)
def test_one_line_with_the_first_place(at: int, place: str, mode: AutoresetMode) -> None:
    envs = SyncVectorEnv([Straying, lambda: Straying(at)], autoreset_mode=mode)
    assert said(envs) == [
        f"{place}, environment 1: observation: expected -1 to 1, got 1.5 at [1], which is out of "
        "the space's bounds; training goes on, and this is said once"
    ]


def test_parts_are_named_and_unbounded_ones_are_free() -> None:
    box = spaces.Box(np.array([-np.inf, -2], np.float32), np.array([np.inf, np.inf], np.float32))
    space = spaces.Dict({"a": spaces.Discrete(3), "b": box})
    (line,) = said(SyncVectorEnv([lambda: Straying(1, space, -2.5)]))
    assert "environment 0: observation['b']: expected -2 to inf, got -2.5 at [2]" in line
    assert said(SyncVectorEnv([lambda: Straying(1, space, 1e9)])) == []


@pytest.mark.parametrize(
    ("space", "exist"),
    [
        (spaces.Box(-1, 1, (2,)), True),
        (spaces.Box(-1, 1, ()), True),
        (spaces.Box(-np.inf, np.inf, (2,)), False),
        (spaces.Box(-1e300, 1e300, (2,), np.float64), False),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), False),
        (spaces.Discrete(3), False),
    ],
    ids=str,
)
def test_where_there_are_no_bounds_nothing_is_looked_at(space: Any, exist: bool) -> None:
    assert Bounds(Observations(space)).exist is exist


def test_on_the_bound_is_within_also_after_rounding() -> None:
    """0.1 is below its float32."""
    space = spaces.Box(-0.1, 0.1, (2,), np.float64)

    class Edge(Straying):
        def seen(self) -> Any:
            return np.array([-0.1, 0.1])

    assert said(SyncVectorEnv([lambda: Edge(space=space)])) == []


def test_a_mask_from_info_is_no_observation() -> None:
    envs, _ = make_envs("Taxi-v4", 2, seed=0)
    observations = Observations(envs.single_observation_space, info_mask=6)
    assert not Bounds(observations).exist
    envs.close()


def test_without_a_listener_it_is_a_python_warning() -> None:
    envs = SyncVectorEnv([lambda: Straying(0)])
    collector = Collector(envs, policy_for(envs))
    with pytest.warns(UserWarning, match=r"step 0, environment 0: observation: expected -1 to 1"):
        collector.steps(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collector.steps(9)

"""The native versions are Gymnasium's environments, bit for bit."""

from __future__ import annotations

import json
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from rlpg.envs.acrobot import AcrobotVectorEnv
from rlpg.envs.cartpole import CartPoleVectorEnv
from rlpg.envs.mountain_car import MountainCarContinuousVectorEnv, MountainCarVectorEnv
from rlpg.envs.pendulum import PendulumVectorEnv
from rlpg.envs.vectorized import ArrayVectorEnv

NATIVE: dict[str, type[ArrayVectorEnv]] = {
    "Acrobot-v1": AcrobotVectorEnv,
    "CartPole-v1": CartPoleVectorEnv,
    "MountainCar-v0": MountainCarVectorEnv,
    "MountainCarContinuous-v0": MountainCarContinuousVectorEnv,
    "Pendulum-v1": PendulumVectorEnv,
}
each_env = pytest.mark.parametrize("env_id", sorted(NATIVE))


def draw_actions(envs: Any, generator: np.random.Generator, push: int | None) -> Any:
    """Random actions; continuous ones also at and beyond their bounds. `push` repeats one."""
    space = envs.single_action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        if push is not None:
            return np.full(envs.num_envs, push % space.n)
        return generator.integers(space.n, size=envs.num_envs)
    size = (envs.num_envs, *space.shape)
    high = float(space.high[0])
    action = generator.uniform(-1.5 * high, 1.5 * high, size).astype(np.float32)
    special = generator.choice(np.array([-high, 0.0, high], dtype=np.float32), size)
    return np.where(generator.random(size) < 0.2, special, action)


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() <= expected.keys() | {"final_obs", "_final_obs"}
    assert ("final_obs" in got) == ("final_obs" in expected)
    if "final_obs" in got:
        np.testing.assert_array_equal(got["_final_obs"], expected["_final_obs"])
        for ours, theirs in zip(got["final_obs"], expected["final_obs"], strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours, theirs)


@each_env
@settings(max_examples=8)
@given(
    seeds=st.lists(st.integers(0, 2**63), min_size=1, max_size=5),
    max_episode_steps=st.integers(1, 60),
    push=st.sampled_from([None, None, 0, 2]),
)
def test_equals_gymnasium_bit_for_bit(
    env_id: str, seeds: list[int], max_episode_steps: int, push: int | None
) -> None:
    def make() -> Any:
        return gymnasium.make(env_id, max_episode_steps=max_episode_steps)

    theirs = SyncVectorEnv([make] * len(seeds), autoreset_mode=AutoresetMode.SAME_STEP)
    ours = NATIVE[env_id](len(seeds), max_episode_steps=max_episode_steps)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space

    generator = np.random.default_rng(seeds)
    expected, _ = theirs.reset(seed=list(seeds))
    got, _ = ours.reset(seed=list(seeds))
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == expected.dtype
    for _ in range(130):
        action = draw_actions(ours, generator, push)
        *expected_arrays, expected_info = theirs.step(action)
        *got_arrays, got_info = ours.step(action)
        for mine, reference in zip(got_arrays, expected_arrays, strict=True):
            assert mine.dtype == reference.dtype
            np.testing.assert_array_equal(mine, reference)
        assert_same(got_info, expected_info)
    theirs.close()


@pytest.mark.parametrize("env_id", ["MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"])
def test_equals_gymnasium_where_the_goal_is_reached(env_id: str) -> None:
    """Pumping energy in: random actions alone would hardly ever see the goal."""
    theirs = SyncVectorEnv(
        [lambda: gymnasium.make(env_id)] * 3, autoreset_mode=AutoresetMode.SAME_STEP
    )
    ours = NATIVE[env_id](3)
    obs, _ = ours.reset(seed=3)
    theirs.reset(seed=3)
    goals = 0
    for _ in range(600):
        speed = obs[:, 5] if env_id == "Acrobot-v1" else obs[:, 1]
        action = np.where(speed > 0, 2, 0)
        if env_id == "MountainCarContinuous-v0":
            action = (action - 1).astype(np.float32)[:, None]
        expected = theirs.step(action)
        obs, *rest, info = ours.step(action)
        for mine, reference in zip((obs, *rest), expected[:4], strict=True):
            np.testing.assert_array_equal(mine, reference)
        assert_same(info, expected[4])
        goals += int(rest[1].sum())
    assert goals >= 3


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("Pendulum-v1", {"g": 9.81}),
        ("CartPole-v1", {"sutton_barto_reward": True}),
        ("MountainCarContinuous-v0", {"goal_velocity": 0.01}),
    ],
)
def test_takes_the_arguments_gymnasium_takes(env_id: str, kwargs: dict[str, Any]) -> None:
    theirs = SyncVectorEnv(
        [lambda: gymnasium.make(env_id, **kwargs)] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    ours = NATIVE[env_id](2, **kwargs)
    generator = np.random.default_rng(0)
    np.testing.assert_array_equal(ours.reset(seed=[4, 7])[0], theirs.reset(seed=[4, 7])[0])
    for _ in range(80):
        action = draw_actions(ours, generator, None)
        for mine, reference in zip(ours.step(action)[:4], theirs.step(action)[:4], strict=True):
            np.testing.assert_array_equal(mine, reference)


@each_env
def test_limit_is_gymnasiums(env_id: str) -> None:
    assert NATIVE[env_id]().max_episode_steps == gymnasium.spec(env_id).max_episode_steps


@each_env
def test_resumes_exactly_from_its_state(env_id: str) -> None:
    envs = NATIVE[env_id](3, max_episode_steps=7)
    generator = np.random.default_rng(1)
    envs.reset(seed=[5, 1, 9])
    for _ in range(10):
        envs.step(draw_actions(envs, generator, None))
    saved = envs.state_dict()
    saved["generators"] = json.loads(json.dumps(saved["generators"]))
    twin = NATIVE[env_id](3, max_episode_steps=7)
    twin.load_state_dict(saved)
    for _ in range(20):
        action = draw_actions(envs, generator, None)
        for mine, reference in zip(twin.step(action)[:4], envs.step(action)[:4], strict=True):
            np.testing.assert_array_equal(mine, reference)


@each_env
def test_an_environment_does_not_depend_on_the_others(env_id: str) -> None:
    many, one = (NATIVE[env_id](n, max_episode_steps=9) for n in (4, 1))
    seeds = [11, 12, 13, 14]
    obs, _ = many.reset(seed=seeds)
    alone, _ = one.reset(seed=seeds[2:3])
    np.testing.assert_array_equal(alone[0], obs[2])
    generator = np.random.default_rng(2)
    for _ in range(30):
        action = draw_actions(many, generator, None)
        obs = many.step(action)[0]
        np.testing.assert_array_equal(one.step(action[2:3])[0][0], obs[2])


def test_observations_are_the_callers_to_keep() -> None:
    envs = CartPoleVectorEnv(2)
    first, _ = envs.reset(seed=0)
    kept = first.copy()
    second = envs.step(np.array([0, 1]))[0]
    np.testing.assert_array_equal(first, kept)
    second[:] = 0
    assert envs.step(np.array([0, 1]))[0].any()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.array([0, 1, 0]), r"expected shape \(2,\), got \(3,\)"),
        (np.array([0, 2]), "expected members of"),
        (np.array([-1, 0]), "expected members of"),
        (np.array([0.0, 1.0]), "expected integers"),
    ],
)
def test_refuses_actions_outside_the_space(action: Any, message: str) -> None:
    envs = CartPoleVectorEnv(2)
    envs.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match=message):
        envs.step(action)


def test_refuses_what_it_cannot_do() -> None:
    envs = CartPoleVectorEnv(2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.step(np.array([0, 1]))
    with pytest.raises(ValueError, match="expected an int or 2 seeds, got 3"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="options"):
        envs.reset(options={"low": 0.0})
    envs.reset(seed=1)
    with pytest.raises(ValueError, match="expected 3 environments, got 2"):
        CartPoleVectorEnv(3).load_state_dict(envs.state_dict())

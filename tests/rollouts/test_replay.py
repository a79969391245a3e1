"""Environments are brought back to where they were, or it is said that they cannot be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlpg.errors import EnvironmentFault
from rlpg.policies import StandardPolicy
from rlpg.rollouts import Collector, Rollout, make_envs
from rlpg.runs.trees import join, split

sys.path.append(str(Path(__file__).parent))
from faulty_envs import Composite, Unrepeatable

NUM_ENVS = 3


def collector(env: Any, backend: str = "auto", *, seed: int = 0, memory: Any = None) -> Collector:
    envs, _ = make_envs(env, NUM_ENVS, seed=seed, backend=backend)
    policy = StandardPolicy(
        envs.single_observation_space,
        envs.single_action_space,
        memory=memory,
        generator=torch.Generator().manual_seed(0),
    )
    return Collector(envs, policy, seed=seed, log_prob=False)


def through_a_file(state: Any, tmp_path: Any) -> Any:
    """The state as a checkpoint would give it back."""
    plain, arrays = split(state)
    return join(plain, {key: array.copy() for key, array in arrays.items()}, tmp_path)


def assert_same(a: Rollout, b: Rollout) -> None:
    for name in ("obs", "action", "reward", "terminated", "truncated", "valid", "time"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    np.testing.assert_array_equal(a.episodes.returns, b.episodes.returns)
    np.testing.assert_array_equal(a.episodes.lengths, b.episodes.lengths)


@pytest.mark.parametrize("steps", [1, 23, 60])
@pytest.mark.parametrize(
    ("env", "backend"),
    [
        ("CartPole-v1", "native"),
        ("CartPole-v1", "sync"),
        ("MountainCarContinuous-v0", "native"),
        ("Pendulum-v1", "sync"),
        ("FrozenLake-v1", "sync"),
        ("Blackjack-v1", "sync"),
        ("LunarLander-v3", "sync"),
        ("InvertedPendulum-v5", "sync"),
        ("rlpg:rlpg/UnitCommitment-v0", "sync"),
    ],
)
def test_a_collector_continues_where_another_was_saved(
    env: str, backend: str, steps: int, tmp_path: Any
) -> None:
    one = collector(env, backend)
    one.steps(steps)
    state = through_a_file(one.state_dict(), tmp_path)
    expected = one.steps(50)
    other = collector(env, backend)
    assert other.load_state_dict(state) == ""
    assert_same(expected, other.steps(50))
    one.close()
    other.close()


def test_async_environments_are_replayed_in_their_processes(tmp_path: Any) -> None:
    one = collector("CartPole-v1", "async")
    one.steps(30)
    state = through_a_file(one.state_dict(), tmp_path)
    expected = one.steps(30)
    one.close()
    for backend in ("async", "sync"):
        other = collector("CartPole-v1", backend)
        assert other.load_state_dict(state) == ""
        assert_same(expected, other.steps(30))
        other.close()


def test_whole_episode_rollouts_continue_with_the_next_episodes(tmp_path: Any) -> None:
    one = collector("CartPole-v1", "sync")
    one.episodes(2)
    state = through_a_file(one.state_dict(), tmp_path)
    expected = one.episodes(2)
    other = collector("CartPole-v1", "sync")
    assert other.load_state_dict(state) == ""
    assert_same(expected, other.episodes(2))


@pytest.mark.parametrize("how", ["steps", "episodes", "restarted", "nothing"])
@pytest.mark.parametrize("backend", ["native", "sync", "async"])
def test_the_state_saved_is_the_state_restored(backend: str, how: str, tmp_path: Any) -> None:
    one, other = collector("CartPole-v1", backend), collector("CartPole-v1", backend)
    try:
        if how == "episodes":
            one.episodes(1)
        elif how != "nothing":
            one.steps(30)
        if how == "restarted":
            one.restart()
        state = through_a_file(one.state_dict(), tmp_path)
        assert other.load_state_dict(state) == ""
        np.testing.assert_equal(other.state_dict(), state)
        assert_same(one.episodes(1), other.episodes(1))
        assert_same(one.steps(9), other.steps(9))
    finally:
        one.close()
        other.close()


class Forgetful(Composite):
    """Draws from a stream that no seed of an episode touches."""

    stream = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        _, info = super().reset(seed=seed)
        self.x = self.x + self.stream.normal()
        return {"x": self.x}, info


def test_composite_actions_are_replayed(tmp_path: Any) -> None:
    one = collector(Composite())
    one.steps(17)
    state = through_a_file(one.state_dict(), tmp_path)
    expected = one.steps(20)
    other = collector(Composite())
    assert other.load_state_dict(state) == ""
    assert_same(expected, other.steps(20))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("starts", lambda starts: starts[:1]),
        ("carry", lambda carry: [part[:1] for part in carry]),
        ("carry", lambda carry: carry[:1]),
        ("carry", lambda carry: None),
    ],
)
def test_one_start_or_memory_that_stood_for_all_environments_was_taken(
    name: str, change: Callable[[Any], Any]
) -> None:
    one = collector("CartPole-v1", memory="lstm")
    one.steps(5)
    state = one.state_dict()
    assert collector("CartPole-v1", memory="lstm").load_state_dict(state) == ""
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        collector("CartPole-v1", memory="lstm").load_state_dict(
            {**state, name: change(state[name])}
        )


def test_an_environment_that_does_not_repeat_itself_is_found_out(tmp_path: Any) -> None:
    one = collector(Forgetful())
    one.steps(17)
    state = through_a_file(one.state_dict(), tmp_path)
    other = collector(Forgetful())
    assert "does not repeat itself" in other.load_state_dict(state)
    rollout = other.steps(5)  # fresh episodes
    assert rollout.time[0].tolist() == [0]
    assert other.env_steps == 22


class Learned(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps something from one episode to the next, and shows it in one place only."""

    def __init__(self, env: gymnasium.Env[Any, Any], where: str) -> None:
        super().__init__(env)
        self.where, self.kept = where, 0

    def reset(self, **options: Any) -> Any:
        obs, info = self.env.reset(**options)
        return (obs * 0.9**self.kept if self.where == "reset" else obs), info

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.kept += terminated or truncated
        if self.where == "step":
            obs = obs * 0.9**self.kept
        return obs, reward + (self.where == "reward") * self.kept, terminated, truncated, info


@pytest.mark.parametrize("how", ["steps", "episodes"])
@pytest.mark.parametrize("where", ["reset", "step", "reward"])
def test_what_an_environment_keeps_across_episodes_is_found_out_to_be_lost(
    where: str, how: str, tmp_path: Any
) -> None:
    def make() -> Any:
        return Learned(gymnasium.make("Pendulum-v1", max_episode_steps=7), where)

    one = collector(make, "sync")
    if how == "steps":
        one.steps(14 if where == "reset" else 17)
    else:  # of one length: each environment has just begun another one
        one.episodes(2)
    state = through_a_file(one.state_dict(), tmp_path)
    assert "does not repeat itself" in collector(make, "sync").load_state_dict(state)


@pytest.mark.parametrize("steps", [14, 17])
def test_statistics_of_rewards_were_lost_in_silence(steps: int, tmp_path: Any) -> None:
    def make() -> Any:
        env = gymnasium.make("Pendulum-v1", max_episode_steps=7)
        return gymnasium.wrappers.NormalizeReward(env)

    one = collector(make, "sync")
    one.steps(steps)
    state = through_a_file(one.state_dict(), tmp_path)
    assert "does not repeat itself" in collector(make, "sync").load_state_dict(state)


@pytest.mark.parametrize("steps", [14, 17])
def test_a_state_without_sums_of_rewards_is_of_an_older_version(steps: int, tmp_path: Any) -> None:
    def make() -> Any:
        return gymnasium.make("Pendulum-v1", max_episode_steps=7)

    one = collector(make, "sync")
    one.steps(steps)
    state = through_a_file(one.state_dict(), tmp_path)
    for episode in state["environments"]["episodes"]:
        assert ("before" in episode) == (steps == 14)
        episode.pop("before", None)
        del episode["total"]
    expected = one.steps(20)
    other = collector(make, "sync")
    assert other.load_state_dict(state) == ""
    np.testing.assert_equal(other.state_dict(), state)
    assert_same(expected, other.steps(20))


def test_the_last_environment_alone_may_have_gone_elsewhere(tmp_path: Any) -> None:
    one = collector("CartPole-v1", "sync")
    one.steps(3)
    state = through_a_file(one.state_dict(), tmp_path)
    state["environments"]["episodes"][-1]["obs"] = "0" * 64
    problem = collector("CartPole-v1", "sync").load_state_dict(state)
    assert problem.startswith(
        f"environment {NUM_ENVS - 1}: the same seed and actions led elsewhere"
    )


def test_workers_that_do_not_repeat_themselves_ended_the_resumed_run(tmp_path: Any) -> None:
    gymnasium.register("test/Unrepeatable-v0", Unrepeatable)
    try:
        one = collector("test/Unrepeatable-v0", "async")
        one.steps(7)
        state = through_a_file(one.state_dict(), tmp_path)
        one.close()
        other = collector("test/Unrepeatable-v0", "async")
        assert "environment 0: the same seed and actions led elsewhere" in other.load_state_dict(
            state
        )
        assert other.steps(5).time[0].tolist() == [0, 0, 0]  # fresh episodes
        other.close()
        del gymnasium.registry["test/Unrepeatable-v0"]
        gymnasium.register("test/Unrepeatable-v0", Unrepeatable, kwargs={"lethal": True})
        lethal = collector("test/Unrepeatable-v0", "async")
        with pytest.raises(EnvironmentFault, match="its worker ended with exit code 7"):
            lethal.load_state_dict(state)
        lethal.close()
    finally:
        del gymnasium.registry["test/Unrepeatable-v0"]


def test_another_number_or_kind_of_environments_is_found_out(tmp_path: Any) -> None:
    state = through_a_file(collector("CartPole-v1", "sync").state_dict(), tmp_path)
    assert "another kind" in collector("CartPole-v1", "native").load_state_dict(state)
    one = collector("CartPole-v1", "sync")
    one.steps(3)
    state = one.state_dict()
    state["environments"]["episodes"].pop()
    assert "expected 3 environments, got 2" in collector("CartPole-v1", "sync").load_state_dict(
        state
    )


class Clipping(gymnasium.Env[Any, Any]):
    """Changes the action it is given in place, and remembers how often it was beyond 0.1."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, nested: bool) -> None:
        box = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Dict({"a": box}) if nested else box
        self.nested, self.beyond = nested, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.beyond = 0.0
        return np.array([0.0], np.float32), {}

    def step(self, action: Any) -> Any:
        array = action["a"] if self.nested else action
        self.beyond += float((np.abs(array) > 0.1).sum())
        np.clip(array, -0.1, 0.1, out=array)
        return np.array([self.beyond], np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("nested", [False, True])
def test_an_action_that_the_environment_changes_in_place_is_kept_as_it_was_taken(
    nested: bool,
) -> None:
    gymnasium.register("Clipping-v0", lambda: Clipping(nested), max_episode_steps=50)
    try:
        first = collector("Clipping-v0")
        first.steps(20)
        state = first.state_dict()
        expected = first.steps(20)
        other = collector("Clipping-v0")
        assert other.load_state_dict(state) == ""
        assert_same(other.steps(20), expected)
    finally:
        del gymnasium.registry["Clipping-v0"]

"""`auto` takes workers where they are faster, and never where anything would differ."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rlpg.engine.components import environment_options, find_recipe, seed_sequence, training_envs
from rlpg.policies import StandardPolicy
from rlpg.policies.references import UserParts
from rlpg.rollouts import make_envs, probe_action_mask, trial
from rlpg.rollouts.trial import faster_backend
from rlpg.rollouts.workers import WorkerEnvs
from rlpg.runs.recipe import override

sys.path.append(str(Path(__file__).parent))
from misbehaving import children
from sleeping import Sleeping


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Environments that sleep, on a machine with four cores."""
    for name in ("Sleeping", "Drifting", "Breaking"):
        gymnasium.register(f"test/{name}-v0", f"sleeping:{name}", max_episode_steps=20)
    monkeypatch.setattr(trial, "usable_cores", lambda: 4)
    yield
    for name in ("Sleeping", "Drifting", "Breaking"):
        del gymnasium.registry[f"test/{name}-v0"]
    assert children() == []


def policy_for(envs: Any) -> StandardPolicy:
    spaces = envs.single_observation_space, envs.single_action_space
    generator = torch.Generator().manual_seed(0)
    return StandardPolicy(*spaces, generator=generator, info_mask=probe_action_mask(envs))


def backend_for(
    name: str,
    num_envs: int = 16,
    total_steps: int = 10**6,
    *,
    whole_episodes: bool = False,
    **options: Any,
) -> tuple[str, str]:
    return faster_backend(
        f"test/{name}-v0",
        num_envs,
        total_steps,
        options,
        policy_for,
        whole_episodes=whole_episodes,
    )


@pytest.mark.parametrize("whole_episodes", [False, True])
def test_workers_are_taken_where_they_are_faster(
    whole_episodes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are tried as they will be used: whole episodes are collected without running ahead."""
    monkeypatch.setattr(trial, "_TRIAL_GAIN", 0.0)  # whatever else the machine does
    unused = "run_ahead" if whole_episodes else "step"
    monkeypatch.setattr(WorkerEnvs, unused, None)
    backend, why = backend_for("Sleeping", whole_episodes=whole_episodes)
    assert backend == "async"
    assert "times as fast as one after the other" in why


def test_workers_are_not_taken_where_they_would_change_bits() -> None:
    """A global stream that all environments of a process draw from."""
    assert backend_for("Drifting") == ("auto", "not async: its workers would differ")


def test_workers_that_fail_are_not_taken_and_it_is_said() -> None:
    backend, why = backend_for("Breaking")
    assert backend == "auto"
    assert "raised ValueError: only here" in why


@pytest.mark.parametrize(
    ("num_envs", "total_steps", "num_workers"),
    [(7, 10**6, None), (16, 10**6, 1), (16, 100, None)],
    ids=["few environments", "one worker", "short run"],
)
def test_no_worker_is_started_where_that_cannot_pay(
    num_envs: int,
    total_steps: int,
    num_workers: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "_compare", None)
    found = backend_for("Sleeping", num_envs, total_steps, num_workers=num_workers)
    assert found == ("auto", "")


@pytest.mark.parametrize("env", ["test/Here-v0", "CartPole-v1", Sleeping])
def test_nothing_is_tried_for_what_a_script_defines_nor_where_there_is_a_native_version(
    env: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_seconds_per_step", None)
    gymnasium.register("test/Here-v0", Sleeping)
    try:
        assert faster_backend(env, 16, 10**6, {}, policy_for) == ("auto", "")
    finally:
        del gymnasium.registry["test/Here-v0"]


def test_a_backend_that_is_asked_for_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "make_envs", None)
    assert backend_for("Sleeping", backend="sync") == ("sync", "")


def test_steps_that_take_no_time_start_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_seconds_per_step", lambda envs: 1e-6)
    monkeypatch.setattr(trial, "_compare", None)
    assert backend_for("Sleeping") == ("auto", "")


def test_a_training_tries_once_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The episodes are those of `sync`; evaluations do not try."""
    monkeypatch.setattr(trial, "_TRIAL_GAIN", 0.0)  # whatever else the machine does
    overrides = {"rollout.num_envs": 8, "total_steps": 10**6}
    recipe = find_recipe("test/Sleeping-v0", "ppo", "default", UserParts())
    recipe = override(recipe, overrides)
    with training_envs("test/Sleeping-v0", recipe) as (auto, words):
        assert ": 8 environments, async (in worker processes), " in words
        assert "times as fast" in words
        monkeypatch.setattr(trial, "_compare", None)
        options = environment_options("test/Sleeping-v0", recipe)
        seed = seed_sequence(recipe.seed, "environments")
        sync, words = make_envs("test/Sleeping-v0", 8, seed=seed, **options)
        assert "sync" in words
        try:
            np.testing.assert_array_equal(auto.reset()[0], sync.reset()[0])
            for _ in range(3):
                actions = np.zeros(8, np.int64)
                np.testing.assert_array_equal(auto.step(actions)[0], sync.step(actions)[0])
        finally:
            sync.close()


def test_num_workers_reaches_the_pool() -> None:
    envs, _ = make_envs("test/Sleeping-v0", 4, seed=0, backend="async", num_workers=3)
    try:
        pool: Any = envs.unwrapped
        assert len(pool.processes) == 3
        assert set(pool.call("pid")) == {process.pid for process in pool.processes}
    finally:
        envs.close()

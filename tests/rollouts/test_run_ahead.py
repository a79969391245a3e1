"""Workers that do not wait for each other: the bits of one process, whoever is ready first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import TransformReward

from rlpg.errors import EnvironmentFault, UsageError
from rlpg.policies import StandardPolicy
from rlpg.rollouts import Collector, Rollout, shared
from rlpg.rollouts.processes import Processes
from rlpg.rollouts.workers import WorkerEnvs

sys.path.append(str(Path(__file__).parent))
from misbehaving import children
from uneven import one

NUM_ENVS = 5


def makers(actions: str, trouble: dict[int, str]) -> list[Any]:
    return [partial(one, actions, trouble, n) for n in range(NUM_ENVS)]


def sync_envs(actions: str = "box", trouble: dict[int, str] | None = None) -> SyncVectorEnv:
    return SyncVectorEnv(makers(actions, trouble or {}), autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.fixture
def pools() -> Iterator[Any]:
    """Makes pools of two workers, with two and three environments."""
    made = []

    def pool(actions: str = "box", trouble: dict[int, str] | None = None) -> WorkerEnvs:
        made.append(WorkerEnvs(makers(actions, trouble or {}), num_workers=2, timeout=5))
        return made[-1]

    yield pool
    for envs in made:
        envs.close()
    assert children() == []


def collector(envs: Any, **options: Any) -> Collector:
    spaces = envs.single_observation_space, envs.single_action_space
    generator = torch.Generator().manual_seed(0)
    policy = StandardPolicy(*spaces, hidden=(16,), generator=generator)
    return Collector(envs, policy, **options)


def assert_same(one: Rollout, other: Rollout) -> None:
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(other, name)), name
    for name, value in vars(one.episodes).items():
        np.testing.assert_array_equal(value, getattr(other.episodes, name), err_msg=name)
    assert one.reward_parts == other.reward_parts


def nothing(found: shared.SharedArrays) -> None:
    pass


def put_off(monkeypatch: pytest.MonkeyPatch, worker: int) -> list[int]:
    """Hands out what this worker has answered only when no other is stepping; the list grows by
    the steps that the others have taken meanwhile."""
    wait_any, is_kept, lead, leads = Processes.wait_any, False, 0, list[int]()

    def later(self: Processes) -> list[int]:
        nonlocal is_kept, lead
        while True:
            if is_kept and not self.pending:
                leads.append(lead)
                is_kept, lead = False, 0
                return [worker]
            ready = wait_any(self)
            is_kept |= worker in ready
            if others := [n for n in ready if n != worker]:
                lead += 1
                return others

    monkeypatch.setattr(Processes, "wait_any", later)
    return leads


@pytest.mark.parametrize("actions", ["box", "discrete"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_rollouts_are_those_of_one_process(
    actions: str, deterministic: bool, pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also across the 128 steps for which the memory has room, and the 128 of noise."""
    monkeypatch.setattr(WorkerEnvs, "step", None)  # all together: not what is tested here
    sync, pool = (
        collector(envs, deterministic=deterministic)
        for envs in (sync_envs(actions), pools(actions))
    )
    for num_steps in (1, 7, 300):
        told = sync.steps(num_steps)
        assert_same(pool.steps(num_steps), told)
    parts = {"reward_push", "reward_end", "reward_start"} if actions == "box" else set()
    assert told.reward_parts.keys() == parts
    monkeypatch.undo()
    assert_same(pool.episodes(2), sync.episodes(2))
    assert_same(pool.steps(9), sync.steps(9))
    one, other = pool.state_dict(), sync.state_dict()
    assert one.keys() == other.keys()
    for name in ("env_steps", "vector_steps", "generator", "obs", "ended", "returns", "starts"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("late", [0, 1])
def test_no_worker_waits_for_another_and_that_changes_no_bit(
    late: int, pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads = put_off(monkeypatch, late)
    monkeypatch.setattr(shared, "_MOST_STEPS", 12)
    sync, pool = collector(sync_envs()), collector(pools())
    assert_same(pool.steps(29), sync.steps(29))
    assert max(leads) == 12, "as far as the memory has room"
    assert_same(pool.steps(5), sync.steps(5))


def test_the_memory_has_room_for_fewer_steps_of_large_observations(
    monkeypatch: pytest.MonkeyPatch, pools: Any
) -> None:
    monkeypatch.setattr(shared, "_MOST_BYTES", 5000)
    pool = pools()
    assert 1 < pool.steps_ahead < 20
    assert_same(collector(pool).steps(25), collector(sync_envs()).steps(25))


@pytest.mark.parametrize("trouble", ["raise", "nan", "1e39", "nan, then raise"])
@pytest.mark.parametrize(("bad", "late"), [(0, 0), (0, 1), (4, 0)])
def test_what_goes_wrong_is_told_as_in_one_process(
    trouble: str, bad: int, late: int, pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_off(monkeypatch, late)
    words = []
    for envs in (sync_envs("box", {bad: trouble}), pools("box", {bad: trouble})):
        collected = collector(envs)
        collected.steps(3)
        with pytest.raises(EnvironmentFault) as caught:
            collected.steps(30)
        words.append(str(caught.value))
    assert words[0] == words[1]
    step = 8 if "then" in trouble else 10
    assert words[0].startswith(f"step {step}")
    assert f" environment {bad}" in words[0]


def test_a_worker_that_dies_is_named_with_its_own_step(
    pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_off(monkeypatch, 0)
    collected = collector(pools("box", {1: "kill"}))
    words = r"^step 10: environment 1, episode \d+ \(seed \d+\): its worker died of SIGKILL$"
    with pytest.raises(EnvironmentFault, match=words):
        collected.steps(30)


def test_after_an_interruption_only_a_reset_goes_on(pools: Any) -> None:
    pool, calls = pools(), []

    def act(obs: np.ndarray, steps: Any) -> np.ndarray:
        calls.append(steps)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return np.zeros((NUM_ENVS, 2), np.float32)

    obs, _ = pool.reset()
    with pytest.raises(KeyboardInterrupt):
        pool.run_ahead(obs, 9, 0, act, nothing)
    for step in (
        partial(pool.run_ahead, obs, 9, 0, act, nothing),
        partial(pool.step, act(obs, ())),
    ):
        with pytest.raises(
            UsageError, match=r"expected reset\(\), or restart\(\) of the coll.* after an int"
        ):
            step()
    pool.reset()
    pool.run_ahead(obs, 9, 0, act, nothing)


def test_a_masked_reset_afterwards_shows_the_others_where_they_are(pools: Any) -> None:
    pool, sync = pools(), sync_envs()
    actions = np.zeros((NUM_ENVS, 2), np.float32)
    obs, _ = pool.reset()
    sync.reset()
    pool.run_ahead(obs, 9, 0, lambda obs, steps: actions, nothing)
    for _ in range(9):
        expected = sync.step(actions)[0]
    np.testing.assert_array_equal(obs, expected)
    mask = {"reset_mask": np.array([True, False, True, False, False])}
    np.testing.assert_array_equal(pool.reset(options=dict(mask))[0], sync.reset(options=mask)[0])


def test_a_wrapper_around_the_pool_is_not_left_out(pools: Any) -> None:
    plain, halved = (
        collector(pools()),
        collector(TransformReward(pools(), lambda reward: reward / 2)),
    )
    expected = plain.steps(20).reward
    assert expected.abs().sum() > 0
    assert torch.equal(halved.steps(20).reward, expected / 2)


def test_actions_of_another_type_are_not_cast(pools: Any) -> None:
    pool = pools()
    obs, _ = pool.reset()
    with pytest.raises(TypeError, match="float64"):
        pool.run_ahead(obs, 1, 0, lambda obs, steps: np.zeros((NUM_ENVS, 2)), nothing)

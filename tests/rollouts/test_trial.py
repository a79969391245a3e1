"""`auto` takes workers where they are faster, and never where anything would differ."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from rlpg.rollouts import make_envs, trial
from rlpg.rollouts.seeds import seeded_env
from rlpg.rollouts.trial import faster_backend

sys.path.append(str(Path(__file__).parent))
from misbehaving import children


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


def backend_for(name: str, num_envs: int = 16, **options: Any) -> tuple[str, str]:
    spec = gymnasium.spec(f"test/{name}-v0")
    return faster_backend(spec, partial(seeded_env, spec, {}, 20), num_envs, **options)


def test_workers_are_taken_where_they_are_faster() -> None:
    """Eight sleeps of 2 ms one after the other, or four at a time in each of two workers."""
    backend, why = backend_for("Sleeping")
    assert backend == "async"
    assert "times as fast as one after the other" in why


def test_workers_are_not_taken_where_they_would_change_bits() -> None:
    """A global stream that all environments of a process draw from."""
    assert backend_for("Drifting") == ("sync", "not async: its workers would differ")


def test_workers_that_fail_are_not_taken_and_it_is_said() -> None:
    backend, why = backend_for("Breaking")
    assert backend == "sync"
    assert "raised ValueError: only here" in why


@pytest.mark.parametrize(("num_envs", "num_workers"), [(7, None), (16, 1)])
def test_nothing_is_tried_for_a_few_environments_or_one_worker(
    num_envs: int, num_workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_compare", None)
    assert backend_for("Sleeping", num_envs, num_workers=num_workers) == ("sync", "")


def test_what_a_script_has_defined_stays_in_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_compare", None)

    class Here(gymnasium.Env[Any, Any]):
        pass

    gymnasium.register("test/Here-v0", Here)
    try:
        spec = gymnasium.spec("test/Here-v0")
        assert faster_backend(spec, partial(seeded_env, spec, {}, 20), 16) == ("sync", "")
    finally:
        del gymnasium.registry["test/Here-v0"]


def test_steps_that_take_no_time_start_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "WorkerEnvs", None)
    monkeypatch.setattr(trial, "_seconds_per_step", lambda envs: 1e-6)
    assert backend_for("Sleeping") == ("sync", "")


def test_the_trial_leaves_no_trace_in_the_run() -> None:
    """The episodes are those of `sync`, and the description says why there are workers."""
    auto, words = make_envs("test/Sleeping-v0", 8, seed=5)
    sync, _ = make_envs("test/Sleeping-v0", 8, seed=5, backend="sync")
    try:
        assert "8 environments, async (" in words
        assert "times as fast" in words
        np.testing.assert_array_equal(auto.reset()[0], sync.reset()[0])
        for _ in range(3):
            actions = np.zeros(8, np.int64)
            np.testing.assert_array_equal(auto.step(actions)[0], sync.step(actions)[0])
    finally:
        auto.close()
        sync.close()


def test_num_workers_reaches_the_pool() -> None:
    envs, words = make_envs("test/Sleeping-v0", 4, seed=0, backend="async", num_workers=3)
    try:
        pool: Any = envs.unwrapped
        assert len(pool.processes) == 3
        assert "async (3 worker processes)" in words
        pids = pool.call("pid")
        assert set(pids) == {process.pid for process in pool.processes}
    finally:
        envs.close()

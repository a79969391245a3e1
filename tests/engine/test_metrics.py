"""Metrics: when an entry is due, and what it says of the updates since the last one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlpg.engine.metrics import Every, MetricsAccumulator
from rlpg.rollouts import Episodes


def due_steps(every: Every, steps: range) -> list[int]:
    return [step for step in steps if every(step)]


def test_entries_are_due_at_multiples_however_long_an_update_is() -> None:
    # 30, 60, ...: 90 is late by 0, 120 by 20, and so on; lateness does not add up.
    assert due_steps(Every(100, last=1000, done=0), range(30, 721, 30)) == [
        120, 210, 300, 420, 510, 600, 720,
    ]  # fmt: skip


def test_a_resumed_run_is_due_when_it_would_have_been() -> None:
    assert due_steps(Every(100, last=1000, done=150), range(160, 340, 20)) == [200, 300]


def test_the_last_step_is_always_due() -> None:
    assert due_steps(Every(100, last=250, done=0), range(50, 251, 50)) == [100, 200, 250]


def episodes(*returns: float) -> Episodes:
    count = len(returns)
    zeros = np.zeros(count, dtype=np.int64)
    return Episodes(np.array(returns), zeros + 2, zeros, zeros)


def add(accumulator: MetricsAccumulator, metrics: dict[str, float], ended: Episodes) -> None:
    accumulator.add(metrics)
    accumulator.add_episodes(ended)


@pytest.fixture
def collector() -> Any:
    return SimpleNamespace(env_seconds=0.0, env_steps=0)


def test_an_entry_has_the_means_of_what_is_finite_and_begins_anew(collector: Any) -> None:
    accumulator = MetricsAccumulator(collector)
    add(accumulator, {"a": 1.0, "b": math.nan, "c": math.inf}, episodes(3.0))
    add(accumulator, {"a": 3.0, "b": 5.0, "c": math.nan}, episodes(5.0))
    entry = accumulator.take()
    assert (entry["a"], entry["b"]) == (2.0, 5.0)
    assert math.isnan(entry["c"])
    add(accumulator, {"a": 7.0}, episodes())
    assert accumulator.take()["a"] == 7.0


def test_recent_episodes_are_the_last_hundred_across_entries(collector: Any) -> None:
    accumulator = MetricsAccumulator(collector)
    add(accumulator, {}, episodes(0.0, *[2.0] * 60))
    assert accumulator.take()["rollout/ep_rew_mean"] == pytest.approx(120 / 61)
    add(accumulator, {}, episodes(*[4.0] * 40))
    entry = accumulator.take()
    assert entry["rollout/ep_rew_mean"] == pytest.approx((60 * 2 + 40 * 4) / 100)
    assert entry["rollout/ep_len_mean"] == 2.0


def test_speed_and_shares_are_those_since_the_last_entry(collector: Any) -> None:
    accumulator = MetricsAccumulator(collector)
    for steps, env_seconds, collect, learn in ((100, 1.0, 3.0, 1.0), (300, 1.5, 1.0, 1.0)):
        collector.env_steps, collector.env_seconds = steps, env_seconds
        accumulator._seconds = {"collect": collect, "learn": learn}
        entry = accumulator.take()
    # 200 steps in 2 seconds, of which environments took 0.5 and the policy 0.5.
    assert entry["time/fps"] == pytest.approx(100)
    assert entry["time/env_share"] == pytest.approx(0.25)
    assert entry["time/policy_share"] == pytest.approx(0.25)
    assert entry["time/learn_share"] == pytest.approx(0.5)


def test_a_saved_accumulator_goes_on(collector: Any) -> None:
    one, other = MetricsAccumulator(collector), MetricsAccumulator(collector)
    add(one, {"a": 1.0}, episodes(3.0))
    other.load_state_dict(one.state_dict())
    for accumulator in (one, other):
        add(accumulator, {"a": 2.0}, episodes(4.0))
    said, again = ({k: v for k, v in a.take().items() if "time/" not in k} for a in (one, other))
    assert said == again == {"a": 1.5, "rollout/ep_rew_mean": 3.5, "rollout/ep_len_mean": 2.0}

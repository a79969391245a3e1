"""Every fault, at every moment, in the first environment and the last, here and in workers.

Each ends within its time-out in one error that names environment, step and what was said, and
leaves no process, no shared memory and no file descriptor behind.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlpg.errors import EnvironmentFault
from rlpg.policies import StandardPolicy
from rlpg.rollouts import Collector, Rollout, derived_seed, make_envs
from rlpg.stopping import StopSignals

sys.path.append(str(Path(__file__).parent))
from misbehaving import misbehave

LENGTH = 5  # steps of an episode
NUM_ENVS = 2
HANG_TIMEOUT = 0.6
MOMENTS = {  # what the message calls them
    "reset": "reset before step 0",
    "first step": "step 0",
    "later": "step 7",  # in the middle of the second episode
    "next reset": "step 4",  # which ends the first episode
}


RAISING = {
    "raise": r"raised ValueError: the physics exploded",
    "unpicklable": r"raised Unpicklable: boom",
    "interrupt": r"raised KeyboardInterrupt: stop",
    "exit": r"raised SystemExit: 3",
}
DYING = {
    "kill": r"its worker died of SIGKILL",
    "os exit": r"its worker ended with exit code 7",
    "segfault": r"its worker died of SIGSEGV",
}
OBSERVATIONS: dict[str, tuple[Any, str]] = {
    "nan": (np.array([0, np.nan, 0], np.float32), r"expected finite float32 .*got nan at \[1\]"),
    "inf": (np.array([0, 0, -np.inf], np.float32), r"expected finite float32 .*got -inf at \[2\]"),
    "1e39": (np.array([0, 1e39, 0]), r"that float32 can hold, got 1e\+39 at \[1\]"),
    "shape (1,)": (np.zeros(1, np.float32), r"shape \(3,\), got float32 of shape \(1,\)"),
    "shape ()": (0.5, r"shape \(3,\), got float 0.5"),
    "objects": (np.array([0, None, 0]), r"float32 of shape \(3,\), got object of shape \(3,\)"),
    "complex": (np.zeros(3, complex), r"float32 of shape \(3,\), got complex128 of shape \(3,\)"),
    "numbers as strings": (np.array(["1", "2", "3"]), r"float32 of shape \(3,\), got <U1 of"),
    "string": ("abc", r"float32 of shape \(3,\), got str 'abc'"),
    "none": (None, r"float32 of shape \(3,\), got None"),
    "ragged": ([[1.0], [2.0, 3.0]], r"float32 of shape \(3,\), got list "),
}
OUTCOMES: dict[str, tuple[dict[int, Any], str]] = {
    "reward nan": ({1: np.nan}, r"reward: expected a finite float32, got nan"),
    "reward inf": ({1: np.inf}, r"reward: expected a finite float32, got inf"),
    "reward 1e39": ({1: 1e39}, r"reward: expected a finite float32, got 1e\+39"),
    "reward none": ({1: None}, r"reward: expected a number, got None"),
    "reward string": ({1: "1.5"}, r"reward: expected a number, got str '1.5'"),
    "reward array": ({1: np.ones(1)}, r"reward: expected a number, got float64 of shape \(1,\)"),
    "terminated none": ({2: None}, r"terminated: expected True or False, got None"),
    "truncated string": ({3: "no"}, r"truncated: expected True or False, got str 'no'"),
    "info none": ({4: None}, r"info: expected a dict, got None"),
}


class Faulty(gymnasium.Env[Any, Any]):
    """Episodes of five steps; the copy whose first seed is `bad` does `fault` at `moment`."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fault: str = "", moment: str = "", bad: int = -1) -> None:
        self.fault, self.moment, self.bad = fault, moment, bad
        self.is_bad = False
        self.episodes = self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.is_bad |= self.episodes == 0 and seed == self.bad
        self.episodes += 1
        self.left = LENGTH
        due = {1: "reset", 2: "next reset"}.get(self.episodes)
        return self.answer(due, [np.zeros(3, np.float32), {}], outcome=False)

    def step(self, action: Any) -> Any:
        due = {0: "first step", 7: "later"}.get(self.steps)
        self.steps += 1
        self.left -= 1
        obs = np.full(3, 0.5, np.float32)
        return self.answer(due, [obs, 1.0, self.left == 0, False, {}], outcome=True)

    def answer(self, due: str | None, right: list[Any], *, outcome: bool) -> tuple[Any, ...]:
        if not self.is_bad or due != self.moment:
            return tuple(right)
        if self.fault in OBSERVATIONS:
            return (OBSERVATIONS[self.fault][0], *right[1:])
        if outcome and self.fault in OUTCOMES:
            for place, value in OUTCOMES[self.fault][0].items():
                right[place] = value
        misbehave(self.fault)
        return tuple(right)


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    """Faulty-v0; and what a process keeps from its first workers on is there before it counts."""
    gymnasium.register("test/Faulty-v0", Faulty)
    gymnasium.register("test/Odd-v0", Odd)
    first, _ = make_envs("test/Faulty-v0", NUM_ENVS, seed=0, backend="async")
    first.reset()
    first.close()
    yield
    del gymnasium.registry["test/Faulty-v0"], gymnasium.registry["test/Odd-v0"]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = held()
    yield
    assert held() == before
    assert multiprocessing.active_children() == []


def held() -> tuple[int, list[str]]:
    """Open file descriptors and shared memory."""
    return len(os.listdir("/proc/self/fd")), sorted(os.listdir("/dev/shm"))


def fault_of(
    fault: str, moment: str, bad: int, backend: str, timeout: float = 30.0, steps: int = 9
) -> str:
    """What collecting says, on one line, before `limit` seconds; the environments are closed."""
    envs, _ = make_envs(
        "test/Faulty-v0",
        NUM_ENVS,
        seed=0,
        backend=backend,
        kwargs={
            "fault": fault,
            "moment": moment,
            "bad": derived_seed(np.random.SeedSequence(0), bad, 0),
        },
        timeout=timeout,
    )
    try:
        generator = torch.Generator().manual_seed(0)
        spaces_of = envs.single_observation_space, envs.single_action_space
        collector = Collector(envs, StandardPolicy(*spaces_of, hidden=(4,), generator=generator))
        began = time.monotonic()
        with StopSignals(), pytest.raises(EnvironmentFault) as caught:  # as a training does
            collector.steps(steps)
        assert time.monotonic() - began < 100
        message = str(caught.value)
        assert "\n" not in message
        return message
    finally:
        began = time.monotonic()
        envs.close()
        assert time.monotonic() - began < 100


def check(message: str, moment: str, bad: int, said: str) -> None:
    assert re.match(rf"{MOMENTS[moment]}\b", message), message
    assert re.search(rf"environment {bad}\b", message), message
    assert re.search(said, message), message


everywhere = pytest.mark.parametrize(
    ("backend", "bad"), [(backend, bad) for backend in ("sync", "async") for bad in (0, 1)]
)
at_any_moment = pytest.mark.parametrize("moment", MOMENTS)


@everywhere
@at_any_moment
@pytest.mark.parametrize("fault", RAISING)
def test_raising(fault: str, moment: str, backend: str, bad: int) -> None:
    check(fault_of(fault, moment, bad, backend), moment, bad, RAISING[fault])


@at_any_moment
@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("fault", DYING)
def test_a_worker_that_dies(fault: str, moment: str, bad: int) -> None:
    check(fault_of(fault, moment, bad, "async"), moment, bad, DYING[fault])


@everywhere
@at_any_moment
@pytest.mark.parametrize("fault", OBSERVATIONS)
def test_observations(fault: str, moment: str, backend: str, bad: int) -> None:
    check(fault_of(fault, moment, bad, backend), moment, bad, OBSERVATIONS[fault][1])


@everywhere
@pytest.mark.parametrize("moment", ["first step", "later"])
@pytest.mark.parametrize("fault", OUTCOMES)
def test_outcomes(fault: str, moment: str, backend: str, bad: int) -> None:
    check(fault_of(fault, moment, bad, backend), moment, bad, OUTCOMES[fault][1])


@everywhere
@pytest.mark.parametrize(
    ("fault", "moment"), [*(("hang", moment) for moment in MOMENTS), ("hang busily", "later")]
)
def test_hanging(fault: str, moment: str, backend: str, bad: int) -> None:
    message = fault_of(fault, moment, bad, backend, timeout=HANG_TIMEOUT)
    check(message, moment, bad, r"no answer within 0\.6 s; it hangs")


# ------------------------------------------------------------------------------ what is no fault


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_slow_is_not_hanging(backend: str) -> None:
    """Half a second in a step of each environment; together they take longer than the time-out."""
    timeout = 0.8 if backend == "sync" else 1.5
    envs, _ = make_envs(
        "test/Odd-v0", NUM_ENVS, seed=0, backend=backend, kwargs={"odd": "slow"}, timeout=timeout
    )
    assert collected(envs, 9).num_steps == 18


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_replaying_a_long_episode_was_taken_for_hanging(backend: str) -> None:
    """Eight steps of 0.1 s with a time-out of 0.5 s: each step has its time, not all together."""
    kwargs = {"odd": "each step slow", "length": 20}
    made = [
        make_envs("test/Odd-v0", NUM_ENVS, seed=0, backend=backend, kwargs=kwargs, timeout=0.5).envs
        for _ in range(2)
    ]
    try:
        generator = torch.Generator().manual_seed(0)
        spaces_of = made[0].single_observation_space, made[0].single_action_space
        policy = StandardPolicy(*spaces_of, hidden=(4,), generator=generator)
        first, second = (Collector(envs, policy) for envs in made)
        first.steps(8)
        assert second.load_state_dict(first.state_dict()) == ""
        assert torch.equal(second.steps(1).obs, first.steps(1).obs)
    finally:
        for envs in made:
            envs.close()


def collected(envs: Any, steps: int) -> Rollout:
    try:
        generator = torch.Generator().manual_seed(0)
        spaces_of = envs.single_observation_space, envs.single_action_space
        policy = StandardPolicy(*spaces_of, hidden=(4,), generator=generator)
        return Collector(envs, policy).steps(steps)
    finally:
        envs.close()


class Odd(gymnasium.Env[Any, Any]):
    """Counts its steps, in a way that is unusual but allowed."""

    observation_space = spaces.Box(0, 1000, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, odd: str = "", length: int = 5) -> None:
        self.odd, self.length = odd, length
        self.total = 0
        self.buffer = np.zeros(3, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.left = self.length
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        if self.left == 0:
            raise RuntimeError("stepped after the end")
        self.total += 1
        self.left -= 1
        if self.odd == "slow" and self.total == 3:
            time.sleep(0.5)
        if self.odd == "each step slow":
            time.sleep(0.1)
        over = self.left == 0
        return self.seen(), float(self.total), over, over and self.odd == "both", {}

    def seen(self) -> Any:
        self.buffer[:] = self.total, self.left, 0
        if self.odd == "buffer":
            return self.buffer
        return {"float64": self.buffer.astype(float), "list": self.buffer.tolist()}.get(
            self.odd, self.buffer.astype(np.int64) if self.odd == "integers" else self.buffer.copy()
        )


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("odd", ["buffer", "float64", "integers", "list", "both"])
def test_the_unusual_collects_what_the_usual_does(odd: str, backend: str) -> None:
    """One buffer for all observations; finite numbers of another type; both flags at once."""
    usual, unusual = (
        collected(
            make_envs("test/Odd-v0", NUM_ENVS, seed=0, backend=backend, kwargs={"odd": it}).envs, 17
        )
        for it in ("", odd)
    )
    for name in ("obs", "final_obs", "reward", "terminated", "truncated", "valid", "time"):
        assert torch.equal(getattr(unusual, name), getattr(usual, name)), name
    assert usual.obs[:6, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert usual.final_obs[0].tolist() == [5, 0, 0]
    assert usual.terminated[4].all()
    assert not usual.truncated.any()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_episodes_of_length_one_for_ever(backend: str) -> None:
    envs, _ = make_envs("test/Odd-v0", NUM_ENVS, seed=0, backend=backend, kwargs={"length": 1})
    rollout = collected(envs, 100)
    assert rollout.terminated.all()
    assert rollout.episodes.lengths.tolist() == [1] * 200
    assert rollout.episodes.returns[::2].tolist() == list(range(1, 101))

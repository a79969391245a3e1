"""Every fault, at every moment, in the first environment and the last, here and in workers.

Each ends within its time-out in one error that names environment, step and what was said, and
leaves no process, no shared memory and no file descriptor behind.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rlpg.engine.stopping import StopSignals
from rlpg.errors import EnvironmentFault
from rlpg.policies import StandardPolicy
from rlpg.rollouts import Collector, Rollout, derived_seed, make_envs

sys.path.append(str(Path(__file__).parent))
from faulty_envs import OBSERVATIONS, OUTCOMES, Faulty, Odd
from misbehaving import children

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
    assert children() == []


def held() -> tuple[int, int]:
    """Open file descriptors, and mappings of memory that is shared with workers."""
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")), maps.count("/memfd:rlpg")


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


def everywhere(
    faults: Iterable[str], moments: Iterable[str], *, each_in_workers: bool = True
) -> pytest.MarkDecorator:
    """In one process, in both environments; in workers, which cost more, in one of the two.

    Where a value is looked at is the same in workers: unless `each_in_workers`, each fault is there
    at one moment, and at the others when there is time.
    """
    cases, moments = [], list(moments)
    for number, (fault, moment) in enumerate(itertools.product(faults, moments)):
        row, column = divmod(number, len(moments))
        is_covered = each_in_workers or column == row % len(moments)
        cases += [(fault, moment, "sync", 0), (fault, moment, "sync", 1)]
        elsewhere = (fault, moment, "async", (number + number // 4 + row // len(moments)) % 2)
        cases.append(pytest.param(*elsewhere, marks=() if is_covered else pytest.mark.slow))
    return pytest.mark.parametrize(("fault", "moment", "backend", "bad"), cases)


@everywhere(RAISING, MOMENTS)
def test_raising(fault: str, moment: str, backend: str, bad: int) -> None:
    check(fault_of(fault, moment, bad, backend), moment, bad, RAISING[fault])


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("fault", "bad"), [("kill", 0), ("os exit", 1), ("segfault", 0)])
def test_a_worker_that_dies(fault: str, moment: str, bad: int) -> None:
    check(fault_of(fault, moment, bad, "async"), moment, bad, DYING[fault])


@everywhere(OBSERVATIONS, MOMENTS, each_in_workers=False)
def test_observations(fault: str, moment: str, backend: str, bad: int) -> None:
    check(fault_of(fault, moment, bad, backend), moment, bad, OBSERVATIONS[fault][1])


@everywhere(OUTCOMES, ["first step", "later"], each_in_workers=False)
def test_outcomes(fault: str, moment: str, backend: str, bad: int) -> None:
    check(fault_of(fault, moment, bad, backend), moment, bad, OUTCOMES[fault][1])


@everywhere(["hang", "hang busily"], ["reset", "later"])
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

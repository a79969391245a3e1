"""A worker that dies, hangs or raises ends in one error that names its environment."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rlpg.errors import EnvironmentFault
from rlpg.rollouts.seeds import EpisodeSeeds
from rlpg.rollouts.workers import WorkerEnvs

sys.path.append(str(Path(__file__).parent))
from misbehaving import misbehave


class Faulty(gymnasium.Env[Any, Any]):
    """Does `fault` in its step number `at`; at 0 in reset."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fault: str = "", at: int = 3) -> None:
        self.fault, self.at, self.steps = fault, at, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.at == 0:
            misbehave(self.fault)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == self.at:
            misbehave(self.fault)
        return np.zeros(2, dtype=np.float32), 1.0, False, False, {}


def make(fault: str, at: int, index: int) -> gymnasium.Env[Any, Any]:
    return EpisodeSeeds(Faulty(fault, at), np.random.SeedSequence(0), index)


def envs(fault: str, bad: int, at: int, timeout: float = 1.5) -> WorkerEnvs:
    makers = [partial(make, fault if n == bad else "", at, n) for n in range(3)]
    return WorkerEnvs(makers, timeout=timeout)


def play(vector: WorkerEnvs) -> None:
    vector.reset(seed=[1, 2, 3])
    for _ in range(5):
        vector.step(np.zeros(3, dtype=np.int64))


def assert_nothing_is_left(vector: WorkerEnvs) -> None:
    began = time.monotonic()
    vector.close()
    assert time.monotonic() - began < 100
    assert multiprocessing.active_children() == []


FAULTS = [
    ("raise", "the physics exploded"),
    ("unpicklable", "boom"),
    ("interrupt", "KeyboardInterrupt"),
    ("exit", "SystemExit: 3"),
    ("os exit", "ended with exit code 7"),
    ("kill", "died of SIGKILL"),
    ("segfault", "died of SIGSEGV"),
    ("hang", "no answer within 1.5 s"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[fault for fault, _ in FAULTS])
@pytest.mark.parametrize(("bad", "at"), [(0, 3), (2, 0)], ids=["first-midway", "last-reset"])
def test_a_fault_is_one_error_with_the_index(fault: str, message: str, bad: int, at: int) -> None:
    vector = envs(fault, bad, at)
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match=rf"(?s)environment {bad}\b.*{message}"):
        play(vector)
    assert time.monotonic() - began < 100
    assert_nothing_is_left(vector)


class Unmade(Faulty):
    """Fails in the constructor, but not where its spaces are looked up."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        if multiprocessing.parent_process() is not None:
            misbehave(self.fault)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", r"environment 1: making it raised ValueError: the physics exploded"),
        ("exit", r"environment 1: making it raised SystemExit: 3"),
        ("os exit", r"environment 1: its worker ended with exit code 7"),
        ("kill", r"environment 1: its worker died of SIGKILL"),
    ],
)
def test_a_worker_that_cannot_make_its_environment_had_no_name(fault: str, message: str) -> None:
    """It was a BrokenPipeError, or nothing at all."""
    with pytest.raises(EnvironmentFault, match=message):
        WorkerEnvs([partial(Unmade, ""), partial(Unmade, fault)], timeout=0.5)
    assert multiprocessing.active_children() == []


def test_making_an_environment_may_take_longer_than_a_step() -> None:
    assert_nothing_is_left(WorkerEnvs([partial(Unmade, "slow")], timeout=0.3))


def test_slow_is_not_hanging() -> None:
    vector = envs("slow", 1, 2)
    play(vector)
    assert_nothing_is_left(vector)


def test_closing_twice_and_while_a_worker_is_gone_returns() -> None:
    vector = envs("", 0, 1)
    vector.reset(seed=[1, 2, 3])
    vector.processes[1].kill()
    vector.processes[1].join()
    assert_nothing_is_left(vector)
    vector.close()


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import numpy as np, os, signal, sys; from rlpg.rollouts import make_envs\n"
        "envs, _ = make_envs('CartPole-v1', 2, seed=0, backend='async')\n"
        "envs.reset(); print(*[p.pid for p in envs.unwrapped.processes], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 150
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

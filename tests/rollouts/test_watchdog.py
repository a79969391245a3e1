"""A call that hangs in this process ends; nothing else does."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from rlpg.errors import EnvironmentFault
from rlpg.policies import StandardPolicy
from rlpg.rollouts import Collector, make_envs
from rlpg.rollouts.watchdog import SIGNAL, Watchdog, WatchedEnvs

sys.path.append(str(Path(__file__).parent))
from faulty_envs import Acting
from misbehaving import fail, fail_otherwise, loop, sleep_for_ever

STUCK_IN_C = """
import ctypes, sys
import numpy as np
import gymnasium
import rlpg
from rlpg.cli import main

class Stuck(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0
    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.steps += 1
        if self.steps == 70:
            mutex = ctypes.create_string_buffer(64)
            lock = ctypes.CDLL(None).pthread_mutex_lock  # lets the interpreter go on
            lock(mutex), lock(mutex)
        return np.zeros(2, np.float32), 1.0, self.steps % 10 == 0, False, {}

gymnasium.register("Stuck-v0", Stuck)
words = (
    "train Stuck-v0 --recipe default --total-steps 1000 --rollout.num-envs 2 --rollout.num-steps 16"
)
words += " --checkpoint.every 32 --evaluation.every 1000 --environment.timeout 1 --run-dir run"
sys.exit(main(words.split()))
"""


def collecting(envs: Any) -> Collector:
    generator = torch.Generator().manual_seed(0)
    spaces_of = envs.single_observation_space, envs.single_action_space
    return Collector(envs, StandardPolicy(*spaces_of, hidden=(4,), generator=generator))


def collect(what: Callable[[], None], timeout: float = 0.4) -> None:
    envs, _ = make_envs(Acting(what), seed=0, timeout=timeout)
    try:
        collecting(envs).steps(5)
    finally:
        envs.close()


def wait_for_a_lock() -> None:
    threading.Event().wait(280)


def wait_for_a_child() -> None:
    with subprocess.Popen(["sleep", "280"]) as child:
        try:
            child.wait()
        finally:
            child.kill()


@pytest.mark.parametrize(
    "what", [sleep_for_ever, wait_for_a_lock, wait_for_a_child, loop], ids=lambda f: f.__name__
)
def test_what_hangs_is_interrupted_where_it_hangs(what: Callable[[], None]) -> None:
    began = time.monotonic()
    with pytest.raises(
        EnvironmentFault, match=r"step 2: environment 0, .*: no answer within 0\.4 s; it hangs"
    ) as caught:
        collect(what)
    assert time.monotonic() - began < 100
    names = []
    cause: BaseException | None = caught.value
    while cause is not None:
        trace = cause.__traceback__
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        cause = cause.__cause__
    assert what.__name__ in names, "the traceback shows the place"


def test_a_call_that_goes_on_after_the_interrupt_is_told_about(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Outside a run the process is not ours to end."""
    ended = time.monotonic() + 4

    def stubborn() -> None:
        while time.monotonic() < ended:
            try:
                time.sleep(0.05)
            except EnvironmentFault:
                continue

    collect(stubborn)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "rlpg: environment 0, episode 0 (seed " in err
    assert "no answer within 0.4 s; it hangs and cannot be interrupted" in err


def test_a_training_that_hangs_in_c_ends_with_its_last_checkpoint(tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STUCK_IN_C],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - began < 100
    last = done.stderr.splitlines()[-1]
    assert "rlpg: environment 0, episode 7 (seed " in last
    assert "no answer within 1 s; it hangs and cannot be interrupted, so this process" in last
    assert last.endswith("what was saved until then is in run, see error.log there")
    log = (tmp_path / "run/error.log").read_text()
    assert log.startswith("Traceback (most recent call")
    assert "in step" in log, "where it is stuck"
    assert "environment 0, episode 7 (seed " in log.splitlines()[-1]
    program = "import rlpg; print(rlpg.load('run')); import rlpg.runs.store as s, pathlib;"
    program += "print(s.newest_checkpoint(pathlib.Path('run/checkpoints'))[0].step)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert loaded.stdout.splitlines()[-1] == "128", loaded.stderr


def test_in_another_thread_it_is_said_and_nothing_is_interrupted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    thread = threading.Thread(target=collect, args=(lambda: time.sleep(1.0),))
    thread.start()
    thread.join()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "rlpg: environment 0, episode 0 (seed " in err
    assert "it hangs and only the main thread can be interrupted" in err


def test_a_debugger_is_not_hanging() -> None:
    def traced() -> None:
        def tracer(*_: Any) -> Any:
            return tracer

        frame = sys._getframe()
        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            frame.f_trace = tracer  # as `breakpoint()` does it
            time.sleep(1.0)
        finally:
            sys.settrace(before)
            frame.f_trace = None

    collect(traced)


STOPPED = """
import time
import numpy as np
from faulty_envs import Acting
from test_watchdog import collecting
from rlpg.rollouts import make_envs

def work():
    print("working", flush=True)
    time.sleep(0.5)  # of a second that the time-out allows; stopped in the middle of it

envs, _ = make_envs(Acting(work), seed=0, timeout=1.0)
collecting(envs).steps(5)
print("done")
"""


def test_a_stopped_process_is_not_hanging() -> None:
    """As after Ctrl-Z, or on a suspended computer."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=250)
    finally:
        process.kill()
    assert (out, err) == ("done\n", "")


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    "closing", [fail, fail_otherwise, sleep_for_ever, loop, sys.exit], ids=lambda f: f.__name__
)
def test_close_that_raises_exits_or_sleeps_ended_or_blocked_the_run(
    closing: Callable[[], None], backend: str, tmp_path: Path
) -> None:
    """The environments after it are closed too."""
    closed = tmp_path / "closed"

    def close() -> None:
        with closed.open("a") as file:
            file.write("x")
        closing()

    envs, _ = make_envs(lambda: Acting(closing=close), 2, seed=0, timeout=0.4, backend=backend)
    envs.reset()
    closed.unlink(missing_ok=True)  # `async` looks at one and closes it before it makes others
    began = time.monotonic()
    envs.close()
    assert time.monotonic() - began < 100
    assert closed.read_text() == "xx"


def test_close_of_a_vector_environment_is_no_danger_either() -> None:
    given = SyncVectorEnv([partial(Acting, closing=sleep_for_ever)])
    envs, _ = make_envs(given, seed=0, timeout=0.4)
    began = time.monotonic()
    envs.close()
    assert time.monotonic() - began < 100


def test_a_given_vector_environment_is_watched_too() -> None:
    given = SyncVectorEnv([Acting, partial(Acting, sleep_for_ever)])
    envs, _ = make_envs(given, seed=0, timeout=0.4)
    with pytest.raises(EnvironmentFault, match=r"^step 2: no answer within 0\.4 s; it hangs$"):
        collecting(envs).steps(5)
    given.close()


def test_gymnasium_s_own_workers_are_watched_too() -> None:
    """It waits for ever for a worker that does not answer."""
    given = AsyncVectorEnv([Acting, Acting])
    envs, _ = make_envs(given, seed=0, timeout=0.4)
    collector = collecting(envs)
    collector.steps(2)
    os.kill(given.processes[1].pid, signal.SIGSTOP)
    try:
        with pytest.raises(EnvironmentFault, match=r"^step 2: no answer within 0\.4 s; it hangs$"):
            collector.steps(5)
    finally:
        for process in given.processes:
            process.kill()
        given._state = type(given._state).DEFAULT
        given.close(terminate=True)


def test_an_alarm_that_comes_after_the_call_raises_nothing() -> None:
    envs, _ = make_envs(Acting(), seed=0, timeout=60.0)
    assert isinstance(envs, WatchedEnvs)
    envs.reset()
    envs.step(np.zeros(1, int))
    envs.calls.interrupted = envs.calls.number  # of the call that has returned
    os.kill(os.getpid(), SIGNAL)
    time.sleep(0.01)
    envs.step(np.zeros(1, int))
    os.kill(os.getpid(), SIGNAL)  # and of one before this
    time.sleep(0.01)
    envs.close()


def dogs() -> list[Watchdog]:
    return [thread for thread in threading.enumerate() if isinstance(thread, Watchdog)]


def test_the_thread_ends_with_its_environments() -> None:
    closed, _ = make_envs("CartPole-v1", 2, seed=0, timeout=1.0)
    forgotten, _ = make_envs("CartPole-v1", 2, seed=0, timeout=1.0, backend="sync")
    assert isinstance(closed, WatchedEnvs)
    assert isinstance(forgotten, WatchedEnvs)
    threads = [closed.watchdog, forgotten.watchdog]
    assert all(dog.is_alive() for dog in threads)
    closed.close()
    collecting(forgotten).steps(3)
    del forgotten
    gc.collect()
    for dog in threads:
        dog.join(5)
        assert not dog.is_alive()


def test_given_environments_stay_open_when_the_watched_ones_are_forgotten() -> None:
    given = SyncVectorEnv([Acting])
    envs, _ = make_envs(given, seed=0)
    del envs
    gc.collect()
    assert not given.closed
    given.step(np.zeros(1, int))
    given.close()


def test_no_environment_is_watched_twice() -> None:
    before = dogs()
    watched, _ = make_envs(SyncVectorEnv([Acting]), seed=0, timeout=5.0)
    again, _ = make_envs(watched, seed=0, timeout=7.0)
    assert again is watched
    assert [dog.timeout for dog in dogs() if dog not in before] == [7.0]
    watched.close()


def test_a_handler_that_somebody_else_installed_is_left_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def theirs(*_: object) -> None:
        pass

    before = signal.signal(SIGNAL, theirs)
    try:
        collect(lambda: time.sleep(1.0))
        assert signal.getsignal(SIGNAL) is theirs
    finally:
        signal.signal(SIGNAL, before)
    assert "it hangs and cannot be interrupted" in capsys.readouterr().err


def test_c_code_that_returns_now_and_then_is_interrupted() -> None:
    """`pause` of the C library ends at any signal."""
    with pytest.raises(EnvironmentFault, match="no answer"):
        collect(lambda: ctypes.CDLL(None).pause())


def test_a_process_that_used_mujoco_ends_well(tmp_path: Path) -> None:
    """The thread woke up in a process that was ending, with a frame of MuJoCo's in its hands."""
    program = """
import sys
from rlpg.cli import main
sys.exit(main(["evaluate", "InvertedPendulum-v5-reinforce", "--episodes", "8"]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr

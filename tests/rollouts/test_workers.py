"""A worker that dies, hangs or raises ends in one error that names its environment."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlpg.errors import EnvironmentFault, EnvironmentSetupError, UsageError
from rlpg.rollouts.seeds import EpisodeSeeds
from rlpg.rollouts.workers import WorkerEnvs

sys.path.append(str(Path(__file__).parent))
from faulty_envs import SPACES, Sampling, described
from misbehaving import children, misbehave


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
    assert children() == []


@pytest.mark.parametrize(
    ("fault", "message", "bad", "at"),
    [("unpicklable", "boom", 0, 3), ("segfault", "died of SIGSEGV", 2, 0)],
)
def test_a_fault_is_one_error_with_the_index(fault: str, message: str, bad: int, at: int) -> None:
    """All of them are in test_environment_faults.py."""
    vector = envs(fault, bad, at)
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match=rf"(?s)environment {bad}\b.*{message}"):
        play(vector)
    assert time.monotonic() - began < 100
    assert_nothing_is_left(vector)


class Unmade(Faulty):
    """Fails in the constructor, but not where its spaces are looked up."""

    def __init__(self, fault: str, parent: int) -> None:
        super().__init__(fault)
        if os.getpid() != parent:
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
        WorkerEnvs([partial(Unmade, name, os.getpid()) for name in ("", fault)], timeout=0.5)
    assert children() == []


def test_making_an_environment_may_take_longer_than_a_step() -> None:
    assert_nothing_is_left(WorkerEnvs([partial(Unmade, "slow", os.getpid())], timeout=0.3))


def test_slow_is_not_hanging() -> None:
    vector = envs("slow", 1, 2)
    play(vector)
    assert_nothing_is_left(vector)


def test_closing_twice_and_while_a_worker_is_gone_returns() -> None:
    vector = envs("", 0, 1)
    vector.reset(seed=[1, 2, 3])
    vector.processes[1].kill()
    vector.processes[1].wait()
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


# ------------------------------------------------------------------------------- the same bits


def sampling(space: str, infos: bool, index: int) -> gymnasium.Env[Any, Any]:
    return EpisodeSeeds(Sampling(space, infos), np.random.SeedSequence(3), index)


def sampling_envs(space: str, infos: bool = True, num_envs: int = 5, **options: Any) -> WorkerEnvs:
    return WorkerEnvs([partial(sampling, space, infos, n) for n in range(num_envs)], **options)


def sync_envs(space: str, infos: bool = True, num_envs: int = 5) -> SyncVectorEnv:
    makers = [partial(sampling, space, infos, n) for n in range(num_envs)]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, np.ndarray) and one.dtype == object:
        assert_same(tuple(one), tuple(other))
    else:
        assert described(one) == described(other)


@pytest.mark.parametrize("space", SPACES)
def test_all_spaces_are_stepped_as_in_one_process(space: str) -> None:
    """Observations, rewards (made of the actions), flags, infos with masks, and their types."""
    pool, sync = sampling_envs(space, num_workers=2), sync_envs(space)
    try:
        assert pool.single_action_space == sync.single_action_space
        assert_same(pool.reset(), sync.reset())
        sync.action_space.seed(0)
        for _ in range(12):
            actions = sync.action_space.sample()
            assert_same(pool.step(actions), sync.step(actions))
        assert_same(pool.reset(seed=[5, None, 6, None, 7]), sync.reset(seed=[5, None, 6, None, 7]))
    finally:
        assert_nothing_is_left(pool)
        sync.close()


class Converted(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Gives each array of its observations as something else."""

    def __init__(self, kind: str) -> None:
        super().__init__(Sampling("box", True))
        self._kind = kind

    def observation(self, observation: Any) -> Any:
        if self._kind == "tensor":
            import torch  # here, because other workers are to have none

            return torch.as_tensor(observation)
        return observation.tolist() if self._kind == "list" else list(observation)


def converted(kind: str, index: int) -> gymnasium.Env[Any, Any]:
    return EpisodeSeeds(Converted(kind), np.random.SeedSequence(3), index)


@pytest.mark.parametrize("kind", ["tensor", "list", "list of arrays"])
def test_the_last_observation_of_an_episode_was_a_tensor_that_no_process_passes_on(
    kind: str,
) -> None:
    makers = [partial(converted, kind, n) for n in range(3)]
    sync = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    pool = WorkerEnvs(makers, num_workers=1)  # which imports torch
    try:
        assert_same(pool.reset(), sync.reset())
        sync.action_space.seed(0)
        for _ in range(12):
            actions = sync.action_space.sample()
            assert_same(pool.step(actions), sync.step(actions))
    finally:
        assert_nothing_is_left(pool)


def test_actions_of_another_type_reach_the_environment_as_they_are() -> None:
    pool, sync = sampling_envs("box", num_workers=2), sync_envs("box")
    try:
        assert_same(pool.reset(), sync.reset())
        for actions in (np.full((5, 2, 3), 0.1), np.zeros((5, 2, 3), np.int64)):
            assert_same(pool.step(actions), sync.step(actions))
    finally:
        assert_nothing_is_left(pool)


def test_some_environments_are_reset_by_a_mask() -> None:
    pool, sync = sampling_envs("box", num_workers=2), sync_envs("box")
    try:
        assert_same(pool.reset(), sync.reset())
        mask = np.array([False, True, True, False, False])
        options = {"reset_mask": mask}
        assert_same(pool.reset(options=options), sync.reset(options=dict(options)))
        assert list(options) == ["reset_mask"]
    finally:
        assert_nothing_is_left(pool)


def test_attributes_are_read_and_set_in_the_workers() -> None:
    pool = sampling_envs("box", num_envs=4, num_workers=3)
    try:
        pool.set_attr("left", [4, 3, 2, 1])
        assert pool.get_attr("left") == (4, 3, 2, 1)
        assert pool.get_attr("episode") == (-1,) * 4
        with pytest.raises(UsageError, match="expected 4 values, got 3"):
            pool.set_attr("left", [1, 2, 3])
    finally:
        assert_nothing_is_left(pool)


# ------------------------------------------------------------------------------------ the workers


def test_a_worker_is_small_and_does_not_import_torch() -> None:
    pool = sampling_envs("box", num_workers=2)
    try:
        assert len(pool.processes) == 2
        for process in pool.processes:
            assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = int(status.partition("VmRSS:")[2].split()[0])  # kB
            assert resident < 60_000
    finally:
        assert_nothing_is_left(pool)


@pytest.mark.parametrize("at", [0, 2])
def test_a_hanging_environment_is_named_with_episode_and_seed(at: int) -> None:
    """Environment 2 of three in one worker."""
    vector = WorkerEnvs(
        [partial(make, "hang" if n == 2 else "", at, n) for n in range(3)],
        timeout=0.5,
        num_workers=1,
    )
    words = r"^environment 2, episode 0 \(seed 3\): no answer within 0\.5 s; it hangs$"
    with pytest.raises(EnvironmentFault, match=words):
        play(vector)
    assert_nothing_is_left(vector)


def test_the_time_of_several_environments_in_one_worker_is_not_added_up() -> None:
    """Three of 0.6 s with a time-out of 1.2 s."""
    vector = WorkerEnvs([partial(make, "slow", 2, n) for n in range(3)], timeout=1.2, num_workers=1)
    play(vector)
    assert_nothing_is_left(vector)


def test_an_exception_that_is_no_exception_is_one_error() -> None:
    vector = envs("base exception", 1, 3)
    with pytest.raises(EnvironmentFault) as caught:
        play(vector)
    assert str(caught.value) == "environment 1, episode 0 (seed 2): step() raised Stop: now"
    assert "In its worker:" in "".join(caught.value.__notes__)
    assert_nothing_is_left(vector)


def test_the_error_of_the_lowest_environment_is_told() -> None:
    vector = WorkerEnvs([partial(make, "raise", 3, n) for n in range(3)], num_workers=3)
    with pytest.raises(EnvironmentFault, match=r"^environment 0,"):
        play(vector)
    assert_nothing_is_left(vector)


def test_a_worker_that_dies_between_two_steps_is_told_at_the_next() -> None:
    vector = envs("", 0, 1)
    vector.reset(seed=[1, 2, 3])
    vector.processes[0].kill()
    with pytest.raises(EnvironmentFault, match=r"^environment 0\b.* its worker died of SIGKILL$"):
        vector.step(np.zeros(3, dtype=np.int64))
    assert_nothing_is_left(vector)
    with pytest.raises(ClosedEnvironmentError):
        vector.step(np.zeros(3, dtype=np.int64))


def test_a_forgotten_pool_ends_its_workers() -> None:
    pool = envs("", 0, 1)
    assert len(children()) == len(pool.processes)
    del pool
    gc.collect()
    assert children() == []


def test_an_environment_that_a_worker_cannot_import_is_one_sentence() -> None:
    module = types.ModuleType("only_here")
    kind = type("Hidden", (Faulty,), {"__module__": "only_here"})
    module.Hidden = kind  # type: ignore[attr-defined]
    sys.modules["only_here"] = module
    try:
        with pytest.raises(EnvironmentSetupError, match=r"fresh Python process.*No module named"):
            WorkerEnvs([kind, kind], num_workers=2)
        assert children() == []
    finally:
        del sys.modules["only_here"]


INTERRUPTED = """
import os, signal, sys, time
import numpy as np
from rlpg.rollouts import make_envs
envs, _ = make_envs("CartPole-v1", 4, seed=0, backend="async", num_workers=2)
envs.reset()
signal.signal(signal.SIGINT, signal.default_int_handler)
steps = 0
try:
    print("ready", flush=True)
    while True:
        envs.step(np.zeros(4, np.int64))
        steps += 1
except KeyboardInterrupt:
    if not envs.closed:  # it was not within a message, half of which nobody could read
        envs.reset()
        envs.step(np.zeros(4, np.int64))
        envs.close()
    print("closed", flush=True)
"""


def test_ctrl_c_in_the_terminal_leaves_the_workers_alone() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (out, err, process.returncode) == ("closed\n", "", 0)

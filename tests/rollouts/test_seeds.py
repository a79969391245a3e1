"""Seeds of episodes, and whose KeyboardInterrupt it is: the environment's, or that of a signal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlpg.engine.stopping import StopSignals
from rlpg.errors import EnvironmentFault, UsageError
from rlpg.policies import Policy, StandardPolicy
from rlpg.rollouts import Collector, EpisodeSeeds, make_envs
from rlpg.rollouts.seeds import seed_sequence


class Ending(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, what: Callable[[], Any]) -> None:
        self.what = what

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.what()
        return np.zeros(2, np.float32), 0.0, False, False, {}


def step(what: Callable[[], Any]) -> None:
    env = EpisodeSeeds(Ending(what), np.random.SeedSequence(0), 3)
    env.reset()
    env.step(0)


@pytest.fixture
def _plain_signals() -> Iterator[None]:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_for(number: int) -> None:
    os.kill(os.getpid(), number)
    for _ in range(10**8):
        pass


def clean_up_after(number: int) -> None:
    try:
        wait_for(number)
    except BaseException:
        os.getpid()
        raise


@pytest.mark.usefixtures("_plain_signals")
@pytest.mark.parametrize("work", [wait_for, clean_up_after])
def test_ctrl_c_stays_ctrl_c(work: Callable[[int], None]) -> None:
    with pytest.raises(KeyboardInterrupt):
        step(lambda: work(signal.SIGINT))


@pytest.mark.usefixtures("_plain_signals")
@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt("stop")])
def test_a_handler_of_the_caller_is_obeyed(error: BaseException) -> None:
    def handler(*_: object) -> None:
        raise error

    signal.signal(signal.SIGTERM, handler)
    with pytest.raises(type(error)):
        step(lambda: clean_up_after(signal.SIGTERM))


def interrupt() -> None:
    raise KeyboardInterrupt("no more coal")


def interrupt_late() -> None:
    try:
        interrupt()
    finally:
        os.getpid()


class Odd(BaseException):
    """Neither an Exception nor one of Python's own."""


def be_odd() -> None:
    raise Odd("who catches this?")


@pytest.mark.usefixtures("_plain_signals")
@pytest.mark.parametrize(
    ("what", "words"),
    [
        (interrupt, "KeyboardInterrupt: no more coal"),
        (interrupt_late, "KeyboardInterrupt: no more coal"),
        (lambda: sys.exit(3), "SystemExit: 3"),
        (exit, "SystemExit: None"),
        (be_odd, "Odd: who catches this"),
    ],
    ids=["interrupt", "interrupt, cleaning up", "sys.exit", "exit", "BaseException"],
)
def test_in_a_training_the_environment_s_own_is_its_fault(
    what: Callable[[], Any], words: str
) -> None:
    with (
        StopSignals(),
        pytest.raises(
            EnvironmentFault, match=rf"environment 3, episode 0 .*: step\(\) raised {words}"
        ),
    ):
        step(what)


@pytest.mark.usefixtures("_plain_signals")
def test_a_second_ctrl_c_in_a_training_ends_the_call() -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(signal.SIGINT)

    with StopSignals() as stop, pytest.raises(KeyboardInterrupt):
        step(twice)
    assert stop.received is signal.SIGINT


@pytest.mark.usefixtures("_plain_signals")
def test_elsewhere_a_keyboard_interrupt_counts_as_ctrl_c() -> None:
    """Nobody can tell them apart under Python's own handler."""
    with pytest.raises(KeyboardInterrupt, match="no more coal"):
        step(interrupt)
    with pytest.raises(EnvironmentFault, match="SystemExit: 3"):
        step(lambda: sys.exit(3))


# ------------------------------------------------------------------------------------------ seeds


@pytest.mark.parametrize("seed", [-1, 1.0, "1", None, True])
def test_a_seed_that_is_none_is_refused_in_a_sentence(seed: Any) -> None:
    message = "seed: expected an integer of at least 0, got "
    with pytest.raises(UsageError, match=message):
        make_envs("CartPole-v1", seed=seed)
    envs, _ = make_envs("CartPole-v1", seed=0)
    with pytest.raises(UsageError, match=message):
        Collector(envs, policy_for(envs), seed)
    envs.close()


def policy_for(envs: Any) -> Policy:
    generator = torch.Generator().manual_seed(0)
    spaces_of = envs.single_observation_space, envs.single_action_space
    return StandardPolicy(*spaces_of, hidden=(4,), generator=generator)


def test_a_numpy_integer_and_a_sequence_are_seeds() -> None:
    assert seed_sequence(np.int64(7)).entropy == 7
    sequence = np.random.SeedSequence(7)
    assert seed_sequence(sequence) is sequence


def test_the_key_of_a_spawned_sequence_was_ignored_by_the_collector() -> None:
    """Children of one seed have its entropy, and each a key of its own."""
    actions = []
    for seed in (np.random.SeedSequence(5), *np.random.SeedSequence(5).spawn(2)):
        envs, _ = make_envs("CartPole-v1", 4, seed=0)
        rollout = Collector(envs, policy_for(envs), seed).steps(16)
        actions.append(rollout.action.numpy().tobytes())
    assert len(set(actions)) == 3


@pytest.mark.parametrize("backend", ["native", "sync"])
def test_a_child_of_a_seed_makes_other_episodes(backend: str) -> None:
    first = []
    for seed in (np.random.SeedSequence(5), *np.random.SeedSequence(5).spawn(2)):
        envs, _ = make_envs("CartPole-v1", 2, seed=seed, backend=backend)
        first.append(envs.reset()[0].tobytes())
        envs.close()
    assert len(set(first)) == 3


@pytest.mark.parametrize("backend", ["native", "sync"])
def test_after_whole_episodes_the_next_rollout_begins_with_a_reset(backend: str) -> None:
    """The episodes beyond the quota were not dropped."""
    envs, _ = make_envs("CartPole-v1", 3, seed=0, backend=backend)
    collector = Collector(envs, policy_for(envs))
    collector.episodes(1)
    rollout = collector.steps(2)
    assert rollout.time.tolist() == [[0, 0, 0], [1, 1, 1]]
    envs.close()

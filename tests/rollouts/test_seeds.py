"""Whose KeyboardInterrupt or SystemExit it is: the environment's, or that of a signal in it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rlpg.errors import EnvironmentFault
from rlpg.rollouts import EpisodeSeeds


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


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (interrupt, "KeyboardInterrupt: no more coal"),
        (interrupt_late, "KeyboardInterrupt: no more coal"),
        (lambda: sys.exit(3), "SystemExit: 3"),
        (exit, "SystemExit: None"),
    ],
    ids=["interrupt", "interrupt, cleaning up", "sys.exit", "exit"],
)
def test_the_environment_s_own_is_its_fault(what: Callable[[], Any], words: str) -> None:
    with pytest.raises(
        EnvironmentFault, match=rf"environment 3, episode 0 .*: step\(\) raised {words}"
    ):
        step(what)

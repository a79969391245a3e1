"""A time-out for environments that run in this process, at no cost per step.

A thread looks now and then at what the other threads are doing. Finds it the same call of an
environment again and again for longer than the time-out, the environment hangs:

    stuck in                             what happens
    Python, sleep, a socket, a lock      the call ends in an EnvironmentFault (by SIGURG)
    C code that ignores signals          the process ends if a training has asked for that
                                         (`hangs_end_the_process`), else there is one line about it
    a thread that is not the main one    one line: signals reach the main thread only

C code that keeps the interpreter locked cannot be watched from within; `async` environments can
be, whatever they do.

Time counts only while this thread can run, so a suspended computer or a stopped process (Ctrl-Z)
is no hanging environment. Under a debugger nothing is watched.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from gymnasium.vector import SyncVectorEnv, VectorEnv

from rlpg.errors import EnvironmentFault
from rlpg.rollouts.collector import Collector
from rlpg.rollouts.seeds import EpisodeSeeds

GRACE_SECONDS = 2.0  # for an interrupted call to end
LARGEST_TICK, TICKS = 1.0, 10  # seconds between two looks, and looks per time-out at least
EXIT_CODE = 1
CALLS = ("reset", "step", "close")
# Nothing else uses it: ignored unless there is a handler, and not raised by any tool.
SIGNAL = signal.SIGURG

COLLECTING = (Collector._step.__code__, Collector._start.__code__)
LastWords = Callable[[str, str], str]  # takes the message and the traceback; says where they are


class SyncEnvs(SyncVectorEnv):
    """Environments one after the other, all of which are closed whatever closing them raises."""

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment. What goes wrong there harms no one any more."""
        for env in self.envs:
            with suppress(Exception):
                env.close()


class Watchdog(threading.Thread):
    """Watches the calls of one vector environment until that is closed or gone."""

    def __init__(self, envs: VectorEnv[Any, Any, Any], timeout: float) -> None:
        super().__init__(name="rlpg watchdog", daemon=True)
        self.envs = weakref.ref(envs)
        self.timeout = timeout
        self.last_words: LastWords | None = None
        self.alarm: tuple[FrameType, EnvironmentFault] | None = None  # for the main thread
        self._stopped = threading.Event()
        weakref.finalize(envs, self._stopped.set)

    def end(self) -> None:
        """Returns when it no longer runs."""
        self._stopped.set()
        self.join(LARGEST_TICK)

    def run(self) -> None:
        """Looks now and then; a call found twice has been going on all the time between."""
        seen: FrameType | None = None
        waited, told, last = 0.0, False, time.monotonic()
        while not self._stopped.wait(tick := min(self.timeout / TICKS, LARGEST_TICK)):
            now = time.monotonic()
            passed, last = min(now - last, 2 * tick), now
            thread, call = self._call()
            if call is None or call is not seen:
                seen, waited, told, self.alarm = call, 0.0, False, None
                continue
            waited += passed
            if told or waited < self.timeout:
                continue
            if self.alarm is None and _can_interrupt(thread):
                fault = EnvironmentFault(f"no answer within {self.timeout:g} s; it hangs")
                self.alarm = (call, fault)
                signal.pthread_kill(thread, SIGNAL)
            elif self.alarm is None or waited >= self.timeout + GRACE_SECONDS:
                told = True
                self._give_up(thread, call)

    def _call(self) -> tuple[int, FrameType | None]:
        """The thread that is in the innermost call of the environments, and that call."""
        envs = self.envs()
        if envs is None or envs.closed or envs.unwrapped.closed:
            self._stopped.set()
            return 0, None
        for thread, frame in sys._current_frames().items():
            call = _innermost(frame, envs) if thread != self.ident else None
            if call is not None:
                return thread, call
        return 0, None

    def _give_up(self, thread: int, call: FrameType) -> None:
        what = f"{_place(call)}: no answer within {self.timeout:g} s; it hangs and "
        if thread != threading.main_thread().ident:
            _say(f"{what}only the main thread can be interrupted")
        elif self.last_words is None:
            _say(f"{what}cannot be interrupted")
        else:
            words = f"{what}cannot be interrupted, so this process ends"
            try:
                stack = traceback.format_stack(sys._current_frames()[thread])
                _say(f"{words}; {self.last_words(words, ''.join(stack))}")
            finally:
                os._exit(EXIT_CODE)


def watch(envs: VectorEnv[Any, Any, Any], timeout: float) -> None:
    """Gives every call of these environments `timeout` seconds; of each copy if we made them."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(SIGNAL) is signal.SIG_DFL:
        signal.signal(SIGNAL, _interrupt)
    for dog in _watchdogs(envs):
        dog.timeout = timeout
        return
    Watchdog(envs, timeout).start()


@contextmanager
def hangs_end_the_process(
    environments: Iterable[VectorEnv[Any, Any, Any]], last_words: LastWords
) -> Iterator[None]:
    """In the block, a call that hangs and cannot be interrupted ends the process, exit code 1.

    Args:
        environments: whose calls.
        last_words: is given the message and the traceback before that; says where they are kept.
    """
    dogs = [dog for envs in environments for dog in _watchdogs(envs)]
    for dog in dogs:
        dog.last_words = last_words
    try:
        yield
    finally:
        for dog in dogs:
            dog.last_words = None


def _watchdogs(envs: VectorEnv[Any, Any, Any] | None = None) -> list[Watchdog]:
    """Those of the environments; of all environments for None."""
    dogs = [thread for thread in threading.enumerate() if isinstance(thread, Watchdog)]
    return [dog for dog in dogs if envs is None or dog.envs() is envs]


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Runs in the main thread: raises the fault if the call that hung is still going on."""
    alarms = [dog.alarm for dog in _watchdogs() if dog.alarm is not None]
    while frame is not None:
        for call, fault in alarms:
            if frame is call:
                raise fault
        frame = frame.f_back


def _can_interrupt(thread: int) -> bool:
    is_main = thread == threading.main_thread().ident
    return is_main and signal.getsignal(SIGNAL) is _interrupt


def _innermost(frame: FrameType | None, envs: VectorEnv[Any, Any, Any]) -> FrameType | None:
    """The call that a thread is in: of one of our environments, else of all; None under a debugger.

    Looking at a frame's `self` is safe: its thread stands still as long as this one runs.
    """
    found: FrameType | None = None
    while frame is not None and frame.f_trace is None:
        if frame.f_code in (EpisodeSeeds.step.__code__, EpisodeSeeds.reset.__code__):
            found = found or frame
        elif frame.f_code.co_name in CALLS and frame.f_locals.get("self") is envs:
            return found or frame
        frame = frame.f_back
    return None


def _place(call: FrameType) -> str:
    """Step and environment, as far as the frames know them."""
    owner, place = call.f_locals.get("self"), ""
    if isinstance(owner, EpisodeSeeds):
        place = owner.whereabouts
    elif owner is not None:
        place = type(owner).__name__
    frame: FrameType | None = call
    while frame is not None:
        collector = frame.f_locals.get("self") if frame.f_code in COLLECTING else None
        if isinstance(collector, Collector):
            return f"step {collector.vector_steps}: {place}"
        frame = frame.f_back
    return place


@atexit.register
def _end_all() -> None:
    """Before the interpreter goes: a thread that wakes up while it does may abort the process,
    and one that still holds a frame of MuJoCo's did."""
    for dog in _watchdogs():
        dog.end()


def _say(line: str) -> None:
    with suppress(OSError, ValueError):
        print(f"rlpg: {line}", file=sys.stderr, flush=True)

"""A time-out for environments that run in this process.

Whoever calls an environment says so before and after (`Calls`). A thread looks now and then: if the
same call is going on for longer than the time-out, the environment hangs.

    stuck in                             what happens
    Python, sleep, a socket, a lock      the call ends in an EnvironmentFault (by SIGURG)
    C code that ignores signals          the process ends if a training has asked for that
                                         (`hangs_end_the_process`), else there is one line about it
    a thread that is not the main one    one line: signals reach the main thread only

C code that keeps the interpreter locked cannot be watched from within; `async` environments can
be, whatever they do.

Time counts only while the thread can run, so a suspended computer or a stopped process (Ctrl-Z)
is no hanging environment. Under a debugger nothing is interrupted.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, Protocol

from gymnasium.vector import VectorEnv, VectorWrapper

from rlpg.errors import EnvironmentFault

GRACE_SECONDS = 2.0  # for an interrupted call to end, and for workers to close
CLOSING_SECONDS = 2.0  # that close() has
# Nothing else uses it: ignored unless there is a handler, and not raised by any tool.
SIGNAL = signal.SIGURG

LastWords = Callable[[str, str], str]  # takes the message and the traceback; says where they are


class Caller(Protocol):
    """Who calls an environment."""

    @property
    def whereabouts(self) -> str: ...  # which environment and episode it is, for messages


def tick_of(timeout: float) -> float:
    """Seconds between two looks whether something hangs."""
    return min(timeout / 10, 1.0)


class Calls:
    """The call of an environment that is going on: written by its caller, read by the watchdog."""

    def __init__(self) -> None:
        self.number = 0  # of the call
        self.caller: Caller | None = None  # None: no call is going on
        self.thread = 0
        self.interrupted = 0  # number of the call that is to be interrupted

    def begin(self, caller: Caller) -> Calls:
        """A call begins, to end with a `with`; a call that was going on counts as returned."""
        self.number += 1
        self.thread = threading.get_ident()
        self.caller = caller
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self.caller = None


class Watchdog(threading.Thread):
    """Looks whether one of the calls takes too long, until the environments are closed or gone."""

    def __init__(self, calls: Calls, timeout: float) -> None:
        super().__init__(name="rlpg watchdog", daemon=True)
        self.calls = calls
        self.timeout = timeout
        self.last_words: LastWords | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(SIGNAL) is signal.SIG_DFL:
            signal.signal(SIGNAL, _interrupt)
        super().start()

    def end(self) -> None:
        self._stopped.set()
        if threading.current_thread() is not self:  # the garbage collector runs in any thread
            self.join(1.0)

    def run(self) -> None:
        """Looks now and then; a call found twice has been going on all the time between."""
        calls, seen, waited, told, last = self.calls, 0, 0.0, False, time.monotonic()
        while not self._stopped.wait(tick := tick_of(self.timeout)):
            now = time.monotonic()
            passed, last = min(now - last, 2 * tick), now
            caller, number = calls.caller, calls.number
            if caller is None or number != seen:
                seen, waited, told = number, 0.0, False
                continue
            waited += passed
            if told or waited < self.timeout:
                continue
            is_main = calls.thread == threading.main_thread().ident
            can_interrupt = is_main and signal.getsignal(SIGNAL) is _interrupt
            if calls.interrupted != number and can_interrupt:
                calls.interrupted = number
                signal.pthread_kill(calls.thread, SIGNAL)
            elif calls.interrupted != number or waited >= self.timeout + GRACE_SECONDS:
                told = True
                self._give_up(caller, is_main)

    def _give_up(self, caller: Caller, is_main: bool) -> None:
        what = f"{caller.whereabouts}: no answer within {self.timeout:g} s; it hangs and "
        if not is_main:
            _say(f"{what}only the main thread can be interrupted")
        elif self.last_words is None:
            _say(f"{what}cannot be interrupted")
        else:
            words = f"{what}cannot be interrupted, so this process ends"
            try:
                _say(f"{words}; {self.last_words(words, _all_stacks())}")
            finally:
                os._exit(1)


class WatchedEnvs(VectorWrapper):
    """A vector environment whose calls are watched, and whose `close` always returns.

    Args:
        envs: in this process.
        timeout: seconds that a call may take; of each environment if these tell `calls` themselves.
        calls: what they tell.

    Attributes:
        whereabouts: the class of the environments; they do not say which of them it is.
    """

    def __init__(
        self, envs: VectorEnv[Any, Any, Any], timeout: float, calls: Calls | None = None
    ) -> None:
        super().__init__(envs)
        self._each_is_watched = calls is not None
        self.whereabouts = type(envs.unwrapped).__name__
        self.calls = calls or Calls()
        self.watchdog = Watchdog(self.calls, timeout)
        weakref.finalize(self, self.watchdog.end)  # also when the interpreter ends
        self.watchdog.start()

    def reset(self, **options: Any) -> Any:
        return self._returned(self.env.reset, **options)

    def step(self, actions: Any) -> Any:
        return self._returned(self.env.step, actions)

    def _returned(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What the call returns; torch's default dtype, which it may set, is the one before it."""
        import torch  # here, because worker processes import this file

        dtype = torch.get_default_dtype()
        try:
            with self.calls.begin(self):
                return call(*arguments, **options)
        finally:
            if torch.get_default_dtype() is not dtype:
                torch.set_default_dtype(dtype)

    def close(self, **options: Any) -> None:
        """Close them; what goes wrong there harms no one any more."""
        if self._each_is_watched:
            self.env.close(**options)
        else:
            close_quietly(partial(self.env.close, **options), self)
        self.watchdog.end()


@contextmanager
def interrupted(caller: Caller) -> Iterator[None]:
    """What the block closes is interrupted by an EnvironmentFault if it hangs."""
    watchdog = Watchdog(Calls(), CLOSING_SECONDS)
    watchdog.start()
    try:
        with watchdog.calls.begin(caller):
            yield
    finally:
        watchdog.end()


def close_quietly(close: Callable[[], object], caller: Caller) -> None:
    """Calls `close`, which may raise, exit or hang."""
    try:
        with interrupted(caller):
            close()
    except BaseException as error:
        if is_from_a_signal(error):
            raise


def is_from_a_signal(error: BaseException) -> bool:
    """Whether a Ctrl-C or a signal handler of the caller's raised it, and not the environment.

    A KeyboardInterrupt under Python's own handler of Ctrl-C counts as one: nobody can tell it from
    one that an environment raises. A training has a handler of its own (`StopSignals`). Under any
    other handler it is from a signal if the traceback goes through one.
    """
    if isinstance(error, Exception):
        return False
    is_main = threading.current_thread() is threading.main_thread()
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_main and is_default and isinstance(error, KeyboardInterrupt):
        return True
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = [code for handler in handlers if (code := getattr(handler, "__code__", None))]
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code in codes for frame, _ in frames)


@contextmanager
def hangs_end_the_process(
    environments: Iterable[VectorEnv[Any, Any, Any] | None], last_words: LastWords
) -> Iterator[None]:
    """In the block, a call that hangs and cannot be interrupted ends the process, exit code 1.

    Args:
        environments: whose calls.
        last_words: is given the message and the traceback before that; says where they are kept.
    """
    dogs = [envs.watchdog for envs in environments if isinstance(envs, WatchedEnvs)]
    for dog in dogs:
        dog.last_words = last_words
    try:
        yield
    finally:
        for dog in dogs:
            dog.last_words = None


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Runs in the main thread: raises the fault if the call that hung is still going on."""
    for dog in threading.enumerate():
        if not isinstance(dog, Watchdog):
            continue
        calls = dog.calls
        if calls.caller is not None and calls.interrupted == calls.number:
            if not _is_debugging():
                raise EnvironmentFault(f"no answer within {dog.timeout:g} s; it hangs")
            calls.number += 1  # its time begins anew


def _is_debugging() -> bool:
    monitoring: Any = getattr(sys, "monitoring", None)  # from Python 3.12 on
    by_monitoring = monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID)
    return sys.gettrace() is not None or bool(by_monitoring)


def _all_stacks() -> str:
    """Where all threads are; faulthandler looks at their frames without running any code."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read().decode(errors="replace")


def _say(line: str) -> None:
    with suppress(OSError, ValueError):
        print(f"rlpg: {line}", file=sys.stderr, flush=True)

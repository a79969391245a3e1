"""Worker processes: started as fresh interpreters, asked, waited for, and always ended."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rlpg.errors import EnvironmentFault, EnvironmentSetupError
from rlpg.rollouts.shared import CALL, Channel, Failure, SharedArrays

GRACE_SECONDS = 2.0  # that workers have to close their environments
LARGEST_TICK, TICKS = 1.0, 10  # seconds between two looks, and looks per time-out at least
SPIN_SECONDS = 100e-6  # of asking again and again, where every process has a core of its own

_START = (
    "import sys; sys.path[:] = sys.argv[4:]; from rlpg.rollouts.worker import main; "
    "main(*map(int, sys.argv[1:4]))"
)
Key = tuple[int, int]  # worker, and group, ALL or CALL


class Processes:
    """Workers that answer every request with one message.

    Args:
        number: how many.
        memory: file descriptor of the memory they share.
        timeout: seconds without a sign of life from an environment before it counts as hanging.

    Time counts only while this process can run, so a suspended computer or a stopped process
    (Ctrl-Z) is no hanging environment. After an EnvironmentFault no worker is left.
    """

    def __init__(self, number: int, memory: int, timeout: float) -> None:
        self.all: list[subprocess.Popen[bytes]] = []
        self.arrays = SharedArrays.none()
        self.pending: set[Key] = set()  # asked, and the answer has not been taken
        self.spin_seconds = SPIN_SECONDS if usable_cores() > number else 0.0
        self._timeout = timeout
        self._answers: dict[Key, Any] = {}
        self._channels: list[Channel] = []
        self._by_descriptor: dict[int, int] = {}
        self._poll = select.poll()
        self._end_them = weakref.finalize(self, _end, os.getpid(), self.all, self._channels)
        try:
            for _ in range(number):
                self._start(memory)
        except BaseException:
            self.end(time.monotonic())
            raise

    def __len__(self) -> int:
        return len(self._channels)

    def limit_sending(self) -> None:
        """From now on, a worker that does not read what it is sent hangs."""
        limit = struct.pack("ll", int(self._timeout), int(self._timeout % 1 * 1e6))
        for channel in self._channels:
            with socket.socket(fileno=os.dup(channel.fileno())) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def send(self, worker: int, group: int, body: Any = None, *, is_large: bool = False) -> None:
        """A request; the answer is there after `wait`.

        Args:
            group: the group that is to step, ALL, or CALL for other requests.
            is_large: the body may be larger than what a connection holds.
        """
        if is_large:  # a worker that cannot get rid of its answer would not read it
            self.wait({key for key in self.pending if key[0] == worker}, take=False)
        try:
            self._channels[worker].send(group, body)
        except BlockingIOError:
            raise self._hangs(worker) from None
        except OSError:
            raise self._died(worker) from None
        self.pending.add((worker, group))

    def wait(
        self,
        wanted: Collection[Key],
        *,
        patience: float | None = None,
        any_of_them: bool = False,
        take: bool = True,
    ) -> dict[Key, Any]:
        """The answers to these requests.

        Args:
            patience: seconds for each call of an environment; None: the time-out.
            any_of_them: return as soon as one is there.
            take: False: leave the answers for another `wait`.

        Raises:
            EnvironmentFault: a worker has died, one hangs, or an environment has raised.
        """
        patience = self._timeout if patience is None else patience
        tick = min(patience / TICKS, LARGEST_TICK)
        silent: dict[int, tuple[int, float]] = {}  # worker: calls begun, seconds without another
        while True:
            missing = [key for key in wanted if key not in self._answers]
            if not missing or (any_of_them and len(missing) < len(wanted)):
                break
            began = time.monotonic()
            events = self._events(tick)
            for descriptor, _ in events:
                self._receive(self._by_descriptor[descriptor])
            if events:
                continue
            passed = min(time.monotonic() - began, 2 * tick)
            for worker in {worker for worker, _ in missing}:
                begun = self.arrays.calls_begun(worker)
                before, waited = silent.get(worker, (begun, 0.0))
                waited = waited + passed if begun == before else 0.0
                silent[worker] = begun, waited
                if waited >= patience:
                    raise self._hangs(worker)
        if not take:
            return {}
        answers = {key: self._answers.pop(key) for key in wanted if key in self._answers}
        self.pending -= answers.keys()
        failures = [answer for answer in answers.values() if isinstance(answer, Failure)]
        if failures:
            raise self._failed(min(failures))
        return answers

    def has_answered(self, keys: Collection[Key]) -> bool:
        """Whether `wait` would return at once."""
        return all(key in self._answers for key in keys)

    def end(self, deadline: float) -> None:
        """Ask the workers to close; end those that have not by the deadline."""
        for channel in self._channels:
            with contextlib.suppress(OSError):
                channel.send(CALL, ("close",))
        for process in self.all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self._end_them()
        self.pending, self._answers = set(), {}

    # -------------------------------------------------------------------------------- internals

    def _start(self, memory: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            numbers = [str(theirs.fileno()), str(memory), str(os.getpid())]
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
            # A Ctrl-C waits until the worker ignores it.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process = subprocess.Popen(
                    [sys.executable, *flags, "-c", _START, *numbers, *sys.path],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), memory),
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        channel = Channel(ours.detach())
        self._by_descriptor[channel.fileno()] = len(self.all)
        self.all.append(process)
        self._channels.append(channel)
        self._poll.register(channel.fileno(), select.POLLIN)

    def _events(self, seconds: float) -> list[tuple[int, int]]:
        """Connections with something to read, or closed ones; none after so many seconds."""
        if self.spin_seconds:
            until = time.perf_counter() + self.spin_seconds
            while time.perf_counter() < until:
                if events := self._poll.poll(0):
                    return events
        return self._poll.poll(math.ceil(seconds * 1e3))

    def _receive(self, worker: int) -> None:
        try:
            messages = self._channels[worker].read()
        except (EOFError, OSError):
            raise self._died(worker) from None
        for group, body in messages:
            self._answers[worker, group] = body

    def _hangs(self, worker: int) -> EnvironmentFault:
        return self._fault(worker, f"no answer within {self._timeout:g} s; it hangs")

    def _died(self, worker: int) -> EnvironmentFault:
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.all[worker].wait(GRACE_SECONDS)
        if code is not None and code < 0:
            return self._fault(worker, f"its worker died of {signal.Signals(-code).name}")
        return self._fault(worker, f"its worker ended with exit code {code}")

    def _failed(self, failure: Failure) -> Exception:
        fault: Exception = EnvironmentFault(failure.words)
        if failure.env < 0:
            fault = EnvironmentSetupError(
                f"env: expected what a fresh Python process can import, got {failure.words}; put "
                "the environment into a module, or use the backend 'sync'"
            )
        fault.add_note(f"In its worker:\n{failure.trace}")
        self.end(time.monotonic())
        return fault

    def _fault(self, worker: int, what: str) -> EnvironmentFault:
        name = self.arrays.whereabouts(worker)
        self.end(time.monotonic())
        return EnvironmentFault(f"{name}: {what}")


def _end(owner: int, processes: list[subprocess.Popen[bytes]], channels: list[Channel]) -> None:
    """Ends all that still run; not in a copy of the process that started them."""
    if os.getpid() != owner:
        return
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    for channel in channels:
        channel.close()
    processes.clear()
    channels.clear()


def usable_cores() -> int:
    """The cores that this process may use: its affinity, and the quota of its container."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores

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
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from rlpg.errors import EnvironmentFault, EnvironmentSetupError
from rlpg.rollouts.shared import OTHER, Failure, SharedArrays
from rlpg.rollouts.watchdog import GRACE_SECONDS, tick_of

_START = (  # nobody looks for garbage in what stays imported
    "import gc, sys; gc.disable(); sys.path[:] = sys.argv[4:]; "
    "from rlpg.rollouts.worker import main; gc.freeze(); gc.enable(); "
    "main(*map(int, sys.argv[1:4]))"
)
# Who ends a whole group sends these to the workers too. They wait until the worker ignores them.
_OF_A_GROUP = {signal.SIGINT, signal.SIGHUP, signal.SIGTERM}


class Processes:
    """Workers that share `arrays` and answer every request with one message.

    From `limit` on, an environment that shows no sign of life for `timeout` seconds hangs. Time
    counts only while this process can run, so a suspended computer or a stopped process (Ctrl-Z) is
    no hanging environment. After an EnvironmentFault no worker is left, nor after a Ctrl-C in the
    middle of a message.
    """

    def __init__(self, number: int, arrays: SharedArrays, memory: int, timeout: float) -> None:
        self.all: list[subprocess.Popen[bytes]] = []
        self.pending: set[int] = set()  # workers that have been asked, and have not answered
        self.faulty: int | None = None  # the worker because of which all were ended
        self._arrays = arrays
        self._timeout = timeout
        self._patience = math.inf
        self._connections: list[Connection[Any, Any]] = []
        self._poll = select.poll()
        self._workers: dict[int, int] = {}  # by the file descriptors of their connections
        self._silent: dict[int, tuple[int, float]] = {}  # calls begun, seconds without another
        self._looked = time.monotonic()
        self._end_them = weakref.finalize(self, _end, os.getpid(), self.all, self._connections)
        try:
            for _ in range(number):
                self._start(memory)
        except BaseException:
            self.end()
            raise

    def ask(self, requests: Iterable[Any]) -> list[Any]:
        """The answers of all workers to a request for each; answers to earlier ones are dropped."""
        while self.pending:
            self._receive()
        for worker, request in enumerate(requests):
            self.send(worker, OTHER, ForkingPickler.dumps(request))
        answers: dict[int, Any] = {}
        while self.pending:
            answers |= self._receive()
        self._check(answers)
        return [answers[worker] for worker in sorted(answers)]

    def send(self, worker: int, code: bytes, request: bytes | memoryview = b"") -> None:
        try:
            os.write(self._connections[worker].fileno(), code)
            if request:
                self._connections[worker].send_bytes(request)
            self._silent.pop(worker, None)
            self.pending.add(worker)
        except BlockingIOError:
            raise self._hangs(worker) from None
        except OSError:
            raise self._died(worker) from None
        except BaseException:  # Ctrl-C within a message
            self.end()
            raise

    def wait_any(self) -> list[int]:
        """The workers that have taken their step; waits for one of them."""
        answers = self._receive()
        self._check(answers)
        return list(answers)

    def limit(self) -> None:
        """From now on there is a time-out, also for reading or sending all of a message."""
        self._patience = self._timeout
        limit = struct.pack("ll", int(self._timeout), int(self._timeout % 1 * 1e6))
        for connection in self._connections:
            with socket.socket(fileno=os.dup(connection.fileno())) as ours:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def end(self, grace: float = 0.0) -> None:
        """Ask the workers to close; end those that have not in these seconds."""
        deadline = time.monotonic() + grace
        for connection in self._connections:
            with contextlib.suppress(OSError):
                os.write(connection.fileno(), OTHER)
                connection.send(("close",))
        for process in self.all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self._end_them()
        self.pending = set()

    # -------------------------------------------------------------------------------- internals

    def _start(self, memory: int) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            numbers = [str(theirs.fileno()), str(memory), str(os.getpid())]
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_A_GROUP)
            try:
                process = subprocess.Popen(
                    [sys.executable, *flags, "-c", _START, *numbers, *sys.path],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), memory),
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self.all.append(process)
            self._connections.append(Connection(ours.detach()))
        descriptor = self._connections[-1].fileno()
        self._workers[descriptor] = len(self._workers)
        self._poll.register(descriptor, select.POLLIN)

    def _receive(self) -> dict[int, Any]:
        """The answers that are there; waits for one."""
        tick, answers = tick_of(self._patience), dict[int, Any]()
        while not answers:
            for descriptor, _ in self._poll.poll(math.ceil(tick * 1e3)):
                worker = self._workers[descriptor]
                answers[worker] = self._read(worker, descriptor)
            if (now := time.monotonic()) - self._looked >= tick:
                passed, self._looked = min(now - self._looked, 2 * tick), now
                self._look(passed)
        return answers

    def _look(self, passed: float) -> None:
        """Looks whether a worker has been at the same call of an environment for too long."""
        for worker in self.pending:
            begun = int(self._arrays.board[worker, 3])
            before, waited = self._silent.get(worker, (None, 0.0))
            waited = waited + passed if begun == before else 0.0
            self._silent[worker] = begun, waited
            if waited >= self._patience:
                raise self._hangs(worker)

    def _read(self, worker: int, descriptor: int) -> Any:
        try:
            code, data = os.read(descriptor, 1), b""
            if code == OTHER:
                data = self._connections[worker].recv_bytes()
            self.pending.discard(worker)
        except BlockingIOError:
            raise self._hangs(worker) from None
        except (EOFError, OSError):
            raise self._died(worker) from None
        except BaseException:  # Ctrl-C within a message
            self.end()
            raise
        if not code:
            raise self._died(worker)
        try:
            return ForkingPickler.loads(data) if data else None
        except Exception as error:
            raise self._fault(worker, f"its answer cannot be read: {error!r:.200}") from error

    def _hangs(self, worker: int) -> EnvironmentFault:
        return self._fault(worker, f"no answer within {self._timeout:g} s; it hangs")

    def _died(self, worker: int) -> EnvironmentFault:
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.all[worker].wait(GRACE_SECONDS)
        if code is not None and code < 0:
            return self._fault(worker, f"its worker died of {signal.Signals(-code).name}")
        return self._fault(worker, f"its worker ended with exit code {code}")

    def _fault(self, worker: int, what: str) -> EnvironmentFault:
        index, episode, seed = self._arrays.board[worker, :3].tolist()
        where = f", episode {episode} (seed {seed})" if episode >= 0 else ""
        self.faulty = worker
        self.end()
        return EnvironmentFault(f"environment {index}{where}: {what}")

    def _check(self, answers: Mapping[int, Any]) -> None:
        failed = {n: answer for n, answer in answers.items() if isinstance(answer, Failure)}
        if failed:
            self.faulty = min(failed, key=lambda worker: failed[worker].env)
            raise self._failed(failed[self.faulty])

    def _failed(self, failure: Failure) -> Exception:
        # Not where it is raised: an exception that its own traceback holds keeps the memory.
        fault: Exception = EnvironmentFault(failure.words)
        if failure.env < 0:
            fault = EnvironmentSetupError(
                f"env: expected what a fresh Python process can import, got {failure.words}; put "
                "the environment into a module, or use the backend 'sync'"
            )
        fault.add_note(f"In its worker:\n{failure.trace}")
        self.end()
        return fault


def _end(
    owner: int, processes: list[subprocess.Popen[bytes]], connections: list[Connection[Any, Any]]
) -> None:
    """Ends all that still run; not in a copy of the process that started them."""
    if os.getpid() != owner:
        return
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    for connection in connections:
        connection.close()
    processes.clear()
    connections.clear()


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

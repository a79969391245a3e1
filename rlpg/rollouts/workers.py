"""`AsyncVectorEnv` whose workers may die, hang or raise: one clear error, and nothing left behind.

Gymnasium's waits for ever for a worker that is gone, and `close` with it. This one watches the
processes while it waits, gives up after a time-out, and ends them all before it reports.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import _async_worker

from rlpg.errors import EnvironmentFault

GRACE_SECONDS = 2.0  # that workers have to close their environments
MAKING_SECONDS = 1e6  # for making one, which has no time-out: large models are compiled there


class WorkerEnvs(AsyncVectorEnv):
    """Environments in processes of their own; autoreset is `SAME_STEP`.

    Args:
        makers: make one environment each.
        timeout: seconds that a step or reset of all environments may take.

    Every method that talks to the workers raises EnvironmentFault, with the index of the
    environment, if its worker has died or has not answered in time. All workers are gone then.
    """

    def __init__(
        self, makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]], *, timeout: float = 60.0
    ) -> None:
        self._timeout = timeout
        guarded = [_Guarded(maker, os.getpid()) for maker in makers]
        super().__init__(
            guarded, copy=False, worker=_worker, autoreset_mode=AutoresetMode.SAME_STEP
        )

    def reset(self, **options: Any) -> Any:
        """Start an episode in every environment."""
        with self._reporting():
            return super().reset(**options)

    def step(self, actions: Any) -> Any:
        """Take an action in every environment."""
        with self._reporting():
            return super().step(actions)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of every environment."""
        with self._reporting():
            return super().call(name, *args, **kwargs)

    def replay(self, states: Sequence[Mapping[str, Any]]) -> Sequence[str]:
        """`EpisodeSeeds.replay_own_episode` of every environment; each step has its time."""
        most_steps = max(int(state.get("count", 0)) for state in states)
        with self._reporting():
            self.call_async("replay_own_episode", states)
            return self.call_wait(timeout=self._timeout * (1 + most_steps))

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Ask the workers to close, and end those that do not."""
        for pipe in self.parent_pipes:
            with contextlib.suppress(OSError, ValueError):
                pipe.send(("close", None))
        self._end_workers(time.monotonic() + GRACE_SECONDS)

    def _check_spaces(self) -> None:
        """Gymnasium asks this first: wait until the environments are made, then compare them."""
        with self._reporting():
            self.call_async("render_mode")
            self.call_wait(timeout=MAKING_SECONDS)
            super()._check_spaces()  # type: ignore[no-untyped-call]  # Gymnasium's own

    def _poll_pipe_envs(self, timeout: float | None = None) -> bool:
        """Gymnasium asks this before it reads the answers: wait until all are there."""
        self._assert_is_running()
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        pending = dict(zip(self.parent_pipes, range(self.num_envs), strict=True))
        while pending:
            sentinels = {self.processes[index].sentinel: index for index in pending.values()}
            ready = wait([*pending, *sentinels], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._fault(
                    min(pending.values()), f"no answer within {self._timeout:g} s; it hangs"
                )
            answered = [pipe for pipe in ready if pipe in pending]
            if not answered:  # a process ended, and had not sent its answer before
                dead = min(sentinels[sentinel] for sentinel in ready)  # type: ignore[index]
                if not self.parent_pipes[dead].poll():
                    raise self._fault(dead, f"its worker {self._obituary(dead)}")
                answered = [self.parent_pipes[dead]]
            for pipe in answered:
                pending.pop(pipe)
        return True

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        """Gymnasium asks this when it has read the answers: the error of the first environment."""
        failed = [index for index, succeeded in enumerate(successes) if not succeeded]
        if not failed:
            return
        found: dict[int, tuple[Any, str]] = {}  # in the queue they are in the order of their end
        with contextlib.suppress(queue.Empty):
            while failed[0] not in found:
                index, _, error, trace = self.error_queue.get(timeout=GRACE_SECONDS)
                found[index] = (error, trace)
        unknown = ("an error that cannot be passed on", "")
        index = failed[0] if failed[0] in found else min(found, default=failed[0])
        error, trace = found.get(index, unknown)
        self._end_workers(time.monotonic())
        name, what = f"environment {index}", str(error)
        fault = EnvironmentFault(what if what.startswith(name) else f"{name}: {what}")
        fault.add_note(f"In its worker:\n{trace}")
        raise fault

    @contextlib.contextmanager
    def _reporting(self) -> Any:
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError):
            time.sleep(0.05)  # the process that closed its pipe is about to be gone
            dead = next((i for i, p in enumerate(self.processes) if not p.is_alive()), 0)
            raise self._fault(dead, f"its worker {self._obituary(dead)}") from None
        except EnvironmentFault:
            self._end_workers(time.monotonic())
            raise

    def _fault(self, index: int, what: str) -> EnvironmentFault:
        self._end_workers(time.monotonic())
        return EnvironmentFault(f"environment {index}: {what}")

    def _obituary(self, index: int) -> str:
        process = self.processes[index]
        process.join(GRACE_SECONDS)
        code = process.exitcode
        if code is not None and code < 0:
            return f"died of {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def _end_workers(self, deadline: float) -> None:
        """Wait for the workers until the deadline, end those that remain, free what they held."""
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in self.processes:
            if process.is_alive():
                process.kill()
        for process, pipe in zip(self.processes, self.parent_pipes, strict=True):
            process.join()
            process.close()
            pipe.close()
        self.processes, self.parent_pipes = [], []
        errors: Any = self.error_queue
        errors.close()
        errors._reader.close()  # Gymnasium and multiprocessing leave both to the garbage collector
        errors._writer.close()
        self.closed = True


def _worker(index: int, env_fn: Callable[[], Any], pipe: Any, *rest: Any) -> None:
    """Gymnasium's worker; an environment that cannot be made is an answer like any other error."""
    try:
        env = env_fn()
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        fault = EnvironmentFault(f"making it raised {type(error).__name__}: {said}")
        rest[2].put((index, EnvironmentFault, fault, traceback.format_exc()))
        pipe.recv()
        pipe.send((None, False))
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent gave up meanwhile
        _async_worker(index, lambda: env, pipe, *rest)


class _Guarded:
    """Makes an environment; in a worker also sees to it that the worker ends when it should."""

    def __init__(self, maker: Callable[[], gymnasium.Env[Any, Any]], parent: int) -> None:
        self._maker, self._parent = maker, parent

    def __call__(self) -> gymnasium.Env[Any, Any]:
        if multiprocessing.parent_process() is not None and os.getpid() != self._parent:
            # Ctrl-C and a closed terminal are for the parent to handle: it ends the step and saves.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            threading.Thread(target=self._outlive_no_parent, daemon=True).start()
        return self._maker()

    def _outlive_no_parent(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(0.5)
        os._exit(1)

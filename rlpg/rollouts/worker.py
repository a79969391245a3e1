"""What runs in a worker process: several environments, stepped when the parent asks for it.

A worker is a fresh interpreter that imports Gymnasium and what the environments need, but no torch.
It ends when it is told to, when its connection is closed, and within half a second when its parent
is gone, whatever its environments are doing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NoReturn

import gymnasium
import numpy as np

from rlpg.errors import RlpgError, words
from rlpg.rollouts.ids import hush
from rlpg.rollouts.reward_parts import RewardParts, Sums
from rlpg.rollouts.seeds import EpisodeSeeds
from rlpg.rollouts.shared import DONE, OTHER, Failure, SharedArrays, put
from rlpg.rollouts.watchdog import Calls

PARENT_SECONDS = 0.5  # between two looks at whether the parent is still there


class Board(Calls):
    """Shows the parent which call of which environment is going on."""

    def __init__(self, row: np.ndarray) -> None:
        super().__init__()
        self.row = memoryview(row)  # type: ignore[arg-type]  # [8], see `SharedArrays`

    def begin(self, caller: Any) -> Board:
        self.show(caller.env_index, caller.episode, caller.episode_seed)
        return self

    def show(self, index: int, episode: int = -1, seed: int = 0) -> None:
        row = self.row
        row[0], row[1], row[2] = index, episode, seed % 2**63
        row[3] += 1


class Worker:
    """Environments of this process; each request is the method `_name`."""

    def __init__(self, memory: int) -> None:
        self._memory = memory  # its file descriptor, which `_make` closes
        self._envs: dict[int, gymnasium.Env[Any, Any]] = {}  # by index
        self._now = -1, ""  # which of them something is done with, and what

    def answer(self, name: str, *arguments: Any) -> bytes | memoryview:
        """The message for the parent; a `Failure` where something raised."""
        try:
            found: Any = getattr(self, f"_{name}")(*arguments)
            if found is None:
                return b""
            self._now = self._now[0], "passing on what it gave"
            return ForkingPickler.dumps(found)
        except BaseException as error:
            return ForkingPickler.dumps(self._failure(error))

    def close(self) -> None:
        """Closes every environment. What goes wrong there harms no one any more."""
        for env in self._envs.values():
            with contextlib.suppress(Exception):
                env.close()

    # ------------------------------------------------------------------------------- requests

    def _make(self, pickled: bytes) -> None:
        """Makes the environments of `WorkerEnvs`."""
        worker, rows, spaces, sizes, makers = ForkingPickler.loads(pickled).fn
        self._arrays = SharedArrays(*(*spaces, *sizes, self._memory))
        os.close(self._memory)
        self._board = Board(self._arrays.board[worker])
        self._rows = rows
        self._sums = RewardParts(sizes[0])
        for index, maker in enumerate(makers, rows.start):
            self._begin(index, "making it")
            env = self._envs[index] = maker()
            if isinstance(env, EpisodeSeeds):
                env.calls = self._board
            if (env.observation_space, env.action_space) != spaces:
                raise RlpgError(
                    f"environment {index}: expected the spaces of environment 0, {spaces[0]} "
                    f"and {spaces[1]}, got {env.observation_space} and {env.action_space}"
                )

    def _step(self, step: int, actions: Any = None) -> list[dict[str, Any]] | None:
        """Steps the environments; what they answer goes into the shared memory.

        Args:
            step: which of the steps there.
            actions: of each; None: those in the shared memory.

        Returns:
            The infos, where actions were given; None where all are empty.
        """
        arrays, infos = self._arrays, []
        is_ahead = actions is None
        if is_ahead:
            actions = arrays.actions[self._rows].copy()
        for (index, env), action in zip(self._envs.items(), actions, strict=True):
            self._now = index, "step()"  # `EpisodeSeeds` shows the parent
            obs, reward, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                first, reset_info = env.reset()
                put(arrays.final, (step, index), obs)
                info, obs = {"final_info": info, "final_obs": obs, **reset_info}, first
            arrays.reward[step, index] = reward
            arrays.terminated[step, index] = terminated
            arrays.truncated[step, index] = truncated
            put(arrays.obs, (step, index), obs)
            if is_ahead:
                self._sums.add_single(info, index)
            infos.append(info)
        return None if is_ahead or not any(infos) else infos

    def _parts(self) -> dict[str, Sums]:
        """Parts of the reward since the last time or reset, of the environments here."""
        return self._sums.taken(self._rows)

    def _reset(
        self, seeds: Mapping[int, int | None], options: dict[str, Any] | None
    ) -> dict[int, dict[str, Any]]:
        """Starts an episode in the environments that have an entry in `seeds`; their infos."""
        self._sums.taken(self._rows)
        infos = {}
        for index, seed in seeds.items():
            self._begin(index, "reset()")
            obs, infos[index] = self._envs[index].reset(seed=seed, options=options)
            put(self._arrays.obs, (0, index), obs)
        return infos

    def _call(self, name: str, args: Any, kwargs: Any) -> list[Any]:
        """A method or an attribute of each environment."""
        results = []
        for index, env in self._envs.items():
            self._begin(index, f"{name}()")
            found = env.get_wrapper_attr(name)
            results.append(found(*args, **kwargs) if callable(found) else found)
        return results

    def _set(self, name: str, values: Sequence[Any]) -> None:
        for (index, env), value in zip(self._envs.items(), values, strict=True):
            self._begin(index, f"setting {name}")
            env.set_wrapper_attr(name, value)

    # ------------------------------------------------------------------------------ internals

    def _begin(self, index: int, what: str) -> None:
        """Something is done with an environment, for which it has the time of one call."""
        self._board.show(index)
        self._now = index, what

    def _failure(self, error: BaseException) -> Failure:
        (index, what), said = self._now, words(error)
        if index >= 0 and not isinstance(error, RlpgError):
            said = f"{what} raised {said}"
        if index >= 0 and not said.startswith("environment "):  # its number among all ranks'
            said = f"environment {index}: {said}"
        return Failure(index, said, traceback.format_exc())


def main(connection: int, memory: int, parent: int) -> NoReturn:
    """The life of a worker: file descriptors of connection and memory, the parent's process id."""
    # Ctrl-C, a closed terminal and what ends a whole group of processes are the parent's to handle;
    # their signals were blocked until now. Programs that an environment starts can be terminated.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM})
    threading.Thread(target=_outlive_no_parent, args=(parent,), daemon=True).start()
    hush()
    parent_end: Connection[Any, Any] = Connection(connection)
    worker = Worker(memory)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or gave up meanwhile
        while code := os.read(connection, 1):
            request = "step", code[0]
            if code == OTHER:
                request = ForkingPickler.loads(parent_end.recv_bytes())
            if request[0] == "close":
                break
            answer = worker.answer(*request)
            os.write(connection, OTHER if answer else DONE)
            if answer:
                parent_end.send_bytes(answer)
    worker.close()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(0)  # libraries that end threads of their own at exit have hung there


def _outlive_no_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)

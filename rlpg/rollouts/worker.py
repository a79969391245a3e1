"""What runs in a worker process: several environments, stepped when the parent asks for it.

A worker is a fresh interpreter that imports Gymnasium and what the environments need, but no torch.
It ends when it is told to, when its connection is closed, and within half a second when its parent
is gone, whatever its environments are doing.
"""

from __future__ import annotations

import contextlib
import copy
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
from gymnasium.vector.utils import batch_space, iterate

from rlpg.errors import RlpgError
from rlpg.rollouts.ids import hush
from rlpg.rollouts.reward_parts import RewardParts
from rlpg.rollouts.seeds import EpisodeSeeds
from rlpg.rollouts.shared import DONE, OTHER, Failure, SharedArrays, put_row, view
from rlpg.rollouts.watchdog import Calls

PARENT_SECONDS = 0.5  # between two looks at whether the parent is still there


class Board(Calls):
    """Shows the parent which call of which environment is going on."""

    def __init__(self, row: np.ndarray) -> None:
        super().__init__()
        self.row = memoryview(row)  # type: ignore[arg-type]  # [8], see `SharedArrays`

    def begin(self, caller: Any) -> None:
        """A call of an `EpisodeSeeds` begins."""
        row = self.row
        row[0], row[1], row[2] = caller.env_index, caller.episode, caller.episode_seed % 2**63
        row[3] += 1

    def show(self, index: int) -> None:
        """Something is done with an environment, for which it has the time of one call."""
        self.row[0], self.row[1] = index, -1
        self.row[3] += 1


class Worker:
    """Environments of this process.

    Args:
        memory: file descriptor of the shared memory, which is closed.
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._envs: list[gymnasium.Env[Any, Any]] = []

    def answer(self, name: str, *arguments: Any) -> bytes | memoryview:
        """The message for the parent; a `Failure` where something raised."""
        try:
            found: Any = getattr(self, f"_{name}")(*arguments)
            return b"" if found is None else ForkingPickler.dumps(found)
        except Failure as failure:
            return ForkingPickler.dumps(failure)
        except Exception as error:  # not to be pickled
            index = int(self._board.row[0])
            return ForkingPickler.dumps(_failure(index, "passing on what it gave", error))

    def close(self) -> None:
        """Closes every environment. What goes wrong there harms no one any more."""
        for env in self._envs:
            with contextlib.suppress(Exception):
                env.close()

    # ------------------------------------------------------------------------------- requests

    def _make(self, pickled: bytes) -> None:
        """Makes the environments; `WorkerEnvs` says what there is to know."""
        try:
            setup: Mapping[str, Any] = ForkingPickler.loads(pickled)
        except BaseException as error:  # a maker that cannot be imported here
            words = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise Failure(-1, words, traceback.format_exc()) from error
        spaces: tuple[Any, Any] = setup["spaces"]
        num_envs, num_workers, num_steps = setup["sizes"]
        self._arrays = SharedArrays(*spaces, num_envs, num_workers, self._memory, num_steps)
        os.close(self._memory)
        self._board = Board(self._arrays.board[setup["worker"]])
        self._first: int = setup["first"]  # index of its first environment
        for index, maker in enumerate(setup["makers"](), self._first):
            with self._calling(index, "making it"):
                env = maker()
                self._envs.append(env)
                if isinstance(env, EpisodeSeeds):
                    env.calls = self._board
                if (env.observation_space, env.action_space) != spaces:
                    raise RlpgError(
                        f"environment {index}: expected the spaces of environment 0, {spaces[0]} "
                        f"and {spaces[1]}, got {env.observation_space} and {env.action_space}"
                    )
        self._indices = range(self._first, self._first + len(self._envs))
        self._rows = slice(self._indices.start, self._indices.stop)
        self._action_space = batch_space(spaces[1], len(self._envs))

    def _step(self, actions: Sequence[Any] | None) -> Any:
        """Steps the environments.

        Args:
            actions: of each; None: they are in the shared memory.

        Returns:
            The infos, none where all are empty; observations that are not in the shared memory.
        """
        infos: list[dict[str, Any]] = []
        observed: list[Any] = []
        self._step_into(0, actions, infos, observed)
        return infos if any(infos) else [], observed

    def _step_ahead(self, step: int) -> list[dict[str, Any]] | None:
        """Steps the environments with the actions in the shared memory.

        Args:
            step: which of the outcomes there.

        Returns:
            Of their infos the parts of the reward; None where there are none.
        """
        infos: list[dict[str, Any]] = []
        self._step_into(step, None, infos, None)
        parts = [RewardParts.of(info) for info in infos]
        return parts if any(parts) else None

    def _step_into(
        self,
        step: int,
        actions: Sequence[Any] | None,
        infos: list[dict[str, Any]],
        observed: list[Any] | None,
    ) -> None:
        """Steps the environments; what they answer goes into the shared memory.

        Args:
            step: which of the outcomes there.
            actions: of each environment; None: they are in the shared memory, too.
            infos: get what each environment has to say besides.
            observed: gets the observations if they cannot be in the shared memory.
        """
        outcomes = self._arrays.steps[step]
        if actions is None:
            mine = copy.deepcopy(view(self._arrays.actions, self._rows))
            actions = list(iterate(self._action_space, mine))
        for index, env, action in zip(self._indices, self._envs, actions, strict=True):
            try:
                obs, reward, terminated, truncated, info = env.step(action)
                if terminated or truncated:
                    first, reset_info = env.reset()
                    if outcomes.final is not None:
                        put_row(outcomes.final, index, obs)
                    info, obs = {"final_info": info, "final_obs": obs, **reset_info}, first
                outcomes.reward[index] = reward
                outcomes.terminated[index] = terminated
                outcomes.truncated[index] = truncated
                if outcomes.obs is not None:
                    put_row(outcomes.obs, index, obs)
                elif observed is not None:
                    observed.append(obs)
            except BaseException as error:
                raise _failure(index, "step()", error) from error
            infos.append(info)

    def _reset(
        self, seeds: Mapping[int, int | None], options: dict[str, Any] | None
    ) -> dict[int, tuple[Any, dict[str, Any]]]:
        """Starts an episode in the environments that have an entry in `seeds`.

        Returns:
            Of each, the observation if it is not in the shared memory, and the info.
        """
        shared = self._arrays.steps[0].obs
        given: dict[int, tuple[Any, dict[str, Any]]] = {}
        for index, seed in seeds.items():
            with self._calling(index, "reset()"):
                obs, info = self._envs[index - self._first].reset(seed=seed, options=options)
                if shared is not None:
                    put_row(shared, index, obs)
                    obs = None
                given[index] = obs, info
        return given

    def _call(self, name: str, args: Any, kwargs: Any) -> list[Any]:
        """A method or an attribute of each environment."""
        results = []
        for index, env in enumerate(self._envs, self._first):
            with self._calling(index, f"{name}()"):
                found = env.get_wrapper_attr(name)
                results.append(found(*args, **kwargs) if callable(found) else found)
        return results

    def _set(self, name: str, values: Sequence[Any]) -> None:
        """Sets an attribute of each environment."""
        for index, value in enumerate(values, self._first):
            with self._calling(index, f"setting {name}"):
                self._envs[index - self._first].set_wrapper_attr(name, value)

    @contextlib.contextmanager
    def _calling(self, index: int, what: str) -> Any:
        """What is done to one environment: the parent can see it, and is told if it raises."""
        self._board.show(index)
        try:
            yield
        except BaseException as error:
            raise _failure(index, what, error) from error


def _failure(index: int, what: str, error: BaseException) -> Failure:
    words = " ".join(str(error).split())
    if not isinstance(error, RlpgError):
        words = f"{what} raised {type(error).__name__}: {words}"
    if not words.startswith("environment "):  # its number among all ranks' environments
        words = f"environment {index}: {words}"
    return Failure(index, words, traceback.format_exc())


def main(connection: int, memory: int, parent: int) -> NoReturn:
    """The life of a worker.

    Args:
        connection: file descriptor of the connection to the parent.
        memory: file descriptor of the shared memory.
        parent: process id.
    """
    # Ctrl-C and a closed terminal are for the parent to handle: it ends the step and saves. Their
    # signals were blocked until here.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
    threading.Thread(target=_outlive_no_parent, args=(parent,), daemon=True).start()
    hush()
    parent_end: Connection[Any, Any] = Connection(connection)
    worker = Worker(memory)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or gave up meanwhile
        while code := os.read(connection, 1):
            request = "step_ahead", code[0]
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

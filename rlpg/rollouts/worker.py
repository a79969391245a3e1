"""What runs in a worker process: several environments, stepped when the parent asks for it.

A worker is a fresh interpreter that imports Gymnasium and what the environments need, but no torch.
It ends when it is told to, when its connection is closed, and within half a second when its parent
is gone, whatever its environments are doing.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import gymnasium
from gymnasium.vector.utils import batch_space, iterate

from rlpg.errors import RlpgError
from rlpg.rollouts.ids import hush
from rlpg.rollouts.infos import pack_infos
from rlpg.rollouts.seeds import EpisodeSeeds
from rlpg.rollouts.shared import (
    ALL,
    CALL,
    Channel,
    Failure,
    Message,
    SharedArrays,
    copy_of_rows,
    put_row,
)

PARENT_SECONDS = 0.5  # between two looks at whether the parent is still there


class FailedError(Exception):
    """An environment raised; carries what the parent is told."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.words)
        self.failure = failure


class Worker:
    """Environments of this process.

    Args:
        channel: to the parent.
        memory: file descriptor of the shared memory.
        setup: what the parent has said first; see `WorkerEnvs`.
    """

    def __init__(self, channel: Channel, memory: int, setup: Mapping[str, Any]) -> None:
        self._channel = channel
        self._number: int = setup["number"]
        self._indices: list[int] = setup["indices"]  # of its environments, ascending
        self._rows: dict[int, tuple[int, int]] = setup["rows"]  # group -> first, one past the last
        observation_space, action_space = setup["spaces"]
        with contextlib.closing(os.fdopen(memory, "r+b")) as file:
            self._arrays = SharedArrays(
                observation_space,
                action_space,
                setup["num_envs"],
                setup["num_workers"],
                mmap.mmap(file.fileno(), 0),
            )
        self._envs: dict[int, gymnasium.Env[Any, Any]] = {}
        makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]] = setup["makers"]()
        for index, maker in zip(self._indices, makers, strict=True):
            with self._calling(index, "making it"):
                self._envs[index] = env = maker()
                if isinstance(env, EpisodeSeeds):
                    env.board = self._arrays.episode[index]
                if (env.observation_space, env.action_space) != setup["spaces"]:
                    raise RlpgError(
                        f"environment {index}: expected the spaces of environment 0, "
                        f"{observation_space} and {action_space}, got {env.observation_space} and "
                        f"{env.action_space}"
                    )
        self._batches = {
            group: batch_space(action_space, stop - start)
            for group, (start, stop) in self._rows.items()
        }
        self._arrays.current[self._number] = self._indices[0]

    def serve(self) -> None:
        """Answers until it is told to close."""
        while True:
            for group, body in self._channel.read():
                if group == CALL and body[0] == "close":
                    return
                try:
                    answer = self._answer(group, body)
                except FailedError as error:
                    answer = error.failure
                self._arrays.current[self._number] = self._indices[0]
                self._channel.send(group, answer)

    def _answer(self, group: int, body: Any) -> Any:
        if group == CALL:
            return getattr(self, f"_{body[0]}")(*body[1:])
        if group == ALL:
            return [self._step(one, body) for one in self._rows]
        return self._step(group, body)

    def close(self) -> None:
        """Closes every environment. What goes wrong there harms no one any more."""
        for env in self._envs.values():
            with contextlib.suppress(Exception):
                env.close()

    # ------------------------------------------------------------------------------- requests

    def _step(self, group: int, sent: Mapping[int, Any] | None) -> Any:
        """Steps this worker's environments of one group.

        Args:
            sent: the actions by environment; None: they are in the shared memory.

        Returns:
            The packed infos, and the observations where they are not in the shared memory; None if
            there is nothing to say.
        """
        arrays, start, stop = self._arrays, *self._rows[group]
        if sent is not None:
            actions: Any = [sent[index] for index in range(start, stop)]
        else:
            taken = copy_of_rows(arrays.actions, slice(start, stop))
            actions = iterate(self._batches[group], taken)
        infos: list[dict[str, Any]] = []
        observed: list[Any] = []
        number, current, num_calls = self._number, arrays.current, arrays.num_calls
        for index, action in zip(range(start, stop), actions, strict=True):
            current[number] = index
            num_calls[number] += 1
            try:
                env = self._envs[index]
                obs, reward, terminated, truncated, info = env.step(action)
                if terminated or truncated:
                    first, reset_info = env.reset()
                    info, obs = {"final_info": info, "final_obs": obs, **reset_info}, first
                arrays.reward[index] = reward
                arrays.terminated[index] = terminated
                arrays.truncated[index] = truncated
                if arrays.obs is None:
                    observed.append(obs)
                else:
                    put_row(arrays.obs, index, obs)
            except BaseException as error:
                raise _failed(index, "step()", error) from error
            infos.append(info)
        packed = pack_infos(infos)
        return (packed, observed) if packed or observed else None

    def _reset(
        self, seeds: Mapping[int, int | None], options: dict[str, Any] | None
    ) -> dict[int, tuple[Any, dict[str, Any]]]:
        """Starts an episode in the environments that have an entry in `seeds`.

        Returns:
            Of each, the observation if it is not in the shared memory, and the info.
        """
        given: dict[int, tuple[Any, dict[str, Any]]] = {}
        for index, seed in seeds.items():
            with self._calling(index, "reset()"):
                obs, info = self._envs[index].reset(seed=seed, options=options)
                if self._arrays.obs is not None:
                    put_row(self._arrays.obs, index, obs)
                    obs = None
                given[index] = obs, info
        return given

    def _call(self, name: str, args: Any, kwargs: Any) -> dict[int, Any]:
        """A method or an attribute of each environment."""
        results = {}
        for index, env in self._envs.items():
            with self._calling(index, f"{name}()"):
                found = env.get_wrapper_attr(name)
                results[index] = found(*args, **kwargs) if callable(found) else found
        return results

    def _set(self, name: str, values: Mapping[int, Any]) -> None:
        """Sets an attribute of each environment."""
        for index, value in values.items():
            with self._calling(index, f"setting {name}"):
                self._envs[index].set_wrapper_attr(name, value)

    @contextlib.contextmanager
    def _calling(self, index: int, what: str) -> Any:
        """What is done to one environment: the parent can see it, and is told if it raises."""
        self._arrays.current[self._number] = index
        self._arrays.num_calls[self._number] += 1
        try:
            yield
        except BaseException as error:
            raise _failed(index, what, error) from error


def _failed(index: int, what: str, error: BaseException) -> FailedError:
    words = " ".join(str(error).split())
    if not isinstance(error, RlpgError):
        words = f"{what} raised {type(error).__name__}: {words}"
    name = f"environment {index}"
    if not words.startswith(name):
        words = f"{name}: {words}"
    return FailedError(Failure(index, words, traceback.format_exc()))


def main(channel: int, memory: int, parent: int) -> NoReturn:
    """The life of a worker.

    Args:
        channel: file descriptor of the connection to the parent.
        memory: file descriptor of the shared memory.
        parent: process id.
    """
    # Ctrl-C is for the parent to handle: it lets the step end and saves. It was blocked until here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_outlive_no_parent, args=(parent,), daemon=True).start()
    hush()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(Channel(channel), memory)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(0)  # libraries that end threads of their own at exit have hung there


def _serve(channel: Channel, memory: int) -> None:
    worker: Worker | None = None
    try:
        worker = Worker(channel, memory, _first_message(channel).body)
    except FailedError as error:
        channel.send(CALL, error.failure)
        _first_message(channel)
        return
    except (EOFError, OSError):
        raise
    except BaseException as error:  # a maker that cannot be imported here
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        channel.send(CALL, Failure(-1, words, traceback.format_exc()))
        _first_message(channel)
        return
    try:
        channel.send(CALL, True)
        worker.serve()
    finally:
        worker.close()


def _first_message(channel: Channel) -> Message:
    while True:
        for message in channel.read():
            return message


def _outlive_no_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)

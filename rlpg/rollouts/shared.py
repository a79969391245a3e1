"""What the worker pool and its workers share: memory without a name.

The memory is a file that has no name in any folder. The kernel frees it when the last process that
has it is gone, however that process ended.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

_ALIGNMENT = 64  # bytes: no two arrays share a cache line

# Steps of which the outcomes fit into the memory: workers can be so far apart.
_MOST_STEPS, _MOST_BYTES = 128, 2**24

# What messages begin with, if it is not the step whose outcomes are to be written.
DONE, OTHER = b"\0", b"\xff"

Batch = Any  # arrays [N, ...] in the structure of a space


class Failure(Exception):
    """What a worker reports instead of a result.

    Args:
        env: index of the environment; -1: none, the worker itself.
        words: for the user.
        trace: where it happened.
    """

    def __init__(self, env: int, words: str, trace: str) -> None:
        super().__init__(env, words, trace)  # so it can be pickled
        self.env, self.words, self.trace = env, words, trace


class Outcomes(NamedTuple):
    """What the environments have answered in one step, or in several: then time comes first."""

    obs: Batch  # [N, *O]; None where the space has parts of no fixed size, which are in messages
    final: Batch  # [N, *O] where an episode ended, its last observation
    reward: np.ndarray  # [N] float64
    terminated: np.ndarray  # [N] bool
    truncated: np.ndarray  # [N] bool

    def part(self, key: Any) -> Outcomes:
        """Some of them, without a copy."""
        return Outcomes(*(view(batch, key) for batch in self))

    def clear(self) -> None:
        """Makes them 0; for spaces that are single arrays."""
        for array in self:
            array[...] = 0


class SharedArrays:
    """The arrays that steps are written to and read from, in one piece of memory.

    Args:
        observation_space: of a single environment.
        action_space: of a single environment.
        num_envs: N.
        num_workers: W.
        memory: file descriptor of the memory; it stays the caller's, and may be closed.
        num_steps: K, of which the outcomes have room; None: as many as is sensible.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        num_envs: int,
        num_workers: int,
        memory: int,
        num_steps: int | None = None,
    ) -> None:
        sizes = observation_space, action_space, num_envs, num_workers
        self._memory: mmap.mmap | None = None  # first only its size is found out
        if num_steps is None:
            num_steps = max(1, min(_MOST_STEPS, _MOST_BYTES // self._lay_out(*sizes, 1)))
        os.ftruncate(memory, self._lay_out(*sizes, num_steps))
        self._memory = mmap.mmap(memory, self._size)
        self._lay_out(*sizes, num_steps)
        self.steps = [self.outcomes.part(k) for k in range(num_steps)]

    def _lay_out(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        num_envs: int,
        num_workers: int,
        num_steps: int,
    ) -> int:
        """Makes the arrays; returns how many bytes they have."""
        self._size = 0
        each = num_steps, num_envs
        self.outcomes = Outcomes(  # [K, N, ...]
            obs=batch_of(observation_space, each, self._take),
            final=batch_of(observation_space, each, self._take),
            reward=self._take(each, np.float64),
            terminated=self._take(each, np.bool_),
            truncated=self._take(each, np.bool_),
        )
        # None where the space has parts of no fixed size.
        self.actions: Batch = batch_of(action_space, (num_envs,), self._take)
        # What every worker is doing: environment, episode (or -1), seed, calls begun so far.
        self.board = self._take((num_workers, _ALIGNMENT // 8), np.int64)  # [W, 8]
        return self._size

    def whereabouts(self, worker: int) -> str:
        """The environment that a worker is or was busy with, its episode and its seed."""
        index, episode, seed = self.board[worker, :3].tolist()
        where = f", episode {episode} (seed {seed})" if episode >= 0 else ""
        return f"environment {index}{where}"

    def close(self) -> None:
        """Forgets the arrays; the memory is freed with the last of them."""
        self.__dict__.clear()

    def _take(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        size, offset = int(np.prod(shape, dtype=np.int64)), self._size
        self._size += -(-max(size * dtype.itemsize, 1) // _ALIGNMENT) * _ALIGNMENT
        if self._memory is None or size == 0:
            return np.broadcast_to(np.zeros((), dtype), shape)
        return np.frombuffer(self._memory, dtype, size, offset).reshape(shape)


def nameless_file() -> int:
    """The file descriptor of an empty file that has no name."""
    if hasattr(os, "memfd_create"):  # Linux
        return os.memfd_create("rlpg")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def batch_of(
    space: spaces.Space[Any],
    sizes: tuple[int, ...],
    take: Callable[[tuple[int, ...], Any], np.ndarray],
) -> Batch:
    """Arrays `[*sizes, ...]` of elements of a space; None if it has a part of no fixed size."""
    if isinstance(space, spaces.Dict):
        parts = {key: batch_of(part, sizes, take) for key, part in space.spaces.items()}
        return None if any(part is None for part in parts.values()) else parts
    if isinstance(space, spaces.Tuple):
        several = tuple(batch_of(part, sizes, take) for part in space.spaces)
        return None if any(part is None for part in several) else several
    fixed = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not isinstance(space, fixed) or space.shape is None or space.dtype is None:
        return None
    return take((*sizes, *space.shape), space.dtype)


def view(batch: Batch, key: Any) -> Batch:
    """Some of a batch, in its structure and without a copy."""
    if isinstance(batch, dict):
        return {name: view(part, key) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(view(part, key) for part in batch)
    return None if batch is None else batch[key]


def put_row(batch: Batch, row: int, value: Any) -> None:
    """Writes the value of one environment."""
    if isinstance(batch, dict):
        for key, part in batch.items():
            put_row(part, row, value[key])
    elif isinstance(batch, tuple):
        for part, one in zip(batch, value, strict=True):
            put_row(part, row, one)
    else:
        batch[row] = value


def put_all(batch: Batch, values: Any) -> bool:
    """Writes the values of all environments; False if some would be cast, which are not written."""
    if isinstance(batch, dict):
        is_alike = isinstance(values, Mapping) and values.keys() == batch.keys()
        return is_alike and all(put_all(part, values[key]) for key, part in batch.items())
    if isinstance(batch, tuple):
        is_alike = isinstance(values, tuple) and len(values) == len(batch)
        return is_alike and all(map(put_all, batch, values))
    if not (isinstance(batch, np.ndarray) and isinstance(values, np.ndarray)):
        return False
    if values.dtype != batch.dtype or values.shape != batch.shape:
        return False
    batch[...] = values
    return True

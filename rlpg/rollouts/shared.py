"""What the worker pool and its workers share: memory without a name.

The memory is a file that has no name in any folder. The kernel frees it when the last process that
has it is gone, however that process ended.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

_ALIGNMENT = 64  # bytes: no two arrays share a cache line

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


class SharedArrays:
    """The arrays that steps are written to and read from, in one piece of memory.

    Args:
        observation_space: of a single environment.
        action_space: of a single environment.
        num_envs: N.
        num_workers: W.
        memory: file descriptor of the memory; it stays the caller's, and may be closed.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        num_envs: int,
        num_workers: int,
        memory: int,
    ) -> None:
        self._memory: mmap.mmap | None = None  # first only its size is found out
        for _ in range(2):
            self._size = 0
            # None where the space has parts of no fixed size, which travel in messages instead.
            self.obs: Batch = batch_of(observation_space, num_envs, self._take)
            self.actions: Batch = batch_of(action_space, num_envs, self._take)
            self.reward = self._take((num_envs,), np.float64)  # [N]
            self.terminated = self._take((num_envs,), np.bool_)  # [N]
            self.truncated = self._take((num_envs,), np.bool_)  # [N]
            # What every worker is doing: environment, episode (or -1), seed, calls begun so far.
            self.board = self._take((num_workers, _ALIGNMENT // 8), np.int64)  # [W, 8]
            if self._memory is None:
                os.ftruncate(memory, self._size)
                self._memory = mmap.mmap(memory, self._size)

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
    space: spaces.Space[Any], num_envs: int, take: Callable[[tuple[int, ...], Any], np.ndarray]
) -> Batch:
    """Arrays `[N, ...]` for N elements of a space; None if it has a part of no fixed size."""
    if isinstance(space, spaces.Dict):
        parts = {key: batch_of(part, num_envs, take) for key, part in space.spaces.items()}
        return None if any(part is None for part in parts.values()) else parts
    if isinstance(space, spaces.Tuple):
        several = tuple(batch_of(part, num_envs, take) for part in space.spaces)
        return None if any(part is None for part in several) else several
    fixed = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not isinstance(space, fixed) or space.shape is None or space.dtype is None:
        return None
    return take((num_envs, *space.shape), space.dtype)


def copy_of(batch: Batch, rows: slice = slice(None)) -> Batch:
    """A copy of some rows of a batch, in its structure."""
    if isinstance(batch, dict):
        return {key: copy_of(part, rows) for key, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(copy_of(part, rows) for part in batch)
    return batch[rows].copy()


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

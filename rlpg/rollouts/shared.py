"""What the worker pool and its workers share: a file that has no name in any folder.

The kernel frees it when the last process that has it is gone, however that process ended.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from rlpg.errors import EnvironmentSetupError

_ALIGNMENT = 64  # bytes: no two arrays share a cache line

# Steps of which the outcomes fit into the memory: workers can be so far apart.
_MOST_STEPS, _MOST_BYTES = 128, 2**24

# What messages begin with, if it is not the step whose outcomes are to be written.
DONE, OTHER = b"\0", b"\xff"

Batch = Any  # arrays [N, ...] in the structure of a space


class Failure(NamedTuple):
    """What a worker reports instead of a result."""

    env: int  # its index; -1: the worker itself
    words: str
    trace: str


class SharedArrays:
    """The arrays that steps are written to and read from, in one piece of memory.

    Args:
        observation_space, action_space: of a single environment.
        num_envs: N.
        num_workers: W.
        num_steps: K, of which the outcomes have room; None: as many as is sensible.
        memory: file descriptor of the memory; it stays the caller's, and may be closed.

    Raises:
        EnvironmentSetupError: a space has parts of no fixed size.
    """

    obs: Batch  # [K, N, *O]
    final: Batch  # [K, N, *O] where an episode ended, its last observation
    reward: np.ndarray  # [K, N] float64
    terminated: np.ndarray  # [K, N] bool
    truncated: np.ndarray  # [K, N] bool
    actions: Batch  # [N, *A]
    board: np.ndarray  # [W, 8] of every worker: environment, episode or -1, seed, calls begun

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        num_envs: int,
        num_workers: int,
        num_steps: int | None,
        memory: int,
    ) -> None:
        offset = 0
        mapped: mmap.mmap | None = None  # first only the size is found out

        def take(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            nonlocal offset
            start, size = offset, int(np.prod(shape, dtype=np.int64))
            offset += -(-max(size * np.dtype(dtype).itemsize, 1) // _ALIGNMENT) * _ALIGNMENT
            if mapped is None or size == 0:
                return np.broadcast_to(np.zeros((), dtype), shape)
            return np.frombuffer(mapped, dtype, size, start).reshape(shape)

        def lay_out(num_steps: int) -> int:
            nonlocal offset
            offset, each = 0, (num_steps, num_envs)
            self.obs = _batch_of(observation_space, each, take)
            self.final = _batch_of(observation_space, each, take)
            self.reward = take(each, np.float64)
            self.terminated, self.truncated = take(each, np.bool_), take(each, np.bool_)
            self.actions = _batch_of(action_space, (num_envs,), take)
            self.board = take((num_workers, _ALIGNMENT // 8), np.int64)
            return offset

        self.num_steps = num_steps or max(1, min(_MOST_STEPS, _MOST_BYTES // lay_out(1)))
        os.ftruncate(memory, lay_out(self.num_steps))
        mapped = mmap.mmap(memory, offset)
        lay_out(self.num_steps)

    def clear(self, steps: slice, rows: slice) -> None:
        """Nothing has been answered in these steps; where spaces are single arrays."""
        for batch in (self.obs, self.reward, self.terminated, self.truncated):
            batch[steps, rows] = 0

    def close(self) -> None:
        """Forgets the arrays; the memory is freed with the last of them."""
        self.__dict__.clear()


def nameless_file() -> int:
    """The file descriptor of an empty file that has no name."""
    if hasattr(os, "memfd_create"):  # Linux
        return os.memfd_create("rlpg")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _batch_of(
    space: spaces.Space[Any],
    sizes: tuple[int, ...],
    take: Callable[[tuple[int, ...], Any], np.ndarray],
) -> Batch:
    """Arrays `[*sizes, ...]` of elements of a space."""
    if isinstance(space, spaces.Dict):
        return {
            key: _batch_of(part, sizes, take)
            for key, part in space.spaces.items()
            if part.dtype is None or part.dtype.kind != "U"  # of text no policy makes anything
        }
    if isinstance(space, spaces.Tuple):
        return tuple(_batch_of(part, sizes, take) for part in space.spaces)
    if not isinstance(
        space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    ):
        raise EnvironmentSetupError(
            f"backend: expected spaces of a fixed size for 'async', got {space}; use 'sync'"
        )
    return take((*sizes, *(space.shape or ())), space.dtype)


def view(batch: Batch, key: Any) -> Batch:
    """Some of a batch, in its structure and without a copy."""
    if isinstance(batch, dict):
        return {name: view(part, key) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(view(part, key) for part in batch)
    return batch[key]


def put(batch: Batch, place: tuple[int, int], value: Any) -> None:
    if isinstance(batch, dict):
        for key, part in batch.items():
            put(part, place, value[key])
    elif isinstance(batch, tuple):
        for part, one in zip(batch, value, strict=True):
            put(part, place, one)
    else:
        batch[place] = value

"""What the worker pool and its workers share: memory without a name, and messages of a few bytes.

The memory is a file that has no name in any folder. The kernel frees it when the last process that
has it is gone, however that process ended.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

ALL = 0xFFFF  # stands for all groups at once in a message
CALL = 0xFFFE  # stands for a request that is no step
_HEADER = struct.Struct("<IBH")  # bytes that follow; 0: done, 1: failed; the group, ALL or CALL
_LARGEST_READ = 2**20  # bytes
_ALIGNMENT = 64  # bytes: no two arrays share a cache line

Batch = Any  # arrays [N, ...] in the structure of a space


class Failure(NamedTuple):
    """What a worker reports instead of a result."""

    env: int  # its index; -1: no environment, the worker itself
    words: str
    trace: str


class Message(NamedTuple):
    """A request to a worker, or its answer."""

    group: int
    body: Any = None


class Share(NamedTuple):
    """The environments of one group that one worker has: start to stop - 1."""

    worker: int
    group: int
    start: int
    stop: int


class Channel:
    """One end of the connection between the parent and a worker.

    Args:
        descriptor: of a stream that goes both ways; it belongs to the channel.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read = bytearray()  # not yet a whole message

    def fileno(self) -> int:
        """The file descriptor, to wait for; -1 after closing."""
        return self._descriptor

    def send(self, group: int, body: Any = None) -> None:
        """A message; without a body it has seven bytes.

        Raises:
            OSError: the other process is gone, or does not read.
        """
        is_failure = isinstance(body, Failure)
        pickled = b"" if body is None else ForkingPickler.dumps(tuple(body) if is_failure else body)
        data = memoryview(_HEADER.pack(len(pickled), is_failure, group) + bytes(pickled))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def read(self) -> list[Message]:
        """The messages that have arrived, once there is something to read.

        Raises:
            EOFError, OSError: the other process is gone.
        """
        arrived = os.read(self._descriptor, _LARGEST_READ)
        if not arrived:
            raise EOFError
        self._read += arrived
        messages = []
        while len(self._read) >= _HEADER.size:
            size, is_failure, group = _HEADER.unpack_from(self._read)
            end = _HEADER.size + size
            if len(self._read) < end:
                break
            body: Any = ForkingPickler.loads(self._read[_HEADER.size : end]) if size else None
            del self._read[:end]
            messages.append(Message(group, Failure(*body) if is_failure else body))
        return messages

    def close(self) -> None:
        """Closes the file descriptor; twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class SharedArrays:
    """The arrays that steps are written to and read from, in one piece of memory.

    Args:
        observation_space: of a single environment.
        action_space: of a single environment.
        num_envs: N.
        num_workers: W.
        memory: holds them; None: only find out their size.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        num_envs: int,
        num_workers: int,
        memory: mmap.mmap | None = None,
    ) -> None:
        self.num_bytes = 0
        self._memory = memory
        # None where the space has parts of no fixed size, which travel in messages instead.
        self.obs: Batch = batch_of(observation_space, num_envs, self._take)
        self.actions: Batch = batch_of(action_space, num_envs, self._take)
        self.reward = self._take((num_envs,), np.float64)  # [N]
        self.terminated = self._take((num_envs,), np.bool_)  # [N]
        self.truncated = self._take((num_envs,), np.bool_)  # [N]
        # Episodes begun and last seed of every environment, and what every worker is doing.
        self.episode = self._take((num_envs, 2), np.int64)  # [N, 2]
        self.current = self._take((num_workers, 8), np.int64)[:, 0]  # [W] environment
        self.num_calls = self._take((num_workers, 8), np.int64)[:, 0]  # [W] begun so far

    @staticmethod
    def none() -> SharedArrays:
        """Nothing: before there are any, and after they have been freed."""
        return SharedArrays(spaces.Discrete(1), spaces.Discrete(1), 0, 0)

    def calls_begun(self, worker: int) -> int:
        """How many calls of its environments a worker has begun."""
        return int(self.num_calls[worker]) if worker < len(self.num_calls) else 0

    def whereabouts(self, worker: int) -> str:
        """The environment that a worker is busy with, or its first; its episode and its seed."""
        if worker >= len(self.current):
            return f"worker {worker}"
        index = int(self.current[worker])
        begun, seed = self.episode[index].tolist()
        where = f", episode {begun - 1} (seed {seed})" if begun else ""
        return f"environment {index}{where}"

    def close(self) -> None:
        """Frees the memory, now if nobody holds an array of it."""
        memory = self._memory
        self.__dict__.update(vars(SharedArrays.none()))
        if memory is not None:
            with contextlib.suppress(BufferError):
                memory.close()

    def _take(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64))
        offset, self.num_bytes = (
            self.num_bytes,
            self.num_bytes + -(-max(size * dtype.itemsize, 1) // _ALIGNMENT) * _ALIGNMENT,
        )
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


def copy_of_rows(batch: Batch, rows: slice) -> Batch:
    """A copy of some rows of a batch, in its structure."""
    if isinstance(batch, dict):
        return {key: copy_of_rows(part, rows) for key, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(copy_of_rows(part, rows) for part in batch)
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


def put_rows(batch: Batch, rows: slice, values: Any) -> bool:
    """Writes the values of several environments; False, and nothing, if they would be cast."""
    pairs = list(_pairs(batch, rows, values))
    if any(not is_exact for is_exact, _, _ in pairs):
        return False
    for _, target, source in pairs:
        target[...] = source
    return True


def _pairs(batch: Batch, rows: slice, values: Any) -> Iterator[tuple[bool, Any, Any]]:
    if isinstance(batch, dict) and isinstance(values, Mapping) and values.keys() == batch.keys():
        for key, part in batch.items():
            yield from _pairs(part, rows, values[key])
    elif isinstance(batch, tuple) and isinstance(values, tuple) and len(values) == len(batch):
        for part, several in zip(batch, values, strict=True):
            yield from _pairs(part, rows, several)
    elif isinstance(batch, np.ndarray) and isinstance(values, np.ndarray):
        target = batch[rows]
        yield values.dtype == target.dtype and values.shape == target.shape, target, values
    else:
        yield False, None, None


def divide(num_envs: int, num_workers: int, num_groups: int) -> tuple[list[slice], list[Share]]:
    """The environments of each group, and which worker has them; all as even as can be.

    If `num_groups` is a multiple of `num_workers`, each group has one worker; else each worker has
    a part of every group.

    Returns:
        The groups, consecutive; and the shares of the workers in them, in order of environments.
    """
    bounds = [num_envs * k // num_groups for k in range(num_groups + 1)]
    groups = [slice(*pair) for pair in pairwise(bounds)]
    if num_groups % num_workers == 0:
        each = num_groups // num_workers
        return groups, [Share(g // each, g, rows.start, rows.stop) for g, rows in enumerate(groups)]
    shares: list[Share] = []
    extra = 0  # worker that is the next to have one environment more than others
    for group, rows in enumerate(groups):
        fewest, rest = divmod(rows.stop - rows.start, num_workers)
        start = rows.start
        for worker in range(num_workers):
            stop = start + fewest + ((worker - extra) % num_workers < rest)
            if stop > start:
                shares.append(Share(worker, group, start, stop))
            start = stop
        extra = (extra + rest) % num_workers
    return groups, shares

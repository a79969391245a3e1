"""Memory and messages between a pool and its workers."""

from __future__ import annotations

import mmap
import os
import socket
import threading
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from rlpg.rollouts.shared import (
    ALL,
    CALL,
    Channel,
    Failure,
    Share,
    SharedArrays,
    copy_of_rows,
    divide,
    nameless_file,
    put_row,
    put_rows,
)

BOX = spaces.Box(-1, 1, (3,), np.float32)
NESTED = spaces.Dict({"a": BOX, "b": spaces.Tuple((spaces.Discrete(4), spaces.MultiBinary(2)))})


def arrays(observations: Any, actions: Any, num_envs: int = 5) -> SharedArrays:
    size = SharedArrays(observations, actions, num_envs, 2).num_bytes
    return SharedArrays(observations, actions, num_envs, 2, mmap.mmap(-1, size))


@given(num_envs=st.integers(1, 70), num_workers=st.integers(1, 64), num_groups=st.integers(1, 70))
def test_every_environment_is_in_one_group_and_has_one_worker(
    num_envs: int, num_workers: int, num_groups: int
) -> None:
    num_workers, num_groups = min(num_workers, num_envs), min(num_groups, num_envs)
    groups, shares = divide(num_envs, num_workers, num_groups)
    assert [n for rows in groups for n in range(rows.start, rows.stop)] == list(range(num_envs))
    assert [n for s in shares for n in range(s.start, s.stop)] == list(range(num_envs))
    assert {s.worker for s in shares} == set(range(num_workers))
    assert all(groups[s.group].start <= s.start < s.stop <= groups[s.group].stop for s in shares)
    loads = [sum(s.stop - s.start for s in shares if s.worker == w) for w in range(num_workers)]
    sizes = [rows.stop - rows.start for rows in groups]
    assert max(sizes) - min(sizes) <= 1
    assert max(loads) - min(loads) <= (1 if num_groups % num_workers else num_groups // num_workers)


def test_with_more_groups_than_workers_no_group_has_two_workers() -> None:
    groups, shares = divide(8, 2, 4)
    assert [(rows.start, rows.stop) for rows in groups] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [share.worker for share in shares] == [0, 0, 1, 1]


def test_with_fewer_groups_than_workers_each_worker_has_a_part_of_each() -> None:
    _, shares = divide(8, 4, 2)
    assert shares[:4] == [
        Share(0, 0, 0, 1),
        Share(1, 0, 1, 2),
        Share(2, 0, 2, 3),
        Share(3, 0, 3, 4),
    ]
    assert [share.worker for share in shares[4:]] == [0, 1, 2, 3]


def test_nested_values_are_written_and_read_in_their_structure() -> None:
    shared = arrays(NESTED, NESTED)
    value = {"a": np.array([1, 2, 3], np.float32), "b": (np.int64(2), np.array([1, 0], np.int8))}
    put_row(shared.obs, 3, value)
    read = copy_of_rows(shared.obs, slice(3, 4))
    assert read["a"].tolist() == [[1, 2, 3]]
    assert read["b"][0].tolist() == [2]
    assert read["b"][1].tolist() == [[1, 0]]
    assert shared.actions["a"].sum() == 0, "no array shares the memory of another"


@pytest.mark.parametrize(
    "actions",
    [
        np.ones((2, 3)),  # float64: an environment would see other numbers
        np.ones((2, 3), np.int64),
        np.ones((2, 4), np.float32),
        np.ones((1, 3), np.float32),  # would be broadcast
        [[1, 2, 3], [4, 5, 6]],
        None,
    ],
)
def test_actions_that_would_be_cast_are_not_written(actions: Any) -> None:
    shared = arrays(BOX, BOX)
    assert not put_rows(shared.actions, slice(0, 2), actions)
    assert shared.actions.sum() == 0


def test_a_nested_action_is_written_wholly_or_not_at_all() -> None:
    shared = arrays(BOX, spaces.Tuple((BOX, spaces.Discrete(3))))
    good, bad = np.ones((2, 3), np.float32), np.ones(2, np.int32)
    assert not put_rows(shared.actions, slice(0, 2), (good, bad))
    assert shared.actions[0].sum() == 0
    assert put_rows(shared.actions, slice(0, 2), (good, bad.astype(np.int64)))


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Dict({"a": BOX, "b": spaces.Text(3)})])
def test_a_space_with_a_part_of_no_fixed_size_has_no_shared_memory(space: Any) -> None:
    assert arrays(space, space).obs is None


def test_the_memory_is_freed_when_it_is_closed_and_has_no_name() -> None:
    before = os.listdir("/proc/self/fd")
    descriptor = nameless_file()
    os.ftruncate(descriptor, SharedArrays(BOX, BOX, 4, 2).num_bytes)
    shared = SharedArrays(BOX, BOX, 4, 2, mmap.mmap(descriptor, 0))
    os.close(descriptor)
    assert "rlpg" not in " ".join(os.listdir("/dev/shm"))
    shared.close()
    shared.close()
    assert os.listdir("/proc/self/fd") == before


def test_a_large_message_arrives_in_parts() -> None:
    ours, theirs = (Channel(end.detach()) for end in socket.socketpair())
    body = np.arange(2**20)
    sender = threading.Thread(target=ours.send, args=(2, body))
    sender.start()
    parts = 0
    while not (messages := theirs.read()):
        parts += 1
    sender.join()
    assert parts > 0
    assert np.array_equal(messages[0].body, body)
    ours.close()
    theirs.close()


def test_messages_arrive_as_they_were_sent() -> None:
    ours, theirs = (Channel(end.detach()) for end in socket.socketpair())
    for group, body in [(0, None), (ALL, None), (CALL, ("call", {1: np.ones(2)})), (7, [None])]:
        ours.send(group, body)
        (message,) = theirs.read()
        assert message.group == group
        assert repr(message.body) == repr(body)
    theirs.send(3, Failure(1, "words", "trace"))
    theirs.send(4)
    assert ours.read() == [(3, Failure(1, "words", "trace")), (4, None)]
    theirs.close()
    with pytest.raises(EOFError):
        ours.read()
    ours.close()
    ours.close()

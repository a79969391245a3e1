"""Memory and messages between a pool and its workers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from rlpg.rollouts.shared import (
    SharedArrays,
    nameless_file,
    put_all,
    put_row,
    view,
)

BOX = spaces.Box(-1, 1, (3,), np.float32)
NESTED = spaces.Dict({"a": BOX, "b": spaces.Tuple((spaces.Discrete(4), spaces.MultiBinary(2)))})


def arrays(observations: Any, actions: Any, num_envs: int = 5) -> SharedArrays:
    memory = nameless_file()
    try:
        return SharedArrays(observations, actions, num_envs, 2, memory)
    finally:
        os.close(memory)


def test_nested_values_are_written_and_read_in_their_structure() -> None:
    shared = arrays(NESTED, NESTED)
    value = {"a": np.array([1, 2, 3], np.float32), "b": (np.int64(2), np.array([1, 0], np.int8))}
    put_row(shared.steps[1].obs, 3, value)
    read = view(view(shared.outcomes.obs, 1), slice(3, 4))
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
    shared = arrays(BOX, BOX, 2)
    assert not put_all(shared.actions, actions)
    assert shared.actions.sum() == 0


def test_a_nested_action_with_one_part_that_would_be_cast_is_not_taken() -> None:
    shared = arrays(BOX, spaces.Tuple((BOX, spaces.Discrete(3))), 2)
    good, bad = np.ones((2, 3), np.float32), np.ones(2, np.int32)
    assert not put_all(shared.actions, (good, bad))
    assert shared.actions[1].sum() == 0
    assert put_all(shared.actions, (good, bad.astype(np.int64)))


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Dict({"a": BOX, "b": spaces.Text(3)})])
def test_a_space_with_a_part_of_no_fixed_size_has_no_shared_memory(space: Any) -> None:
    assert arrays(space, space).outcomes.obs is None


def test_the_memory_is_freed_when_it_is_closed_and_has_no_name() -> None:
    before = os.listdir("/proc/self/fd")
    shared = arrays(BOX, BOX)
    assert "rlpg" not in " ".join(os.listdir("/dev/shm"))
    shared.close()
    assert os.listdir("/proc/self/fd") == before

"""Memory and messages between a pool and its workers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from rlpg.errors import EnvironmentSetupError
from rlpg.rollouts.shared import SharedArrays, nameless_file, put, view

BOX = spaces.Box(-1, 1, (3,), np.float32)
NESTED = spaces.Dict({"a": BOX, "b": spaces.Tuple((spaces.Discrete(4), spaces.MultiBinary(2)))})


def arrays(observations: Any, actions: Any, num_envs: int = 5) -> SharedArrays:
    memory = nameless_file()
    try:
        return SharedArrays(observations, actions, num_envs, 2, None, memory)
    finally:
        os.close(memory)


def test_nested_values_are_written_and_read_in_their_structure() -> None:
    shared = arrays(NESTED, NESTED)
    value = {"a": np.array([1, 2, 3], np.float32), "b": (np.int64(2), np.array([1, 0], np.int8))}
    put(shared.obs, (1, 3), value)
    read = view(shared.obs, (1, 3))
    assert read["a"].tolist() == [1, 2, 3]
    assert read["b"][0].tolist() == 2
    assert read["b"][1].tolist() == [1, 0]
    assert shared.actions["a"].sum() == 0, "no array shares the memory of another"


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Tuple([BOX, spaces.Text(3)])])
def test_a_space_with_a_part_of_no_fixed_size_is_refused(space: Any) -> None:
    with pytest.raises(EnvironmentSetupError, match=r"of a fixed size for 'async', got .*Text"):
        arrays(space, BOX)
    with pytest.raises(EnvironmentSetupError, match="of a fixed size"):
        arrays(BOX, space)


def test_the_memory_is_freed_when_it_is_closed_and_has_no_name() -> None:
    before = os.listdir("/proc/self/fd")
    shared = arrays(BOX, BOX)
    assert "rlpg" not in " ".join(os.listdir("/dev/shm"))
    shared.close()
    assert os.listdir("/proc/self/fd") == before

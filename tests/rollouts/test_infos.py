"""Infos that were packed by workers and merged are Gymnasium's, to the type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpg.rollouts.infos import merge_infos, pack_infos

NUMBERS = st.one_of(
    st.floats(-9, 9),
    st.integers(-9, 9),
    st.booleans(),
    st.builds(np.float32, st.integers(-9, 9)),
    st.builds(np.int8, st.integers(-9, 9)),
    st.builds(lambda x: np.full(2, x, np.float64), st.integers(-9, 9)),
    st.builds(lambda x: np.full(2, x, np.int8), st.integers(-9, 9)),
)
# The same key has one kind of value, mostly: where it does not, Gymnasium casts to the first.
TYPICAL = {
    "x": st.builds(np.float64, st.floats(-9, 9)),
    "n": st.integers(-9, 9),
    "mask": st.builds(lambda x: np.full(3, x, np.int8), st.integers(0, 1)),
    "word": st.sampled_from(["a", "b"]),
    "nested": st.fixed_dictionaries({}, optional={"y": st.floats(-9, 9), "z": st.just("z")}),
    "final_obs": st.builds(lambda x: np.full(2, x, np.float32), st.integers(-9, 9)),
    "final_info": st.fixed_dictionaries({}, optional={"x": st.floats(-9, 9)}),
    "late": st.floats(-9, 9),
}
REGULAR = st.fixed_dictionaries({key: TYPICAL[key] for key in ("x", "n", "mask")})
ANY = st.fixed_dictionaries({}, optional=TYPICAL)


def by_gymnasium(infos: list[dict[str, Any]]) -> dict[str, Any]:
    envs: VectorEnv[Any, Any, Any] = VectorEnv()
    envs.num_envs = len(infos)
    merged: dict[str, Any] = {}
    for index, info in enumerate(infos):
        merged = envs._add_info(merged, info, index)
    return merged


def by_workers(infos: list[dict[str, Any]], sizes: list[int]) -> dict[str, Any]:
    parts, first = [], 0
    for size in [*sizes, len(infos)]:
        some = infos[first : first + size]
        if some:
            parts.append((first, pack_infos(some)))
        first += len(some)
    return merge_infos(len(infos), parts)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        for a, b in zip(one.ravel(), other.ravel(), strict=True):
            if one.dtype == object:
                assert_same(a, b)
            else:
                assert a == b
    else:
        assert one == other


@settings(max_examples=200, deadline=None)
@given(
    infos=st.lists(st.one_of(REGULAR, REGULAR, ANY), min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, 4), max_size=3),
)
def test_workers_and_gymnasium_merge_alike(infos: list[dict[str, Any]], sizes: list[int]) -> None:
    assert_same(by_workers(infos, sizes), by_gymnasium(infos))


@settings(max_examples=200, deadline=None)
@given(
    infos=st.lists(
        st.fixed_dictionaries({}, optional={"a": NUMBERS, "b": NUMBERS}), min_size=1, max_size=6
    ),
    sizes=st.lists(st.integers(1, 4), max_size=2),
)
def test_the_first_environment_decides_the_type(
    infos: list[dict[str, Any]], sizes: list[int]
) -> None:
    try:
        expected = by_gymnasium(infos)
    except (ValueError, TypeError):  # two shapes under one key
        with pytest.raises((ValueError, TypeError)):
            by_workers(infos, sizes)
        return
    assert_same(by_workers(infos, sizes), expected)


def test_numbers_travel_in_columns() -> None:
    packed = pack_infos([{"x": float(n), "mask": np.ones(2), "y": -1.0} for n in range(32)])
    assert isinstance(packed, dict)
    assert packed["x"].tolist() == list(range(32))
    assert packed["mask"].shape == (32, 2)


def test_what_is_not_alike_travels_as_it_is() -> None:
    infos = [{"x": 0.0}, {"final_obs": np.zeros(2), "final_info": {"x": 1.0}}, {"x": 2}]
    assert pack_infos(infos) is infos
    assert pack_infos([{"x": 0.0}, {"x": 2}]) == [{"x": 0.0}, {"x": 2}]


def test_no_infos_are_no_message() -> None:
    assert pack_infos([{}, {}]) is None
    assert merge_infos(2, [(0, None)]) == {}

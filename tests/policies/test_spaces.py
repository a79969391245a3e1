"""Spaces as data: exact round trips, and nothing but a SpaceError from damaged descriptions."""

import copy
import json
from collections import OrderedDict

import numpy as np
import pytest
from gymnasium import spaces

from rlpg.errors import SpaceError
from rlpg.policies import space_from_data, space_to_data

SPACES = {
    "box": spaces.Box(-1, 2, (3,)),
    "infinite": spaces.Box(-np.inf, np.inf, (2, 2)),
    "half infinite": spaces.Box(np.array([0, -np.inf]), np.array([np.inf, 0.1]), dtype=np.float64),
    "uneven": spaces.Box(np.array([0.1, -0.3], np.float32), np.array([1 / 3, 7], np.float32)),
    "largest": spaces.Box(-3.4e38, 3.4e38, (1,)),
    "scalar": spaces.Box(0, 1, ()),
    "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "integers": spaces.Box(-(2**63), 2**63 - 2, (2,), np.int64),
    "unsigned": spaces.Box(0, 2**64 - 1, (1,), np.uint64),
    "unbounded integers": spaces.Box(-np.inf, np.inf, (2,), np.int32),
    "bool": spaces.Box(0, 1, (2,), np.bool_),
    "half precision": spaces.Box(-0.1, 0.1, (2,), np.float16),
    "empty": spaces.Box(0, 1, (0,)),
    "discrete": spaces.Discrete(4, start=-7),
    "small discrete": spaces.Discrete(3, dtype=np.int8),
    "multi": spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[0, -1], [5, 0]], dtype=np.int32),
    "bits": spaces.MultiBinary(5),
    "bit matrix": spaces.MultiBinary([2, 3]),
    "nested": spaces.Dict(
        {"b": spaces.Tuple((spaces.Discrete(2), spaces.Dict())), "a": spaces.Box(0, 1, (1,))}
    ),
}


def same(a: spaces.Space, b: spaces.Space) -> bool:
    """Equality that also sees order, dtypes and boundedness, which gymnasium's does not."""
    if isinstance(a, spaces.Dict):
        assert isinstance(b, spaces.Dict)
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, spaces.Tuple):
        assert isinstance(b, spaces.Tuple)
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, spaces.Box):
        assert isinstance(b, spaces.Box)
        names = ("low", "high", "bounded_below", "bounded_above")
        if not all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names):
            return False
    return a == b and a.dtype == b.dtype and a.shape == b.shape


@pytest.mark.parametrize("name", SPACES)
def test_round_trip_through_standard_json(name):
    text = json.dumps(space_to_data(SPACES[name]), allow_nan=False)
    assert same(space_from_data(json.loads(text)), SPACES[name])


def test_the_order_of_a_dict_is_kept():
    space = spaces.Dict(OrderedDict(z=spaces.Discrete(2), a=spaces.Discrete(3)))
    assert list(space_from_data(space_to_data(space))) == ["z", "a"]


def test_unsupported_spaces_are_refused():
    with pytest.raises(SpaceError, match="got Text"):
        space_to_data(spaces.Text(3))


BOX = space_to_data(SPACES["box"])
DAMAGED = {
    "nothing": None,
    "a list": [],
    "no type": {},
    "unknown type": {"type": "Text"},
    "code": {"type": "os.system"},
    "type is no string": {"type": ["Box"]},
    "missing key": {"type": "Box", "shape": [1], "dtype": "float32", "low": 0},
    "extra key": {**BOX, "seed": 1},
    "object dtype": {**BOX, "dtype": "object"},
    "complex dtype": {**BOX, "dtype": "complex64"},
    "dtype is a list": {**BOX, "dtype": ["float32"]},
    "negative shape": {**BOX, "shape": [-1]},
    "shape of floats": {**BOX, "shape": [1.0]},
    "shape of bools": {**BOX, "shape": [True]},
    "enormous shape": {**BOX, "shape": [10**9]},
    "enormous product": {**BOX, "shape": [10**6, 10**6, 10**6]},
    "high rank": {**BOX, "shape": [1] * 40},
    "wrong number of bounds": {**BOX, "low": [0, 0]},
    "bounds crossed": {**BOX, "low": 3, "high": 2},
    "bound is NaN": {**BOX, "low": float("nan")},
    "bound is a bare infinity": {**BOX, "high": float("inf")},
    "bound is a word": {**BOX, "high": "high"},
    "infinity of the wrong sign": {**BOX, "low": "inf"},
    "bound is a list": {**BOX, "low": [[0], [0], [0]]},
    "bound too large for float32": {**BOX, "high": 1e300},
    "integer too large": {**BOX, "dtype": "int8", "low": 0, "high": 1000},
    "float for an integer": {**BOX, "dtype": "int8", "low": 0, "high": 1.5},
    "discrete of none": {"type": "Discrete", "n": 0, "start": 0, "dtype": "int64"},
    "discrete of floats": {"type": "Discrete", "n": 2.0, "start": 0, "dtype": "int64"},
    "discrete too large": {"type": "Discrete", "n": 2**70, "start": 0, "dtype": "int64"},
    "discrete of bool": {"type": "Discrete", "n": True, "start": 0, "dtype": "int64"},
    "multi of zeros": {
        "type": "MultiDiscrete", "shape": [1], "dtype": "int64", "nvec": [0], "start": [0],
    },
    "multi of wrong size": {
        "type": "MultiDiscrete", "shape": [2], "dtype": "int64", "nvec": [2], "start": [0],
    },
    "bits of no size": {"type": "MultiBinary", "shape": [0]},
    "bits of no shape": {"type": "MultiBinary", "shape": "3"},
    "tuple of no list": {"type": "Tuple", "spaces": {}},
    "dict of no pairs": {"type": "Dict", "spaces": [["a"]]},
    "dict of number keys": {"type": "Dict", "spaces": [[1, BOX]]},
    "dict of twins": {"type": "Dict", "spaces": [["a", BOX], ["a", BOX]]},
    "many enormous ones": {"type": "Tuple", "spaces": [{**BOX, "shape": [2**21]}] * 3},
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_descriptions_are_refused(name):
    with pytest.raises(SpaceError, match=r"^space description: expected .*, got: .*"):
        space_from_data(DAMAGED[name])


def test_endless_nesting_is_refused():
    data = copy.deepcopy(BOX)
    for _ in range(40):
        data = {"type": "Tuple", "spaces": [data]}
    with pytest.raises(SpaceError, match="levels"):
        space_from_data(data)

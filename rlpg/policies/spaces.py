"""Spaces as data: which spaces a policy can have, and how they are written to JSON and read back.

Reading trusts nothing: every field is checked, no name is looked up, and sizes are bounded before
memory is taken. Infinite bounds are the strings "inf" and "-inf", so that the JSON is standard.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from rlpg.errors import SpaceError

SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"
LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_DTYPES = ("bool", *_INTEGERS, "float16", "float32", "float64")
_MAX_DEPTH = 16
_MAX_ELEMENTS = 2**22  # numbers per file: 16 frames of 240 x 320 RGB fit, a forged 10^9 does not

Space = spaces.Space[Any]
Path = tuple[str | int, ...]


def children(space: Space) -> list[tuple[str | int, Space]] | None:
    """The named parts of a `Dict` or `Tuple` in gymnasium's order; None for a leaf space."""
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return list(enumerate(space.spaces))
    return None


def leaves(space: Space, role: str) -> list[tuple[Path, Space]]:
    """All leaf spaces with their paths, in gymnasium's order.

    Args:
        role: "observation" or "action", for the error message.

    Raises:
        SpaceError: a part of the space is not supported; the message lists what is.
    """
    found: list[tuple[Path, Space]] = []

    def visit(part: Space, path: Path) -> None:
        parts = children(part)
        if parts is not None:
            for key, child in parts:
                visit(child, (*path, key))
        elif isinstance(part, LEAVES):
            if isinstance(part, spaces.Box) and part.dtype.name not in _DTYPES:
                raise SpaceError(
                    f"{path_name(role, path)}: expected a Box of one of {', '.join(_DTYPES)}, "
                    f"got {part.dtype.name}; give the environment a wrapper that converts it"
                )
            found.append((path, part))
        else:
            raise SpaceError(
                f"{path_name(role, path)}: expected {SUPPORTED}, got {type(part).__name__}; "
                "give the environment a wrapper that converts it"
            )

    visit(space, ())
    return found


def path_name(role: str, path: Path) -> str:
    """`observation['camera'][0]`: how a part of a space is called in messages."""
    return role + "".join(f"[{key!r}]" for key in path)


def space_to_data(space: Space) -> dict[str, Any]:
    """The space as a JSON-able dictionary; `space_from_data` gives an equal space back."""
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": space.dtype.name,
            "low": _bounds_to_data(space.low, space.bounded_below, "-inf"),
            "high": _bounds_to_data(space.high, space.bounded_above, "inf"),
        }
    if isinstance(space, spaces.Discrete):
        data = {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        return {**data, "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "type": "MultiDiscrete",
            "shape": list(space.shape),
            "dtype": space.dtype.name,
            "nvec": space.nvec.ravel().tolist(),
            "start": space.start.ravel().tolist(),
        }
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "shape": list(space.shape)}
    parts = children(space)
    if parts is None:
        raise SpaceError(f"space: expected {SUPPORTED}, got {type(space).__name__}")
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_data(part) for _, part in parts]}
    for key, _ in parts:
        if not isinstance(key, str):
            raise SpaceError(f"space: expected strings as keys of a Dict, got {key!r}")
    return {"type": "Dict", "spaces": [[key, space_to_data(part)] for key, part in parts]}


def space_from_data(data: object) -> Space:
    """The space described by `data`, as `space_to_data` wrote it.

    Raises:
        SpaceError: anything is missing, unknown, of the wrong type, or unreasonably large.
    """
    return _Reader().read(data, 0)


def _bounds_to_data(values: np.ndarray, bounded: np.ndarray, infinity: str) -> Any:
    flat = [
        value if is_bounded else infinity
        for value, is_bounded in zip(values.ravel().tolist(), bounded.ravel().tolist(), strict=True)
    ]
    return flat[0] if flat and all(value == flat[0] for value in flat) else flat


class _Reader:
    """One reading of one description; counts the numbers it has been asked to make room for."""

    def __init__(self) -> None:
        self.num_elements = 0

    def read(self, data: object, depth: int) -> Space:
        if not isinstance(data, dict) or not isinstance(data.get("type"), str):
            raise _malformed('a table with a "type"', data)
        if depth > _MAX_DEPTH:
            raise _malformed(f"at most {_MAX_DEPTH} levels of Dict and Tuple", "more")
        readers = {
            "Box": (self._box, {"shape", "dtype", "low", "high"}),
            "Discrete": (self._discrete, {"n", "start", "dtype"}),
            "MultiDiscrete": (self._multi_discrete, {"shape", "dtype", "nvec", "start"}),
            "MultiBinary": (self._multi_binary, {"shape"}),
        }
        kind = data["type"]
        if kind in ("Dict", "Tuple"):
            _require_keys(data, {"spaces"})
            return self._composite(kind, data["spaces"], depth)
        if kind not in readers:
            raise _malformed(SUPPORTED, kind)
        reader, keys = readers[kind]
        _require_keys(data, keys)
        try:
            return reader(data)
        except (ValueError, TypeError, OverflowError) as error:
            raise _malformed(f"a possible {kind}", error) from error

    def _composite(self, kind: str, parts: object, depth: int) -> Space:
        if not isinstance(parts, list):
            raise _malformed("a list of spaces", parts)
        self._count(len(parts))
        if kind == "Tuple":
            return spaces.Tuple([self.read(part, depth + 1) for part in parts])
        built: dict[str, Space] = {}
        for pair in parts:
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
                raise _malformed("pairs [key, space]", pair)
            if pair[0] in built:
                raise _malformed("distinct keys", pair[0])
            built[pair[0]] = self.read(pair[1], depth + 1)
        return spaces.Dict(list(built.items()))  # a list of pairs keeps the order

    def _box(self, data: dict[str, Any]) -> Space:
        shape, dtype = self._shape(data["shape"]), _dtype(data["dtype"], _DTYPES)
        low, bounded_below = _bounds_from_data(data["low"], shape, dtype, "-inf")
        high, bounded_above = _bounds_from_data(data["high"], shape, dtype, "inf")
        box = spaces.Box(low, high, shape, dtype.type)
        box.bounded_below, box.bounded_above = bounded_below, bounded_above
        return box

    def _discrete(self, data: dict[str, Any]) -> Space:
        dtype = _dtype(data["dtype"], _INTEGERS)
        n, start = _integer(data["n"]), _integer(data["start"])
        return spaces.Discrete(n, start=start, dtype=dtype.type)

    def _multi_discrete(self, data: dict[str, Any]) -> Space:
        shape, dtype = self._shape(data["shape"]), _dtype(data["dtype"], _INTEGERS)
        nvec, start = (
            np.array([_integer(value) for value in _list(data[key])], dtype).reshape(shape)
            for key in ("nvec", "start")
        )
        return spaces.MultiDiscrete(nvec, dtype.type, start=start)

    def _multi_binary(self, data: dict[str, Any]) -> Space:
        shape = self._shape(data["shape"])
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)

    def _shape(self, data: object) -> tuple[int, ...]:
        shape = tuple(_integer(side) for side in _list(data))
        if len(shape) > 32 or any(side < 0 for side in shape):
            raise _malformed("a shape", data)
        self._count(math.prod(shape))
        return shape

    def _count(self, num: int) -> None:
        self.num_elements += num
        if self.num_elements > _MAX_ELEMENTS:
            raise _malformed(f"at most {_MAX_ELEMENTS} numbers", self.num_elements)


def _bounds_from_data(
    data: object, shape: tuple[int, ...], dtype: np.dtype[Any], infinity: str
) -> tuple[np.ndarray, np.ndarray]:
    """The bounds in the space's own dtype, and where they bound; integers cannot hold inf."""
    entries = data if isinstance(data, list) else [data]
    size = math.prod(shape)
    if isinstance(data, list) and len(data) != size:
        raise _malformed(f"{size} bounds", len(data))
    unbounded: float = -math.inf if infinity == "-inf" else math.inf
    if dtype.kind == "b":
        unbounded = infinity == "inf"
    elif dtype.kind != "f":
        unbounded = np.iinfo(dtype).min if infinity == "-inf" else np.iinfo(dtype).max
    number = (int, float) if dtype.kind == "f" else int  # a bool is an int
    for entry in entries:
        if entry != infinity and not (isinstance(entry, number) and math.isfinite(entry)):
            raise _malformed(f'finite bounds of {dtype.name} or "{infinity}"', entry)
    with np.errstate(over="ignore"):
        values = np.array([unbounded if entry == infinity else entry for entry in entries], dtype)
    bounded = np.array([entry != infinity for entry in entries], np.bool_)
    if dtype.kind == "f" and not np.isfinite(values[bounded]).all():
        raise _malformed(f"bounds that fit {dtype.name}", "larger ones")
    if not isinstance(data, list):  # one number stands for all
        return np.full(shape, values[0]), np.full(shape, bounded[0])
    return values.reshape(shape), bounded.reshape(shape)


def _dtype(data: object, allowed: tuple[str, ...]) -> np.dtype[Any]:
    if not isinstance(data, str) or data not in allowed:
        raise _malformed(f"a dtype of {', '.join(allowed)}", data)
    return np.dtype(data)


def _integer(data: object) -> int:
    if not isinstance(data, int) or isinstance(data, bool):
        raise _malformed("an integer", data)
    return data


def _list(data: object) -> list[Any]:
    if not isinstance(data, list):
        raise _malformed("a list", data)
    return data


def _require_keys(data: dict[str, Any], keys: set[str]) -> None:
    if set(data) != keys | {"type"}:
        raise _malformed(f"a {data['type']} with {', '.join(sorted(keys))}", sorted(data))


def _malformed(expected: str, got: object) -> SpaceError:
    text = str(got)
    shown = text if len(text) <= 80 else text[:77] + "..."
    return SpaceError(f"space description: expected {expected}, got {shown}; the file is damaged")

"""Spaces as data: which spaces a policy can have, and how they are written to JSON and read back.

Reading trusts nothing: msgspec checks every field, no name is looked up, and sizes are bounded
before memory is taken. Infinite bounds are "inf" and "-inf", so that the JSON is standard.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
from gymnasium import spaces

from rlpg.errors import SpaceError

SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"
LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

_Integer = Literal["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
_Dtype = Literal["bool", _Integer, "float16", "float32", "float64"]
_DTYPES = get_args(_Dtype)
_Shape = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=32)]
_Bound = bool | int | float | Literal["inf", "-inf"]
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


def leaves(space: Space, role: str, path: Path = ()) -> list[tuple[Path, Space]]:
    """All leaf spaces with their paths, in gymnasium's order.

    Raises:
        SpaceError: a part of the space, by role ("observation" or "action"), is not supported.
    """
    parts, expected, got = children(space), SUPPORTED, type(space).__name__
    if parts is not None:
        return [leaf for key, part in parts for leaf in leaves(part, role, (*path, key))]
    if isinstance(space, spaces.Box) and space.dtype.name not in _DTYPES:
        expected, got = f"a Box of one of {', '.join(_DTYPES)}", space.dtype.name
    elif isinstance(space, LEAVES):
        return [(path, space)]
    raise SpaceError(
        f"{path_name(role, path)}: expected {expected}, got {got}; wrap the environment"
    )


def num_continuous(space: Space) -> int:
    """Dimensions of an action that are continuous, in all of its parts together."""
    boxes = (leaf for _, leaf in leaves(space, "action") if isinstance(leaf, spaces.Box))
    return sum(math.prod(box.shape) for box in boxes if np.issubdtype(box.dtype, np.floating))


def without_text(space: Space) -> Space:
    """The space without the text in its `Dict`s; the same object if it has none."""
    if not text_names(space):
        return space
    parts = children(space) or ()
    kept: list[Any] = [(k, without_text(part)) for k, part in parts if not is_text(space, part)]
    return spaces.Dict(kept) if isinstance(space, spaces.Dict) else spaces.Tuple(p for _, p in kept)


def is_text(space: Space, part: Space) -> bool:
    """Whether this part of a space is left out: an entry of a `Dict` that is text (`Text`, or
    MiniGrid's missions, whose space is of a class of their own)."""
    return isinstance(space, spaces.Dict) and part.dtype is not None and part.dtype.kind == "U"


def text_names(space: Space, path: Path = ()) -> list[str]:
    """What `without_text` leaves out, as `observation['mission']`."""
    found: list[str] = []
    for key, part in children(space) or ():
        inner = (*path, key)
        found += [path_name("observation", inner)] * is_text(space, part) + text_names(part, inner)
    return found


def path_name(role: str, path: Path) -> str:
    """`observation['camera'][0]`: how a part of a space is called in messages."""
    return role + "".join(f"[{key!r}]" for key in path)


def space_to_data(space: Space) -> dict[str, Any]:
    """The space as a JSON-able dictionary; `space_from_data` gives an equal space back."""
    data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(_data(space)))
    return data


def space_from_data(data: object) -> Space:
    """The space described by `data`, as `space_to_data` wrote it.

    Raises:
        SpaceError: anything is missing, unknown, of the wrong type, or unreasonably large.
    """
    checked: _AnyData = as_written(data, _AnyData, "space description")
    try:
        if (size := _size(checked)) > _MAX_ELEMENTS:
            raise ValueError(f"{size} numbers, more than {_MAX_ELEMENTS}")
        return _made(checked)
    except (ValueError, TypeError, OverflowError) as error:
        raise _damaged("space description", error) from error


def as_written(data: object, kind: Any, name: str) -> Any:
    """What a file says, as a `msgspec.Struct` of this kind.

    Raises:
        SpaceError: it has other fields, or values of other types.
    """
    try:
        return msgspec.convert(data, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> SpaceError:
    return SpaceError(f"{name}: expected what rlpg writes, got: {error!s:.99}; the file is damaged")


def _bounds_to_data(values: np.ndarray, bounded: np.ndarray, infinity: str) -> Any:
    flat = [
        value if is_bounded else infinity
        for value, is_bounded in zip(values.ravel().tolist(), bounded.ravel().tolist(), strict=True)
    ]
    return flat[0] if flat and all(value == flat[0] for value in flat) else flat


class _Data(msgspec.Struct, tag_field="type", tag=lambda n: n[1:], forbid_unknown_fields=True):
    """What a file says about a space."""


class _Box(_Data):
    shape: _Shape
    dtype: _Dtype
    low: _Bound | list[_Bound]
    high: _Bound | list[_Bound]


class _Discrete(_Data):
    n: int
    start: int
    dtype: _Integer


class _MultiDiscrete(_Data):
    shape: _Shape
    dtype: _Integer
    nvec: list[int]
    start: list[int]


class _MultiBinary(_Data):
    shape: _Shape


class _Tuple(_Data):
    spaces: list[_AnyData]


class _Dict(_Data):
    spaces: list[tuple[str, _AnyData]]


_AnyData = _Box | _Discrete | _MultiDiscrete | _MultiBinary | _Tuple | _Dict


def _data(space: Space) -> _AnyData:
    dtype: Any = np.dtype(space.dtype).name  # of a leaf
    match space:
        case spaces.Box():
            low = _bounds_to_data(space.low, space.bounded_below, "-inf")
            high = _bounds_to_data(space.high, space.bounded_above, "inf")
            return _Box(space.shape, dtype, low, high)
        case spaces.Discrete():
            return _Discrete(int(space.n), int(space.start), dtype)
        case spaces.MultiDiscrete():
            nvec, start = space.nvec.ravel().tolist(), space.start.ravel().tolist()
            return _MultiDiscrete(space.shape, dtype, nvec, start)
        case spaces.MultiBinary():
            return _MultiBinary(space.shape)
        case spaces.Tuple():
            return _Tuple([_data(part) for part in space.spaces])
        case spaces.Dict():
            for key in space.spaces:
                if not isinstance(key, str):
                    raise SpaceError(f"space: expected strings as keys of a Dict, got {key!r}")
            return _Dict([(key, _data(part)) for key, part in space.spaces.items()])
    raise SpaceError(f"space: expected {SUPPORTED}, got {type(space).__name__}")


def _size(data: _AnyData, depth: int = 0) -> int:
    """The numbers to make room for."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"more than {_MAX_DEPTH} levels of Dict and Tuple")
    if isinstance(data, _Tuple | _Dict):
        parts = data.spaces if isinstance(data, _Tuple) else [part for _, part in data.spaces]
        return sum(1 + _size(part, depth + 1) for part in parts)
    return 1 if isinstance(data, _Discrete) else math.prod(data.shape)


def _made(data: _AnyData) -> Space:
    match data:
        case _Tuple():
            return spaces.Tuple([_made(part) for part in data.spaces])
        case _Dict():
            if len(dict(data.spaces)) < len(data.spaces):
                raise ValueError("a key twice")
            return spaces.Dict([(key, _made(part)) for key, part in data.spaces])  # in this order
        case _MultiBinary():
            return spaces.MultiBinary(data.shape[0] if len(data.shape) == 1 else data.shape)
    dtype = np.dtype(data.dtype)
    match data:
        case _Discrete():
            return spaces.Discrete(data.n, start=data.start, dtype=dtype.type)
        case _MultiDiscrete():
            nvec, start = (np.array(x, dtype).reshape(data.shape) for x in (data.nvec, data.start))
            return spaces.MultiDiscrete(nvec, dtype.type, start=start)
    low, bounded_below = _bounds_from_data(data.low, data.shape, dtype, "-inf")
    high, bounded_above = _bounds_from_data(data.high, data.shape, dtype, "inf")
    box = spaces.Box(low, high, data.shape, dtype.type)
    box.bounded_below, box.bounded_above = bounded_below, bounded_above
    return box


def _bounds_from_data(
    told: _Bound | list[_Bound], shape: tuple[int, ...], dtype: np.dtype[Any], infinity: str
) -> tuple[np.ndarray, np.ndarray]:
    """The bounds in the space's own dtype, and where they bound; integers cannot hold inf."""
    entries = told if isinstance(told, list) else [told]
    if dtype.kind != "f" and any(isinstance(entry, float) for entry in entries):
        raise ValueError(f"a fraction as a bound of {dtype.name}")
    unbounded: float = float(infinity)
    if dtype.kind == "b":
        unbounded = infinity == "inf"
    elif dtype.kind != "f":
        unbounded = np.iinfo(dtype).max if infinity == "inf" else np.iinfo(dtype).min
    bounded = np.array([entry != infinity for entry in entries], np.bool_)
    with np.errstate(over="ignore"):
        values = np.array([unbounded if entry == infinity else entry for entry in entries], dtype)
    if dtype.kind == "f" and not np.isfinite(values[bounded]).all():
        raise ValueError(f'a bound that is neither a number of {dtype.name} nor "{infinity}"')
    if not isinstance(told, list):  # one number stands for all
        return np.full(shape, values[0]), np.full(shape, bounded[0])
    return values.reshape(shape), bounded.reshape(shape)

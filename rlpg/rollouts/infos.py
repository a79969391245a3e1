"""The info dicts of several environments, made small in a worker and merged in the parent.

Gymnasium merges one dict at a time, key by key. For 32 environments of MuJoCo, with four numbers
each, that takes a tenth of the step. Here a worker puts the numbers of its environments side by
side, and the parent copies whole columns. What is not regular (the end of an episode, nested
dicts, strings) goes through Gymnasium's own merging, so the result is always Gymnasium's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv

Info = dict[str, Any]


class PackedInfos(NamedTuple):
    """The infos of n environments."""

    rows: list[int] | None  # [K] of the environments in `columns`; None: all n
    columns: list[tuple[list[str], np.ndarray]]  # k keys of one kind, and their values [k, K, ...]
    rest: list[tuple[int, Info]]  # row and info of every other environment that has one


def pack_infos(infos: Sequence[Info]) -> PackedInfos | None:
    """The infos of n environments, numbers side by side; None where all are empty.

    Args:
        infos: n dicts, those of ended episodes with `final_obs` and `final_info`.
    """
    model = next((info for info in infos if "final_obs" not in info), {})
    keys, kinds = list(model), [_kind(value) for value in model.values()]
    rows: list[int] = []
    rest: list[tuple[int, Info]] = []
    is_regular = None not in kinds
    for row, info in enumerate(infos):
        if is_regular and list(info) == keys and [_kind(v) for v in info.values()] == kinds:
            rows.append(row)
        elif info:
            rest.append((row, info))
    if not keys and not rest:
        return None
    known = dict(zip(keys, kinds, strict=True))
    # The first environment that has a key decides its dtype: where they differ, one by one.
    if any(_kind(v) != known.get(key, _kind(v)) for _, info in rest for key, v in info.items()):
        return PackedInfos([], [], [(row, info) for row, info in enumerate(infos) if info])
    alike: dict[Any, list[str]] = {}
    for key, kind in known.items() if rows else ():
        alike.setdefault(kind, []).append(key)
    columns = [
        (some, np.array([[infos[row][key] for row in rows] for key in some]))
        for some in alike.values()
    ]
    return PackedInfos(None if len(rows) == len(infos) else rows, columns, rest)


def merge_infos(num_envs: int, parts: Sequence[tuple[int, int, PackedInfos | None]]) -> Info:
    """What `VectorEnv.step` returns as infos.

    Args:
        num_envs: N.
        parts: first row, number of rows and packed infos of consecutive environments.

    Returns:
        A dict of arrays `[N, ...]`, each with a mask `_key` `[N]` of who gave the key.
    """
    merged: Info = {}
    for first, count, packed in parts:
        if packed is None:
            continue
        rows: Any = slice(first, first + count)
        if packed.rows is not None:
            rows = first + np.array(packed.rows, dtype=np.int64)
        pairs = (
            (key, v) for keys, block in packed.columns for key, v in zip(keys, block, strict=True)
        )
        for key, values in pairs:
            if key not in merged:
                merged[key] = np.zeros((num_envs, *values.shape[1:]), values.dtype)
                merged[f"_{key}"] = np.zeros(num_envs, dtype=bool)
            merged[key][rows] = values
            merged[f"_{key}"][rows] = True
        if packed.rest:
            adder: VectorEnv[Any, Any, Any] = VectorEnv()
            adder.num_envs = num_envs
            for row, info in packed.rest:
                merged = adder._add_info(merged, info, first + row)
    return merged


def _kind(value: Any) -> Any:
    """What decides the array that Gymnasium makes for such a value; None: nothing simple."""
    kind = type(value)
    if kind is float or kind is int or kind is bool or issubclass(kind, np.number):
        return kind
    if kind is np.ndarray and value.dtype.kind in "biufc":
        return value.dtype, value.shape
    return None

"""The info dicts of several environments, made small in a worker and merged in the parent.

Gymnasium merges one dict at a time, key by key. For 32 environments of MuJoCo, with four numbers
each, that takes a tenth of the step. Here a worker puts the numbers of its environments side by
side, and the parent copies whole columns. What is not regular (the end of an episode, nested
dicts, strings) goes through Gymnasium's own merging, so the result is always Gymnasium's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

Info = dict[str, Any]
PackedInfos = dict[str, np.ndarray] | Sequence[Info] | None


def pack_infos(infos: Sequence[Info]) -> PackedInfos:
    """The infos of n environments: columns `[n, ...]` if all have the same keys, with the same kind
    of number; None where all are empty; else the infos as they are."""
    first = infos[0]
    if not any(infos):
        return None
    kinds = [_kind(value) for value in first.values()]
    # Last observations stay single objects, whatever they are.
    if (
        "final_obs" in first
        or None in kinds
        or any(
            list(info) != list(first) or [_kind(value) for value in info.values()] != kinds
            for info in infos
        )
    ):
        return infos
    return {key: np.array([info[key] for info in infos]) for key in first}


def merge_infos(num_envs: int, parts: Iterable[tuple[int, PackedInfos]]) -> Info:
    """What `VectorEnv.step` returns as infos.

    Args:
        num_envs: N.
        parts: first row and packed infos of consecutive environments.

    Returns:
        A dict of arrays `[N, ...]`, each with a mask `_key` `[N]` of who gave the key.
    """
    adder: VectorEnv[Any, Any, Any] = VectorEnv()
    adder.num_envs = num_envs
    merged: Info = {}
    for start, packed in parts:
        if isinstance(packed, dict):
            for key, values in packed.items():
                if key not in merged:
                    merged[key] = np.zeros((num_envs, *values.shape[1:]), values.dtype)
                    merged[f"_{key}"] = np.zeros(num_envs, dtype=bool)
                rows = merged[key][start : start + len(values)]
                if rows.shape == values.shape:
                    rows[...] = values
                else:  # one by one, as Gymnasium does: a number fills a row
                    for row, value in enumerate(values):
                        rows[row] = value
                merged[f"_{key}"][start : start + len(values)] = True
        else:
            for row, info in enumerate(packed or (), start):
                merged = adder._add_info(merged, info, row)
    return merged


def _kind(value: Any) -> Any:
    """What decides the array that Gymnasium makes for such a value; None: nothing simple."""
    kind = type(value)
    if kind is float or kind is int or kind is bool or issubclass(kind, np.number):
        return kind
    if kind is np.ndarray and value.dtype.kind in "biufc":
        return value.dtype, value.shape
    return None

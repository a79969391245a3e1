"""A policy on disk: `policy.safetensors` (the weights) and `policy.json` (the rest, as data).

`policy.json` names the sha256 of the weights it describes. To replace a policy, the new description
is written first, together with the one that still holds; then the weights; then the new description
alone. Each is one rename, so at every instant the weights in the folder belong to one of the
descriptions beside them, whenever the writer is killed and whenever a reader looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from rlpg.errors import FileError, NumericalFault
from rlpg.runs import files
from rlpg.runs.encoding import (
    LARGEST_JSON,
    Arrays,
    join,
    pack_arrays,
    seal,
    sha256,
    split,
    unpack_arrays,
    unseal,
)

FORMAT: Final = "rlpg policy"
VERSION: Final = 1
DESCRIPTION: Final = "policy.json"
WEIGHTS: Final = "policy.safetensors"
LARGEST_WEIGHTS: Final = 128 << 20  # bytes


def save_policy(
    folder: Path, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Put a policy in the folder, in place of the one there if there is one; never neither.

    Args:
        folder: made if it does not exist; its parent does.
        description: JSON-able values (NaN, inf and tuples are fine), no arrays.
        arrays: the weights and buffers by name.

    Raises:
        NumericalFault: an array is not finite; nothing was written.
        OSError: the disk refused; the old policy is intact.
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NumericalFault(f"{name}: expected finite weights to save, got NaN or infinity")
    plain, stray = split(dict(description))
    if stray:
        raise TypeError(f"description: expected no arrays, got one at {min(stray)}")
    weights = pack_arrays(arrays)
    if len(weights) > LARGEST_WEIGHTS:
        raise ValueError(f"weights: expected at most {LARGEST_WEIGHTS} bytes, got {len(weights)}")
    new = {"description": plain, "weights": {"size": len(weights), "sha256": sha256(weights)}}
    old = _holding(folder)
    if old is None:
        files.discard(folder)  # nothing there, or nothing that could be loaded
        files.publish(folder, {DESCRIPTION: _sealed(new), WEIGHTS: weights})
        return
    files.write(folder / DESCRIPTION, _sealed(new, old))
    files.write(folder / WEIGHTS, weights)
    files.write(folder / DESCRIPTION, _sealed(new))


def load_policy(folder: Path) -> tuple[dict[str, Any], Arrays]:
    """The description and the arrays of the policy in the folder.

    Raises:
        FileError: missing, damaged, of another format version, not finite, or too large.
    """
    record, arrays = _read(folder)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise FileError(f"{folder / WEIGHTS}: {name!r:.80}: expected finite values, got others")
    description = join(record["description"], {}, folder / DESCRIPTION)
    if not isinstance(description, dict):
        raise FileError(f"{folder / DESCRIPTION}: expected a description, got {description!r:.80}")
    return description, arrays


def _holding(folder: Path) -> dict[str, Any] | None:
    """The record of the weights that are in the folder, if they are whole."""
    try:
        return _read(folder)[0]
    except FileError:
        return None


def _sealed(*records: Mapping[str, Any]) -> bytes:
    return seal({"format": FORMAT, "version": VERSION, "policies": list(records)})


def _read(folder: Path) -> tuple[dict[str, Any], Arrays]:
    path = folder / DESCRIPTION
    text = files.read(path, limit=LARGEST_JSON)
    while True:
        records = _records(text, path)
        weights = files.read(folder / WEIGHTS, limit=LARGEST_WEIGHTS)
        fingerprint = {"size": len(weights), "sha256": sha256(weights)}
        for record in records:
            if record["weights"] == fingerprint:
                return record, unpack_arrays(weights, folder / WEIGHTS)
        before, text = text, files.read(path, limit=LARGEST_JSON)
        if text == before:  # else a writer was between its steps: look again
            raise FileError(
                f"{folder / WEIGHTS}: expected the weights that {DESCRIPTION} describes, "
                f"got others (sha256 {fingerprint['sha256']})"
            )


def _records(text: bytearray, path: Path) -> list[dict[str, Any]]:
    content = unseal(text, path)
    if content.get("format") != FORMAT:
        raise FileError(f"{path}: expected format {FORMAT!r}, got {content.get('format')!r:.80}")
    if content.get("version") != VERSION:
        raise FileError(
            f"{path}: expected format version {VERSION}, got {content.get('version')!r:.80}; "
            "load it with the rlpg that wrote it"
        )
    records = content.get("policies")
    if not isinstance(records, list) or not all(
        isinstance(record, dict) and {"description", "weights"} <= record.keys()
        for record in records
    ):
        raise FileError(f"{path}: expected descriptions with their weights, got others")
    return records

"""Checkpoints and policies on disk: one file each, in the format of `trees.py`.

A file appears by one rename, complete. A valid checkpoint is never replaced, and older ones go only
after a new one has appeared; a policy replaces the one before.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from rlpg.errors import FileError, NumericalFault
from rlpg.runs import files
from rlpg.runs.trees import Arrays, pack, unpack

CHECKPOINT: Final = "rlpg checkpoint"
POLICY: Final = "rlpg policy"
POLICY_FILE: Final = "policy.safetensors"
# Bytes of arrays. The largest networks that policies may have need 192 MiB in a checkpoint: weights
# and Adam's two moments, of policy and value network.
LARGEST: Final = {CHECKPOINT: 256 << 20, POLICY: 128 << 20}


@dataclass(frozen=True)
class Checkpoint:
    """What a run continues from."""

    path: Path
    step: int  # environment steps when it was saved
    state: Any  # the tree that was saved; arrays may be changed in place
    versions: dict[str, str]  # what it was saved with


def save_checkpoint(
    folder: Path,
    step: int,
    state: object,
    *,
    versions: Mapping[str, str],
    keep_last: int = 3,
    keep: Collection[int] = (),
) -> Path:
    """Publish a state tree as `folder/step-<step>.safetensors`, then remove superfluous ones.

    A valid checkpoint of the same step is left as it is; a damaged one gives way.

    Args:
        folder: the run's `checkpoints`; made if it does not exist.
        keep_last: how many checkpoints remain, this one included.
        keep: steps whose checkpoints remain besides, such as the best one.

    The older checkpoints are intact after TypeError, ValueError (the state has no place in a file)
    and OSError (the disk refused).
    """
    tree = {"step": step, "versions": dict(versions), "state": state}
    data = pack(CHECKPOINT, LARGEST[CHECKPOINT], tree)
    path = folder / f"step-{step:09d}.safetensors"
    files.make_folder(folder)
    try:
        load_checkpoint(path)
    except FileError:
        files.write(path, data)
    with suppress(OSError):  # the new checkpoint stands; the next one prunes again
        older = [(at, old) for at, old in _steps(folder) if at <= step and old.suffix]
        for at, old in older[: max(len(older) - keep_last, 0)]:
            if at not in keep:
                files.remove_tree(old)
    return path


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint, if any, and one line for each newer one that is not valid."""
    skipped: list[str] = []
    for _, path in reversed(_steps(folder)):
        try:
            return load_checkpoint(path), skipped
        except FileError as error:
            skipped.append(str(error))
    return None, skipped


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file. FileError if it is missing, damaged, or of another version."""
    match unpack(path, CHECKPOINT, LARGEST[CHECKPOINT]):
        case {"step": int(step), "versions": dict(versions), "state": state}:
            if path.name == f"step-{step:09d}.safetensors":
                told = {str(name): str(version) for name, version in versions.items()}
                return Checkpoint(path, step, state, told)
    raise FileError(f"{path}: expected the checkpoint of the step in its name, got another")


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints by step. Folders of format version 1, without a suffix, are among them."""
    pattern = re.compile(r"step-(\d{9,18})(\.safetensors)?")
    named = ((pattern.fullmatch(path.name), path) for path in files.entries(folder))
    return sorted((int(match[1]), path) for match, path in named if match)


def save_policy(
    folder: Path, description: Mapping[str, Any], weights: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Put a policy in the folder, in place of the one there if there is one; never neither. That
    stays intact where NumericalFault names an array that is not finite, or the disk refuses."""
    if name := _infinite(weights):
        raise NumericalFault(f"{name}: expected finite weights to save, got NaN or infinity")
    tree = {"description": dict(description), "weights": dict(weights)}
    data = pack(POLICY, LARGEST[POLICY], tree)
    files.make_folder(folder)
    files.write(folder / POLICY_FILE, data)


def load_policy(path: Path) -> tuple[dict[str, Any], Arrays]:
    """The description and the weights of a policy: of a file, or of the one in a folder;
    FileError where it is missing, damaged, of another format version, not finite, or too large."""
    if files.is_folder(path):
        path = path / POLICY_FILE
    match unpack(path, POLICY, LARGEST[POLICY]):
        case {"description": dict(description), "weights": dict(weights)} if all(
            isinstance(name, str) and isinstance(array, np.ndarray)
            for name, array in weights.items()
        ):
            if name := _infinite(weights):
                raise FileError(f"{path}: {name!r:.80}: expected finite values, got others")
            return description, weights
    raise FileError(f"{path}: expected a policy's description and its weights, got others")


def _infinite(weights: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """The name of an array that is not finite, "" where there is none."""
    return next((name for name, array in weights.items() if not np.isfinite(array).all()), "")

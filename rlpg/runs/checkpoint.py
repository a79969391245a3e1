"""Checkpoints: `step-000100000/` with `state.json`, `arrays.safetensors` and `manifest.json`.

A checkpoint is a new folder that appears at once, complete, and is never replaced by another; older
ones go only after it has appeared. The manifest holds size and sha256 of each file and its own, so
a damaged checkpoint is recognized, skipped, and the next older one taken.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlpg.errors import FileError
from rlpg.runs import files
from rlpg.runs.encoding import (
    LARGEST_JSON,
    from_json,
    join,
    pack_arrays,
    seal,
    sha256,
    split,
    to_json,
    unpack_arrays,
    unseal,
)

FORMAT: Final = "rlpg checkpoint"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
STATE: Final = "state.json"
ARRAYS: Final = "arrays.safetensors"
# Bytes. The largest networks that policies may have need 192 MiB: weights and Adam's two moments,
# of policy and value network. Reading a file of strangers takes its size once, before it is judged.
LARGEST: Final = {STATE: LARGEST_JSON, ARRAYS: 256 << 20}


@dataclass(frozen=True)
class Checkpoint:
    """What a run continues from."""

    path: Path
    step: int  # environment steps when it was saved
    state: Any  # the tree that was saved; arrays may be changed in place
    versions: dict[str, str]  # what it was saved with


def save(
    folder: Path,
    step: int,
    state: object,
    *,
    versions: Mapping[str, str],
    keep_last: int = 3,
    keep: Collection[int] = (),
) -> Path:
    """Publish a state tree as `folder/step-<step>` and prune what it makes superfluous.

    A valid checkpoint of the same step is left as it is; a damaged one gives way.

    Args:
        folder: the run's `checkpoints`; made if it does not exist.
        state: dicts, lists, tuples, plain values and numpy arrays.
        versions: of everything the state depends on.
        keep_last: how many checkpoints remain, this one included.
        keep: steps whose checkpoints remain besides, such as the best one.

    Returns:
        the checkpoint's folder.

    Raises:
        TypeError, ValueError: the state has no place in a file; nothing was written.
        OSError: the disk refused; the older checkpoints are intact.
    """
    plain, arrays = split(state)
    contents = {STATE: to_json(plain), ARRAYS: pack_arrays(arrays)}
    for name, data in contents.items():
        if len(data) > LARGEST[name]:
            raise ValueError(f"{name}: expected at most {LARGEST[name]} bytes, got {len(data)}")
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "versions": dict(versions),
        "files": {
            name: {"size": len(data), "sha256": sha256(data)} for name, data in contents.items()
        },
    }
    path = folder / f"step-{step:09d}"
    files.make_folder(folder)
    if not _is_valid(path):
        files.discard(path)
        files.publish(path, contents | {MANIFEST: seal(manifest)})
    with suppress(OSError):  # the new checkpoint stands; the next one prunes again
        prune(folder, step, keep_last=keep_last, keep=keep)
    return path


def prune(folder: Path, step: int, *, keep_last: int, keep: Collection[int] = ()) -> None:
    """Remove the checkpoints up to `step` but for the last `keep_last` and the steps in `keep`."""
    older = [(at, path) for at, path in _steps(folder) if at <= step]
    for at, path in older[: max(len(older) - keep_last, 0)]:
        if at not in keep:
            files.discard(path)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint, if any, and one line for each newer one that is not valid."""
    skipped: list[str] = []
    for _, path in reversed(_steps(folder)):
        try:
            return load(path), skipped
        except FileError as error:
            skipped.append(str(error))
    return None, skipped


def load(path: Path) -> Checkpoint:
    """The checkpoint in a folder.

    Raises:
        FileError: missing, damaged, or of another format version.
    """
    if not files.is_folder(path):
        raise FileError(f"{path}: expected a checkpoint's folder, got none")
    manifest = unseal(files.read(path / MANIFEST, limit=LARGEST_JSON), path / MANIFEST)
    step, versions, claims = _judged(manifest, path)
    data: dict[str, bytearray] = {}
    for name, limit in LARGEST.items():
        size, fingerprint = claims[name]
        content = files.read(path / name, limit=min(size, limit))
        if len(content) != size or sha256(content) != fingerprint:
            raise FileError(f"{path / name}: expected the file of the manifest, got another")
        data[name] = content
    arrays = unpack_arrays(data[ARRAYS], path / ARRAYS)
    state = join(from_json(data[STATE], path / STATE), arrays, path / STATE)
    return Checkpoint(path, step, state, versions)


def _judged(
    manifest: dict[str, Any], path: Path
) -> tuple[int, dict[str, str], dict[str, tuple[int, str]]]:
    """Step, versions, and size and sha256 of each file, once all of them make sense."""
    where = path / MANIFEST
    if manifest.get("format") != FORMAT:
        raise FileError(f"{where}: expected format {FORMAT!r}, got {manifest.get('format')!r:.80}")
    if manifest.get("version") != VERSION:
        raise FileError(
            f"{where}: expected format version {VERSION}, got {manifest.get('version')!r:.80}; "
            "continue it with the rlpg that wrote it"
        )
    match manifest:
        case {
            "step": int(step),
            "versions": dict(versions),
            "files": {
                "state.json": {"size": int(state_size), "sha256": str(state_hash)},
                "arrays.safetensors": {"size": int(arrays_size), "sha256": str(arrays_hash)},
            },
        } if path.name == f"step-{step:09d}":
            claims = {STATE: (state_size, state_hash), ARRAYS: (arrays_size, arrays_hash)}
            return step, {str(k): str(v) for k, v in versions.items()}, claims
    raise FileError(f"{where}: expected the manifest of {path.name}, got another")


def _is_valid(path: Path) -> bool:
    try:
        load(path)
    except FileError:
        return False
    return True


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints' folders by step; links and other names are none."""
    named = ((re.fullmatch(r"step-(\d{9,18})", path.name), path) for path in files.entries(folder))
    return sorted((int(match[1]), path) for match, path in named if match and files.is_folder(path))

"""An environment that a file describes: what of the description may be used.

A file may be a stranger's. It may choose an environment and plain arguments for its constructor,
but no module to import, no path and no window, and nothing that takes more memory or time than the
file's size suggests. What the user says himself is never judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlpg.errors import FileError, UsageError
from rlpg.runs import files
from rlpg.runs.tables import EnvironmentSettings

RECORDED = ("id", "kwargs", "wrappers", "max_episode_steps", "episode_cap")
MOST = 4096  # entries, and characters of all texts: a square of a FrozenLake map takes 15 kB
LARGEST_INTEGER = 10_000  # it may be the length of an array's side
PICTURES = ("rgb_array", "rgb_array_list", "ansi", "ansi_list", "depth_array")  # open no window

_PLAIN = re.compile(r"[\w ,;+*()=-]*")  # not: the parts of paths, addresses and home folders


def checked_record(record: object) -> dict[str, Any]:
    """The entries `RECORDED` of the description in a policy file; what it does not say, by default.
    UsageError names an entry that is not of the right type."""
    if not isinstance(record, Mapping):
        raise UsageError(f"environment: expected a table, got {record!r:.60}")
    told = EnvironmentSettings(**{name: record[name] for name in RECORDED if name in record})
    if not told.id:
        raise UsageError(f"environment.id: expected an id, got {record.get('id')!r:.60}")
    return {name: getattr(told, name) for name in RECORDED}


def usable_kwargs(
    recorded: Mapping[str, Any], source: object, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments for the constructor: those of the file, and the user's instead of and besides.
    FileError names an argument of the file that may not be used, and how the user gives it."""
    own = dict(given or {})
    rest = {name: value for name, value in recorded.items() if name not in own}
    if refused := _refused(rest):
        name, expected = refused
        raise FileError(
            f"{source}: environment.kwargs.{name}: expected {expected} (it comes from a file), "
            f"got {rest[name]!r:.60}; give it yourself: --environment.kwargs.{name} VALUE, or "
            f'env_kwargs={{"{name}": ...}}'
        )
    return rest | own


def usable_wrappers(recorded: Mapping[str, Any], source: object) -> dict[str, dict[str, Any]]:
    """The wrappers of a file with their arguments, which are judged like the environment's;
    FileError for one that may not come from a file."""
    flat = {f"{name}.{key}": v for name, kwargs in recorded.items() for key, v in kwargs.items()}
    if refused := _refused(flat):
        name, expected = refused
        raise FileError(
            f"{source}: environment.wrappers.{name:.80}: expected {expected} (it comes from a "
            f"file), got {flat[name]!r:.60}; make the environment yourself, and pass it: env="
        )
    return {name: dict(kwargs) for name, kwargs in recorded.items()}


def _refused(arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first argument that a file may not choose, and what is expected instead."""
    num_entries = num_characters = 0
    for name, value in arguments.items():
        parts = value if isinstance(value, list) else [value]
        num_entries += len(parts)
        num_characters += sum(len(part) for part in parts if isinstance(part, str))
        if max(num_entries, num_characters) > MOST:
            return name, f"at most {MOST} characters and {MOST} entries"
        if name == "render_mode" and value not in PICTURES:
            return name, f"one of {', '.join(PICTURES)}, because others open a window"
        for part in parts:
            if isinstance(part, str) and (
                not _PLAIN.fullmatch(part) or files.exists(Path(part or " "))
            ):
                return name, "a word that is no path"
            if isinstance(part, int) and abs(part) > LARGEST_INTEGER:
                return name, f"integers of at most {LARGEST_INTEGER}"
            if isinstance(part, float) and not math.isfinite(part):
                return name, "finite numbers"
    return None

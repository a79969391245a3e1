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

MOST_CHARACTERS = 4096  # of all texts: each square of a FrozenLake map takes 15 kB of memory
MOST_ENTRIES = 4096
LARGEST_INTEGER = 10_000  # it may be the length of an array's side
PICTURES = ("rgb_array", "rgb_array_list", "ansi", "ansi_list", "depth_array")  # open no window

_PLAIN = re.compile(r"[\w ,;+*()=-]*")  # not: the parts of paths, addresses and home folders


def checked_record(record: object) -> dict[str, Any]:
    """The description in a policy file, if its entries are of the right types.

    Raises:
        UsageError: names the entry.
    """
    if not isinstance(record, Mapping):
        raise UsageError(f"environment: expected a table, got {record!r:.60}")
    expected = {"kwargs": "a table", "wrappers": "a table",
                "max_episode_steps": "a number of steps",
                "episode_cap": "a number of steps"}  # fmt: skip
    if not isinstance(record.get("id"), str):
        raise UsageError(f"environment.id: expected an id, got {record.get('id')!r:.60}")
    for name, words in expected.items():
        value = record.get(name)
        is_right = isinstance(value, Mapping) if words == "a table" else _is_count(value)
        if value is not None and not is_right:
            raise UsageError(f"environment.{name}: expected {words}, got {value!r:.60}")
    return dict(record)


def usable_kwargs(
    recorded: Mapping[str, Any], source: object, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments for the constructor: those of the file, and the user's instead of and besides.

    Args:
        recorded: from the file.
        source: the file, for messages.
        given: by the user, who may give any.

    Raises:
        FileError: an argument of the file that may not be used, and how the user gives it.
    """
    own = dict(given or {})
    rest = {name: value for name, value in recorded.items() if name not in own}
    budget = _Budget()
    for name, value in rest.items():
        try:
            budget.spend(value)
            if name == "render_mode" and value not in (None, *PICTURES):
                raise _Refused(f"one of {', '.join(PICTURES)}, because others open a window")
        except _Refused as refused:
            raise FileError(
                f"{source}: environment.kwargs.{name}: expected {refused} (it comes from a file), "
                f"got {value!r:.60}; give it yourself: --environment.kwargs.{name} VALUE, or "
                f'env_kwargs={{"{name}": ...}}'
            ) from None
    return rest | own


def usable_wrappers(recorded: Mapping[str, Any], source: object) -> dict[str, dict[str, Any]]:
    """The wrappers of a file with their arguments, which are judged like the environment's.

    Raises:
        FileError: an argument that may not come from a file.
    """
    budget = _Budget()
    for name, kwargs in recorded.items():
        try:
            if not isinstance(kwargs, Mapping):
                raise _Refused("a table")
            budget.spend(kwargs)
        except _Refused as refused:
            raise FileError(
                f"{source}: environment.wrappers.{name:.40}: expected {refused} (it comes from a "
                f"file), got {kwargs!r:.60}; make the environment yourself, and pass it: env="
            ) from None
    return {name: dict(kwargs) for name, kwargs in recorded.items()}


class _Refused(ValueError):
    """What was expected instead."""


class _Budget:
    """What the arguments of one file may amount to."""

    def __init__(self) -> None:
        self._characters = self._entries = 0

    def spend(self, value: object) -> None:
        """_Refused where the value may not be used, or is one too many."""
        self._entries += 1
        if isinstance(value, str):
            self._characters += len(value)
            if self._characters <= MOST_CHARACTERS and (
                not _PLAIN.fullmatch(value) or files.exists(Path(value or " "))
            ):
                raise _Refused("a word that is no path")
        elif isinstance(value, Mapping | list | tuple) and len(value) <= MOST_ENTRIES:
            parts = [*value, *value.values()] if isinstance(value, Mapping) else value
            for part in parts:
                self.spend(part)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise _Refused("finite numbers")
        elif isinstance(value, int):
            if abs(value) > LARGEST_INTEGER:
                raise _Refused(f"integers of at most {LARGEST_INTEGER}")
        elif value is not None:
            raise _Refused("numbers, words, and lists and tables of them")
        if self._characters > MOST_CHARACTERS or self._entries > MOST_ENTRIES:
            raise _Refused(f"at most {MOST_CHARACTERS} characters and {MOST_ENTRIES} entries")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1

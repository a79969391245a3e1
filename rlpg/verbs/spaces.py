"""Where a sweep looks: the settings it tries and their ranges, per agent or from a TOML file.

A file has a table for each setting, by its dotted key:

    [learner.learning_rate]
    low = 1e-5
    high = 1e-2
    log = true

    [policy.hidden]
    choices = ["64,64", "256,256"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlpg.errors import FileError, UsageError
from rlpg.learners.settings import moot
from rlpg.runs import files, toml
from rlpg.runs.recipe import LARGEST_FILE, Recipe, kind_of, override
from rlpg.settings import validated


@dataclass(frozen=True)
class Range:
    """What one setting may be: from `low` to `high`, or one of the choices."""

    low: float | int = 0
    high: float | int = 0
    log: bool = False
    choices: tuple[bool | int | float | str, ...] = ()

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that all must be possible."""
        return self.choices or (self.low, self.high)

    def as_data(self) -> dict[str, Any]:
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log}


Space = Mapping[str, Range]
_SHIPPED = Path(__file__).with_suffix(".toml")


def space_of(recipe: Recipe, path: Path | None) -> Space:
    """The space in a file, or the one shipped for the agent, less what does nothing there;
    UsageError where none is shipped, FileError where the file is not a space."""
    if path is None:
        shipped = toml.tables(_SHIPPED.read_text(encoding="utf-8"))
        if (agent := recipe.agent) not in shipped:
            raise UsageError(f"space: expected a file for the agent {agent}, got none; write one")
        tables, idle = shipped["every"] | shipped[agent], _idle(recipe)
        return {key: _range(_SHIPPED, key, said) for key, said in tables.items() if key not in idle}
    text = files.read(path, limit=LARGEST_FILE).decode(errors="replace")
    try:
        space = {key: _range(path, key, said) for key, said in _settings(toml.tables(text))}
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: {error}") from None
    if not space:
        raise FileError(f"{path}: expected a table for each setting to try, got none")
    return space


def _idle(recipe: Recipe) -> set[str]:
    """Settings that nothing reads, or that are refused, beside the others of the recipe."""
    baseline, policy = recipe.learner.baseline, recipe.policy
    idle = {f"learner.{name}" for name in moot(baseline, shared_torso=policy.shared_torso)}
    is_unread = {
        "learner.value_learning_rate": baseline != "value" and ":" not in baseline,
        "policy.hidden": policy.network is not None,
        "rollout.num_steps": recipe.rollout.episodes_per_env is not None,
    }
    return idle | {key for key, unread in is_unread.items() if unread}


def _settings(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """What a file says of each setting, by its dotted key: tables in which there are none."""
    for name, said in table.items():
        if isinstance(said, dict) and any(isinstance(entry, dict) for entry in said.values()):
            yield from _settings(said, f"{above}{name}.")
        else:
            yield f"{above}{name}", said


def _range(path: Path, key: str, said: Any) -> Range:
    match said:
        case {"choices": [_, *_] as choices} if len(said) == 1:
            if all(isinstance(choice, bool | int | float | str) for choice in choices):
                return Range(choices=tuple(choices))
        case {"low": int() | float() as low, "high": int() | float() as high}:
            log = said.get("log", False)
            is_known = said.keys() <= {"low", "high", "log"} and isinstance(log, bool)
            if is_known and low < high and (low > 0 or not log):
                return Range(low, high, log)
    raise FileError(
        f'{path}: {key}: expected choices (a list as text: "64,64"), or low < high (and log = true '
        f"where low > 0), got {said!r:.80}"
    )


def checked_space(space: Space, recipe: Recipe) -> Space:
    """The space with ends of the settings' kind: from 0 to 1 are fractions where those are floats;
    RecipeError where a setting does not exist or cannot have a value of its range."""
    checked = {}
    for key, kind in space.items():
        for value in kind.ends:
            override(recipe, {key: value})
        if not kind.choices:
            low, high = (validated(key, end, kind_of(recipe, key)) for end in kind.ends)
            kind = replace(kind, low=low, high=high)
        checked[key] = kind
    return checked

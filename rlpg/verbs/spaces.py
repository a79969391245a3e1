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

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlpg.errors import FileError, UsageError
from rlpg.runs import files, toml
from rlpg.runs.recipe import LARGEST_FILE, Recipe, override


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
        """As JSON has it."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log}


Space = Mapping[str, Range]

_COMMON: Space = MappingProxyType({
    "learner.gamma": Range(choices=(0.95, 0.98, 0.99, 0.995, 0.999)),
    "learner.gae_lambda": Range(choices=(0.8, 0.9, 0.95, 0.98, 1.0)),
    "policy.hidden": Range(choices=("64,64", "128,128", "256,256")),
})  # fmt: skip
_RATE: Space = MappingProxyType({
    "learner.learning_rate": Range(1e-5, 1e-2, log=True),
    "learner.entropy_coef": Range(1e-8, 0.1, log=True),
    "learner.value_learning_rate": Range(1e-4, 1e-2, log=True),
})  # fmt: skip
_NATURAL: Space = MappingProxyType({
    **_COMMON,
    "rollout.num_steps": Range(choices=(64, 128, 256, 512)),
    "learner.max_kl": Range(1e-3, 0.1, log=True),
    "learner.damping": Range(1e-3, 0.5, log=True),
    "learner.value_learning_rate": Range(1e-4, 1e-2, log=True),
})  # fmt: skip
SPACES: Mapping[str, Space] = MappingProxyType({
    "reinforce": MappingProxyType({
        **_COMMON, **_RATE, "rollout.num_steps": Range(choices=(16, 32, 64, 128)),
    }),
    "a2c": MappingProxyType({
        **_COMMON, **_RATE, "rollout.num_steps": Range(choices=(5, 8, 16, 32)),
    }),
    "ppo": MappingProxyType({
        **_COMMON, **_RATE,
        "rollout.num_steps": Range(choices=(64, 128, 256, 512)),
        "learner.num_epochs": Range(3, 20),
        "learner.clip_range": Range(choices=(0.1, 0.2, 0.3)),
    }),
    "npg": _NATURAL,
    "trpo": _NATURAL,
    "pathwise": MappingProxyType({
        **_COMMON, **_RATE, "rollout.num_steps": Range(choices=(8, 16, 32, 64)),
    }),
})  # fmt: skip


def space_of(agent: str, path: Path | None) -> Space:
    """The space in a file, or the one shipped for the agent.

    Raises:
        UsageError: there is none for a learner of one's own.
        FileError: the file is not a space.
    """
    if path is None:
        if agent not in SPACES:
            raise UsageError(f"space: expected a file for the agent {agent}, got none; write one")
        return SPACES[agent]
    text = files.read(path, limit=LARGEST_FILE).decode(errors="replace")
    try:
        tables = toml.tables(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: {error}") from None
    space = {
        f"{table}.{name}" if table else name: _range(path, f"{table}.{name}".strip("."), said)
        for table, entries in _by_table(tables).items()
        for name, said in entries.items()
    }
    if not space:
        raise FileError(f"{path}: expected a table for each setting to try, got none")
    return space


def _by_table(tables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by table; those of the recipe itself (`total_steps`) are in the table ""."""
    found: dict[str, dict[str, Any]] = {"": {}}
    for name, value in tables.items():
        is_setting = isinstance(value, dict) and not any(
            isinstance(entry, dict) for entry in value.values()
        )
        if is_setting or not isinstance(value, dict):
            found[""][name] = value
        else:
            found[name] = value
    return found


def _range(path: Path, key: str, said: Any) -> Range:
    match said:
        case {"choices": [_, *_] as choices, **rest} if not rest:
            return Range(choices=tuple(choices))
        case {"low": int() | float() as low, "high": int() | float() as high, **rest} if not set(
            rest
        ) - {"log"}:
            log = rest.get("log", False)
            if low < high and isinstance(log, bool) and (low > 0 or not log):
                return Range(low, high, log)
    raise FileError(
        f"{path}: {key}: expected choices, or low < high (and log = true where low > 0), got "
        f"{said!r:.80}"
    )


def check_space(space: Space, recipe: Recipe) -> None:
    """Raise RecipeError where a setting does not exist or cannot have a value of its range."""
    for key, kind in space.items():
        for value in kind.ends:
            override(recipe, {key: value})

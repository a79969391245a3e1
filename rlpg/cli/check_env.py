"""`rlpg check-env ENV`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from rlpg.cli.verb import EnvironmentId, File, Number, WithEnvironment, check_folder
from rlpg.settings import Natural

STDOUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class CheckEnv(WithEnvironment):
    """Find what is wrong with an environment before training on it.

    It plays the environment with random actions, looks at every call, plays episodes again, and
    asks Gymnasium's checker. The exit code is 1 if there is a fault; a warning is no fault.
    --environment.kwargs.NAME VALUE sets a keyword argument of the environment.

    examples:
      rlpg check-env CartPole-v1
      rlpg check-env my_package.tasks:Crane-v0 --environment.kwargs.load 3 --json crane.json
    """

    positional: ClassVar[str] = "env"
    bare: ClassVar[Mapping[str, str]] = MappingProxyType({"json": str(STDOUT)})

    env: EnvironmentId = ""
    """a Gymnasium id, or module:Id-v0"""
    steps: Number = 1000
    """play at least so many steps"""
    episodes: Number = 3
    """and at least so many episodes"""
    seed: Natural = 0
    """seed of the episodes and the actions"""
    json: File | None = None
    """write the report to this file, too; without FILE print it as JSON"""

    def check(self) -> None:
        if self.json != STDOUT:
            check_folder("--json", self.json)

    def run(self) -> int:
        """Print the report."""
        from rlpg.checks.checking import check_env
        from rlpg.runs.files import write
        from rlpg.runs.trees import to_json

        found = check_env(
            self.env,
            env_kwargs=self.kwargs,
            steps=self.steps,
            episodes=self.episodes,
            seed=self.seed,
        )
        content = to_json(found.as_dict())
        if self.json == STDOUT:
            print(content.decode(), end="")
        else:
            if self.json is not None:  # before printing: a closed pipe costs the words only
                write(self.json, content)
            print(found)
        return 0 if found.passed else 1

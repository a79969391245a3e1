"""What a verb is: a table of options that checks itself, and `run`."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, Self

from msgspec import Meta

from rlpg.cli.words import Given
from rlpg.errors import UsageError, install
from rlpg.settings import Natural, Settings

Environment = Annotated[str, Meta(title="ENV")]
File = Annotated[Path, Meta(title="FILE")]
Folder = Annotated[Path, Meta(title="DIR")]
RunFolder = Annotated[Path, Meta(title="RUN")]
Number = Annotated[int, Meta(ge=1, le=1_000_000)]  # of steps or episodes that are kept in memory
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Verb(Settings):
    """A verb of the command line: its fields are its options, its docstrings their help.

    A field called `settings` is a recipe, whose settings are options, too. `positional` is the
    field that is given without its name, `bare` says what options mean that are given without a
    value, `free` names tables that take any key, and `hidden` fields that are no options.
    """

    positional: ClassVar[str] = ""
    bare: ClassVar[Mapping[str, str]] = NOTHING
    aliases: ClassVar[Mapping[str, str]] = NOTHING
    free: ClassVar[tuple[str, ...]] = ()
    hidden: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def key(cls, name: str) -> str:
        """As it is typed: `--num-envs`."""
        return f"--{name.replace('_', '-')}"

    @classmethod
    def prepared(cls, given: Given) -> Self:
        """The verb before its options are set: the defaults, which may depend on what was given."""
        return cls()

    @abstractmethod
    def run(self) -> int:
        """Do it; the exit code."""


@dataclass(frozen=True, kw_only=True)
class Playing(Verb):
    """What the verbs have in common that play episodes with something saved."""

    episodes: Number = 100
    """number of episodes"""
    seed: Natural = 0
    """seed of the episodes"""
    env: Environment | None = None
    """another environment than the one of the run (none: the run's own)"""
    json: File | None = None
    """write what was found here, too"""

    def check(self) -> None:
        check_folder("--json", self.json)


def check_folder(option: str, path: Path | None) -> None:
    """UsageError where a file could not be written in the end."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UsageError(f"{option}: expected a file in a folder that exists, got {path}")


def check_extra(option: str, module: str, extra: str) -> None:
    """UsageError where an option needs a package that is not installed."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # ValueError: marked as missing in sys.modules
        found = None
    if found is None:
        raise UsageError(f"{option}: expected {module} to be installed; run {install(extra)}")

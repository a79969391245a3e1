"""What a verb is, a table of options that checks itself and `run`; and what several have."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from msgspec import Meta

from rlpg.errors import UsageError, install
from rlpg.runs.recipe import Recipe, override
from rlpg.settings import Arguments, Natural, Settings

if TYPE_CHECKING:
    from rlpg.cli.parsing import Given

EnvironmentId = Annotated[str, Meta(title="ENV")]
File = Annotated[Path, Meta(title="FILE")]
Folder = Annotated[Path, Meta(title="DIR")]
RunFolder = Annotated[Path, Meta(title="RUN")]
Number = Annotated[int, Meta(ge=1, le=1_000_000)]  # of steps or episodes that are kept in memory
STDOUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class Verb(Settings):
    """A verb of the command line: its fields are its options, its docstrings their help.

    A field called `settings` is a recipe, whose settings are options, too. `positional` is the
    field that is given without its name, `bare` says what options mean that are given without a
    value, `aliases` what other names mean, `free` names tables of a recipe that take any key,
    `hidden` fields that are no options, and `work` the module that `run` uses, if it is heavy.
    """

    positional: ClassVar[str] = ""
    bare: ClassVar[Mapping[str, str]] = {}
    aliases: ClassVar[Mapping[str, str]] = {}
    free: ClassVar[tuple[str, ...]] = ()
    hidden: ClassVar[tuple[str, ...]] = ()
    work: ClassVar[str] = ""

    @classmethod
    def key(cls, name: str) -> str:
        """As it is typed: `--num-envs`."""
        alias = next((alias for alias, of in cls.aliases.items() if of == name), name)
        return f"--{alias.replace('_', '-')}"

    @classmethod
    def prepared(cls, given: Given) -> Self:
        """The verb before its options are set: the defaults, which may depend on what was given."""
        return cls()

    def told(self, settings: Mapping[str, str]) -> dict[str, Any]:
        """The fields that settings of a recipe decide, which were typed."""
        return {}

    @abstractmethod
    def run(self) -> int:
        """Do it; the exit code."""


@dataclass(frozen=True, kw_only=True)
class Importing(Verb):
    """A verb that reads files which may name code of the user's."""

    aliases: ClassVar[Mapping[str, str]] = {"import": "import_modules"}

    import_modules: bool = False
    """import the modules of your own that the files name"""


@dataclass(frozen=True, kw_only=True)
class WithEnvironment(Verb):
    """A verb that takes keyword arguments of the environment: --environment.kwargs.NAME VALUE."""

    free: ClassVar[tuple[str, ...]] = ("environment.kwargs",)
    hidden: ClassVar[tuple[str, ...]] = ("kwargs",)

    kwargs: Arguments = field(default_factory=dict)

    def told(self, settings: Mapping[str, str]) -> dict[str, Any]:
        return {"kwargs": override(Recipe(), settings).environment.kwargs}


@dataclass(frozen=True, kw_only=True)
class Telling(Verb):
    """A verb that finds something, and tells it in words or as JSON."""

    bare: ClassVar[Mapping[str, str]] = {"json": str(STDOUT)}

    json: File | None = None
    """write what was found to this file, too; without FILE print it as JSON"""

    def check(self) -> None:
        if self.json != STDOUT:
            check_file("--json", self.json)

    def tell(self, found: Mapping[str, Any], words: object) -> None:
        """Print the words, and write what was found where --json has a file; else print that."""
        from rlpg.runs.files import write
        from rlpg.runs.trees import to_json

        if self.json == STDOUT:
            print(to_json(dict(found)).decode(), end="")
            return
        try:  # before printing: a closed pipe costs the words only, and a full disk the file only
            if self.json is not None:
                write(Path(realpath(self.json)), to_json(dict(found)))  # a link stays one
        finally:
            print(words)


@dataclass(frozen=True, kw_only=True)
class Playing(Importing, WithEnvironment, Telling):
    """What the verbs have in common that play episodes with something saved."""

    episodes: Number = 100
    """number of episodes"""
    seed: Natural = 0
    """seed of the episodes"""
    env: EnvironmentId | None = None
    """another environment than the one of the run (none: the run's own)"""


def check_file(option: str, path: Path | None, *needed: str) -> None:
    """UsageError where a file could not be written in the end, or what draws or films it is not
    installed (`needed`: a package, and the extra that has it)."""
    if path is None:
        return
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{option}: expected a file in a folder that exists, got {path}")
    if path.is_dir():
        raise UsageError(f"{option}: expected a file, got the folder {path}")
    if path.exists() and not path.is_file():  # root would put a file in the place of /dev/null
        raise UsageError(f"{option}: expected a regular file or a new one, got {path}")
    if needed:
        check_extra(option, *needed)


def check_extra(option: str, module: str, extra: str) -> None:
    """UsageError where an option needs a package that is not installed."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # ValueError: marked as missing in sys.modules
        found = None
    if found is None:
        raise UsageError(f"{option}: expected {module} to be installed; run {install(extra)}")

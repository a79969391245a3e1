"""The recipe's settings as command-line options: one each, with its default and its help."""

from __future__ import annotations

import argparse
import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from rlpg.errors import UsageError
from rlpg.learners import settings as learners
from rlpg.runs import recipe as recipes
from rlpg.runs import tables
from rlpg.runs.recipe import Recipe

FUTURE = "from __future__ import annotations"
KWARGS = "environment.kwargs."
SHORT = {"environment.backend": ("--backend",)}
CONSTRUCTOR = f"--{KWARGS}NAME VALUE sets an argument of its constructor"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """An option per setting, grouped as the recipe's tables are."""
    groups = {"": parser.add_argument_group("settings")}
    for key, kind, default, text in settings():
        section = key.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        name = f"--{key.replace('_', '-')}"
        bare: dict[str, Any] = {"nargs": "?", "const": "true"} if kind is bool else {}
        groups[section].add_argument(
            name,
            *SHORT.get(key, ()),
            **bare,
            dest=key,
            default=argparse.SUPPRESS,
            metavar=placeholder(kind),
            help=f"{text} ({default})",
        )
    groups["environment"].description = CONSTRUCTOR


def chosen_settings(arguments: argparse.Namespace, rest: list[str]) -> dict[str, object]:
    """What was set on the command line, as text by dotted key.

    Raises:
        UsageError: a word that no option took, with the closest setting.
    """
    known = {key for key, *_ in settings()}
    chosen = {key: value for key, value in vars(arguments).items() if key in known}
    return chosen | environment_arguments(rest)


def add_environment_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how the constructor's arguments are given, for a verb without settings."""
    parser.add_argument_group("environment", CONSTRUCTOR)


def chosen_arguments(rest: list[str], verb: str) -> dict[str, Any]:
    """The constructor's arguments, for a verb without settings.

    Raises:
        UsageError: another word.
    """
    changes = environment_arguments(rest, verb)
    return dict(recipes.override(Recipe(), changes).environment.kwargs)


def settings() -> Iterator[tuple[str, Any, str, str]]:
    """Dotted key, annotation, default and help of every setting that an option sets."""
    texts = docstrings()
    for entry in fields(Recipe):
        value = getattr(Recipe(), entry.name)
        table, prefix = (value, f"{entry.name}.") if is_dataclass(value) else (Recipe(), "")
        kinds = get_type_hints(type(table), include_extras=True)
        for inner in fields(table) if prefix else (entry,):
            key = f"{prefix}{inner.name}"
            if key != "environment.id" and not key.endswith("kwargs"):
                owners = [owner.__name__ for owner in inspect.getmro(type(table))]
                text = next(texts[o, inner.name] for o in owners if (o, inner.name) in texts)
                yield key, kinds[inner.name], shown(getattr(table, inner.name)), text


def placeholder(kind: Any) -> str:
    """What stands for the value in the help: its choices, or `N` for an integer ..."""
    while get_origin(kind) in (Annotated, Union, UnionType):
        if getattr(get_args(kind)[-1], "extra", None):
            return "|".join(get_args(kind)[-1].extra["names"]) or "module:Name"
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {bool: "true|false", int: "N", float: "X"}.get(kind, "N,N")


def shown(value: object) -> str:
    """A default as it would be typed."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def docstrings() -> dict[tuple[str, str], str]:
    """The text under each setting in the recipe's source: `(class, field) -> help`."""
    found: dict[tuple[str, str], str] = {}
    sources = "".join(map(inspect.getsource, (learners, tables, recipes)))
    for node in ast.parse(sources.replace(FUTURE, "")).body:
        if isinstance(node, ast.ClassDef):
            for before, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
                    name, text = ast.unparse(before.target), ast.literal_eval(after.value)
                    found[node.name, name] = " ".join(text.split()).replace("%", "%%")
    return found


def environment_arguments(rest: list[str], verb: str = "train") -> dict[str, object]:
    """`--environment.kwargs.NAME VALUE` pairs; anything else is not an option that exists."""
    changes: dict[str, object] = {}
    words = iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        key = name.removeprefix("--")
        if not name.startswith("--"):
            raise UsageError(f"{word}: expected an option, got a word; see `rlpg {verb} --help`")
        if not key.startswith(KWARGS):
            if verb != "train":  # it has no settings that could be close
                raise UsageError(f"{name}: no such option; see `rlpg {verb} --help`")
            recipes.override(Recipe(), {key.replace("-", "_"): ""})  # says what is close
        changes[key] = value if equals else next(words, "")
    return changes


def hyphenated(word: str) -> str:
    """`--total_steps=1_000` as `--total-steps=1_000`; keyword arguments keep their spelling."""
    if not word.startswith("--") or word.startswith(f"--{KWARGS}"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value

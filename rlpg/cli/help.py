"""The help of a verb and the completion of a shell, which tyro makes from the types."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import itertools
import operator
import os
import shutil
import textwrap
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import msgspec
import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from rlpg.cli.verb import Verb
from rlpg.learners.settings import AGENTS
from rlpg.runs.recipe import Recipe
from rlpg.settings import Arguments, Settings, as_text, kinds

FEWEST_COLUMNS = 20


def print_help(name: str, verb: Verb) -> None:
    """What the verb does and which options it has; their defaults are the values in `verb`."""
    first, *rest = (inspect.getdoc(verb) or "").splitlines()
    # tyro joins lines, unless they are indented.
    description = "\n".join([first, *(f"  {line}" if line else "" for line in rest)])
    # tyro draws boxes, and never ends where their border leaves no column for a letter.
    if shutil.get_terminal_size().columns < FEWEST_COLUMNS:
        os.environ["COLUMNS"] = str(FEWEST_COLUMNS)  # the help is the last that is printed
    with suppress(SystemExit):
        tyro.cli(
            type(verb),
            prog=f"rlpg {name}",
            description=description,
            default=verb,
            args=["--help"],
            registry=_registry(),
        )


def completion(verbs: Mapping[str, type[Verb]], shell: str) -> str:
    """The script that makes a shell complete verbs, and options of whatever agent."""
    tables = tuple({agent.settings: None for agent in AGENTS.values()})
    learner = make_dataclass("Every", (), bases=tables, frozen=True, namespace={"unused": ()})
    told = {"settings": Recipe.of("any:Agent", learner)}
    kinds_of_verbs: list[Any] = []
    for name, kind in verbs.items():
        default = kind(**(told if "settings" in kinds(kind) else {}))
        shown_as = tyro.conf.subcommand(name, default=default, prefix_name=False)
        kinds_of_verbs.append(Annotated[kind, shown_as])
    any_verb: Any = functools.reduce(operator.or_, kinds_of_verbs)
    text, arguments = io.StringIO(), ["--tyro-write-completion", shell, "-"]
    with suppress(SystemExit), redirect_stdout(text):
        tyro.cli(any_verb, prog="rlpg", args=arguments, registry=_registry())
    return text.getvalue()


def _registry() -> ConstructorRegistry:
    """How tyro is to show our types. It reads no words: its errors are boxes of several lines."""
    made = ConstructorRegistry()
    made.struct_rule(_table)
    return made


def _table(info: StructTypeInfo) -> StructConstructorSpec | None:
    """A table of settings: its fields as they are typed."""
    if not (isinstance(info.type, type) and issubclass(info.type, Settings)):
        return None
    made = info.default if isinstance(info.default, Settings) else info.type()
    texts, hidden = docstrings(type(made)), getattr(made, "hidden", ())
    fields = [
        _field(made, name, kind, texts.get(name, ""))
        for name, kind in kinds(type(made)).items()
        if name in made.names() and name not in hidden and made.key(name) != "environment.id"
        if kind != Arguments
    ]
    return StructConstructorSpec(instantiate=lambda **_: made, fields=tuple(fields))


def _field(table: Settings, name: str, kind: Any, text: str) -> StructFieldSpec:
    value = getattr(table, name)
    if isinstance(value, Settings):
        # The settings of a recipe are options without a prefix.
        prefix = tyro.conf.arg(name="" if isinstance(value, Recipe) else name)
        table_type: Any = Annotated[type(value), prefix]
        return StructFieldSpec(name, table_type, value, _about(value))
    if kind is bool and isinstance(table, Verb):
        option = tyro.conf.arg(name=table.key(name).removeprefix("--"))
        marks = [option, tyro.conf.FlagCreatePairsOff]
    else:
        marks = [_spec(kind), tyro.conf.FlagConversionOff]
    if name == getattr(table, "positional", None):
        marks += [tyro.conf.arg(metavar=metavar(kind)), tyro.conf.Positional]
        value = tyro.MISSING_NONPROP
    marked: Any = Annotated[(kind, *marks)]
    return StructFieldSpec(name, marked, value, text)


def _spec(kind: Any) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar(kind),
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: True,
        str_from_instance=lambda value: [as_text(value)],
        choices=choices(kind),
    )


def _about(table: Settings) -> str:
    """The docstring of a table, and how the entries of its free tables are set."""
    text, texts = (inspect.getdoc(table) or "").partition("\n")[0], docstrings(type(table))
    free = [name for name, kind in kinds(type(table)).items() if kind == Arguments]
    return " ".join([text, *(f"--{table.key(n)}.NAME VALUE: {texts[n]}." for n in free)])


def docstrings(table: type) -> dict[str, str]:
    """The text under each field, in its own class or one above it."""
    found: dict[str, str] = {}
    for owner in reversed(inspect.getmro(table)[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(owner))
        except OSError:  # a learner of one's own that was typed into an interpreter
            continue
        body = cast(ast.ClassDef, ast.parse(source).body[0]).body
        for entry, text in itertools.pairwise(body):
            if isinstance(entry, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[ast.unparse(entry.target)] = " ".join(ast.literal_eval(text.value).split())
    return found


def metavar(kind: Any) -> str:
    """What stands for the value in the help: its choices, or `N` for an integer ..."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        meta = next((m for m in args[1:] if isinstance(m, msgspec.Meta)), msgspec.Meta())
        if meta.title:
            return meta.title
        if meta.description:
            return meta.description.removeprefix("one of ").replace(" or ", "|").replace(", ", "|")
        return metavar(args[0])
    if origin in (Union, UnionType):
        return "|".join(map(metavar, args))
    if origin is Literal:
        return "|".join(args)
    if origin is tuple:
        return ",".join([metavar(args[0])] * 2)
    if origin is dict:
        return "TABLE"
    return {bool: "true|false", int: "N", float: "X", NoneType: "none", Path: "FILE"}.get(
        kind, "TEXT"
    )


def choices(kind: Any) -> tuple[str, ...] | None:
    """The values that a kind has, where they can be counted; a shell offers them."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is bool:
        return "true", "false"
    if kind is NoneType:
        return ("none",)
    if origin is Literal:
        return args
    if origin is Annotated:
        metas = [m.extra for m in args if isinstance(m, msgspec.Meta) and m.extra]
        names: tuple[str, ...] = metas[0]["names"] if metas else ()
        return names or None
    options = [choices(option) for option in args] if origin in (Union, UnionType) else [None]
    known = [option for option in options if option is not None]
    return tuple(itertools.chain(*known)) if len(known) == len(options) else None

"""From words to a verb, by tyro: the verb itself, its help, and the completion of a shell.

tyro's errors are boxes of several lines, and its public interface cannot change them. So what tyro
would refuse is refused here before, in one line that says what was expected.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import replace
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
from rlpg.cli.words import read
from rlpg.errors import UsageError
from rlpg.runs.recipe import Recipe, kind_of
from rlpg.settings import Arguments, Settings, expected, from_text, kinds


def parse(name: str, kind: type[Verb], words: Sequence[str]) -> Verb | None:
    """The verb that the words ask for; None where they ask for its help, which is then printed.

    Raises:
        UsageError: words that are not understood.
    """
    given = read(name, kind, words)
    verb = kind.prepared(given)
    arguments = ["--help"] if given.is_help else [
        _argument(name, verb, key, text) for key, text in given.options.items()
        if key not in SET_BEFORE
    ]  # fmt: skip
    if not given.is_help and kind.positional and kind.positional not in given.options:
        what = metavar(kinds(kind)[kind.positional])
        raise UsageError(f"{name}: expected {what}, got nothing; see `rlpg {name} --help`")
    try:
        made = tyro.cli(
            kind, prog=f"rlpg {name}", default=verb, args=arguments, registry=registry()
        )
    except SystemExit as end:
        if end.code:
            raise
        return None
    return made


# Settings that are no options of their own; `prepared` sets them.
SET_BEFORE = ("environment.id", "environment.kwargs", "policy.kwargs", "policy.network_kwargs")


def _argument(name: str, verb: Verb, key: str, text: str | None) -> str:
    """An option as one word that tyro understands."""
    own = {key: kind for key, kind in kinds(type(verb)).items() if key not in verb.hidden}
    recipe: Recipe | None = getattr(verb, "settings", None)
    if key not in own or key == "settings":
        close = difflib.get_close_matches(key, [k for k in own if k != "settings"], cutoff=0.75)
        if close or recipe is None:
            hint = f"did you mean {' or '.join(map(verb.key, close))}?" if close else (
                f"see `rlpg {name} --help`"
            )  # fmt: skip
            raise UsageError(f"{verb.key(key)}: no such option; {hint}")
    if key == verb.positional:
        return str(text)
    if own.get(key) is bool:
        return verb.key(key)
    kind = own[key] if key in own else kind_of(cast(Recipe, recipe), key)
    if text is None and kind is not bool:
        raise UsageError(f"{verb.key(key)}: expected {expected(kind)}, got nothing")
    return f"{verb.key(key)}={'true' if text is None else text}"


def registry() -> ConstructorRegistry:
    """How tyro is to treat our types."""
    made = ConstructorRegistry()
    made.struct_rule(_table)
    return made


def _table(info: StructTypeInfo) -> StructConstructorSpec | None:
    """A table of settings: its fields as they are typed, and how it is made."""
    if not (isinstance(info.type, type) and issubclass(info.type, Settings)):
        return None
    made = info.default if isinstance(info.default, Settings) else info.type()
    texts = docstrings(type(made))
    fields = []
    for name, kind in kinds(type(made)).items():
        is_option = name in made.names() and name not in getattr(made, "hidden", ())
        if is_option and made.key(name) not in SET_BEFORE:
            fields.append(_field(made, name, kind, texts.get(name, "")))
    return StructConstructorSpec(
        instantiate=lambda **values: replace(made, **values), fields=tuple(fields)
    )


def _field(table: Settings, name: str, kind: Any, text: str) -> StructFieldSpec:
    value = getattr(table, name)
    if isinstance(value, Settings):
        flat = Annotated[type(value), tyro.conf.arg(name="")] if isinstance(value, Recipe) else None
        return StructFieldSpec(name, flat or type(value), value, _about(value))
    if name == getattr(table, "positional", None):
        word = tyro.conf.arg(metavar=metavar(kind))
        kind = Annotated[kind, _spec(kind), tyro.conf.Positional, word]
        return StructFieldSpec(name, kind, tyro.MISSING_NONPROP, text)
    if kind is bool and isinstance(table, Verb):
        return StructFieldSpec(name, tyro.conf.FlagCreatePairsOff[bool], value, text)
    return StructFieldSpec(name, Annotated[kind, _spec(kind)], value, text)


def _spec(kind: Any) -> PrimitiveConstructorSpec[Any]:
    """How one value is read and shown. The table judges it, so that its errors are ours."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar(kind),
        instance_from_str=lambda words: from_text(words[0], kind),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [shown(value)],
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
        body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]).body
        for entry, text in zip(body, body[1:], strict=False):
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
    return {bool: "true|false", int: "N", float: "X", NoneType: "none", Path: "FILE"}.get(
        kind, "TEXT"
    )


def shown(value: object) -> str:
    """A value as it would be typed."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

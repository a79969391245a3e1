"""From words to a verb, by tyro: the verb itself, its help, and the completion of a shell.

tyro's errors are boxes of several lines, and its public interface cannot change them. So what tyro
would refuse is refused here before, in one line that says what was expected.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import io
import itertools
import operator
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
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

from rlpg.cli.verb import SET_BEFORE, Verb
from rlpg.cli.words import read
from rlpg.errors import RecipeError, UsageError
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
            kind,
            prog=f"rlpg {name}",
            description=_description(kind),
            default=verb,
            args=arguments,
            registry=registry(),
        )
    except SystemExit as end:
        if end.code:
            raise
        return None
    return made


def _argument(name: str, verb: Verb, key: str, text: str | None) -> str:
    """An option as one word that tyro understands."""
    if key == verb.positional:
        return str(text)
    kind = _kind(name, verb, key)
    if kind is bool and key in kinds(type(verb)):
        if text is not None:
            raise UsageError(f"{verb.key(key)}: expected no value, got {text}")
        return verb.key(key)
    if text is None and kind is not bool:
        raise UsageError(f"{verb.key(key)}: expected {expected(kind)}, got nothing")
    return f"{verb.key(key)}={'true' if text is None else text}"


def _kind(name: str, verb: Verb, key: str) -> Any:
    """The annotation behind an option, or UsageError with the closest ones."""
    own = {k: kind for k, kind in kinds(type(verb)).items() if k not in ("settings", *verb.hidden)}
    if key in own:
        return own[key]
    recipe: Recipe | None = getattr(verb, "settings", None)
    close = difflib.get_close_matches(key, own, cutoff=0.75)
    try:
        if recipe is not None:
            return kind_of(recipe, key)
    except RecipeError:  # names close settings, which is worth more where there is no close option
        if not close:
            raise
    hint = f"did you mean {' or '.join(map(verb.key, close))}?" if close else ""
    raise UsageError(f"{verb.key(key)}: no such option; {hint or f'see `rlpg {name} --help`'}")


def _description(verb: type[Verb]) -> str:
    """The docstring; tyro joins lines, unless they are indented."""
    first, *rest = (inspect.getdoc(verb) or "").splitlines()
    return "\n".join([first, *(f"  {line}" if line else "" for line in rest)])


def registry(*, has_choices: bool = False) -> ConstructorRegistry:
    """How tyro is to treat our types.

    Args:
        has_choices: say which values there are. A shell offers them; tyro would refuse others.
    """
    made = ConstructorRegistry()
    made.struct_rule(functools.partial(_table, has_choices))
    return made


def _table(has_choices: bool, info: StructTypeInfo) -> StructConstructorSpec | None:
    """A table of settings: its fields as they are typed, and how it is made."""
    if not (isinstance(info.type, type) and issubclass(info.type, Settings)):
        return None
    made = info.default if isinstance(info.default, Settings) else info.type()
    texts = functools.cache(functools.partial(docstrings, type(made)))  # read for a help only
    fields = []
    for name, kind in kinds(type(made)).items():
        is_option = name in made.names() and name not in getattr(made, "hidden", ())
        if is_option and made.key(name) not in SET_BEFORE:
            text = functools.partial(lambda name: texts().get(name, ""), name)
            field = _field(made, name, kind, text, has_choices)
            fields.append(field)
    return StructConstructorSpec(
        instantiate=lambda **values: replace(cast(Any, made), **values), fields=tuple(fields)
    )


def _field(
    table: Settings, name: str, kind: Any, text: Callable[[], str], has_choices: bool
) -> StructFieldSpec:
    value = getattr(table, name)
    if isinstance(value, Settings):
        # The settings of a recipe are options without a prefix.
        prefix = tyro.conf.arg(name="" if isinstance(value, Recipe) else name)
        kind = Annotated[type(value), prefix]
        return StructFieldSpec(name, kind, value, functools.partial(_about, value))
    if name == getattr(table, "positional", None):
        word = tyro.conf.arg(metavar=metavar(kind))
        kind = Annotated[kind, _spec(kind, has_choices), tyro.conf.Positional, word]
        return StructFieldSpec(name, kind, tyro.MISSING_NONPROP, text)
    if kind is bool and isinstance(table, Verb):
        option = tyro.conf.arg(name=table.key(name).removeprefix("--"))
        kind = Annotated[bool, option, tyro.conf.FlagCreatePairsOff]
        return StructFieldSpec(name, kind, value, text)
    kind = Annotated[kind, _spec(kind, has_choices), tyro.conf.FlagConversionOff]
    return StructFieldSpec(name, kind, value, text)


def _spec(kind: Any, has_choices: bool) -> PrimitiveConstructorSpec[Any]:
    """How one value is read and shown. The table judges it, so that its errors are ours."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar(kind),
        instance_from_str=lambda words: from_text(words[0], kind),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [shown(value)],
        choices=choices(kind) if has_choices else None,
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
    """The values that a kind has, where they can be counted."""
    if kind is bool:
        return "true", "false"
    if kind is NoneType:
        return ("none",)
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) is Annotated:
        names: tuple[str, ...] = next((m.extra["names"] for m in get_args(kind) if _names(m)), ())
        return names or None
    options = [choices(option) for option in get_args(kind)]
    known = [option for option in options if option is not None]
    is_known = get_origin(kind) in (Union, UnionType) and len(known) == len(options)
    return tuple(itertools.chain(*known)) if is_known else None


def _names(meta: Any) -> Any:
    return isinstance(meta, msgspec.Meta) and meta.extra and meta.extra.get("names")


def shown(value: object) -> str:
    """A value as it would be typed."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def completion(verbs: Mapping[str, type[Verb]], shell: str) -> str:
    """The script that makes a shell complete verbs and options."""
    kinds_of_verbs: list[Any] = [
        Annotated[kind, tyro.conf.subcommand(name, default=kind(), prefix_name=False)]
        for name, kind in verbs.items()
    ]
    any_verb: Any = functools.reduce(operator.or_, kinds_of_verbs)
    text, arguments = io.StringIO(), ["--tyro-write-completion", shell, "-"]
    with suppress(SystemExit), redirect_stdout(text):
        tyro.cli(any_verb, prog="rlpg", args=arguments, registry=registry(has_choices=True))
    return text.getvalue()

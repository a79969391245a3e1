"""From the words after a verb to the verb itself; what is not understood is one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin

from rlpg.cli.verb import Verb
from rlpg.errors import RecipeError, UsageError
from rlpg.learners.settings import AGENTS
from rlpg.runs.recipe import Recipe, kind_of
from rlpg.settings import BETWEEN_PATHS, Arguments, Settings, expected, from_text, kinds

HELP = ("-h", "--help")
_NUMBERS = re.compile(r"-?[\d._,]+(e-?\d+)?")  # words that belong to a list begun before them


@dataclass(frozen=True)
class Given:
    """What was typed. It is not yet known whether it means something."""

    options: dict[str, str | None]  # by key: `rollout.num_envs`; None: without a value
    entries: Mapping[str, str]  # of tables whose keys are free: `environment.kwargs.size`
    is_help: bool = False


def parse(name: str, kind: type[Verb], words: Sequence[str]) -> Verb | None:
    """The verb that the words ask for; None where they ask for its help, which is then printed;
    UsageError where they are not understood."""
    given = read(name, kind, words)
    verb = kind.prepared(given)
    if given.is_help:
        from rlpg.cli.help import print_help

        print_help(name, verb)
        return None
    if kind.positional and kind.positional not in given.options:
        from rlpg.cli.help import metavar

        what = metavar(kinds(kind)[kind.positional])
        raise UsageError(f"{name}: expected {what}, got nothing; see `rlpg {name} --help`")
    own: dict[str, Any] = {}
    settings = dict(given.entries)
    for key, text in given.options.items():
        option, is_own = _kind(name, verb, key), key in kinds(kind)
        if option is bool:
            if is_own and text is not None:
                raise UsageError(f"{kind.key(key)}: expected no value, got {text}")
            text = text or "true"
        elif text is None:
            raise UsageError(f"{kind.key(key)}: expected {expected(option)}, got nothing")
        if is_own:
            own[key] = from_text(text, option)
        else:
            settings[key] = text
    return replace(verb, **own, **(verb.told(settings) if settings else {}))


def _kind(name: str, verb: Verb, key: str) -> Any:
    """The annotation behind an option, or UsageError with the closest ones."""
    own = {k: kind for k, kind in kinds(type(verb)).items() if k not in ("settings", *verb.hidden)}
    own |= dict.fromkeys(verb.free, Arguments)
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


def read(name: str, verb: type[Verb], words: Sequence[str]) -> Given:
    """Sort the words after a verb; UsageError for one that is no option and belongs to none."""
    shapes = known_kinds(verb)
    options: dict[str, str | None] = {}
    entries: dict[str, str] = {}
    loose: list[tuple[str, str]] = []  # words that are no options, and the option before each
    rest, key = [word for word in words if word not in HELP], ""
    while rest:
        word = rest.pop(0)
        word = "--verbose" if word == "-v" else word
        if not word.startswith("--") or word == "--":
            loose.append((word, key))
            continue
        typed, equals, value = word.removeprefix("--").partition("=")
        table = ".".join(typed.replace("-", "_").split(".")[:2])
        if table in verb.free and typed.count(".") > 1:  # the entry's name keeps its spelling
            entries[table + typed[len(table) :]] = value if equals else _next(rest) or ""
            continue
        key = typed.replace("-", "_")
        key = verb.aliases.get(key, key)
        options[key] = value if equals else _value(rest, key, verb, shapes.get(key))
    if loose and verb.positional and is_list(shapes[verb.positional]):
        options[verb.positional] = "".join(f"{word}{BETWEEN_PATHS}" for word, _ in loose)
        loose = []
    elif loose and verb.positional:
        options[verb.positional] = loose.pop(0)[0]
    for word, before in loose:
        _refuse(name, verb, word, before, options.get(before))
    return Given(options, entries, is_help=any(word in HELP for word in words))


def known_kinds(verb: type[Verb]) -> dict[str, Any]:
    """The kind of each option that a verb may have, whatever its agent, by key."""
    found = dict(kinds(verb))
    if "settings" in found:
        tables = [kind for kind in kinds(Recipe).values() if isinstance(kind, type)]
        tables += [agent.settings for agent in AGENTS.values()]
        for table in (table for table in tables if issubclass(table, Settings)):
            found |= {table.key(name): kind for name, kind in kinds(table).items()}
        found |= kinds(Recipe)
    return found


def is_list(kind: Any) -> bool:
    """Whether the kind is a tuple, or may be one."""
    return get_origin(kind) is tuple or any(map(is_list, get_args(kind)))


def _value(rest: list[str], key: str, verb: type[Verb], kind: Any) -> str | None:
    """The words that are the value of an option; they are taken from `rest`."""
    if kind is bool:
        is_flag = key in kinds(verb)  # takes no value; a setting may take one
        is_said = not is_flag and bool(rest) and rest[0].lower() in ("true", "false")
        return rest.pop(0) if is_said else None
    values = [value] if (value := _next(rest)) is not None else []
    while values and is_list(kind) and rest and all(map(_NUMBERS.fullmatch, (values[-1], rest[0]))):
        values.append(rest.pop(0))
    return ",".join(values) if values else verb.bare.get(key)


def _next(rest: list[str]) -> str | None:
    """The next word, which is taken, if it is no option."""
    return rest.pop(0) if rest and not rest[0].startswith("--") else None


def _refuse(name: str, verb: type[Verb], word: str, before: str, value: str | None) -> None:
    """UsageError about a word that belongs to nothing."""
    if before and value and _NUMBERS.fullmatch(word):
        several = f"; {verb.key(before)}s takes several" if f"{before}s" in kinds(verb) else ""
        raise UsageError(f"{verb.key(before)}: expected one value, got {value} {word}{several}")
    what = "no such option" if word.startswith("-") else "expected an option, got a word"
    raise UsageError(f"{word}: {what}; see `rlpg {name} --help`")

"""Settings that check themselves: frozen dataclasses, validated by msgspec, one line per error.

A table of settings is a frozen dataclass under `Settings`; its annotations say what each setting
takes, and a docstring under each says what it means. `from_text` reads what was typed for one.
A bool is no integer, an integer may stand for a float, NaN and infinity fit nothing, and `"none"`
stands for None (TOML has no null).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import numbers
import sys
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, inspect

from rlpg.errors import RecipeError

LARGEST = sys.float_info.max
BETWEEN_PATHS = "\0"  # in a list of paths, whose names may have commas

Count = Annotated[int, Meta(ge=1)]
Size = Annotated[int, Meta(ge=1, le=65_536)]  # of what memory is taken for
Natural = Annotated[int, Meta(ge=0)]
Finite = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Meta(ge=0, le=LARGEST)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Layers = Annotated[tuple[Size, ...], Meta(max_length=64)]
Scalar = bool | int | float | str
Arguments = dict[str, list[Scalar] | bool | int | float | str]  # of a constructor, as data

# The user's own code: module:Name, with (...) where the name alone does not make it again.
REFERENCE = r"[^\W\d][\w.]*:[^\W\d][\w.]*(?:\(\.\.\.\))?"


def one_of(*names: str, or_own: str = "") -> Meta:
    """A string that is one of the names or, where `or_own` says what, a reference `module:Name`."""
    pattern = "|".join([*names, REFERENCE] if or_own else names)
    own = f"{' or ' if names else ''}module:{or_own}" if or_own else ""
    words = ("one of " if len(names) > 1 else "") + ", ".join(names) + own
    return Meta(pattern=rf"\A(?:{pattern})\Z", description=words, extra={"names": names})


Schedule = Annotated[str, one_of("constant", "linear", "cooldown", or_own="function")]
SCHEDULE = "_schedule"  # after the name of a setting: the setting that is its schedule


def scheduled(schedule: str | Callable[[float], float], progress: float) -> float:
    """The factor that a schedule gives when the share `progress` of the run is done.

    `linear` falls from 1 to 0; `cooldown` stays 1 for half of the run, and falls to 0 then.
    """
    if callable(schedule):
        return float(schedule(progress))
    left = 1.0 - progress
    return {"linear": left, "cooldown": min(2.0 * left, 1.0)}.get(schedule, 1.0)


class Settings:
    """A table that checks itself when it is made: every field fits its annotation, or RecipeError.

    Subclasses are frozen dataclasses. `table` is the table's name in a recipe; `unused` names
    inherited settings that have no meaning here: they are neither shown nor saved nor accepted.
    """

    table: ClassVar[str] = ""
    unused: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        for name, kind in kinds(type(self)).items():
            value = getattr(self, name)
            object.__setattr__(self, name, validated(self.key(name), value, kind))
        self.check()

    def check(self) -> None:
        """Raise RecipeError where settings that fit one by one contradict each other."""

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """The table with these settings, the others at their defaults.

        Raises:
            RecipeError: there is no setting of a name, or a value does not fit.
        """
        for name in values:
            if name not in cls.names():
                close = difflib.get_close_matches(name, cls.names(), n=2)
                hint = f"did you mean {' or '.join(close)}?" if close else ", ".join(cls.names())
                raise RecipeError(f"{name}: no such setting of {cls.__name__}; {hint}")
        return cls(**values)

    @classmethod
    def key(cls, name: str) -> str:
        """The dotted key of a setting: `learner.gamma`."""
        return f"{cls.table}.{name}" if cls.table else name

    @classmethod
    def names(cls) -> list[str]:
        """The settings that mean something here, in the order of their definition."""
        return [name for name in kinds(cls) if name not in cls.unused]

    def values(self) -> dict[str, Any]:
        """Every setting by its name."""
        return {name: getattr(self, name) for name in self.names()}


def _kinds(settings: Any) -> Mapping[str, Any]:
    hints = get_type_hints(settings, include_extras=True)
    names = (entry.name for entry in dataclasses.fields(settings))
    return MappingProxyType({name: hints[name] for name in names})


kinds: Callable[[type], Mapping[str, Any]] = functools.cache(_kinds)
"""The type of each field of a table."""


def validated(key: str, value: object, kind: Any) -> Any:
    """The value as `kind` wants it (an int made a float, a list a tuple).

    Raises:
        RecipeError: `rollout.num_envs: expected an integer >= 1, got 0`.
    """
    if isinstance(kind, type) and issubclass(kind, Settings):
        if isinstance(value, kind):
            return value
        one = f"settings one by one, as {key}.{kind.names()[0]}"
        what = one if isinstance(value, Mapping) else "a table"
        raise RecipeError(f"{key}: expected {what}, got {value!r:.80}")
    try:
        if isinstance(value, str) and value == "none" and NoneType in get_args(kind):
            return None
        return msgspec.convert(_plain(value), kind)
    except (msgspec.ValidationError, ValueError, RecursionError):
        raise RecipeError(f"{key}: expected {expected(kind, value)}, got {value!r:.80}") from None


def _plain(value: object) -> object:
    """Numbers of other libraries (NumPy's, which are no Python integers) as Python's own.

    ValueError for NaN, and for a lone surrogate, which no file can hold.
    """
    match value:
        case str():
            value.encode()
        case bool():
            return value
        case numbers.Integral():
            return int(value)
        case numbers.Real() if value == value:
            return float(value)
        case numbers.Real():
            raise ValueError
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case dict():
            _plain(list(value))  # keys stay as they are, but for what no file can hold
            return {key: _plain(entry) for key, entry in value.items()}
    return value


def expected(kind: Any, value: object = None) -> str:
    """What `kind` takes, in words: `an integer >= 1 or none`.

    Args:
        value: what does not fit; an upper bound that nobody meets is named if this exceeds it.
    """
    return _words(inspect.type_info(kind), value)


def _words(info: inspect.Type, value: object) -> str:
    match info:
        case inspect.Metadata(extra_json_schema={"description": str(words)}):
            return words
        case inspect.Metadata():
            return _words(info.type, value)
        case inspect.UnionType():
            return " or ".join(_words(option, value) for option in info.types)
        case inspect.LiteralType():
            names = ", ".join(map(str, info.values))
            return f"one of {names}" if len(info.values) > 1 else names
        case inspect.IntType():
            if info.le is not None and type(value) is int and value > info.le:
                return f"an integer <= {info.le}"
            return "an integer" + (f" >= {info.ge}" if info.ge is not None else "")
        case inspect.FloatType():
            return "a number" + _interval(info)
        case inspect.VarTupleType() | inspect.ListType():
            entries = value if isinstance(value, list | tuple) else []
            if info.max_length and len(entries) > info.max_length:
                return f"at most {info.max_length} entries"
            largest = max((entry for entry in entries if type(entry) is int), default=None)
            return f"a list, each entry {_words(info.item_type, largest)}"
        case inspect.DictType(value_type=inspect.DictType()):
            return "a table of tables"
        case inspect.DictType():
            return f"a table, each value {_words(info.value_type, value)}"
    return {
        inspect.BoolType: "true or false", inspect.StrType: "a string", inspect.NoneType: "none",
        inspect.CustomType: "a path", inspect.AnyType: "anything",
    }.get(type(info), type(info).__name__.removesuffix("Type").lower())  # fmt: skip  # of one's own


def _interval(info: inspect.FloatType) -> str:
    low = info.ge if info.gt is None else info.gt
    high = info.le if info.lt is None else info.lt
    if high is not None and high < LARGEST:
        brackets = "[" if info.gt is None else "(", "]" if info.lt is None else ")"
        return f" in {brackets[0]}{low:g}, {high:g}{brackets[1]}"
    if low is None:
        return ""
    if low == -LARGEST:
        return " that is finite"
    return f" {'>=' if info.gt is None else '>'} {low:g}"


def from_text(text: str, kind: Any) -> Any:
    """What `text` means where `kind` is wanted, or the text itself where it means nothing there.

    `1_000_000` and `1e6` are integers, `64,64` and `[64, 64]` tuples, `true` a bool, `none` None.
    The answer is not yet checked: `validated` is the judge.
    """
    try:
        return _meaning(text, kind)
    except (ValueError, InvalidOperation, RecursionError):
        return text


def _meaning(text: str, kind: Any) -> Any:
    origin, args, word = get_origin(kind), get_args(kind), text.strip()
    if origin is Annotated:
        return from_text(text, args[0])
    if origin in (Union, UnionType):
        meant: Any = text
        for option in args:
            value = from_text(text, option)
            try:
                return validated("", value, option)
            except RecipeError:  # what is no text is the likelier meaning
                meant = meant if isinstance(value, str) else value
        return meant
    elif origin in (list, dict) or (origin is tuple and word.startswith("[")):
        return tomllib.loads(f"value = {text}")["value"]
    elif origin is tuple:
        parts = text.split(BETWEEN_PATHS if BETWEEN_PATHS in text else ",")
        return [from_text(part.strip(), args[0]) for part in parts if part.strip()]
    elif kind is Path:
        return Path(text)
    elif kind is NoneType and word.lower() == "none":
        return None
    elif kind is bool and word.lower() in ("true", "false"):
        return word.lower() == "true"
    elif kind is float:
        return float(text)
    elif kind is int:
        number = Decimal(word.replace("_", ""))
        # The size is judged before int(): "1e999999999" would fill the memory.
        if number.is_finite() and number.adjusted() < 20 and number == number.to_integral_value():
            return int(number)
    return text


def as_text(value: object) -> str:
    """A value as it would be typed."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

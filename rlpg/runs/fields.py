"""Strict types for settings: a value fits its annotation, or is refused with what was expected.

`accept` judges typed values (from Python or TOML), `from_text` reads what was typed on a command
line, and `expected` says in words what an annotation takes. A bool is no int; an int may stand for
a float; NaN is nothing. `"none"` stands for None, because TOML has no null.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


class MisfitError(ValueError):
    """The value is not of the annotated type or outside its range."""


@dataclass(frozen=True)
class Within:
    """A finite number, `low <= x <= high`; `open_low` makes it `low < x`."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, x: float) -> bool:
        above = self.low < x if self.open_low else self.low <= x
        return above and x <= self.high and abs(x) != math.inf

    def __str__(self) -> str:
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}]"
        if math.isfinite(self.low):
            return f"{'>' if self.open_low else '>='} {self.low:g}"
        return f"<= {self.high:g}" if math.isfinite(self.high) else "that is finite"


def accept(value: object, kind: Any) -> Any:
    """The value as `kind` wants it (an int made a float, a list a tuple), or MisfitError."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        number = accept(value, args[0])
        if number not in args[1]:
            raise MisfitError
        return number
    if origin in (Union, UnionType):
        return _first_that_fits(value, args)
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return value
    elif origin in (tuple, list):
        if isinstance(value, list | tuple):
            return origin(accept(entry, args[0]) for entry in value)
    elif origin is dict:
        if isinstance(value, dict):
            return {accept(key, args[0]): accept(entry, args[1]) for key, entry in value.items()}
    elif kind is NoneType:
        if value is None or value == "none":
            return None
    elif kind is float:
        if type(value) is float and value == value:
            return value
        if type(value) is int and abs(value) < 2**1000:
            return float(value)
    elif type(value) is str and kind is str:
        if not any("\ud800" <= c <= "\udfff" for c in value):  # lone surrogates fit no file
            return value
    elif type(value) is kind:
        return value
    raise MisfitError


def _first_that_fits(value: object, kinds: Iterable[Any]) -> Any:
    for kind in kinds:
        try:
            return accept(value, kind)
        except MisfitError:
            continue
    raise MisfitError


def from_text(text: str, kind: Any) -> Any:
    """What `text` means where `kind` is wanted, or the text itself where it means nothing there.

    `1_000_000` and `1e6` are integers, `64,64` and `[64, 64]` tuples, `true` a bool, `none` None.
    The answer is not yet checked: `accept` is the judge.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return from_text(text, args[0])
    if origin in (Union, UnionType):
        for option in args:
            value = from_text(text, option)
            try:
                return accept(value, option)
            except MisfitError:
                continue
    elif origin is list or (origin is tuple and text.strip().startswith("[")):
        return _toml_value(text)
    elif origin is tuple:
        return [from_text(part.strip(), args[0]) for part in text.split(",") if part.strip()]
    elif origin is dict:
        return _toml_value(text)
    elif kind is NoneType:
        return None if text.strip().lower() == "none" else text
    elif kind is bool:
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    elif kind is int:
        return _integer(text)
    elif kind is float:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _integer(text: str) -> int | str:
    try:
        number = Decimal(text.strip().replace("_", ""))
    except InvalidOperation:
        return text
    # The size is judged before int(): "1e999999999" would fill the memory.
    if number.is_finite() and number.adjusted() < 20 and number == number.to_integral_value():
        return int(number)
    return text


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def tables(text: str) -> dict[str, Any]:
    """What TOML text says. ValueError where it says nothing, RecursionError where it is too deep.

    tomllib takes memory and time with the square of the number of dots in a key: a file of 60 kB
    would take 4 GB. So the keys are counted first, outside of strings and comments.
    """
    if _LONG_KEY.search(_TEXTS.sub(lambda found: "" if found[0][0] == "#" else "t", text)):
        raise ValueError(f"expected keys of at most {MOST_PARTS} parts, got more")
    return tomllib.loads(text)


MOST_PARTS = 8
_TEXTS = re.compile(  # in TOML: strings of four kinds, closed or not, and comments
    r'''"""(?:\\.|[^\\])*?(?:"{3,5}|\\?\Z)|'{3}.*?(?:'{3,5}|\Z)'''
    r"""|"(?:\\.|[^"\\\n])*+"?|'[^'\n]*+'?|\#[^\n]*+""",
    re.DOTALL,
)
_LONG_KEY = re.compile(rf"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{MOST_PARTS}}}")


def expected(kind: Any) -> str:
    """What `kind` takes, in words: `an integer >= 1 or none`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{expected(args[0])} {args[1]}"
    if origin in (Union, UnionType):
        return " or ".join(expected(option) for option in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (tuple, list):
        return f"a list, each entry {expected(args[0])}"
    if origin is dict:
        return f"a table, each value {expected(args[1])}"
    return "none" if kind is NoneType else WORDS[kind]


def toml(tables: dict[str, Any]) -> str:
    """TOML of plain values and, after them, one `[table]` per dict value (and its dicts inline)."""
    lines = [f"{_key(key)} = {_toml(v)}" for key, v in tables.items() if not isinstance(v, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += ["", f"[{_key(name)}]"]
            lines += [f"{_key(key)} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    match value:
        case None:
            return '"none"'
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return repr(value)  # the shortest text that reads back as the same double
        case str():
            return _quoted(value)
        case list() | tuple():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case dict():
            pairs = ", ".join(f"{_key(key)} = {_toml(entry)}" for key, entry in value.items())
            return "{" + (f" {pairs} " if pairs else "") + "}"
    raise MisfitError(f"{type(value).__name__} has no place in TOML")


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _quoted(key)


def _quoted(text: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"'}
    safe = (escapes.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in text)
    return f'"{"".join(safe)}"'

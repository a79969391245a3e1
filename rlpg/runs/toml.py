"""TOML as recipes use it: `tables` reads it, `text` writes it; None is written `"none"`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w

from rlpg.errors import RecipeError

MOST_PARTS = 8  # of a key


def tables(text: str) -> dict[str, Any]:
    """What TOML text says. ValueError where it says nothing, RecursionError where it is too deep.

    tomllib takes memory and time with the square of the number of dots in a key: a file of 60 kB
    would take 4 GB. So the keys are counted first, outside of strings and comments.
    """
    if _LONG_KEY.search(_TEXTS.sub(lambda found: "" if found[0][0] == "#" else "t", text)):
        raise ValueError(f"expected keys of at most {MOST_PARTS} parts, got more")
    return tomllib.loads(text)


_TEXTS = re.compile(  # in TOML: strings of four kinds, closed or not, and comments
    r'''"""(?:\\.|[^\\])*?(?:"{3,5}|\\?\Z)|'{3}.*?(?:'{3,5}|\Z)'''
    r"""|"(?:\\.|[^"\\\n])*+"?|'[^'\n]*+'?|\#[^\n]*+""",
    re.DOTALL,
)
_LONG_KEY = re.compile(rf"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{MOST_PARTS}}}")


def text(tables: Mapping[str, Any]) -> str:
    """The tables as TOML; RecipeError where a value is of a kind that TOML has not."""
    try:
        return tomli_w.dumps(_without_none(tables))
    except TypeError as error:  # a set, an enum, in the settings of a learner of one's own
        raise RecipeError(
            f"recipe: expected numbers, strings, lists and tables, got another setting: {error}"
        ) from None


def _without_none(value: Any) -> Any:
    match value:
        case None:
            return "none"
        case Mapping():
            return {key: _without_none(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_without_none(entry) for entry in value]
    return value

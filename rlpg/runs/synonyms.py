"""What other libraries call our settings; see `synonyms.toml`."""

from __future__ import annotations

import tomllib
from importlib import resources

_WORDS: dict[str, str] = tomllib.loads(
    resources.files(__package__).joinpath("synonyms.toml").read_text("utf-8")
)

SYNONYMS = {word: key for key, words in _WORDS.items() for word in words.split()}

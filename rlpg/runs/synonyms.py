"""What other libraries call our settings; see `synonyms.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path

_WORDS: dict[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())

SYNONYMS = {word: key for key, words in _WORDS.items() for word in words.split()}

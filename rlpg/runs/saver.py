"""What the disk refuses stops no training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

Warn = Callable[[str], None]
log_warning: Final[Warn] = logging.getLogger("rlpg").warning


class Saver:
    """Calls what writes; a failure is said once for each file, and counts until a call succeeds.
    `check` is called before; it raises OSError where nothing may be written."""

    def __init__(self, warn: Warn = log_warning, check: Callable[[], None] = lambda: None) -> None:
        self.missing: dict[str, str] = {}  # by name: why it is not on disk, or not all of it
        self._warn, self._check = warn, check
        self._told: set[str] = set()

    def __call__(self, path: Path, write: Callable[[], object]) -> bool:
        """Whether the disk took it."""
        try:
            self._check()
            write()
        except OSError as error:
            reason = error.strerror or str(error)
            self.failed(path.name, reason, f"{path}: cannot be written now ({reason})")
            return False
        self.missing.pop(path.name, None)
        return True

    def failed(self, name: str, reason: str, words: str) -> None:
        """Something is missing; say so the first time."""
        self.missing.setdefault(name, reason)
        if name not in self._told:
            self._told.add(name)
            self._warn(f"{words}; training goes on")

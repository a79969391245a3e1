"""An `os` that fails at the k-th operation, to be put in the place of `rlpg.runs.files.os`."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

PURE = {"getpid", "strerror", "fspath"}


class Killed(BaseException):
    """Stands for SIGKILL in this process: from here on no operation reaches the disk."""


class FaultyOs:
    """Counts the operations; at number `at` the fault happens, after half of a write.

    fsync is counted but left out: it decides what a power failure leaves, which no test can see.
    """

    def __init__(self, fault: str = "", at: int = -1) -> None:
        self.fault, self.at, self.operations = fault, at, 0

    def __getattr__(self, name: str) -> Any:
        original = getattr(os, name)
        if not callable(original) or name in PURE or isinstance(original, type):
            return original

        def operation(*args: Any, **kwargs: Any) -> Any:
            number, self.operations = self.operations, self.operations + 1
            if number == self.at or (number > self.at >= 0 and self.fault == "killed"):
                self._fail(original, name, args, first=number == self.at)
            return None if name == "fsync" else original(*args, **kwargs)

        return operation

    def _fail(self, original: Callable[..., Any], name: str, args: Any, *, first: bool) -> None:
        if name == "write" and first:
            original(args[0], args[1][: len(args[1]) // 2])
        match self.fault:
            case "ENOSPC" | "EIO":
                number = getattr(errno, self.fault)
                raise OSError(number, os.strerror(number))
            case "interrupted":
                raise KeyboardInterrupt
            case "killed":
                raise Killed
            case "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)

"""Imports of a program, while which nobody looks for garbage."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """A `with` around the imports of a process of ours, whose objects stay until it ends.

    Importing torch makes a quarter of a million of them. Python looked through them for garbage
    again and again while they came, and once more at the end: a quarter of the CPU time of a short
    command. Whatever exists after the `with` is not looked through any more, so this is not for a
    process that has done anything before.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def call(module: str, function: str, *args: object) -> None:
    """Call a function of a module that this process, a new one, has yet to import."""
    with lasting_imports():
        called = getattr(importlib.import_module(module), function)
    called(*args)

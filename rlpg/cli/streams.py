"""What a command prints, on streams that may be closed, full, or gone."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def complain(error: BaseException, code: int) -> int:
    """One line on the error stream, whatever the message and its notes contain."""
    parts = (str(error), *getattr(error, "__notes__", ()))
    with suppress(OSError, ValueError):
        print("rlpg: " + " ".join("; ".join(parts).split()), file=sys.stderr)
    return code


def report(line: object) -> None:
    """Print about what is on disk already: if nobody can read it, nothing else is lost."""
    try:
        print(line, flush=True)
    except (OSError, ValueError):
        silence_broken_output()


def silence_broken_output() -> None:
    """Send what the output stream still holds, and cannot get rid of, nowhere."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def open_closed_streams() -> None:
    """Streams that were closed at the start (`2>&-`) lead nowhere, not into a file of the run."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (open as long as the process)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115

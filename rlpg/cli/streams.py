"""What a command prints, on streams that may be closed, full, or gone."""

from __future__ import annotations

import io
import os
import shlex
import sys
from contextlib import suppress

from rlpg.distributed import is_first

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
EXIT_ENDED = {143: "SIGTERM", 129: "SIGHUP"}


def complain(error: BaseException, code: int) -> int:
    """One line on the error stream, whatever the message and its notes contain."""
    parts = (str(error), *getattr(error, "__notes__", ()))
    say("; ".join(parts))
    return code


def report(line: object) -> None:
    """Print about what is on disk already: if nobody can read it, nothing else is lost.

    Of several processes that train one policy, the first one prints.
    """
    if not is_first():
        return
    try:
        print(line, flush=True)
    except (OSError, ValueError):
        silence_broken_output()


def quoted(path: object) -> str:
    """The path so that it can be pasted into a shell."""
    return shlex.quote(str(path))


def say(text: str) -> None:
    """One line on the error stream, if it takes one; one write, as other ranks write there, too."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"rlpg: {' '.join(text.split())}\n")


def silence_broken_output() -> None:
    """Send what the output stream still holds, and cannot get rid of, nowhere."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def prepare_streams() -> None:
    """Streams that were closed at the start (`2>&-`) lead nowhere, not into a file of the run.

    What a stream cannot encode, such as ± in ASCII or parts of file names, is escaped.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (open as long as the process)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

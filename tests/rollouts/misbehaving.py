"""What an environment can do to those who run it."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from multiprocessing import resource_tracker
from pathlib import Path


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("boom")
        self.lock = threading.Lock()


class Stop(BaseException):
    """Not an Exception."""


def misbehave(fault: str) -> None:
    """Does what the name says; nothing for a name that is none of these."""
    match fault:
        case "raise":
            raise ValueError("the physics exploded")
        case "unpicklable":
            raise Unpicklable
        case "base exception":
            raise Stop("now")
        case "interrupt":
            raise KeyboardInterrupt("stop")
        case "exit":
            sys.exit(3)
        case "os exit":
            os._exit(7)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            faulthandler.disable()  # pytest's would write to the terminal
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(60)
        case "hang busily":
            while True:
                pass
        case "slow":
            time.sleep(0.6)


def sleep_for_ever() -> None:
    time.sleep(280)


def loop() -> None:
    while True:
        pass


def fail() -> None:
    raise OSError("the window is gone")


def fail_otherwise() -> None:
    raise BaseException("not even an Exception")


def children() -> list[int]:
    """The process ids of this process's children.

    Not that of multiprocessing's resource tracker, which lives as long as a process that has ever
    spawned another: a test of several seeds leaves it to those after it.
    """
    found, tracker = [], resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = stat.read_text().partition(" (")
        except OSError:  # it has ended meanwhile
            continue
        if int(rest.rpartition(") ")[2].split()[1]) == os.getpid() and int(pid) != tracker:
            found.append(int(pid))
    return found

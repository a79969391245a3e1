"""SIGINT, SIGTERM, SIGHUP: the first lets the iteration end and saves, the second stops at once.

The last evaluation does not wait for its end: the training is saved by then.

Under torchrun the second does nothing; torchrun kills after 30 seconds what has not ended.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rlpg.distributed import is_alone, is_started_by_torchrun

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Remembers the first signal of a `with`; the handlers there were before come back after it.

    Only the main thread can handle signals; elsewhere nothing is changed. A handler that somebody
    else has installed is left alone, and so is a signal that is ignored (`nohup`).
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._raises = False

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            defaults = (signal.SIG_DFL, signal.default_int_handler)
            for number in SIGNALS:
                if signal.getsignal(number) in defaults:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if self._raises:  # the handler stays: by it, this is told from what an environment raises
            self.raise_if_received()
        if not is_started_by_torchrun():  # which sends again what the terminal has sent already
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def __exit__(self, *error: object) -> None:
        self._restore()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A signal raises where it arrives; where several ranks have to agree, as ever."""
        self._raises = is_alone()
        try:
            yield
        finally:
            self._raises = False

    def raise_if_received(self) -> None:
        """KeyboardInterrupt after SIGINT, SystemExit(143) after SIGTERM, (129) after SIGHUP."""
        if self.received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)

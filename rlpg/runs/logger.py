"""Where the metrics of a run go: `Logger`, and the two that every run has."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from rlpg.runs import dashboard, files

WAITING: Final = 16 << 20  # bytes of entries kept for a disk that is full; older ones are dropped
FLUSH_SECONDS: Final = 5.0

Warn = Callable[[str], None]
log_warning: Final[Warn] = logging.getLogger("rlpg").warning


class Logger(ABC):
    """Takes the metrics of a run. Subclass it for a tracker of your own and pass an instance to
    `rlpg.train(..., loggers=[...])`.

    What a logger raises does not stop the run; at the end the run raises a `SaveError` that names
    the logger.
    """

    @abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of an environment step, by tag; steps grow from call to call.

        Args:
            metrics: NaN or infinity where there is no number.
        """

    def histograms(  # noqa: B027 (there may be no place for them)
        self, step: int, values: Mapping[str, np.ndarray[Any, Any]]
    ) -> None:
        """Take the values of a rollout, by tag; at most some twenty times in a run.

        Args:
            values: finite, of any shape.
        """

    def close(self) -> None:  # noqa: B027 (there may be nothing to do)
        """Called when the run has ended, also by an error or a signal."""


class JSONLLogger(Logger):
    """One JSON object per line: `{"step": 100, "rollout/ep_rew_mean": 21.5}`.

    Args:
        path: the file.
        size: bytes of it to keep; what is beyond is cut.
        check: see `GrowingFile`.
        warn: is told, once, that it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        size: int = 0,
        *,
        check: Callable[[], None] = lambda: None,
        warn: Warn = log_warning,
    ) -> None:
        self.file = GrowingFile(path, size, check=check, warn=warn)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line; `null` stands for NaN and infinity, which JSON does not know."""
        entry = {tag: value if math.isfinite(value) else None for tag, value in metrics.items()}
        line = json.dumps({"step": step, **entry}, allow_nan=False)
        self.file.write(f"{line}\n".encode())

    def close(self) -> None:
        """Write what waits for the disk."""
        self.file.flush()


class TensorBoardLogger(Logger):
    """TensorBoard's event file, written in this thread and through `files` like everything else.

    TensorBoard's own file writer has a thread that dies with the first full disk; its record
    format and protocol buffers are used here without it. Where TensorBoard itself fails, it is said
    once, and training goes on without it.

    Args:
        folder: where the file is made.
        start: the first step to come; readers forget the points from there on that an earlier,
            interrupted session left.
        texts: by name, shown as they are in TensorBoard's text tab.
        settings: by dotted key, for the tab HParams.
        check: see `GrowingFile`.
        warn: is told, once, that it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        start: int = 0,
        *,
        texts: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        check: Callable[[], None] = lambda: None,
        warn: Warn = log_warning,
    ) -> None:
        self._described: set[str] = set()
        self._warn = once(folder / "events.out.tfevents", warn)
        self.file: GrowingFile | None = None
        self.failure = ""  # of TensorBoard itself
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.plugins.text.summary_v2 import text_pb
            from tensorboard.summary.writer.record_writer import RecordWriter

            self._event, self._summary = Event, Summary
            self._buffer = io.BytesIO()
            self._records = RecordWriter(self._buffer)
            now = time.time()
            self._put(Event(wall_time=now, file_version="brain.Event:2"))
            session = SessionLog(status=SessionLog.START)
            self._put(Event(wall_time=now, step=start, session_log=session))
            if start == 0:  # a run that goes on has them where they were
                for name, text in (texts or {}).items():
                    summary = text_pb(f"{name}/text_summary", _verbatim(text))
                    self._put(Event(wall_time=now, summary=summary))
                self._put(Event(wall_time=now, summary=dashboard.layout()))
                if settings:
                    trial = "/".join(folder.absolute().parts[-3:])
                    self._put(
                        Event(wall_time=now, summary=dashboard.hyperparameters(settings, trial))
                    )
            self.file = GrowingFile(_next_name(folder, int(now)), 0, check=check, warn=warn)
            self.flush()
        except Exception as error:  # nothing in TensorBoard is worth a training run
            self._fail(error)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One event with all tags."""
        if self.file is None:
            return
        try:
            points = [
                self._summary.Value(
                    tag=tag,
                    simple_value=value if math.isfinite(value) else math.nan,
                    metadata=None if tag in self._described else dashboard.described(tag),
                )
                for tag, value in metrics.items()
            ]
            self._described.update(metrics)
            summary = self._summary(value=points)
            self._put(self._event(wall_time=time.time(), step=step, summary=summary))
            if time.monotonic() > self._due:
                self.flush()
        except Exception as error:
            self._fail(error)

    def histograms(self, step: int, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """One event with all histograms."""
        if self.file is None:
            return
        try:
            found = [dashboard.histogram(tag, array) for tag, array in values.items() if array.size]
            summary = self._summary(value=found)
            self._put(self._event(wall_time=time.time(), step=step, summary=summary))
        except Exception as error:
            self._fail(error)

    def flush(self) -> None:
        """Write what waits."""
        self._due = time.monotonic() + FLUSH_SECONDS
        if self.file is not None:
            self.file.write(self._buffer.getvalue())
            self._buffer.seek(0)
            self._buffer.truncate()

    def close(self) -> None:
        """Write what waits."""
        self.flush()

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def _fail(self, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {error}"
        self._warn(self.failure)
        self.file = None


class GrowingFile:
    """A file that grows at its end, and survives a full disk by waiting.

    Args:
        path: the file.
        size: bytes of it that are known to be good; what is beyond is cut.
        check: is called before each write; raises OSError where the file must not be written.
        warn: is told, once, that the file cannot be written.
    """

    def __init__(self, path: Path, size: int, *, check: Callable[[], None], warn: Warn) -> None:
        self.path, self.size = path, size
        self.failure = ""  # why the file does not have all that it should
        self._check = check
        self._warn = once(path, warn)
        self._waiting: deque[bytes] = deque()
        self._has_dropped = False
        self.flush()

    def write(self, data: bytes) -> None:
        """Add to the end, now or when the disk has room again."""
        self._waiting.append(data)
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
        try:
            self._check()
            self.size = files.append(self.path, b"".join(self._waiting), position=self.size)
        except OSError as error:
            self.failure = str(error.strerror)
            self._warn(self.failure)
            while sum(map(len, self._waiting)) > WAITING:
                self._waiting.popleft()
                self._has_dropped = True
        else:
            self._waiting.clear()
            self.failure = self.failure if self._has_dropped else ""


def once(path: Path, warn: Warn) -> Warn:
    """A function that says the first reason it is given why the file cannot be written."""
    told: list[str] = []

    def tell(reason: str) -> None:
        if not told:
            told.append(reason)
            warn(f"{path}: cannot be written now ({reason}); training goes on")

    return tell


def _verbatim(text: str) -> str:
    """Markdown that shows the text as it is: every line indented by four spaces."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _next_name(folder: Path, seconds: int) -> Path:
    """TensorBoard reads a folder's event files in the order of their names, so: by time.

    A clock that was set back must not put a resumed run's file before those it goes on from.
    """
    for path in files.entries(folder):
        match = re.fullmatch(r"events\.out\.tfevents\.(\d{10})\..*", path.name)
        seconds = max(seconds, int(match[1]) + 1) if match else seconds
    return folder / f"events.out.tfevents.{seconds:010d}.rlpg"

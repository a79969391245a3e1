"""Where the metrics of a run go: `Logger`, and the two that every run has."""

from __future__ import annotations

import io
import json
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any, Final

import numpy as np

from rlpg.errors import readable
from rlpg.runs import dashboard, files
from rlpg.runs.saver import Saver

FLUSH_SECONDS: Final = 5.0


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

    def begin(self, folder: Path) -> None:  # noqa: B027
        """Called before anything else, with the run's folder."""

    def flush(self) -> None:  # noqa: B027
        """Called before a checkpoint is saved."""

    def close(self) -> None:
        """Called when the run has ended, also by an error or a signal."""
        self.flush()


class JSONLLogger(Logger):
    """One JSON object per line: `{"step": 100, "rollout/ep_rew_mean": 21.5}`.

    Args:
        path: the file.
        size: bytes of it to keep; what is beyond is cut.
        saver: is told what the disk refuses.
    """

    def __init__(self, path: str | Path, size: int = 0, *, saver: Saver | None = None) -> None:
        self.file = GrowingFile(Path(path), size, saver or Saver())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line; `null` stands for NaN and infinity, which JSON does not know."""
        entry = {tag: value if math.isfinite(value) else None for tag, value in metrics.items()}
        line = json.dumps({"step": step, **entry}, allow_nan=False)
        self.file.write(f"{line}\n".encode())

    def flush(self) -> None:
        self.file.flush()


class TensorBoardLogger(Logger):
    """TensorBoard's event file, written in this thread and through `files` like everything else.

    TensorBoard's own file writer has a thread that dies with the first full disk; its record
    format and protocol buffers are used here without it.

    Args:
        folder: where the file is made.
        start: the first step to come; readers forget the points from there on that an earlier,
            interrupted session left.
        texts: by name, shown as they are in TensorBoard's text tab.
        settings: by dotted key, for the tab HParams.
        saver: is told what the disk refuses.
    """

    def __init__(
        self,
        folder: str | Path,
        start: int = 0,
        *,
        texts: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        saver: Saver | None = None,
    ) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = Path(folder)
        self._described: set[str] = set()
        self._event, self._summary = Event, Summary
        self._buffer = io.BytesIO()
        self._records = RecordWriter(self._buffer)
        now = time.time()
        self._put(now, file_version="brain.Event:2")
        self._put(now, step=start, session_log=SessionLog(status=SessionLog.START))
        if start == 0:  # a run that goes on has them where they were
            for name, text in (texts or {}).items():
                verbatim = indent(text, "    ")  # in Markdown
                self._put(now, summary=text_pb(f"{name}/text_summary", verbatim))
            self._put(now, summary=dashboard.layout())
            if settings:
                trial = readable("/".join(folder.absolute().parts[-3:]))
                self._put(now, summary=dashboard.hyperparameters(settings, trial))
        self._file = GrowingFile(_next_name(folder, int(now)), 0, saver or Saver())
        self.flush()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        points = [
            self._summary.Value(
                tag=tag,
                simple_value=value if math.isfinite(value) else math.nan,
                metadata=None if tag in self._described else dashboard.described(tag),
            )
            for tag, value in metrics.items()
        ]
        self._described.update(metrics)
        self._put(time.time(), step=step, summary=self._summary(value=points))
        if time.monotonic() > self._due:
            self.flush()

    def histograms(self, step: int, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        found = [dashboard.histogram(tag, array) for tag, array in values.items() if array.size]
        self._put(time.time(), step=step, summary=self._summary(value=found))

    def flush(self) -> None:
        self._due = time.monotonic() + FLUSH_SECONDS
        self._file.write(self._buffer.getvalue())
        self._buffer.seek(0)
        self._buffer.truncate()

    def _put(self, now: float, **event: Any) -> None:
        self._records.write(self._event(wall_time=now, **event).SerializeToString())


class GrowingFile:
    """A file that grows at its end; what the disk refuses waits. What is beyond `size` is cut."""

    def __init__(self, path: Path, size: int, saver: Saver) -> None:
        self.size = size
        self._path, self._saver, self._waiting = files.here() / path, saver, bytearray()
        self.flush()

    def add(self, data: bytes) -> None:
        """Add to the end with the next `flush`."""
        self._waiting += data

    def write(self, data: bytes) -> None:
        """Add to the end, now or when the disk has room again."""
        self.add(data)
        self.flush()

    def flush(self) -> None:
        if self._saver(self._path, self._append):
            self._waiting.clear()

    def _append(self) -> None:
        end = self.size + len(self._waiting)
        self.size = files.append(self._path, bytes(self._waiting), position=self.size)
        if self.size < end:
            reason = f"lost {end - self.size} bytes that had been written"
            self._saver.failed(self._path.name, reason, f"{self._path}: {reason}")


def _next_name(folder: Path, seconds: int) -> Path:
    """TensorBoard reads a folder's event files in the order of their names, so: by time.

    A clock that was set back must not put a resumed run's file before those it goes on from.
    """
    for path in files.entries(folder):
        match = re.fullmatch(r"events\.out\.tfevents\.(\d{10})\..*", path.name)
        seconds = max(seconds, int(match[1]) + 1) if match else seconds
    return folder / f"events.out.tfevents.{seconds:010d}.rlpg"

"""The curves of a run: TensorBoard events, `progress.jsonl`, `monitor.csv`, `evaluations.npz`.

The last two have the shapes that Stable-Baselines3's plotting tools read. None of them can stop
training: what cannot be written waits in memory, is said once, and is written when the disk has
room again. `state_dict` belongs into a checkpoint: a run resumed from it cuts every curve there.
"""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, SupportsFloat

import numpy as np

from rlpg.errors import FileError
from rlpg.runs import files

WAITING: Final = 16 << 20  # bytes of entries kept for a disk that is full; older ones are dropped
FLUSH_SECONDS: Final = 5.0

Warn = Callable[[str], None]
_log_warning: Final[Warn] = logging.getLogger("rlpg").warning


class Writers:
    """All curves of one run.

    Args:
        folder: the run's folder.
        env_id: goes into monitor.csv.
        tensorboard: write events too.
        texts: by name, shown as they are in TensorBoard's text tab.
        state: the `state_dict` of the checkpoint the run continues from; None begins the curves.
        warn: is told, once per file, what cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        env_id: str | None = None,
        tensorboard: bool = True,
        texts: Mapping[str, str] | None = None,
        state: Mapping[str, Any] | None = None,
        warn: Warn = _log_warning,
    ) -> None:
        fresh: dict[str, Any] = {
            "step": -1,
            "t_start": time.time(),
            "progress": 0,
            "monitor": 0,
            "evaluations": {},
        }
        state = fresh if state is None else state
        for key, example in fresh.items():
            if type(state.get(key)) is not type(example):
                raise FileError(
                    f"writers.{key}: expected {type(example).__name__} in the checkpoint, "
                    f"got {state.get(key)!r:.80}"
                )
        places = state["step"] + 1, state["progress"], state["monitor"]
        if min(places) < 0 or not math.isfinite(state["t_start"]):
            raise FileError(
                "writers: expected places in the curves >= 0 and a time in the checkpoint, "
                f"got {places} and {state['t_start']}"
            )
        self._folder = folder
        self._warn = warn
        self._step: int = state["step"]
        self._t_start: float = state["t_start"]
        self._entry: dict[str, float | None] = {}
        self._progress = _Log(folder / "progress.jsonl", state["progress"], warn)
        self._monitor = _Log(folder / "monitor.csv", state["monitor"], warn)
        if self._monitor.size == 0:
            header = json.dumps({"t_start": self._t_start, "env_id": env_id})
            self._monitor.write(f"#{header}\nr,l,t\n".encode())
        self._evaluations = {
            name: _Evaluations(folder, name, warn, rows)
            for name, rows in state["evaluations"].items()
        }
        self._events = _Events(folder, self._step + 1, texts or {}, warn) if tensorboard else None

    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Add points at an environment step; calls at the same step become one entry."""
        if step < self._step:
            raise ValueError(f"step: expected at least {self._step}, the last one, got {step}")
        if step > self._step:
            self._emit()
            self._step = step
        self._entry |= {tag: _number(value) for tag, value in values.items()}

    def episodes(self, returns: Iterable[SupportsFloat], lengths: Iterable[int]) -> None:
        """Add finished training episodes, in the order in which they ended."""
        seconds = round(time.time() - self._t_start, 6)
        rows = zip(returns, lengths, strict=True)
        text = "".join(f"{round(float(r), 6)},{int(length)},{seconds}\n" for r, length in rows)
        if text:
            self._monitor.write(text.encode())

    def evaluation(
        self,
        step: int,
        returns: Iterable[SupportsFloat],
        lengths: Iterable[int],
        *,
        name: str = "evaluations",
    ) -> None:
        """Add an evaluation to `<name>.npz`; each has the same number of episodes."""
        if name not in self._evaluations:
            self._evaluations[name] = _Evaluations(self._folder, name, self._warn)
        self._evaluations[name].add(step, returns, lengths)

    def flush(self) -> None:
        """Write what waits. Call it after logging a step and before saving its checkpoint."""
        self._emit()
        self._progress.flush()
        self._monitor.flush()
        if self._events:
            self._events.flush()

    def close(self) -> None:
        self.flush()

    def state_dict(self) -> dict[str, Any]:
        """Where the curves end now, to be resumed from here; flushes."""
        self.flush()
        return {
            "step": self._step,
            "t_start": self._t_start,
            "progress": self._progress.size,
            "monitor": self._monitor.size,
            "evaluations": {name: rows.arrays() for name, rows in self._evaluations.items()},
        }

    def _emit(self) -> None:
        if self._entry:
            line = json.dumps({"step": self._step, **self._entry}, allow_nan=False)
            self._progress.write(f"{line}\n".encode())
            if self._events:
                self._events.write(self._step, self._entry)
            self._entry = {}


def _number(value: SupportsFloat) -> float | None:
    """An int or float as it is; None, which JSON knows, for NaN and infinity, which it does not."""
    number = value if type(value) is int else float(value)
    return number if math.isfinite(number) else None


class _Log:
    """A file that grows at its end, and survives a full disk by waiting."""

    def __init__(self, path: Path, size: int, warn: Warn) -> None:
        self.size = size  # what is known to be in the file
        self._path = path
        self._warn = _Once(path, warn)
        self._waiting: deque[bytes] = deque()
        self.flush()

    def write(self, data: bytes) -> None:
        self._waiting.append(data)
        self.flush()

    def flush(self) -> None:
        try:
            self.size = files.append(self._path, b"".join(self._waiting), position=self.size)
        except OSError as error:
            self._warn(error.strerror)
            while sum(map(len, self._waiting)) > WAITING:
                self._waiting.popleft()
        else:
            self._waiting.clear()


class _Once:
    """Says the first thing it is told to say."""

    def __init__(self, path: Path, warn: Warn) -> None:
        self._path = path
        self._warn: Warn | None = warn

    def __call__(self, reason: object) -> None:
        if self._warn:
            warn, self._warn = self._warn, None
            warn(f"{self._path}: cannot be written now ({reason}); training goes on")


class _Evaluations:
    """Rows of (step, returns, lengths), rewritten as one npz after each."""

    def __init__(
        self, folder: Path, name: str, warn: Warn, arrays: Mapping[str, Any] | None = None
    ) -> None:
        if not name.replace("_", "").isalnum():  # it may come from a file: no path parts
            raise FileError(f"evaluations: expected a name of letters, got {name!r:.80}")
        self._path = folder / f"{name}.npz"
        self._warn = _Once(self._path, warn)
        self._timesteps: list[int] = []
        self._results: list[np.ndarray[Any, Any]] = []
        self._lengths: list[np.ndarray[Any, Any]] = []
        if arrays:
            try:
                self._timesteps = [int(step) for step in arrays["timesteps"]]
                self._results = list(np.asarray(arrays["results"], np.float64))
                self._lengths = list(np.asarray(arrays["ep_lengths"], np.int64))
            except (KeyError, TypeError, ValueError):
                raise FileError(f"{name}: expected evaluations in the checkpoint") from None
            self._save()

    def add(self, step: int, returns: Iterable[SupportsFloat], lengths: Iterable[int]) -> None:
        result = np.array([float(value) for value in returns])
        length = np.array([int(value) for value in lengths])
        episodes = len(self._results[0]) if self._results else len(result)
        if not len(result) == len(length) == episodes:
            raise ValueError(
                f"evaluation: expected {episodes} returns and lengths, the same number each time, "
                f"got {len(result)} and {len(length)}"
            )
        self._timesteps.append(step)
        self._results.append(result)
        self._lengths.append(length)
        self._save()

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Shapes [k], [k, episodes], [k, episodes] for k evaluations."""
        return {
            "timesteps": np.array(self._timesteps, np.int64),
            "results": np.array(self._results, np.float64),
            "ep_lengths": np.array(self._lengths, np.int64),
        }

    def _save(self) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **self.arrays())  # type: ignore[arg-type]
        try:
            files.write(self._path, buffer.getvalue())
        except OSError as error:
            self._warn(error.strerror)


class _Events:
    """TensorBoard's event file, written in this thread and through `files` like everything else.

    TensorBoard's own file writer has a thread that dies with the first full disk; its record
    format and protocol buffers are used here without it.
    """

    def __init__(self, folder: Path, purge_step: int, texts: Mapping[str, str], warn: Warn) -> None:
        self._warn = _Once(folder / "events.out.tfevents", warn)
        self._log: _Log | None = None
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
            # Readers forget the points from this step on that an earlier, interrupted session left.
            start = SessionLog(status=SessionLog.START)
            self._put(Event(wall_time=now, step=purge_step, session_log=start))
            for name, text in texts.items():
                summary = text_pb(f"{name}/text_summary", _verbatim(text))
                self._put(Event(wall_time=now, step=purge_step, summary=summary))
            self._log = _Log(_free_name(folder, int(now)), 0, warn)
            self.flush()
        except Exception as error:  # nothing in TensorBoard is worth a training run
            self._warn(error)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """One event with all tags; None is drawn as NaN."""
        if self._log is None:
            return
        try:
            points = [
                self._summary.Value(tag=tag, simple_value=math.nan if value is None else value)
                for tag, value in values.items()
            ]
            summary = self._summary(value=points)
            self._put(self._event(wall_time=time.time(), step=step, summary=summary))
            if time.monotonic() > self._due:
                self.flush()
        except Exception as error:
            self._warn(error)
            self._log = None

    def flush(self) -> None:
        self._due = time.monotonic() + FLUSH_SECONDS
        if self._log is not None:
            self._log.write(self._buffer.getvalue())
            self._buffer.seek(0)
            self._buffer.truncate()

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def _verbatim(text: str) -> str:
    """Markdown that shows the text as it is: every line indented by four spaces."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _free_name(folder: Path, seconds: int) -> Path:
    """TensorBoard reads a folder's event files in the order of their names, so: by time."""
    while files.exists(path := folder / f"events.out.tfevents.{seconds:010d}.rlpg"):
        seconds += 1
    return path

"""The curves of a run: its loggers, `monitor.csv` and `evaluations.npz`.

The last two have the shapes that Stable-Baselines3's plotting tools read. None of them can stop
training: what cannot be written waits in memory, is said once, and is written when the disk has
room again. `state_dict` belongs into a checkpoint: a run resumed from it cuts every curve there.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from rlpg.errors import FileError
from rlpg.runs import files
from rlpg.runs.logger import (
    GrowingFile,
    JSONLLogger,
    Logger,
    TensorBoardLogger,
    Warn,
    log_warning,
    once,
)


class Curves:
    """All curves of one run.

    Args:
        folder: the run's folder.
        env_id: goes into monitor.csv.
        tensorboard: write events too.
        loggers: take the metrics too; what they raise is kept for `missing`.
        texts: by name, shown as they are in TensorBoard's text tab.
        settings: by dotted key, for TensorBoard's HParams.
        state: the `state_dict` of the checkpoint the run continues from; None begins the curves.
        check: raises OSError where the folder is no longer the run's.
        warn: is told, once per file, what cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        env_id: str | None = None,
        tensorboard: bool = True,
        loggers: Sequence[Logger] = (),
        texts: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
        check: Callable[[], None] = lambda: None,
        warn: Warn = log_warning,
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
                    f"curves.{key}: expected {type(example).__name__} in the checkpoint, "
                    f"got {state.get(key)!r:.80}"
                )
        places = state["step"] + 1, state["progress"], state["monitor"]
        if min(places) < 0 or not math.isfinite(state["t_start"]):
            raise FileError(
                "curves: expected places in the curves >= 0 and a time in the checkpoint, "
                f"got {places} and {state['t_start']}"
            )
        self._folder, self._check, self._warn = folder, check, warn
        self._step: int = state["step"]
        self._t_start: float = state["t_start"]
        self._entry: dict[str, float] = {}  # of the present step, until the next one
        self._progress = JSONLLogger(
            folder / "progress.jsonl", state["progress"], check=check, warn=warn
        )
        monitor = folder / "monitor.csv"
        self._monitor = GrowingFile(monitor, state["monitor"], check=check, warn=warn)
        if self._monitor.size == 0:
            header = json.dumps({"t_start": self._t_start, "env_id": env_id})
            self._monitor.write(f"#{header}\nr,l,t\n".encode())
        self._evaluations = {
            name: _Evaluations(folder, name, check, warn, rows)
            for name, rows in state["evaluations"].items()
        }
        self._tensorboard: TensorBoardLogger | None = None
        if tensorboard:
            start = self._step + 1
            self._tensorboard = TensorBoardLogger(
                folder, start, texts=texts, settings=settings, check=check, warn=warn
            )
        own = [self._progress, self._tensorboard]
        self._loggers = [*(logger for logger in own if logger is not None), *loggers]
        self._failures: dict[str, str] = {}  # of the user's loggers

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Add metrics of an environment step; calls at the same step become one entry."""
        if step < self._step:
            raise ValueError(f"step: expected at least {self._step}, the last one, got {step}")
        if step > self._step:
            self._emit()
            self._step = step
        self._entry |= {
            tag: value if type(value) is int else float(value) for tag, value in metrics.items()
        }

    def histograms(self, step: int, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Values of a rollout, by tag, for the loggers that show histograms."""
        for logger in self._loggers:
            self._call(logger, logger.histograms, step, values)

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
            self._evaluations[name] = _Evaluations(self._folder, name, self._check, self._warn)
        self._evaluations[name].add(step, returns, lengths)

    def evaluation_lengths(self) -> list[np.ndarray[Any, Any]]:
        """Lengths of the episodes of each evaluation so far, `[episodes]` each."""
        return [row for rows in self._evaluations.values() for row in rows.arrays()["ep_lengths"]]

    def flush(self) -> None:
        """Write what waits. Call it after logging a step and before saving its checkpoint."""
        self._emit()
        self._progress.file.flush()
        self._monitor.flush()
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Write what waits, once more where the disk refused it, and close the loggers."""
        self.flush()
        for rows in self._evaluations.values():
            rows.save()
        for logger in self._loggers:
            self._call(logger, logger.close)

    def missing(self) -> dict[str, str]:
        """What the curves on disk and the loggers lack, by name, and why."""
        logs = {"progress.jsonl": self._progress.file, "monitor.csv": self._monitor}
        found = {name: log.failure for name, log in logs.items()}
        if self._tensorboard is not None:
            events = self._tensorboard.file
            found["events.out.tfevents"] = self._tensorboard.failure or (
                events.failure if events is not None else ""
            )
        found |= {f"{name}.npz": rows.failure for name, rows in self._evaluations.items()}
        return {name: reason for name, reason in (found | self._failures).items() if reason}

    def state_dict(self) -> dict[str, Any]:
        """Where the curves end now, to be resumed from here; flushes."""
        self.flush()
        return {
            "step": self._step,
            "t_start": self._t_start,
            "progress": self._progress.file.size,
            "monitor": self._monitor.size,
            "evaluations": {name: rows.arrays() for name, rows in self._evaluations.items()},
        }

    def _emit(self) -> None:
        if self._entry:
            entry, self._entry = self._entry, {}
            for logger in self._loggers:
                self._call(logger, logger.log, self._step, dict(entry))

    def _call(self, logger: Logger, call: Callable[..., object], *arguments: Any) -> None:
        """Whatever a user's logger raises is said once, and costs no training."""
        try:
            call(*arguments)
        except Exception as error:
            name = f"logger {type(logger).__name__}"
            if name not in self._failures:
                self._failures[name] = f"step {self._step}: {type(error).__name__}: {error}"
                self._warn(f"{name}: {self._failures[name]}; training goes on")


class _Evaluations:
    """Rows of (step, returns, lengths), rewritten as one npz after each."""

    def __init__(
        self,
        folder: Path,
        name: str,
        check: Callable[[], None],
        warn: Warn,
        arrays: Mapping[str, Any] | None = None,
    ) -> None:
        if not name.replace("_", "").isalnum():  # it may come from a file: no path parts
            raise FileError(f"evaluations: expected a name of letters, got {name!r:.80}")
        self.failure = ""  # why the file does not have all that it should
        self._path = folder / f"{name}.npz"
        self._check, self._warn = check, once(self._path, warn)
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
            self._write()

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
        self._write()

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Shapes [k], [k, episodes], [k, episodes] for k evaluations."""
        return {
            "timesteps": np.array(self._timesteps, np.int64),
            "results": np.array(self._results, np.float64),
            "ep_lengths": np.array(self._lengths, np.int64),
        }

    def save(self) -> None:
        """Write them again if the disk refused them last time."""
        if self.failure:
            self._write()

    def _write(self) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **self.arrays())  # type: ignore[arg-type]
        try:
            self._check()
            files.write(self._path, buffer.getvalue())
            self.failure = ""
        except OSError as error:
            self.failure = str(error.strerror)
            self._warn(self.failure)

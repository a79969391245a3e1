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
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from rlpg.runs import files
from rlpg.runs.logger import GrowingFile, JSONLLogger, Logger, TensorBoardLogger
from rlpg.runs.saver import Saver

Array = np.ndarray[Any, Any]


class Curves:
    """All curves of one run. What `loggers` raise is a failure for `saver`. `state` is the
    `state_dict` of the checkpoint that the run continues from; None begins the curves, and what is
    none of curves raises ValueError, TypeError, LookupError or AttributeError."""

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
        saver: Saver | None = None,
    ) -> None:
        if state is None:
            state = {
                "step": -1, "t_start": time.time(), "progress": 0, "monitor": 0, "evaluations": {},
            }  # fmt: skip
        places = state["step"] + 1, state["progress"], state["monitor"]
        if min(places) < 0 or not math.isfinite(state["t_start"]):
            raise ValueError(f"curves: expected places >= 0, got {places} at {state['t_start']}")
        self._folder, self._saver = folder, saver or Saver()
        self._step: int = state["step"]
        self._t_start: float = state["t_start"]
        self._evaluations: dict[str, dict[str, Array]] = {}
        for name, rows in state["evaluations"].items():
            if not name.replace("_", "").isalnum():  # it may come from a stranger: no path parts
                raise ValueError(f"evaluations: expected a name of letters, got {name!r:.80}")
            columns = rows["timesteps"], rows["results"], rows["ep_lengths"]
            self._evaluations[name] = _evaluations(*columns)
        self._entry: dict[str, float] = {}  # of the present step, until the next one
        self._progress = JSONLLogger(
            folder / "progress.jsonl", state["progress"], saver=self._saver
        )
        self._monitor = GrowingFile(folder / "monitor.csv", state["monitor"], self._saver)
        if self._monitor.size == 0:
            header = json.dumps({"t_start": self._t_start, "env_id": env_id})
            self._monitor.write(f"#{header}\nr,l,t\n".encode())
        for name in self._evaluations:
            self._save_evaluations(name)
        self._loggers: list[Logger] = [self._progress]
        if tensorboard:
            try:
                self._loggers.append(
                    TensorBoardLogger(
                        folder, self._step + 1, texts=texts, settings=settings, saver=self._saver
                    )
                )
            except Exception as error:  # nothing in TensorBoard is worth a training run
                self._failed("TensorBoardLogger", error)
        self._loggers += loggers
        self._tell(lambda logger: logger.begin(folder))

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

    def histograms(self, step: int, values: Mapping[str, Array]) -> None:
        """Values of a rollout, by tag, for the loggers that show histograms."""
        self._tell(lambda logger: logger.histograms(step, values))

    def episodes(self, returns: Iterable[SupportsFloat], lengths: Iterable[int]) -> None:
        """Add finished training episodes, in the order in which they ended."""
        seconds = round(time.time() - self._t_start, 6)
        rows = zip(returns, lengths, strict=True)
        text = "".join(f"{round(float(r), 6)},{int(length)},{seconds}\n" for r, length in rows)
        self._monitor.add(text.encode())

    def evaluation(
        self, step: int, returns: Array, lengths: Array, *, name: str = "evaluations"
    ) -> None:
        """Add an evaluation to `<name>.npz`; each has the same number of episodes."""
        row = _evaluations([step], [returns], [lengths])
        before = self._evaluations.get(name)
        self._evaluations[name] = row if before is None else {
            key: np.concatenate([before[key], row[key]]) for key in row
        }  # fmt: skip
        self._save_evaluations(name)

    def _save_evaluations(self, name: str) -> None:
        buffer, path = io.BytesIO(), self._folder / f"{name}.npz"
        np.savez(buffer, **self._evaluations[name])  # type: ignore[arg-type]
        self._saver(path, partial(files.write, path, buffer.getvalue()))

    def evaluation_lengths(self) -> list[Array]:
        """Lengths of the episodes of each evaluation so far, `[episodes]` each."""
        return [row for rows in self._evaluations.values() for row in rows["ep_lengths"]]

    def flush(self) -> None:
        """Write what waits. Call it after logging a step and before saving its checkpoint."""
        self._emit()
        self._monitor.flush()
        self._tell(lambda logger: logger.flush())

    def close(self) -> None:
        """Write what waits, once more where the disk refused it, and close the loggers."""
        self.flush()
        for name in self._evaluations:
            if f"{name}.npz" in self._saver.missing:
                self._save_evaluations(name)
        self._tell(lambda logger: logger.close())

    def state_dict(self) -> dict[str, Any]:
        """Where the curves end now, to be resumed from here; flushes."""
        self.flush()
        return {
            "step": self._step,
            "t_start": self._t_start,
            "progress": self._progress.file.size,
            "monitor": self._monitor.size,
            "evaluations": dict(self._evaluations),
        }

    def _emit(self) -> None:
        if self._entry:
            self._monitor.flush()  # not with every rollout: it takes 0.06 ms
            entry, self._entry = self._entry, {}
            self._tell(lambda logger: logger.log(self._step, dict(entry)))

    def _tell(self, call: Callable[[Logger], object]) -> None:
        """Calls every logger; whatever one raises is said once, and costs no training."""
        for logger in self._loggers:
            try:
                call(logger)
            except Exception as error:
                self._failed(type(logger).__name__, error)

    def _failed(self, logger: str, error: Exception) -> None:
        step = max(self._step, 0)  # it is less before the first entry
        name, reason = f"logger {logger}", f"step {step}: {type(error).__name__}: {error}"
        self._saver.failed(name, reason, f"{name}: {reason}")


def _evaluations(timesteps: Any, results: Any, lengths: Any) -> dict[str, Array]:
    """Shapes [k], [k, episodes], [k, episodes] for k evaluations."""
    return {
        "timesteps": np.array(timesteps, np.int64),
        "results": np.array(results, np.float64),
        "ep_lengths": np.array(lengths, np.int64),
    }

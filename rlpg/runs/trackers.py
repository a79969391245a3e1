"""Loggers that hand the metrics of a run to wandb, mlflow or trackio."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any, Final

from rlpg.errors import UsageError
from rlpg.runs.logger import Logger

TRACKERS: Final = ("wandb", "mlflow", "trackio")


class TrackerLogger(Logger):
    """Begins a run of a tracker with the first metrics and ends it with ours.

    Where the tracker keeps it (a server, a folder, offline) is the tracker's own business:
    `WANDB_MODE=offline`, `MLFLOW_TRACKING_URI=file:runs/mlflow`.

    Args:
        kind: `wandb`, `mlflow` or `trackio`, which must be installed.
        name: of the run.
        settings: of the run, by dotted key.
        project: that the run belongs to.

    Raises:
        UsageError: there is no such tracker.
    """

    def __init__(
        self, kind: str, name: str, settings: Mapping[str, Any], *, project: str = "rlpg"
    ) -> None:
        if kind not in TRACKERS:
            raise UsageError(f"track: expected one of {', '.join(TRACKERS)}, got {kind}")
        self._kind, self._name, self._project = kind, name, project
        self._settings = dict(settings)
        self._tracker: Any = None  # the module, once a run has begun

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass the finite ones on."""
        if self._tracker is None:
            self._begin()
        finite = {tag: float(value) for tag, value in metrics.items() if math.isfinite(value)}
        if self._kind == "mlflow":
            self._tracker.log_metrics(finite, step=step)
        else:
            self._tracker.log(finite, step=step)

    def close(self) -> None:
        """End the tracker's run, if it has begun."""
        if self._tracker is not None:
            (self._tracker.end_run if self._kind == "mlflow" else self._tracker.finish)()

    def _begin(self) -> None:
        tracker = importlib.import_module(self._kind)
        if self._kind == "mlflow":
            tracker.set_experiment(self._project)
            tracker.start_run(run_name=self._name)
            tracker.log_params(self._settings)
        else:
            tracker.init(project=self._project, name=self._name, config=self._settings)
        self._tracker = tracker

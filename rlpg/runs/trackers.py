"""Loggers that hand the metrics of a run to wandb, mlflow or trackio."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rlpg.errors import UsageError
from rlpg.runs import files
from rlpg.runs.logger import Logger
from rlpg.runs.trees import from_json, to_json

TRACKERS: Final = ("wandb", "mlflow", "trackio")


class TrackerLogger(Logger):
    """Begins a run of a tracker with the first metrics and ends it with ours.

    `tracker.json` in our run's folder keeps the tracker's name for its run, so that a run which is
    resumed goes on there. Where the tracker keeps it (a server, a folder, offline) is the tracker's
    own business: `WANDB_MODE=offline`, `MLFLOW_TRACKING_URI=file:runs/mlflow`.

    Args:
        kind: `wandb`, `mlflow` or `trackio`, which must be installed.
        name: of the run, if it is a new one.
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
        self._file: Path | None = None
        self._has_tried = False
        self._tracker: Any = None  # the module, once a run has begun

    def begin(self, folder: Path) -> None:
        """Look there for the tracker's run, and leave its name there."""
        self._file = folder / "tracker.json"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass the finite ones on; where the tracker's run could not begin, it is tried once."""
        if not self._has_tried:
            self._has_tried = True
            self._begin()
        if self._tracker is None:
            return
        finite = {tag: float(value) for tag, value in metrics.items() if math.isfinite(value)}
        if self._kind == "mlflow":
            self._tracker.log_metrics(finite, step=step)
        else:
            self._tracker.log(finite, step=step)

    def close(self) -> None:
        if self._tracker is not None:
            (self._tracker.end_run if self._kind == "mlflow" else self._tracker.finish)()

    def _begin(self) -> None:
        tracker = importlib.import_module(self._kind)
        known: dict[str, str] = {}
        if self._file is not None and files.exists(self._file):
            known = from_json(files.read(self._file, limit=4096), self._file)
        before = known.get(self._kind)
        if self._kind == "mlflow":
            tracker.set_experiment(self._project)
            run = tracker.start_run(run_id=before, run_name=None if before else self._name)
            if before is None:
                tracker.log_params(self._settings)
            known[self._kind] = run.info.run_id
        else:
            options = {"project": self._project, "name": self._name, "config": self._settings}
            if before is not None:
                options |= {"id" if self._kind == "wandb" else "name": before, "resume": "allow"}
            run = tracker.init(**options)
            known[self._kind] = run.id if self._kind == "wandb" else run.name
        self._tracker = tracker
        if self._file is not None and before is None:
            files.write(self._file, to_json(known))

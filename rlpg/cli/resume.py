"""`rlpg resume RUN`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rlpg.cli.streams import quoted, report
from rlpg.cli.verb import EnvironmentId, Importing, RunFolder, WithEnvironment, check_extra
from rlpg.settings import Count, Finite


@dataclass(frozen=True, kw_only=True)
class Resume(Importing, WithEnvironment):
    """Continue a run that was stopped, killed or finished.

    It goes on from its newest checkpoint, to the same bits as if it had not stopped.

    examples:
      rlpg resume runs/CartPole-v1/reinforce/0
      rlpg resume runs/Hopper-v5/reinforce/0 --total-steps 2_000_000
    """

    positional: ClassVar[str] = "run_path"

    run_path: RunFolder = Path()
    """the run's folder"""
    total_steps: Count | None = None
    """a new budget (none: the run's own)"""
    env: EnvironmentId | None = None
    """where the run does not know how to make its environment"""
    exact: bool = False
    """refuse to go on where the bits may differ"""
    stop_at_return: Finite | None = None
    """end the run when the mean return of an evaluation is at least this (none: never)"""
    track: Literal["wandb", "mlflow", "trackio"] | None = None
    """hand the metrics to this tracker, too: where it has this run already, it goes on there"""
    quiet: bool = False
    """print the result only"""

    def check(self) -> None:
        if self.track is not None:
            check_extra("--track", self.track, "track" if self.track == "wandb" else self.track)

    def run(self) -> int:
        """Continue one run."""
        from rlpg.runs.trackers import TrackerLogger
        from rlpg.verbs.training import resume

        run = resume(
            self.run_path,
            env=self.env,
            env_kwargs=self.kwargs,
            total_steps=self.total_steps,
            exact=self.exact,
            loggers=[TrackerLogger(self.track, str(self.run_path), {})] if self.track else [],
            stop_at_return=self.stop_at_return,
            import_modules=self.import_modules,
            quiet=self.quiet,
        )
        report(run.evaluation.short if run.evaluation else "trained")
        report(f"saved in {quoted(run.path)}")
        return 0

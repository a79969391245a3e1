"""`rlpg sweep ENV`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from rlpg.cli.streams import report
from rlpg.cli.train import Train, parts
from rlpg.cli.verb import File, Folder, Number, check_extra
from rlpg.errors import UsageError
from rlpg.runs.run import safe_name
from rlpg.settings import Count


@dataclass(frozen=True, kw_only=True)
class Sweep(Train):
    """Look for good settings.

    Each trial trains with settings that Optuna chooses, once per seed. The study is a file, so the
    same command on other machines that share the folder works on the same study, and goes on with
    one that was stopped or killed. Options that set a setting keep it fixed.

    examples:
      rlpg sweep CartPole-v1 --agent ppo --trials 20 --total-steps 50_000
      rlpg sweep Hopper-v5 --agent ppo --trials 50 --space space.toml
    """

    hidden: ClassVar[tuple[str, ...]] = (*Train.hidden, "seeds", "run_dir", "explain")

    trials: Number = 50
    """how many trials, of all processes"""
    num_seeds: Annotated[int, Meta(ge=1, le=100)] = 3
    """seeds of each trial, from 0 on; its value is the mean of their evaluations after training"""
    space: File | None = None
    """a TOML file with the settings to try (none: the space shipped for the agent)"""
    sweep_dir: Folder | None = None
    """where the study and its runs are kept (none: sweeps/ENV/AGENT)"""
    jobs: Count | None = None
    """processes that work on the study (none: as many as cores)"""

    def run(self) -> int:
        """Sweep; say what is best and where it is."""
        check_extra("sweep", "optuna", "sweep")
        check_extra("sweep", "matplotlib", "sweep")
        from rlpg.rollouts.processes import usable_cores
        from rlpg.verbs.several import run_seeds
        from rlpg.verbs.spaces import check_space, space_of
        from rlpg.verbs.sweeping import Sweep as Study

        recipe = self.settings
        space = {
            key: kind
            for key, kind in space_of(recipe.agent, self.space).items()
            if self.space is not None or key not in self.given
        }
        check_space(space, recipe)
        folder = self.sweep_dir
        if folder is None:
            folder = Path("sweeps") / safe_name(self.env) / recipe.agent
        sweep = Study(
            env=self.env, recipe=recipe, folder=folder, space=space, trials=self.trials,
            seeds=tuple(range(self.num_seeds)), parts=parts(self.typed, self.import_modules),
            stop_at_return=self.stop_at_return,
        )  # fmt: skip
        study = sweep.study()
        jobs = min(self.jobs or max(1, usable_cores() // recipe.threads), self.trials)
        _, errors = run_seeds(sweep, range(jobs), jobs=jobs, quiet=self.quiet, name="process")
        for error in errors.values():
            raise error
        done = [trial for trial in study.trials if trial.value is not None]
        if not done:
            raise UsageError(f"{folder}: expected a trial that was done, got failed ones only")
        best = study.best_trial
        report(f"best of {len(done)} trials: {best.value:.2f} (trial {best.number})")
        for key, value in best.params.items():
            report(f"  {key} = {value}")
        picture = sweep.draw(study)
        report(f"saved in {folder}: best.toml" + (", importances.png" if picture else ""))
        if not self.quiet:
            report(f"next:  rlpg train {self.env} --recipe {folder / 'best.toml'}")
        return 0

"""The verbs that train: train, resume, sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from msgspec import Meta

from rlpg.cli.parsing import Given
from rlpg.cli.streams import EXIT_FAILED, complain, quoted, report
from rlpg.cli.verb import (
    EnvironmentId,
    File,
    Folder,
    Importing,
    Number,
    RunFolder,
    WithEnvironment,
    check_extra,
)
from rlpg.engine.shipped import AUTO, latest_shipped, recipe_for
from rlpg.errors import RlpgError, UsageError, decimals
from rlpg.runs.recipe import Device, Recipe, override
from rlpg.runs.run import named_env, safe_name, to_import
from rlpg.settings import SCHEDULE, Count, Finite, Natural

if TYPE_CHECKING:
    from rlpg.policies.references import UserParts
    from rlpg.verbs.several import Finished

Tracker = Literal["wandb", "mlflow", "trackio"]


@dataclass(frozen=True, kw_only=True)
class Train(Importing):
    """Train an agent.

    Settings come from the defaults of the agent, the recipe (shipped for some environments, or
    --recipe), and the options, in this order. The values shown are those that would be used.
    Without --agent (or with --agent auto), the agent is the one that is shipped for the
    environment, else ppo.

    examples:
      rlpg train CartPole-v1
      rlpg train LunarLander-v3 --seeds 0 1 2 --total-steps 1_000_000
      rlpg train FrozenLake-v1 --environment.kwargs.is_slippery false --learner.gamma 0.9
    """

    positional: ClassVar[str] = "env"
    aliases: ClassVar[Mapping[str, str]] = {"backend": "environment.backend", **Importing.aliases}
    free: ClassVar[tuple[str, ...]] = (
        "environment.kwargs",
        "policy.kwargs",
        "policy.network_kwargs",
    )
    hidden: ClassVar[tuple[str, ...]] = ("base", "given")
    work: ClassVar[str] = "rlpg.verbs.several"

    env: EnvironmentId = ""
    """a Gymnasium id, or module:Id-v0"""
    recipe: Annotated[str, Meta(title="FILE")] | None = None
    """a TOML recipe; `default`: the defaults of the agent, not even the shipped recipe (none: the
    shipped recipe, if there is one)"""
    seeds: tuple[Natural, ...] | None = None
    """train once with each of these seeds"""
    jobs: Count | None = None
    """how many of the seeds train at the same time, a process each (none: as many as cores)"""
    run_dir: Folder | None = None
    """where the run is kept (none: runs/ENV/AGENT/SEED)"""
    quiet: bool = False
    """print the result only"""
    verbose: bool = False
    """print where the time goes and the metrics of learning, too; or -v"""
    stop_at_return: Finite | None = None
    """end the run when the mean return of an evaluation is at least this (none: never)"""
    track: Tracker | None = None
    """hand the metrics to this tracker, too"""
    explain: bool = False
    """train nothing; print every setting, its value, and why it has this value"""
    settings: Recipe = field(default_factory=Recipe)
    base: Recipe = field(default_factory=Recipe)  # without the options
    # The options, as typed: words of any bytes, which a file's name may have, so no table of texts.
    given: MappingProxyType[str, str | None] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def prepared(cls, given: Given) -> Train:
        """With the recipe that would be used without the options."""
        if "seed" in given.options and "seeds" in given.options:
            raise UsageError("--seeds: expected either --seed or --seeds, got both")
        if given.options.get("agent") == AUTO:
            del given.options["agent"]
        typed = given.options
        env, agent, file = typed.get("env") or "", typed.get("agent"), typed.get("recipe")
        if given.is_help and ":" not in (agent or ""):  # nothing heavy is imported for it
            base = recipe_for(latest_shipped(env), agent, file, None)
        elif not env and not given.is_help:
            return cls()
        else:
            from rlpg.engine.components import find_recipe

            base = find_recipe(env, agent, file, parts(typed, "import_modules" in typed))
        return cls(settings=base, base=base, given=MappingProxyType(typed))

    def told(self, settings: Mapping[str, str]) -> dict[str, Any]:
        return {"settings": override(self.settings, settings)}

    def check(self) -> None:
        if self.seeds is not None and not 0 < len(self.seeds) == len(set(self.seeds)):
            raise UsageError(f"--seeds: expected seeds, each once, got {list(self.seeds)}")
        check_tracker(self.track)

    def run(self) -> int:
        own = parts(self.given, self.import_modules)
        if self.explain:
            from rlpg.cli.explain import explained

            for line in explained(self.settings, self.base, self.recipe, self.given, own):
                report(line)
            return 0
        from rlpg.verbs.several import Training, run_seeds

        def say(seed: int, run: Finished) -> None:
            report(f"seed {seed}: {run.evaluation.short if run.evaluation else 'trained'}")

        def complain_of(seed: int, error: RlpgError) -> None:
            error.args = (f"seed {seed}: {error}",)
            complain(error, EXIT_FAILED)

        seeds, folder = self.seeds or (self.settings.seed,), self.run_dir
        is_one = len(seeds) == 1
        folders = (
            {seed: folder if is_one else folder / str(seed) for seed in seeds} if folder else {}
        )
        training = Training(
            self.env, self.settings, own, folders,
            stop_at_return=self.stop_at_return, track=self.track, verbose=self.verbose,
        )  # fmt: skip
        errors: Mapping[int, RlpgError] = {}
        if is_one:
            runs = {seeds[0]: training.run(seeds[0], quiet=self.quiet)}
            say(seeds[0], runs[seeds[0]])
        else:
            runs, errors = run_seeds(
                training, seeds, jobs=self.jobs, quiet=self.quiet, done=say, failed=complain_of
            )
        means = [run.evaluation.mean for run in runs.values() if run.evaluation]
        if len(means) > 1:
            low, mid, high = map(decimals, (min(means), median(means), max(means)))
            report(f"{len(means)} seeds: median return {mid} ({low} to {high})")
        if errors:
            which = ", ".join(map(str, sorted(errors)))
            complain(RlpgError(f"{len(errors)} of {len(seeds)} seeds failed: {which}"), EXIT_FAILED)
        paths = [quoted(run.path) for run in runs.values()]
        if paths:
            report(f"saved in {', '.join(paths)}")
        if paths and not self.quiet:
            policy = self.settings.policy
            more = named_env(self.env) + to_import(policy.network, policy.factory)
            report(f"next:  rlpg evaluate {paths[0]} --episodes 100{more}")
            report(f"       tensorboard --logdir {quoted(folder) if folder else 'runs'}")
        return EXIT_FAILED if errors else 0


@dataclass(frozen=True, kw_only=True)
class Resume(Importing, WithEnvironment):
    """Continue a run that was stopped, killed or finished.

    It goes on from its newest checkpoint, to the same bits as if it had not stopped.

    examples:
      rlpg resume runs/CartPole-v1/reinforce/0
      rlpg resume runs/Hopper-v5/reinforce/0 --total-steps 2_000_000
    """

    positional: ClassVar[str] = "run_path"
    work: ClassVar[str] = "rlpg.verbs.training"

    run_path: RunFolder = Path()
    """the run's folder"""
    total_steps: Count | None = None
    """a new budget (none: the run's own)"""
    device: Device | None = None
    """where the networks are from now on (none: the run's own)"""
    env: EnvironmentId | None = None
    """where the run does not know how to make its environment"""
    exact: bool = False
    """refuse to go on where the bits may differ"""
    stop_at_return: Finite | None = None
    """end the run when the mean return of an evaluation is at least this (none: never)"""
    track: Tracker | None = None
    """hand the metrics to this tracker, too: where it has this run already, it goes on there"""
    quiet: bool = False
    """print the result only"""

    def check(self) -> None:
        check_tracker(self.track)

    def run(self) -> int:
        from rlpg.runs.trackers import TrackerLogger
        from rlpg.verbs.training import resume

        run = resume(
            self.run_path, env=self.env, env_kwargs=self.kwargs, total_steps=self.total_steps,
            device=self.device, exact=self.exact, stop_at_return=self.stop_at_return,
            loggers=[TrackerLogger(self.track, str(self.run_path), {})] if self.track else [],
            import_modules=self.import_modules, quiet=self.quiet,
        )  # fmt: skip
        report(run.evaluation.short if run.evaluation else "trained")
        report(f"saved in {quoted(run.path)}")
        return 0


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

    hidden: ClassVar[tuple[str, ...]] = (*Train.hidden, "seeds", "run_dir", "explain", "track")

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
        for module in ("optuna", "matplotlib"):
            check_extra("sweep", module, "sweep")
        from rlpg.engine.components import resolved
        from rlpg.rollouts.processes import usable_cores
        from rlpg.verbs.several import run_seeds
        from rlpg.verbs.spaces import checked_space, space_of
        from rlpg.verbs.sweeping import Sweep as Study

        recipe, own = self.settings, parts(self.given, self.import_modules)
        tried = {
            key: kind
            for key, kind in space_of(resolved(recipe, own), self.space).items()
            if self.space is not None or key not in self.given
        }
        space = checked_space(tried, recipe)
        folder = self.sweep_dir or Path("sweeps") / safe_name(self.env) / recipe.agent
        sweep = Study(
            env=self.env, recipe=recipe, folder=folder, space=space, trials=self.trials,
            seeds=tuple(range(self.num_seeds)), parts=own, stop_at_return=self.stop_at_return,
            verbose=self.verbose,
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
        report(f"best of {len(done)} trials: {decimals(best.value)} (trial {best.number})")
        for key, value in best.params.items():
            report(f"  {key} = {value}")
        picture = ", importances.png"
        if sweep.draw(study) is None:
            picture = "; no importances.png, which takes two finished trials of different returns"
        report(f"saved in {quoted(folder)}: best.toml{picture}")
        if not self.quiet:
            more = to_import(recipe.agent, *recipe.policy.values().values(),
                             *recipe.learner.values().values())  # fmt: skip
            best_toml = quoted(folder / "best.toml")
            report(f"next:  rlpg train {self.env} --recipe {best_toml}{more}")
        return 0


def check_tracker(track: Tracker | None) -> None:
    """UsageError where it is not installed."""
    if track is not None:
        check_extra("--track", track, "track" if track == "wandb" else track)


def parts(given: Mapping[str, str | None], import_modules: bool) -> UserParts:
    """The code of the user's that was typed, which may be imported."""
    from rlpg.policies.references import UserParts

    agent, baseline = given.get("agent") or "", given.get("learner.baseline") or ""
    schedules = {
        key.removeprefix("learner.").removesuffix(SCHEDULE): value
        for key, value in given.items()
        if key.endswith(SCHEDULE) and value and ":" in value
    }
    return UserParts(
        network=given.get("policy.network"),
        policy=given.get("policy.factory"),
        agent=agent if ":" in agent else None,
        baseline=baseline if ":" in baseline else None,
        schedules=schedules,
        import_modules=import_modules,
    )

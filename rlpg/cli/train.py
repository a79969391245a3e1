"""`rlpg train ENV`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from msgspec import Meta

from rlpg.cli.streams import EXIT_FAILED, complain, quoted, report
from rlpg.cli.verb import FREE, SET_BEFORE, EnvironmentId, Folder, Importing, check_extra
from rlpg.cli.words import Given
from rlpg.errors import EstimatorError, FileError, SaveError, TrainingError, UsageError
from rlpg.runs.recipe import Recipe, flatten, override
from rlpg.settings import Finite, Natural
from rlpg.shipped import AUTO, latest_shipped, recipe_for

if TYPE_CHECKING:
    from pathlib import Path

    from rlpg.references import UserParts
    from rlpg.runs.logger import Logger
    from rlpg.training import Run

OWN = (
    "agent",
    "policy.network",
    "policy.factory",
    "learner.baseline",
)  # may name code of the user's


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
    aliases: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"backend": "environment.backend", **Importing.aliases}
    )
    free: ClassVar[tuple[str, ...]] = FREE
    hidden: ClassVar[tuple[str, ...]] = ("typed", "base", "given")

    env: EnvironmentId = ""
    """a Gymnasium id, or module:Id-v0"""
    recipe: Annotated[str, Meta(title="FILE")] | None = None
    """a TOML recipe; `default`: the defaults of the agent, not even the shipped recipe (none: the
    shipped recipe, if there is one)"""
    seeds: tuple[Natural, ...] | None = None
    """train once with each of these seeds"""
    run_dir: Folder | None = None
    """where the run is kept (none: runs/ENV/AGENT/SEED)"""
    quiet: bool = False
    """print the result only"""
    verbose: bool = False
    """print where the time goes and the metrics of learning, too; or -v"""
    stop_at_return: Finite | None = None
    """end the run when the mean return of an evaluation is at least this (none: never)"""
    track: Literal["wandb", "mlflow", "trackio"] | None = None
    """hand the metrics to this tracker, too"""
    explain: bool = False
    """train nothing; print every setting, its value, and why it has this value"""
    settings: Recipe = field(default_factory=Recipe)
    typed: dict[str, str] = field(default_factory=dict)  # code of the user's that may be imported
    base: Recipe = field(default_factory=Recipe)  # without the options
    given: tuple[str, ...] = ()  # keys of the options

    @classmethod
    def prepared(cls, given: Given) -> Train:
        """With the recipe that would be used without the options."""
        if "seed" in given.options and "seeds" in given.options:
            raise UsageError("--seeds: expected either --seed or --seeds, got both")
        if given.options.get("agent") == AUTO:
            del given.options["agent"]
        env, agent = given.options.get("env") or "", given.options.get("agent")
        file = given.options.get("recipe")
        typed = {key: text for key in OWN if (text := given.options.get(key)) is not None}
        if given.is_help and ":" not in (agent or ""):  # nothing heavy is imported for it
            base = recipe_for(latest_shipped(env), agent, file, None)
        elif not env and not given.is_help:
            return cls()
        else:
            from rlpg.components import find_recipe

            base = find_recipe(env, agent, file, parts(typed, "import_modules" in given.options))
        keys = (*SET_BEFORE, "policy.network", "policy.factory")  # which some of the entries need
        before = {key: text for key in keys if (text := given.options.get(key)) is not None}
        return cls(
            settings=override(base, {**before, **given.entries}),
            typed=typed,
            base=base,
            given=tuple(given.options),
        )

    def check(self) -> None:
        if self.seeds == ():
            raise UsageError("--seeds: expected at least one seed, got none")
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"--seeds: expected different seeds, got {list(self.seeds)}")
        if self.track is not None:
            check_extra("--track", self.track, "track" if self.track == "wandb" else self.track)

    def _trackers(self, seed: int) -> list[Logger]:
        """The tracker that was asked for."""
        if self.track is None:
            return []
        from rlpg.runs.trackers import TrackerLogger

        recipe = override(self.settings, {"seed": seed})
        name = f"{recipe.environment.id} {recipe.agent} seed {seed}"
        return [TrackerLogger(self.track, name, flatten(recipe))]

    def run(self) -> int:
        """Train once per seed; say what was trained and what to do next.

        Of several seeds, one whose run fails does not stop the others; the exit code tells.
        """
        if self.explain:
            return self._explain()
        seeds = self.seeds or (self.settings.seed,)
        paths: list[Path] = []
        means: list[float] = []
        failed: list[int] = []
        for seed in seeds:
            run: Run | None
            try:
                run = self._train(seed, is_alone=len(seeds) == 1)
            except (TrainingError, EstimatorError, UsageError, FileError) as error:
                is_refused = isinstance(error, UsageError | FileError)
                is_stopped = isinstance(error, SaveError) and error.run is None  # by a signal
                if len(seeds) == 1 or is_stopped or (is_refused and not paths + failed):
                    raise
                error.args = (f"seed {seed}: {error}",)
                complain(error, EXIT_FAILED)
                failed.append(seed)
                run = error.run if isinstance(error, SaveError) else None
            if run is not None:
                paths.append(run.path)
                means += [run.evaluation.mean] if run.evaluation else []
                report(f"seed {seed}: {run.evaluation.short if run.evaluation else 'trained'}")
        if len(means) > 1:
            low, high = min(means), max(means)
            report(
                f"{len(means)} seeds: median return {median(means):.2f} ({low:.2f} to {high:.2f})"
            )
        if paths:
            report(f"saved in {', '.join(map(quoted, paths))}")
        if paths and not self.quiet:
            report(f"next:  rlpg evaluate {quoted(paths[0])} --episodes 100")
            report(f"       tensorboard --logdir {quoted(paths[0]) if self.run_dir else 'runs'}")
        return EXIT_FAILED if failed else 0

    def _explain(self) -> int:
        """Print what would be trained with."""
        from rlpg.cli.explain import explained

        name = f"recipe {self.recipe}" if self.recipe else f"the recipe shipped for {self.env}"
        own = parts(self.typed, self.import_modules)
        for line in explained(self.settings, self.base, name, self.given, own):
            report(line)
        return 0

    def _train(self, seed: int, *, is_alone: bool) -> Run:
        """One of the runs."""
        from rlpg.training import Hooks, run_recipe

        run_dir = self.run_dir
        if run_dir is not None and not is_alone:
            run_dir = run_dir / str(seed)
        return run_recipe(
            self.env,
            override(self.settings, {"seed": seed}),
            run_dir,
            parts=parts(self.typed, self.import_modules),
            hooks=Hooks(
                stop_at_return=self.stop_at_return,
                loggers=self._trackers(seed),
                verbose=self.verbose,
            ),
            quiet=self.quiet,
        )


def parts(typed: Mapping[str, str], import_modules: bool) -> UserParts:
    """The code of the user's that was typed: it may be imported."""
    from rlpg.references import UserParts

    agent, baseline = typed.get("agent", ""), typed.get("learner.baseline", "")
    return UserParts(
        network=typed.get("policy.network"),
        policy=typed.get("policy.factory"),
        learner=agent if ":" in agent else None,
        baseline=baseline if ":" in baseline else None,
        import_modules=import_modules,
    )

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
from rlpg.engine.shipped import AUTO, latest_shipped, recipe_for
from rlpg.errors import RlpgError, UsageError
from rlpg.runs.recipe import Recipe, flatten, override
from rlpg.settings import Count, Finite, Natural

if TYPE_CHECKING:
    from rlpg.policies.references import UserParts
    from rlpg.runs.logger import Logger

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
            from rlpg.engine.components import find_recipe

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
        from rlpg.engine.assembly import Hooks
        from rlpg.verbs.several import Finished, Training, run_seeds
        from rlpg.verbs.training import Run, run_recipe

        def say(seed: int, run: Run | Finished) -> None:
            report(f"seed {seed}: {run.evaluation.short if run.evaluation else 'trained'}")

        def complain_of(seed: int, error: RlpgError) -> None:
            error.args = (f"seed {seed}: {error}",)
            complain(error, EXIT_FAILED)

        own = parts(self.typed, self.import_modules)
        seeds, folder = self.seeds or (self.settings.seed,), self.run_dir
        runs: Mapping[int, Run | Finished]
        errors: Mapping[int, RlpgError] = {}
        if len(seeds) == 1:
            recipe = override(self.settings, {"seed": seeds[0]})
            hooks = Hooks(
                stop_at_return=self.stop_at_return,
                loggers=self._trackers(seeds[0]),
                verbose=self.verbose,
            )
            run = run_recipe(self.env, recipe, folder, parts=own, hooks=hooks, quiet=self.quiet)
            runs = {seeds[0]: run}
            say(seeds[0], run)
        else:
            training = Training(
                self.env, self.settings, folder, own, self.stop_at_return, self._trackers
            )
            runs, errors = run_seeds(
                training, seeds, jobs=self.jobs, quiet=self.quiet, verbose=self.verbose,
                done=say, failed=complain_of,
            )  # fmt: skip
        means = [run.evaluation.mean for run in runs.values() if run.evaluation]
        if len(means) > 1:
            low, high = min(means), max(means)
            report(
                f"{len(means)} seeds: median return {median(means):.2f} ({low:.2f} to {high:.2f})"
            )
        paths = [run.path for run in runs.values()]
        if paths:
            report(f"saved in {', '.join(map(quoted, paths))}")
        if paths and not self.quiet:
            report(f"next:  rlpg evaluate {quoted(paths[0])} --episodes 100")
            report(f"       tensorboard --logdir {quoted(paths[0]) if folder else 'runs'}")
        return EXIT_FAILED if errors else 0

    def _explain(self) -> int:
        """Print what would be trained with."""
        from rlpg.cli.explain import explained

        name = f"recipe {self.recipe}" if self.recipe else f"the recipe shipped for {self.env}"
        own = parts(self.typed, self.import_modules)
        for line in explained(self.settings, self.base, name, self.given, own):
            report(line)
        return 0


def parts(typed: Mapping[str, str], import_modules: bool) -> UserParts:
    """The code of the user's that was typed: it may be imported."""
    from rlpg.policies.references import UserParts

    agent, baseline = typed.get("agent", ""), typed.get("learner.baseline", "")
    return UserParts(
        network=typed.get("policy.network"),
        policy=typed.get("policy.factory"),
        learner=agent if ":" in agent else None,
        baseline=baseline if ":" in baseline else None,
        import_modules=import_modules,
    )

"""The loop: collect, learn, and now and then log, evaluate and save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv

from rlpg.errors import EnvironmentFault, UsageError
from rlpg.evaluation import Evaluation, play
from rlpg.learners import Reinforce
from rlpg.loading import environment_to_make
from rlpg.meter import Every, Meter
from rlpg.policies import Policy
from rlpg.prepare import (
    completed,
    environment_options,
    find_recipe,
    make_learner,
    make_policy,
    stream,
    training_envs,
    with_usable_kwargs,
)
from rlpg.record import Record, differences, versions_now
from rlpg.restore import fitting, restore
from rlpg.rollouts import (
    Collector,
    EnvSource,
    Rollout,
    another_like,
    hangs_end_the_process,
    make_envs,
    reseed,
)
from rlpg.runs import checkpoint
from rlpg.runs.recipe import Recipe, override
from rlpg.runs.run import create_run, open_run
from rlpg.stopping import StopSignals
from rlpg.terminal import Display
from rlpg.threads import cpu_threads

LOG_ENTRIES, EVALUATIONS = 500, 20  # of a run whose recipe does not say how often


@dataclass(frozen=True)
class Run:
    """What `train` returns."""

    path: Path
    policy: Policy  # the last one; the best is `rlpg.load(run.path / "best_policy")`
    evaluation: Evaluation | None  # after training; None where the environment cannot be copied


def train(
    env: EnvSource,
    agent: str = "reinforce",
    *,
    seed: int | None = None,
    total_steps: int | None = None,
    run_dir: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    overrides: Mapping[str, object] | None = None,
    quiet: bool = True,
) -> Run:
    """Train an agent and return its run: `run.path`, `run.policy`, `run.evaluation`.

    Args:
        env: an id (`CartPole-v1`, `module:Id-v0`), a class or function that makes a
            `gymnasium.Env`, a `gymnasium.Env`, or a vector environment. An object without a
            registered id cannot be copied, so it is not evaluated.
        agent: the learner.
        seed: of every random stream of the run.
        total_steps: environment steps to train for.
        run_dir: where the run is kept; None: `runs/<env>/<agent>/<seed>`, numbered if taken.
        recipe: a TOML file or a `Recipe`. None: the one shipped for this environment, or the
            defaults; `"default"`: the defaults.
        overrides: single settings by dotted key, `{"rollout.num_envs": 16}`; they win.
        quiet: print nothing.

    Raises:
        UsageError: before anything is written, if what was asked for cannot be done.
        TrainingError: the run had to stop; what it had saved stays valid.
    """
    changes = {"total_steps": total_steps, "seed": seed} | dict(overrides or {})
    changes = {key: value for key, value in changes.items() if value is not None}
    return run_recipe(env, override(find_recipe(env, agent, recipe), changes), run_dir, quiet=quiet)


def run_recipe(
    env: EnvSource, recipe: Recipe, run_dir: str | Path | None = None, *, quiet: bool = True
) -> Run:
    """Train as a complete recipe says; see `train`."""
    recipe = completed(recipe)
    path = None if run_dir is None else Path(run_dir)
    with ExitStack() as stack:
        try:
            parts = stack.enter_context(assembled(env, recipe, quiet=quiet))
        except EnvironmentFault:  # in its first reset: the traceback needs a place
            with create_run(recipe, versions_now(), path=path).held():
                raise
        # Whatever can be refused has been refused: from here on there is something on disk.
        folder = create_run(recipe, versions_now(), path=path)
        with folder.held():
            return finish(parts, Record(folder, recipe, parts.display.line))


def resume(
    path: str | Path,
    *,
    env: EnvSource | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    total_steps: int | None = None,
    exact: bool = False,
    quiet: bool = True,
) -> Run:
    """Continue a run that was stopped, killed or finished, to the same bits as if it had not been.

    It goes on from its newest valid checkpoint, or from the start if there is none. Where the bits
    may differ (other versions, another processor, environments that do not repeat themselves), it
    says so.

    Args:
        path: the run's folder.
        env: needed where the run was given an environment object, or an id with a module to
            import; otherwise the run knows.
        env_kwargs: arguments for the environment's constructor, instead of the run's own and
            besides. A run's file may not choose paths, windows and large numbers.
        total_steps: a new budget; None: the run's own. A linear learning-rate schedule stretches
            to it.
        exact: refuse to go on where the bits may differ.
        quiet: print nothing.

    Raises:
        FileError: there is no run, it cannot be read, or names a module to import or an argument
            of the environment that a file may not choose.
        UsageError: another process is training it; or `exact`.
    """
    folder = open_run(Path(path))
    recipe = with_usable_kwargs(folder.load_recipe(), folder.path, env_kwargs)
    if total_steps is not None:
        recipe = override(recipe, {"total_steps": total_steps})
    if env is None:
        env = environment_to_make(recipe.environment.id, None, folder.path)
    with assembled(env, recipe, quiet=quiet) as parts, folder.held():
        saved, skipped = checkpoint.newest(folder.checkpoints)
        notes = [f"skipped {reason}" for reason in skipped]
        state = saved.state if saved is not None else None
        if saved is not None:
            notes += differences(saved.versions, versions_now())
            problem = restore(saved, parts.learner, parts.collector, parts.meter)
            if problem:
                notes.append(f"bits may differ: going on with fresh episodes, because {problem}")
        if exact and notes:
            raise UsageError(f"{path}: {'; '.join(notes)}; without --exact it goes on")
        folder.save_recipe(recipe)
        with fitting(folder.checkpoints):
            record = Record(folder, recipe, parts.display.line, state)
        at = f"step {parts.collector.env_steps:,}" if saved else "the start"
        parts.display.notes += (f"resumed from {at}", *notes)
        return finish(parts, record)


@dataclass(frozen=True)
class Parts:
    """All that a run consists of, while it goes on."""

    recipe: Recipe
    collector: Collector
    learner: Reinforce
    evaluator: Evaluator
    meter: Meter
    display: Display


@contextmanager
def assembled(env: EnvSource, recipe: Recipe, *, quiet: bool) -> Iterator[Parts]:
    """The parts at the start of a run; closed at the end."""
    with ExitStack() as stack:
        stack.enter_context(cpu_threads(recipe.threads))
        envs, description = stack.enter_context(training_envs(env, recipe))
        policy = make_policy(envs, recipe)
        learner = make_learner(policy, recipe)
        if recipe.compile:
            learner.compile()
        evaluator = stack.enter_context(Evaluator(env, recipe))
        notes = description, policy.observations.describe_in_words(), evaluator.note
        title = f"{recipe.environment.id} {recipe.agent} seed {recipe.seed}"
        display = Display(title, recipe.total_steps, notes=notes, quiet=quiet)
        seed = stream(recipe.seed, "actions")
        collector = Collector(envs, policy, seed, log_prob=False, warn=display.line)
        yield Parts(recipe, collector, learner, evaluator, Meter(collector), display)


def finish(parts: Parts, record: Record) -> Run:
    """Train to the end, evaluate, save; or save and stop where a signal asks for it."""
    policy = parts.learner.policy
    environments = [parts.collector.envs, *parts.evaluator.environments]
    fatal_hangs = hangs_end_the_process(environments, record.folder.last_words)
    with record, parts.display, fatal_hangs, StopSignals() as stop:
        loop(parts, record, stop)
        if stop.received is None:
            evaluation = parts.evaluator.final(policy)
            record.finish(parts.collector.env_steps, policy, evaluation)
    stop.raise_if_received()
    return Run(record.folder.path, policy.requires_grad_(False).eval(), evaluation)


def loop(parts: Parts, record: Record, stop: StopSignals) -> None:
    """Collect and learn until `total_steps` environment steps are done."""
    recipe, collector, learner, meter = parts.recipe, parts.collector, parts.learner, parts.meter
    policy, total, done = learner.policy, recipe.total_steps, collector.env_steps
    log_due = Every(recipe.log.every or total // LOG_ENTRIES, total, done)
    evaluation_due = Every(recipe.evaluation.every or total // EVALUATIONS, total, done)
    checkpoint_due = Every(recipe.checkpoint.every or total // EVALUATIONS, total, done)
    parts.display.done_steps = done
    is_stopping = False
    while collector.env_steps < total and not is_stopping:
        remaining = 1.0 - collector.env_steps / total
        lr_scale = remaining if recipe.learner.learning_rate_schedule == "linear" else 1.0
        with meter.timing("collect"):
            rollout = collect(collector, recipe)
        with meter.timing("learn"):
            figures = learner.update(rollout, lr_scale=lr_scale)
        step = collector.env_steps
        meter.add(figures, rollout.episodes)
        record.episodes(rollout.episodes)
        if log_due(step):
            record.scalars(step, meter.figures())
            parts.display.update(step, record.latest)
        if evaluation_due(step):
            record.evaluated(step, policy, parts.evaluator(step, policy))
            parts.display.update(step, record.latest)
        is_stopping = stop.received is not None  # read once: what ends the loop is what saves
        if checkpoint_due(step) or is_stopping:
            state = {
                "learner": learner.state_dict(),
                "collector": collector.state_dict(),
                "meter": meter.state_dict(),
            }
            record.checkpoint(step, state, policy)


def collect(collector: Collector, recipe: Recipe) -> Rollout:
    """One update's worth of experience."""
    if recipe.rollout.episodes_per_env is not None:
        return collector.episodes(recipe.rollout.episodes_per_env)
    return collector.steps(recipe.rollout.num_steps)


class Evaluator:
    """Evaluates on environments of its own, so training never notices.

    The seeds of an evaluation are a function of the run's seed and of the step it is made at.
    """

    def __init__(self, env: EnvSource, recipe: Recipe) -> None:
        self._settings, self._seed = recipe.evaluation, recipe.seed
        self._envs: VectorEnv[Any, Any, Any] | None = None
        another = another_like(env)
        if another is None:
            return
        copies = min(self._settings.num_envs, self._settings.episodes)
        seed = stream(recipe.seed, "evaluation")
        options = environment_options(another, recipe)
        self._envs = make_envs(another, copies, seed=seed, **options).envs

    @property
    def environments(self) -> list[VectorEnv[Any, Any, Any]]:
        """What it plays on: one vector environment, or none."""
        return [] if self._envs is None else [self._envs]

    @property
    def note(self) -> str:
        """One line for the user where there is something to say."""
        if self._envs is not None:
            return ""
        return "no evaluation: Gymnasium cannot make another one of this environment object"

    def __call__(self, step: int, policy: Policy) -> dict[str, Evaluation]:
        """`eval` and, if the recipe says so, `eval_stochastic`; nothing where it cannot."""
        if self._envs is None:
            return {}
        kinds = {"eval": True} | ({"eval_stochastic": False} if self._settings.stochastic else {})
        evaluations = {}
        for name, deterministic in kinds.items():
            seed = stream(self._seed, "evaluation", step)
            reseed(self._envs, seed)
            evaluations[name] = play(
                policy, self._envs, self._settings.episodes, seed, deterministic=deterministic
            )
        return evaluations

    def final(self, policy: Policy) -> Evaluation | None:
        """The evaluation after training, on seeds that no evaluation before it has seen."""
        if self._envs is None:
            return None
        seed = stream(self._seed, "final evaluation")
        reseed(self._envs, seed)
        return play(policy, self._envs, self._settings.final_episodes, seed, deterministic=True)

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *error: object) -> None:
        if self._envs is not None:
            self._envs.close()

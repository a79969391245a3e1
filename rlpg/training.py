"""The loop: collect, learn, and now and then log, evaluate and save."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpg.components import (
    find_recipe,
    learner_settings,
    make_collector,
    make_learner,
    make_policy,
    resolved,
    settings_of,
    training_envs,
    with_record,
    with_usable_kwargs,
    with_what_auto_came_to,
)
from rlpg.errors import EnvironmentFault, SaveError, UsageError
from rlpg.evaluation import Evaluation, Evaluator
from rlpg.gradients.baselines import Baseline
from rlpg.learners import Learner
from rlpg.loading import environment_to_make
from rlpg.metrics import Every, MetricsAccumulator, histograms
from rlpg.policies import Policy
from rlpg.references import Part, UserParts, reference_to
from rlpg.restore import fitting, restore, restore_tensors
from rlpg.rollouts import (
    BaseCollector,
    EnvSource,
    Rollout,
    hangs_end_the_process,
)
from rlpg.run_writer import RunWriter, differences, versions_now
from rlpg.runs.logger import Logger
from rlpg.runs.recipe import Recipe, override
from rlpg.runs.run import create_run, open_run
from rlpg.runs.store import Checkpoint, newest_checkpoint
from rlpg.stopping import StopSignals
from rlpg.terminal import Display
from rlpg.threads import cpu_threads
from rlpg.trouble import Trouble

LOG_ENTRIES, EVALUATIONS = 500, 20  # of a run whose recipe does not say how often
CHECKPOINT_SECONDS = 60.0  # between two checkpoints at most, but for the length of an iteration

OnLog = Callable[[int, dict[str, float]], bool | None]
Schedules = Mapping[str, Callable[[float], float]]


@dataclass(frozen=True, repr=False)
class Run:
    """What `train` returns."""

    path: Path
    policy: Policy  # the last one; the best is `rlpg.load(run.path / "best_policy")`
    evaluation: Evaluation | None  # after training; None where the environment cannot be copied

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.evaluation or 'not evaluated'})"

    def _repr_html_(self) -> str:
        path, result = html.escape(str(self.path)), html.escape(str(self.evaluation or ""))
        return f"<b>Run</b> <code>{path}</code><br>{result}"


@dataclass(frozen=True)
class Hooks:
    """What a caller wants to see of a run, and when it shall end before its budget."""

    on_log: OnLog | None = None
    loggers: Sequence[Logger] = ()
    stop_at_return: float | None = None  # mean return of an evaluation
    verbose: bool = False  # print where the time goes, and the metrics of learning


def train(
    env: EnvSource,
    agent: str | type[Learner] | None = None,
    *,
    seed: int | None = None,
    total_steps: int | None = None,
    run_dir: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    overrides: Mapping[str, object] | None = None,
    network: Part | None = None,
    policy: Part | None = None,
    baseline: Part | Baseline | None = None,
    schedules: Schedules | None = None,
    on_log: OnLog | None = None,
    loggers: Sequence[Logger] = (),
    stop_at_return: float | None = None,
    import_modules: bool = False,
    quiet: bool | None = None,
) -> Run:
    """Train an agent and return its run: `run.path`, `run.policy`, `run.evaluation`.

    Parts of your own are given as objects, or as `"module:Name"`; a `functools.partial` carries
    keyword arguments. The run's files name them, and `resume` and `load` want them again.

    Args:
        env: an id (`CartPole-v1`, `module:Id-v0`), Gymnasium's spec of one, a class or function
            that makes a `gymnasium.Env`, a `gymnasium.Env`, or a vector environment. An object
            without a registered id, or in a wrapper that Gymnasium cannot make again, cannot be
            copied, so it is not evaluated.
        agent: the learner: `reinforce`, `a2c`, `ppo`, `npg`, `trpo`, `pathwise`, or a subclass of
            `Learner`. None and `auto`: the recipe's, else the one shipped for the environment, else
            `ppo`.
        seed: of every random stream of the run.
        total_steps: environment steps to train for.
        run_dir: where the run is kept; None: `runs/<env>/<agent>/<seed>`, numbered if taken.
        recipe: a TOML file or a `Recipe`. None: the one shipped for this environment, or the
            defaults; `"default"`: the defaults.
        overrides: single settings by dotted key, `{"rollout.num_envs": 16}`; they win.
        network: `network(num_features, num_outputs)` makes the network of policy and critic.
        policy: `policy(observation_space, action_space)` makes an `rlpg.Policy`.
        baseline: the name of a baseline, or an `rlpg.Baseline`.
        schedules: functions of progress in [0, 1], by setting; see `Learner`.
        on_log: called with the step and the metrics of each log entry; True ends the run.
        loggers: get the metrics of each log entry, too.
        stop_at_return: end the run when an evaluation's mean return is at least this.
        import_modules: whether parts that only a recipe file names may be imported.
        quiet: True prints nothing, and warnings are raised as `RlpgWarning`. None: show progress on
            a terminal and in a notebook only.

    Raises:
        UsageError: before anything is written, if what was asked for cannot be done.
        TrainingError: the run had to stop; what it had saved stays valid.
        SaveError: the run is done, and not everything could be saved.
    """
    name, parts = own_parts(agent, network, policy, baseline, schedules, import_modules)
    changes = {"total_steps": total_steps, "seed": seed} | dict(overrides or {})
    changes = {key: value for key, value in changes.items() if value is not None}
    base = find_recipe(env, name or None, recipe, parts)
    hooks = Hooks(on_log, loggers, stop_at_return)
    return run_recipe(
        env, override(base, settings_of(parts) | changes), run_dir,
        parts=parts, hooks=hooks, quiet=is_quiet(quiet),
    )  # fmt: skip


def own_parts(
    agent: str | type[Learner] | None,
    network: Part | None,
    policy: Part | None,
    baseline: Part | Baseline | None,
    schedules: Schedules | None,
    import_modules: bool,
) -> tuple[str, UserParts]:
    """The agent's name, and what the caller brings."""
    learner = None if isinstance(agent, str) and ":" not in agent else agent
    name = "" if agent is None else reference_to(agent, "agent").name if learner else str(agent)
    return name, UserParts(network, policy, learner, baseline, schedules or {}, import_modules)


def is_quiet(quiet: bool | None) -> bool:
    """Whether to print nothing: as asked for, else where nobody watches."""
    if quiet is not None:
        return quiet
    is_notebook = "ipykernel" in sys.modules
    return not (is_notebook or (sys.stderr is not None and sys.stderr.isatty()))


def run_recipe(
    env: EnvSource,
    recipe: Recipe,
    run_dir: str | Path | None = None,
    *,
    parts: UserParts | None = None,
    hooks: Hooks | None = None,
    quiet: bool = True,
) -> Run:
    """Train as a complete recipe says; see `train`."""
    parts, hooks = parts or UserParts(), hooks or Hooks()
    env, recipe = with_record(env, resolved(recipe, parts))
    path = None if run_dir is None else Path(run_dir)
    with ExitStack() as stack:
        try:
            components = stack.enter_context(assembled(env, recipe, parts, hooks, quiet=quiet))
        except EnvironmentFault:  # in its first reset: the traceback needs a place
            with create_run(recipe, versions_now(), path=path).held():
                raise
        # Whatever can be refused has been refused: from here on there is something on disk.
        recipe = with_what_auto_came_to(recipe, components.learner)
        folder = create_run(recipe, versions_now(), path=path)
        with folder.held():
            warn = components.display.warn
            writer = RunWriter(folder, recipe, warn, loggers=hooks.loggers)
            return finish(components, writer)


def resume(
    path: str | Path,
    *,
    env: EnvSource | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    total_steps: int | None = None,
    exact: bool = False,
    agent: str | type[Learner] | None = None,
    network: Part | None = None,
    policy: Part | None = None,
    baseline: Part | Baseline | None = None,
    schedules: Schedules | None = None,
    on_log: OnLog | None = None,
    loggers: Sequence[Logger] = (),
    stop_at_return: float | None = None,
    import_modules: bool = False,
    quiet: bool | None = None,
) -> Run:
    """Continue a run that was stopped, killed or finished, to the same bits as if it had not been.

    It goes on from its newest valid checkpoint, or from the start if there is none. Where the bits
    may differ (other versions, another processor, environments that do not repeat themselves), it
    says so.

    Args:
        path: the run's folder.
        env: needed where the run was given an environment object, or an id with a module to
            import; otherwise the run knows.
        env_kwargs: arguments for the environment's constructor, which replace the run's own or are
            added to them. A run's file may not choose paths, windows and large numbers.
        total_steps: a new budget; None: the run's own. A linear learning-rate schedule stretches
            to it.
        exact: refuse to go on where the bits may differ.
        agent, network, policy, baseline, schedules: the parts of your own that the run was
            trained with; see `train`.
        on_log, loggers, stop_at_return, quiet: see `train`.
        import_modules: whether parts that the run only names may be imported.

    Raises:
        FileError: there is no run, it cannot be read, or names a module to import or an argument
            of the environment that a file may not choose.
        UsageError: another process is training it, or `exact` was asked for and cannot be had.
        SaveError: the run is done, and not everything could be saved.
    """
    _, parts = own_parts(agent, network, policy, baseline, schedules, import_modules)
    hooks = Hooks(on_log, loggers, stop_at_return)
    folder = open_run(Path(path))
    recipe = before = folder.load_recipe(resolve=lambda name: learner_settings(name, parts))
    recipe = before = with_usable_kwargs(recipe, folder.path, env_kwargs)
    if total_steps is not None:
        recipe = override(recipe, {"total_steps": total_steps})
    if env is None:
        env = environment_to_make(recipe.environment.id, None, folder.path)
    env, recipe = with_record(env, recipe)
    quiet = is_quiet(quiet)
    with assembled(env, recipe, parts, hooks, quiet=quiet) as components, folder.held():
        saved, skipped = newest_checkpoint(folder.checkpoints)
        notes = [f"skipped {reason}" for reason in skipped]
        if saved is not None:
            notes += differences(saved.versions, versions_now())
            problem = bring_back(components, saved)
            if problem:
                notes.append(f"bits may differ: going on with fresh episodes, because {problem}")
        if exact and notes:
            raise UsageError(f"{path}: {'; '.join(notes)}; without --exact it goes on")
        with fitting(folder.checkpoints):
            warn = components.display.warn
            writer = RunWriter(folder, recipe, warn, saved, hooks.loggers)
        folder.save_recipe(recipe, before=before, step=components.collector.env_steps)
        at = f"step {components.collector.env_steps:,}" if saved else "the start"
        components.display.notes += (f"resumed from {at}",)
        for note in notes:
            warn(note)
        return finish(components, writer)


@dataclass(frozen=True)
class Components:
    """All that a run consists of, while it goes on."""

    recipe: Recipe
    collector: BaseCollector
    learner: Learner
    evaluator: Evaluator
    accumulator: MetricsAccumulator
    display: Display
    hooks: Hooks


def bring_back(components: Components, saved: Checkpoint) -> str:
    """Bring fresh components to where they were saved.

    Returns:
        "", or in one line why the environments could not be brought back; collecting then goes on
        with fresh episodes.

    Raises:
        FileError: the state is not that of such components, which cannot be used any more.
    """
    with fitting(saved.path):
        state = saved.state
        restore_tensors(components.learner, state["learner"], "learner")
        problem = restore(components.collector, state["collector"], "collector")
        restore(components.accumulator, state["metrics"], "metrics")
        if components.collector.env_steps != saved.step:
            raise ValueError(f"env_steps: expected {saved.step}, got others")
    return problem


@contextmanager
def assembled(
    env: EnvSource, recipe: Recipe, parts: UserParts, hooks: Hooks, *, quiet: bool
) -> Iterator[Components]:
    """The components at the start of a run; closed at the end."""
    with ExitStack() as stack:
        stack.enter_context(cpu_threads(recipe.threads))
        envs, description = stack.enter_context(training_envs(env, recipe))
        policy = make_policy(envs, recipe, parts)
        learner = make_learner(policy, recipe, parts)
        is_cut = recipe.rollout.episodes_per_env is None
        learner.check_rollouts(recipe.rollout.num_steps if is_cut else None, envs.num_envs)
        if recipe.compile:
            learner.compile()
        evaluator = stack.enter_context(Evaluator(env, recipe))
        notes = description, policy.observations.describe_in_words(), evaluator.note
        title = f"{recipe.environment.id} {recipe.agent} seed {recipe.seed}"
        display = Display(
            title, recipe.total_steps, notes=notes, quiet=quiet, verbose=hooks.verbose
        )
        collector = make_collector(envs, learner, recipe, display.warn)
        accumulator = MetricsAccumulator(collector)
        yield Components(recipe, collector, learner, evaluator, accumulator, display, hooks)


def finish(components: Components, writer: RunWriter) -> Run:
    """Train to the end, evaluate, save; or save and stop where a signal asks for it."""
    policy, evaluator = components.learner.policy, components.evaluator
    path = writer.folder.path
    environments = [components.collector.envs, *evaluator.environments]
    fatal_hangs = hangs_end_the_process(environments, writer.folder.last_words)
    run = None
    with writer, components.display, fatal_hangs, StopSignals() as stop:
        loop(components, writer, stop)
        if stop.received is None:
            step = components.collector.env_steps
            evaluation = evaluator.final(policy, step, writer.evaluation_lengths())
            writer.finish(step, policy, evaluation)
            run = Run(path, policy.requires_grad_(False).eval(), evaluation)
    missing = writer.missing()
    if missing:
        raise SaveError(f"{path}: expected everything to be saved, missing: {missing}", run)
    stop.raise_if_received()
    assert run is not None
    return run


def loop(components: Components, writer: RunWriter, stop: StopSignals) -> None:
    """Collect and learn until `total_steps` environment steps are done, or something says stop."""
    recipe, collector, learner = components.recipe, components.collector, components.learner
    accumulator, display, hooks = components.accumulator, components.display, components.hooks
    policy, total, done = learner.policy, recipe.total_steps, collector.env_steps
    log_due = Every(recipe.log.every or total // LOG_ENTRIES, total, done)
    evaluation_due = Every(recipe.evaluation.every or total // EVALUATIONS, total, done)
    between = recipe.checkpoint.every or total // EVALUATIONS
    checkpoint_due = Every(between, total, done, CHECKPOINT_SECONDS)
    display.done_steps = done
    trouble = Trouble(recipe, policy.head, display.warn)
    is_stopping = False
    while collector.env_steps < total and not is_stopping:
        progress = collector.env_steps / total
        with accumulator.timing("collect"):
            rollout = collect(collector, recipe)
        with accumulator.timing("learn"):
            metrics = learner.update(rollout, progress=progress)
        step = collector.env_steps
        parts = {f"rollout/{name}": mean for name, mean in rollout.reward_parts.items()}
        accumulator.add(metrics | parts, rollout.episodes)
        writer.episodes(rollout.episodes)
        if log_due(step):
            entry = accumulator.take()
            writer.log(step, entry)
            trouble(step, entry)
            display.update(step, writer.latest)
            if hooks.on_log is not None:
                is_stopping |= hooks.on_log(step, dict(writer.latest)) is True
        if evaluation_due(step) and components.evaluator.is_worth(
            step, writer.evaluation_lengths()
        ):
            evaluations = components.evaluator(step, policy)
            writer.evaluated(step, policy, evaluations)
            writer.histograms(step, histograms(learner, rollout))
            display.update(step, writer.latest)
            if hooks.stop_at_return is not None and "eval" in evaluations:
                is_stopping |= evaluations["eval"].mean >= hooks.stop_at_return
        is_stopping |= stop.received is not None  # read once: what ends the loop is what saves
        if checkpoint_due(step) or is_stopping:
            state = {
                "learner": learner.state_dict(),
                "collector": collector.state_dict(),
                "metrics": accumulator.state_dict(),
            }
            writer.checkpoint(step, state, policy)


def collect(collector: BaseCollector, recipe: Recipe) -> Rollout:
    """One update's worth of experience."""
    if recipe.rollout.episodes_per_env is not None:
        return collector.episodes(recipe.rollout.episodes_per_env)
    return collector.steps(recipe.rollout.num_steps)

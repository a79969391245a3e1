"""The loop: collect, learn, and now and then log, evaluate and save."""

from __future__ import annotations

import html
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlpg.distributed import from_first, is_alone, joined, max_over_ranks, rank, restarts
from rlpg.engine.assembly import Components, Hooks, OnLog, assembled, bring_back, steps_of_all
from rlpg.engine.components import (
    find_recipe,
    recipe_of_run,
    resolved,
    settings_of,
    with_record,
    with_what_auto_came_to,
)
from rlpg.engine.device import usual_modes
from rlpg.engine.evaluator import Evaluation
from rlpg.engine.loading import environment_to_make
from rlpg.engine.metrics import Every, histograms
from rlpg.engine.restore import fitting
from rlpg.engine.run_writer import NoWriter, RunWriter, differences, told, versions_now
from rlpg.engine.sharding import collector_state, merged, require_equal
from rlpg.engine.stopping import StopSignals
from rlpg.engine.trouble import Trouble
from rlpg.errors import EnvironmentFault, SaveError, UsageError, call, too_late_to_refuse
from rlpg.gradients.baselines import Baseline
from rlpg.learners import Learner
from rlpg.policies import Policy
from rlpg.policies.references import NO_PARTS, Part, UserParts, reference_to
from rlpg.rollouts import BaseCollector, EnvSource, Episodes, Rollout, hangs_end_the_process
from rlpg.runs import files
from rlpg.runs.logger import Logger
from rlpg.runs.recipe import Device, Recipe, override
from rlpg.runs.run import RunFolder, create_run, open_run
from rlpg.runs.store import Checkpoint, newest_checkpoint

LOG_ENTRIES, EVALUATIONS = 500, 20  # of a run whose recipe does not say how often
CHECKPOINT_SECONDS = 60.0  # between two checkpoints at most, but for the length of an iteration

Schedules = Mapping[str, Callable[[float], float]]


@dataclass(frozen=True, repr=False)
class Run:
    """What `train` returns."""

    path: Path
    policy: Policy  # the last one; the best is `rlpg.load(run.path / "best_policy")`
    evaluation: Evaluation | None  # after training; None where the environment cannot be copied

    def __fspath__(self) -> str:
        return str(self.path)  # `rlpg.load(run)`, `rlpg.resume(run)`

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.evaluation or 'not evaluated'})"

    def _repr_html_(self) -> str:
        path, result = html.escape(str(self.path)), html.escape(str(self.evaluation or ""))
        return f"<b>Run</b> <code>{path}</code><br>{result}"


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
        baseline: the name of a baseline, or an `rlpg.Baseline`, of which the run takes a copy.
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
    hooks = Hooks(on_log, loggers, stop_at_return)
    said = {"total_steps": total_steps, "seed": seed}
    changes = {k: v for k, v in said.items() if v is not None} | dict(overrides or {})
    base = find_recipe(env, name, recipe, parts)
    return run_recipe(
        env, override(base, settings_of(parts, changes)), run_dir, parts=parts,
        hooks=hooks, quiet=is_quiet(quiet),
    )  # fmt: skip


def own_parts(
    agent: str | type[Learner] | None,
    network: Part | None,
    policy: Part | None,
    baseline: Part | Baseline | None,
    schedules: Schedules | None,
    import_modules: bool,
) -> tuple[str | None, UserParts]:
    """The agent's name, if there is one, and what the caller brings."""
    if agent is None or (isinstance(agent, str) and ":" not in agent):
        return agent, UserParts(network, policy, None, baseline, schedules or {}, import_modules)
    name = reference_to(agent, "agent").name
    return name, UserParts(network, policy, agent, baseline, schedules or {}, import_modules)


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
    parts: UserParts = NO_PARTS,
    hooks: Hooks | None = None,
    goes_on: bool = False,
    quiet: bool = True,
) -> Run:
    """Train as a complete recipe says; see `train`. `goes_on`: continue what began in `run_dir`."""
    hooks = hooks or Hooks()
    env, recipe = with_record(env, resolved(recipe, parts))
    path = None if run_dir is None else Path(run_dir)
    attempt, most = restarts()
    if path is None and most > 0:
        raise UsageError(
            "run_dir: expected a folder, in which processes that torchrun restarts find the run, "
            "got none; give one, or start torchrun without --max-restarts"
        )
    if path is not None and (goes_on or attempt > 0) and files.exists(path / "recipe.toml"):
        kwargs = recipe.environment.kwargs  # the user's own, which no file has to be trusted with
        return resume_run(path, env, parts, hooks, env_kwargs=kwargs, quiet=quiet)
    with files.staying() as here, joined(), ExitStack() as stack:
        try:
            components = stack.enter_context(assembled(env, recipe, parts, hooks, quiet=quiet))
        except EnvironmentFault:  # in its first reset: the traceback needs a place
            if rank() > 0:
                raise
            with create_run(recipe, versions_now(recipe), path=path, here=here).held():
                raise
        # Whatever can be refused has been refused: from here on there is something on disk.
        recipe = with_what_auto_came_to(components.recipe, components.learner)
        folder = from_first(lambda: create_run(recipe, versions_now(recipe), path=path, here=here))
        with _held(folder):
            return finish(components, _writer(folder, recipe, components))


def _held(folder: RunFolder) -> AbstractContextManager[None]:
    """The first rank holds the run's folder."""
    return folder.held() if rank() == 0 else nullcontext()


def _writer(
    folder: RunFolder, recipe: Recipe, components: Components, saved: Checkpoint | None = None
) -> RunWriter:
    if rank() > 0:
        return NoWriter(folder)
    display, hooks = components.display, components.hooks
    return RunWriter(folder, recipe, display.warn, saved, hooks.loggers)


def resume(
    path: str | PathLike[str],
    *,
    env: EnvSource | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    total_steps: int | None = None,
    device: Device | None = None,
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
    may differ (other versions, another processor, a changed recipe, environments that do not repeat
    themselves), it says so.

    Args:
        path: the run's folder.
        env: needed where the run was given an environment object, or an id with a module to
            import; otherwise the run knows.
        env_kwargs: arguments for the environment's constructor, which replace the run's own or are
            added to them. A run's file may not choose paths, windows and large numbers.
        total_steps: a new budget; None: the run's own. A linear learning-rate schedule stretches
            to it.
        device: where the networks are from now on: `cpu`, `cuda` or `auto`; None: the run's own.
        exact: refuse to go on where the bits may differ.
        agent, network, policy, baseline, schedules: the parts of your own that the run was
            trained with; see `train`. Where it has none of its own, one is refused.
        on_log, loggers, stop_at_return, quiet: see `train`.
        import_modules: whether parts that the run only names may be imported.

    Raises:
        FileError: there is no run, it cannot be read, or names a module to import or an argument
            of the environment that a file may not choose.
        UsageError: another process is training it, it has done more than `total_steps`, or `exact`
            was asked for and cannot be had.
        SaveError: the run is done, and not everything could be saved.
    """
    parts = UserParts(network, policy, agent, baseline, schedules or {}, import_modules)
    return resume_run(
        Path(path), env, parts, Hooks(on_log, loggers, stop_at_return), env_kwargs=env_kwargs,
        total_steps=total_steps, device=device, exact=exact, quiet=is_quiet(quiet),
    )  # fmt: skip


@files.staying()
def resume_run(
    path: Path,
    env: EnvSource | None,
    parts: UserParts,
    hooks: Hooks,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    total_steps: int | None = None,
    device: Device | None = None,
    exact: bool = False,
    quiet: bool,
) -> Run:
    """`resume` with the caller's parts and hooks put together."""
    with joined():
        folder = from_first(lambda: open_run(path))
        recipe = before = from_first(lambda: recipe_of_run(folder, parts, env_kwargs))
        told = {"total_steps": total_steps, "device": device}
        changes = {key: new for key, new in told.items() if new is not None}
        recipe = override(recipe, settings_of(parts, changes))
        if parts.agent is not None and ":" in recipe.agent:  # it may be another than before
            recipe = replace(recipe, agent=reference_to(parts.agent, "agent").name)
        if env is None:
            env = environment_to_make(recipe.environment.id, None, folder.path)
        env, recipe = with_record(env, recipe)
        with assembled(env, recipe, parts, hooks, quiet=quiet) as components, _held(folder):
            return _continued(folder, components, before, exact=exact)


def _continued(folder: RunFolder, components: Components, before: Recipe, *, exact: bool) -> Run:
    recipe, path = components.recipe, folder.path
    saved, skipped = from_first(lambda: newest_checkpoint(folder.checkpoints))
    step = saved.step if saved else 0
    if recipe.total_steps < step and recipe.total_steps != before.total_steps:
        raise UsageError(
            f"total_steps: expected at least the {step} steps it has done, got {recipe.total_steps}"
        )
    notes = [f"skipped {reason}" for reason in skipped]
    if saved is not None:
        notes += differences(saved.versions, versions_now(recipe))
        now = told(recipe)
        with fitting(saved.path):
            notes += differences(saved.state.get("recipe", now), now)
        if components.learner.policy.device.type != "cpu":
            notes.append("bits may differ: a GPU need not repeat them")
        if problem := bring_back(components, saved):
            notes.append(f"bits may differ: {problem}")
    if exact and notes:
        raise UsageError(f"{path}: {'; '.join(notes)}; without --exact it goes on")
    with fitting(folder.checkpoints):
        writer = _writer(folder, recipe, components, saved)
    if rank() == 0:
        folder.save_recipe(recipe, before=before, step=step)
    at = f"step {step:,}" if saved else "the start"
    components.display.notes += (f"resumed from {at}",)
    for note in notes:
        components.warn(note)
    return finish(components, writer)


def finish(components: Components, writer: RunWriter) -> Run:
    """Train to the end, evaluate, save; or save and stop where a signal asks for it."""
    policy, evaluator = components.learner.policy, components.evaluator
    path = writer.folder.path
    environments = components.collector.envs, evaluator.envs
    fatal_hangs = hangs_end_the_process(environments, writer.folder.last_words)
    run = None
    with too_late_to_refuse(), writer, components.display, fatal_hangs, StopSignals() as stop:
        step = loop(components, writer, stop)
        if stop.received is None:
            with stop.at_once():
                evaluation = evaluator.final(policy, step, writer.evaluation_lengths())
            writer.finish(step, policy, evaluation)
            run = Run(path, policy.requires_grad_(False).eval(), evaluation)
    if missing := writer.missing():
        raise SaveError(f"{path}: expected everything to be saved, missing: {missing}", run)
    stop.raise_if_received()
    assert run is not None
    return run


def loop(components: Components, writer: RunWriter, stop: StopSignals) -> int:
    """Collect and learn until `total_steps` environment steps are done, or something says stop.

    What several ranks decide, they decide together: by numbers that all of them have.
    """
    recipe, collector, learner = components.recipe, components.collector, components.learner
    accumulator, display, hooks = components.accumulator, components.display, components.hooks
    policy, total, step = learner.policy, recipe.total_steps, steps_of_all(collector)
    between_logs, between_evaluations, between_checkpoints = intervals(recipe)
    log_due = Every(between_logs, total, step)
    evaluation_due = Every(between_evaluations, total, step)
    checkpoint_due = Every(between_checkpoints, total, step, CHECKPOINT_SECONDS)
    display.begin(step)
    hooks.began(step)
    trouble = Trouble(recipe, policy.head, components.warn)
    is_stopping = False
    ended: list[Episodes] = []  # of this rank, not yet told

    def tell_episodes() -> None:
        episodes = merged(ended, collector.num_envs)
        ended.clear()
        accumulator.add_episodes(episodes)
        writer.episodes(episodes)
        trouble.episodes(episodes.returns.tolist())

    while step < total and not is_stopping:
        progress = step / total
        with usual_modes(), accumulator.timing("collect"):
            rollout = collect(collector, recipe)
        with usual_modes(), accumulator.timing("learn"):
            metrics = learner.update(rollout, progress=progress)
        step = steps_of_all(collector)
        parts = {f"rollout/{name}": mean for name, mean in rollout.reward_parts.items()}
        accumulator.add(metrics | parts)
        ended.append(rollout.episodes)
        is_logging = log_due(step)
        if is_logging or is_alone():
            tell_episodes()
        if is_logging:
            entry = accumulator.take()
            writer.log(step, entry)
            trouble(step, entry)
            display.update(step, writer.latest)
            if hooks.on_log is not None and rank() == 0:
                answer = call("on_log", hooks.on_log, step, dict(writer.latest))
                is_stopping |= isinstance(answer, bool | np.bool_) and bool(answer)
        if evaluation_due(step) and from_first(
            lambda: components.evaluator.is_worth(step, writer.evaluation_lengths())  # noqa: B023
        ):
            evaluations = components.evaluator(step, policy)
            writer.evaluated(step, policy, evaluations)
            trouble.evaluated(step, evaluations)
            writer.histograms(step, histograms(learner, rollout))
            display.update(step, writer.latest)
            if hooks.stop_at_return is not None and "eval" in evaluations:
                is_stopping |= evaluations["eval"].mean >= hooks.stop_at_return
        # Read once: what ends the loop is what saves.
        is_stopping, is_due = decided(is_stopping, checkpoint_due(step), stop)
        if is_due or is_stopping:
            if ended:
                tell_episodes()
            require_equal(learner.optimizer.flat())
            state = {
                "learner": learner.state_dict(),
                "collector": collector_state(collector),
                "metrics": accumulator.state_dict(),
            }
            writer.checkpoint(step, state, policy)
    return step


def intervals(recipe: Recipe) -> tuple[int, int, int]:
    """Environment steps between log entries, evaluations, and checkpoints; at least 1 each."""
    total = recipe.total_steps
    rare = max(total // EVALUATIONS, 1)
    return (
        recipe.log.every or max(total // LOG_ENTRIES, 1),
        recipe.evaluation.every or rare,
        recipe.checkpoint.every or rare,
    )


def decided(is_stopping: bool, is_due: bool, stop: StopSignals) -> tuple[bool, bool]:
    """Whether to stop, and whether to save: the same in all ranks.

    Any rank may have been sent a signal, which counts as sent to all; the rest the first decides.
    """
    own = [is_stopping, is_due and rank() == 0, stop.received or 0]
    is_stopping_any, is_due_first, number = max_over_ranks(torch.tensor(own)).tolist()
    if number:  # else one that has come since counts at the next call, in all ranks
        stop.received = signal.Signals(number)
    return bool(is_stopping_any or number), bool(is_due_first)


def collect(collector: BaseCollector, recipe: Recipe) -> Rollout:
    """One update's worth of experience."""
    if recipe.rollout.episodes_per_env is not None:
        return collector.episodes(recipe.rollout.episodes_per_env)
    return collector.steps(recipe.steps_per_env)

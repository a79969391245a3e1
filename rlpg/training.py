"""The loop: collect, learn, and now and then log, evaluate and save."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from rlpg.evaluation import Evaluation, play
from rlpg.learners import Reinforce
from rlpg.policies import Policy
from rlpg.prepare import (
    AnyEnv,
    completed,
    cpu_threads,
    environment_options,
    find_recipe,
    make_learner,
    make_policy,
    stream,
    training_envs,
)
from rlpg.record import Record, create_record
from rlpg.rollouts import Collector, Episodes, Rollout, make_envs, reseed
from rlpg.runs.recipe import Recipe, override
from rlpg.terminal import Display

RECENT_EPISODES = 100  # that rollout/ep_rew_mean is the mean of
LOG_ENTRIES, EVALUATIONS = 500, 20  # of a run whose recipe does not say how often


@dataclass(frozen=True)
class Run:
    """What `train` returns."""

    path: Path
    policy: Policy  # the last one; the best is `rlpg.load(run.path / "best_policy")`
    evaluation: Evaluation | None  # after training; None where the environment cannot be copied


def train(
    env: AnyEnv,
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
        env: an id (`CartPole-v1`, `module:Id-v0`), a `gymnasium.Env`, or a vector environment. An
            object without a registered id cannot be copied, so it is not evaluated.
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
    env: AnyEnv, recipe: Recipe, run_dir: str | Path | None = None, *, quiet: bool = True
) -> Run:
    """Train as a complete recipe says; see `train`."""
    recipe = completed(recipe)
    with ExitStack() as stack:
        stack.enter_context(cpu_threads(recipe.threads))
        envs, description = stack.enter_context(training_envs(env, recipe))
        policy = make_policy(envs, recipe)
        learner = make_learner(policy, recipe)
        evaluator = stack.enter_context(Evaluator(env, recipe))
        title = f"{recipe.environment.id} {recipe.agent} seed {recipe.seed}"
        display = Display(title, recipe.total_steps, quiet=quiet)
        # Whatever can be refused has been refused: from here on there is something on disk.
        record = create_record(recipe, run_dir, display.line)
        stack.enter_context(record.held())
        stack.enter_context(display)
        display.line(description)
        if evaluator.note:
            display.line(evaluator.note)
        collector = Collector(envs, policy, stream(recipe.seed, "actions"), log_prob=False)
        loop(recipe, collector, learner, evaluator, record, display)
        evaluation = evaluator.final(policy)
        record.finish(collector.env_steps, policy, evaluation)
    return Run(record.folder.path, policy.requires_grad_(False).eval(), evaluation)


def loop(
    recipe: Recipe,
    collector: Collector,
    learner: Reinforce,
    evaluator: Evaluator,
    record: Record,
    display: Display,
) -> None:
    """Collect and learn until `total_steps` environment steps are done."""
    total = recipe.total_steps
    log_due = Every(recipe.log.every or total // LOG_ENTRIES, total)
    evaluation_due = Every(recipe.evaluation.every or total // EVALUATIONS, total)
    checkpoint_due = Every(recipe.checkpoint.every or total // EVALUATIONS, total)
    meter = Meter(collector)
    while collector.env_steps < total:
        remaining = 1.0 - collector.env_steps / total
        lr_scale = remaining if recipe.learner.lr_schedule == "linear" else 1.0
        with meter.timing("collect"):
            rollout = collect(collector, recipe)
        with meter.timing("learn"):
            figures = learner.update(rollout, lr_scale=lr_scale)
        step = collector.env_steps
        meter.add(figures, rollout.episodes)
        record.episodes(rollout.episodes)
        if log_due(step):
            record.scalars(step, meter.figures())
            display.update(step, record.latest)
        if evaluation_due(step):
            record.evaluated(step, learner.policy, evaluator(step, learner.policy))
            display.update(step, record.latest)
        if checkpoint_due(step):
            state = {"learner": learner.state_dict(), "collector": collector.state_dict()}
            record.checkpoint(step, state, learner.policy)


def collect(collector: Collector, recipe: Recipe) -> Rollout:
    """One update's worth of experience."""
    if recipe.rollout.episodes_per_env is not None:
        return collector.episodes(recipe.rollout.episodes_per_env)
    return collector.steps(recipe.rollout.steps)


class Every:
    """True when another `interval` of environment steps is done, and at the last step."""

    def __init__(self, interval: int, last: int) -> None:
        self._interval, self._last = max(interval, 1), last
        self._next = self._interval

    def __call__(self, step: int) -> bool:
        due = step >= min(self._next, self._last)
        if due:
            self._next = (step // self._interval + 1) * self._interval
        return due


class Meter:
    """What happened since the last log entry, and where the time went."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._lengths: deque[int] = deque(maxlen=RECENT_EPISODES)
        self._begin()

    def _begin(self) -> None:
        self._figures: dict[str, list[float]] = {}
        self._seconds = {"collect": 0.0, "learn": 0.0}
        self._env_seconds = self._collector.env_seconds
        self._steps = self._collector.env_steps

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Count the block's time as `collect` or `learn`."""
        began = perf_counter()
        yield
        self._seconds[what] += perf_counter() - began

    def add(self, figures: Mapping[str, float], episodes: Episodes) -> None:
        """An update's figures and the episodes that ended before it."""
        for tag, value in figures.items():
            self._figures.setdefault(tag, []).append(value)
        self._returns.extend(episodes.returns.tolist())
        self._lengths.extend(episodes.lengths.tolist())

    def figures(self) -> dict[str, float]:
        """Finite means since the last call, recent episodes, speed, shares of the time."""
        figures = {}
        for tag, values in self._figures.items():
            finite = [value for value in values if math.isfinite(value)]
            figures[tag] = float(np.mean(finite)) if finite else math.nan
        if self._returns:
            figures["rollout/ep_rew_mean"] = float(np.mean(self._returns))
            figures["rollout/ep_len_mean"] = float(np.mean(self._lengths))
        env = self._collector.env_seconds - self._env_seconds
        collect, learn = self._seconds["collect"], self._seconds["learn"]
        seconds = max(collect + learn, 1e-9)
        figures |= {
            "time/fps": (self._collector.env_steps - self._steps) / seconds,
            "time/env_share": env / seconds,
            "time/policy_share": (collect - env) / seconds,
            "time/learn_share": learn / seconds,
        }
        self._begin()
        return figures


class Evaluator:
    """Evaluates on environments of its own, so training never notices.

    The seeds of an evaluation are a function of the run's seed and of the step it is made at.
    """

    def __init__(self, env: AnyEnv, recipe: Recipe) -> None:
        self._settings, self._seed = recipe.evaluation, recipe.seed
        self._envs: VectorEnv[Any, Any, Any] | None = None
        if not isinstance(env, str):
            if isinstance(env, VectorEnv) or env.spec is None:
                return
            env = gymnasium.make(env.spec)
        copies = min(self._settings.num_envs, self._settings.episodes)
        seed = stream(recipe.seed, "evaluation")
        options = environment_options(env, recipe)
        self._envs = make_envs(env, copies, seed=seed, **options).envs

    @property
    def note(self) -> str:
        """One line for the user where there is something to say."""
        if self._envs is not None:
            return ""
        return "no evaluation: this environment object has no id to make another one from"

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

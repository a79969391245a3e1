"""All that a run consists of while it goes on: made from a recipe, and brought to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import torch

from rlpg.distributed import gather, rank, sum_over_ranks
from rlpg.engine.components import (
    make_collector,
    make_learner,
    make_policy,
    training_envs,
    with_rollouts_of,
)
from rlpg.engine.device import fresh_torch, require_one_kind, usual_modes
from rlpg.engine.evaluator import Evaluator
from rlpg.engine.metrics import MetricsAccumulator
from rlpg.engine.restore import fitting, restore, restore_tensors
from rlpg.engine.sharding import own_collector_state
from rlpg.engine.terminal import Display
from rlpg.errors import UsageError
from rlpg.learners import Learner
from rlpg.policies.references import UserParts
from rlpg.rollouts import BaseCollector, EnvSource
from rlpg.runs.logger import Logger
from rlpg.runs.recipe import Recipe
from rlpg.runs.store import Checkpoint
from rlpg.settings import Finite, validated

OnLog = Callable[[int, dict[str, float]], bool | None]


@dataclass(frozen=True)
class Hooks:
    """What a caller wants to see of a run, and when it shall end before its budget."""

    on_log: OnLog | None = None
    loggers: Sequence[Logger] = ()
    stop_at_return: float | None = None  # mean return of an evaluation
    verbose: bool = False  # print where the time goes, and the metrics of learning
    say: Callable[[str], object] = lambda text: None  # is told what a person should see, in a line
    began: Callable[[int], None] = lambda step: None  # is told the step that a run begins at

    def __post_init__(self) -> None:
        """Raises UsageError for what is none: the run would stop where it is first used."""
        if self.on_log is not None and not callable(self.on_log):
            raise UsageError(
                f"on_log: expected a function of step and metrics, got {self.on_log!r:.60}"
            )
        validated("stop_at_return", self.stop_at_return, Finite | None)
        if not isinstance(self.loggers, Sequence):
            raise UsageError(f"loggers: expected a list of rlpg.Logger, got {self.loggers!r:.60}")
        for own in self.loggers:
            if not isinstance(own, Logger):
                raise UsageError(f"loggers: expected objects of rlpg.Logger, got {own!r:.60}")


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

    def warn(self, text: str) -> None:
        """`Display.warn` about what all ranks know; the first one says it."""
        if rank() == 0:
            self.display.warn(text)


def bring_back(components: Components, saved: Checkpoint) -> str:
    """Bring fresh components to where they were saved; "", or why the bits may differ from now on.
    FileError where the state is not that of such components, which cannot be used any more."""
    with fitting(saved.path):
        state = saved.state
        restore_tensors(components.learner, state["learner"], "learner")
        own, note = own_collector_state(state["collector"], components.recipe.seed)
        problem = restore(components.collector, own, "collector")
        restore(components.accumulator, state["metrics"], "metrics")
        if steps_of_all(components.collector) != saved.step:
            raise ValueError(f"env_steps: expected {saved.step}, got others")
        problem = next(filter(None, gather(problem)), "")
    fresh = f"going on with fresh episodes, because {problem}" if problem else ""
    return "; ".join(filter(None, (fresh, note)))


@contextmanager
def assembled(
    env: EnvSource, recipe: Recipe, parts: UserParts, hooks: Hooks, *, quiet: bool
) -> Iterator[Components]:
    """The components at the start of a run; closed at the end."""
    with ExitStack() as stack:
        stack.enter_context(fresh_torch(recipe.threads))
        with usual_modes():  # an environment may set others when it is made
            envs, description = stack.enter_context(training_envs(env, recipe, parts))
        policy = make_policy(envs, recipe, parts)
        recipe = with_rollouts_of(envs, policy, recipe)
        require_one_kind(policy.device)
        learner = make_learner(policy, recipe, parts)
        is_cut = recipe.rollout.episodes_per_env is None
        steps = recipe.steps_per_env if is_cut else None
        learner.check_rollouts(steps, recipe.rollout.num_envs)
        if recipe.compile:
            learner.compile()
        with usual_modes():
            evaluator = stack.enter_context(closing(Evaluator(env, recipe)))
        where = "" if policy.device.type == "cpu" else f"networks on {policy.device}"
        display = Display(
            f"{recipe.environment.id} {recipe.agent} seed {recipe.seed}",
            total_steps=recipe.total_steps,
            notes=(description, policy.observations.describe_in_words(), where, evaluator.note),
            quiet=quiet or rank() > 0,
            verbose=hooks.verbose,
        )
        collector = make_collector(envs, learner, recipe, display.warn)
        accumulator = MetricsAccumulator(collector)
        yield Components(recipe, collector, learner, evaluator, accumulator, display, hooks)


def steps_of_all(collector: BaseCollector) -> int:
    """Environment steps so far, of all ranks."""
    return int(sum_over_ranks(torch.tensor(collector.env_steps)))

"""Whole episodes of a policy, a fixed number from every copy: played while training, or after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from rlpg.distributed import rank
from rlpg.engine.components import environment_options, seed_sequence
from rlpg.engine.device import usual_modes
from rlpg.errors import EnvironmentFault, NumericalFault, SpaceError, counted, decimals
from rlpg.policies import Policy
from rlpg.policies.spaces import without_text
from rlpg.rollouts import Collector, EnvSource, another_like, make_envs, reseed
from rlpg.runs.recipe import Recipe

STEPS_PER_CHUNK = 64
FEWEST_FINAL_EPISODES, MOST_FINAL_EPISODES = 10, 100  # where final_episodes is auto
RESAMPLES = 10_000  # of the bootstrap; fewer where they would draw more than DRAWS episodes
DRAWS, DRAWS_AT_ONCE = 100_000_000, 1_000_000
MOST_STEPS = 1_000_000  # of an episode; longer ones count as never ending


Lengths = np.ndarray[Any, Any]  # [E] int64, of episodes


@dataclass(frozen=True)
class Evaluation:
    """Episodes of one policy on one environment, ordered by copy, then by time.

    `returns` are undiscounted and in the environment's own rewards.
    """

    returns: np.ndarray  # [E] float64
    lengths: np.ndarray  # [E] int64
    deterministic: bool
    environments: str = ""  # one line about what was played on, where `evaluate` made it

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns over episodes (n - 1); 0 for a single episode."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def median_length(self) -> float:
        """Median number of steps of an episode."""
        return float(np.median(self.lengths))

    @cached_property
    def ci(self) -> tuple[float, float]:
        """95 % percentile bootstrap interval of the mean return (Efron & Tibshirani 1993, ch. 13).

        Its resampling is seeded, so the interval is a function of the returns.
        """
        size, generator = len(self.returns), np.random.default_rng(0)
        count = max(min(RESAMPLES, DRAWS // size), 1000)
        rows = max(1, DRAWS_AT_ONCE // size)  # at a time: all at once would take much memory
        draws = (min(rows, count - done) for done in range(0, count, rows))
        means = [self.returns[generator.integers(size, size=(n, size))].mean(1) for n in draws]
        low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
        return float(low), float(high)

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "episodes": len(self.returns),
            "deterministic": self.deterministic,
            "mean": self.mean,
            "std": self.std,
            "ci": list(self.ci),
            "median": float(np.median(self.returns)),
            "min": float(self.returns.min()),
            "max": float(self.returns.max()),
            "median_length": self.median_length,
        }

    def table(self) -> list[dict[str, float | int]]:
        """One row per episode, ready for JSON."""
        return [
            {"return": float(value), "length": int(length)}
            for value, length in zip(self.returns, self.lengths, strict=True)
        ]

    @property
    def short(self) -> str:
        """Mean and deviation in a few words."""
        spread = f"{decimals(self.mean)} ± {decimals(self.std)}"
        return f"return {spread} over {counted(len(self.returns), 'episode')}"

    def __str__(self) -> str:
        low, high = map(decimals, self.ci)
        how = "deterministic actions" if self.deterministic else "sampled actions"
        return (
            f"{self.short} (95 % interval of the mean {low} to {high}; median length "
            f"{self.median_length:.0f}; {how})"
        )


def play(
    policy: Policy,
    envs: VectorEnv[Any, Any, Any],
    episodes: int,
    seed: int | np.random.SeedSequence,
    *,
    deterministic: bool,
) -> Evaluation:
    """`evaluate` on vector environments that exist: reset first, left open."""
    collector = Collector(
        envs, policy, seed, log_prob=False, deterministic=deterministic, warn=lambda _: None
    )  # out of bounds is the concern of training
    quota = np.full(envs.num_envs, episodes // envs.num_envs)  # [N]
    quota[: episodes % envs.num_envs] += 1
    found: list[list[tuple[float, int]]] = [[] for _ in quota]  # return and length, by copy
    while any(len(own) < count for own, count in zip(found, quota, strict=True)):
        if collector.vector_steps > MOST_STEPS * quota.max():
            raise EnvironmentFault(
                f"evaluation: expected {episodes} episodes to end, "
                f"{episodes - sum(map(len, found))} have not after {collector.vector_steps} steps; "
                "give the environment a time limit"
            )
        try:
            ended = collector.steps(STEPS_PER_CHUNK).episodes
        except (EnvironmentFault, NumericalFault) as fault:  # its steps are not the training's
            raise type(fault)(f"evaluation: {fault}") from fault
        for n, value, length in zip(ended.env, ended.returns, ended.lengths, strict=True):
            if len(found[n]) < quota[n]:
                found[n].append((value, length))
    rows = [row for own in found for row in own]
    return Evaluation(
        returns=np.array([value for value, _ in rows], dtype=np.float64),
        lengths=np.array([length for _, length in rows], dtype=np.int64),
        deterministic=deterministic,
    )


def check_spaces(policy: Policy, envs: VectorEnv[Any, Any, Any]) -> None:
    """SpaceError, which names what differs, where the environment's spaces are not the policy's."""
    pairs = (
        ("observation", policy.observations.space, without_text(envs.single_observation_space)),
        ("action", policy.head.space, envs.single_action_space),
    )
    for kind, own, given in pairs:
        if own != given:
            raise SpaceError(f"{kind} space: the policy expects {own}, the environment has {given}")


class Evaluator:
    """Evaluates on environments of its own, so training never notices.

    The seeds of an evaluation are a function of the run's seed and of the step it is made at.
    """

    def __init__(self, env: EnvSource, recipe: Recipe) -> None:
        self._settings, self._seed = recipe.evaluation, recipe.seed
        self.envs: VectorEnv[Any, Any, Any] | None = None  # what it plays on
        self.note = "no evaluation: Gymnasium cannot make another one of this environment object"
        another = another_like(env)
        if another is None or rank() != 0:  # the others are told what follows from it
            return
        copies = min(self._settings.num_envs, self._settings.episodes)
        seed = seed_sequence(recipe.seed, "evaluation")
        options = environment_options(another, recipe)
        self.envs, self.note = make_envs(another, copies, seed=seed, **options).envs, ""

    def __call__(self, step: int, policy: Policy) -> dict[str, Evaluation]:
        """`eval` and, if the recipe says so, `eval_stochastic`; nothing where it cannot."""
        if self.envs is None:
            return {}
        kinds = {"eval": True} | ({"eval_stochastic": False} if self._settings.stochastic else {})
        seed = seed_sequence(self._seed, "evaluation", step)
        return {
            name: self._play(policy, self._settings.episodes, seed, deterministic)
            for name, deterministic in kinds.items()
        }

    @usual_modes()
    def _play(
        self, policy: Policy, episodes: int, seed: np.random.SeedSequence, deterministic: bool
    ) -> Evaluation:
        assert self.envs is not None
        reseed(self.envs, seed)
        return play(policy, self.envs, episodes, seed, deterministic=deterministic)

    def is_worth(self, step: int, lengths: Sequence[Lengths]) -> bool:
        """Whether to evaluate at a step, after evaluations with episodes of these lengths.

        Evaluations at intervals that nobody asked for take at most as many steps as training, and
        one more evaluation.
        """
        is_asked_for = self._settings.every is not None
        return is_asked_for or sum(int(each.sum()) for each in lengths) <= step

    def final(self, policy: Policy, step: int, lengths: Sequence[Lengths]) -> Evaluation | None:
        """The evaluation after training of so many steps, on seeds that no evaluation before it has
        seen; for `lengths` see `is_worth`."""
        if self.envs is None:
            return None
        fitting = step / 2 / lengths[-1].mean() if lengths else MOST_FINAL_EPISODES
        by_rule = min(max(int(fitting), FEWEST_FINAL_EPISODES), MOST_FINAL_EPISODES)
        said = self._settings.final_episodes
        episodes = by_rule if said == "auto" else said
        seed = seed_sequence(self._seed, "final evaluation")
        return self._play(policy, episodes, seed, deterministic=True)

    def close(self) -> None:
        if self.envs is not None:
            self.envs.close()

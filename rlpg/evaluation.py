"""How good a policy is: whole episodes, a fixed number from every copy of the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from rlpg.components import environment_options, seed_sequence
from rlpg.distributed import rank
from rlpg.errors import EnvironmentFault, SpaceError, UsageError
from rlpg.loading import Saved, environment_to_make
from rlpg.policies import Policy
from rlpg.rollouts import (
    Collector,
    EnvSource,
    another_like,
    find_spec,
    full_id,
    make_envs,
    reseed,
    wrapped,
)
from rlpg.rollouts.ids import own_words
from rlpg.runs.recipe import Recipe
from rlpg.runs.recorded import usable_kwargs, usable_wrappers
from rlpg.threads import cpu_threads

STEPS_PER_CHUNK = 64
MOST_ENVS = 64  # side by side, if nobody says how many
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
        resamples = max(min(RESAMPLES, DRAWS // size), 1000)
        rows = max(1, DRAWS_AT_ONCE // size)  # at a time: all at once would take much memory
        means = [
            self.returns[generator.integers(size, size=(min(rows, resamples - done), size))].mean(1)
            for done in range(0, resamples, rows)
        ]
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
        return f"return {self.mean:.2f} ± {self.std:.2f} over {len(self.returns)} episodes"

    def __str__(self) -> str:
        low, high = self.ci
        how = "deterministic actions" if self.deterministic else "sampled actions"
        return (
            f"{self.short} (95 % interval of the mean {low:.2f} to {high:.2f}; median length "
            f"{self.median_length:.0f}; {how})"
        )


def evaluate(
    policy: Policy,
    env: EnvSource,
    episodes: int = 100,
    seed: int | np.random.SeedSequence = 0,
    *,
    deterministic: bool = True,
    num_envs: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    backend: str = "auto",
    max_episode_steps: int | None = None,
    episode_cap: int = 1000,
    threads: int = 1,
) -> Evaluation:
    """Play whole episodes and return their returns and lengths. The policy is not changed.

    Every copy of the environment contributes its first episodes up to a quota fixed beforehand
    (taking the first episodes that finish would favor short ones).

    Args:
        policy: what is evaluated.
        env: as in `make_envs`; a vector environment is used as it is, and left open.
        episodes: number of episodes, spread evenly over the copies.
        seed: of the environments and of sampled actions.
        deterministic: take the deterministic action (see `Head.mode`) instead of sampling.
        num_envs: copies that run side by side; None: as many as episodes, at most 64.
        env_kwargs, backend, max_episode_steps, episode_cap: as in `make_envs`.
        threads: CPU threads for the network; a small one is fastest on one.

    Raises:
        SpaceError: the environment's spaces are not those the policy was made for.
        EnvironmentFault: the environment failed, or an episode does not end.
    """
    counts = {"episodes": episodes, "num_envs": MOST_ENVS if num_envs is None else num_envs}
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"{name}: expected at least 1, got {count}")
    if isinstance(seed, int) and seed < 0:
        raise UsageError(f"seed: expected at least 0, got {seed}")
    made = make_envs(
        env,
        min(counts.values()),
        seed=seed,
        kwargs=env_kwargs,
        backend=backend,
        max_episode_steps=max_episode_steps,
        episode_cap=episode_cap,
    )
    try:
        check_spaces(policy, made.envs)
        with cpu_threads(threads):
            evaluation = play(policy, made.envs, episodes, seed, deterministic=deterministic)
        return replace(evaluation, environments=made.description)
    finally:
        if not isinstance(env, VectorEnv):
            made.envs.close()


def evaluate_saved(
    saved: Saved,
    *,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    episodes: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    num_envs: int | None = None,
) -> Evaluation:
    """Evaluate a policy from disk on the environment it was trained on, or on another.

    Arguments and time limit of the training are kept where it is the same environment; where it is
    another, `environments` says what was left out.

    Raises:
        FileError: the file names a module to import, or an argument that it may not choose;
            `env` and `env_kwargs` may be anything.
        SpaceError: the environment's spaces are not the policy's.
    """
    env_id, options, note = environment_of(saved, env, env_kwargs)
    options["env_kwargs"] = options.pop("kwargs")
    evaluation = evaluate(
        saved.policy,
        env_id,
        episodes,
        seed,
        deterministic=deterministic,
        num_envs=num_envs,
        **options,
    )
    environments = ", ".join(filter(None, (evaluation.environments, note)))
    return replace(evaluation, environments=environments)


def environment_of(
    saved: Saved, env: str | None, env_kwargs: Mapping[str, Any] | None
) -> tuple[str | EnvSpec, dict[str, Any], str]:
    """The environment to play a saved policy on, options for `make_envs`, and a note.

    Arguments and time limit of the training are kept where it is the same environment.

    Args:
        saved: a policy from disk.
        env: an id, if the caller names one.
        env_kwargs: the caller's arguments for the constructor, instead of the file's and besides.

    Raises:
        FileError: the file names a module to import, or an argument that it may not choose.
    """
    recorded = saved.environment
    env_id = environment_to_make(recorded["id"], env, saved.path)
    cap = {"episode_cap": recorded["episode_cap"]} if recorded.get("episode_cap") else {}
    limit, kwargs = recorded.get("max_episode_steps"), recorded.get("kwargs") or {}
    wrappers = recorded.get("wrappers") or {}
    if full_id(env_id).rpartition(":")[2] == recorded["id"].rpartition(":")[2]:
        options = {"kwargs": usable_kwargs(kwargs, saved.path, env_kwargs),
                   "max_episode_steps": limit, **cap}  # fmt: skip
        if not wrappers:
            return env_id, options, ""
        usable = usable_wrappers(wrappers, saved.path)
        with own_words(env_id):
            return wrapped(find_spec(env_id)[0], usable), options, f"in {', '.join(usable)}"
    is_object = "(" in recorded["id"]
    said = kwargs or limit or wrappers or is_object
    note = f"not {recorded['id']}, which it was trained on" if said else ""
    note += f", so without its wrappers {', '.join(wrappers)}"[:80] if wrappers else ""
    note += f", so without its arguments {kwargs!r:.80}" if kwargs else ""
    note += f", so without its limit of {limit} steps" if limit else ""
    return env_id, {"kwargs": dict(env_kwargs or {}), **cap}, note


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
    returns: list[list[float]] = [[] for _ in quota]
    lengths: list[list[int]] = [[] for _ in quota]
    owed = episodes
    while owed:
        found = collector.steps(STEPS_PER_CHUNK).episodes
        for n, value, length in zip(found.env, found.returns, found.lengths, strict=True):
            if len(returns[n]) < quota[n]:
                returns[n].append(value)
                lengths[n].append(length)
                owed -= 1
        if collector.vector_steps > MOST_STEPS * quota.max():
            raise EnvironmentFault(
                f"evaluation: expected {episodes} episodes to end, {owed} have not after "
                f"{collector.vector_steps} steps; give the environment a time limit"
            )
    return Evaluation(
        returns=np.array([value for row in returns for value in row], dtype=np.float64),
        lengths=np.array([length for row in lengths for length in row], dtype=np.int64),
        deterministic=deterministic,
    )


def check_spaces(policy: Policy, envs: VectorEnv[Any, Any, Any]) -> None:
    """Refuse an environment whose spaces are not the policy's.

    Raises:
        SpaceError: names what differs.
    """
    pairs = (
        ("observation", policy.observations.space, envs.single_observation_space),
        ("action", policy.head.space, envs.single_action_space),
    )
    for kind, own, given in pairs:
        if own != given:
            raise SpaceError(
                f"{kind} space: the policy expects {own}, the environment has {given}; evaluate "
                "on the environment it was trained for"
            )


class Evaluator:
    """Evaluates on environments of its own, so training never notices.

    The seeds of an evaluation are a function of the run's seed and of the step it is made at.
    """

    def __init__(self, env: EnvSource, recipe: Recipe) -> None:
        self._settings, self._seed = recipe.evaluation, recipe.seed
        self._envs: VectorEnv[Any, Any, Any] | None = None
        another = another_like(env)
        if another is None or rank() != 0:  # the others are told what follows from it
            return
        copies = min(self._settings.num_envs, self._settings.episodes)
        seed = seed_sequence(recipe.seed, "evaluation")
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
            seed = seed_sequence(self._seed, "evaluation", step)
            reseed(self._envs, seed)
            evaluations[name] = play(
                policy, self._envs, self._settings.episodes, seed, deterministic=deterministic
            )
        return evaluations

    def is_worth(self, step: int, lengths: Sequence[Lengths]) -> bool:
        """Whether to evaluate at a step, after evaluations with episodes of these lengths.

        Evaluations at intervals that nobody asked for take at most as many steps as training, and
        one more evaluation.
        """
        is_asked_for = self._settings.every is not None
        return is_asked_for or sum(int(each.sum()) for each in lengths) <= step

    def final(self, policy: Policy, step: int, lengths: Sequence[Lengths]) -> Evaluation | None:
        """The evaluation after training, on seeds that no evaluation before it has seen.

        Args:
            step: environment steps of the training.
            lengths: of the episodes of each evaluation before.
        """
        if self._envs is None:
            return None
        fitting = step / 2 / lengths[-1].mean() if lengths else MOST_FINAL_EPISODES
        by_rule = min(max(int(fitting), FEWEST_FINAL_EPISODES), MOST_FINAL_EPISODES)
        said = self._settings.final_episodes
        episodes = by_rule if said == "auto" else said
        seed = seed_sequence(self._seed, "final evaluation")
        reseed(self._envs, seed)
        return play(policy, self._envs, episodes, seed, deterministic=True)

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *error: object) -> None:
        if self._envs is not None:
            self._envs.close()

"""How good a policy is: the verb `evaluate`, for policies in memory and from disk."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from rlpg.engine.device import fresh_torch
from rlpg.engine.evaluator import Evaluation, check_spaces, play
from rlpg.engine.loading import Saved, environment_to_make, is_object
from rlpg.errors import UsageError
from rlpg.policies import Policy
from rlpg.rollouts import EnvSource, find_spec, full_id, make_envs, wrapped
from rlpg.rollouts.ids import own_words
from rlpg.runs import files
from rlpg.runs.recorded import usable_kwargs, usable_wrappers
from rlpg.settings import Count, validated

MOST_ENVS = 64  # side by side, if nobody says how many


@files.staying()
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
        policy: what is evaluated, on the device where it is.
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
    if not isinstance(policy, Policy):
        raise UsageError(
            f"policy: expected an rlpg.Policy, got {policy!r:.60}; rlpg.load(path) reads one"
        )
    episodes, threads = validated("episodes", episodes, Count), validated("threads", threads, Count)
    num_envs = min(validated("num_envs", num_envs, Count | None) or MOST_ENVS, episodes)
    if isinstance(seed, int) and seed < 0:
        raise UsageError(f"seed: expected at least 0, got {seed}")
    made = make_envs(
        env,
        num_envs,
        seed=seed,
        kwargs=env_kwargs,
        backend=backend,
        max_episode_steps=max_episode_steps,
        episode_cap=episode_cap,
    )
    with nullcontext() if isinstance(env, VectorEnv) else closing(made.envs):
        check_spaces(policy, made.envs)
        with fresh_torch(threads):
            evaluation = play(policy, made.envs, episodes, seed, deterministic=deterministic)
        return replace(evaluation, environments=made.description)


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
    another, `environments` says what was left out. FileError where the file names a module to
    import, or an argument that it may not choose (`env` and `env_kwargs` may be anything),
    SpaceError where the spaces are not the policy's.
    """
    env_id, options, note = environment_of(saved, env, env_kwargs)
    options["env_kwargs"] = options.pop("kwargs")
    evaluation = evaluate(
        saved.policy, env_id, episodes, seed,
        deterministic=deterministic, num_envs=num_envs, **options,
    )  # fmt: skip
    environments = ", ".join(filter(None, (evaluation.environments, note)))
    return replace(evaluation, environments=environments)


def environment_of(
    saved: Saved, env: str | None, env_kwargs: Mapping[str, Any] | None
) -> tuple[str | EnvSpec, dict[str, Any], str]:
    """The environment that `evaluate_saved` plays on, options for `make_envs`, and a note."""
    recorded = saved.environment
    env_id = environment_to_make(recorded["id"], env, saved.path)
    kwargs, wrappers = recorded["kwargs"], recorded["wrappers"]
    limit, cap = recorded["max_episode_steps"], recorded["episode_cap"]
    if full_id(env_id).rpartition(":")[2] == recorded["id"].rpartition(":")[2]:
        options = {"kwargs": usable_kwargs(kwargs, saved.path, env_kwargs),
                   "max_episode_steps": limit, "episode_cap": cap}  # fmt: skip
        if not wrappers:
            return env_id, options, ""
        usable = usable_wrappers(wrappers, saved.path)
        with own_words(env_id):
            return wrapped(find_spec(env_id)[0], usable), options, f"in {', '.join(usable)}"
    said = kwargs or limit or wrappers or is_object(recorded["id"])
    note = f"not {recorded['id']}, which it was trained on" if said else ""
    note += f", so without its wrappers {', '.join(wrappers)}"[:80] if wrappers else ""
    note += f", so without its arguments {kwargs!r:.80}" if kwargs else ""
    note += f", so without its limit of {limit} steps" if limit else ""
    return env_id, {"kwargs": dict(env_kwargs or {}), "episode_cap": cap}, note

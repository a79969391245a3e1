"""From a recipe to the parts of a run: environments, policy, learner, random streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv

from rlpg.errors import UsageError
from rlpg.learners import Reinforce
from rlpg.loading import shipped_recipe
from rlpg.policies import Policy
from rlpg.rollouts import full_id, make_envs, probe_action_mask
from rlpg.runs.recipe import Recipe, load_recipe, override

AnyEnv = str | gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]
STREAMS = ("environments", "actions", "policy", "learner", "evaluation", "final evaluation")


def find_recipe(env: AnyEnv, agent: str, recipe: str | Path | Recipe | None) -> Recipe:
    """The recipe before overrides, with the environment's id and the agent's name in it.

    Args:
        recipe: one, or its file. None: the one shipped for this environment, or the defaults.
            `"default"`: the defaults.
    """
    env_id = environment_name(env)
    if isinstance(recipe, Recipe):
        base = recipe
    elif recipe is None:
        base = shipped_recipe(env_id, agent) or Recipe()
    else:
        base = Recipe() if recipe == "default" else load_recipe(recipe)
    return override(base, {"agent": agent, "environment.id": env_id})


def completed(recipe: Recipe) -> Recipe:
    """The recipe with what follows from its other settings.

    Without a baseline that predicts values, nobody knows what the cut end of an episode is worth:
    whole episodes are collected, unless `learner.truncated_return` says what a cut one means.
    """
    says = recipe.learner.truncated_return != "auto" or recipe.rollout.episodes_per_env
    if says or not recipe.learner.cannot_predict:
        return recipe
    return override(recipe, {"rollout.episodes_per_env": 1})


def environment_name(env: AnyEnv) -> str:
    """The whole id of an environment; the class of an object that has none."""
    if isinstance(env, str):
        return full_id(env)
    return str(env.spec.id) if env.spec is not None else type(env.unwrapped).__name__


def stream(seed: int, name: str, *key: int) -> np.random.SeedSequence:
    """One of a run's independent random streams, or a numbered branch of it."""
    return np.random.SeedSequence(seed, spawn_key=(STREAMS.index(name), *key))


def torch_generator(seed: np.random.SeedSequence) -> torch.Generator:
    """A generator at the start of a stream."""
    return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))


@contextmanager
def training_envs(env: AnyEnv, recipe: Recipe) -> Iterator[tuple[VectorEnv[Any, Any, Any], str]]:
    """The vector environment to train on, and one line about it; closed at the end if made here."""
    name, told = environment_name(env), recipe.environment.id
    if name != told:
        raise UsageError(f"environment.id: expected {name}, which is trained on, got {told}")
    made = make_envs(
        env,
        recipe.rollout.num_envs,
        seed=stream(recipe.seed, "environments"),
        **environment_options(env, recipe),
    )
    try:
        yield made.envs, made.description
    finally:
        if not isinstance(env, VectorEnv):
            made.envs.close()


def environment_options(env: AnyEnv, recipe: Recipe) -> dict[str, Any]:
    """How to make the environment; a vector environment is used as it is."""
    settings = recipe.environment
    if isinstance(env, VectorEnv):
        return {"timeout": settings.timeout}
    return {
        "kwargs": settings.kwargs,
        "backend": settings.backend,
        "max_episode_steps": settings.max_episode_steps,
        "episode_cap": settings.episode_cap,
        "timeout": settings.timeout,
    }


def make_policy(envs: VectorEnv[Any, Any, Any], recipe: Recipe) -> Policy:
    """A fresh policy for these environments."""
    settings = recipe.policy
    return Policy.create(
        envs.single_observation_space,
        envs.single_action_space,
        hidden=settings.hidden,
        activation=settings.activation,
        normalize_observations=settings.normalize_observations,
        observation_clip=settings.observation_clip,
        gaussian=settings.gaussian,
        std=settings.std,
        log_std_init=settings.log_std_init,
        log_std_floor=settings.log_std_floor,
        bernoulli=settings.bernoulli,
        info_mask=probe_action_mask(envs) if settings.action_mask else 0,
        generator=torch_generator(stream(recipe.seed, "policy")),
    )


def make_learner(policy: Policy, recipe: Recipe) -> Reinforce:
    """The learner that improves the policy."""
    settings = recipe.learner.resolved(
        predicts=not recipe.learner.cannot_predict,
        is_discrete=policy.head.is_discrete,
        hidden=recipe.policy.hidden,
    )
    values = settings.values()
    for name in ("baseline", "learning_rate_schedule", "entropy_coef_schedule"):
        del values[name]
    generator = torch_generator(stream(recipe.seed, "learner"))
    return Reinforce(policy, settings.baseline, generator=generator, **values)

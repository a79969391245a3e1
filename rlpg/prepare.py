"""From a recipe to the parts of a run: environments, policy, learner, random streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from rlpg.errors import UsageError
from rlpg.learners import Reinforce
from rlpg.loading import shipped_recipe
from rlpg.policies import Policy
from rlpg.rollouts import EnvSource, environment_name, make_envs, probe_action_mask
from rlpg.runs.recipe import DISCRETE_ENTROPY_COEF, Recipe, load_recipe, override
from rlpg.runs.recorded import usable_kwargs

STREAMS = ("environments", "actions", "policy", "learner", "evaluation", "final evaluation")


def find_recipe(env: EnvSource, agent: str, recipe: str | Path | Recipe | None) -> Recipe:
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
    predicts = recipe.learner.baseline in ("linear", "value")
    if predicts or recipe.learner.truncated_return or recipe.rollout.episodes_per_env:
        return recipe
    return override(recipe, {"rollout.episodes_per_env": 1})


def with_usable_kwargs(recipe: Recipe, source: Path, given: Mapping[str, Any] | None) -> Recipe:
    """The recipe of a run with the environment's arguments that may be used; see `usable_kwargs`.

    Raises:
        FileError: one of them may not come from a file.
    """
    kwargs = usable_kwargs(recipe.environment.kwargs, source, given)
    return override(recipe, {"environment.kwargs": kwargs})


def stream(seed: int, name: str, *key: int) -> np.random.SeedSequence:
    """One of a run's independent random streams, or a numbered branch of it."""
    return np.random.SeedSequence(seed, spawn_key=(STREAMS.index(name), *key))


def torch_generator(seed: np.random.SeedSequence) -> torch.Generator:
    """A generator at the start of a stream."""
    return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))


@contextmanager
def training_envs(env: EnvSource, recipe: Recipe) -> Iterator[tuple[VectorEnv[Any, Any, Any], str]]:
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


def environment_options(env: EnvSource, recipe: Recipe) -> dict[str, Any]:
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
        images=settings.images,
        generator=torch_generator(stream(recipe.seed, "policy")),
    )


def entropy_coef(policy: Policy, setting: float | None) -> float:
    """The setting, or what suits the kind of action.

    Without a bonus, a policy that a large penalty has taught to do nothing keeps doing nothing
    (CliffWalking). A Gaussian's entropy has no largest value: the bonus would keep it wide.
    """
    if setting is not None:
        return setting
    return DISCRETE_ENTROPY_COEF if policy.head.is_discrete else 0.0


def make_learner(policy: Policy, recipe: Recipe) -> Reinforce:
    """The learner that improves the policy."""
    settings = recipe.learner
    return Reinforce(
        policy,
        settings.baseline,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda if settings.baseline in ("linear", "value") else None,
        truncated_return=settings.truncated_return,
        gamma_weight=settings.gamma_weight,
        average=settings.average,
        entropy_coef=entropy_coef(policy, settings.entropy_coef),
        normalize_advantages=settings.normalize_advantages,
        max_grad_norm=settings.max_grad_norm,
        learning_rate=settings.learning_rate,
        reward_scaling=settings.reward_scaling,
        value_hidden=recipe.policy.hidden,
        value_learning_rate=settings.value_learning_rate,
        num_value_epochs=settings.num_value_epochs,
        num_value_minibatches=settings.num_value_minibatches,
        generator=torch_generator(stream(recipe.seed, "learner")),
    )

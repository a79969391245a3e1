"""`rlpg train ENV --explain`: every setting of the run, its value, and why it has this value."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from rlpg.engine.components import (
    make_learner,
    make_policy,
    resolved,
    training_envs,
    with_record,
    with_rollouts_of,
    with_what_auto_came_to,
)
from rlpg.engine.device import device_of
from rlpg.learners import Learner
from rlpg.learners.rules import REASONS, num_minibatches
from rlpg.learners.settings import AGENTS
from rlpg.policies.references import UserParts
from rlpg.policies.spaces import num_continuous
from rlpg.runs.recipe import Recipe, diff, flatten
from rlpg.settings import as_text
from rlpg.verbs.training import intervals

WIDEST_VALUE = 24


def explained(
    recipe: Recipe, base: Recipe, file: object, given: Collection[str], parts: UserParts
) -> Iterator[str]:
    """One line for each setting, after what the environment is. `base` is the recipe before the
    options, which `given` has by key, and from `file`, or else shipped or the defaults."""
    before, of_base = flatten(recipe), flatten(base)
    env, recipe = with_record(recipe.environment.id, resolved(recipe, parts))
    with training_envs(env, recipe, parts) as (envs, description):
        policy = make_policy(envs, recipe, parts)
        recipe = with_rollouts_of(envs, policy, recipe)
        learner = make_learner(policy, recipe, parts)
        yield description
        yield learner.policy.observations.describe_in_words()
    agent = recipe.agent
    own = diff(base, Recipe.of(agent, type(base.learner)))
    of_agent = diff(Recipe.of(agent, type(base.learner)), Recipe())
    values = flatten(with_what_auto_came_to(recipe, learner)) | followed(recipe, learner)
    for key, value in values.items():
        is_given = key in given or before[key] != of_base[key]  # an entry of a table is no option
        if (is_given and before[key] != "auto") or key == "environment.id":
            why = "given"
        elif value != before[key] or before[key] == "auto" or (key == "agent" and not file):
            why = f"by rule: {REASONS[key]}"
        elif key in own or key == "agent":
            why = f"recipe {file}" if file else f"the recipe shipped for {before['environment.id']}"
        else:
            why = f"default of {agent}" if key in of_agent and agent in AGENTS else "default"
        yield f"{key:<34} {shown(value):<{WIDEST_VALUE}} {why}"


def followed(recipe: Recipe, made: Learner) -> dict[str, Any]:
    """What follows from the size of a run and of a rollout, and from the machine."""
    rollout, learner = recipe.rollout, recipe.learner
    names = ("log.every", "evaluation.every", "checkpoint.every")
    found: dict[str, Any] = dict(zip(names, intervals(recipe), strict=True))
    found["device"] = device_of(recipe.device).type
    size, length = rollout.num_envs * recipe.steps_per_env, None
    if recipe.policy.memory:
        size, length = rollout.num_envs, recipe.steps_per_env
    dims = num_continuous(made.policy.head.space)
    for name, each in {"num_minibatches": dims, "num_value_minibatches": 0}.items():
        if name in learner.names() and rollout.episodes_per_env is None:
            found[f"learner.{name}"] = num_minibatches(getattr(learner, name), size, length, each)
    return found


def shown(value: object) -> str:
    """As it is typed, and easy to read."""
    return f"{value:_}" if type(value) is int else as_text(value) or "()"

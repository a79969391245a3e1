"""From a recipe, and the parts that a user brings, to the components of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from inspect import isabstract
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import Space
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from rlpg.distributed import num_ranks, rank, share
from rlpg.engine.device import device_of
from rlpg.engine.shipped import recipe_for
from rlpg.errors import RlpgError, UsageError, words
from rlpg.gradients.baselines import Baseline, Value
from rlpg.gradients.combine import FEWEST_LANES
from rlpg.learners import Learner, rules
from rlpg.learners.settings import AGENTS, PREDICTING
from rlpg.learners.values import StateValue
from rlpg.policies import Policy, StandardPolicy, make_own_policy
from rlpg.policies.references import (
    NO_PARTS,
    Reference,
    UserParts,
    imported,
    name_of,
    reference_to,
    require_used,
)
from rlpg.policies.spaces import num_continuous
from rlpg.rollouts import (
    BaseCollector,
    Collector,
    EnvSource,
    TensorCollector,
    environment_name,
    find_spec,
    make_envs,
    probe_action_mask,
    record_of,
    wrapped,
)
from rlpg.rollouts.ids import own_words, package_of
from rlpg.rollouts.tensor_collector import dynamics_of
from rlpg.rollouts.trial import faster_backend
from rlpg.runs.recipe import Recipe, load_recipe, override
from rlpg.runs.recorded import usable_kwargs, usable_wrappers
from rlpg.runs.run import RunFolder
from rlpg.settings import SCHEDULE

STREAMS = ("environments", "actions", "policy", "learner", "evaluation", "final evaluation")


# ---- the recipe


def find_recipe(
    env: EnvSource, agent: str | None, recipe: str | Path | Recipe | None, parts: UserParts
) -> Recipe:
    """`recipe_for` the environment, with what the caller's own learner can be told.

    An object is what it is: arguments that the shipped recipe makes one with are not for it. Nor is
    the recipe for an environment of the caller's own that is called like the one it was made for.
    """
    if recipe is None and package_of(env) not in ("gymnasium", "minatar", "rlpg"):
        recipe = "default"
    name = environment_name(env)
    found = recipe_for(name, agent, recipe, lambda own: learner_class(own, parts).Settings)
    is_own = recipe is not None or isinstance(env, str)
    return found if is_own else override(found, {"environment.kwargs": {}})


def learner_class(agent: str, parts: UserParts) -> type[Learner]:
    """The class of an agent; UsageError if it is no `Learner`, or was only named by a file."""
    if agent in AGENTS:
        found: Any = imported(AGENTS[agent].learner, "agent")
    else:
        found = parts.find("agent", Reference(agent))
    if not (isinstance(found, type) and issubclass(found, Learner)):
        raise UsageError(f"agent: expected {agent} to be a subclass of rlpg.Learner, got {found!r}")
    if isabstract(found):
        raise UsageError(f"agent: expected {agent} to define surrogate, got an abstract class")
    return found


def settings_of(parts: UserParts, asked: Mapping[str, object]) -> dict[str, Any]:
    """What a recipe says about the parts that a user brings, and the settings `asked` for beside;
    UsageError where one was asked to be something else than the part that was given."""
    said: dict[str, Any] = {}
    for kind, part, name, kwargs in (
        ("network", parts.network, "policy.network", "policy.network_kwargs"),
        ("policy", parts.policy, "policy.factory", "policy.kwargs"),
    ):
        if isinstance(part, torch.nn.Module):  # it can be called, too
            raise UsageError(f"{kind}: expected what makes one (a class), got {part!r:.60}")
        if part is not None:
            reference = reference_to(part, kind)
            said |= {name: reference.name, kwargs: reference.kwargs}
    if isinstance(parts.baseline, str) and ":" not in parts.baseline:
        said["learner.baseline"] = parts.baseline
    elif isinstance(parts.baseline, partial):
        said["learner.baseline"] = name_of(parts.baseline)
    elif parts.baseline is not None:
        said["learner.baseline"] = reference_to(parts.baseline, "baseline").name
    functions = {name: part for name, part in parts.schedules.items() if callable(part)}
    said |= {f"learner.{name}{SCHEDULE}": name_of(part) for name, part in functions.items()}
    # No table of arguments is no change: a recipe may hold some.
    said = {key: value for key, value in said.items() if value != {}}
    for key in sorted(said.keys() & asked.keys()):
        if asked[key] != said[key]:
            raise UsageError(
                f"overrides: {key}: expected none beside {said[key]}, got {asked[key]!r:.60}"
            )
    return said | dict(asked)


def resolved(recipe: Recipe, parts: UserParts = NO_PARTS) -> Recipe:
    """The recipe with what follows from its other settings.

    Without a baseline that predicts values, nobody knows what the cut end of an episode is worth:
    whole episodes are collected, unless `learner.truncated_return` says what a cut one means.
    """
    is_said = recipe.learner.truncated_return != "auto" or recipe.rollout.episodes_per_env
    name, own = recipe.learner.baseline, parts.baseline
    if ":" in name and not isinstance(own, Baseline):
        own = parts.find("baseline", Reference(name))
    kind = own if isinstance(own, type) else type(own)
    predicts = issubclass(kind, StateValue | Value) if ":" in name else name in PREDICTING
    if is_said or predicts:
        return recipe
    return override(recipe, {"rollout.episodes_per_env": 1})


def with_rollouts_of(envs: VectorEnv[Any, Any, Any], policy: Policy, recipe: Recipe) -> Recipe:
    """The recipe with the number of environments that there are, and the steps of its rollouts.

    A vector environment has as many as it has, and one that cannot be copied stays alone.
    """
    num_envs, num_steps = envs.num_envs * num_ranks(), recipe.rollout.num_steps
    if num_steps == "auto":
        has_memory = policy.has_memory
        num_steps = rules.num_steps(recipe.total_steps, num_envs, has_memory=has_memory)
    return override(recipe, {"rollout.num_envs": num_envs, "rollout.num_steps": num_steps})


def with_what_auto_came_to(recipe: Recipe, learner: Learner) -> Recipe:
    """The recipe that a run keeps: numbers where policy and learner were told `auto`.

    `learner.num_minibatches`, `policy.images` and `environment.backend` stay `auto`: they follow
    from each rollout, each space, and what is installed.
    """
    rule, told = learner.advantage_rule, recipe.learner
    came_to: dict[str, Any] = {
        "gae_lambda": rule.gae_lambda,
        "truncated_return": rule.truncated_return,
        "entropy_coef": learner.entropy_coef,
        "value_hidden": learner.settings.value_hidden,
    }
    was_auto = {name: value for name, value in came_to.items() if getattr(told, name) == "auto"}
    first_std = log_std_init(recipe, learner.policy.head.space)
    return replace(
        recipe,
        policy=replace(recipe.policy, log_std_init=first_std),
        learner=replace(told, **was_auto),
    )


def recipe_of_run(
    folder: RunFolder, parts: UserParts, env_kwargs: Mapping[str, Any] | None
) -> Recipe:
    """The recipe of a run with the environment's arguments that may be used; see `usable_kwargs`.
    UsageError where the caller brings a part and the run has none of its own."""
    recipe = load_recipe(folder.recipe, resolve=lambda own: learner_class(own, parts).Settings)
    policy, learner = recipe.policy, recipe.learner.values()
    given = {kind: getattr(parts, kind) for kind in ("network", "policy", "agent", "baseline")}
    schedules = {f"{name}{SCHEDULE}": part for name, part in parts.schedules.items()}
    given |= {name: part for name, part in schedules.items() if name in learner}
    own = {"network": policy.network, "policy": policy.factory, "agent": recipe.agent}
    require_used(given, learner | own, folder.path)
    kwargs = usable_kwargs(recipe.environment.kwargs, folder.path, env_kwargs)
    usable_wrappers(recipe.environment.wrappers, folder.path)
    return override(recipe, {"environment.kwargs": kwargs})


def with_record(env: EnvSource, recipe: Recipe) -> tuple[EnvSource, Recipe]:
    """The environment with the wrappers of the recipe, and the recipe with what an object is;
    UsageError where the recipe says otherwise of an object's arguments or wrappers."""
    told = recipe.environment
    if isinstance(env, str):
        if told.wrappers:
            with own_words(env):
                env = wrapped(find_spec(env)[0], told.wrappers)
        return env, recipe
    record = record_of(env)
    if record is None:
        return env, recipe
    changes: dict[str, Any] = {"kwargs": dict(record.kwargs), "wrappers": dict(record.wrappers)}
    for name, own in changes.items():
        if getattr(told, name) not in ({}, own):
            raise UsageError(
                f"environment.{name}: expected none besides those of the environment object, "
                f"{own}, got {getattr(told, name)}; pass an id to apply them to"
            )
    changes["max_episode_steps"] = told.max_episode_steps or record.max_episode_steps
    return env, override(recipe, {f"environment.{name}": own for name, own in changes.items()})


# ---- random streams


def seed_sequence(seed: int, name: str, *key: int) -> np.random.SeedSequence:
    """One of a run's independent random streams, or a numbered branch of it."""
    return np.random.SeedSequence(seed, spawn_key=(STREAMS.index(name), *key))


def rank_key() -> tuple[int, ...]:
    """What tells the streams of a rank from those of the others; nothing when alone."""
    return () if num_ranks() == 1 else (num_ranks(), rank())


def generator_from(seed: np.random.SeedSequence) -> torch.Generator:
    """A generator at the start of a stream."""
    return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0]) >> 1)


# ---- the components


@contextmanager
def training_envs(
    env: EnvSource, recipe: Recipe, parts: UserParts = NO_PARTS
) -> Iterator[tuple[VectorEnv[Any, Any, Any], str]]:
    """The vector environment to train on, and one line about it; closed at the end if made here."""
    name, told = environment_name(env), recipe.environment.id
    # The spec of an id (environment.wrappers) does not say which module it is from.
    if name != (told.rpartition(":")[2] if isinstance(env, EnvSpec) else told):
        raise UsageError(f"environment.id: expected {name}, which is trained on, got {told}")
    num_envs = share("rollout.num_envs", recipe.rollout.num_envs)
    if num_ranks() > 1 and isinstance(env, VectorEnv | gymnasium.Env):
        raise UsageError(
            f"env: expected an id, a class or a function for {num_ranks()} processes, got {env}"
        )
    options, why = environment_options(env, recipe), ""
    # Once per run; evaluations take what needs no trial, and ranks would disturb each other's.
    if not isinstance(env, VectorEnv) and num_ranks() == 1:
        options["backend"], why = faster_backend(
            env,
            num_envs,
            recipe.total_steps,
            options,
            lambda envs: make_policy(envs, recipe, parts),
            whole_episodes=recipe.rollout.episodes_per_env is not None,
        )
    made = make_envs(
        env,
        num_envs,
        seed=seed_sequence(recipe.seed, "environments"),
        first_env=rank() * num_envs,
        **options,
    )
    with nullcontext() if isinstance(env, VectorEnv) else closing(made.envs):
        yield made.envs, ", ".join(filter(None, (made.description, why)))


def environment_options(env: EnvSource, recipe: Recipe) -> dict[str, Any]:
    """How to make the environment; a vector environment is used as it is."""
    settings = recipe.environment.values()
    if isinstance(env, VectorEnv):
        return {"timeout": settings["timeout"]}
    del settings["id"], settings["wrappers"]  # they are in `env`
    return settings | ({"kwargs": {}} if isinstance(env, gymnasium.Env) else {})


@contextmanager
def made_by_own_part(kind: str, name: str | None) -> Iterator[None]:
    """Says in one line what goes wrong where code of the user's, if any, makes something."""
    try:
        yield
    except Exception as error:
        if name is None or isinstance(error, RlpgError):
            raise
        raise UsageError(f"{kind}: expected {name} to make one, got {words(error)}") from error


def make_policy(
    envs: VectorEnv[Any, Any, Any], recipe: Recipe, parts: UserParts = NO_PARTS
) -> Policy:
    """A fresh policy for these environments, on the device that the recipe says; UsageError where
    there is no such device, or the user's part does not make a policy."""
    settings = recipe.policy
    both = envs.single_observation_space, envs.single_action_space
    options: dict[str, Any] = {
        "info_mask": probe_action_mask(envs) if settings.action_mask else 0,
        "generator": generator_from(seed_sequence(recipe.seed, "policy")),
    }
    if settings.factory is not None:
        reference = Reference(settings.factory, settings.kwargs)
        factory = parts.find("policy", reference)
        with made_by_own_part("policy", settings.factory):
            policy: Policy = make_own_policy(factory, reference, *both, **options)
    else:
        own = ("network_kwargs", "factory", "kwargs", "action_mask")
        options |= {name: value for name, value in settings.values().items() if name not in own}
        options["log_std_init"] = log_std_init(recipe, both[1])
        if name := settings.network:
            options["network"] = parts.find("network", Reference(name, settings.network_kwargs))
        with made_by_own_part("network", name):
            policy = StandardPolicy(*both, **options)
    return policy.to(device_of(recipe.device))


def log_std_init(recipe: Recipe, action_space: Space[Any]) -> float:
    """As the recipe says, or by rule."""
    said = recipe.policy.log_std_init
    if said != "auto":
        return said
    plain = recipe.agent not in ("ppo", "npg", "trpo")
    return rules.log_std_init(num_continuous(action_space), plain=plain)


def make_learner(policy: Policy, recipe: Recipe, parts: UserParts = NO_PARTS) -> Learner:
    settings = recipe.learner
    if settings.value_hidden == "auto" and not recipe.policy.shared_torso:
        settings = replace(settings, value_hidden=recipe.policy.hidden)
    values = settings.values()
    baseline: Any = values.pop("baseline")
    if ":" in baseline:
        baseline = parts.baseline
        if isinstance(baseline, Baseline):
            baseline = copy.deepcopy(baseline)  # it learns, and another run may be given it, too
        else:
            make = parts.find("baseline", Reference(settings.baseline))
            with made_by_own_part("baseline", settings.baseline):
                baseline = make()
        if not isinstance(baseline, Baseline):
            raise UsageError(
                f"baseline: expected {settings.baseline} to make an rlpg.Baseline, got {baseline!r}"
            )
    schedules: Any = {**parts.schedules}
    for name, value in values.items():
        if name.endswith(SCHEDULE) and ":" in value:
            setting = name.removesuffix(SCHEDULE)
            with made_by_own_part(name, value):
                schedules[setting] = parts.find_schedule(setting, value)
    make_one: Any = learner_class(recipe.agent, parts)
    # A policy of one's own may `make_critic`.
    own = ("critic", recipe.policy.factory) if recipe.agent in AGENTS else ("agent", recipe.agent)
    with made_by_own_part(*own):
        made: Learner = make_one(
            policy,
            baseline,
            generator=generator_from(seed_sequence(recipe.seed, "learner")),
            schedules=schedules,
            **values,
        )
    return made


def make_collector(
    envs: VectorEnv[Any, Any, Any], learner: Learner, recipe: Recipe, warn: Callable[[str], None]
) -> BaseCollector:
    """What collects for the learner: with gradients, where the learner asks for them;
    UsageError where the environment cannot give them, or not in this machine's memory."""
    seed = seed_sequence(recipe.seed, "actions", *rank_key())
    if learner.gradient is None:
        return Collector(envs, learner.policy, seed, log_prob=False, warn=warn)
    dynamics_of(envs, recipe.environment.id)
    if recipe.rollout.episodes_per_env is not None:
        raise UsageError(
            f"rollout.episodes_per_env: expected none for the agent {recipe.agent}, got "
            f"{recipe.rollout.episodes_per_env}; it learns from windows of rollout.num_steps"
        )
    if learner.gradient == "combine" and envs.num_envs < FEWEST_LANES:
        raise UsageError(
            f"rollout.num_envs: expected at least {FEWEST_LANES} (of each process) for the "
            f"gradient combine, which compares variances over them, got {envs.num_envs}"
        )
    collector = TensorCollector(
        envs, learner.policy, seed, gradient=learner.gradient, log_prob=False
    )
    collector.require_memory(recipe.steps_per_env)
    return collector

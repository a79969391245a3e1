"""From what a user names to a seeded vector environment: ids, backends, time caps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator, registry
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from rlpg.errors import EnvironmentSetupError, counted
from rlpg.rollouts.ids import (
    AnyEnv,
    EnvSource,
    Factory,
    environment_name,
    find_spec,
    own_words,
    quietly,
    unknown_id,
)
from rlpg.rollouts.seeds import (
    OURS,
    EpisodeSeeds,
    derived_seed,
    reseed,
    seed_sequence,
    seed_streams,
)
from rlpg.rollouts.watchdog import Calls, WatchedEnvs
from rlpg.rollouts.workers import WorkerEnvs

_HOW = {
    "native": "its own vector version",
    "sync": "one after the other",
    "async": "in worker processes",
    "envpool": "EnvPool",
}
BACKENDS = ("auto", *_HOW)


class MadeEnvs(NamedTuple):
    """A vector environment and one line for the user: its backend and what was done to it."""

    envs: VectorEnv[Any, Any, Any]
    description: str


def make_envs(
    env: EnvSource,
    num_envs: int = 1,
    *,
    seed: int | np.random.SeedSequence,
    kwargs: Mapping[str, Any] | None = None,
    backend: str = "auto",
    max_episode_steps: int | None = None,
    episode_cap: int | None = 1000,
    timeout: float = 60.0,
    num_workers: int | None = None,
    first_env: int = 0,
) -> MadeEnvs:
    """`num_envs` copies of an environment in one seeded vector environment.

    Args:
        env: an id (`CartPole-v1`, or `module:Id-v0`, which imports the module), Gymnasium's spec of
            one, a class or function that makes an environment, one environment (closing it stays
            with who made it), or a vector environment, used as it is but for its seeds.
        num_envs: how many. One environment object that cannot be copied stays alone.
        seed: of the run; every episode's seed is derived from it.
        kwargs: for the environment's constructor.
        backend: `native` (the environment's own vector version), `sync` (one after the other),
            `async` (in worker processes), `envpool`, or `auto`: native where there is one, else
            sync. Sync and async give the same bits.
        max_episode_steps: time limit that replaces the registered one.
        episode_cap: time limit for environments that have none, in steps; None for no cap.
        timeout: seconds that a step or reset may take before it counts as hanging: of each
            environment, or of all together where they are vectorized or given.
        num_workers: worker processes of `async`; None: as many as usable cores.
        first_env: index of the first of them among all environments of the run, which decides on
            their seeds; others are in other processes.

    EnvPool reports an episode that terminates on the very step of its time limit as truncated
    only; every other backend keeps both flags.

    Raises:
        EnvironmentSetupError: in one line, what was expected, what was got and what to do.
    """
    counts = {"num_envs": num_envs, "max_episode_steps": max_episode_steps,
              "episode_cap": episode_cap, "num_workers": num_workers}  # fmt: skip
    for name, count in counts.items():
        if not (count is None and name != "num_envs") and not _is_count(count):
            raise EnvironmentSetupError(
                f"{name}: expected an integer of at least 1, got {count!r:.40}"
            )
    if backend not in BACKENDS:
        raise EnvironmentSetupError(
            f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r:.40}"
        )
    environment_name(env)  # or it is nothing that makes environments
    wanted = _Wanted(int(num_envs), seed_sequence(seed), dict(kwargs or {}), backend,
                     max_episode_steps, episode_cap, timeout, num_workers,
                     first_env)  # fmt: skip
    with own_words(env):
        if isinstance(env, VectorEnv):
            return _given_vector(env, wanted)
        if isinstance(env, gymnasium.Env):
            return _given_env(env, wanted)
        if not isinstance(env, str | EnvSpec):
            return _from_factory(env, wanted)
        if backend == "envpool":
            return _envpool(env, wanted)
        return _from_id(env, wanted)


@dataclass(frozen=True)
class _Wanted:
    """What was asked of `make_envs`."""

    num_envs: int
    run: np.random.SeedSequence
    kwargs: dict[str, Any]
    backend: str
    max_episode_steps: int | None
    episode_cap: int | None
    timeout: float
    num_workers: int | None
    first_env: int


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and type(value) is not bool and int(value) >= 1


# ---------------------------------------------------------------------------- the five sources


def _given_vector(envs: VectorEnv[Any, Any, Any], wanted: _Wanted) -> MadeEnvs:
    if wanted.kwargs or wanted.backend != "auto" or wanted.max_episode_steps is not None:
        raise EnvironmentSetupError(
            f"env: expected an id to apply kwargs, backend or max_episode_steps to, got {envs}"
        )
    watched = envs
    if isinstance(envs, WatchedEnvs):
        envs.watchdog.timeout = wanted.timeout
    elif not isinstance(envs.unwrapped, WorkerEnvs):
        watched = WatchedEnvs(envs, wanted.timeout)
    reseed(watched, wanted.run)  # whatever they did before: the same seed makes the same episodes
    what = f"{envs.num_envs} environments as given, {type(envs.unwrapped).__name__}"
    return MadeEnvs(watched, what)


def _given_env(env: AnyEnv, wanted: _Wanted) -> MadeEnvs:
    if wanted.kwargs or wanted.backend not in ("auto", "sync"):
        raise EnvironmentSetupError(
            f"env: expected an id to apply kwargs or backend={wanted.backend!r} to, got {env}"
        )
    limit, note = _limit_of(env, wanted)
    another: Any = another_like(env)
    makers: list[Factory] = [partial(LeftOpen, env)]
    makers += [another] * (wanted.num_envs - 1) if another else []
    alone = ""
    if len(makers) < wanted.num_envs:
        reason = "no registered id" if env.spec is None else "a wrapper that cannot be repeated"
        alone = f"not {wanted.num_envs}: it has {reason}"
    return _made(environment_name(env), makers, limit, "sync", wanted, alone, note)


def _from_factory(factory: Factory, wanted: _Wanted) -> MadeEnvs:
    if wanted.backend not in ("auto", "sync", "async"):
        raise EnvironmentSetupError(
            f"backend: expected auto, sync or async for a class or function that makes an "
            f"environment, got {wanted.backend!r}; register an id for others"
        )
    make: Factory = partial(made_by, factory, **wanted.kwargs)
    first, makers = make(), [make] * wanted.num_envs
    limit, note = _limit_of(first, wanted)
    backend = "async" if wanted.backend == "async" else "sync"
    if backend == "async":
        EpisodeSeeds(first, wanted.run, wanted.first_env).close()  # whatever happens there
    else:
        makers[0] = lambda: first
    return _made(environment_name(factory), makers, limit, backend, wanted, note)


def _from_id(env_id: str | EnvSpec, wanted: _Wanted) -> MadeEnvs:
    spec, version_note = find_spec(env_id)
    if "max_num_frames_per_episode" in spec.kwargs:  # Atari counts frames itself
        wanted = replace(wanted, episode_cap=None)
    limit, note = _limit(spec.max_episode_steps, wanted)
    backend, native = wanted.backend, _native(spec)
    if backend == "native" and native is None:
        raise EnvironmentSetupError(
            f"backend: expected an environment with a vector version for 'native', "
            f"got {spec.id}; use 'sync' or 'async'"
        )
    options = wanted.kwargs | ({} if limit is None else {"max_episode_steps": limit})
    if native is not None and (
        backend == "native" or (backend == "auto" and _accepts(native, options))
    ):
        made = gymnasium.make_vec(
            native, wanted.num_envs, vectorization_mode="vector_entry_point", **options
        )
        envs = WatchedEnvs(made, wanted.timeout)
        seed_streams(envs, wanted.run, wanted.first_env)
        return MadeEnvs(envs, _describe(spec.id, wanted.num_envs, "native", note, version_note))
    # -1 asks for no time limit. The checker warns about style on every step; `check-env` is its
    # place.
    options = {"max_episode_steps": -1, "disable_env_checker": True} | options
    make: Factory = partial(quietly, gymnasium.make, spec, **options)
    backend = "sync" if backend == "auto" else backend
    return _made(spec.id, [make] * wanted.num_envs, limit, backend, wanted, note, version_note)


def _envpool(env_id: str | EnvSpec, wanted: _Wanted) -> MadeEnvs:
    import envpool

    if isinstance(env_id, EnvSpec):
        raise EnvironmentSetupError(
            f"backend: expected auto, native, sync or async for {env_id.id} with a spec of its own "
            "(environment.wrappers), got envpool"
        )
    known = envpool.list_all_envs()
    if env_id not in known:
        raise EnvironmentSetupError(unknown_id(env_id, known, "an id that EnvPool has"))
    default = int(envpool.make_spec(env_id).config.max_episode_steps)
    limit, note = _limit(default if default < 2**31 - 1 else None, wanted)
    options = wanted.kwargs | ({} if limit is None else {"max_episode_steps": limit})
    num_envs = wanted.num_envs
    seeds = [derived_seed(wanted.run, wanted.first_env + n, 0) for n in range(num_envs)]
    envs: Any = envpool.make(env_id, env_type="gymnasium", num_envs=num_envs, seed=seeds, **options)
    _ = envs.single_observation_space, envs.single_action_space  # built once, and may warn
    return MadeEnvs(WatchedEnvs(envs, wanted.timeout), _describe(env_id, num_envs, "envpool", note))


# ------------------------------------------------------------------------------------- details


def _made(
    name: str,
    makers: Sequence[Factory],
    limit: int | None,
    backend: str,
    wanted: _Wanted,
    *notes: str,
) -> MadeEnvs:
    """Environments one after the other or in workers, each episode with a seed of its own."""
    calls = None if backend == "async" else Calls()
    seeded = [partial(_seeded, make, limit, wanted, n, calls) for n, make in enumerate(makers)]
    envs: VectorEnv[Any, Any, Any]
    if calls is None:
        envs = WorkerEnvs(seeded, timeout=wanted.timeout, num_workers=wanted.num_workers)
    else:
        envs = SyncVectorEnv(seeded, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        envs = WatchedEnvs(envs, wanted.timeout, calls)
    return MadeEnvs(envs, _describe(name, len(makers), backend, *notes))


def _seeded(
    make: Factory, limit: int | None, wanted: _Wanted, place: int, calls: Calls | None
) -> AnyEnv:
    env = make()
    if limit is not None and limit != _existing_limit(env):
        env = gymnasium.wrappers.TimeLimit(env, limit)
    return EpisodeSeeds(env, wanted.run, wanted.first_env + place, calls)


def _native(spec: EnvSpec) -> EnvSpec | None:
    """The spec whose vector version stands for `spec`: ours where there is one, else its own."""
    if spec.additional_wrappers:
        return None
    ours = registry.get(f"{OURS}{spec.id}")
    if ours is not None and ours.entry_point != spec.entry_point:
        ours = None  # an environment of the user's that is called like one of ours
    for native in (ours, spec):
        if native is None or native.vector_entry_point is None:
            continue
        if "jax" not in str(native.vector_entry_point).lower():
            return replace(native, kwargs={**spec.kwargs})
    return None


def _accepts(native: EnvSpec, options: dict[str, Any]) -> bool:
    """Whether the vector version knows all arguments; ours with `**options` judge themselves."""
    entry: Any = native.vector_entry_point
    known = inspect.signature(load_env_creator(entry) if isinstance(entry, str) else entry)
    if native.id.startswith(OURS) and "options" in known.parameters:
        return True
    return {*native.kwargs, *options} <= known.parameters.keys()


class LeftOpen(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that the caller made, and closes: `close()` here does nothing."""

    def close(self) -> None:
        """Does nothing."""


def another_like(env: EnvSource) -> str | EnvSpec | Factory | None:
    """What makes independent environments like this one; None where an object cannot be copied."""
    if isinstance(env, VectorEnv):
        return None
    if not isinstance(env, gymnasium.Env):
        return env
    if env.spec is None or any(wrapper.kwargs is None for wrapper in env.spec.additional_wrappers):
        return None  # it has no id, or a wrapper without a record
    return partial(quietly, gymnasium.make, env.spec)


def made_by(factory: Factory, **options: Any) -> AnyEnv:
    """What a class or function makes; EnvironmentSetupError if that is no environment."""
    env: Any = factory(**options)
    if not isinstance(env, gymnasium.Env):
        raise EnvironmentSetupError(
            f"env: expected {environment_name(factory)} to make a gymnasium.Env, got "
            f"{type(env).__name__}; let it return one environment, or pass a vector environment"
        )
    return env


def _limit(registered: int | None, wanted: _Wanted) -> tuple[int | None, str]:
    """The time limit to set, and what to say about it."""
    asked, cap = wanted.max_episode_steps, wanted.episode_cap
    if asked is not None:
        return asked, f"at most {asked} steps per episode"
    if registered is not None or cap is None:
        return registered, ""
    return cap, f"capped at {cap} steps per episode: no time limit is registered"


def _limit_of(env: AnyEnv, wanted: _Wanted) -> tuple[int | None, str]:
    """`_limit` for an environment that exists and may have a limit already."""
    existing, asked = _existing_limit(env), wanted.max_episode_steps
    if existing is not None and asked is not None and asked > existing:
        raise EnvironmentSetupError(
            f"max_episode_steps: expected at most the {existing} that {env} already has, "
            f"got {asked}; make it with a longer TimeLimit"
        )
    return _limit(existing, wanted)


def _existing_limit(env: AnyEnv) -> int | None:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            return int(env._max_episode_steps)
        env = env.env
    return None


def _describe(name: str, num_envs: int, backend: str, *notes: str) -> str:
    what = f"{name}: {counted(num_envs, 'environment')}, {backend} ({_HOW[backend]})"
    return ", ".join(filter(None, (what, *notes)))

"""From what a user names to a seeded vector environment: ids, backends, time caps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator, registry
from gymnasium.vector import AutoresetMode, VectorEnv

from rlpg.errors import EnvironmentSetupError
from rlpg.rollouts.ids import find_spec, own_words, unknown_id
from rlpg.rollouts.seeds import (
    OURS,
    EpisodeSeeds,
    derived_seed,
    mark_seeded,
    reseed,
    seed_streams,
    seeded_env,
)
from rlpg.rollouts.trial import faster_backend
from rlpg.rollouts.vector import autoreset_mode
from rlpg.rollouts.watchdog import SyncEnvs, watch
from rlpg.rollouts.workers import WorkerEnvs

AnyEnv = gymnasium.Env[Any, Any]

BACKENDS = ("auto", "native", "sync", "async", "envpool")


class MadeEnvs(NamedTuple):
    """A vector environment and one line for the user: its backend and what was done to it."""

    envs: VectorEnv[Any, Any, Any]
    description: str


def make_envs(
    env: str | AnyEnv | VectorEnv[Any, Any, Any],
    num_envs: int = 1,
    *,
    seed: int | np.random.SeedSequence,
    kwargs: Mapping[str, Any] | None = None,
    backend: str = "auto",
    max_episode_steps: int | None = None,
    episode_cap: int | None = 1000,
    timeout: float = 60.0,
    num_workers: int | None = None,
) -> MadeEnvs:
    """`num_envs` copies of an environment in one seeded vector environment.

    Args:
        env: an id (`CartPole-v1`, or `module:Id-v0`, which imports the module), one environment
            (closing it stays with who made it), or a vector environment, used as it is but for
            its seeds.
        num_envs: how many. One environment object that cannot be copied stays alone.
        seed: of the run; every episode's seed is derived from it.
        kwargs: for the environment's constructor.
        backend: `native` (the environment's own vector version), `sync` (one after the other),
            `async` (in worker processes), `envpool`, or `auto`: native where there is one, else
            sync or async, whichever is faster (`faster_backend`). Sync and async give the same
            bits.
        max_episode_steps: time limit that replaces the registered one.
        episode_cap: time limit for environments that have none, in steps; None for no cap.
        timeout: seconds that a step or reset may take before it counts as hanging: of each
            environment, or of all together where they are vectorized or given.
        num_workers: worker processes of `async`; None: as many as usable cores.

    EnvPool reports an episode that terminates on the very step of its time limit as truncated
    only; every other backend keeps both flags.

    Raises:
        EnvironmentSetupError: in one line, what was expected, what was got and what to do.
    """
    if num_envs < 1:
        raise EnvironmentSetupError(f"num_envs: expected at least 1, got {num_envs}")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise EnvironmentSetupError(
            f"max_episode_steps: expected at least 1, got {max_episode_steps}"
        )
    if backend not in BACKENDS:
        raise EnvironmentSetupError(
            f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}"
        )
    if num_workers is not None and num_workers < 1:
        raise EnvironmentSetupError(f"num_workers: expected at least 1, got {num_workers}")
    run = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    options = dict(kwargs or {})
    limits = max_episode_steps, episode_cap
    with own_words(env):
        if isinstance(env, VectorEnv):
            return _given_vector(env, run, options, backend, max_episode_steps, timeout)
        if isinstance(env, gymnasium.Env):
            return _given_env(env, num_envs, run, options, backend, limits, timeout)
        if backend == "envpool":
            return _envpool(env, num_envs, run, options, limits, timeout)
        return _from_id(env, num_envs, run, options, backend, limits, timeout, num_workers)


# ---------------------------------------------------------------------------- the four sources


def _given_vector(
    envs: VectorEnv[Any, Any, Any],
    run: np.random.SeedSequence,
    options: dict[str, Any],
    backend: str,
    max_episode_steps: int | None,
    timeout: float,
) -> MadeEnvs:
    if options or backend != "auto" or max_episode_steps is not None:
        raise EnvironmentSetupError(
            f"env: expected an id to apply kwargs, backend or max_episode_steps to, got {envs}; "
            "set them where the vector environment is made"
        )
    autoreset_mode(envs)
    if not isinstance(envs.unwrapped, WorkerEnvs):
        watch(envs, timeout)
    reseed(envs, run)  # whatever they did before: the same seed makes the same episodes
    return MadeEnvs(envs, f"{envs.num_envs} environments as given, {type(envs.unwrapped).__name__}")


def _given_env(
    env: AnyEnv,
    num_envs: int,
    run: np.random.SeedSequence,
    options: dict[str, Any],
    backend: str,
    limits: tuple[int | None, int | None],
    timeout: float,
) -> MadeEnvs:
    max_episode_steps, episode_cap = limits
    if options or backend not in ("auto", "sync"):
        raise EnvironmentSetupError(
            f"env: expected an id to apply kwargs or backend={backend!r} to, got {env}; "
            "an environment object runs in this process as it was made"
        )
    existing = _existing_limit(env)
    spec = env.spec if can_be_copied(env) else None
    if existing is not None and max_episode_steps is not None and max_episode_steps > existing:
        raise EnvironmentSetupError(
            f"max_episode_steps: expected at most the {existing} that {env} already has, "
            f"got {max_episode_steps}; make it with a longer TimeLimit"
        )
    limit, note = _limit(existing, max_episode_steps, episode_cap)
    copies = num_envs if spec is not None else 1
    reason = "has no registered id" if env.spec is None else "has a wrapper that cannot be repeated"
    alone = f"not {num_envs}: it {reason}" if copies < num_envs else ""

    def make_one(index: int) -> AnyEnv:
        one = LeftOpen(env) if index == 0 or spec is None else gymnasium.make(spec)
        if limit is not None and limit != existing:
            one = gymnasium.wrappers.TimeLimit(one, limit)
        return EpisodeSeeds(one, run, index)

    envs = _sync([partial(make_one, n) for n in range(copies)], timeout)
    mark_seeded(envs, by_episode=True)
    return MadeEnvs(envs, _describe(str(spec.id if spec else env), copies, "sync", alone, note))


def _from_id(
    env_id: str,
    num_envs: int,
    run: np.random.SeedSequence,
    options: dict[str, Any],
    backend: str,
    limits: tuple[int | None, int | None],
    timeout: float,
    num_workers: int | None,
) -> MadeEnvs:
    max_episode_steps, episode_cap = limits
    spec, version_note = find_spec(env_id)
    registered = spec.max_episode_steps
    if "max_num_frames_per_episode" in spec.kwargs:  # Atari counts frames itself
        episode_cap = None
    limit, note = _limit(registered, max_episode_steps, episode_cap)
    native = _native(spec)
    if backend == "native" and native is None:
        raise EnvironmentSetupError(
            f"backend: expected an environment with a vector version for 'native', "
            f"got {spec.id}; use 'sync' or 'async'"
        )
    if backend == "auto" and native is not None and _accepts(native, options, limit):
        backend = "native"
    make = partial(seeded_env, spec, options, limit)
    why = ""
    if backend == "auto":
        backend, why = faster_backend(spec, make, num_envs, timeout, num_workers)
    envs: VectorEnv[Any, Any, Any]
    if backend == "native" and native is not None:
        envs = _make_native(native, num_envs, run, options, limit, timeout)
    else:
        makers: list[Callable[[], AnyEnv]] = [partial(make, run, n) for n in range(num_envs)]
        if backend == "async":
            envs = WorkerEnvs(makers, timeout=timeout, num_workers=num_workers)
            backend = f"async ({len(envs.processes)} worker processes)"
        else:
            envs = _sync(makers, timeout)
        mark_seeded(envs, by_episode=True)
    return MadeEnvs(envs, _describe(spec.id, num_envs, backend, why, note, version_note))


def _native(spec: EnvSpec) -> EnvSpec | None:
    """The spec whose vector version stands for `spec`: ours where there is one, else its own."""
    if spec.additional_wrappers:
        return None
    for native in (registry.get(f"{OURS}{spec.id}"), spec):
        if native is None or native.vector_entry_point is None:
            continue
        if "jax" not in str(native.vector_entry_point).lower():
            return replace(native, kwargs={**spec.kwargs})
    return None


def _accepts(native: EnvSpec, options: dict[str, Any], limit: int | None) -> bool:
    """Whether the vector version knows all arguments."""
    entry: Any = native.vector_entry_point
    known = inspect.signature(load_env_creator(entry) if isinstance(entry, str) else entry)
    wanted = {*native.kwargs, *options} | ({"max_episode_steps"} if limit is not None else set())
    return wanted <= known.parameters.keys()


def _make_native(
    native: EnvSpec,
    num_envs: int,
    run: np.random.SeedSequence,
    options: dict[str, Any],
    limit: int | None,
    timeout: float,
) -> VectorEnv[Any, Any, Any]:
    if limit is not None:
        options = {**options, "max_episode_steps": limit}
    envs = gymnasium.make_vec(
        native, num_envs=num_envs, vectorization_mode="vector_entry_point", **options
    )
    autoreset_mode(envs)
    watch(envs, timeout)
    seed_streams(envs, run)
    return envs


def _sync(makers: list[Callable[[], AnyEnv]], timeout: float) -> VectorEnv[Any, Any, Any]:
    envs = SyncEnvs(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    watch(envs, timeout)
    return envs


def _envpool(
    env_id: str,
    num_envs: int,
    run: np.random.SeedSequence,
    options: dict[str, Any],
    limits: tuple[int | None, int | None],
    timeout: float,
) -> MadeEnvs:
    import envpool

    max_episode_steps, episode_cap = limits
    known = envpool.list_all_envs()
    if env_id not in known:
        raise EnvironmentSetupError(unknown_id(env_id, known, "an id that EnvPool has"))
    default = int(envpool.make_spec(env_id).config.max_episode_steps)
    registered = default if default < 2**31 - 1 else None
    limit, note = _limit(registered, max_episode_steps, episode_cap)
    if limit is not None:
        options["max_episode_steps"] = limit
    seeds = [derived_seed(run, n, 0) for n in range(num_envs)]
    envs: Any = envpool.make(env_id, env_type="gymnasium", num_envs=num_envs, seed=seeds, **options)
    _ = envs.single_observation_space, envs.single_action_space  # built once, and may warn
    watch(envs, timeout)
    return MadeEnvs(envs, _describe(env_id, num_envs, "envpool", note))


# ------------------------------------------------------------------------------------- details


class LeftOpen(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Who made an environment closes it, not who borrowed it."""

    def close(self) -> None:
        """Does nothing."""


def can_be_copied(env: AnyEnv) -> bool:
    """Whether `gymnasium.make(env.spec)` gives another one: it has an id, its wrappers a record."""
    spec = env.spec
    return spec is not None and all(w.kwargs is not None for w in spec.additional_wrappers)


def _limit(
    registered: int | None, asked: int | None, episode_cap: int | None
) -> tuple[int | None, str]:
    """The time limit to set, and what to say about it."""
    if asked is not None:
        return asked, f"at most {asked} steps per episode"
    if registered is not None or episode_cap is None:
        return registered, ""
    return episode_cap, f"capped at {episode_cap} steps per episode: it has no time limit"


def _existing_limit(env: AnyEnv) -> int | None:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit):
            return int(env._max_episode_steps)
        env = env.env
    return None


def _describe(name: str, num_envs: int, backend: str, *notes: str) -> str:
    how = {
        "native": " (its own vector version)",
        "sync": " (one after the other)",
        "envpool": " (EnvPool)",
    }.get(backend, "")
    plural = "environment" if num_envs == 1 else "environments"
    return ", ".join(filter(None, (f"{name}: {num_envs} {plural}, {backend}{how}", *notes)))


def copy_of(env: AnyEnv) -> AnyEnv | None:
    """Another environment like this one, or None where Gymnasium cannot make it."""
    with own_words(env):
        return gymnasium.make(env.spec) if env.spec is not None and can_be_copied(env) else None

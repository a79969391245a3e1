"""One process or several: which is faster is measured, because nobody can know it beforehand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv

from rlpg.rollouts.environments import make_envs
from rlpg.rollouts.ids import EnvSource
from rlpg.rollouts.processes import usable_cores
from rlpg.rollouts.seeds import digest

_TRIAL_ENVS = 8  # environments that are tried, and the fewest for which there is a trial
_TRIAL_SECONDS = 0.2
_BLOCK_SECONDS = 0.02  # of steps in one process before those of the workers, and so on in turns
_TRIAL_GAIN = 1.1  # how much faster workers must be
_MESSAGE_SECONDS = 200e-6  # what asking workers costs, about
_WORTHWHILE_SECONDS = 20.0  # of stepping in one process; a trial takes about two


def faster_backend(
    env: EnvSource, num_envs: int, total_steps: int, options: Mapping[str, Any]
) -> tuple[str, str]:
    """The backend to use, `async` where that beats the `sync` of `auto`; and why, in a few words.

    A few environments of their own take the same steps both ways, in turns, for about a fifth of a
    second, and their answers are compared. They are closed then: the run has others.

        a backend is asked for, or there is a native one               that one
        fewer than 8 environments, one core, or steps in no time       sync
        less than 20 s of steps in the whole run                       sync
        defined in a script, or given as an object or a function       sync: workers import anew
        any answer differs, or the trial fails                         sync
        else                                                           the faster one

    Args:
        env: as in `make_envs`.
        num_envs: of the run.
        total_steps: of the run.
        options: for `make_envs`.
    """
    backend = options.get("backend", "auto")
    workers = min(options.get("num_workers") or usable_cores(), num_envs)
    if backend != "auto" or not isinstance(env, str) or num_envs < _TRIAL_ENVS or workers < 2:
        return backend, ""
    here = {**options, "seed": 0}
    there = {**here, "backend": "async", "num_workers": 2}
    try:
        with closing(make_envs(env, 1, **here).envs) as one:
            if not isinstance(one.unwrapped, SyncVectorEnv) or _is_of_a_script(one.unwrapped):
                return backend, ""
            seconds = _seconds_per_step(one)
        if seconds * num_envs < _MESSAGE_SECONDS or seconds * total_steps < _WORTHWHILE_SECONDS:
            return "auto", ""
        with (
            closing(make_envs(env, _TRIAL_ENVS, **here).envs) as alone,
            closing(make_envs(env, _TRIAL_ENVS, **there).envs) as pool,
        ):
            for envs in (alone, pool):
                _seconds_per_step(envs)  # what an episode leaves behind must be alike too
            return _compare(alone, pool)
    except Exception as error:  # the run will tell, if it is not the workers' fault
        return "auto", f"not async: {' '.join(str(error).split()):.100}"


def _is_of_a_script(envs: SyncVectorEnv) -> bool:
    spec = envs.envs[0].spec
    entry = spec.entry_point if spec is not None else None
    return not isinstance(entry, str) or entry.startswith("__main__")


def _seconds_per_step(envs: VectorEnv[Any, Any, Any]) -> float:
    """Of all environments, the median of a few steps."""
    envs.action_space.seed(0)
    envs.reset()
    seconds = []
    for _ in range(10):
        action = envs.action_space.sample()
        began = time.perf_counter()
        envs.step(action)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def _compare(alone: VectorEnv[Any, Any, Any], pool: VectorEnv[Any, Any, Any]) -> tuple[str, str]:
    """The rule of `faster_backend` for the same environments in this process and in workers."""
    ratios: list[float] = []
    end, num_steps = time.perf_counter() + _TRIAL_SECONDS, 1
    while len(ratios) < 5 or time.perf_counter() < end:
        actions = [alone.action_space.sample() for _ in range(num_steps)]
        seconds, seen = [], []
        for envs in (alone, pool):
            began = time.perf_counter()
            seen.append([digest(envs.step(action)[:4]) for action in actions])
            seconds.append(time.perf_counter() - began)
        if seen[0] != seen[1]:
            return "auto", "not async: its workers would differ"
        ratios.append(seconds[0] / seconds[1])
        num_steps = max(2, int(_BLOCK_SECONDS * num_steps / max(seconds)))
    ratio = float(np.median(ratios))
    if ratio > _TRIAL_GAIN:
        return "async", f"{ratio:.1f} times as fast as one after the other"
    return "auto", ""

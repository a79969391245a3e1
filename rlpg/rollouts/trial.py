"""One process or several: which is faster is measured, because nobody can know it beforehand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv, VectorEnv
from torch import Tensor

from rlpg.errors import words
from rlpg.policies import Policy
from rlpg.rollouts.collector import Collector
from rlpg.rollouts.environments import make_envs
from rlpg.rollouts.ids import EnvSource
from rlpg.rollouts.processes import usable_cores

_FEWEST_ENVS, _MOST_ENVS = 8, 32  # for which there is a trial; that take part in it
_TRIAL_SECONDS = 0.5
_BLOCK_SECONDS = 0.04  # of steps in one process before those of the workers, and so on in turns
_TRIAL_GAIN = 1.1  # how much faster workers must be
_MESSAGE_SECONDS = 200e-6  # what asking workers costs, about
_WORTHWHILE_SECONDS = 20.0  # of stepping in one process; a trial takes about two


def faster_backend(
    env: EnvSource,
    num_envs: int,
    total_steps: int,
    options: Mapping[str, Any],
    policy_for: Callable[[VectorEnv[Any, Any, Any]], Policy],
    *,
    whole_episodes: bool = False,
) -> tuple[str, str]:
    """The backend to use, `async` where that beats the `sync` of `auto`; and why, in a few words.

    Environments of their own, as many as two workers would have, are collected from both ways, in
    turns, for about half a second, and the rollouts are compared.

        a backend is asked for, or there is a native one               that one
        fewer than 8 environments, one core, or steps in no time       sync
        less than 20 s of steps in the whole run                       sync
        defined in a script, or given as an object or a function       sync: workers import anew
        any answer differs, or the trial fails                         sync
        else                                                           the faster one

    Args:
        num_envs, total_steps: of the run.
        env, options: for `make_envs`.
        policy_for: makes the policy of the run for its environments.
        whole_episodes: the run collects those (`Collector.episodes`).
    """
    backend = options.get("backend", "auto")
    workers = min(options.get("num_workers") or usable_cores(), num_envs)
    if backend != "auto" or not isinstance(env, str) or num_envs < _FEWEST_ENVS or workers < 2:
        return backend, ""
    here = {**options, "seed": 0}
    there = {**here, "backend": "async", "num_workers": 2}
    try:
        with closing(make_envs(env, 1, **here).envs) as one:
            base = one.unwrapped
            spec = base.envs[0].spec if isinstance(base, SyncVectorEnv) else None
            entry = spec.entry_point if spec is not None else None
            if not isinstance(entry, str) or entry.startswith("__main__"):
                return backend, ""
            seconds = _seconds_per_step(one)
        if seconds * num_envs < _MESSAGE_SECONDS or seconds * total_steps < _WORTHWHILE_SECONDS:
            return "auto", ""
        num_envs = min(2 * math.ceil(num_envs / workers), _MOST_ENVS)
        with (
            closing(make_envs(env, num_envs, **here).envs) as alone,
            closing(make_envs(env, num_envs, **there).envs) as pool,
        ):
            if whole_episodes:
                pool.unwrapped.steps_ahead = 0  # type: ignore[attr-defined]
            policy, _ = policy_for(alone), policy_for(pool)  # which may reset them, so both
            quiet: dict[str, Any] = {"log_prob": False, "warn": lambda remark: None}
            return _compare(*(Collector(envs, policy, **quiet) for envs in (alone, pool)))
    except Exception as error:  # the run will tell, if it is not the workers' fault
        return "auto", f"not async: {words(error):.200}"


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


def _compare(*collectors: Collector) -> tuple[str, str]:
    """The rule of `faster_backend` for the same environments in this process and in workers."""
    for collector in collectors:
        collector.steps(2)  # what an episode leaves behind must be alike too
        collector.restart()
    ratios: list[float] = []
    end, num_steps = time.perf_counter() + _TRIAL_SECONDS, 1
    while len(ratios) < 5 or time.perf_counter() < end:
        seconds, rollouts = [], []
        for collector in collectors:
            began = time.perf_counter()
            rollouts.append(collector.steps(num_steps))
            seconds.append(time.perf_counter() - began)
        parts = zip(*(vars(rollout).values() for rollout in rollouts), strict=True)
        differing = any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in parts)
        if differing or rollouts[0].reward_parts != rollouts[1].reward_parts:
            return "auto", "not async: its workers would differ"
        ratios.append(seconds[0] / seconds[1])
        num_steps = min(max(2, int(_BLOCK_SECONDS * num_steps / max(seconds))), 128)
    ratio = float(np.median(ratios))
    if ratio > _TRIAL_GAIN:
        return "async", f"{ratio:.1f} times as fast as one after the other"
    return "auto", ""

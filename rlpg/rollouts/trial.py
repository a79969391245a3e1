"""One process or several: which is faster is measured, because nobody can know it beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from rlpg.rollouts.processes import usable_cores
from rlpg.rollouts.seeds import digest
from rlpg.rollouts.watchdog import SyncEnvs, watch
from rlpg.rollouts.workers import WorkerEnvs

AnyEnv = gymnasium.Env[Any, Any]

_TRIAL_ENVS = 8  # environments that are tried, and the fewest for which there is a trial
_TRIAL_SECONDS = 0.2
_BLOCK_SECONDS = 0.02  # of steps in one process before those of the workers, and so on in turns
_TRIAL_GAIN = 1.1  # how much faster workers must be
_MESSAGE_SECONDS = 200e-6  # what asking workers costs, about
_DIFFER = "not async: its workers would differ"


def faster_backend(
    spec: EnvSpec,
    make: Callable[[np.random.SeedSequence, int], AnyEnv],
    num_envs: int,
    timeout: float = 60.0,
    num_workers: int | None = None,
) -> tuple[str, str]:
    """`sync` or `async`, whichever steps faster here and now, and in a few words why.

    A few environments of their own take the same steps both ways, in turns, for about a fifth of a
    second, and their answers are compared. They are closed then: the run has others.

        fewer than 8 environments, one core, or steps in no time       sync
        defined in a script, or given as an object or a function       sync: workers import anew
        any answer differs, or the trial fails                         sync
        else                                                           the faster one

    Args:
        spec: of the environment.
        make: makes one, of a run and with an index.
        num_envs: how many the run will have.
        timeout: of a step, in seconds.
        num_workers: processes; None: as many as usable cores.
    """
    workers = min(num_workers or usable_cores(), num_envs)
    entry = spec.entry_point
    if num_envs < _TRIAL_ENVS or workers < 2:
        return "sync", ""
    if not isinstance(entry, str) or entry.startswith("__main__"):
        return "sync", ""
    run = np.random.SeedSequence(0)
    makers = [partial(make, run, n) for n in range(_TRIAL_ENVS)]
    try:
        here = SyncEnvs([*makers], copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        watch(here, timeout)
        with closing(here):
            if _seconds_per_step(here) * num_envs / _TRIAL_ENVS < _MESSAGE_SECONDS:
                return "sync", ""
            with closing(WorkerEnvs(makers, timeout=timeout, num_workers=2)) as there:
                _seconds_per_step(there)  # what an episode leaves behind must be alike too
                return _compare(here, there)
    except Exception as error:  # the run will tell, if it is not the workers' fault
        return "sync", f"not async: {' '.join(str(error).split()):.100}"


def _seconds_per_step(envs: VectorEnv[Any, Any, Any]) -> float:
    """Of all environments, the median of a few steps."""
    space = envs.action_space
    space.seed(0)
    envs.reset()
    seconds = []
    for _ in range(10):
        action = space.sample()
        began = time.perf_counter()
        envs.step(action)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def _compare(here: VectorEnv[Any, Any, Any], there: VectorEnv[Any, Any, Any]) -> tuple[str, str]:
    """The rule of `faster_backend` for environments that are alike, in this process and not."""
    ratios: list[float] = []
    num_steps, end = 1, time.perf_counter() + _TRIAL_SECONDS
    while len(ratios) < 4 or time.perf_counter() < end:
        actions = [here.action_space.sample() for _ in range(num_steps)]
        seconds = [0.0, 0.0]
        seen: list[list[str]] = [[], []]
        for way, envs in enumerate((here, there)):
            for action in actions:
                began = time.perf_counter()
                outcome = envs.step(action)
                seconds[way] += time.perf_counter() - began
                seen[way].append(digest(outcome[:4]))
        if seen[0] != seen[1]:
            return "sync", _DIFFER
        if num_steps > 1:  # the first step of all warms up
            ratios.append(seconds[0] / seconds[1])
        num_steps = max(2, int(_BLOCK_SECONDS * num_steps / max(seconds)))
    ratio = float(np.median(ratios))
    if ratio > _TRIAL_GAIN:
        return "async", f"{ratio:.1f} times as fast as one after the other"
    return "sync", ""

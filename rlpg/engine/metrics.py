"""The metrics of a run between two entries of its log, and when the next entry is due."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from rlpg.distributed import num_ranks
from rlpg.engine.device import usual_modes
from rlpg.learners import Learner
from rlpg.rollouts import BaseCollector, Episodes, Rollout

RECENT_EPISODES = 100  # that rollout/ep_rew_mean is the mean of


class Every:
    """True when another `interval` of environment steps is done, at the last step, and when so many
    seconds have passed since it was true."""

    def __init__(self, interval: int, last: int, done: int, seconds: float = math.inf) -> None:
        self._interval, self._last, self._seconds = max(interval, 1), last, seconds
        self._schedule(done)

    def _schedule(self, step: int) -> None:
        self._next = (step // self._interval + 1) * self._interval
        self._deadline = monotonic() + self._seconds

    def __call__(self, step: int) -> bool:
        due = step >= min(self._next, self._last) or monotonic() >= self._deadline
        if due:
            self._schedule(step)
        return due


@usual_modes()
def histograms(learner: Learner, rollout: Rollout) -> dict[str, np.ndarray[Any, Any]]:
    """What a rollout's actions, advantages and value errors are now, by tag; changes nothing."""
    rollout = rollout.to(learner.policy.device)
    advantages = learner.advantages(rollout)
    counts = advantages.weight > 0
    found = {
        "rollout/actions": rollout.action[rollout.valid],
        "train/advantages": advantages.normalized[counts],
        "train/value_errors": advantages.advantage[counts],
    }
    return {tag: values.cpu().numpy() for tag, values in found.items()}


class MetricsAccumulator:
    """What happened since the last log entry, and where the time went."""

    def __init__(self, collector: BaseCollector) -> None:
        self._collector = collector
        self._returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._lengths: deque[int] = deque(maxlen=RECENT_EPISODES)
        self._begin()

    def _begin(self) -> None:
        self._metrics: dict[str, list[float]] = {}  # one value for each update
        self._seconds = {"collect": 0.0, "learn": 0.0}
        self._env_seconds = self._collector.env_seconds
        self._steps = self._collector.env_steps

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Count the block's time as `collect` or `learn`."""
        began = perf_counter()
        yield
        self._seconds[what] += perf_counter() - began

    def add(self, metrics: Mapping[str, float]) -> None:
        for tag, value in metrics.items():
            self._metrics.setdefault(tag, []).append(value)

    def add_episodes(self, episodes: Episodes) -> None:
        self._returns.extend(episodes.returns.tolist())
        self._lengths.extend(episodes.lengths.tolist())

    def take(self) -> dict[str, float]:
        """Finite means since the last call, recent episodes, speed, shares of the time."""
        metrics = {}
        for tag, values in self._metrics.items():
            finite = [value for value in values if math.isfinite(value)]
            metrics[tag] = float(np.mean(finite)) if finite else math.nan
        if self._returns:
            metrics["rollout/ep_rew_mean"] = float(np.mean(self._returns))
            metrics["rollout/ep_len_mean"] = float(np.mean(self._lengths))
        env = self._collector.env_seconds - self._env_seconds
        collect, learn = self._seconds["collect"], self._seconds["learn"]
        seconds = max(collect + learn, 1e-9)
        metrics |= {
            "time/fps": num_ranks() * (self._collector.env_steps - self._steps) / seconds,
            "time/env_share": env / seconds,
            "time/policy_share": (collect - env) / seconds,
            "time/learn_share": learn / seconds,
        }
        self._begin()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """What has happened since the last entry; not the time it took."""
        return {
            "metrics": {tag: list(values) for tag, values in self._metrics.items()},
            "returns": np.array(self._returns, dtype=np.float64),
            "lengths": np.array(self._lengths, dtype=np.int64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._begin()
        self._metrics = {tag: list(values) for tag, values in state["metrics"].items()}
        self._returns.extend(state["returns"].tolist())
        self._lengths.extend(state["lengths"].tolist())

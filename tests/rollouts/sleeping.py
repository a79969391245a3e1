"""Environments for the trial of `auto`; without torch, for worker processes."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

HOME = os.environ.setdefault("RLPG_TEST_HOME", str(os.getpid()))  # the process that began


class Sleeping(gymnasium.Env[Any, Any]):
    """Each step sleeps for 2 ms."""

    observation_space = spaces.Box(-9, 9, (2,), np.float64)
    action_space = spaces.Discrete(2)

    @property
    def pid(self) -> int:
        return os.getpid()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        time.sleep(0.002)
        return self.observe(), 1.0, False, False, {}

    def observe(self) -> Any:
        return self.np_random.uniform(-1, 1, 2)


class Drifting(Sleeping):
    """Observations are drawn from a stream of the process."""

    stream = np.random.default_rng(0)

    def observe(self) -> Any:
        return self.stream.uniform(-1, 1, 2)


class Breaking(Sleeping):
    """Raises in every process but the one that began."""

    def observe(self) -> Any:
        if str(os.getpid()) != HOME:
            raise ValueError("only here")
        return super().observe()

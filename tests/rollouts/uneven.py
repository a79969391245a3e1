"""An environment with episodes of all lengths; without torch, for worker processes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from misbehaving import misbehave

from rlpg.rollouts.seeds import EpisodeSeeds


class Uneven(gymnasium.Env[Any, Any]):
    """Episodes of 1 to 8 steps; the observation, kept in one buffer, follows from the actions.

    With the actions of a box, infos have parts of the reward; not all of them have all.

    Args:
        actions: box or discrete.
        trouble: what its eleventh step or, with a comma, its ninth and its eleventh do.
    """

    def __init__(self, actions: str, trouble: str = "") -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        box = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = box if actions == "box" else spaces.Discrete(3, start=-1)
        self.trouble = trouble.split(", then ")
        self.steps = 0
        self.buffer = np.zeros(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 9))
        self.buffer[:] = self.np_random.normal(size=3)
        return self.buffer, {"left": self.left} | self.parts(reward_start=0.1)

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.left -= 1
        self.buffer[0] += np.sum(action)
        self.buffer[1:] = self.np_random.normal(size=2)
        reward = self.buffer[0] / 3
        if self.steps == 9 and len(self.trouble) == 2:
            self.buffer[1] = np.nan
        if self.steps == 11:
            if self.trouble[-1] in ("nan", "1e39"):
                self.buffer[1] = float(self.trouble[-1])
            misbehave(self.trouble[-1])
        over = self.left == 0
        info = {"left": self.left} | self.parts(reward_push=float(np.sum(action)))
        if over:
            info |= self.parts(reward_end=self.steps)
        return self.buffer, float(reward), over and self.steps % 2 == 0, over, info

    def parts(self, **parts: Any) -> dict[str, Any]:
        return parts if isinstance(self.action_space, spaces.Box) else {}


def one(actions: str, trouble: dict[int, str], index: int) -> gymnasium.Env[Any, Any]:
    """The environment number `index` of several, which fails as `trouble` says of its number."""
    env = Uneven(actions, trouble.get(index, ""))
    return EpisodeSeeds(env, np.random.SeedSequence(1), index)

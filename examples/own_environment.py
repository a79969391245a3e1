"""An environment of your own: check it, then train on it."""

import os

import gymnasium
import numpy as np
from gymnasium import spaces

import rlpg


class Thermostat(gymnasium.Env):
    """Keep a room at 20 degrees: heat or not, 50 steps. The reward is minus the distance."""

    def __init__(self, outside=5.0):
        self.observation_space = spaces.Box(-50.0, 50.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.outside = outside

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.degrees = 0, self.np_random.uniform(-20.0, 50.0)
        return self._seen(), {}

    def step(self, action):
        self.steps += 1
        self.degrees += 0.1 * (self.outside - self.degrees) + 3.0 * int(action)
        return self._seen(), -abs(self.degrees - 20.0), False, self.steps >= 50, {}

    def _seen(self):
        return np.array([self.degrees - 20.0], dtype=np.float32)


if __name__ == "__main__":
    assert rlpg.check_env(Thermostat).passed
    run = rlpg.train(
        Thermostat,
        agent="ppo",
        total_steps=int(os.environ.get("STEPS", "50_000")),
        overrides={"environment.kwargs": {"outside": 0.0}},
    )
    print(run.evaluation)

"""CartPole-v1 for N environments at once."""

from __future__ import annotations

import math

import numpy as np
from gymnasium import spaces

from .vectorized import Array, ArrayVectorEnv

GRAVITY = 9.8
POLE_MASS, TOTAL_MASS = 0.1, 0.1 + 1.0
HALF_LENGTH = 0.5  # of the pole
POLE_MOMENT = POLE_MASS * HALF_LENGTH
FORCE = 10.0
TIME_STEP = 0.02
MAX_ANGLE = 12 * 2 * math.pi / 360
MAX_POSITION = 2.4
LIMITS = np.array([[MAX_POSITION], [MAX_ANGLE]])  # [2, 1]


class CartPoleVectorEnv(ArrayVectorEnv):
    """Gymnasium's `CartPole-v1`, N at once, equal to the last bit for the same seeds and actions.

    Gymnasium's own vector version draws all environments from one generator, spends a step on every
    reset, and cannot be saved; this one has a stream per environment, resets within the step, and a
    `state_dict`.

    ## Description
    A cart must balance a pole that is hinged on it by moving left and right (Barto et al. 1983).

    ## Action space
    `Discrete(2)`: push with 10 N to the left, to the right.

    ## Observation space
    `Box(4,)` float32: position, velocity, pole angle and angular velocity.

    ## Reward
    1 per step, also the last; with `sutton_barto_reward` 0, and -1 when the pole falls.

    ## Starting state
    All four uniform in [-0.05, 0.05].

    ## Episode end
    Terminated beyond ±2.4 or ±12 degrees; truncated after `max_episode_steps`.

    ## Known
    The largest return is `max_episode_steps` = 500; Gymnasium calls 475 solved. A random policy
    returns about 22.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = 500,
        sutton_barto_reward: bool = False,
    ) -> None:
        self.sutton_barto_reward = sutton_barto_reward
        high = np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE, np.inf], dtype=np.float32)
        super().__init__(num_envs, spaces.Box(-high, high), spaces.Discrete(2), max_episode_steps)

    def _start(self, generator: np.random.Generator) -> Array:
        return generator.uniform(-0.05, 0.05, size=4)

    def _advance(self, action: Array) -> tuple[Array, Array]:
        _, x_speed, angle, angle_speed = self.state
        force = action * (2 * FORCE) - FORCE
        cos, sin = np.cos(angle), np.sin(angle)
        # Florian (2007), "Correct equations for the dynamics of the cart-pole system".
        push = (force + POLE_MOMENT * np.square(angle_speed) * sin) / TOTAL_MASS
        angle_acceleration = (GRAVITY * sin - cos * push) / (
            HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * np.square(cos) / TOTAL_MASS)
        )
        change = np.empty_like(self.state)  # per second
        change[0] = x_speed
        change[1] = push - POLE_MOMENT * angle_acceleration * cos / TOTAL_MASS
        change[2] = angle_speed
        change[3] = angle_acceleration
        self.state = self.state + TIME_STEP * change
        fallen = np.abs(self.state[::2]) > LIMITS
        terminated = fallen[0] | fallen[1]
        if self.sutton_barto_reward:
            return -terminated.astype(np.float64), terminated
        return np.ones(self.num_envs), terminated

    def _observe(self, state: Array, elapsed: Array) -> Array:
        return np.ascontiguousarray(state.T, dtype=np.float32)

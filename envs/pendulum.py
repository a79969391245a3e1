"""Pendulum-v1 for N environments at once."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy import pi

from .vectorized import Array, ArrayVectorEnv

MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m
TIME_STEP = 0.05  # s


class PendulumVectorEnv(ArrayVectorEnv):
    """Gymnasium's `Pendulum-v1`, N at once, equal to the last bit for the same seeds and actions.

    ## Description
    A rod of length and mass 1 turns about one end; a motor too weak to lift it at once must
    swing it up and hold it there.

    ## Action space
    `Box(-2, 2, (1,))` float32: the torque in N m; what lies outside is clipped.

    ## Observation space
    `Box(3,)` float32: cosine and sine of the angle (0 is upright) and the angular velocity.

    ## Reward
    `-(angle^2 + 0.1 velocity^2 + 0.001 torque^2)`, the angle taken in [-π, π), before the step.

    ## Starting state
    Angle uniform in [-π, π], velocity uniform in [-1, 1].

    ## Episode end
    Never terminated; truncated after `max_episode_steps`.

    ## Known
    The reward of one step lies in [-16.28, 0]. Squares are the C library's `pow`, as NumPy scalars
    use it: `np.float_power` in float64; in float32, where no array function has it, one by one.

    ## Arguments
    `g`: gravity in m/s^2, 10 as in Gymnasium.
    """

    def __init__(
        self, num_envs: int = 1, max_episode_steps: int | None = 200, g: float = 10.0
    ) -> None:
        self.g = g
        high = np.array([1, 1, MAX_SPEED], dtype=np.float32)
        super().__init__(
            num_envs,
            spaces.Box(-high, high),
            spaces.Box(-MAX_TORQUE, MAX_TORQUE, (1,)),
            max_episode_steps,
        )
        self._never = np.zeros(num_envs, dtype=bool)

    def _start(self, generator: np.random.Generator) -> Array:
        high = np.array([pi, 1.0])
        return generator.uniform(-high, high)

    def _advance(self, action: Array) -> tuple[Array, Array]:
        angle, speed = self.state
        torque = np.minimum(np.maximum(action[:, 0], -MAX_TORQUE), MAX_TORQUE)  # [N] float32
        torque_squared = np.array([value**2 for value in torque])  # the C library's powf
        wrapped = (angle + pi) % (2 * pi) - pi
        cost = np.float_power(wrapped, 2) + 0.1 * np.float_power(speed, 2) + 0.001 * torque_squared
        speed = speed + (3 * self.g / 2 * np.sin(angle) + 3.0 * torque) * TIME_STEP
        speed = np.minimum(np.maximum(speed, -MAX_SPEED), MAX_SPEED)
        self.state = np.array((angle + speed * TIME_STEP, speed))
        return -cost, self._never.copy()

    def _observe(self, state: Array, elapsed: Array) -> Array:
        obs = np.empty((state.shape[1], 3), dtype=np.float32)
        obs[:, 0] = np.cos(state[0])
        obs[:, 1] = np.sin(state[0])
        obs[:, 2] = state[1]
        return obs

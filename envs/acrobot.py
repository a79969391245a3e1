"""Acrobot-v1 for N environments at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy import pi

from .vectorized import Array, ArrayVectorEnv

MAX_SPEED = np.array([[4 * pi], [9 * pi]])  # [2, 1] rad/s, of the first and the second joint
TIME_STEP = 0.2  # s
GRAVITY = 9.8  # m/s^2


class AcrobotVectorEnv(ArrayVectorEnv):
    """Gymnasium's `Acrobot-v1`, N at once, equal to the last bit for the same seeds and actions.

    ## Description
    Two links hang from a fixed joint; a motor at the joint between them must swing the free end
    above a line one link's length over the fixed joint (Sutton 1996).

    ## Action space
    `Discrete(3)`: torque -1, 0 or +1 N m on the joint between the links.

    ## Observation space
    `Box(6,)` float32: cosine and sine of the first angle, cosine and sine of the second (relative
    to the first link), and the two angular velocities, bounded by 4π and 9π rad/s.

    ## Reward
    -1 per step, 0 on the step that reaches the line.

    ## Starting state
    Both angles and both velocities uniform in [-0.1, 0.1].

    ## Episode end
    Terminated when `-cos(theta1) - cos(theta1 + theta2) > 1`; truncated after `max_episode_steps`.

    ## Known
    Gymnasium calls a mean return of -100 solved. The equal bits are tested, not assumed: squares go
    through `np.float_power` because Gymnasium squares NumPy scalars with the C library's `pow`,
    which is not always `x * x`, and `np.power` on arrays is a third function.
    """

    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = 500) -> None:
        high = np.array([1, 1, 1, 1, 4 * pi, 9 * pi], dtype=np.float32)
        super().__init__(num_envs, spaces.Box(-high, high), spaces.Discrete(3), max_episode_steps)

    def _start(self, generator: np.random.Generator) -> Array:
        # float32, and observed in float32: Gymnasium's first observation is.
        return generator.uniform(-0.1, 0.1, size=4).astype(np.float32)

    def _advance(self, action: Array) -> tuple[Array, Array]:
        torque = action - 1.0
        y, dt = self.state, TIME_STEP
        k1 = _derivative(y, torque)
        k2 = _derivative(y + dt / 2 * k1, torque)
        k3 = _derivative(y + dt / 2 * k2, torque)
        k4 = _derivative(y + dt * k3, torque)
        y = y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        angle = y[:2]
        while (above := angle > pi).any():
            angle -= 2 * pi * above
        while (below := angle < -pi).any():
            angle += 2 * pi * below
        y[2:] = np.minimum(np.maximum(y[2:], -MAX_SPEED), MAX_SPEED)
        self.state = y
        terminated = -np.cos(y[0]) - np.cos(y[1] + y[0]) > 1.0
        return terminated - 1.0, terminated

    def _observe(self, state: Array, elapsed: Array) -> Array:
        obs = np.empty((state.shape[1], 6), dtype=np.float32)
        obs[:, 0:4:2] = np.cos(state[:2]).T
        obs[:, 1:4:2] = np.sin(state[:2]).T
        obs[:, 4:] = state[2:].T
        return obs


def _derivative(y: Array, torque: Array) -> Array:
    """`[4, N]`: d/dt of both angles and both velocities (Sutton and Barto's equations).

    All masses, lengths and moments of inertia are 1 and the centers of mass at 0.5. Factors of 1
    and 0.5 are folded into constants where that changes no bit; the order of the rest is kept.
    """
    angle1, angle2, speed1, speed2 = y
    cos2, sin2 = np.cos(angle2), np.sin(angle2)
    speed1_squared, speed2_squared = np.float_power(y[2:], 2)
    d1 = 0.25 + (1.25 + cos2) + 1.0 + 1.0
    d2 = 0.25 + 0.5 * cos2 + 1.0
    phi2 = 0.5 * GRAVITY * np.cos(angle1 + angle2 - pi / 2)
    phi1 = (
        -0.5 * speed2_squared * sin2
        - speed2 * speed1 * sin2
        + 1.5 * GRAVITY * np.cos(angle1 - pi / 2)
        + phi2
    )
    out: np.ndarray[Any, np.dtype[np.float64]] = np.empty_like(y)
    out[:2] = y[2:]
    out[3] = (torque + d2 / d1 * phi1 - 0.5 * speed1_squared * sin2 - phi2) / (
        1.25 - np.float_power(d2, 2) / d1
    )
    out[2] = -(d2 * out[3] + phi1) / d1
    return out

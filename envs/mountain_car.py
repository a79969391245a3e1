"""MountainCar-v0 and MountainCarContinuous-v0 for N environments at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from .vectorized import Array, ArrayVectorEnv

MIN_POSITION, MAX_POSITION = -1.2, 0.6
MAX_SPEED = 0.07
GRAVITY = 0.0025


def _observation_space() -> spaces.Box:
    low = np.array([MIN_POSITION, -MAX_SPEED], dtype=np.float32)
    return spaces.Box(low, np.array([MAX_POSITION, MAX_SPEED], dtype=np.float32))


class MountainCarVectorEnv(ArrayVectorEnv):
    """Gymnasium's `MountainCar-v0`, N at once, equal to the last bit for equal seeds and actions.

    ## Description
    A car in a valley, its engine too weak for the slope, must gain speed by rocking (Moore 1990).

    ## Action space
    `Discrete(3)`: accelerate to the left, not at all, to the right (0.001 per step).

    ## Observation space
    `Box(2,)` float32: position in [-1.2, 0.6] and velocity in [-0.07, 0.07] per step.

    ## Reward
    -1 per step.

    ## Starting state
    Position uniform in [-0.6, -0.4], at rest.

    ## Episode end
    Terminated at position >= 0.5 with velocity >= `goal_velocity`; truncated after
    `max_episode_steps`.

    ## Known
    A random policy returns -200: it never arrives. Gymnasium calls -110 solved; accelerating always
    in the direction of motion gives about -120.

    ## Arguments
    `goal_velocity`: the least velocity at the goal, 0 as in Gymnasium.
    """

    goal = 0.5

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = 200,
        goal_velocity: float = 0.0,
    ) -> None:
        self.goal_velocity = goal_velocity
        super().__init__(num_envs, _observation_space(), self._action_space(), max_episode_steps)

    def _action_space(self) -> spaces.Space[Any]:
        return spaces.Discrete(3)

    def _start(self, generator: np.random.Generator) -> Array:
        return np.array([generator.uniform(-0.6, -0.4), 0.0])

    def _advance(self, action: Array) -> tuple[Array, Array]:
        position, velocity = self.state
        velocity = velocity + ((action - 1) * 0.001 + np.cos(3 * position) * -GRAVITY)
        velocity = np.minimum(np.maximum(velocity, -MAX_SPEED), MAX_SPEED)
        position = np.minimum(np.maximum(position + velocity, MIN_POSITION), MAX_POSITION)
        velocity[(position == MIN_POSITION) & (velocity < 0)] = 0.0
        self.state = np.array((position, velocity))
        terminated = (position >= self.goal) & (velocity >= self.goal_velocity)
        return np.full(self.num_envs, -1.0), terminated

    def _observe(self, state: Array, elapsed: Array) -> Array:
        return np.ascontiguousarray(state.T, dtype=np.float32)


class MountainCarContinuousVectorEnv(MountainCarVectorEnv):
    """Gymnasium's `MountainCarContinuous-v0`, N at once, equal to the last bit.

    ## Description
    The car of `MountainCar-v0` with an engine of continuous power 0.0015.

    ## Action space
    `Box(-1, 1, (1,))` float32: the force; what lies outside is clipped, but paid for unclipped.

    ## Observation space
    `Box(2,)` float32: position in [-1.2, 0.6] and velocity in [-0.07, 0.07] per step.

    ## Reward
    `-0.1 force^2` per step, and +100 on the step that reaches the goal.

    ## Starting state
    Position uniform in [-0.6, -0.4], at rest.

    ## Episode end
    Terminated at position >= 0.45 with velocity >= `goal_velocity`; truncated after
    `max_episode_steps`.

    ## Known
    Doing nothing returns 0, a local optimum; Gymnasium calls 90 solved. Gymnasium keeps the first
    state of an episode in float64 and all later ones in float32, and so does this version.

    ## Arguments
    `goal_velocity`: the least velocity at the goal, 0 as in Gymnasium.
    """

    goal = 0.45

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = 999,
        goal_velocity: float = 0.0,
    ) -> None:
        super().__init__(num_envs, max_episode_steps, goal_velocity)

    def _action_space(self) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 1.0, (1,))

    def _advance(self, action: Array) -> tuple[Array, Array]:
        force = action[:, 0]
        position, velocity, terminated = self._move(self.state.astype(np.float32), force)
        first = self.elapsed == 0
        if first.any():  # these are still in float64
            moved = self._move(self.state[:, first], force[first])
            position[first], velocity[first], terminated[first] = moved
        self.state = np.array((position, velocity), dtype=self.state_dtype)
        reward = 100.0 * terminated - np.square(force, dtype=np.float64) * 0.1
        return reward, terminated

    def _move(self, state: Array, force: Array) -> tuple[Array, Array, Array]:
        """Position, velocity and terminated after one step, in the precision of `state`."""
        position, velocity = state
        slope = GRAVITY * np.cos(3 * position, dtype=np.float64)
        clipped = np.minimum(np.maximum(force, -1.0), 1.0)
        # A force inside the bounds is a NumPy float32, and so is what it is added to; a clipped one
        # is a Python float, and the sum is rounded to float32 only later.
        push = np.where(
            clipped == force,
            clipped * 0.0015 - slope.astype(np.float32),
            clipped.astype(np.float64) * 0.0015 - slope,
        )
        velocity = velocity + push.astype(velocity.dtype)
        velocity = np.minimum(np.maximum(velocity, -MAX_SPEED), MAX_SPEED)
        position = np.minimum(np.maximum(position + velocity, MIN_POSITION), MAX_POSITION)
        velocity[(position == MIN_POSITION) & (velocity < 0)] = 0.0
        arrived = (position >= self.goal) & (velocity >= self.goal_velocity)
        return position, velocity, arrived

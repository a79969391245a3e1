"""Catch: images in, three actions out, and a largest return that is known."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from .vectorized import Array, ArrayVectorEnv, SingleEnv

SIZE = 16  # pixels, height and width
NUM_BALLS = 5
FALL = SIZE - 1  # steps from the top row to the bottom row
BALL, PADDLE = 255, 128  # brightness


class CatchVectorEnv(ArrayVectorEnv):
    """N games of `Catch`; see there."""

    state_dtype = np.int64  # S = 1 + NUM_BALLS: the column of the paddle and of each ball

    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None) -> None:
        super().__init__(
            num_envs,
            spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8),
            spaces.Discrete(3),
            max_episode_steps,
        )

    def _start(self, generator: np.random.Generator) -> Array:
        paddle = generator.integers(1, SIZE - 1, size=1)
        return np.concatenate((paddle, generator.integers(SIZE, size=NUM_BALLS)))

    def _advance(self, action: Array) -> tuple[Array, Array]:
        paddle = np.clip(self.state[0] + action - 1, 1, SIZE - 2)
        self.state[0] = paddle
        ball, row = np.divmod(self.elapsed, FALL)
        landed = row == FALL - 1
        caught = np.abs(self.state[1 + ball, np.arange(self.num_envs)] - paddle) <= 1
        reward = np.where(landed, np.where(caught, 1.0, -1.0), 0.0)
        return reward, landed & (ball == NUM_BALLS - 1)

    def _observe(self, state: Array, elapsed: Array) -> Array:
        env = np.arange(state.shape[1])
        image = np.zeros((len(env), SIZE, SIZE, 1), dtype=np.uint8)
        for offset in (-1, 0, 1):
            image[env, -1, state[0] + offset, 0] = PADDLE
        ball, row = np.divmod(elapsed, FALL)
        env = env[ball < NUM_BALLS]  # the last image of an episode has no ball
        image[env, row[env], state[1 + ball[env], env], 0] = BALL
        return image


class Catch(SingleEnv):
    """Catch five falling balls, seen as an image of 16 x 16 pixels.

    ## Description
    A ball falls one row per step from a random column; a paddle three pixels wide moves along the
    bottom row. When a ball is down the next one starts at the top, five in all. The game is that of
    `catch` in bsuite (Osband et al. 2020), larger and longer.

    ## Action space
    `Discrete(3)`: move the paddle to the left, not at all, to the right, by one pixel.

    ## Observation space
    `Box(0, 255, (16, 16, 1))` uint8: the ball is 255, the paddle 128.

    ## Reward
    +1 for a ball caught, -1 for a ball missed, on the step on which it reaches the bottom row.

    ## Starting state
    Paddle and columns uniform and independent; all balls are drawn at the start.

    ## Episode end
    Terminated when the fifth ball is down, after 75 steps.

    ## Known
    The largest return is 5, always: the paddle needs at most 13 of a ball's 15 steps. A ball lands
    in every column equally often, so any policy that does not look, constant or random, returns
    -3.125 on average.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(CatchVectorEnv(), render_mode)

    def render(self) -> Array | None:
        """`[256, 256, 3]` uint8: the observation enlarged, or None without a render mode."""
        if self.render_mode is None:
            return None
        pixels = self.envs._observe(self.envs.state, self.envs.elapsed)[0]
        image: Array = pixels.repeat(16, axis=0).repeat(16, axis=1).repeat(3, axis=2)
        return image

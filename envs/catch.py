"""Catch: images in, three actions out, and a largest return that is known."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from .vectorised import Array, ArrayVectorEnv, SingleEnv

SIZE = 16  # pixels, height and width
NUM_BALLS = 5
FALL = SIZE - 1  # steps from the top row to the bottom row
BALL, TRAIL, PADDLE = 255, 96, 176  # brightness


class CatchVectorEnv(ArrayVectorEnv):
    """N games of `Catch`; see there."""

    state_dtype = np.int64  # S = 1 + 2 NUM_BALLS: paddle, first columns, drifts

    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None) -> None:
        super().__init__(
            num_envs,
            spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8),
            spaces.Discrete(3),
            max_episode_steps,
        )

    def _start(self, generator: np.random.Generator) -> Array:
        return np.concatenate(
            (
                generator.integers(1, SIZE - 1, size=1),
                generator.integers(SIZE, size=NUM_BALLS),
                generator.integers(-1, 2, size=NUM_BALLS),
            )
        )

    def _advance(self, action: Array) -> tuple[Array, Array]:
        paddle = np.clip(self.state[0] + action - 1, 1, SIZE - 2)
        self.state[0] = paddle
        ball, row = np.divmod(self.elapsed, FALL)
        landed = row == FALL - 1
        caught = np.abs(self._column(self.state, ball, FALL) - paddle) <= 1
        reward = np.where(landed, np.where(caught, 1.0, -1.0), 0.0)
        return reward, landed & (ball == NUM_BALLS - 1)

    def _observe(self, state: Array, elapsed: Array) -> Array:
        env = np.arange(state.shape[1])
        image = np.zeros((len(env), SIZE, SIZE, 1), dtype=np.uint8)
        for offset in (-1, 0, 1):
            image[env, -1, state[0] + offset, 0] = PADDLE
        ball, row = np.divmod(elapsed, FALL)
        falls = ball < NUM_BALLS  # the last image of an episode has no ball
        moved = falls & (row > 0)
        column = self._column(state, np.minimum(ball, NUM_BALLS - 1), row)
        before = self._column(state, np.minimum(ball, NUM_BALLS - 1), row - 1)
        image[env[moved], row[moved] - 1, before[moved], 0] = TRAIL
        image[env[falls], row[falls], column[falls], 0] = BALL
        return image

    @staticmethod
    def _column(state: Array, ball: Array, row: Array | int) -> Array:
        """`[K]`: the column of ball number `ball` in `row`; the walls reflect it."""
        env = np.arange(state.shape[1])
        straight = state[1 + ball, env] + state[1 + NUM_BALLS + ball, env] * row
        folded = np.mod(straight, 2 * FALL)
        column: Array = np.minimum(folded, 2 * FALL - folded)
        return column


class Catch(SingleEnv):
    """Catch five falling balls, seen as an image of 16 x 16 pixels.

    ## Description
    A ball falls one row per step and drifts by -1, 0 or 1 column, the walls reflecting it; a paddle
    three pixels wide moves along the bottom row. When a ball is down the next one starts at the
    top, five in all. The pixel where the ball was a step ago is dimmer, so that one image tells the
    direction. Larger than the `catch` of Osband et al. (2020), and with reflections.

    ## Action space
    `Discrete(3)`: move the paddle to the left, not at all, to the right.

    ## Observation space
    `Box(0, 255, (16, 16, 1))` uint8: the ball 255, its last place 96, the paddle 176.

    ## Reward
    +1 for a ball caught, -1 for a ball missed, on the step on which it reaches the bottom row.

    ## Starting state
    Paddle, columns and drifts uniform and independent; all balls are drawn at the start.

    ## Episode end
    Terminated when the fifth ball is down, after 75 steps.

    ## Known
    The largest return is 5, always: the paddle needs at most 13 of a ball's 15 steps. A
    ball lands in every column equally often, so any policy that does not look, constant or random,
    returns -3.125 on average.
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

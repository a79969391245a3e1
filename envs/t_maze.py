"""T-maze: what is seen at the first step decides what is right at the last."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from .vectorized import Array, ArrayVectorEnv, SingleEnv


class TMazeVectorEnv(ArrayVectorEnv):
    """N mazes; see `TMaze`."""

    state_dtype = np.int64  # S = 2: the sign, -1 or 1, and the place in the corridor

    def __init__(
        self, num_envs: int = 1, max_episode_steps: int | None = None, length: int = 10
    ) -> None:
        if not 1 <= length <= 1000:
            raise ValueError(f"length: expected 1 to 1000, got {length}")
        self.length = length
        super().__init__(
            num_envs,
            spaces.Box(-1.0, 1.0, (2,), np.float32),
            spaces.Discrete(3),
            max_episode_steps,
        )

    def _start(self, generator: np.random.Generator) -> Array:
        return np.array([2 * generator.integers(2) - 1, 0])

    def _advance(self, action: Array) -> tuple[Array, Array]:
        sign, place = self.state
        turns = (place == self.length) & (action > 0)
        is_right = turns & (2 * action - 3 == sign)  # 1 is to the side of -1, 2 to that of 1
        self.state[1] = place + ((action == 0) & (place < self.length))
        return is_right.astype(np.float64), turns | (self.elapsed + 1 >= 2 * (self.length + 1))

    def _observe(self, state: Array, elapsed: Array) -> Array:
        sign, place = state
        shown = np.where((place == 0) & (elapsed == 0), sign, 0)
        return np.stack((shown, place == self.length), axis=1).astype(np.float32)


class TMaze(SingleEnv):
    """Walk down a corridor, and turn to the side that a sign at its beginning showed.

    ## Description
    The maze of Bakker 2002 ("Reinforcement learning with long short-term memory"), without its
    penalties. A sign is seen at the first step only. Where the corridor ends, the agent turns to
    one side or the other, and the episode ends.

    ## Action space
    `Discrete(3)`: go on (at the junction: wait), turn to the side of -1, turn to the side of 1. In
    the corridor a turn does nothing.

    ## Observation space
    `Box(-1, 1, (2,))` float32: the sign at the first step, then 0; and 1 at the junction, else 0.

    ## Reward
    1 for the turn to the side of the sign, else 0.

    ## Starting state
    The beginning of the corridor; either sign with probability 1/2.

    ## Episode end
    Terminated by a turn at the junction, or after `2 * (length + 1)` steps.

    ## Arguments
    `length`: steps from the beginning to the junction, 10.

    ## Known
    The largest return is 1, with a memory of `length` steps. Without memory no policy gets more
    than 0.5 on average.
    """

    def __init__(self, render_mode: str | None = None, length: int = 10) -> None:
        super().__init__(TMazeVectorEnv(length=length), render_mode)

"""Unit commitment: a yes or no per generator and hour, and an optimum that is known."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from .vectorized import Array, ArrayVectorEnv, SingleEnv

HOURS = 24
CAPACITY = np.array([10.0, 20.0, 30.0, 50.0])  # MW of each unit
RUN_COST = np.array([5.0, 7.0, 8.0, 10.0])  # per hour in which it runs
START_COST = np.array([1.0, 6.0, 12.0, 30.0])  # per start
SHORTAGE_COST = 2.0  # per MW and hour not delivered
PROFILE = np.array(  # MW, the demand of a day without noise
    [
        *(25, 20, 20, 20, 25, 35, 50, 70, 80, 80, 75, 75),
        *(80, 75, 70, 65, 70, 80, 90, 90, 80, 65, 45, 35),
    ]
)  # [24]
NOISE_STEP = 10  # MW
NUM_NOISE = 5  # levels of noise, -2 ... 2 steps


def hourly_cost(demand: Array, before: Array, now: Array) -> Array:
    """`[...]`: the cost of one hour.

    Args:
        demand: `[...]` MW.
        before, now: `[..., 4]` 0 or 1, the units that ran in the hour before and run now.
    """
    started = (now > before).astype(np.float64)
    shortage = np.maximum(demand - now @ CAPACITY, 0.0)
    cost: Array = now @ RUN_COST + started @ START_COST + SHORTAGE_COST * shortage
    return cost


class UnitCommitmentVectorEnv(ArrayVectorEnv):
    """N power systems of `UnitCommitment`; see there."""

    # S = 4 + 25: the units that ran, the demand of every hour (and a 0 after the last)

    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None) -> None:
        low = np.array([0, -1, -1, 0, 0, 0, 0], dtype=np.float32)
        high = np.array([1.1, 1, 1, 1, 1, 1, 1], dtype=np.float32)
        super().__init__(
            num_envs, spaces.Box(low, high), spaces.MultiBinary(len(CAPACITY)), max_episode_steps
        )

    def _start(self, generator: np.random.Generator) -> Array:
        noise = [int(generator.integers(NUM_NOISE))]
        for step in generator.integers(-1, 2, size=HOURS - 1).tolist():
            noise.append(min(max(noise[-1] + step, 0), NUM_NOISE - 1))
        demand = PROFILE + NOISE_STEP * (np.array(noise) - NUM_NOISE // 2)
        return np.concatenate((np.zeros(len(CAPACITY)), demand, [0.0]))

    def _advance(self, action: Array) -> tuple[Array, Array]:
        num_units = len(CAPACITY)
        demand = self.state[num_units + self.elapsed, np.arange(self.num_envs)]
        cost = hourly_cost(demand, self.state[:num_units].T, action)
        self.state[:num_units] = action.T
        return -cost / 100, self.elapsed == HOURS - 1

    def _observe(self, state: Array, elapsed: Array) -> Array:
        num_units = len(CAPACITY)
        obs = np.empty((state.shape[1], 3 + num_units), dtype=np.float32)
        obs[:, 0] = state[num_units + elapsed, np.arange(state.shape[1])] / 100
        obs[:, 1] = np.sin(2 * np.pi / HOURS * elapsed)
        obs[:, 2] = np.cos(2 * np.pi / HOURS * elapsed)
        obs[:, 3:] = state[:num_units].T
        return obs


class UnitCommitment(SingleEnv):
    """Decide every hour of a day which of four power stations run.

    ## Description
    Small stations are dear to run and cheap to start, large ones the reverse. The demand follows a
    daily profile with a peak in the evening, plus a random walk of -20 to 20 MW; what the running
    stations cannot deliver is paid for. Running ahead of a peak, or through a dip, must be weighed
    against starting again.

    ## Action space
    `MultiBinary(4)`: which of the stations of 10, 20, 30 and 50 MW run in the coming hour.

    ## Observation space
    `Box(7,)` float32: demand of the coming hour in 100 MW, sine and cosine of the hour of the day,
    and the four stations, 1 for those that ran in the last hour.

    ## Reward
    Minus the cost of the hour, in hundreds: running (5, 7, 8, 10 per hour), starting (1, 6, 12, 30
    per start), 2 per MW short.

    ## Starting state
    Midnight, all stations off, the walk at a uniform place; the day's demand is drawn at the start.

    ## Episode end
    Terminated after 24 hours.

    ## Known
    The largest expected return is -4.337 (dynamic programming); uniformly random actions return
    -15.857 on average, the best constant action -6.220.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(UnitCommitmentVectorEnv(), render_mode)

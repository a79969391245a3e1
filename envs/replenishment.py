"""Joint replenishment: an order for each of three products, and an optimum that is known."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from .vectorized import Array, ArrayVectorEnv, SingleEnv

DAYS = 30
NUM_PRODUCTS = 3
MAX_STOCK = 6  # of each product; what is ordered beyond it is paid for and lost
MAX_ORDER = 3  # of each product and day
DEMAND = np.array(  # probability of a demand of 0, 1, 2 on a day
    [[0.6, 0.3, 0.1], [0.3, 0.4, 0.3], [0.2, 0.3, 0.5]]
)  # [products, 3]
PRICE = 2.0  # per unit sold
UNIT_COST = 1.0  # per unit ordered
DELIVERY_COST = 2.0  # per day with an order, whatever is ordered
HOLDING_COST = 0.05  # per unit in stock overnight
LOST_COST = 0.5  # per unit asked for and not there


def stock_in(stock: Array, order: Array) -> Array:
    """`[..., 3]`: the stock when the order has arrived."""
    available: Array = np.minimum(stock + order, MAX_STOCK)
    return available


def profit(available: Array, order: Array, demand: Array) -> Array:
    """`[...]`: the profit of one day.

    Args:
        available: `[..., 3]` stock when the order has arrived.
        order, demand: `[..., 3]`.
    """
    sold = np.minimum(available, demand)
    of_each: Array = (
        PRICE * sold
        - UNIT_COST * order
        - HOLDING_COST * (available - sold)
        - LOST_COST * (demand - sold)
    )
    total: Array = of_each.sum(-1) - DELIVERY_COST * (order.sum(-1) > 0)
    return total


class ReplenishmentVectorEnv(ArrayVectorEnv):
    """N shops of `Replenishment`; see there."""

    state_dtype = np.int64  # S = 3 + 3 DAYS: stock, then the demand of every day

    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None) -> None:
        super().__init__(
            num_envs,
            spaces.Box(0.0, 1.0, (NUM_PRODUCTS + 1,)),
            spaces.MultiDiscrete([MAX_ORDER + 1] * NUM_PRODUCTS),
            max_episode_steps,
        )

    def _start(self, generator: np.random.Generator) -> Array:
        uniform = generator.random((DAYS, NUM_PRODUCTS, 1))
        demand = (uniform >= DEMAND.cumsum(axis=1)[:, :-1]).sum(axis=-1)  # [DAYS, products]
        stock = generator.integers(MAX_STOCK + 1, size=NUM_PRODUCTS)
        return np.concatenate((stock, demand.reshape(DAYS * NUM_PRODUCTS)))

    def _advance(self, action: Array) -> tuple[Array, Array]:
        env = np.arange(self.num_envs)
        first = NUM_PRODUCTS * (1 + self.elapsed)
        demand = self.state[first[:, None] + np.arange(NUM_PRODUCTS), env[:, None]]  # [N, 3]
        available = stock_in(self.state[:NUM_PRODUCTS].T, action)
        self.state[:NUM_PRODUCTS] = np.maximum(available - demand, 0).T
        return profit(available, action, demand), self.elapsed == DAYS - 1

    def _observe(self, state: Array, elapsed: Array) -> Array:
        obs = np.empty((state.shape[1], NUM_PRODUCTS + 1), dtype=np.float32)
        obs[:, :NUM_PRODUCTS] = state[:NUM_PRODUCTS].T / MAX_STOCK
        obs[:, NUM_PRODUCTS] = 1 - elapsed / DAYS
        return obs


class Replenishment(SingleEnv):
    """Order three products for a shop every morning, for a season of thirty days.

    ## Description
    All products of an order share one delivery, so it pays to order them together and not every day
    (the joint replenishment problem); toward the end of the season it pays to sell out.

    ## Action space
    `MultiDiscrete([4, 4, 4])`: how many of each product to order, 0 to 3; they arrive at once, and
    what exceeds a stock of 6 is lost.

    ## Observation space
    `Box(0, 1, (4,))` float32: the three stocks over 6, and the share of the season that is left.

    ## Reward
    The day's profit: 2 per unit sold, minus 1 per unit ordered, 2 per delivery, 0.05 per unit in
    stock overnight, 0.5 per unit asked for in vain. The three demands of a day are independent, 0,
    1 or 2 with probabilities (.6, .3, .1), (.3, .4, .3) and (.2, .3, .5).

    ## Starting state
    Each stock uniform from 0 to 6; the demand of the season is drawn at the start.

    ## Episode end
    Terminated after 30 days. What is left is worth nothing.

    ## Known
    The largest expected return is 53.673 (dynamic programming); uniformly random actions return
    -50.989 on average, the best constant action -9.473.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(ReplenishmentVectorEnv(), render_mode)

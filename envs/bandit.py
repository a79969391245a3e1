"""A bandit: the smallest problem that has a policy gradient, and its exact value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

from .vectorized import Array, ArrayVectorEnv, SingleEnv

REWARDS = (1.0, 0.0, -0.5, 2.0)


def value_and_gradient(logits: Array, rewards: Sequence[float] = REWARDS) -> tuple[float, Array]:
    """`J = sum_a pi(a) r(a)` and its gradient `dJ/dlogits(a) = pi(a) (r(a) - J)`, in float64.

    Args:
        logits: `[arms]` of a softmax policy.
        rewards: `[arms]`.
    """
    weight = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits))
    probability = weight / weight.sum()
    value = float(probability @ np.asarray(rewards))
    return value, probability * (np.asarray(rewards) - value)


class BanditVectorEnv(ArrayVectorEnv):
    """N machines of `Bandit`; see there."""

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        rewards: Sequence[float] = REWARDS,
    ) -> None:
        self.rewards = np.array(rewards, dtype=np.float64)
        super().__init__(
            num_envs, spaces.Discrete(1), spaces.Discrete(len(rewards)), max_episode_steps
        )

    def _start(self, generator: np.random.Generator) -> Array:
        return np.zeros(1)

    def _advance(self, action: Array) -> tuple[Array, Array]:
        return self.rewards[action], np.ones(self.num_envs, dtype=bool)

    def _observe(self, state: Array, elapsed: Array) -> Array:
        return np.zeros(state.shape[1], dtype=np.int64)


class Bandit(SingleEnv):
    """Pull one of a few arms, once.

    ## Description
    Nothing is random but the policy: what an estimator returns has few values, and its expectation
    and variance are sums over the arms.

    ## Action space
    `Discrete(4)`: the arm.

    ## Observation space
    `Discrete(1)`: nothing to see.

    ## Reward
    1, 0, -0.5 or 2, by arm.

    ## Episode end
    Terminated after one step.

    ## Known
    The largest return is 2; a uniform policy returns 0.625 on average. `value_and_gradient` gives
    the exact value and gradient of any softmax policy.

    ## Arguments
    `rewards`: one per arm.
    """

    def __init__(self, render_mode: str | None = None, rewards: Sequence[float] = REWARDS) -> None:
        super().__init__(BanditVectorEnv(rewards=rewards), render_mode)

"""A decision process so small that all its trajectories can be written down."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from .vectorized import Array, ArrayVectorEnv, SingleEnv

NUM_STEPS = 4
START = 0.3  # probability to start in state 1
MOVE = np.array([[0.1, 0.8], [0.3, 0.6]])  # [state, action] probability of state 1 next
REWARD = np.array([[1.0, 0.0], [-0.5, 2.0]])  # [state, action]


class Trajectories(NamedTuple):
    """All K trajectories there are, without the state after the last action."""

    state: Array  # [K, T] int64
    action: Array  # [K, T] int64
    reward: Array  # [K, T] float64
    probability: Array  # [K] float64: the environment's factor, without the policy's


def trajectories() -> Trajectories:
    """Every trajectory, with the probability of what the environment does in it."""
    state = np.array(list(itertools.product((0, 1), repeat=NUM_STEPS)))  # [16, T]
    action = state  # the same patterns
    state = state.repeat(len(action), axis=0)  # [K, T]
    action = np.tile(action, (len(action), 1))  # [K, T]
    to_one = np.empty(state.shape)  # [K, T] probability of state 1 at each time
    to_one[:, 0] = START
    to_one[:, 1:] = MOVE[state[:, :-1], action[:, :-1]]
    probability = np.where(state == 1, to_one, 1 - to_one).prod(axis=1)
    return Trajectories(state, action, REWARD[state, action], probability)


def value_and_gradient(logits: Array, gamma: float = 1.0) -> tuple[float, Array]:
    """`J = E[sum_t gamma^t r_t]` of a softmax policy and `dJ/dlogits`, exact, by enumeration.

    `dJ/dlogits = E[(sum_t gamma^t r_t) sum_t d log pi(a_t | s_t)/dlogits]`, in float64.

    Args:
        logits: `[state, action]` = `[2, 2]`, the same at all times.
        gamma: discount; the gradient is that of the discounted objective, `gamma^t` included.
    """
    every = trajectories()
    weight = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits, axis=1, keepdims=True))
    policy = weight / weight.sum(axis=1, keepdims=True)  # [state, action]
    probability = every.probability * policy[every.state, every.action].prod(axis=1)  # [K]
    total = every.reward @ gamma ** np.arange(NUM_STEPS)  # [K]
    in_state = np.eye(2)[every.state]  # [K, T, state]
    score = np.eye(2)[every.action] - policy[every.state]  # [K, T, action]
    gradient = np.einsum("k,kts,kta->sa", probability * total, in_state, score)
    return float(probability @ total), gradient


class ChainVectorEnv(ArrayVectorEnv):
    """N copies of `Chain`; see there."""

    # S = 1 + T: the state, and a uniform number for every transition

    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None) -> None:
        super().__init__(num_envs, spaces.Discrete(2), spaces.Discrete(2), max_episode_steps)

    def _start(self, generator: np.random.Generator) -> Array:
        uniform = generator.random(1 + NUM_STEPS)
        uniform[0] = uniform[0] < START
        return uniform

    def _advance(self, action: Array) -> tuple[Array, Array]:
        state = self.state[0].astype(np.int64)
        uniform = self.state[1 + self.elapsed, np.arange(self.num_envs)]
        self.state[0] = uniform < MOVE[state, action]
        reward: Array = REWARD[state, action]
        return reward, self.elapsed == NUM_STEPS - 1

    def _observe(self, state: Array, elapsed: Array) -> Array:
        obs: Array = state[0].astype(np.int64)
        return obs


class Chain(SingleEnv):
    """Two states, two actions, four steps: 256 trajectories, summed exactly.

    ## Description
    The test oracle for estimators on sequences: rewards of both signs, random transitions, a
    random start, and credit that reaches over several steps.

    ## Action space
    `Discrete(2)`.

    ## Observation space
    `Discrete(2)`: the state. The time is not observed.

    ## Reward
    By state and action: 1 and 0 in state 0, -0.5 and 2 in state 1.

    ## Dynamics
    The next state is 1 with probability .1 or .8 (state 0, action 0 or 1), .3 or .6 (state 1).

    ## Starting state
    State 1 with probability 0.3.

    ## Episode end
    Terminated after four steps.

    ## Known
    The largest expected return is 5.158, of a policy that knows the time; of the deterministic ones
    that see the state only, 4.9875. A uniform policy returns 2.4125 on average.
    `value_and_gradient` gives the exact value and gradient of any tabular softmax policy,
    `trajectories` all there is to sum over.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(ChainVectorEnv(), render_mode)

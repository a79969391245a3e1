"""A pole to be swung up and balanced on a cart: smooth, so made for gradients along the path."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .batched import Batched, TorchVectorEnv, normal
from .vectorized import SingleEnv

POLE, CART, LENGTH, FRICTION, GRAVITY = 0.5, 0.5, 0.5, 0.1, 9.82  # kg, kg, m, N/(m/s), m/s^2
FORCE, TIME_STEP, SUBSTEPS, NUM_STEPS = 10.0, 0.1, 2, 50  # N, s
AWAY, WHIRL = 0.1, 0.005  # cost of being 1 m off the origin, of turning by 1 rad/s
START_DEVIATION = 0.02  # of every component


def accelerations(state: Tensor, force: Tensor) -> Tensor:
    """`[..., 2]`, of cart and angle, in a state `[..., 4]` under a force `[...]` in N on the cart.

    The state is position, angle from upright, velocity, angular velocity; the pole a uniform rod.
    Source: Deisenroth & Rasmussen 2011 (PILCO), cart-pole.
    """
    _, angle, velocity, spin = state.unbind(-1)
    sin, cos = angle.sin(), angle.cos()
    push = force - FRICTION * velocity + 0.5 * POLE * LENGTH * spin.square() * sin
    acceleration = (push - 0.75 * POLE * GRAVITY * sin * cos) / (
        CART + POLE - 0.75 * POLE * cos.square()
    )
    return torch.stack([acceleration, 1.5 / LENGTH * (GRAVITY * sin - acceleration * cos)], dim=-1)


def tip_distance(state: Tensor) -> Tensor:
    """`[...]` meters from the pole's tip to where it should be: `LENGTH` above the origin."""
    sideways = state[..., 0] + LENGTH * state[..., 1].sin()
    below = LENGTH * (1 - state[..., 1].cos())
    return (sideways.square() + below.square()).sqrt()


class SwingUpDynamics(Batched):
    """`rlpg/SwingUp-v0` as functions of tensors; state `[..., 4]` as in `accelerations`.

    Kinks: the clipping of the force, nothing else.
    """

    num_uniforms = 5
    max_episode_steps = NUM_STEPS

    def __init__(self, exploring_starts: bool = False) -> None:
        self.exploring_starts = exploring_starts
        self.observation_space = spaces.Box(-np.inf, np.inf, (5,))
        self.action_space = spaces.Box(-1.0, 1.0, (1,))

    def start(self, uniform: Tensor) -> Tensor:
        x, angle, v, spin = normal(uniform[..., :4]).unbind(-1)
        hanging = START_DEVIATION * torch.stack([x, angle, v, spin], dim=-1)
        hanging[..., 1] += math.pi
        if not self.exploring_starts:
            return hanging
        which, turn = uniform[..., 4:], math.pi * (2 * uniform[..., 1] - 1)
        upright = torch.stack([0.3 * x, 0.3 * angle, 0.5 * v, spin], dim=-1)
        anywhere = torch.stack([0.4 * x, turn, 0.7 * v, 3.0 * spin], dim=-1)
        return torch.where(which < 1 / 3, hanging, torch.where(which < 2 / 3, upright, anywhere))

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        force = FORCE * action[..., 0].to(state.dtype).clamp(-1.0, 1.0)
        for _ in range(SUBSTEPS):  # velocities first: semi-implicit Euler
            rates = state[..., 2:] + accelerations(state, force) * (TIME_STEP / SUBSTEPS)
            places = state[..., :2] + rates * (TIME_STEP / SUBSTEPS)
            state = torch.cat([places, rates], dim=-1)
        reward = (state[..., 1].cos() - 1) / 2 - AWAY * state[..., 0].square()
        reward = reward - WHIRL * state[..., 3].square()
        return state, reward, torch.zeros_like(reward, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        position, angle, velocity, spin = state.unbind(-1)
        return torch.stack([position, angle.cos(), angle.sin(), velocity / 2, spin / 5], dim=-1)


class SwingUpVectorEnv(TorchVectorEnv):
    """N copies of `SwingUp`; see there."""

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        *,
        device: str = "cpu",
        dtype: str = "float64",
        exploring_starts: bool = False,
    ) -> None:
        super().__init__(
            SwingUpDynamics(exploring_starts), num_envs, max_episode_steps, device, dtype
        )


class SwingUp(SingleEnv):
    """Swing a pole that hangs from a cart up, and balance it.

    ## Description
    A cart of 0.5 kg on rails without end, a uniform rod of 0.5 m and 0.5 kg; a step is 0.1 s
    (two of semi-implicit Euler). Balanced means: the tip within 0.25 m of its place, 0.5 m above
    the origin.

    ## Action space
    `Box(-1, 1, (1,))` float32: the force on the cart in units of 10 N; what lies outside is
    clipped.

    ## Observation space
    `Box(5,)` float32: position, cosine and sine of the angle from upright, velocity / 2, angular
    velocity / 5.

    ## Reward
    `(cos(angle) - 1) / 2 - 0.1 position^2 - 0.005 angular_velocity^2` of the state that the step
    leads to: -1 hanging, 0 upright over the origin. Its slope leads back from everywhere.

    ## Starting state
    Hanging at rest; every component with normal noise of deviation 0.02. With `exploring_starts` a
    third of the episodes begins so, a third about the top, a third anywhere and moving: from below
    alone, whirling through the top again and again is a local optimum.

    ## Episode end
    Never terminated; truncated after 50 steps (5 s).

    ## Arguments
    `exploring_starts`; `device` and `dtype`: where and how it computes.
    """

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        super().__init__(SwingUpVectorEnv(**options), render_mode)

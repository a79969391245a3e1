"""Gymnasium's classic control as `Batched` environments: differentiable, on any device.

The equations are those of the NumPy versions beside this file, written once more for tensors. In
float64 a step agrees with Gymnasium's to rounding; docs/torch_environments.md lists what differs.

What is differentiated, and where it kinks. `clamp` has slope 1 inside its bounds and on them, 0
outside: a saturated motor or speed passes no gradient, which is its true derivative. The wrapping
of an angle has slope 1. `terminated` and rewards that only count (CartPole, MountainCar, Acrobot,
the 100 at the goal) are constant almost everywhere: no gradient passes through *when* an episode
ends. Where the objective needs that, use the score function.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor

from . import acrobot, cartpole, mountain_car, pendulum
from .batched import Batched, TorchVectorEnv
from .vectorized import ArrayVectorEnv, SingleEnv


class Classic(Batched):
    """What all have in common: spaces and time limit are those of the NumPy version."""

    numpy_version: ClassVar[type[Any]]

    def __init__(self) -> None:
        twin: ArrayVectorEnv = self.numpy_version(1)
        assert isinstance(twin.single_observation_space, spaces.Box)
        assert twin.max_episode_steps is not None
        self.observation_space = twin.single_observation_space
        self.action_space = twin.single_action_space
        self.max_episode_steps = twin.max_episode_steps


class CartPole(Classic):
    """`CartPole-v1`; state `[..., 4]`: position, velocity, angle, angular velocity.

    The dynamics are smooth in the state. A float action between 0 and 1 is a force between -10 N
    and 10 N, and is differentiated as such; the reward, 1 per step, has no gradient.
    """

    numpy_version = cartpole.CartPoleVectorEnv
    num_uniforms = 4

    def start(self, uniform: Tensor) -> Tensor:
        return -0.05 + 0.1 * uniform

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        force = action.to(state.dtype) * (2 * cartpole.FORCE) - cartpole.FORCE  # [...]
        state = self._push(state, force)
        return state, torch.ones_like(force), self._fallen(state)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def _push(self, state: Tensor, force: Tensor) -> Tensor:
        """The state after `TIME_STEP` under a force `[...]` in N (Euler's method)."""
        _, velocity, angle, spin = state.unbind(-1)
        cos, sin = angle.cos(), angle.sin()
        # Florian (2007), "Correct equations for the dynamics of the cart-pole system".
        push = (force + cartpole.POLE_MOMENT * spin.square() * sin) / cartpole.TOTAL_MASS
        spin_change = (cartpole.GRAVITY * sin - cos * push) / (
            cartpole.HALF_LENGTH
            * (4.0 / 3.0 - cartpole.POLE_MASS * cos.square() / cartpole.TOTAL_MASS)
        )
        acceleration = push - cartpole.POLE_MOMENT * spin_change * cos / cartpole.TOTAL_MASS
        change = torch.stack([velocity, acceleration, spin, spin_change], dim=-1)
        return state + cartpole.TIME_STEP * change

    def _fallen(self, state: Tensor) -> Tensor:
        beyond = state[..., 0].abs() > cartpole.MAX_POSITION
        return beyond | (state[..., 2].abs() > cartpole.MAX_ANGLE)


class CartPoleContinuous(CartPole):
    """The cart-pole with a force to choose and a reward to differentiate; not one of Gymnasium's.

    Action `Box(-1, 1, (1,))`, in units of 10 N, clipped. The reward of a step is

        1 - (position / 2.4)^2 / 2 - (angle / 12 degrees)^2 / 2

    of the state it leads to: 1 upright in the middle, 0 in the corner where both limits are
    reached, so that a return is comparable with `CartPole-v1`'s. Kinks: the clipping of the force.
    """

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1.0, 1.0, (1,))

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        force = cartpole.FORCE * action[..., 0].to(state.dtype).clamp(-1.0, 1.0)
        state = self._push(state, force)
        aside, tilt = state[..., 0] / cartpole.MAX_POSITION, state[..., 2] / cartpole.MAX_ANGLE
        return state, 1.0 - (aside.square() + tilt.square()) / 2, self._fallen(state)


class Pendulum(Classic):
    """`Pendulum-v1`; state `[..., 2]`: angle (0 is upright, not wrapped) and angular velocity.

    Kinks: the clipping of torque (±2 N m) and speed (±8 rad/s); the cost where the pendulum hangs
    straight down (continuous, its slope changes sign). All are continuous, so that the pathwise
    gradient is unbiased.

    Args:
        g: gravity in m/s^2.
    """

    numpy_version = pendulum.PendulumVectorEnv
    num_uniforms = 2

    def __init__(self, g: float = 10.0) -> None:
        super().__init__()
        self.g = g

    def start(self, uniform: Tensor) -> Tensor:
        angle, speed = uniform.unbind(-1)
        return torch.stack([2 * math.pi * angle - math.pi, 2.0 * speed - 1.0], dim=-1)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angle, speed = state.unbind(-1)
        limit = pendulum.MAX_TORQUE
        torque = action[..., 0].to(state.dtype).clamp(-limit, limit)
        wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        cost = wrapped.square() + 0.1 * speed.square() + 0.001 * torque.square()
        speed = speed + (1.5 * self.g * angle.sin() + 3.0 * torque) * pendulum.TIME_STEP
        speed = speed.clamp(-pendulum.MAX_SPEED, pendulum.MAX_SPEED)
        state = torch.stack([angle + speed * pendulum.TIME_STEP, speed], dim=-1)
        return state, -cost, torch.zeros_like(cost, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        angle, speed = state.unbind(-1)
        return torch.stack([angle.cos(), angle.sin(), speed], dim=-1)


class MountainCar(Classic):
    """`MountainCar-v0`; state `[..., 2]`: position and velocity.

    Kinks: the bounds of velocity and position. A car that hits the left wall stands still: what it
    did before is forgotten, and its gradient is 0. A float action between 0 and 2 is an
    acceleration, and is differentiated as such; the reward, -1 per step, has no gradient.

    Args:
        goal_velocity: the least velocity at the goal.
    """

    numpy_version: ClassVar[type[Any]] = mountain_car.MountainCarVectorEnv
    goal = mountain_car.MountainCarVectorEnv.goal
    num_uniforms = 1

    def __init__(self, goal_velocity: float = 0.0) -> None:
        super().__init__()
        self.goal_velocity = goal_velocity

    def start(self, uniform: Tensor) -> Tensor:
        position = -0.6 + (-0.4 - -0.6) * uniform  # [..., 1]
        return torch.cat([position, torch.zeros_like(position)], dim=-1)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state, arrived = self._drive(state, (action.to(state.dtype) - 1.0) * 0.001)
        return state, torch.full_like(state[..., 0], -1.0), arrived

    def observe(self, state: Tensor) -> Tensor:
        return state

    def _drive(self, state: Tensor, push: Tensor) -> tuple[Tensor, Tensor]:
        """The next state under an acceleration `[...]`, and whether it is at the goal."""
        position, velocity = state.unbind(-1)
        velocity = velocity + (push - mountain_car.GRAVITY * (3 * position).cos())
        velocity = velocity.clamp(-mountain_car.MAX_SPEED, mountain_car.MAX_SPEED)
        position = (position + velocity).clamp(mountain_car.MIN_POSITION, mountain_car.MAX_POSITION)
        at_wall = (position <= mountain_car.MIN_POSITION) & (velocity < 0)
        velocity = velocity.masked_fill(at_wall, 0.0)
        arrived = (position >= self.goal) & (velocity >= self.goal_velocity)
        return torch.stack([position, velocity], dim=-1), arrived


class MountainCarContinuous(MountainCar):
    """`MountainCarContinuous-v0`; as `MountainCar`, with a force in [-1, 1] for an action.

    The cost of the force is differentiable, the 100 at the goal is not: a pathwise gradient of the
    return says "do nothing".
    """

    numpy_version = mountain_car.MountainCarContinuousVectorEnv
    goal = mountain_car.MountainCarContinuousVectorEnv.goal

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        force = action[..., 0].to(state.dtype)
        state, arrived = self._drive(state, force.clamp(-1.0, 1.0) * 0.0015)
        return state, 100.0 * arrived - 0.1 * force.square(), arrived


class Acrobot(Classic):
    """`Acrobot-v1`; state `[..., 4]`: both angles in [-π, π] and both angular velocities.

    Kinks: the bounds of the velocities (4π and 9π rad/s). A float action between 0 and 2 is a
    torque, and is differentiated as such; the reward, -1 per step, has no gradient.
    """

    numpy_version = acrobot.AcrobotVectorEnv
    num_uniforms = 4

    def start(self, uniform: Tensor) -> Tensor:
        return (-0.1 + 0.2 * uniform).float().to(uniform.dtype)  # Gymnasium's is a float32

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        torque, dt = action.to(state.dtype) - 1.0, acrobot.TIME_STEP
        k1 = _swing(state, torque)
        k2 = _swing(state + dt / 2 * k1, torque)
        k3 = _swing(state + dt / 2 * k2, torque)
        k4 = _swing(state + dt * k3, torque)
        state = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        angle1, angle2 = _wrapped(state[..., :2]).unbind(-1)
        speed1 = state[..., 2].clamp(-4 * math.pi, 4 * math.pi)
        speed2 = state[..., 3].clamp(-9 * math.pi, 9 * math.pi)
        state = torch.stack([angle1, angle2, speed1, speed2], dim=-1)
        arrived = -angle1.cos() - (angle2 + angle1).cos() > 1.0
        return state, arrived.to(state.dtype) - 1.0, arrived

    def observe(self, state: Tensor) -> Tensor:
        angle1, angle2, speed1, speed2 = state.unbind(-1)
        parts = [angle1.cos(), angle1.sin(), angle2.cos(), angle2.sin(), speed1, speed2]
        return torch.stack(parts, dim=-1)


def _wrapped(angle: Tensor) -> Tensor:
    """The angle in [-π, π], by whole turns; the bounds stay what they are, as in Gymnasium."""
    above = ((angle - math.pi) / (2 * math.pi)).ceil().clamp(min=0)
    below = ((angle + math.pi) / (2 * math.pi)).floor().clamp(max=0)
    return angle - 2 * math.pi * (above + below)


def _swing(state: Tensor, torque: Tensor) -> Tensor:
    """`[..., 4]`: d/dt of both angles and both velocities (Sutton and Barto's equations).

    All masses, lengths and moments of inertia are 1, the centers of mass at 0.5.
    """
    angle1, angle2, speed1, speed2 = state.unbind(-1)
    gravity = acrobot.GRAVITY
    cos2, sin2 = angle2.cos(), angle2.sin()
    d1 = 3.5 + cos2
    d2 = 1.25 + 0.5 * cos2
    phi2 = 0.5 * gravity * (angle1 + angle2).sin()
    phi1 = 1.5 * gravity * angle1.sin() + phi2 - (0.5 * speed2 + speed1) * speed2 * sin2
    acceleration2 = (torque + d2 / d1 * phi1 - 0.5 * speed1.square() * sin2 - phi2) / (
        1.25 - d2.square() / d1
    )
    acceleration1 = -(d2 * acceleration2 + phi1) / d1
    return torch.stack([speed1, speed2, acceleration1, acceleration2], dim=-1)


FAMILY: dict[str, type[Classic]] = {
    "Acrobot-v1": Acrobot,
    "CartPole-v1": CartPole,
    "CartPoleContinuous-v0": CartPoleContinuous,
    "MountainCar-v0": MountainCar,
    "MountainCarContinuous-v0": MountainCarContinuous,
    "Pendulum-v1": Pendulum,
}


class TorchClassicVectorEnv(TorchVectorEnv):
    """One of the `FAMILY` by name, N at once; what the ids `rlpg/Torch...` stand for."""

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        *,
        name: str,
        device: str = "cpu",
        dtype: str = "float64",
    ) -> None:
        super().__init__(FAMILY[name](), num_envs, max_episode_steps, device, dtype)


class TorchClassic(SingleEnv):
    """One of the `FAMILY` by name, alone."""

    def __init__(
        self,
        render_mode: str | None = None,
        *,
        name: str,
        device: str = "cpu",
        dtype: str = "float64",
    ) -> None:
        super().__init__(TorchClassicVectorEnv(name=name, device=device, dtype=dtype), render_mode)

"""Linear-quadratic control: differentiable, and its policy gradient known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .batched import Batched, TorchVectorEnv, normal
from .vectorized import SingleEnv

Matrix = Sequence[Sequence[float]]


class QuadraticValue(NamedTuple):
    """`V_t(x) = -(x' P_t x + c_t)`: what a linear policy still earns from state x at time t."""

    p: Tensor  # [T + 1, n, n]
    c: Tensor  # [T + 1]


@dataclass(frozen=True)
class LinearQuadratic:
    """`x' = A x + B u + C w` with `w ~ N(0, I)`, paying `-(x' Q x + u' R u)` for T steps.

    The reward of a step is that of the state in which the action was taken. The tensors may be of
    any precision, on any device, and may carry gradients.

    The policies it knows all about are linear and Gaussian: `u = K x + diag(std) eps`.
    """

    a: Tensor  # [n, n]
    b: Tensor  # [n, m]
    c: Tensor  # [n, k]
    q: Tensor  # [n, n] symmetric
    r: Tensor  # [m, m] symmetric
    start: Tensor  # [n]
    num_steps: int  # T

    @classmethod
    def scalar(cls, dtype: torch.dtype = torch.float64) -> LinearQuadratic:
        """`x' = 1.1 x + 0.5 u + 0.1 w`, cost `x^2 + 0.1 u^2`, `x_0 = 1`, `T = 5`."""
        a, b, c, q, r = (torch.tensor([[v]], dtype=dtype) for v in (1.1, 0.5, 0.1, 1.0, 0.1))
        return cls(a, b, c, q, r, torch.ones(1, dtype=dtype), 5)

    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The next state `[..., n]` and the reward `[...]`, differentiable in everything.

        Args:
            state: `[..., n]`.
            action: `[..., m]`.
            noise: `[..., k]`, a standard normal draw.
        """
        cost = ((state @ self.q) * state).sum(-1) + ((action @ self.r) * action).sum(-1)
        return state @ self.a.mT + action @ self.b.mT + noise @ self.c.mT, -cost

    def value(self, gain: Tensor, std: Tensor) -> QuadraticValue:
        """The policy's value function, by the Lyapunov recursion backwards in time.

            P_t = Q + K'RK + (A + BK)' P_{t+1} (A + BK),                       P_T = 0
            c_t = c_{t+1} + tr(S (R + B' P_{t+1} B)) + tr(C' P_{t+1} C),       c_T = 0

        with `S = diag(std^2)`. `V_0(start)` is the expected return.

        Args:
            gain: `[m, n]` K.
            std: `[m]`.
        """
        closed = self.a + self.b @ gain
        p, c = torch.zeros_like(self.q), torch.zeros_like(self.q[0, 0])
        all_p, all_c = [p], [c]
        for _ in range(self.num_steps):
            curvature = self.r + self.b.mT @ p @ self.b
            c = c + std.square() @ curvature.diagonal() + torch.trace(self.c.mT @ p @ self.c)
            p = self.q + gain.mT @ self.r @ gain + closed.mT @ p @ closed
            all_p.append(p)
            all_c.append(c)
        return QuadraticValue(torch.stack(all_p[::-1]), torch.stack(all_c[::-1]))

    def expected_return(self, gain: Tensor, std: Tensor) -> Tensor:
        """`J = V_0(start)`, a scalar, of the policy `u = K x + diag(std) eps`."""
        p, c = self.value(gain, std)
        return -(self.start @ p[0] @ self.start + c[0])

    def second_moments(self, gain: Tensor, std: Tensor) -> Tensor:
        """`[T, n, n]`: `E[x_t x_t']` under the policy, by the recursion forwards in time."""
        closed = self.a + self.b @ gain
        noise = self.b @ std.square().diag() @ self.b.mT + self.c @ self.c.mT
        moments = [torch.outer(self.start, self.start)]
        for _ in range(self.num_steps - 1):
            moments.append(closed @ moments[-1] @ closed.mT + noise)
        return torch.stack(moments)

    def policy_gradient(self, gain: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """`dJ/dK` `[m, n]` and `dJ/dstd` `[m]`, exact (Fazel et al. 2018, lemma 1, finite T).

        dJ/dK     = -2 sum_t ((R + B' P_{t+1} B) K + B' P_{t+1} A) E[x_t x_t']
        dJ/dstd_i = -2 std_i sum_t (R + B' P_{t+1} B)_ii
        """
        p = self.value(gain, std).p[1:]  # [T, n, n]
        curvature = self.r + self.b.mT @ p @ self.b  # [T, m, m]
        slope = curvature @ gain + self.b.mT @ p @ self.a  # [T, m, n]
        by_gain = -2 * (slope @ self.second_moments(gain, std)).sum(0)
        by_std = -2 * std * curvature.sum(0).diagonal()
        return by_gain, by_std

    def optimal_gains(self) -> Tensor:
        """`[T, m, n]`: the best gain at each time, by the Riccati recursion.

        K_t = -(R + B' P_{t+1} B)^{-1} B' P_{t+1} A,   P_t = Q + A' P_{t+1} (A + B K_t)
        """
        p, gains = torch.zeros_like(self.q), []
        for _ in range(self.num_steps):
            gain = -torch.linalg.solve(self.r + self.b.mT @ p @ self.b, self.b.mT @ p @ self.a)
            p = self.q + self.a.mT @ p @ (self.a + self.b @ gain)
            gains.append(gain)
        return torch.stack(gains[::-1])

    def optimal_return(self) -> Tensor:
        """The largest expected return there is, a scalar, without noise in the action."""
        p = torch.zeros_like(self.q)
        drift = torch.zeros_like(self.q[0, 0])
        for gain in self.optimal_gains().flip(0):
            drift = drift + torch.trace(self.c.mT @ p @ self.c)
            p = self.q + self.a.mT @ p @ (self.a + self.b @ gain)
        return -(self.start @ p @ self.start + drift)


class LQRDynamics(Batched):
    """`rlpg/LQR-v0` as functions of tensors.

    State `[..., n + 1 + k T]`: x, the step, and the noise of every step. Smooth everywhere.
    """

    def __init__(
        self, problem: LinearQuadratic | None = None, *, observe_time: bool = False
    ) -> None:
        self.problem = LinearQuadratic.scalar() if problem is None else problem
        self.observe_time = observe_time
        self._num_states, num_actions = self.problem.b.shape
        self._num_noises = self.problem.c.shape[1]
        self.num_uniforms = self._num_noises * self.problem.num_steps
        self.max_episode_steps = self.problem.num_steps + 1
        self.observation_space = spaces.Box(-np.inf, np.inf, (self._num_states + observe_time,))
        self.action_space = spaces.Box(-np.inf, np.inf, (num_actions,))
        self._as_given: dict[tuple[torch.dtype, torch.device], LinearQuadratic] = {}

    def _problem(self, like: Tensor) -> LinearQuadratic:
        """The problem in the dtype and on the device of a tensor; copied there once."""
        key = (like.dtype, like.device)
        if key not in self._as_given:
            parts = {
                name: getattr(self.problem, name).to(like)
                for name in ("a", "b", "c", "q", "r", "start")
            }
            self._as_given[key] = replace(self.problem, **parts)
        return self._as_given[key]

    def start(self, uniform: Tensor) -> Tensor:
        x = self._problem(uniform).start.detach().expand(*uniform.shape[:-1], -1)
        return torch.cat([x, torch.zeros_like(x[..., :1]), normal(uniform)], dim=-1)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, k, last = self._num_states, self._num_noises, self.problem.num_steps - 1
        x, clock, noises = state[..., :n], state[..., n], state[..., n + 1 :]
        place = k * clock.round().long().clamp(max=last).unsqueeze(-1)
        noise = noises.gather(-1, place + torch.arange(k, device=state.device))  # [..., k]
        x, reward = self._problem(state).step(x, action.to(state.dtype), noise)
        after = torch.cat([x, (clock + 1).unsqueeze(-1), noises], dim=-1)
        return after, reward, clock >= last

    def observe(self, state: Tensor) -> Tensor:
        n = self._num_states
        if not self.observe_time:
            return state[..., :n]
        return torch.cat([state[..., :n], state[..., n : n + 1] / self.problem.num_steps], dim=-1)


class LQRVectorEnv(TorchVectorEnv):
    """N copies of `LQR`; see there."""

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        problem: LinearQuadratic | None = None,
        observe_time: bool = False,
        device: str = "cpu",
        dtype: str = "float64",
    ) -> None:
        dynamics = LQRDynamics(problem, observe_time=observe_time)
        super().__init__(dynamics, num_envs, max_episode_steps, device, dtype)


class LQR(SingleEnv):
    """Keep a linear system near the origin, cheaply; the test oracle for continuous actions.

    ## Description
    `x' = 1.1 x + 0.5 u + 0.1 w` with standard normal w: unstable without control. The registered
    problem is the scalar one of `LinearQuadratic.scalar`; `LinearQuadratic` is the same with
    matrices, and is what to differentiate through.

    ## Action space
    `Box(-inf, inf, (1,))` float32: u, not bounded, so that no clipping spoils the closed forms.

    ## Observation space
    `Box(-inf, inf, (1,))` float32: x. The time is not observed, unless `observe_time` adds the
    share of it that is over.

    ## Reward
    `-(x^2 + 0.1 u^2)`, of the state in which u is chosen.

    ## Starting state
    x = 1.

    ## Episode end
    Terminated after 5 steps.

    ## Known
    The largest expected return is -1.426, with gains that depend on the time. The policy `u =
    -0.6 x + 0.4 eps` returns -3.011 on average, and `dJ/dgain` there is -3.719.

    ## Arguments
    `problem`: a `LinearQuadratic`; `observe_time`; `device` and `dtype`.
    """

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        super().__init__(LQRVectorEnv(**options), render_mode)

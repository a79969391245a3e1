"""The exact values and gradients are exact: against each other, autograd, and the environments."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rlpg.envs import bandit, chain, lqr
from rlpg.envs.vectorized import SingleEnv

Array = np.ndarray[Any, Any]
logit = st.floats(-3, 3)


def numeric_gradient(value: Any, at: Array, step: float = 1e-6) -> Array:
    """Central differences of `value` at `at`."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[index] = step
        gradient[index] = (value(at + shift) - value(at - shift)) / (2 * step)
    return gradient


def claims(env: type[SingleEnv]) -> list[float]:
    known = (env.__doc__ or "").split("## Known")[1].split("## Arguments")[0]
    return [float(number) for number in re.findall(r"-?\d+\.\d+", known)]


class TestBandit:
    @given(st.lists(logit, min_size=4, max_size=4))
    def test_gradient_is_that_of_the_value(self, logits: list[float]) -> None:
        at = np.array(logits)
        value, gradient = bandit.value_and_gradient(at)
        numeric = numeric_gradient(lambda x: bandit.value_and_gradient(x)[0], at)
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)
        assert value <= max(bandit.REWARDS)

    def test_pays_what_it_says(self) -> None:
        envs = bandit.BanditVectorEnv(4)
        envs.reset(seed=0)
        _, reward, terminated, _, _ = envs.step(np.arange(4))
        assert tuple(reward) == bandit.REWARDS
        assert terminated.all()
        assert claims(bandit.Bandit) == [bandit.value_and_gradient(np.zeros(4))[0]]


class TestChain:
    @staticmethod
    def value_by_recursion(logits: Array, gamma: float) -> float:
        """The expected return from backward induction: no trajectory in sight."""
        policy = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        v = np.zeros(2)
        for _ in range(chain.NUM_STEPS):
            q = chain.REWARD + gamma * (chain.MOVE * v[1] + (1 - chain.MOVE) * v[0])
            v = (policy * q).sum(axis=1)
        return float(v @ [1 - chain.START, chain.START])

    @given(st.lists(logit, min_size=4, max_size=4), st.floats(0, 1))
    def test_value_and_gradient(self, logits: list[float], gamma: float) -> None:
        at = np.array(logits).reshape(2, 2)
        value, gradient = chain.value_and_gradient(at, gamma)
        assert value == pytest.approx(self.value_by_recursion(at, gamma), abs=1e-12)
        numeric = numeric_gradient(lambda x: self.value_by_recursion(x, gamma), at)
        np.testing.assert_allclose(gradient, numeric, atol=1e-8)

    def test_the_environment_is_the_one_enumerated(self) -> None:
        every = chain.trajectories()
        uniform = every.probability / 2**chain.NUM_STEPS
        assert uniform.sum() == pytest.approx(1, abs=1e-12)
        num_envs = 60_000
        envs = chain.ChainVectorEnv(num_envs)
        generator = np.random.default_rng(0)
        obs, _ = envs.reset(seed=0)
        seen = np.zeros(num_envs, dtype=np.int64)  # the trajectory as a number in base 4
        returns = np.zeros(num_envs)
        for step in range(chain.NUM_STEPS):
            action = generator.integers(2, size=num_envs)
            seen = 4 * seen + 2 * obs + action
            obs, reward, terminated, _, _ = envs.step(action)
            returns += reward
            assert (terminated == (step == chain.NUM_STEPS - 1)).all()
        code = (2 * every.state + every.action) @ 4 ** np.arange(chain.NUM_STEPS)[::-1]
        counts = np.bincount(seen, minlength=256)[code]
        z = (counts - num_envs * uniform) / np.sqrt(num_envs * uniform)
        # Pearson's statistic: 255 degrees of freedom, standard deviation sqrt(510).
        assert abs(float(z @ z) - 255) < 4 * np.sqrt(510)
        np.testing.assert_allclose(
            returns[seen == code[17]], every.reward[17].sum(), rtol=0, atol=1e-12
        )

    def test_claims(self) -> None:
        v = np.zeros(2)
        for _ in range(chain.NUM_STEPS):
            v = (chain.REWARD + chain.MOVE * v[1] + (1 - chain.MOVE) * v[0]).max(axis=1)
        best = v @ [1 - chain.START, chain.START]
        stationary = max(
            chain.value_and_gradient(1e3 * np.eye(2)[list(actions)])[0]
            for actions in itertools.product((0, 1), repeat=2)
        )
        uniform, _ = chain.value_and_gradient(np.zeros((2, 2)))
        assert claims(chain.Chain) == pytest.approx([best, stationary, uniform], abs=1e-9)


def small_problem() -> lqr.LinearQuadratic:
    """Two states, two actions, one noise, all coupled."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    half_q, half_r = draw(2, 2), draw(2, 2)
    return lqr.LinearQuadratic(
        a=0.6 * draw(2, 2),
        b=draw(2, 2),
        c=draw(2, 1),
        q=half_q @ half_q.mT,
        r=half_r @ half_r.mT,
        start=draw(2),
        num_steps=4,
    )


class TestLQR:
    gain = torch.tensor([[-0.6]], dtype=torch.float64)
    std = torch.tensor([0.4], dtype=torch.float64)

    @pytest.mark.parametrize("problem", [lqr.LinearQuadratic.scalar(), small_problem()])
    def test_gradient_is_that_of_the_value(self, problem: lqr.LinearQuadratic) -> None:
        num_states, num_actions = problem.b.shape
        gain = -0.3 * torch.ones(num_actions, num_states, dtype=torch.float64)
        gain[0, -1] = 0.2
        std = torch.linspace(0.4, 0.7, num_actions, dtype=torch.float64)
        gain.requires_grad_()
        std.requires_grad_()
        expected = torch.autograd.grad(problem.expected_return(gain, std), (gain, std))
        got = problem.policy_gradient(gain, std)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)

    def test_value_is_that_of_the_dynamics(self) -> None:
        """Without any noise the recursion must give the return of the one trajectory there is."""
        p = small_problem()
        still = lqr.LinearQuadratic(p.a, p.b, 0 * p.c, p.q, p.r, p.start, p.num_steps)
        gain = -0.2 * torch.ones(2, 2, dtype=torch.float64)
        state, total = still.start, torch.zeros((), dtype=torch.float64)
        for _ in range(still.num_steps):
            state, reward = still.step(state, gain @ state, torch.zeros(1, dtype=torch.float64))
            total = total + reward
        torch.testing.assert_close(
            still.expected_return(gain, torch.zeros(2, dtype=torch.float64)), total
        )

    def test_pathwise_gradient_through_the_steps(self) -> None:
        problem = lqr.LinearQuadratic.scalar()
        num_lanes = 100_000
        generator = torch.Generator().manual_seed(1)
        eps, w = torch.randn(2, 5, num_lanes, 1, dtype=torch.float64, generator=generator)
        gain = self.gain.expand(num_lanes, 1).clone().requires_grad_()  # one per lane
        state = problem.start.expand(num_lanes, 1)
        total = torch.zeros(num_lanes, dtype=torch.float64)
        for t in range(5):
            state, reward = problem.step(state, gain * state + self.std * eps[t], w[t])
            total = total + reward
        (per_lane,) = torch.autograd.grad(total.sum(), gain)
        exact, _ = problem.policy_gradient(self.gain, self.std)
        z = (per_lane.mean() - exact.squeeze(1)) / per_lane.std() * num_lanes**0.5
        assert abs(z.item()) < 4
        assert per_lane.var().item() == pytest.approx(5.2, abs=0.2)
        z = (total.mean() - problem.expected_return(self.gain, self.std)) / total.std()
        assert abs(z.item() * num_lanes**0.5) < 4

    def test_no_policy_beats_the_optimal_return(self) -> None:
        problem = small_problem()
        best = problem.optimal_return()
        gains = problem.optimal_gains()

        # Backward induction by hand: with the optimal gains no single change of a gain helps.
        def value(all_gains: torch.Tensor) -> torch.Tensor:
            p, c = torch.zeros_like(problem.q), torch.zeros((), dtype=torch.float64)
            for gain in all_gains.flip(0):
                c = c + torch.trace(problem.c.mT @ p @ problem.c)
                closed = problem.a + problem.b @ gain
                p = problem.q + gain.mT @ problem.r @ gain + closed.mT @ p @ closed
            return -(problem.start @ p @ problem.start + c)

        torch.testing.assert_close(value(gains), best)
        gradient = torch.autograd.functional.jacobian(value, gains)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))
        assert value(gains + 0.1) < best

    @pytest.mark.parametrize("problem", [lqr.LinearQuadratic.scalar(), small_problem()])
    def test_the_environment_is_the_same_system(self, problem: lqr.LinearQuadratic) -> None:
        num_envs = 40_000
        envs = lqr.LQRVectorEnv(num_envs, problem=problem)
        num_states, num_actions = problem.b.shape
        gain = -0.3 * torch.ones(num_actions, num_states, dtype=torch.float64)
        std = torch.full((num_actions,), 0.4, dtype=torch.float64)
        generator = np.random.default_rng(0)
        obs, _ = envs.reset(seed=0)
        returns = np.zeros(num_envs)
        for step in range(problem.num_steps):
            eps = generator.standard_normal((num_envs, num_actions))
            obs, reward, terminated, _, _ = envs.step(
                (obs @ gain.numpy().T + 0.4 * eps).astype(np.float32)
            )
            returns += reward
            assert (terminated == (step == problem.num_steps - 1)).all()
        z = (returns.mean() - problem.expected_return(gain, std).item()) / returns.std()
        assert abs(z * num_envs**0.5) < 4

    def test_claims(self) -> None:
        problem = lqr.LinearQuadratic.scalar()
        exact = [
            problem.optimal_return().item(),
            -0.6,
            0.4,
            problem.expected_return(self.gain, self.std).item(),
            problem.policy_gradient(self.gain, self.std)[0].item(),
        ]
        assert claims(lqr.LQR) == [round(number, 3) for number in exact]

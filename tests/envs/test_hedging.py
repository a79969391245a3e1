"""Hedging against Black and Scholes, and against what is known of doing it 30 times only."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rlpg.envs.hedging import (
    HedgingDynamics,
    black_scholes,
    black_scholes_delta,
    leland_volatility,
)
from rlpg.envs.lqr import LQRDynamics
from rlpg.envs.swing_up import SwingUpDynamics, accelerations
from torch import Tensor

from rlpg.errors import EnvironmentSetupError
from rlpg.rollouts import make_envs


def play(env: HedgingDynamics, volatility: float | None = None, paths: int = 20_000) -> Any:
    """Wealth at the end and return `[paths]` of who holds a Black-Scholes delta."""
    uniform = torch.rand(
        (paths, env.num_uniforms), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    state, total = env.start(uniform), torch.zeros(paths, dtype=torch.float64)
    for t in range(env.num_steps):
        state, reward, terminated = env.step(state, env.delta(env.observe(state), volatility))
        total = total + reward
        assert bool(terminated.all()) == bool(terminated.any()) == (t == env.num_steps - 1)
    return state[:, 2], total


def test_price_and_delta_are_those_of_black_and_scholes() -> None:
    """In closed form at the money, by autograd, and at expiry."""
    spot = torch.tensor([90.0, 100.0, 120.0], dtype=torch.float64, requires_grad=True)
    years = torch.full((3,), 0.5, dtype=torch.float64)
    price = black_scholes(spot, years, 100.0, 0.3)
    assert float(price[1].detach()) == pytest.approx(
        100 * math.erf(0.3 * math.sqrt(0.5) / 2 / 2**0.5)
    )
    (slope,) = torch.autograd.grad(price.sum(), spot)
    torch.testing.assert_close(black_scholes_delta(spot, years, 100.0, 0.3), slope)
    paid = black_scholes(spot, torch.zeros(3, dtype=torch.float64), 100.0, 0.3)
    assert paid.tolist() == [0.0, 0.0, 20.0]
    (slope,) = torch.autograd.grad(paid.sum(), spot)
    assert slope.isfinite().all()


def test_the_error_of_the_delta_is_the_known_one() -> None:
    env = HedgingDynamics()
    wealth, _ = play(env)
    assert env.discretization_error() == pytest.approx(0.445, abs=5e-4)
    assert float(wealth.std()) == pytest.approx(env.discretization_error(), rel=0.05)
    assert abs(float(wealth.mean())) < 4 * float(wealth.std()) / len(wealth) ** 0.5


def test_wealth_is_what_a_ledger_says() -> None:
    """Premium in, trades and their costs out, the payoff out at the end; step by step in Python."""
    env = HedgingDynamics(num_steps=4, cost=0.003)
    state = env.start(torch.rand((1, 4), dtype=torch.float64))
    years = torch.tensor([env.years], dtype=torch.float64)
    cash = float(black_scholes(torch.tensor([100.0], dtype=torch.float64), years, 100.0, 0.2))
    held = 0.0
    for holding in (0.4, 0.7, 0.1, 0.9):
        spot = 100 * math.exp(float(state[0, 0]))
        cash -= (holding - held) * spot + 0.003 * abs(holding - held) * spot
        held = holding
        state, _, _ = env.step(state, torch.tensor([[holding]], dtype=torch.float64))
    spot = 100 * math.exp(float(state[0, 0]))
    cash += held * spot - 0.003 * held * spot - max(spot - 100, 0)
    assert float(state[0, 2]) == pytest.approx(cash, abs=1e-12)


@pytest.mark.parametrize("objective", ["mean_variance", "cvar"])
def test_the_return_is_the_utility_of_wealth_at_the_end(objective: str) -> None:
    env = HedgingDynamics(cost=0.002, objective=objective, level=-1.0, risk_aversion=0.5)
    wealth, total = play(env, paths=500)
    if objective == "cvar":
        expected = -(-1.0 - wealth).clamp(min=0) / 0.05
    else:
        expected = wealth - 0.25 * (wealth + 1) ** 2 + 0.25
    torch.testing.assert_close(total, expected)


def test_lelands_volatility_pays_for_the_costs() -> None:
    """What he asks for more than Black and Scholes is about what his hedge pays."""
    env = HedgingDynamics(num_steps=200, cost=0.001)
    volatility = leland_volatility(env.volatility, env.cost, env.years / env.num_steps)
    wealth, _ = play(env, volatility, paths=4_000)
    start = torch.tensor([[100.0, env.years]], dtype=torch.float64)
    more = black_scholes(*start.unbind(-1), 100.0, volatility)
    more = more - black_scholes(*start.unbind(-1), 100.0, env.volatility)
    # He counts no cost of the first and the last trade, about 0.5 stocks each.
    expected = -float(more) - env.cost * 100
    assert float(wealth.mean()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "env",
    [
        HedgingDynamics(cost=0.002),
        HedgingDynamics(cost=0.002, objective="cvar", level=0.3),
        HedgingDynamics(cost=0.002, model="heston", vol_of_vol=0.8),
        LQRDynamics(observe_time=True),
        SwingUpDynamics(),
    ],
    ids=["mean-variance", "cvar", "heston", "lqr", "swing-up"],
)
def test_a_step_has_the_gradient_of_finite_differences(env: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    state = env.reset(5, generator, torch.float64)
    action = 0.1 + 0.8 * torch.rand((5, 1), dtype=torch.float64, generator=generator)
    state, _, _ = env.step(state, action)

    def step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        after, reward, _ = env.step(state, action)
        return after, reward, env.observe(after)

    state, action = state.clone().requires_grad_(), (action * 0.7).requires_grad_()
    assert torch.autograd.gradcheck(step, (state, action))


def heston_paths(paths: int, **options: Any) -> tuple[HedgingDynamics, Tensor]:
    """Log prices and variances `[T + 1, paths, 2]` of Heston's model, from one seed."""
    env = HedgingDynamics(model="heston", **options)
    state = env.reset(paths, torch.Generator().manual_seed(2), torch.float64)
    states = [state]
    for _ in range(env.num_steps):
        state, _, _ = env.step(state, torch.zeros((paths, 1)))
        states.append(state)
    return env, torch.stack(states)[..., [0, 4]]


def test_hestons_price_is_a_martingale_and_his_variance_has_its_mean() -> None:
    """E v = theta + (v_0 - theta) exp(-kappa t), and dW dZ = rho dt; z-tests, |z| < 4."""
    env, paths = heston_paths(20_000, long_run_volatility=0.4, mean_reversion=1.0)
    price, variance = paths[-1, :, 0].exp(), paths[-1, :, 1]
    assert abs(float((price.mean() - 1) / price.std())) * 20_000**0.5 < 4
    error = variance.mean() - 0.16 - (0.04 - 0.16) * math.exp(-env.years)  # Euler's is 3e-5
    assert abs(float(error / variance.std())) * 20_000**0.5 < 4
    moves = paths.diff(dim=0)[0].T  # [2, paths]
    assert float(torch.corrcoef(moves)[0, 1]) == pytest.approx(-0.7, abs=4 * 0.51 / 20_000**0.5)


def test_heston_without_volatility_of_variance_is_black_and_scholes() -> None:
    heston, plain = HedgingDynamics(model="heston", vol_of_vol=0.0), HedgingDynamics(cost=0.0)
    uniform = torch.rand((50, 60), dtype=torch.float64)
    states = [heston.start(uniform), plain.start(uniform[:, :30])]
    for _ in range(30):
        found = [
            env.step(s, env.delta(env.observe(s)))
            for env, s in zip((heston, plain), states, strict=True)
        ]
        states = [after for after, _, _ in found]
        torch.testing.assert_close(found[0][1], found[1][1])
    torch.testing.assert_close(states[0][:, :4], states[1][:, :4])


def test_a_variance_below_zero_moves_no_price_and_has_a_finite_gradient() -> None:
    """Heston's variance at -0.01 comes back by kappa theta dt; the price waits for it."""
    env = HedgingDynamics(model="heston")
    state = env.reset(3, torch.Generator().manual_seed(0), torch.float64)
    state[:, 4] = torch.tensor([-0.01, 0.0, 1e-4])
    state.requires_grad_()
    after, reward, _ = env.step(state, torch.full((3, 1), 0.5, dtype=torch.float64))
    assert (after[:, 0] == 0).tolist() == [True, True, False]
    assert float(after[0, 4].detach()) == pytest.approx(-0.01 + 2 * 0.04 / 252)
    (gradient,) = torch.autograd.grad(reward.sum() + env.observe(after).sum(), state)
    assert gradient.isfinite().all()


def test_the_pole_keeps_its_energy() -> None:
    """Without friction and force; what is left is the error of the integration."""
    state = torch.tensor([[0.0, 2.0, 0.3, 0.1]], dtype=torch.float64)

    def energy(state: Tensor) -> float:
        _, angle, v, spin = state[0].tolist()
        return (
            0.5 * v * v + 0.5 * (0.5 * 0.5 / 3 * 0.5) * spin * spin
            + 0.5 * 0.5 * v * spin * math.cos(angle) * 0.5 + 0.5 * 9.82 * 0.25 * math.cos(angle)
        )  # fmt: skip

    def slope(state: Tensor) -> Tensor:
        push = 0.1 * state[..., 2]  # undoes the friction
        return torch.cat([state[..., 2:], accelerations(state, push)], dim=-1)

    before, h = energy(state), 1e-3
    for _ in range(1000):
        middle = state + h / 2 * slope(state)
        state = state + h * slope(middle)
    assert energy(state) == pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "vega"},
        {"num_steps": 0},
        {"tail": 1.5},
        {"price": 0.0},  # wealth was NaN
        {"risk_aversion": math.nan},  # rewards were NaN
        {"level": math.nan},
        {"years": math.inf},
        {"model": "heston", "mean_reversion": math.inf},
        {"model": "sabr"},
        {"vol_of_vol": 0.3},
        {"model": "heston", "correlation": -1.5},
    ],
)
def test_refuses_what_is_no_task(options: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        HedgingDynamics(**options)


def test_gymnasium_shows_hestons_volatility() -> None:
    envs, _ = make_envs("rlpg/Hedging-v0", 2, seed=0, kwargs={"model": "heston"})
    assert envs.reset()[0][:, 4].tolist() == [1.0, 1.0]
    obs = envs.step(envs.action_space.sample())[0]
    assert obs.shape == (2, 5)
    assert 0.8 < obs[0, 4] != obs[1, 4] < 1.2
    envs.close()


@pytest.mark.parametrize("backend", ["auto", "sync"])
def test_arguments_reach_the_dynamics_and_unknown_ones_are_named(backend: str) -> None:
    kwargs = {"cost": 0.003, "tail": 0.1}
    envs, said = make_envs("rlpg/Hedging-v0", 2, seed=0, kwargs=kwargs, backend=backend)
    base: Any = envs.unwrapped
    dynamics = base.dynamics if backend == "auto" else base.envs[0].unwrapped.envs.dynamics
    assert ("native" in said) == (backend == "auto")
    assert (dynamics.cost, dynamics.tail, dynamics.volatility) == (0.003, 0.1, 0.2)
    envs.close()
    with pytest.raises(EnvironmentSetupError, match="unexpected keyword argument 'costs'"):
        make_envs("rlpg/Hedging-v0", 2, seed=0, kwargs={"costs": 0.1}, backend=backend)

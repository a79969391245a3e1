"""Hedging an option that was sold: proportional costs, and the risk of what is left at the end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .batched import Batched, TorchVectorEnv, normal
from .vectorized import SingleEnv

OBJECTIVES = ("mean_variance", "cvar")
MODELS = ("black_scholes", "heston")


def black_scholes(spot: Tensor, years: Tensor, strike: float, volatility: float) -> Tensor:
    """Price `[...]` of a call, without interest; at expiry what it pays.

    Args:
        spot, years: `[...]` price of the stock, and time to expiry.
        volatility: per square root of a year.
    """
    alive = years > 0
    width = volatility * torch.where(alive, years, 1.0).sqrt()
    d1 = (spot / strike).log() / width + width / 2
    price = spot * torch.special.ndtr(d1) - strike * torch.special.ndtr(d1 - width)
    return torch.where(alive, price, (spot - strike).clamp(min=0.0))


def black_scholes_delta(spot: Tensor, years: Tensor, strike: float, volatility: float) -> Tensor:
    """`[...]` dprice/dspot: the hedge that would leave no risk, if trading were continuous."""
    width = volatility * years.clamp(min=1e-12).sqrt()
    delta: Tensor = torch.special.ndtr((spot / strike).log() / width + width / 2)
    return delta


def leland_volatility(volatility: float, cost: float, years_per_step: float) -> float:
    """The volatility whose delta pays the expected costs of rebalancing (Leland 1985).

    `sigma^2 (1 + sqrt(2 / pi) 2 cost / (sigma sqrt(dt)))`, for an option that was sold; `cost` is
    that of one way.
    """
    added = math.sqrt(2 / math.pi) * 2 * cost / (volatility * math.sqrt(years_per_step))
    return volatility * math.sqrt(1 + added)


class HedgingDynamics(Batched):
    """`rlpg/Hedging-v0` as functions of tensors; see `Hedging`.

    State `[..., 4 + T]`: log of the price over the strike, stocks held, wealth, step, and the
    standard normal numbers that move the price. Heston's is `[..., 5 + 2 T]`: the variance after
    the step, and after the first T numbers those that move the variance. Kinks: the costs where
    nothing is traded; a payoff or a shortfall of exactly 0; a variance of 0. All are continuous.
    """

    def __init__(
        self,
        num_steps: int = 30,
        cost: float = 0.0,
        objective: str = "mean_variance",
        risk_aversion: float = 1.0,
        tail: float = 0.05,
        level: float = 0.0,
        volatility: float = 0.2,
        years: float = 30 / 252,
        price: float = 100.0,
        model: str = "black_scholes",
        mean_reversion: float | None = None,
        long_run_volatility: float | None = None,
        vol_of_vol: float | None = None,
        correlation: float | None = None,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"objective: expected {' or '.join(OBJECTIVES)}, got {objective!r}")
        is_positive = all(0 < number < math.inf for number in (volatility, years, price))
        if not (num_steps >= 1 and 0 <= cost < math.inf and 0 < tail < 1 and is_positive):
            raise ValueError(
                "num_steps, cost, tail, volatility, years, price: expected at least 1, at least "
                f"0, between 0 and 1, above 0, above 0, above 0, got {num_steps}, {cost}, {tail}, "
                f"{volatility}, {years}, {price}"
            )
        if not (math.isfinite(risk_aversion) and math.isfinite(level)):
            raise ValueError(
                f"risk_aversion, level: expected finite numbers, got {risk_aversion}, {level}"
            )
        self.num_steps, self.cost, self.objective = num_steps, cost, objective
        self.risk_aversion, self.tail, self.level = risk_aversion, tail, level
        self.volatility, self.years, self.price = volatility, years, price
        self.model = model
        own = (mean_reversion, long_run_volatility, vol_of_vol, correlation)
        defaults = (2.0, volatility, 0.3, -0.7)
        known = [d if given is None else given for given, d in zip(own, defaults, strict=True)]
        self.mean_reversion, self.long_run_volatility, self.vol_of_vol, self.correlation = known
        self._check_model(own)
        self.num_uniforms = num_steps * (2 if model == "heston" else 1)
        self.num_observed = 5 if model == "heston" else 4  # numbers before the normal ones, too
        self.max_episode_steps = num_steps + 1
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.num_observed,))
        self.action_space = spaces.Box(-0.5, 1.5, (1,))

    def _check_model(self, own: tuple[float | None, ...]) -> None:
        """Raises ValueError where Heston's parameters (`own`, as given) are no model, or unused."""
        if self.model not in MODELS:
            raise ValueError(f"model: expected {' or '.join(MODELS)}, got {self.model!r}")
        names = "mean_reversion, long_run_volatility, vol_of_vol, correlation"
        if self.model != "heston":
            if any(given is not None for given in own):
                raise ValueError(
                    f"{names}: expected none with model {self.model}; set model to heston"
                )
        elif not (0 <= self.mean_reversion < math.inf and 0 < self.long_run_volatility < math.inf
                  and 0 <= self.vol_of_vol < math.inf and -1 <= self.correlation <= 1):  # fmt: skip
            raise ValueError(
                f"{names}: expected at least 0, above 0, at least 0, from -1 to 1, got "
                f"{self.mean_reversion}, {self.long_run_volatility}, {self.vol_of_vol}, "
                f"{self.correlation}"
            )

    def start(self, uniform: Tensor) -> Tensor:
        head = uniform.new_zeros((*uniform.shape[:-1], self.num_observed))
        if self.model == "heston":
            head[..., 4] = self.volatility**2
        return torch.cat([head, normal(uniform)], dim=-1)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_price, held, wealth, clock = state[..., :4].unbind(-1)
        draws = state[..., self.num_observed :]
        holding = action[..., 0].to(state.dtype)
        place = clock.round().long().clamp(max=self.num_steps - 1).unsqueeze(-1)
        z, sqrt_dt = draws.gather(-1, place)[..., 0], math.sqrt(self.years / self.num_steps)
        width: Tensor | float = self.volatility * sqrt_dt
        variance = []
        if self.model == "heston":
            other = draws.gather(-1, place + self.num_steps)[..., 0]
            width = _truncated_root(state[..., 4]) * sqrt_dt
            variance = [self._next_variance(state[..., 4], width, z, other)]
        after = log_price + width * z - width**2 / 2  # a martingale: no drift to speculate on
        terminated = clock >= self.num_steps - 1
        spot, next_spot = self.price * log_price.exp(), self.price * after.exp()
        # Wealth marks the option at its Black-Scholes price; what is held at the end is sold.
        traded = (holding - held).abs() * spot
        traded = traded + torch.where(terminated, holding.abs() * next_spot, 0.0)
        change = self._option(next_spot, clock + 1) - self._option(spot, clock)
        richer = wealth + holding * (next_spot - spot) - change - self.cost * traded
        reward = self.utility(richer) - self.utility(wealth)
        head = torch.stack([after, holding, richer, clock + 1, *variance], dim=-1)
        return torch.cat([head, draws], dim=-1), reward, terminated

    def observe(self, state: Tensor) -> Tensor:
        log_price, held, wealth, clock = state[..., :4].unbind(-1)
        over = clock / self.num_steps
        seen = [log_price / self._width(over), held, wealth, over]
        if self.model == "heston":
            seen.append(_truncated_root(state[..., 4]) / self.volatility)
        return torch.stack(seen, dim=-1)

    def utility(self, wealth: Tensor) -> Tensor:
        """What a wealth `[...]` at the end is worth; see `Hedging`."""
        below = self.level - wealth
        if self.objective == "cvar":
            return -below.clamp(min=0.0) / self.tail
        return wealth - self.risk_aversion / 2 * below.square()

    def delta(self, obs: Tensor, volatility: float | None = None) -> Tensor:
        """`[..., 1]` actions of who holds the Black-Scholes delta, for `[..., 4]` observations."""
        spot = self.price * (obs[..., 0] * self._width(obs[..., 3])).exp()
        left = self.years * (1 - obs[..., 3])
        return black_scholes_delta(spot, left, self.price, volatility or self.volatility)[..., None]

    def _next_variance(self, variance: Tensor, width: Tensor, z: Tensor, other: Tensor) -> Tensor:
        """`[...]` v + kappa (theta - v^+) dt + xi sqrt(v^+ dt) (rho z + sqrt(1 - rho^2) other)."""
        pulled = self.long_run_volatility**2 * self.years / self.num_steps - width**2
        shock = self.correlation * z + math.sqrt(1 - self.correlation**2) * other
        return variance + self.mean_reversion * pulled + self.vol_of_vol * width * shock

    def _width(self, over: Tensor) -> Tensor:
        """`[...]` volatility sqrt(time left), for the share of the time that is over; above 0."""
        return self.volatility * (self.years * (1 - over).clamp(min=0.1 / self.num_steps)).sqrt()

    def discretization_error(self) -> float:
        """Standard deviation of wealth at the end of who holds the delta, in Black and Scholes'
        model and without costs.

        `sqrt(pi / 4) vega sigma / sqrt(T)`, at the money (Derman & Kamal 1999, eq. 9), to leading
        order in 1 / T.
        """
        width = self.volatility * math.sqrt(self.years)
        vega_sigma = self.price * width * math.exp(-(width**2) / 8) / math.sqrt(2 * math.pi)
        return math.sqrt(math.pi / 4) * vega_sigma / math.sqrt(self.num_steps)

    def _option(self, spot: Tensor, clock: Tensor) -> Tensor:
        years = self.years * (1 - clock / self.num_steps)
        return black_scholes(spot, years, self.price, self.volatility)


def _truncated_root(variance: Tensor) -> Tensor:
    """`[...]` sqrt(max(variance, 0)), with derivative 0 where nothing is under the root."""
    is_positive = variance > 0
    root: Tensor = torch.where(is_positive, torch.where(is_positive, variance, 1.0).sqrt(), 0.0)
    return root


class HedgingVectorEnv(TorchVectorEnv):
    """N copies of `Hedging`; see there."""

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        *,
        device: str = "cpu",
        dtype: str = "float64",
        **options: Any,
    ) -> None:
        dynamics = HedgingDynamics(**options)
        super().__init__(dynamics, num_envs, max_episode_steps, device, dtype)


class Hedging(SingleEnv):
    """Hedge a call that was sold at its Black-Scholes price, 30 times until it expires.

    ## Description
    The stock is a geometric Brownian motion without drift and interest (`model="black_scholes"`),
    or its variance moves as well (`model="heston"`, Heston 1993):

        dS = sqrt(v) S dW,    dv = kappa (theta - v) dt + xi sqrt(v) dZ,    dW dZ = rho dt

    by Euler's scheme for log S and v, one step per trade, where max(v, 0) stands for v on the right
    (full truncation, Lord et al. 2010): the price is a martingale exactly. In every step the agent
    says how many stocks to hold, and pays `cost` times the value of what it trades; at the end it
    sells what it holds, and pays what the option pays.

    ## Action space
    `Box(-0.5, 1.5, (1,))` float32: the stocks to hold until the next step.

    ## Observation space
    `Box(4,)` float32: log(price / strike) in units of volatility sqrt(years left), stocks held,
    wealth, share of the time that is over. Wealth marks the option at its Black-Scholes price.
    With Heston's model `Box(5,)`: last sqrt(v) / volatility.

    ## Reward
    `U(wealth after) - U(wealth before)`, so that the return is `U(wealth at the end) - U(0)`:

        mean_variance   U(w) = w - risk_aversion / 2 (w - level)^2
        cvar            U(w) = -max(level - w, 0) / tail

    At the level that is the mean of the final wealth, the expected U is mean - risk_aversion / 2
    variance; at the level that is its `tail` quantile, it is the mean of the worst `tail` of cases,
    less the level (Rockafellar & Uryasev 2000): take the quantile of a hedge that you know, as
    Leland's, -1.3 with a cost of 0.002. Use it with `learner.gamma` 1.

    ## Starting state
    Price and strike 100, nothing held, wealth 0; v is `volatility`^2.

    ## Episode end
    Terminated after `num_steps`.

    ## Known
    Without costs, in the model of Black and Scholes, who holds the Black-Scholes delta ends with a
    standard deviation of about sqrt(pi / 4) vega sigma / sqrt(num_steps), 0.445 (Derman & Kamal
    1999).

    ## Arguments
    `num_steps`; `cost`, as a share of the value that is traded (0); `objective`, `mean_variance` or
    `cvar`; `risk_aversion` (1), `tail` (0.05), `level` (0); `volatility` per year (0.2), `years`
    (30 / 252), `price` (100); `model`; with heston `mean_reversion` kappa (2 per year),
    `long_run_volatility` sqrt(theta) (`volatility`), `vol_of_vol` xi (0.3), `correlation` rho
    (-0.7); `device` and `dtype`.
    """

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        super().__init__(HedgingVectorEnv(**options), render_mode)

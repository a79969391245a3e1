"""Delta and vega of a call option under Black-Scholes, beside their closed forms."""

import math
import os

import torch
from torch.distributions import Normal

import rlpg

STRIKE, RATE, YEARS = 100.0, 0.05, 0.5
spot = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
volatility = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)


def call(tape, num_lanes):
    mean = spot.log() + (RATE - volatility**2 / 2) * YEARS
    log_price = tape.sample(Normal(mean.expand(num_lanes), volatility * math.sqrt(YEARS)))
    tape.add(math.exp(-RATE * YEARS) * (log_price.exp() - STRIKE).clamp(min=0))


torch.manual_seed(0)
tape = rlpg.Tape(how="pathwise")  # "score" for an option that jumps, such as a digital one
call(tape, int(os.environ.get("STEPS", "1_000_000")))
price = tape.surrogate()
price.backward()
delta, vega = float(spot.grad), float(volatility.grad)
print(f"price {float(price.detach()):.4f}, delta {delta:.4f}, vega {vega:.4f}")

deviation = 0.2 * math.sqrt(YEARS)
above = ((RATE + 0.2**2 / 2) * YEARS) / deviation
delta = 0.5 * (1 + math.erf(above / math.sqrt(2)))
vega = 100 * math.sqrt(YEARS) * math.exp(-(above**2) / 2) / math.sqrt(2 * math.pi)
print(f"closed form:  delta {delta:.4f}, vega {vega:.4f}")

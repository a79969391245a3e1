#!/usr/bin/env python
"""One linear-quadratic problem, seven estimators of its policy gradient, each variance exact.

    studies/lqr_ladder.py [--seed 0] [--quick] [--out docs/pictures]

`x' = 1.1 x + 0.5 u + 0.1 w`, cost `x^2 + 0.1 u^2` for 5 steps from x = 1; the policy draws
`u = K x + 0.4 eps` with K = -0.6, and the gradient is that of the expected return with respect to
K. Everything an estimator computes from one path is a polynomial in the path's normal draws, so
its variance is known exactly (`exact`), and `compare` measures it again by sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from gaussian_polynomials import Polynomial, normals
from matplotlib.figure import Figure
from rlpg.envs.lqr import LinearQuadratic
from study import Line, arguments, line, save, table
from torch import Tensor
from torch.distributions import Independent, Normal

import rlpg

SYSTEM = LinearQuadratic.scalar()
GAIN, STD = -0.6, 0.4
MATRIX = torch.tensor([[GAIN]], dtype=torch.float64)
DEVIATION = torch.tensor([STD], dtype=torch.float64)
VALUE = SYSTEM.value(MATRIX, DEVIATION)  # of the policy as it is, without gradient
RETURN = float(SYSTEM.expected_return(MATRIX, DEVIATION))
GRADIENT = float(SYSTEM.policy_gradient(MATRIX, DEVIATION)[0])

Program = Callable[[rlpg.Tape, Tensor], None]


@dataclass(frozen=True)
class Rung:
    """An estimator: how the tape differentiates, and what the program tells it."""

    program: Program  # of the gain, [] or one per lane
    tape: Callable[[], rlpg.Tape]


def whole_return(tape: rlpg.Tape, gain: Tensor) -> None:
    """All rewards as one term at the end: every action is credited with all of them."""
    total = torch.zeros(())
    for _, x, u in path(tape, gain):
        total = total + reward(x, u)
    tape.add(total)


def reward_to_go(tape: rlpg.Tape, gain: Tensor) -> None:
    """Every reward when it is paid: an action is credited with those after it."""
    for _, x, u in path(tape, gain):
        tape.add(reward(x, u))


def state_baseline(tape: rlpg.Tape, gain: Tensor) -> None:
    """The same, less the exact value of the state."""
    for _, x, u in path(tape, gain, lambda t, x: value(t, x)):
        tape.add(reward(x, u))


def exact_advantage(tape: rlpg.Tape, gain: Tensor) -> None:
    """`A_t = Q_t - V_t` known exactly, credited to its own action only.

    What another policy would gain is `sum_t E A_t` along *its* paths (Kakade & Langford 2002,
    lemma 6.1). As E[A_t | x_t] = 0, how actions change later states drops out of the derivative:
    every step is an episode of its own.
    """
    for t, x, u in path(tape, gain):
        tape.add(action_value(t, x, u) - value(t, x), discount=0.0)


def all_action(tape: rlpg.Tape, gain: Tensor) -> None:
    """`E[Q_t | x_t]` over the policy's actions in closed form: only the states are sampled."""
    for t, x, _ in path(tape, gain.detach()):
        mean = gain.reshape(-1, 1) * x
        curvature = SYSTEM.r[0, 0] + SYSTEM.b[0, 0] ** 2 * VALUE.p[t + 1, 0, 0]
        # Q is quadratic in u, so E Q(x, u) = Q(x, E u) - curvature var(u).
        tape.add(action_value(t, x, mean) - curvature * STD**2, discount=0.0)


LADDER: Mapping[str, Rung] = {
    "REINFORCE": Rung(whole_return, lambda: rlpg.Tape("score")),
    "mean baseline": Rung(whole_return, lambda: rlpg.Tape("score", baseline=RETURN)),
    "reward-to-go": Rung(reward_to_go, lambda: rlpg.Tape("score")),
    "state baseline": Rung(state_baseline, lambda: rlpg.Tape("score")),
    "exact advantage": Rung(exact_advantage, lambda: rlpg.Tape("score")),
    "pathwise": Rung(reward_to_go, lambda: rlpg.Tape("pathwise")),
    "all-action": Rung(all_action, lambda: rlpg.Tape("score")),
}


def path(
    tape: rlpg.Tape, gain: Tensor, baseline: Callable[[int, Tensor], Tensor] | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Steps t with the state and the action `[lanes, 1]` chosen in it."""
    lanes = tape.num_lanes
    x = SYSTEM.start.expand(lanes, 1)
    for t in range(SYSTEM.num_steps):
        policy = Independent(Normal(gain.reshape(-1, 1) * x, STD), 1)
        u = tape.sample(policy, baseline=baseline and baseline(t, x))
        yield t, x, u
        x, _ = SYSTEM.step(x, u, torch.randn(lanes, 1, dtype=torch.float64))


def reward(x: Tensor, u: Tensor) -> Tensor:
    """`[lanes]`."""
    return SYSTEM.step(x, u, torch.zeros_like(x))[1]


def value(t: int, x: Tensor) -> Tensor:
    """`[lanes]` V_t(x)."""
    return -(VALUE.p[t, 0, 0] * x[:, 0].square() + VALUE.c[t])


def action_value(t: int, x: Tensor, u: Tensor) -> Tensor:
    """`[lanes]` Q_t(x, u), the mean over w of reward and next value."""
    expected, paid = SYSTEM.step(x, u, torch.zeros_like(x))
    return paid + value(t + 1, expected) - VALUE.p[t + 1, 0, 0] * SYSTEM.c[0, 0] ** 2


def exact(num_steps: int = SYSTEM.num_steps) -> dict[str, Polynomial]:
    """What each estimator computes from one path, as a polynomial in its draws eps_t and w_t.

    Written from the definitions, without tape or autograd: `d log p / dK = eps_t x_t / std`, and
    along the path `dx_{t+1}/dK = A dx_t/dK + B (x_t + K dx_t/dK)`.
    """
    a, b, c, q, r = (float(m) for m in (SYSTEM.a, SYSTEM.b, SYSTEM.c, SYSTEM.q, SYSTEM.r))
    system = LinearQuadratic(*(getattr(SYSTEM, name) for name in "abcqr"), SYSTEM.start, num_steps)
    values = system.value(MATRIX, DEVIATION)
    p, constant = values.p[:, 0, 0].tolist(), values.c.tolist()
    noise = normals(2 * num_steps)
    x, dx = Polynomial.constant(float(SYSTEM.start)), Polynomial.constant(0.0)
    rewards, scores, states, advantages, slopes, paths = [], [], [], [], [], []
    for t in range(num_steps):
        eps, w = noise[2 * t : 2 * t + 2]
        u, du = GAIN * x + STD * eps, x + GAIN * dx
        mean = a * x + b * u  # of the next state
        here = (p[t] * x * x + constant[t]) * -1.0
        there = (p[t + 1] * mean * mean + (p[t + 1] * c**2 + constant[t + 1])) * -1.0
        paid = (q * x * x + r * u * u) * -1.0
        rewards.append(paid)
        scores.append(eps * x * (1 / STD))
        states.append(here)
        advantages.append(paid + there - here)
        slopes.append(-2 * ((r + b * b * p[t + 1]) * GAIN + b * p[t + 1] * a) * x * x)
        paths.append(-2 * (q * x * dx + r * u * du))
        x, dx = mean + c * w, a * dx + b * du
    to_go = [sum(rewards[t:]) for t in range(num_steps)]
    total = float(values.p[0, 0, 0]) * -1.0 * float(SYSTEM.start) ** 2 - constant[0]
    return {
        "REINFORCE": sum(scores) * to_go[0],
        "mean baseline": sum(scores) * (to_go[0] - total),
        "reward-to-go": sum(s * g for s, g in zip(scores, to_go, strict=True)),
        "state baseline": sum(s * (g - v) for s, g, v in zip(scores, to_go, states, strict=True)),
        "exact advantage": sum(s * d for s, d in zip(scores, advantages, strict=True)),
        "pathwise": sum(paths),
        "all-action": sum(slopes),
    }


def measure(*, num_lanes: int, repeats: int, seed: int) -> list[Line]:
    """Mean and variance per path of every rung, by `compare`."""
    lines = []
    for k, (name, polynomial) in enumerate(exact().items()):
        rung = LADDER[name]
        gain = torch.tensor(GAIN, dtype=torch.float64, requires_grad=True)
        found = rlpg.compare(
            lambda tape, _, rung=rung, gain=gain: rung.program(tape, gain),
            {"K": gain},
            {name: rung.tape},
            num_lanes=num_lanes,
            repeats=repeats,
            reference={"K": torch.tensor(GRADIENT)},
            seed=len(LADDER) * seed + k,  # else the rungs would share their draws
        )
        gradients = found.gradients[name][:, 0]
        variance = polynomial.variance()
        lines.append(line(gradients, name, "K", GRADIENT, variance, scale=num_lanes))
    return lines


def draw(lines: list[Line], repeats: int) -> Figure:
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    names = [row.estimator for row in lines]
    known = [row.exact_variance for row in lines]
    names = [name.replace(" ", "\n") for name in names]
    axes.bar(names, known, width=0.62, color="#b9cfe6", label="exact")
    axes.errorbar(
        names,
        [row.variance for row in lines],
        yerr=[2 * row.variance * math.sqrt(2 / repeats) for row in lines],
        fmt="o",
        color="#16324f",
        markersize=4,
        capsize=4,
        label="measured, 2 standard errors",
    )
    for k, variance in enumerate(known):
        axes.annotate(
            f"{variance:#.3g}".rstrip("."),
            (k, variance),
            (0, 9),
            textcoords="offset points",
            ha="center",
        )
    axes.set(yscale="log", ylim=(0.7, 900), ylabel="variance of one path's gradient")
    axes.set_title("Linear-quadratic control: seven unbiased estimators of dJ/dK = -3.72")
    axes.tick_params(axis="x", labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    options = arguments(__doc__)
    num_lanes, repeats = 100, 200 if options.quick else 2000
    lines = measure(num_lanes=num_lanes, repeats=repeats, seed=options.seed)
    print(f"expected return {RETURN:.4f}, exact gradient {GRADIENT:.4f}\n\n{table(lines)}")
    save(options.out, "lqr_ladder", draw(lines, repeats), {"seed": options.seed, "lines": lines})


if __name__ == "__main__":
    main()

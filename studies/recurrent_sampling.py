#!/usr/bin/env python
"""Sampling inside a recurrent model: each step's sample is the next step's input.

    studies/recurrent_sampling.py [--seed 0] [--quick] [--out docs/pictures]

Linear case: x' ~ N(a x + b, s^2) from x = 1, and the loss is the squared distance to a sine, along
the way and fourfold at the end. Its expectation follows from the recursions of mean and variance;
what each estimator makes of one path is a polynomial in the path's noise, so its variance is known
exactly as well. Then a GRU that predicts mean and deviation, trained to draw a noisy sine. And
`torch.normal`, which takes parameters that carry a gradient and gives none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import study
import torch
from gaussian_polynomials import Polynomial, normals
from matplotlib.figure import Figure
from study import Line, arguments, line, per_lane, save, table
from torch import Tensor, nn
from torch.distributions import Normal

import rlpg
from rlpg.errors import RlpgError

START = {"a": 0.9, "b": 0.1, "s": 0.3}
STEPS, PERIOD, AT_END = 8, 12, 4.0
NOISE, LEAST = 0.1, 0.05  # of the sine, and deviation that the GRU predicts at least
TAPES: Mapping[str, Callable[[], rlpg.Tape]] = {
    "score": lambda: rlpg.Tape("score"),
    "score, leave one out": lambda: rlpg.Tape("score", baseline=rlpg.LeaveOneOut()),
    "pathwise": lambda: rlpg.Tape("pathwise"),
}


def target(t: int) -> float:
    return math.sin(2 * math.pi * t / PERIOD)


def weight(t: int, steps: int) -> float:
    return AT_END if t == steps else 1.0


def linear(tape: rlpg.Tape, leaf: Mapping[str, Tensor], steps: int = STEPS) -> None:
    a, b, s = (leaf[name] for name in START)  # [lanes]
    x = torch.ones_like(a)
    for t in range(1, steps + 1):
        x = tape.sample(Normal(a * x + b, s))
        tape.add(weight(t, steps) * (x - target(t)).square())


def expected_loss(a: Tensor, b: Tensor, s: Tensor, steps: int = STEPS) -> Tensor:
    """`sum_t w_t ((m_t - y_t)^2 + v_t)` with m' = a m + b and v' = a^2 v + s^2."""
    mean, variance, loss = torch.ones_like(a), torch.zeros_like(a), torch.zeros_like(a)
    for t in range(1, steps + 1):
        mean, variance = a * mean + b, a**2 * variance + s**2
        loss = loss + weight(t, steps) * ((mean - target(t)) ** 2 + variance)
    return loss


def exact_gradient(steps: int = STEPS) -> dict[str, float]:
    leaf = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in START.values()]
    found = torch.autograd.grad(expected_loss(*leaf, steps=steps), leaf)
    return dict(zip(START, map(float, found), strict=True))


def exact(steps: int = STEPS) -> dict[tuple[str, str], Polynomial]:
    """What the estimators compute from one path, by estimator and parameter.

    Written from the definitions: with x' = a x + b + s eps, `d log p` is eps / s times x, 1 or eps
    for a, b and s; along the path, dx' = a dx plus the same x, 1 or eps. The baseline is what
    leaving one out tends to: the mean of what is still to come.
    """
    a, b, s = START.values()
    noise = normals(steps)
    x = Polynomial.constant(1.0)
    path = dict.fromkeys(START, Polynomial.constant(0.0))
    losses, direct = [], []
    slopes = dict.fromkeys(START, Polynomial.constant(0.0))
    for t in range(1, steps + 1):
        eps = noise[t - 1]
        direct.append({"a": x, "b": Polynomial.constant(1.0), "s": eps})
        path = {name: a * path[name] + direct[-1][name] for name in START}
        x = a * x + b + s * eps
        off = x - target(t)
        losses.append(weight(t, steps) * off * off)
        slopes = {name: slopes[name] + 2 * weight(t, steps) * off * path[name] for name in START}
    found = {}
    for name in START:
        plain = centered = Polynomial.constant(0.0)
        for t in range(steps):
            score, to_go = noise[t] * direct[t][name] * (1 / s), sum(losses[t:])
            score = score - 1 / s if name == "s" else score
            plain = plain + score * to_go
            centered = centered + score * (to_go - to_go.mean())
        found["score", name] = plain
        found["score, leave one out", name] = centered
        found["pathwise", name] = slopes[name]
    return found


def measure(*, num_lanes: int, seed: int, steps: int = STEPS) -> list[Line]:
    gradient, polynomials = exact_gradient(steps), exact(steps)
    lines = []
    for k, (name, make) in enumerate(TAPES.items()):
        found = per_lane(
            lambda tape, leaf: linear(tape, leaf, steps), make(), START, num_lanes, seed + k
        )
        for parameter, samples in found.items():
            variance = polynomials[name, parameter].variance()
            lines.append(line(samples, name, parameter, gradient[parameter], variance))
    return lines


def torch_normal(tape: rlpg.Tape, leaf: Mapping[str, Tensor], lanes: int) -> Tensor:
    """The linear case with `torch.normal`: runs, back-propagates, and every gradient is 0."""
    x, total = torch.ones(lanes, dtype=torch.float64), torch.zeros(lanes, dtype=torch.float64)
    for t in range(1, STEPS + 1):
        x = torch.normal(leaf["a"] * x + leaf["b"], leaf["s"].expand(lanes))
        loss = weight(t, STEPS) * (x - target(t)).square()
        tape.add(loss)
        total = total + loss
    return total.mean()


def what_torch_normal_does() -> tuple[dict[str, float], str]:
    """Its gradients, and what `gradcheck` says of them."""
    leaf = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in START.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = torch_normal(rlpg.Tape(), leaf, 1000)
    found = torch.autograd.grad(loss, list(leaf.values()))
    try:
        rlpg.gradcheck(lambda tape, lanes: torch_normal(tape, leaf, lanes), leaf, "pathwise")
    except RlpgError as error:
        return dict(zip(leaf, map(float, found), strict=True)), str(error)
    return dict(zip(leaf, map(float, found), strict=True)), "agrees"


class Recurrent(nn.Module):
    """Predicts mean and deviation of the next point of a curve from those it has drawn so far."""

    def __init__(self, num_hidden: int = 16) -> None:
        super().__init__()
        self.cell = nn.GRUCell(1, num_hidden)
        self.head = nn.Linear(num_hidden, 2)

    def draw(self, tape: rlpg.Tape, lanes: int, steps: int = PERIOD) -> Tensor:
        """`[steps, lanes]` samples; the loss is the squared distance to a noisy sine."""
        x, carry = torch.zeros(lanes), None
        points = []
        for t in range(1, steps + 1):
            carry = self.cell(x[:, None], carry)
            mean, spread = self.head(carry).unbind(1)
            x = tape.sample(Normal(mean, LEAST + nn.functional.softplus(spread)))
            noisy = target(t) + NOISE * torch.randn(lanes)
            tape.add(weight(t, steps) * (x - noisy).square())
            points.append(x.detach())
        return torch.stack(points)


def recurrent(seed: int) -> Recurrent:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Recurrent()


def spreads(model: Recurrent, *, repeats: int, seed: int) -> dict[str, float]:
    """Variance per lane of the whole gradient, by estimator."""

    def program(tape: rlpg.Tape, lanes: int) -> None:
        model.draw(tape, lanes)

    found = rlpg.compare(
        program,
        dict(model.named_parameters()),
        TAPES,
        num_lanes=100,
        repeats=repeats,
        seed=seed,
    )
    return {
        name: sum(row.variance_per_lane for row in found.rows if row.estimator == name)
        for name in TAPES
    }


def train(name: str, *, updates: int, seed: int, lanes: int = 50) -> tuple[Recurrent, list[float]]:
    """The model trained with one estimator, and its loss at each update."""
    model, losses = recurrent(seed), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(updates):
            tape = TAPES[name]()
            model.draw(tape, lanes)
            surrogate = tape.surrogate()
            optimizer.zero_grad()
            surrogate.backward()
            optimizer.step()
            losses.append(surrogate.item())
    return model, losses


COLORS = {
    name: study.COLORS[kind]
    for name, kind in zip(TAPES, ("score", "score, baseline", "pathwise"), strict=True)
}
HORIZONS = (1, 2, 3, 4, 6, 8, 10)


def draw(
    by_horizon: Mapping[int, list[Line]], curves: Mapping[str, list[float]], model: Recurrent
) -> Figure:
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    variances, learning, samples = figure.subplots(1, 3)
    for name, color in COLORS.items():
        rows = [
            next(r for r in by_horizon[h] if (r.estimator, r.parameter) == (name, "a"))
            for h in HORIZONS
        ]
        variances.plot(HORIZONS, [r.exact_variance for r in rows], color=color, linewidth=1.4)
        variances.plot(HORIZONS, [r.variance for r in rows], "o", color=color, ms=4, label=name)
        width = max(len(curves[name]) // 60, 1)
        smooth = torch.tensor(curves[name])[: len(curves[name]) // width * width]
        smooth = smooth.reshape(-1, width).mean(1)
        learning.plot([width * (k + 0.5) for k in range(len(smooth))], smooth, color=color)
    # What no model can avoid: the target's noise, and the least deviation the head allows.
    total = sum(weight(t, PERIOD) for t in range(1, PERIOD + 1))
    floor = total * (NOISE**2 + LEAST**2)
    learning.axhline(floor, color="#222222", linestyle="--", linewidth=1)
    learning.annotate("least possible", (0, floor), (2, -11), textcoords="offset points", size=8)
    variances.set(yscale="log", xlabel="steps", title="linear: variance of one lane's d/da")
    learning.set(yscale="log", ylim=(0.12, None), xlabel="update", title="GRU: loss while learning")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        points = model.draw(rlpg.Tape("pathwise"), 40)
    times = range(1, len(points) + 1)
    samples.plot(times, points, color=COLORS["pathwise"], alpha=0.25, linewidth=0.8)
    samples.plot(times, [target(t) for t in times], color="#222222", linestyle="--", label="sine")
    samples.set(xlabel="step", xticks=(1, 3, 6, 9, 12), title="GRU, pathwise: 40 samples")
    samples.legend(frameon=False, fontsize=8)
    handles = variances.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    for axis in (variances, learning, samples):
        axis.title.set_fontsize(10.5)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    options = arguments(__doc__)
    num_lanes, updates, repeats = (5_000, 40, 20) if options.quick else (100_000, 600, 100)
    seed = 1000 * options.seed
    by_horizon = {h: measure(num_lanes=num_lanes, seed=seed + 10 * h, steps=h) for h in HORIZONS}
    print(f"linear, {STEPS} steps\n\n{table(by_horizon[STEPS])}\n")
    gradients, verdict = what_torch_normal_does()
    print(f"torch.normal: {gradients}\n{verdict}\n")
    noise = spreads(recurrent(options.seed), repeats=repeats, seed=options.seed)
    print("GRU, variance of one lane's whole gradient")
    curves, models = {}, {}
    for name in TAPES:
        models[name], curves[name] = train(name, updates=updates, seed=options.seed)
        last = sum(curves[name][-20:]) / 20
        print(f"  {name:20}  {noise[name]:10.4g}   loss after {updates} updates {last:.3f}")
    content = {
        "seed": options.seed,
        "lines": by_horizon[STEPS],
        "torch.normal": gradients,
        "gru_variance": {name: float(f"{value:.4g}") for name, value in noise.items()},
        "gru_loss": {name: round(sum(curve[-20:]) / 20, 4) for name, curve in curves.items()},
    }
    save(options.out, "recurrent_sampling", draw(by_horizon, curves, models["pathwise"]), content)


if __name__ == "__main__":
    main()

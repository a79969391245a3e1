#!/usr/bin/env python
"""Fifty particles, their mean and deviation, fifty new ones: whom does the loss belong to?

    studies/fifty_particles.py [--seed 0] [--quick] [--out docs/pictures]

x_i ~ N(mu, 1); the network makes z_i = w x_i of them; K times the batch's mean and standard
deviation give new particles that go through the network again; the loss is the mean of z_i^2 at
the end. Three ways to differentiate with respect to mu: along the path; score with the whole
batch's loss for every particle; score with the shaped reward of `tape.resample`. Then the same
with w z replaced by tanh, and the difference between the objective of N particles and of
infinitely many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import study
import torch
from matplotlib.figure import Figure
from scipy.special import roots_genlaguerre, roots_hermitenorm
from study import Line, arguments, layout, line, per_lane, save, table
from torch import Tensor
from torch.distributions import Independent, Normal

import rlpg

NUM = 50
START = {"mu": 0.25, "w": 0.9}
Network = Callable[[Tensor, Tensor], Tensor]


def linear(w: Tensor, x: Tensor) -> Tensor:
    return w * x


def bent(w: Tensor, x: Tensor) -> Tensor:
    return 2 * torch.tanh(w * x)


def cloud_loss(
    tape: rlpg.Tape, leaf: Mapping[str, Tensor], *, resamples: int, num: int = NUM
) -> Tensor:
    """`[clouds]`. A lane is a whole cloud: score credits every particle with the cloud's loss."""
    mu, w = leaf["mu"][:, None], leaf["w"][:, None]  # [clouds, 1]
    x = tape.sample(Independent(Normal(mu.expand(-1, num), 1.0), 1))
    for _ in range(resamples):
        z = w * x
        mean, deviation = z.mean(1, keepdim=True), z.std(1, keepdim=True)
        new = Normal(mean.expand(-1, num), deviation.expand(-1, num))
        x = tape.sample(Independent(new, 1))
    return (w * x).square().mean(1)


def particles(
    tape: rlpg.Tape, leaf: Mapping[str, Tensor], *, resamples: int, num: int, network: Network
) -> None:
    """A lane is a particle; lanes meet in `resample`."""
    x = tape.sample(Normal(leaf["mu"].expand(num), 1.0))
    for _ in range(resamples):
        x = tape.resample(network(leaf["w"], x))
    tape.add(network(leaf["w"], x).square())


def objective(mu: Tensor, w: Tensor, *, resamples: int, num: float = NUM) -> Tensor:
    """E of the loss with `num` particles, exactly; `math.inf` of them: no noise in M and V.

    With M the mean of a cloud and V its sample variance, w scales both; a new cloud has
    E M'^2 = E M^2 + E V / N and E V' = E V. The loss is E z^2 = E M^2 + (1 - 1/N) E V.
    """
    variance = w**2
    square = w**2 * (mu**2 + 1 / num)
    for _ in range(resamples):
        square = w**2 * (square + variance / num)
        variance = w**2 * variance
    return square + (1 - 1 / num) * variance


def exact_gradient(*, resamples: int, num: float = NUM) -> dict[str, float]:
    leaf = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in START.values()]
    value = objective(*leaf, resamples=resamples, num=num)
    return dict(zip(START, map(float, torch.autograd.grad(value, leaf)), strict=True))


def exact_variances(*, resamples: int) -> dict[str, float]:
    """Variance of d/d mu from one cloud, for every estimator that sees the cloud's loss only.

    Each cloud enters through two independent numbers: sqrt(N) times its standardized mean is
    standard normal, (N - 1) times its standardized variance chi-square. In them loss and score are
    polynomials (roots of variances appear in even powers only, once the signs of the means are
    summed over), so a product of small Gauss rules is exact. For mu only the first cloud is a
    node: score = sum_i eps_i = N mean(eps); path: dL/d mu = 2 (mean of z) w^(K + 1).
    """
    mu, w = START["mu"], START["w"]
    e, e_weight = roots_hermitenorm(5)
    v, v_weight = roots_genlaguerre(4, (NUM - 3) / 2)  # chi-square / 2
    means = zip(e / math.sqrt(NUM), e_weight / e_weight.sum(), strict=True)
    spreads = zip(2 * v / (NUM - 1), v_weight / v_weight.sum(), strict=True)
    rule = list(product(list(means), list(spreads)))
    off, chi = (np.array([pair[k][0] for pair in rule]) for k in (0, 1))
    probability = np.array([pair[0][1] * pair[1][1] for pair in rule])

    # All clouds' nodes as the axes of one grid.
    axes = [[1] * k + [-1] + [1] * (resamples - k) for k in range(resamples + 1)]
    weight = math.prod(probability.reshape(axis) for axis in axes)
    mean, variance = w * (mu + off.reshape(axes[0])), w**2 * chi.reshape(axes[0])
    for axis in axes[1:]:
        mean = w * (mean + np.sqrt(variance) * off.reshape(axis))
        variance = w**2 * variance * chi.reshape(axis)
    loss = mean**2 + (1 - 1 / NUM) * variance
    score = NUM * off.reshape(axes[0])
    baseline = (weight * loss).sum()
    estimates = {
        "score, batch loss": loss * score,
        "score, batch loss, baseline": (loss - baseline) * score,
        "pathwise": 2 * mean * w ** (resamples + 1),
    }
    return {
        name: float((weight * g**2).sum() - (weight * g).sum() ** 2)
        for name, g in estimates.items()
    }


def cloud_lines(*, resamples: int, num_clouds: int, seed: int) -> list[Line]:
    """The estimators that see whole clouds."""
    exact, variances = exact_gradient(resamples=resamples), exact_variances(resamples=resamples)
    tensors = [torch.tensor(value) for value in START.values()]
    expected = float(objective(*tensors, resamples=resamples))
    tapes = {
        "score, batch loss": rlpg.Tape("score"),
        "score, batch loss, baseline": rlpg.Tape("score", baseline=expected),
        "pathwise": rlpg.Tape("pathwise"),
    }
    lines = []
    for k, (name, tape) in enumerate(tapes.items()):
        found = per_lane(
            lambda tape, leaf: tape.add(cloud_loss(tape, leaf, resamples=resamples)),
            tape,
            START,
            num_clouds,
            seed + k,
        )
        for parameter, samples in found.items():
            known = variances[name] if parameter == "mu" else None
            lines.append(line(samples, name, parameter, exact[parameter], known))
    return lines


def shaped_lines(*, resamples: int, repeats: int, seed: int) -> list[Line]:
    """Score with the shaped reward: one cloud per surrogate. With no resample at all nothing is
    batched but the mean of the particles' own losses."""
    exact = exact_gradient(resamples=resamples)
    found = compare_particles(
        {"score": shaped_tape}, resamples=resamples, repeats=repeats, seed=seed
    )
    return [
        line(found["score"][:, k], "score, shaped", parameter, exact[parameter])
        for k, parameter in enumerate(START)
    ]


def shaped_tape() -> rlpg.Tape:
    """Shaped rewards are centered; what lanes earn themselves needs a baseline."""
    return rlpg.Tape("score", baseline=rlpg.LeaveOneOut())


def compare_particles(
    how: Mapping[str, Callable[[], rlpg.Tape]],
    *,
    resamples: int,
    repeats: int,
    seed: int,
    num: int = NUM,
    network: Network = linear,
) -> Mapping[str, Tensor]:
    """`[repeats, 2]` gradients by estimator, from `compare`."""
    leaf = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in START.items()}
    return rlpg.compare(
        lambda tape, num: particles(tape, leaf, resamples=resamples, num=num, network=network),
        leaf,
        how,
        num_lanes=num,
        repeats=repeats,
        seed=seed,
    ).gradients


@dataclass(frozen=True)
class Bent:
    """A network that is not linear: the shaped reward's mean beside the path's."""

    num: int
    parameter: str
    pathwise: float
    shaped: float
    error: float  # standard error of the difference


def bent_network(num: int, *, repeats: int, seed: int) -> list[Bent]:
    found = compare_particles(
        {"pathwise": lambda: rlpg.Tape("pathwise"), "score": shaped_tape},
        resamples=2,
        repeats=repeats,
        seed=seed,
        num=num,
        network=bent,
    )
    path, shaped = found["pathwise"], found["score"]
    error = ((path.var(0) + shaped.var(0)) / repeats).sqrt()
    return [
        Bent(num, name, float(path.mean(0)[k]), float(shaped.mean(0)[k]), float(error[k]))
        for k, name in enumerate(START)
    ]


COLORS = {
    "score, batch loss": study.COLORS["score"],
    "score, batch loss, baseline": study.COLORS["score, baseline"],
    "score, shaped": study.COLORS["score, shaped"],
    "pathwise": study.COLORS["pathwise"],
}
RESAMPLES = (0, 1, 2, 3)
COUNTS = (3, 5, 10, 20, 50, 100)


def finite(*, num_clouds: int, seed: int, resamples: int = 3) -> dict[int, tuple[float, float]]:
    """Mean and standard error of the loss of N particles, by N."""
    found = {}
    for num in COUNTS:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed + num)
            leaf = {k: torch.full((num_clouds,), v, dtype=torch.float64) for k, v in START.items()}
            loss = cloud_loss(rlpg.Tape("pathwise"), leaf, resamples=resamples, num=num)
        found[num] = float(loss.mean()), float(loss.std()) / math.sqrt(num_clouds)
    return found


def draw(
    lines: Mapping[int, list[Line]], values: Mapping[int, tuple[float, float]], resamples: int = 3
) -> Figure:
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    variances, objectives = figure.subplots(1, 2)
    known = [exact_variances(resamples=k) for k in RESAMPLES]
    for name, color in COLORS.items():
        points = [
            row.variance
            for k in RESAMPLES
            for row in lines[k]
            if row.estimator == name and row.parameter == "mu"
        ]
        if name in known[0]:
            variances.plot(RESAMPLES, [k[name] for k in known], color=color, linewidth=1.4)
        else:
            variances.plot(RESAMPLES, points, ":", color=color, linewidth=1)
        variances.plot(RESAMPLES, points, "o", color=color, markersize=5, label=name)
    variances.set(
        yscale="log",
        xticks=RESAMPLES,
        ylim=(0.02, 800),
        xlabel="resamplings",
        ylabel="variance of d loss / d mu from 50 particles",
    )
    first = known[0]
    for name in ("score, batch loss", "score, batch loss, baseline"):
        ratio = first[name] / first["pathwise"]
        variances.annotate(
            f"{ratio:.0f} times pathwise", (0, first[name]), (6, 7), textcoords="offset points"
        )
    variances.legend(frameon=False, fontsize=9, loc="upper right", ncols=2)
    fine = np.geomspace(COUNTS[0], COUNTS[-1], 60)
    mu, w = (torch.tensor(value, dtype=torch.float64) for value in START.values())
    curve = [float(objective(mu, w, resamples=resamples, num=n)) for n in fine]
    objectives.plot(fine, curve, color="0.45", label="N particles, exact")
    infinite = float(objective(mu, w, resamples=resamples, num=math.inf))
    objectives.axhline(infinite, color="#222222", linestyle="--", label="infinitely many")
    objectives.errorbar(
        list(values),
        [mean for mean, _ in values.values()],
        yerr=[4 * error for _, error in values.values()],
        fmt="o",
        color="#16324f",
        markersize=4,
        capsize=3,
        label="measured, 4 standard errors",
    )
    objectives.set(
        xscale="log", xlabel="particles N", ylabel=f"expected loss, {resamples} resamplings"
    )
    objectives.set_xticks(COUNTS, [str(n) for n in COUNTS])
    objectives.minorticks_off()
    objectives.legend(frameon=False, fontsize=9)
    variances.set_title("the gradient's noise", fontsize=11)
    objectives.set_title(
        f"the objective is that of N particles ({resamples} resamplings)", fontsize=11
    )
    for axis in (variances, objectives):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    options = arguments(__doc__)
    num_clouds, repeats = (2_000, 200) if options.quick else (20_000, 2_000)
    seed = 1000 * options.seed
    lines = {}
    for k in RESAMPLES:
        lines[k] = cloud_lines(resamples=k, num_clouds=num_clouds, seed=seed + 10 * k)
        lines[k] += shaped_lines(resamples=k, repeats=repeats, seed=seed + k)
        print(f"{k} resamplings, {NUM} particles\n\n{table(lines[k])}\n")
    ratios = []
    for k in RESAMPLES:
        by_name = {row.estimator: row.variance for row in lines[k] if row.parameter == "mu"}
        exact, path = exact_variances(resamples=k), by_name["pathwise"]
        ratios.append(
            {
                "resamplings": k,
                **{name: round(by_name[name] / path, 2) for name in list(COLORS)[:3]},
                "exact": [round(v / exact["pathwise"], 1) for v in list(exact.values())[:2]],
            }
        )
    names = list(ratios[0])
    print("variance for mu, pathwise = 1")
    print(layout([names, *([str(row[name]) for name in names] for row in ratios)], left=0))
    bias = [
        row for num in (5, 10, NUM) for row in bent_network(num, repeats=2 * repeats, seed=seed + 7)
    ]
    print("\na network that is not linear, 2 resamplings")
    head = ("particles", "parameter", "pathwise", "shaped", "standard error")
    rows = [
        (str(b.num), b.parameter, f"{b.pathwise:.4f}", f"{b.shaped:.4f}", f"{b.error:.4f}")
        for b in bias
    ]
    print(layout([head, *rows], left=2))
    for num in (NUM, math.inf):
        print(f"exact gradient, {num} particles: {exact_gradient(resamples=3, num=num)}")
    content = {
        "seed": options.seed,
        "ratios": ratios,
        "lines": {str(k): rows for k, rows in lines.items()},
        "tanh": [vars(b) for b in bias],
    }
    values = finite(num_clouds=num_clouds, seed=seed)
    save(options.out, "fifty_particles", draw(lines, values), content)


if __name__ == "__main__":
    main()

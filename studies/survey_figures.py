#!/usr/bin/env python
"""Figures 2 and 3 of the survey of Monte-Carlo gradients, with exact curves under the points.

    studies/survey_figures.py [--seed 0] [--quick] [--out docs/pictures]

The variance of one sample's estimate of `d/d theta E f(x; k)`, x ~ N(mu, sigma^2) at mu = sigma =
1, for theta = mu and theta = sigma and three costs f: `(x - k)^2`, `exp(-k x^2)`, `cos(k x)`.

Source: Mohamed, Rosca, Figurnov & Mnih 2020, Monte Carlo gradient estimation in machine learning,
JMLR 21(132), figures 2 and 3. Their score function with variance reduction subtracts a moving
average; here it is the best constant there is.
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
from matplotlib.ticker import NullLocator
from numpy.polynomial import Polynomial
from study import Line, arguments, line, per_lane, save, table
from torch import Tensor
from torch.distributions import Normal

import rlpg

MEAN = SCALE = 1.0
ONE = Polynomial([1.0])
EPS = Polynomial([0.0, 1.0])  # the standard normal behind x = MEAN + SCALE eps
X = MEAN + SCALE * EPS


@dataclass(frozen=True)
class Tilted:
    """A function of eps: the sum of `P(eps) exp(-a x^2 + i b x)` over its terms (P, a, b)."""

    terms: tuple[tuple[Polynomial, float, float], ...]

    def __mul__(self, other: Tilted) -> Tilted:
        pairs = product(self.terms, other.terms)
        return Tilted(tuple((p * q, a + c, b + d) for (p, a, b), (q, c, d) in pairs))

    def __add__(self, other: Tilted) -> Tilted:
        return Tilted(self.terms + other.terms)

    def slope(self) -> Tilted:
        """The derivative with respect to x."""
        return Tilted(
            tuple((p.deriv() / SCALE + p * (1j * b - 2 * a * X), a, b) for p, a, b in self.terms)
        )

    def mean(self) -> float:
        """`E` over eps. Completing the square, each term is a Gaussian integral:

        -eps^2 / 2 - a x^2 + i b x = C + B eps - A eps^2 / 2   gives
        E = A^(-1/2) exp(C + B^2 / (2 A)) E[P(z)],  z of mean m = B / A and variance 1 / A,

        and `E z^(n+1) = m E z^n + (n / A) E z^(n-1)` also where m is complex.
        """
        total = 0.0 + 0.0j
        for p, a, b in self.terms:
            width = 1 + 2 * a * SCALE**2
            middle = (1j * b * SCALE - 2 * a * MEAN * SCALE) / width
            moments = [1.0 + 0.0j, middle]
            for n in range(1, len(p.coef)):
                moments.append(middle * moments[n] + n / width * moments[n - 1])
            constant = 1j * b * MEAN - a * MEAN**2 + middle**2 * width / 2
            here = sum(c * m for c, m in zip(p.coef, moments, strict=False))
            total += np.exp(constant) / math.sqrt(width) * here
        return total.real

    def moments(self) -> tuple[float, float, float]:
        """Mean, variance and fourth central moment."""
        mean = float(self.mean())
        off = self + polynomial(-mean * ONE)
        square = off * off
        return mean, float(square.mean()), float((square * square).mean())


def polynomial(p: Polynomial) -> Tilted:
    return Tilted(((p, 0.0, 0.0),))


@dataclass(frozen=True)
class Cost:
    """f as a formula for torch, the same for exact moments, and the k to look at."""

    formula: str
    of: Callable[[Tensor, float], Tensor]
    exact: Callable[[float], Tilted]
    k: np.ndarray
    floor: float  # of the picture
    ticks: tuple[float, ...] = ()

    @property
    def logarithmic(self) -> bool:
        return bool(self.ticks)


COSTS: Mapping[str, Cost] = {
    "quadratic": Cost(
        "$(x - k)^2$",
        lambda x, k: (x - k).square(),
        lambda k: polynomial((X - k) ** 2),
        np.linspace(-3, 3, 13),
        floor=0.1,
    ),
    "exponential": Cost(
        r"$\exp(-k x^2)$",
        lambda x, k: torch.exp(-k * x.square()),
        lambda k: Tilted(((ONE, k, 0.0),)),
        np.geomspace(0.1, 10, 13),
        floor=1e-3,
        ticks=(0.1, 0.3, 1, 3, 10),
    ),
    "cosine": Cost(
        r"$\cos\,k x$",
        lambda x, k: torch.cos(k * x),
        lambda k: Tilted(((0.5 * ONE, 0.0, k), (0.5 * ONE, 0.0, -k))),
        np.geomspace(0.5, 5, 13),
        floor=1e-3,
        ticks=(0.5, 1, 2, 3, 5),
    ),
}
SCORE = {"mu": EPS / SCALE, "sigma": (EPS**2 - 1) / SCALE}  # d log p / d theta
PATH = {"mu": ONE, "sigma": EPS}  # dx / d theta
TAPES: Mapping[str, Callable[[], rlpg.Tape]] = {
    "score": lambda: rlpg.Tape("score"),
    "score, best constant": lambda: rlpg.Tape("score", baseline=rlpg.OptimalConstant()),
    "pathwise": lambda: rlpg.Tape("pathwise"),
    "weak, coupled": lambda: rlpg.Tape("weak"),
}


def moments(cost: str, parameter: str, estimator: str, k: float) -> tuple[float, float, float]:
    """Exact mean, variance and fourth central moment of one sample's estimate."""
    f = COSTS[cost].exact(k)
    if estimator == "pathwise":
        estimate = f.slope() * polynomial(PATH[parameter])
    elif estimator == "weak, coupled":
        return weak_moments(COSTS[cost], parameter, k)
    else:
        score = polynomial(SCORE[parameter])
        if estimator == "score, best constant":
            # The minimum of E (f - b)^2 s^2, from b E s^2 = E f s^2.
            constant = (f * score * score).mean() / (score * score).mean()
            f = f + polynomial(-constant * ONE)
        estimate = f * score
    return estimate.moments()


def weak_moments(cost: Cost, parameter: str, k: float) -> tuple[float, float, float]:
    """The same of `c (f(x+) - f(x-))` by Gauss-Legendre quadrature over what couples x+ and x-.

    mu: x+- = mean +- scale R, R Rayleigh, c = 1 / (scale sqrt(2 pi)); sigma: x+ = mean + scale M,
    x- = mean + scale M U, M a Maxwell variable with random sign, U uniform, c = 1 / scale.
    """
    node, weight = np.polynomial.legendre.leggauss(120)
    r, dr = 5 * (node + 1), 5 * weight  # on [0, 10]
    gauss = np.exp(-(r**2) / 2)
    if parameter == "mu":
        factor, probability = 1 / (SCALE * math.sqrt(2 * math.pi)), dr * r * gauss
        above, below = MEAN + SCALE * r, MEAN - SCALE * r
    else:
        node, weight = np.polynomial.legendre.leggauss(60)
        both = np.concatenate([r, -r])[:, None]
        density = np.tile(dr * r**2 * gauss, 2) / math.sqrt(2 * math.pi)
        factor, probability = 1 / SCALE, np.outer(density, weight / 2)
        above, below = MEAN + SCALE * both, MEAN + SCALE * both * (node + 1) / 2
    up, down = (cost.of(torch.from_numpy(x), k).numpy() for x in (above, below))
    estimate = factor * (up - down)
    mean = float((probability * estimate).sum())
    off = (estimate - mean) ** 2
    return mean, float((probability * off).sum()), float((probability * off**2).sum())


def measure(*, num_lanes: int, seed: int) -> dict[tuple[str, str, str, float], Line]:
    """The line of every cost, parameter, estimator and k."""
    lines = {}
    for cost, parameter, estimator in product(COSTS, SCORE, TAPES):
        for k in COSTS[cost].k.tolist():

            def program(
                tape: rlpg.Tape, leaf: Mapping[str, Tensor], parameter=parameter, cost=cost, k=k
            ) -> None:
                theta = leaf[parameter]
                fixed = torch.ones_like(theta)
                loc, scale = (theta, fixed) if parameter == "mu" else (fixed, theta)
                tape.add(COSTS[cost].of(tape.sample(Normal(loc, scale)), k))

            found = per_lane(
                program, TAPES[estimator](), {parameter: 1.0}, num_lanes, seed + len(lines)
            )
            label = f"{cost}, k = {k:.3g}: {estimator}"
            exact = moments(cost, parameter, estimator, k)
            lines[cost, parameter, estimator, k] = line(found[parameter], label, parameter, *exact)
    return lines


COLORS = {
    name: study.COLORS[kind]
    for name, kind in zip(TAPES, ("score", "score, baseline", "pathwise", "weak"), strict=True)
}


def draw(lines: Mapping[tuple[str, str, str, float], Line]) -> Figure:
    figure = Figure(figsize=(8, 7.6), layout="constrained")
    axes = figure.subplots(3, 2, sharex="row", sharey="row")
    for row, (name, cost) in enumerate(COSTS.items()):
        space = np.geomspace if cost.logarithmic else np.linspace
        fine = space(cost.k[0], cost.k[-1], 81)
        for column, parameter in enumerate(SCORE):
            axis = axes[row, column]
            for estimator, color in COLORS.items():
                curve = [moments(name, parameter, estimator, float(k))[1] for k in fine]
                points = [lines[name, parameter, estimator, float(k)].variance for k in cost.k]
                axis.plot(fine, curve, color=color, linewidth=1.3)
                axis.plot(cost.k, points, "o", color=color, markersize=4, label=estimator)
            axis.set(yscale="log", xlabel="k", xscale="log" if cost.logarithmic else "linear")
            axis.set_ylim(bottom=cost.floor)
            if cost.logarithmic:
                axis.set_xticks(cost.ticks, [f"{k:g}" for k in cost.ticks])
                axis.xaxis.set_minor_locator(NullLocator())
            theta = r"\mu" if parameter == "mu" else r"\sigma"
            axis.set_title(rf"{cost.formula}, $\theta = {theta}$", fontsize=11)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25)
        axes[row, 0].set_ylabel("variance of one sample")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def main() -> None:
    options = arguments(__doc__)
    lines = measure(num_lanes=4_000 if options.quick else 40_000, seed=1000 * options.seed)
    ends = {(name, float(cost.k[i])) for name, cost in COSTS.items() for i in (0, 6, 12)}
    print(table([row for (name, _, _, k), row in lines.items() if (name, k) in ends]))
    worst = max(max(abs(row.mean_z), abs(row.variance_z)) for row in lines.values())
    print(f"\n{len(lines)} means and {len(lines)} variances, largest |z| {worst:.1f}")
    curves = {
        f"{cost}, {parameter}, {estimator}": [
            [float(f"{x:.4g}") for x in (k, row.variance, row.exact_variance)]
            for k in COSTS[cost].k.tolist()
            for row in [lines[cost, parameter, estimator, k]]
        ]
        for cost, parameter, estimator in product(COSTS, SCORE, TAPES)
    }
    content = {"seed": options.seed, "columns": ["k", "variance", "exact"], "curves": curves}
    save(options.out, "survey_figures", draw(lines), content)


if __name__ == "__main__":
    main()

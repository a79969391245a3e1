#!/usr/bin/env python
"""Total propagation through a chaotic recurrent network, against exact answers.

    studies/total_propagation.py              # all horizons, some 5 minutes of one core
    studies/total_propagation.py --quick      # fewer repeats, one minute

    s' = sigmoid(beta s W) + 0.001 noise,  W = [[-5, -25], [5, 25]],  s_0 = (0.35, 0.55)

and the objective -0.5 |1 - s_H|^2 is differentiated with respect to beta, at 2.4. Prints a table,
writes total_propagation.json and total_propagation.png in docs/pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Normal

from rlpg.gradients.baselines import LeaveOneOut
from rlpg.gradients.combine import mixing_weight
from rlpg.gradients.compare import compare
from rlpg.gradients.experiment import Problem, TapeMaker
from rlpg.gradients.tape import How, Tape

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
Array = NDArray[np.float64]

WEIGHT = np.array([[-5.0, -25.0], [5.0, 25.0]])
FIRST_STATE = np.array([0.35, 0.55])
BETA, NOISE, BATCH = 2.4, 1e-3, 1000
HORIZONS = (20, 40, 60, 80, 100)
# Parmas & Seno 2022 and its public example rnn_demo.py, at H = 100: variance times batch.
PUBLISHED = {"pathwise": 163.0, "score": 79.0, "mixed": 0.53}


def network(tape: Tape, num_lanes: int, beta: Tensor, horizon: int) -> None:
    """The program; `beta` is a number that requires grad, `[1]` or `[num_lanes, 1]`."""
    weight = torch.tensor(WEIGHT, dtype=beta.dtype)
    state = torch.tensor(FIRST_STATE, dtype=beta.dtype).expand(num_lanes, 2)
    for _ in range(horizon):
        mean = torch.sigmoid(beta * (state @ weight))
        state = tape.sample(Normal(mean, NOISE, validate_args=False))
    tape.add(-0.5 * (1 - state).square().sum(1))


@dataclass(frozen=True)
class Exact:
    """The objective, its gradient, and the variance per lane of two estimators of it."""

    objective: float
    gradient: float
    pathwise_variance: float
    score_variance: float  # baseline: the objective


def exact(beta: float, horizon: int, grid: int = 24001) -> Exact:
    """Everything by quadrature, without a random number.

    The next state depends on d = s_2 - s_1 only: d' = f(d) + sqrt(2) NOISE u, so a function of the
    state is a function of one number, and its expectation one step earlier is a convolution with a
    narrow Gaussian. With S_V = E[V(. + sqrt(2) NOISE u)], taken at f(d):

        V <- S_V,    V_beta <- S_{V_beta} + S_V' f_beta

    and the second moment of the pathwise gradient is a polynomial A z^2 + B z + C in the tangent
    z = dd/dbeta, that of the score one in the score so far; both are carried back by their three
    coefficients (Stein's identity E[u V(d + s u)] = s S_V' takes care of the score's noise).
    """
    d = np.linspace(-1.1, 1.1, grid)
    h, sigma = d[1] - d[0], math.sqrt(2) * NOISE
    half = math.ceil(12 * sigma / h)
    u = np.arange(-half, half + 1) * h / sigma
    kernel = np.exp(-0.5 * u**2)
    kernel /= kernel.sum()
    kernels = (kernel, -kernel * u / sigma, kernel * (u**2 - 1) / sigma**2)

    # The mean of the next state and its derivatives, as functions of d: [2, grid].
    slope = WEIGHT[1][:, None]  # s W = d (5, 25)
    mean = 1 / (1 + np.exp(-beta * slope * d))
    steep = mean * (1 - mean)
    mean_d, mean_beta = steep * beta * slope, steep * slope * d
    f, f_d, f_beta = mean[1] - mean[0], mean_d[1] - mean_d[0], mean_beta[1] - mean_beta[0]
    across = (mean_beta[0] + mean_beta[1]) / NOISE / math.sqrt(2)  # the score is across v + along u
    along = f_beta / NOISE / math.sqrt(2)
    corner, share = _cubic(d, f)

    def smooth(values: Array, derivative: int = 0) -> Array:
        padded = np.pad(values, half, mode="edge")
        found = np.convolve(padded, kernels[derivative], mode="valid")
        result: Array = sum(share[k] * found[corner + k] for k in range(4))  # type: ignore[assignment]
        return result

    # The last step: s = mean + NOISE (e_1, e_2), by Gauss-Hermite, exact for polynomials.
    nodes, weights = hermegauss(8)
    weights = weights / weights.sum()
    first, second = np.meshgrid(nodes, nodes, indexing="ij")
    pair = (weights[:, None] * weights[None, :])[:, :, None]
    gap = 1 - mean[:, None, None, :] - NOISE * np.stack([first, second])[:, :, :, None]
    paid = -0.5 * (gap**2).sum(0)  # [8, 8, grid]
    value = (pair * paid).sum((0, 1))
    value_beta = ((1 - mean) * mean_beta).sum(0)

    # Pathwise: the tangent of the payment is (1 - s) . (mean_d z + mean_beta).
    of_z = (gap * mean_d[:, None, None, :]).sum(0)
    of_one = (gap * mean_beta[:, None, None, :]).sum(0)
    path = [
        (pair * of_z**2).sum((0, 1)),
        2 * (pair * of_z * of_one).sum((0, 1)),
        (pair * of_one**2).sum((0, 1)),
    ]

    for _ in range(horizon - 1):
        a, b, c = (smooth(part) for part in path)
        path = [f_d**2 * a, f_d * (2 * f_beta * a + b), f_beta**2 * a + f_beta * b + c]
        value, value_beta = smooth(value), smooth(value_beta) + smooth(value, 1) * f_beta
    corner_of_start, share_of_start = _cubic(d, FIRST_STATE[1:] - FIRST_STATE[:1])

    def at_start(values: Array) -> float:
        return float(sum(share_of_start[k] * values[corner_of_start + k] for k in range(4))[0])

    objective, gradient = at_start(value), at_start(value_beta)

    # Score: E[(paid - objective)^2 (score)^2], a polynomial in the score so far.
    excess = (paid - objective) ** 2
    last = (mean_beta[0] * first[:, :, None] + mean_beta[1] * second[:, :, None]) / NOISE
    a = (pair * excess).sum((0, 1))
    b = 2 * (pair * excess * last).sum((0, 1))
    c = (pair * excess * last**2).sum((0, 1))
    for _ in range(horizon - 1):
        s_a, s_b, slope_a, slope_b = smooth(a), smooth(b), smooth(a, 1), smooth(b, 1)
        bend = smooth(a, 2)
        c = (
            (across**2 + along**2) * s_a
            + along**2 * sigma**2 * bend
            + along * sigma * slope_b
            + smooth(c)
        )
        b = 2 * along * sigma * slope_a + s_b
        a = s_a
    return Exact(
        objective,
        gradient,
        at_start(path[2]) - gradient**2,
        at_start(c) - gradient**2,
    )


def _cubic(grid: Array, at: Array) -> tuple[NDArray[np.int64], list[Array]]:
    """For each point the first of four neighbors on the grid, and their weights (Lagrange).

    A spline would let the huge values of the second moment ring into the small ones.
    """
    place = (at - grid[0]) / (grid[1] - grid[0])
    corner = np.floor(place).astype(np.int64) - 1
    t = place - corner - 1
    share = [
        -t * (t - 1) * (t - 2) / 6,
        (t + 1) * (t - 1) * (t - 2) / 2,
        -(t + 1) * t * (t - 2) / 2,
        (t + 1) * t * (t - 1) / 6,
    ]
    return corner, share


def by_hand(
    noise: Tensor, beta: float, measured_on: Literal["state", "beta"], *, crossed: bool
) -> Tensor:
    """`[N]` total propagation's gradient by its recursion alone: no tape, no autograd.

    Args:
        noise: `[H, N, 2]` standard normal.
        measured_on: what the variances are those of: the gradient of each step's mean, or that
            mean's contribution to beta's gradient, lane by lane: as published, and as the tape does
            with `per_lane(beta)`.
        crossed: weights swapped between even and odd lanes, with the covariance; else published.
    """
    weight = torch.tensor(WEIGHT, dtype=noise.dtype)
    state = torch.tensor(FIRST_STATE, dtype=noise.dtype).expand(noise.shape[1], 2)
    steps = []
    for e in noise:
        inner = state @ weight
        mean = torch.sigmoid(beta * inner)
        steep = mean * (1 - mean)
        steps.append((e, steep * beta, steep * inner))
        state = mean + NOISE * e
    paid = -0.5 * (1 - state).square().sum(1)
    half = [(paid[k::2].sum() - paid[k::2]) / (len(paid[k::2]) - 1) for k in (0, 1)]
    others = torch.stack(half, dim=1).reshape(-1)
    gain = (paid - others)[:, None]

    def backward(shares: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """The gradient lane by lane, and the weights that each half suggests for itself; mixed by
        the given weights, or by these."""
        carried, total, own = 1 - state, torch.zeros_like(paid), []
        for t, (e, by_inner, by_beta) in enumerate(reversed(steps)):
            score = gain * e / NOISE
            of_path, of_score = carried, score
            if measured_on == "beta":
                of_path = (carried * by_beta).sum(1, keepdim=True)
                of_score = (score * by_beta).sum(1, keepdim=True)
            k = torch.empty_like(gain)
            if crossed:
                k[0::2] = mixing_weight(of_path[0::2], of_score[0::2])
                k[1::2] = mixing_weight(of_path[1::2], of_score[1::2])
            else:
                k[:] = mixing_weight(of_path, of_score, exact_ivw=True)
            own.append(k)
            k = k if shares is None else shares[t]
            mixed = k * score + (1 - k) * carried
            total += (mixed * by_beta).sum(1)
            carried = (mixed * by_inner) @ weight.T
        return total, own

    total, own = backward(None)
    if crossed:
        total, _ = backward([torch.stack([k[1::2], k[0::2]], dim=1).reshape(-1, 1) for k in own])
    return total


def measure(horizon: int, repeats: int, seed: int) -> dict[str, dict[str, float]]:
    """Mean, standard error and variance times batch of every estimator, beside what is exact."""
    beta = torch.tensor([BETA], dtype=torch.float64, requires_grad=True)
    truth = exact(BETA, horizon)
    tapes: dict[str, How | TapeMaker] = {
        "pathwise": "pathwise",
        "score": lambda: Tape("score", baseline=LeaveOneOut()),
        "combine": lambda: Tape("combine", baseline=LeaveOneOut()),
        "exact_ivw": lambda: Tape("combine", baseline=LeaveOneOut(), exact_ivw=True),
        "per lane": lambda: Tape("combine", baseline=LeaveOneOut()),
    }
    programs: dict[str, Problem] = dict.fromkeys(
        tapes, lambda tape, lanes: network(tape, lanes, beta, horizon)
    )
    programs["per lane"] = lambda tape, lanes: network(tape, lanes, tape.per_lane(beta), horizon)
    table = compare(
        programs,
        {"beta": beta},
        tapes,
        num_lanes=BATCH,
        repeats=repeats,
        reference={"beta": torch.tensor([truth.gradient])},
        seed=seed,
    )
    found = {
        row.estimator: {
            "mean": row.mean,
            "z": row.bias_z,
            "variance": row.variance_per_lane,
            "ms_per_lane": row.ms_per_lane,
        }
        for row in table.rows
    }
    generator = torch.Generator().manual_seed(seed)
    means = [
        float(by_hand(_noise(horizon, BATCH, generator), BETA, "beta", crossed=False).mean())
        for _ in range(repeats)
    ]
    error = float(np.std(means, ddof=1)) / math.sqrt(repeats)
    found["published, measured on beta"] = {
        "mean": float(np.mean(means)),
        "z": (float(np.mean(means)) - truth.gradient) / error,
        "variance": error**2 * repeats * BATCH,
    }
    found["exact"] = {
        "mean": truth.gradient,
        "pathwise variance": truth.pathwise_variance,
        "score variance": truth.score_variance,
    }
    return found


def small_batches(horizon: int, lanes: int, batches: int, seed: int) -> dict[str, dict[str, float]]:
    """What weights taken from the samples they weigh do to the mean, in percent of the gradient."""
    truth, found = exact(BETA, horizon).gradient, {}
    for label, crossed in (("published", False), ("crossed", True)):
        generator = torch.Generator().manual_seed(seed)
        means = [
            float(by_hand(_noise(horizon, lanes, generator), BETA, "beta", crossed=crossed).mean())
            for _ in range(batches)
        ]
        error = float(np.std(means, ddof=1)) / math.sqrt(batches) / abs(truth)
        bias = (float(np.mean(means)) - truth) / truth
        found[label] = {"bias_percent": 100 * bias, "standard_error_percent": 100 * error}
    return found


def _noise(horizon: int, lanes: int, generator: torch.Generator) -> Tensor:
    """`[H, lanes, 2]`, drawn step by step as the tape draws it."""
    steps = [
        torch.randn(lanes, 2, dtype=torch.float64, generator=generator) for _ in range(horizon)
    ]
    return torch.stack(steps)


def noiseless(betas: Array, horizon: int) -> Array:
    """The objective along the path without noise, for every beta."""
    state = np.tile(FIRST_STATE, (len(betas), 1))
    for _ in range(horizon):
        state = 1 / (1 + np.exp(-betas[:, None] * (state @ WEIGHT)))
    paid: Array = -0.5 * ((1 - state) ** 2).sum(1)
    return paid


def draw(report: dict[str, Any], sweep: list[list[float]]) -> None:
    from matplotlib.figure import Figure
    from study import COLORS

    figure = Figure(figsize=(9.5, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    horizons = [int(h) for h in report]
    for name in ("pathwise", "score"):
        line = [report[str(h)]["exact"][f"{name} variance"] for h in horizons]
        left.plot(horizons, line, color=COLORS[name], lw=1.2)
    marks = {
        "pathwise": ("o", COLORS["pathwise"], "pathwise"),
        "score": ("s", COLORS["score"], "score"),
        "exact_ivw": ("v", COLORS["combine, published weights"], "combine, exact_ivw=True"),
        "combine": ("^", COLORS["combine"], "combine"),
        "per lane": ("P", COLORS["combine"], "combine, per_lane(beta)"),
        "published, measured on beta": ("D", "0.2", "published weights, by hand"),
    }
    for name, (marker, color, label) in marks.items():
        dots = [report[str(h)][name]["variance"] for h in horizons]
        left.plot(horizons, dots, marker, color=color, ms=5, ls="", label=label)
    left.set(yscale="log", xlabel="horizon", ylabel="variance per lane", title="beta = 2.4")
    left.set_ylim(top=3e5)
    left.legend(fontsize=7.5, loc="upper left", frameon=False)
    left.annotate("lines: exact", (0.97, 0.03), xycoords="axes fraction", ha="right", fontsize=8)
    betas, objective, slope = (np.array(column) for column in zip(*sweep, strict=True))
    fine = np.linspace(betas[0], betas[-1], 4001)
    right.plot(fine, noiseless(fine, 100), color="0.75", lw=0.5, label="without noise")
    right.plot(betas, objective, color="black", lw=1.2, label="expectation, exact")
    tangent = np.array([-0.025, 0.025])
    here = int(np.abs(betas - BETA).argmin())
    right.plot(
        BETA + tangent, objective[here] + slope[here] * tangent, color=COLORS["pathwise"], lw=2.5
    )
    right.annotate("exact gradient", (BETA, objective[here] - 0.007), ha="center", fontsize=8)
    right.set(xlabel="beta", ylabel="objective", title="horizon 100: order, then chaos")
    right.legend(fontsize=8, loc="lower left", frameon=False)
    figure.savefig(PICTURES / "total_propagation.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20 repeats in place of 100, no files")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    report, begin = {}, time.perf_counter()
    for horizon in HORIZONS:
        report[str(horizon)] = found = measure(horizon, 20 if quick else 100, seed=horizon)
        truth = found["exact"]
        print(
            f"H = {horizon}: exact gradient {truth['mean']:+.5f}, variance per lane: pathwise "
            f"{truth['pathwise variance']:.4g}, score {truth['score variance']:.4g}"
        )
        for label, row in found.items():
            if label != "exact":
                print(
                    f"  {label:28s} {row['mean']:+.5f}  z {row['z']:+.1f}"
                    f"  variance x batch {row['variance']:.4g}",
                    flush=True,
                )
    bias = small_batches(20, 10, 500 if quick else 10_000, seed=1)
    for label, row in bias.items():
        print(
            f"10 lanes, H = 20, {label} weights: bias {row['bias_percent']:+.1f} % "
            f"(standard error {row['standard_error_percent']:.1f})"
        )
    if quick:
        return
    sweep = []
    for beta in np.linspace(2.2, 2.7, 51):
        at = exact(float(beta), 100, 12001)
        sweep.append([float(beta), at.objective, at.gradient])
    whole = {
        "batch": BATCH,
        "beta": BETA,
        "published": PUBLISHED,
        "horizons": report,
        "ten_lanes": bias,
        "exact_over_beta": sweep,
        "seconds": round(time.perf_counter() - begin),
    }
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / "total_propagation.json"
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    draw(report, sweep)


if __name__ == "__main__":
    main()

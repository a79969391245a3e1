#!/usr/bin/env python
"""Why Bernoulli needs REINFORCE: every estimator of d/d eta E (b - t)^2, its bias and its variance.

    studies/bernoulli.py [--seed 0] [--quick] [--out docs/pictures]

b ~ Bernoulli(p), p = sigmoid(eta). A coin has no path: straight-through and Gumbel-softmax put one
in its place, and at eta = -1.5, t = 0.45 both point the wrong way. Then a softmax bandit, whose
policy gradient is known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import study
import torch
from matplotlib.figure import Figure
from rlpg.envs.bandit import REWARDS, value_and_gradient
from study import Line, arguments, layout, line, per_lane, save, table
from torch import Tensor
from torch.distributions import Bernoulli, Categorical

import rlpg

ETA, TARGET = -1.5, 0.45
LOGITS = (0.0, 1.0, 0.5, -1.0)  # of the bandit's policy
TAPES: Mapping[str, Callable[[], rlpg.Tape]] = {
    "score": lambda: rlpg.Tape("score"),
    "score, leave one out": lambda: rlpg.Tape("score", baseline=rlpg.LeaveOneOut()),
    "weak": lambda: rlpg.Tape("weak"),
    "expect": lambda: rlpg.Tape("expect"),
    "straight-through": lambda: rlpg.Tape("biased_straight_through"),
    "Gumbel, 0.5": lambda: rlpg.Tape("biased_gumbel_softmax", temperature=0.5),
    "Gumbel, 0.1": lambda: rlpg.Tape("biased_gumbel_softmax", temperature=0.1),
}
BIASED = ("straight-through", "Gumbel, 0.5", "Gumbel, 0.1")


def program(tape: rlpg.Tape, leaf: Mapping[str, Tensor]) -> None:
    b = tape.sample(Bernoulli(logits=leaf["eta"]))
    tape.add((b - TARGET).square())


def gradient(eta: float) -> float:
    """`d/d eta (p (1 - t)^2 + (1 - p) t^2) = p (1 - p) (1 - 2 t)`."""
    p = 1 / (1 + math.exp(-eta))
    return p * (1 - p) * (1 - 2 * TARGET)


def moments(estimator: str, eta: float) -> tuple[float, float, float]:
    """Mean, variance and fourth central moment of one sample's estimate.

    score: `(f(b) - c)(b - p)` with c = 0, or c = E f, what leaving one out tends to;
    weak and expect: `p (1 - p) (f(1) - f(0))`, no randomness left; straight-through:
    `f'(b) p (1 - p)`; Gumbel-softmax: `f'(y) y (1 - y) / temperature` at y = sigmoid((eta + L) /
    temperature), L logistic, integrated by the trapezoidal rule.
    """
    p = 1 / (1 + math.exp(-eta))
    b, probability = np.array([0.0, 1.0]), np.array([1 - p, p])
    f, score = (b - TARGET) ** 2, b - p
    if estimator in ("weak", "expect"):
        estimate = np.full(2, p * (1 - p) * (f[1] - f[0]))
    elif estimator == "straight-through":
        estimate = 2 * (b - TARGET) * p * (1 - p)
    elif estimator.startswith("Gumbel"):
        temperature = float(estimator.split()[1])
        logistic = np.linspace(-40, 40, 16_001)
        probability = 0.25 / np.cosh(logistic / 2) ** 2 * (logistic[1] - logistic[0])
        y = 0.5 + 0.5 * np.tanh((eta + logistic) / temperature / 2)
        estimate = 2 * (y - TARGET) * y * (1 - y) / temperature
    else:
        if estimator == "score, leave one out":
            off = f - probability @ f
            return central(probability, off * score, off, score)
        estimate = f * score
    return central(probability, estimate)


def central(
    probability: npt.NDArray[np.float64],
    estimate: npt.NDArray[np.float64],
    off: npt.NDArray[np.float64] | float = 0.0,
    score: npt.NDArray[np.float64] | float = 0.0,
) -> tuple[float, float, float]:
    """Mean, variance and fourth central moment.

    Where the baseline is the lanes' own mean of f, give `off = f - E f` and the score: a mean that
    is off by d changes the variance of all lanes by -2 d E[(g - E g) score], to first order. That
    spread of the measured variance is counted in with the fourth moment's.
    """
    mean = float(probability @ estimate)
    square = (estimate - mean) ** 2
    variance = float(probability @ square)
    shared = square - 2 * off * (probability @ ((estimate - mean) * score))
    return mean, variance, float(probability @ (shared - variance) ** 2) + variance**2


def measure(etas: list[float], *, num_lanes: int, seed: int) -> dict[tuple[str, float], Line]:
    """Lines against the estimators' own means, which for the biased ones are not the gradient."""
    lines = {}
    for name, make in TAPES.items():
        for eta in etas:
            found = per_lane(program, make(), {"eta": eta}, num_lanes, seed + len(lines))["eta"]
            lines[name, eta] = line(found, name, "eta", *moments(name, eta))
    return lines


def bandit_moments(estimator: str, arm: int) -> tuple[float, float, float]:
    """The same for the gradient with respect to one arm's logit: a sum over the arms."""
    _, exact = value_and_gradient(np.array(LOGITS))
    weight = np.exp(LOGITS)
    probability = weight / weight.sum()
    rewards = np.array(REWARDS)
    score = np.eye(len(LOGITS)) - probability  # [action, arm]
    if estimator == "expect":
        return float(exact[arm]), 0.0, 0.0
    if estimator == "score":
        return central(probability, rewards * score[:, arm])
    off = rewards - probability @ rewards
    return central(probability, off * score[:, arm], off, score[:, arm])


def bandit(*, num_lanes: int, seed: int) -> list[Line]:
    """The softmax bandit's policy gradient, one line per estimator and arm."""
    rewards = torch.tensor(REWARDS, dtype=torch.float64)

    def pull(tape: rlpg.Tape, leaf: Mapping[str, Tensor]) -> None:
        arm = tape.sample(Categorical(logits=torch.stack(list(leaf.values()), dim=-1)))
        tape.add(rewards[arm])

    params = {f"logit {arm}": value for arm, value in enumerate(LOGITS)}
    lines = []
    for k, name in enumerate(("score", "score, leave one out", "expect")):
        found = per_lane(pull, TAPES[name](), params, num_lanes, seed + k)
        for arm, (parameter, samples) in enumerate(found.items()):
            lines.append(line(samples, name, parameter, *bandit_moments(name, arm)))
    return lines


def descend(name: str, *, steps: int, seed: int, rate: float = 10.0) -> list[float]:
    """p along gradient descent on E (b - t)^2 with 1000 coins per step."""
    eta, path = ETA, []
    for step in range(steps):
        path.append(1 / (1 + math.exp(-eta)))
        found = per_lane(program, TAPES[name](), {"eta": eta}, 1000, seed + step)
        eta -= rate * float(found["eta"].mean())
    return path


COLORS = {
    "score": study.COLORS["score"],
    "score, leave one out": study.COLORS["score, baseline"],
    "expect": study.COLORS["expect"],
    "straight-through": study.COLORS["straight-through"],
    "Gumbel, 0.5": study.COLORS["Gumbel"],
    "Gumbel, 0.1": study.COLORS["Gumbel, colder"],
}


def draw(
    etas: list[float], lines: Mapping[tuple[str, float], Line], paths: Mapping[str, list[float]]
) -> Figure:
    figure = Figure(figsize=(10, 3.7), layout="constrained")
    means, variances, descent = figure.subplots(1, 3)
    fine = np.linspace(etas[0], etas[-1], 161).tolist()
    for name, color in COLORS.items():
        rows = [lines[name, eta] for eta in etas]
        exact = [moments(name, eta) for eta in fine]
        if name != "score, leave one out":
            means.plot(fine, [m[0] for m in exact], color=color, linewidth=1.3)
            means.plot(etas, [r.mean for r in rows], "o", color=color, markersize=3.5, label=name)
        if name != "expect":
            variances.plot(fine, [m[1] for m in exact], color=color, linewidth=1.3)
            variances.plot(
                etas, [r.variance for r in rows], "o", color=color, markersize=3.5, label=name
            )
    means.axvline(ETA, color="gray", linewidth=0.8, linestyle=":")
    means.axhline(0, color="gray", linewidth=0.8)
    means.set(xlabel="eta", title="mean of the estimate", ylabel="d/d eta E (b - 0.45)²")
    variances.set(xlabel="eta", yscale="log", title="variance of one sample", ylim=(3e-7, 1))
    for name, path in paths.items():
        descent.plot(path, color=COLORS[name], linewidth=1.4)
    descent.set(
        xlabel="descent step", ylabel="p", title="where descent ends (best: p = 0)", ylim=(0, 0.6)
    )
    handles = {
        label: handle
        for axis in (means, variances)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False
    )
    for axis in (means, variances, descent):
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10.5)
    return figure


def main() -> None:
    options = arguments(__doc__)
    num_lanes = 5_000 if options.quick else 100_000
    etas = np.arange(-4, 4.5, 0.5).tolist()
    lines = measure(etas, num_lanes=num_lanes, seed=1000 * options.seed)
    here = [lines[name, ETA] for name in TAPES]
    true = gradient(ETA)
    print(f"eta = {ETA}, t = {TARGET}: the gradient is {true:.5f}\n\n{table(here)}\n")
    bias = [
        (row.estimator, f"{row.exact_mean:.5f}", f"{row.exact_mean / true:+.2f}")
        for row in here
        if row.estimator in BIASED
    ]
    print(layout([("biased", "tends to", "over the gradient"), *bias]))
    arms = bandit(num_lanes=num_lanes, seed=1000 * options.seed)
    print(f"\nsoftmax bandit, rewards {REWARDS}, logits {LOGITS}\n\n{table(arms)}")
    steps = 100 if options.quick else 400
    paths = {
        name: descend(name, steps=steps, seed=1000 * options.seed)
        for name in ("score, leave one out", "straight-through", "Gumbel, 0.5")
    }
    ends = {name: round(path[-1], 4) for name, path in paths.items()}
    print(f"\np after {steps} steps of descent: {ends}")
    content = {"seed": options.seed, "gradient": true, "lines": here, "bandit": arms, "p": ends}
    save(options.out, "bernoulli", draw(etas, lines, paths), content)


if __name__ == "__main__":
    main()

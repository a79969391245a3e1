"""Estimators side by side on the user's own problem: bias, variance, time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from rlpg.errors import EstimatorError, install
from rlpg.gradients import experiment
from rlpg.gradients.experiment import Params, Problem, TapeMaker
from rlpg.gradients.tape import How


@dataclass(frozen=True)
class Row:
    """One estimator on one parameter. For a tensor of D elements `mean` is the length of the mean
    gradient, `variance_per_lane` the sum of the elements' variances."""

    estimator: str
    parameter: str
    mean: float
    variance_per_lane: float  # of the surrogate's gradient, times the number of lanes
    signal_to_noise: float  # length of the mean over standard deviation, at num_lanes lanes
    bias_z: float  # standard errors from the reference; for D > 1 a normalized chi-square
    lanes_needed: float  # for a signal-to-noise of 1; inf where no signal was seen
    ms_per_lane: float  # program, surrogate and gradient


@dataclass(frozen=True)
class Comparison:
    """The rows, and the raw gradients `[repeats, D]` by estimator. `print` gives the table."""

    rows: list[Row]
    gradients: dict[str, Tensor]
    num_lanes: int
    reference: str

    def __str__(self) -> str:
        names = "estimator,parameter,mean,var per lane,SNR,bias z,lanes for SNR 1,ms per lane"
        head, body = names.split(","), []
        for row in self.rows:
            numbers = f"{row.mean:.4g} {row.variance_per_lane:.4g} {row.signal_to_noise:.3g}"
            rest = f"{row.bias_z:+.1f} {row.lanes_needed:.3g} {row.ms_per_lane:.3g}"
            body.append([row.estimator, row.parameter, *numbers.split(), *rest.split()])
        widths = [max(len(line[k]) for line in [head, *body]) for k in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if k < 2 else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in [head, *body]
        ]
        lines.append(f"{self.num_lanes} lanes; bias against {self.reference}")
        return "\n".join(lines)


def compare(
    problem: Problem | Mapping[str, Problem],
    params: Params,
    how: Sequence[How] | Mapping[str, How | TapeMaker] = ("score", "pathwise"),
    *,
    num_lanes: int = 1000,
    repeats: int = 100,
    reference: str | Mapping[str, Tensor] | None = None,
    seed: int = 0,
    plot: str | Path | None = None,
) -> Comparison:
    """The table of `Row`s: every estimator on every parameter, from `repeats` surrogates each.

    Torch's global generator is restored afterwards. Repeats and estimators use independent
    streams, so z-scores are what they say; a bias of one standard deviation *per lane* becomes
    visible at about `num_lanes * repeats = 16`.

    Args:
        problem: `problem(tape, num_lanes)` writes its samples and terms on the tape, and may return
            a surrogate of its own (`importance_weighted_bound`). A dict by label: one program per
            estimator, where it has to say more (`depends_on`, `per_lane`).
        params: leaf tensors the program uses: a tensor, a list, or a dict by name.
        how: names of estimators, or a dict: label -> name or function that makes a `Tape`.
        num_lanes: lanes of each surrogate.
        repeats: surrogates per estimator, at least 2.
        reference: a label of `how`, or exact gradients by parameter name; the first label if None.
        plot: file to draw mean with error bars and variance per lane into (needs matplotlib).
    """
    tensors = experiment.named(params)
    if isinstance(how, str):
        raise EstimatorError(
            f"compare: expected how as a list of names or a dict, got {how!r}; write [{how!r}]"
        )
    makers = dict(how) if isinstance(how, Mapping) else {str(name): name for name in how}
    programs = dict(problem) if isinstance(problem, Mapping) else dict.fromkeys(makers, problem)
    if programs.keys() != makers.keys():
        raise EstimatorError(
            f"compare: expected a program for each of {list(makers)}, got {list(programs)}"
        )
    exact = None if reference is None or isinstance(reference, str) else dict(reference)
    label = "exact values" if exact is not None else str(reference or next(iter(makers), ""))
    if repeats < 2 or not makers or (exact is None and label not in makers):
        raise EstimatorError(
            f"compare: expected at least 2 repeats and a reference among {list(makers)}, got "
            f"{repeats} and {label!r}"
        )
    if exact is not None and exact.keys() != tensors.keys():
        raise EstimatorError(
            f"compare: expected reference gradients for {list(tensors)}, got {list(exact)}"
        )
    with experiment.seeded(seed, tensors):  # a maker may draw
        tapes = [(programs[name], experiment.tape_maker(one)()) for name, one in makers.items()]
    for program, tape in {(p, t.how, t.num_draws): (p, t) for p, t in tapes}.values():
        experiment.refuse_coupled_lanes(program, tensors, tape, num_lanes, seed)
    found: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    for stream, (estimator, maker) in enumerate(makers.items()):
        make, samples, times = experiment.tape_maker(maker), [], []
        for one in islice(experiment.seeds(seed, stream), repeats):
            with experiment.seeded(one, tensors):
                start, tape = time.perf_counter(), make()
                tape.num_lanes = num_lanes
                own = programs[estimator](tape, num_lanes)
                surrogate = tape.surrogate() if own is None else own
                samples.append(experiment.gradient(surrogate, tensors))
                times.append(time.perf_counter() - start)
        found[estimator] = torch.stack(samples).double().cpu()
        seconds[estimator] = sorted(times)[repeats // 2]

    rows, at = [], 0
    for name, tensor in tensors.items():
        part, at = slice(at, at + tensor.numel()), at + tensor.numel()
        for estimator, samples_of in found.items():
            here = samples_of[:, part]
            if exact is not None:
                target = exact[name].detach().double().cpu().reshape(-1)
                target_error = torch.zeros_like(target)
            else:
                target = found[label][:, part].mean(0)
                target_error = found[label][:, part].var(0) / repeats
            error = here.var(0) / repeats + target_error
            z = 0.0 if estimator == label else _bias(here.mean(0), target, error)
            rows.append(_row(estimator, name, here, z, num_lanes, seconds[estimator]))
    result = Comparison(rows, found, num_lanes, label)
    if plot is not None:
        _draw(result, Path(plot))
    return result


def _row(
    estimator: str, parameter: str, samples: Tensor, z: float, num_lanes: int, seconds: float
) -> Row:
    variance, mean = float(samples.var(0).sum()), samples.mean(0)
    # The squared length of a noisy mean is too long by its variance.
    signal = max(float(mean.square().sum()) - variance / len(samples), 0.0)
    return Row(
        estimator=estimator,
        parameter=parameter,
        mean=float(mean) if mean.numel() == 1 else float(mean.norm()),
        variance_per_lane=variance * num_lanes,
        signal_to_noise=math.sqrt(signal / variance) if variance > 0 else math.inf,
        bias_z=z,
        lanes_needed=variance * num_lanes / signal if signal > 0 else math.inf,
        ms_per_lane=1e3 * seconds / num_lanes,
    )


def _bias(mean: Tensor, target: Tensor, variance: Tensor) -> float:
    """Standard errors by which a mean misses the target; `variance` is that of the difference.

    Differences below a millionth of the target are rounding, also where nothing is random.
    """
    rounding = 1e-6 * float(target.abs().max()) + 1e-30
    z = (mean - target) / variance.clamp(min=rounding**2).sqrt()
    if len(z) == 1:
        return float(z)
    return float((z.square().sum() - len(z)) / math.sqrt(2 * len(z)))


def _draw(result: Comparison, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise EstimatorError(
            f"plot: expected matplotlib to be installed; run {install('plot')}"
        ) from None
    parameters = list(dict.fromkeys(row.parameter for row in result.rows))
    figure = Figure(figsize=(4 * len(parameters), 6), layout="constrained")
    axes = figure.subplots(2, len(parameters), squeeze=False)
    for column, parameter in enumerate(parameters):
        rows = [row for row in result.rows if row.parameter == parameter]
        labels, spread = [row.estimator for row in rows], [row.variance_per_lane for row in rows]
        repeats = len(next(iter(result.gradients.values())))
        bars = [4 * math.sqrt(value / result.num_lanes / repeats) for value in spread]
        above, below = axes[0][column], axes[1][column]
        above.errorbar(labels, [row.mean for row in rows], yerr=bars, fmt="o", capsize=4)
        above.set(title=parameter, ylabel="mean gradient, 4 standard errors")
        below.bar(labels, spread)
        below.set(ylabel="variance per lane")
        if min(spread) > 0:
            below.set_yscale("log")
        for axis in (above, below):
            axis.tick_params(axis="x", rotation=30)
    figure.savefig(path)

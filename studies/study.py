"""What the estimator studies share: options, samples of a gradient lane by lane, tables, files."""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import rlpg

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
COLORS = {  # of each estimator, in all pictures
    "score": "#c0504d",
    "score, baseline": "#e8a33d",
    "score, shaped": "#8c564b",
    "pathwise": "#2a6f97",
    "combine": "#5a9c5a",
    "combine, published weights": "#a3c585",
    "weak": "#2f9e9e",
    "expect": "#222222",
    "straight-through": "#7b4fa3",
    "Gumbel": "#c2559d",
    "Gumbel, colder": "#e2a3cc",
}
Program = Callable[[rlpg.Tape, Mapping[str, Tensor]], None]


def arguments(documentation: str | None) -> argparse.Namespace:
    """`seed`, `quick` and `out` from the command line; a study has no other options."""
    torch.set_num_threads(1)  # the tensors are small: threads would only wait for each other
    parser = argparse.ArgumentParser(description=(documentation or "").split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (0)")
    parser.add_argument("--quick", action="store_true", help="a few seconds, coarse error bars")
    parser.add_argument(
        "--out", type=Path, default=PICTURES, help="folder for picture and JSON (docs/pictures)"
    )
    return parser.parse_args()


@dataclass(frozen=True)
class Line:
    """Mean and variance of one estimator of one parameter's gradient, beside what they should be.

    `mean_z` and `variance_z` are the differences in standard errors. None: not known exactly.
    """

    estimator: str
    parameter: str
    mean: float
    exact_mean: float
    mean_z: float
    variance: float
    exact_variance: float | None
    variance_z: float | None


def line(
    samples: Tensor,
    estimator: str,
    parameter: str,
    exact_mean: float,
    exact_variance: float | None = None,
    exact_fourth: float | None = None,
    *,
    scale: float = 1.0,
) -> Line:
    """The line of `samples` `[S]`; their variance, times `scale`, is what is reported.

    Standard errors come from the exact moments where these are given (the fourth one central), else
    from the samples' own: with few samples of a skewed law those are too small.
    """
    mean, variance = float(samples.mean()), float(samples.var()) * scale
    spread = (variance if exact_variance is None else exact_variance) / scale
    mean_z = _z(mean - exact_mean, math.sqrt(max(spread, 0.0) / len(samples)), exact_mean)
    fourth = float((samples - mean).pow(4).mean()) if exact_fourth is None else exact_fourth
    error = scale * math.sqrt(max(fourth - spread**2, 0.0) / len(samples))
    variance_z = None
    if exact_variance is not None:
        variance_z = _z(variance - exact_variance, error, exact_mean**2 + exact_variance)
    return Line(
        estimator, parameter, mean, exact_mean, mean_z, variance, exact_variance, variance_z
    )


def _z(difference: float, error: float, size: float) -> float:
    """Standard errors; rounding is none, also where nothing is random."""
    return float(difference / max(error, 1e-9 * abs(size), 1e-12))


def per_lane(
    program: Program, tape: rlpg.Tape, params: Mapping[str, float], num_lanes: int, seed: int
) -> dict[str, Tensor]:
    """`[num_lanes]` gradient samples by parameter, from one surrogate.

    Every lane gets its own copy of the parameters. The surrogate is a mean over lanes, so what
    arrives at a copy, times the number of lanes, is that lane's share of the gradient.
    """
    copies = {
        name: torch.full((num_lanes,), value, dtype=torch.float64, requires_grad=True)
        for name, value in params.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        program(tape, copies)
        found = torch.autograd.grad(tape.surrogate(), list(copies.values()), materialize_grads=True)
    return {name: grad * num_lanes for name, grad in zip(copies, found, strict=True)}


def table(lines: Sequence[Line]) -> str:
    """The lines, for reading."""
    head = ("estimator", "parameter", "mean", "exact", "z", "variance", "exact", "z")
    body = [
        (
            row.estimator,
            row.parameter,
            f"{row.mean:.4g}",
            f"{row.exact_mean:.4g}",
            f"{row.mean_z:+.1f}",
            f"{row.variance:.4g}",
            "" if row.exact_variance is None else f"{row.exact_variance:.4g}",
            "" if row.variance_z is None else f"{row.variance_z:+.1f}",
        )
        for row in lines
    ]
    return layout([head, *body], left=2)


def layout(cells: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns of text: the first `left` aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def save(out: Path, name: str, figure: Figure, content: Mapping[str, Any]) -> None:
    """`name.png` and `name.json` in the folder `out`; lines become objects."""
    out.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    # A palette is a third of the size, and these pictures have few colors.
    Image.open(buffer).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(
        out / f"{name}.png", optimize=True
    )

    def plain(value: object) -> object:
        if isinstance(value, Line):
            rounded = asdict(value)
            return {k: _round(v) if isinstance(v, float) else v for k, v in rounded.items()}
        raise TypeError(f"expected Line, got {type(value).__name__}")

    (out / f"{name}.json").write_text(json.dumps(content, indent=1, default=plain) + "\n")
    print(f"\nwrote {name}.png and {name}.json")


def _round(value: float) -> float:
    return float(f"{value:.6g}")

#!/usr/bin/env python
"""Price sensitivities of three options, by every estimator that is valid, against exact answers.

    studies/price_sensitivities.py [--seed 0] [--quick] [--out docs/pictures]

A call, a digital call and an arithmetic Asian call under Black-Scholes with a dividend: delta,
vega, rho, theta and gamma at the settings of Broadie & Glasserman 1996. Prints tables of mean and
variance per path, the cost per path beside plain NumPy, and draws price_sensitivities.png.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from study import COLORS, Line, arguments, layout, line, per_lane, save, table
from torch import Tensor
from torch.distributions import Normal

from rlpg.errors import EstimatorError
from rlpg.gradients.gradcheck import gradcheck
from rlpg.gradients.tape import Tape

STRIKE, DIVIDEND, DAY = 100.0, 0.03, 1 / 365
SPOTS = (90.0, 100.0, 110.0)
MARKET = {"spot": 100.0, "volatility": 0.25, "rate": 0.1, "maturity": 0.2}
FIXINGS = 30  # of the Asian call: once a day, the last at maturity
GREEK = {"spot": "delta", "volatility": "vega", "rate": "rho", "maturity": "theta"}
Params = Mapping[str, Tensor]
Array = NDArray[np.float64]


# The programs: what happens to a path. `Tape` decides how it is differentiated.


def settle(tape: Tape, p: Params, fixings: int) -> tuple[Tensor, Tensor]:
    """`[paths]` mean price over the last `fixings` days, and d log p(first fixing) / d spot."""
    growth = p["rate"] - DIVIDEND - 0.5 * p["volatility"].square()
    first = p["maturity"] - (fixings - 1) * DAY
    mean, deviation = p["spot"].log() + growth * first, p["volatility"] * first.sqrt()
    x = tape.sample(Normal(mean, deviation))
    score = (x - mean) / (deviation.square() * p["spot"])
    total = x.exp()
    for _ in range(fixings - 1):
        x = tape.sample(Normal(x + growth * DAY, p["volatility"] * math.sqrt(DAY)))
        total = total + x.exp()
    return total / fixings, score


def discount(p: Params) -> Tensor:
    return (-p["rate"] * p["maturity"]).exp()


def call(tape: Tape, p: Params, fixings: int = 1) -> None:
    price, _ = settle(tape, p, fixings)
    tape.add(discount(p) * (price - STRIKE).clamp(min=0))


def digital(tape: Tape, p: Params, last: float = 1.0) -> None:
    """Pays 1 above the strike. The `last` share of the time is a step of its own, on which the
    score is taken; what comes before is left to the tape."""
    growth = p["rate"] - DIVIDEND - 0.5 * p["volatility"].square()
    x = p["spot"].log()
    if last < 1:
        time = p["maturity"] * (1 - last)
        x = tape.sample(Normal(x + growth * time, p["volatility"] * time.sqrt()))
    time = p["maturity"] * last
    x = tape.sample(Normal(x + growth * time, p["volatility"] * time.sqrt()), how="score")
    tape.add(discount(p) * (x > math.log(STRIKE)))


def delta_by_path(tape: Tape, p: Params, fixings: int = 1) -> None:
    """The pathwise delta, as an objective of its own: its derivative is gamma."""
    price, _ = settle(tape, p, fixings)
    tape.add(discount(p) * (price > STRIKE) * price / p["spot"])


def delta_by_score(tape: Tape, p: Params, fixings: int = 1) -> None:
    price, score = settle(tape, p, fixings)
    tape.add(discount(p) * (price - STRIKE).clamp(min=0) * score)


GAMMAS: dict[str, tuple[Callable[..., None], str]] = {
    "score of score": (delta_by_score, "score"),
    "path of score": (delta_by_score, "pathwise"),
    "score of path": (delta_by_path, "score"),
    "path of path (wrong)": (delta_by_path, "pathwise"),
}


# Exact answers.


def black_scholes(p: Params, digital: bool = False) -> Tensor:
    """The price of a call or of a digital call; autograd gives its sensitivities."""
    deviation = p["volatility"] * p["maturity"].sqrt()
    growth = (p["rate"] - DIVIDEND) * p["maturity"]
    above = ((p["spot"] / STRIKE).log() + growth) / deviation + 0.5 * deviation
    if digital:
        return discount(p) * torch.special.ndtr(above - deviation)
    forward = p["spot"] * growth.exp()
    return discount(p) * (
        forward * torch.special.ndtr(above) - STRIKE * torch.special.ndtr(above - deviation)
    )


def geometric_asian(p: Params, fixings: int = FIXINGS) -> Tensor:
    """The price of a call on the geometric mean: log-normal, so known exactly."""
    days = torch.arange(fixings, dtype=torch.float64) - (fixings - 1)
    times = p["maturity"] + days * DAY
    growth = p["rate"] - DIVIDEND - 0.5 * p["volatility"].square()
    mean = p["spot"].log() + growth * times.mean()
    variance = p["volatility"].square() * torch.minimum(times[:, None], times).mean()
    above = (mean - math.log(STRIKE)) / variance.sqrt() + variance.sqrt()
    forward = (mean + 0.5 * variance).exp()
    return discount(p) * (
        forward * torch.special.ndtr(above) - STRIKE * torch.special.ndtr(above - variance.sqrt())
    )


def sensitivities(
    price: Callable[[Params], Tensor], market: Mapping[str, float]
) -> dict[str, float]:
    """Price, delta, vega, rho, theta and gamma of a closed form."""
    p = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in market.items()}
    value = price(p)
    first = torch.autograd.grad(value, list(p.values()), create_graph=True)
    found = {GREEK[k]: float(slope.detach()) for k, slope in zip(p, first, strict=True)}
    found["theta"] *= -1
    gamma = float(torch.autograd.grad(first[0], p["spot"])[0])
    return {"price": float(value.detach()), **found, "gamma": gamma}


def textbook(z: Array, market: Mapping[str, float]) -> dict[str, dict[str, Array]]:
    """Estimators of the call's sensitivities by formula, as functions of the normal draw `z`.

    Source: Glasserman 2004, sections 7.2 and 7.3; rho, theta and the mixed gammas worked out alike.
    """
    s0, sigma, r, t = (market[k] for k in GREEK)
    root, growth = math.sqrt(t), r - DIVIDEND - 0.5 * sigma**2
    s = s0 * np.exp(growth * t + sigma * root * z)
    pays = math.exp(-r * t) * (s > STRIKE)
    paid = pays * (s - STRIKE)
    return {
        "pathwise": {
            "delta": pays * s / s0,
            "vega": pays * s * (z * root - sigma * t),
            "rho": pays * STRIKE * t,
            "theta": r * paid - pays * s * (growth + sigma * z / (2 * root)),
        },
        "score": {
            "delta": paid * z / (s0 * sigma * root),
            "vega": paid * ((z**2 - 1) / sigma - z * root),
            "rho": paid * (z * root / sigma - t),
            "theta": paid * (r - (z**2 - 1) / (2 * t) - z * growth / (sigma * root)),
        },
        "score of score": {
            "gamma": paid * (z**2 - sigma * root * z - 1) / (s0 * sigma * root) ** 2
        },
        "path of score": {"gamma": pays * z * STRIKE / (s0**2 * sigma * root)},
        "score of path": {"gamma": pays * s * (z / (sigma * root) - 1) / s0**2},
        "path of path (wrong)": {"gamma": 0 * z},
    }


def moments(
    estimator: Callable[[Array, Mapping[str, float]], Array], market: Mapping[str, float]
) -> tuple[float, float]:
    """Mean and variance of an estimator that is 0 below the strike, by quadrature over z."""
    s0, sigma, r, t = (market[k] for k in GREEK)
    growth = r - DIVIDEND - 0.5 * sigma**2
    low = (math.log(STRIKE / s0) - growth * t) / (sigma * math.sqrt(t))
    nodes, weights = np.polynomial.legendre.leggauss(200)
    z = low + (nodes + 1) * (12 - low) / 2
    weights = weights * (12 - low) / 2 * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    value = estimator(z, market)
    mean = float((weights * value).sum())
    return mean, float((weights * value**2).sum()) - mean**2


def digital_delta_variance(market: Mapping[str, float], last: float) -> float:
    """Exact, of the score on the `last` share of the time.

    The estimator is D 1{pays} y / (S0 sigma sqrt(tau)), tau the last step's length and y its draw;
    given the path's whole draw z, y is normal with mean z sqrt(last) and variance 1 - last.
    """

    def second(z: Array, m: Mapping[str, float]) -> Array:
        y_square: Array = z**2 * last + 1 - last
        tau = m["maturity"] * last
        scale = math.exp(-2 * m["rate"] * m["maturity"]) / (m["spot"] * m["volatility"]) ** 2 / tau
        return scale * y_square

    delta = sensitivities(partial(black_scholes, digital=True), market)["delta"]
    return moments(second, market)[0] - delta**2


def asian_reference(paths: int, seed: int, chunk: int = 200_000) -> dict[float, dict[str, float]]:
    """The Asian call without any of the estimators under test: NumPy, finite differences with
    common random numbers of what it pays more than its geometric twin, whose closed form is added.

    `price` ... `gamma`, and their standard errors as `price error` ...
    """
    generator = np.random.default_rng(seed)
    sums: dict[float, Array] = {spot: np.zeros((2, 6)) for spot in SPOTS}
    base = {k: MARKET[k] for k in ("volatility", "rate", "maturity")}
    bump = {"volatility": 1e-3, "rate": 1e-3, "maturity": 1e-3, "spot": 5e-3}  # spot: relative
    for _ in range(paths // chunk):
        z = generator.standard_normal((FIXINGS, chunk))

        here = partial(_excess, *_averages(z, base))
        sides = {
            k: [partial(_excess, *_averages(z, {**base, k: v + way * bump[k]})) for way in (1, -1)]
            for k, v in base.items()
        }
        for spot in SPOTS:
            h = bump["spot"] * spot
            middle, up, down = here(spot), here(spot + h), here(spot - h)
            rows = [middle, (up - down) / (2 * h)]
            rows += [(a(spot) - b(spot)) / (2 * bump[k]) for k, (a, b) in sides.items()]
            rows.append((up - 2 * middle + down) / h**2)
            for k, row in enumerate(rows):
                sums[spot][:, k] += row.sum(), (row**2).sum()
    found = {}
    count = paths // chunk * chunk
    for spot in SPOTS:
        twin = sensitivities(geometric_asian, {**MARKET, "spot": spot})
        mean = sums[spot][0] / count
        error = np.sqrt((sums[spot][1] / count - mean**2) / count)
        mean[4] *= -1  # theta
        names = ("price", "delta", "vega", "rho", "theta", "gamma")
        found[spot] = {name: twin[name] + float(mean[k]) for k, name in enumerate(names)}
        found[spot] |= {f"{name} error": float(error[k]) for k, name in enumerate(names)}
    return found


def _averages(z: Array, m: Mapping[str, float]) -> tuple[Array, Array, float]:
    """Arithmetic and geometric mean of the fixings of a path from 1, and the discount."""
    gaps = np.full((FIXINGS, 1), DAY)
    gaps[0] = m["maturity"] - (FIXINGS - 1) * DAY
    growth = m["rate"] - DIVIDEND - 0.5 * m["volatility"] ** 2
    logs = np.cumsum(growth * gaps + m["volatility"] * np.sqrt(gaps) * z, axis=0)
    return np.exp(logs).mean(0), np.exp(logs.mean(0)), math.exp(-m["rate"] * m["maturity"])


def _excess(arithmetic: Array, geometric: Array, factor: float, spot: float) -> Array:
    """What the Asian call pays more than its geometric twin."""
    more = np.maximum(spot * arithmetic - STRIKE, 0)
    paid: Array = factor * (more - np.maximum(spot * geometric - STRIKE, 0))
    return paid


# Measuring.


def first_order(
    how: str,
    program: Callable[..., None],
    market: Mapping[str, float],
    paths: int,
    seed: int,
    baseline: float | None = None,
) -> dict[str, Tensor]:
    """`[paths]` samples of delta, vega, rho, theta."""
    found = per_lane(program, Tape(how, baseline=baseline), market, paths, seed)
    return {GREEK[k]: -v if k == "maturity" else v for k, v in found.items()}


def gamma_samples(
    label: str, market: Mapping[str, float], paths: int, seed: int, fixings: int = 1
) -> Tensor:
    """`[paths]` samples of gamma: the derivative of an estimator of delta."""
    program, how = GAMMAS[label]
    found = per_lane(partial(program, fixings=fixings), Tape(how), market, paths, seed)
    return found["spot"]


def gamma_of_order_two(
    market: Mapping[str, float], paths: int, seed: int, baseline: float | None = None
) -> Tensor:
    """`[paths]` gamma from `surrogate(order=2)` of the call itself; "score" only, which has no
    trouble with the kink."""
    p = {k: torch.full((paths,), v, dtype=torch.float64) for k, v in market.items()}
    spot = p["spot"].requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tape = Tape("score", baseline=baseline)
        call(tape, p)
        (delta,) = torch.autograd.grad(tape.surrogate(order=2), spot, create_graph=True)
        (gamma,) = torch.autograd.grad(delta.sum(), spot)
    return gamma * paths


def step_function_delta(tape: Tape, num_lanes: int, spot: Tensor) -> Tensor:
    """The digital call as one would write it with autograd: its delta is 0, without a word."""
    p = {k: torch.full((num_lanes,), v, dtype=torch.float64) for k, v in MARKET.items()}
    p["spot"] = spot.expand(num_lanes)
    growth = p["rate"] - DIVIDEND - 0.5 * p["volatility"].square()
    mean, deviation = p["spot"].log() + growth * 0.2, p["volatility"] * p["maturity"].sqrt()
    x = mean + deviation * torch.randn(num_lanes, dtype=torch.float64)
    paid = discount(p) * (x > math.log(STRIKE)) + 0.0 * spot
    tape.add(paid.detach())
    return paid.mean()


def european(market: Mapping[str, float], paths: int, seed: int) -> list[Line]:
    """Every estimator of every sensitivity of the call and the digital call."""
    lines = []
    exact = sensitivities(black_scholes, market)
    for label, how, baseline in (
        ("pathwise", "pathwise", None),
        ("score", "score", None),
        ("score, price as baseline", "score", exact["price"]),
    ):
        found = first_order(how, call, market, paths, seed, baseline)
        for greek, samples in found.items():
            variance = None
            if baseline is None:
                variance = moments(
                    lambda z, m, k=(label, greek): textbook(z, m)[k[0]][k[1]], market
                )[1]  # type: ignore[misc]
            lines.append(line(samples, f"call, {label}", greek, exact[greek], variance))
    for label in GAMMAS:
        variance = moments(lambda z, m, k=label: textbook(z, m)[k]["gamma"], market)[1]  # type: ignore[misc]
        samples = gamma_samples(label, market, paths, seed)
        lines.append(line(samples, f"call, {label}", "gamma", exact["gamma"], variance))
    samples = gamma_of_order_two(market, paths, seed, exact["price"])
    lines.append(
        line(samples, "call, surrogate(order=2), price as baseline", "gamma", exact["gamma"])
    )
    of_digital = partial(black_scholes, digital=True)
    exact = sensitivities(of_digital, market)
    for last in (1.0, 0.5, 0.1):
        program = partial(digital, last=last)
        for greek, samples in first_order("pathwise", program, market, paths, seed).items():
            variance = digital_delta_variance(market, last) if greek == "delta" else None
            label = f"digital, score on the last {last:.0%}"
            lines.append(line(samples, label, greek, exact[greek], variance))
    return lines


def asian(spot: float, reference: Mapping[str, float], paths: int, seed: int) -> list[Line]:
    """The Asian call. The reference has an error of its own, small beside the samples'."""
    lines, market = [], {**MARKET, "spot": spot}
    program = partial(call, fixings=FIXINGS)
    for label, baseline in (("pathwise", None), ("score", None), ("score", reference["price"])):
        name = "score, price as baseline" if baseline else label
        for greek, samples in first_order(label, program, market, paths, seed, baseline).items():
            lines.append(line(samples, f"Asian, {name}", greek, reference[greek]))
    for label in list(GAMMAS)[:3]:
        samples = gamma_samples(label, market, paths, seed, FIXINGS)
        lines.append(line(samples, f"Asian, {label}", "gamma", reference["gamma"]))
    return lines


def zero_delta() -> list[str]:
    """What is said about the digital call's pathwise delta: by the tape, and by gradcheck."""
    spot, said = torch.tensor(100.0, dtype=torch.float64, requires_grad=True), []

    def on_tape(tape: Tape, num_lanes: int) -> None:
        p = {k: torch.full((num_lanes,), v, dtype=torch.float64) for k, v in MARKET.items()}
        price, _ = settle(tape, {**p, "spot": spot.expand(num_lanes)}, 1)
        tape.add(discount(p) * (price > STRIKE))

    for problem in (on_tape, partial(step_function_delta, spot=spot)):
        try:
            gradcheck(problem, spot, "pathwise", step=0.05)
        except EstimatorError as error:
            said.append(str(error))
    return said


def numpy_call(seed: int, paths: int, fixings: int, how: str) -> dict[str, float]:
    """Delta, vega, rho and theta as one would write them without a library."""
    s0, sigma, r, t = (MARKET[k] for k in GREEK)
    z = np.random.default_rng(seed).standard_normal((fixings, paths))
    gaps = np.full((fixings, 1), DAY)
    gaps[0] = t - (fixings - 1) * DAY
    growth, times = r - DIVIDEND - 0.5 * sigma**2, np.cumsum(gaps, axis=0)
    walk = np.cumsum(np.sqrt(gaps) * z, axis=0)  # [fixings, paths] Brownian motion
    s = s0 * np.exp(growth * times + sigma * walk)
    average, factor = s.mean(0), math.exp(-r * t)
    paid = factor * np.maximum(average - STRIKE, 0)
    if how == "pathwise":
        pays = factor * (average > STRIKE)
        of_volatility = (s * (walk - sigma * times)).mean(0)
        of_rate = (s * times).mean(0)
        of_time = (s * (growth + sigma * z[0] / (2 * math.sqrt(gaps[0, 0])))).mean(0)
        delta, vega = pays * average / s0, pays * of_volatility
        rho, theta = pays * of_rate - t * paid, r * paid - pays * of_time
    else:
        root = math.sqrt(gaps[0, 0])
        delta = paid * z[0] / (s0 * sigma * root)
        vega = paid * (((z**2 - 1) / sigma) - z * np.sqrt(gaps)).sum(0)
        rho = paid * ((z * np.sqrt(gaps)).sum(0) / sigma - t)
        of_time = z[0] * growth / (sigma * root) + (z[0] ** 2 - 1) / (2 * gaps[0, 0])
        theta = paid * (r - of_time)
    rows = {"delta": delta, "vega": vega, "rho": rho, "theta": theta}
    return {greek: float(row.mean()) for greek, row in rows.items()}


def tape_call(seed: int, paths: int, fixings: int, how: str) -> dict[str, float]:
    """The same from one surrogate and one backward pass."""
    p = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in MARKET.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tape = Tape(how)
        call(tape, {k: v.expand(paths) for k, v in p.items()}, fixings)
        found = torch.autograd.grad(tape.surrogate(), list(p.values()))
    row = {GREEK[k]: float(v) for k, v in zip(p, found, strict=True)}
    return {**row, "theta": -row["theta"]}


def timing(paths: int, rounds: int) -> list[dict[str, float | str]]:
    """Nanoseconds per path and per sensitivity (four at once): medians of alternating runs."""
    rows: list[dict[str, float | str]] = []
    for option, fixings in (("call", 1), ("Asian call", FIXINGS)):
        for how in ("pathwise", "score"):
            seconds: dict[str, list[float]] = {"tape": [], "numpy": []}
            for seed in range(rounds + 1):
                for name, run in (("tape", tape_call), ("numpy", numpy_call)):
                    begin = time.perf_counter()
                    run(seed, paths, fixings, how)
                    seconds[name].append(time.perf_counter() - begin)
            tape, plain = (1e9 * median(times[1:]) / paths / 4 for times in seconds.values())
            rows.append(
                {"option": option, "how": how, "tape": tape, "numpy": plain, "ratio": tape / plain}
            )
    return rows


def draw(lines: list[Line], paths: int, seed: int) -> Figure:
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    marks = {
        "call, pathwise": ("o", COLORS["pathwise"]),
        "call, score": ("s", COLORS["score"]),
        "call, score, price as baseline": ("s", COLORS["score, baseline"]),
        "call, score of score": ("s", COLORS["score"]),
        "call, path of score": ("^", COLORS["combine"]),
        "call, score of path": ("v", COLORS["combine, published weights"]),
        "call, surrogate(order=2), price as baseline": ("s", COLORS["score, baseline"]),
    }
    names = ("delta", "vega", "rho", "theta", "gamma")
    labeled = set()
    for row in lines:
        if row.estimator in marks:
            marker, color = marks[row.estimator]
            label = row.estimator.removeprefix("call, ")
            known = {"score of score": "score", "surrogate(order=2), price as baseline": ""}
            label = known.get(label, label)
            needed = row.variance / (0.01 * row.exact_mean) ** 2
            at = names.index(row.parameter)
            new = "" if label in labeled or not label else label
            labeled.add(label)
            left.plot(at, needed, marker, color=color, ms=7, label=new or None)
            if row.exact_variance is not None:
                exact = row.exact_variance / (0.01 * row.exact_mean) ** 2
                left.plot([at - 0.25, at + 0.25], [exact, exact], color=color, lw=0.8)
    left.set(yscale="log", xticks=range(5), xticklabels=names)
    left.set(ylabel="paths for a standard error of 1 %", title="European call; lines: exact")
    left.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    left.set_ylim(top=left.get_ylim()[1] * 8)
    shares = np.geomspace(0.01, 1, 40)
    exact_shares = [digital_delta_variance(MARKET, float(x)) for x in shares]
    right.plot(shares, exact_shares, color=COLORS["combine"])
    for share in (0.01, 0.03, 0.1, 0.3, 1.0):
        program = partial(digital, last=share)
        samples = first_order("pathwise", program, MARKET, paths, seed)["delta"]
        right.plot(share, float(samples.var()), "s", color=COLORS["combine"])
    right.set(xscale="log", yscale="log", xlabel="last step's share of the time to maturity")
    right.set(ylabel="variance per path", title="Digital delta, score on the last step")
    return figure


def main() -> None:
    options = arguments(__doc__)
    torch.set_num_threads(1)
    paths = 20_000 if options.quick else 400_000
    lines = european(MARKET, paths, options.seed)
    print(f"S0 = 100, {paths} paths\n" + table(lines))
    said = zero_delta()
    print("\nThe digital call, pathwise:\n" + "\n".join(f"  {sentence}" for sentence in said))
    reference = asian_reference(400_000 if options.quick else 10_000_000, options.seed + 1)
    names = ("price", "delta", "vega", "rho", "theta", "gamma")
    calls: dict[str, dict[str, float]] = {}
    asians: dict[str, list[Line]] = {}
    cells = [("option", "S0", *names)]
    for spot in SPOTS:
        calls[str(spot)] = sensitivities(black_scholes, {**MARKET, "spot": spot})
        asians[str(spot)] = asian(spot, reference[spot], paths // 4, options.seed + 2)
        for option, row in (("call", calls[str(spot)]), ("Asian", reference[spot])):
            cells.append((option, f"{spot:.0f}", *(f"{row[k]:.5f}" for k in names)))
        errors = [f"{reference[spot][f'{k} error']:.1g}" for k in names]
        cells.append(("  standard error", "", *errors))
    print("\n" + layout(cells, left=1))
    for spot in SPOTS:
        print(f"\nS0 = {spot:.0f}, {paths // 4} paths\n" + table(asians[str(spot)]))
    costs = timing(100_000, 5 if options.quick else 15)
    head = ("ns per path and sensitivity", "", "tape", "numpy", "ratio")
    body = [
        (str(r["option"]), str(r["how"]), *(f"{r[k]:.1f}" for k in ("tape", "numpy", "ratio")))
        for r in costs
    ]
    print("\n" + layout([head, *body], left=2))
    content = {
        "market": {**MARKET, "strike": STRIKE, "dividend": DIVIDEND, "fixings": FIXINGS},
        "paths": paths,
        "call and digital at 100": lines,
        "call exact": calls,
        "Asian reference": {str(k): v for k, v in reference.items()},
        "Asian": asians,
        "digital, pathwise": said,
        "ns per path and sensitivity": costs,
    }
    save(options.out, "price_sensitivities", draw(lines, paths, options.seed), content)


if __name__ == "__main__":
    main()

"""Option sensitivities: textbook formulas, quadrature, closed forms and the tape agree."""

import importlib
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from rlpg.errors import EstimatorError
from rlpg.gradients.gradcheck import gradcheck
from rlpg.gradients.tape import Tape

STUDIES = str(Path(__file__).parents[2] / "studies")
PATHS = 20_000


@pytest.fixture(scope="module")
def options() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDIES)
        yield importlib.import_module("price_sensitivities")


def normal_draws(seed: int, paths: int) -> np.ndarray:
    """What the tape draws for a program of one node."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.randn(paths, dtype=torch.float64).numpy()


def density(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def below(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


@pytest.mark.parametrize("spot", [90.0, 100.0, 110.0])
def test_closed_forms_are_the_black_scholes_formulas(options: ModuleType, spot: float) -> None:
    sigma, r, q, t, k = 0.25, 0.1, 0.03, 0.2, 100.0
    root = sigma * math.sqrt(t)
    up = (math.log(spot / k) + (r - q) * t) / root + root / 2
    down = up - root
    of_spot, of_strike = math.exp(-q * t), math.exp(-r * t)
    expected = {
        "price": spot * of_spot * below(up) - k * of_strike * below(down),
        "delta": of_spot * below(up),
        "vega": spot * of_spot * density(up) * math.sqrt(t),
        "rho": k * t * of_strike * below(down),
        "theta": -spot * of_spot * density(up) * sigma / (2 * math.sqrt(t))
        - r * k * of_strike * below(down)
        + q * spot * of_spot * below(up),
        "gamma": of_spot * density(up) / (spot * root),
    }
    market = {**options.MARKET, "spot": spot}
    assert options.sensitivities(options.black_scholes, market) == pytest.approx(expected)
    digital = options.sensitivities(partial(options.black_scholes, digital=True), market)
    assert digital["price"] == pytest.approx(of_strike * below(down))
    assert digital["delta"] == pytest.approx(of_strike * density(down) / (spot * root))
    # One fixing: the geometric mean is the price itself.
    twin = options.sensitivities(partial(options.geometric_asian, fixings=1), market)
    assert twin == pytest.approx(expected)


@pytest.mark.parametrize("spot", [90.0, 100.0, 110.0])
def test_textbook_estimators_are_unbiased_by_quadrature(options: ModuleType, spot: float) -> None:
    market = {**options.MARKET, "spot": spot}
    exact = options.sensitivities(options.black_scholes, market)
    for label, row in options.textbook(np.zeros(1), market).items():
        for greek in row:
            mean, _ = options.moments(
                lambda z, m, a=label, b=greek: options.textbook(z, m)[a][b], market
            )
            expected = 0.0 if "wrong" in label else exact[greek]
            assert mean == pytest.approx(expected, rel=1e-9, abs=1e-12), (label, greek)


@pytest.mark.parametrize("how", ["pathwise", "score"])
def test_first_derivatives_are_the_textbook_estimators_path_by_path(
    options: ModuleType, how: str
) -> None:
    found = options.first_order(how, options.call, options.MARKET, 500, 3)
    expected = options.textbook(normal_draws(3, 500), options.MARKET)[how]
    for greek, samples in found.items():
        np.testing.assert_allclose(samples, expected[greek], rtol=1e-9, atol=1e-9)


def test_gammas_are_the_textbook_estimators_path_by_path(options: ModuleType) -> None:
    expected = options.textbook(normal_draws(4, 500), options.MARKET)
    for label in options.GAMMAS:
        samples = options.gamma_samples(label, options.MARKET, 500, 4)
        np.testing.assert_allclose(samples, expected[label]["gamma"], rtol=1e-9, atol=1e-12)
    twice = options.gamma_of_order_two(options.MARKET, 500, 4)
    np.testing.assert_allclose(twice, expected["score of score"]["gamma"], rtol=1e-9, atol=1e-12)


def test_means_and_variances_of_all_five(options: ModuleType) -> None:
    exact = options.sensitivities(options.black_scholes, options.MARKET)
    samples = {
        (how, greek): values
        for how in ("pathwise", "score")
        for greek, values in options.first_order(
            how, options.call, options.MARKET, PATHS, 5
        ).items()
    }
    for label in ("score of score", "path of score", "score of path"):
        values = options.gamma_samples(label, options.MARKET, PATHS, 6)
        samples[label, "gamma"] = values
    for (label, greek), values in samples.items():

        def power(z: np.ndarray, m: dict[str, float], k: int, a: str = label, b: str = greek):
            return options.textbook(z, m)[a][b] ** k

        raw = [options.moments(partial(power, k=k), options.MARKET)[0] for k in (1, 2, 3, 4)]
        mean, variance = raw[0], raw[1] - raw[0] ** 2
        fourth = raw[3] - 4 * mean * raw[2] + 6 * mean**2 * raw[1] - 3 * mean**4
        z = (float(values.mean()) - exact[greek]) / math.sqrt(variance / PATHS)
        assert abs(z) < 4, (label, greek, z)
        z = (float(values.var()) - variance) / math.sqrt((fourth - variance**2) / PATHS)
        assert abs(z) < 4, (label, greek, z)


def test_a_known_baseline_changes_variances_and_nothing_else(options: ModuleType) -> None:
    exact = options.sensitivities(options.black_scholes, options.MARKET)
    plain = options.first_order("score", options.call, options.MARKET, PATHS, 7)
    helped = options.first_order("score", options.call, options.MARKET, PATHS, 7, exact["price"])
    for greek, values in helped.items():
        z = (float(values.mean()) - exact[greek]) / float(values.std()) * math.sqrt(PATHS)
        assert abs(z) < 4, greek
        assert values.var() < 0.85 * plain[greek].var(), greek
    gamma = options.gamma_of_order_two(options.MARKET, PATHS, 8, exact["price"])
    z = (float(gamma.mean()) - exact["gamma"]) / float(gamma.std()) * math.sqrt(PATHS)
    assert abs(z) < 4


@pytest.mark.parametrize("last", [1.0, 0.5, 0.1])
def test_digital_delta_by_the_score_of_the_last_step(options: ModuleType, last: float) -> None:
    program = partial(options.digital, last=last)
    found = options.first_order("pathwise", program, options.MARKET, PATHS, 9)
    exact = options.sensitivities(partial(options.black_scholes, digital=True), options.MARKET)
    variance = options.digital_delta_variance(options.MARKET, last)
    z = (float(found["delta"].mean()) - exact["delta"]) / math.sqrt(variance / PATHS)
    assert abs(z) < 4
    off = (found["delta"] - exact["delta"]).pow(2)
    z = (float(off.mean()) - variance) / float(off.std()) * math.sqrt(PATHS)
    assert abs(z) < 4
    for greek in ("vega", "rho", "theta"):
        z = (float(found[greek].mean()) - exact[greek]) / float(found[greek].std())
        assert abs(z) * math.sqrt(PATHS) < 4, greek


def test_pathwise_delta_of_the_digital_is_zero_and_said_to_be_wrong(options: ModuleType) -> None:
    spot = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
    surrogate = options.step_function_delta(Tape(), 1000, spot)
    (delta,) = torch.autograd.grad(surrogate, spot)
    assert delta == 0
    refused, detected = options.zero_delta()
    assert "expected terms that carry the gradient" in refused
    assert "the gradient is 0 in every repeat" in detected


def test_autodiff_gamma_is_detected(options: ModuleType) -> None:
    spot = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)

    def problem(tape: Tape, num_lanes: int) -> None:
        p = {k: torch.full((num_lanes,), v, dtype=torch.float64) for k, v in options.MARKET.items()}
        options.call(tape, {**p, "spot": spot.expand(num_lanes)})

    with pytest.raises(EstimatorError, match="a call's delta is a step"):
        gradcheck(problem, spot, "pathwise", order=2, resolution=0.1)


def test_asian_call_against_finite_differences_of_its_geometric_twin(options: ModuleType) -> None:
    reference = options.asian_reference(100_000, seed=1, chunk=50_000)
    for spot in (90.0, 110.0):
        for row in options.asian(spot, reference[spot], 5_000, seed=2):
            own = row.variance / 5_000
            z = (row.mean - row.exact_mean) / math.sqrt(
                own + reference[spot][f"{row.parameter} error"] ** 2
            )
            assert abs(z) < 4, row
            assert abs(row.mean_z) < 4.5


def test_plain_numpy_and_the_tape_tell_the_same(options: ModuleType) -> None:
    exact = options.sensitivities(options.black_scholes, options.MARKET)
    for how in ("pathwise", "score"):
        for run in (options.numpy_call, options.tape_call):
            found = run(11, 200_000, 1, how)
            for greek, value in found.items():
                _, variance = options.moments(
                    lambda z, m, a=how, b=greek: options.textbook(z, m)[a][b], options.MARKET
                )
                assert abs(value - exact[greek]) < 4 * math.sqrt(variance / 200_000), (run, greek)

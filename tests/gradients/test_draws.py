"""Given uniform numbers, antithetic and Sobol: means and variances in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Exponential, Gamma, Independent, Laplace, LogNormal, Normal, Uniform

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import LeaveOneOut, MovingAverage, Value
from rlpg.gradients.draws import antithetic, sobol
from rlpg.gradients.tape import Tape

SCALE = 0.8


def gradients(
    how: str,
    uniforms: Callable[[], Tensor],
    power: int,
    repeats: int,
    baseline: float | None = None,
) -> Tensor:
    """`[repeats]` gradients of E (m + s e)^power for m at m = 0.5."""
    found = []
    for _ in range(repeats):
        mean = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        numbers = uniforms()
        tape = Tape(how, baseline=baseline, uniforms=numbers)  # type: ignore[arg-type]
        x = tape.sample(Normal(mean.expand(len(numbers)), SCALE))
        tape.add(x**power)
        found.append(torch.autograd.grad(tape.surrogate(), mean)[0])
    return torch.stack(found)


@pytest.mark.parametrize(
    ("how", "power", "exact", "variance_of_pair"),
    [
        # 2 x = 2 m + 2 s e: the pair's mean has no noise
        ("pathwise", 2, 2 * 0.5, 0.0),
        # 3 x^2 = 3 (m^2 + s^2 e^2) + odd: variance 9 s^4 Var e^2 = 18 s^4
        ("pathwise", 3, 3 * (0.5**2 + SCALE**2), 18 * SCALE**4),
        # x e / s = m e / s + e^2: the pair's mean is e^2, of variance 2
        ("score", 1, 1.0, 2.0),
        # x^2 e / s = odd + 2 m e^2: variance 8 m^2
        ("score", 2, 2 * 0.5, 8 * 0.5**2),
    ],
)
def test_antithetic_pairs(how: str, power: int, exact: float, variance_of_pair: float) -> None:
    repeats = 1000 if variance_of_pair else 50  # each of which is exact
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = gradients(how, lambda: antithetic(2, 1, torch.float64), power, repeats)
    spread = math.sqrt(variance_of_pair / len(found))
    assert abs(float(found.mean()) - exact) <= 4 * spread + 1e-9
    if variance_of_pair:
        fourth = float((found - found.mean()).pow(4).mean())
        error = math.sqrt((fourth - variance_of_pair**2) / len(found))
        assert abs(float(found.var()) - variance_of_pair) < 4 * error
    else:
        assert float(found.var()) < 1e-20


def test_the_uniform_numbers_are_uniform_by_themselves() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pairs = torch.stack([antithetic(4, 2) for _ in range(2000)])  # [repeats, lanes, D]
        points = torch.stack([sobol(4, 2) for _ in range(2000)])
    torch.testing.assert_close(pairs[:, ::2] + pairs[:, 1::2], torch.ones(2000, 2, 2))
    for u in (pairs, points):
        z = (u.mean(0) - 0.5) / math.sqrt(1 / 12 / 2000)
        assert float(z.abs().max()) < 4.5
        assert abs(float(u.var()) - 1 / 12) < 0.002
    # One of four points in each quarter, in both dimensions.
    assert torch.equal(
        (4 * points).long().sort(1).values, torch.arange(4)[:, None].expand_as(points)
    )


def test_sobol_points_of_one_dimension_leave_the_noise_within_the_strata() -> None:
    """x = theta u on Uniform(0, theta), cost x^2: the pathwise gradient is the mean of 2 theta u^2,
    with one u = (k + d) / N in each of N strata, d uniform in (0, 1) (Owen 1997)."""
    lanes, theta_at, found = 8, 1.5, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for _ in range(2000):
            theta = torch.tensor(theta_at, dtype=torch.float64, requires_grad=True)
            tape = Tape("pathwise", uniforms=sobol(lanes, 1, torch.float64))
            tape.add(tape.sample(Uniform(0.0, theta.expand(lanes), validate_args=False)) ** 2)
            found.append(float(torch.autograd.grad(tape.surrogate(), theta)[0]))
    values = torch.tensor(found, dtype=torch.float64)
    # Var (k + d)^2 = 4 k^2 Var d + 4 k Cov(d, d^2) + Var d^2 = k^2 / 3 + k / 3 + 4 / 45
    inner = sum(k**2 / 3 + k / 3 + 4 / 45 for k in range(lanes))
    variance = (2 * theta_at) ** 2 * inner / lanes**6
    assert abs(float(values.mean()) - 2 * theta_at / 3) < 4 * math.sqrt(variance / len(values))
    assert float(values.var()) == pytest.approx(variance, rel=0.13)
    independent = (2 * theta_at) ** 2 * (1 / 5 - 1 / 9) / lanes
    assert variance < independent / 50


def test_sobol_points_through_several_nodes_are_unbiased_and_calmer() -> None:
    """Two steps of x' ~ N(a x, s): E x_2^2 = a^4 + a^2 s^2 + s^2 at x_0 = 1."""

    def one(uniforms: Tensor | None) -> float:
        a = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
        tape = Tape("score", baseline=1.2, uniforms=uniforms, num_lanes=64)
        x = torch.ones(64, dtype=torch.float64)
        for _ in range(2):
            x = tape.sample(Normal(a * x, 0.5))
        tape.add(x**2)
        return float(torch.autograd.grad(tape.surrogate(), a)[0])

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        points = torch.tensor([one(sobol(64, 2, torch.float64)) for _ in range(500)])
        plain = torch.tensor([one(None) for _ in range(500)])
    exact = 4 * 0.9**3 + 2 * 0.9 * 0.5**2
    assert abs(float(points.mean()) - exact) < 4 * float(points.std()) / math.sqrt(500)
    assert float(points.var()) < 0.3 * float(plain.var())


@pytest.mark.parametrize("family", [Normal, Laplace, LogNormal])
def test_an_inverse_gives_the_law_and_the_path_of_the_distribution(family: type) -> None:
    u = ((torch.arange(20_000) + 0.5) / 20_000).double()[:, None]
    scale = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for how in ("score", "pathwise"):
        tape = Tape(how, uniforms=u)  # type: ignore[arg-type]
        dist = Independent(family(torch.zeros(20_000, 1).double(), scale), 1)
        x = tape.sample(dist)[:, 0]
        assert x.requires_grad == (how == "pathwise")
        assert float(x.detach().mean()) == pytest.approx(
            float(dist.mean[0].detach()), rel=1e-3, abs=1e-6
        )
        tape.add(x**2)
        slope = float(torch.autograd.grad(tape.surrogate(), scale)[0])
        # E x^2 is s^2, 2 s^2 and exp(2 s^2)
        exact = {Normal: 0.8, Laplace: 1.6, LogNormal: 1.6 * math.exp(0.32)}[family]
        assert slope == pytest.approx(exact, rel=0.02)


def test_what_needs_independent_lanes_is_refused() -> None:
    mean = torch.zeros(8, requires_grad=True)

    def scored(baseline: object) -> Tensor:
        tape = Tape("score", baseline=baseline, uniforms=antithetic(8, 1))  # type: ignore[arg-type]
        tape.add(tape.sample(Normal(mean, 1.0)) ** 2)
        return tape.surrogate()

    with pytest.raises(EstimatorError, match="sample 0: expected a baseline of past returns or of"):
        scored(LeaveOneOut())
    with pytest.raises(EstimatorError, match="sample 0: expected a baseline of past returns or of"):
        scored(lambda returns: 0.5 * returns.roll(1))
    for baseline in (MovingAverage(), 0.3, Value(torch.nn.Linear(1, 1)).at(torch.ones(8, 1))):
        assert torch.isfinite(scored(baseline))
    numbers = antithetic(8, 1)
    for how in ("combine", "weak"):
        with pytest.raises(
            EstimatorError, match="expected how='score', 'pathwise' or 'expect' with"
        ):
            Tape(how, uniforms=numbers).sample(Normal(mean, 1.0))  # type: ignore[arg-type]
    with pytest.raises(EstimatorError, match="sample 0: expected a distribution with icdf"):
        Tape("pathwise", uniforms=numbers).sample(Gamma(mean + 1, 1.0))
    tape = Tape("pathwise", uniforms=numbers)
    tape.sample(Exponential(mean + 1))
    with pytest.raises(EstimatorError, match=r"sample 1: expected uniforms \[8, 2\] or wider"):
        tape.sample(Normal(mean, 1.0))
    with pytest.raises(
        EstimatorError,
        match="sample 0: expected 'score' and 'pathwise' nodes before it, and a tape",
    ):
        Tape("score", uniforms=numbers).resample(mean)
    with pytest.raises(EstimatorError, match="uniforms: expected a tensor, got ndarray"):
        Tape(uniforms=numbers.numpy())  # type: ignore[arg-type]
    with pytest.raises(EstimatorError, match=r"uniforms: expected .* strictly between 0 and 1"):
        Tape(uniforms=torch.zeros(8, 1))
    with pytest.raises(EstimatorError, match="antithetic: expected an even number of lanes, got 7"):
        antithetic(7, 1)

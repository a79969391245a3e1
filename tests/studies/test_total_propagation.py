"""The chaotic recurrent network: exact answers by quadrature, the tape against them and by hand."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rlpg.gradients.baselines import LeaveOneOut
from rlpg.gradients.compare import compare
from rlpg.gradients.experiment import seeded
from rlpg.gradients.tape import Tape

STUDIES = str(Path(__file__).parents[2] / "studies")


@pytest.fixture(scope="module")
def rnn() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDIES)
        yield importlib.import_module("total_propagation")


def test_quadrature_of_one_step_is_the_closed_form(rnn: ModuleType) -> None:
    beta, inner = 2.4, [5 * 0.2, 25 * 0.2]  # s_0 W
    mean = [1 / (1 + math.exp(-beta * x)) for x in inner]
    slope = [m * (1 - m) * x for m, x in zip(mean, inner, strict=True)]
    found = rnn.exact(beta, 1, 12001)
    # E[-0.5 |1 - m - sigma e|^2] and its derivative; (1 - m - sigma e) . slope has one variance.
    assert found.objective == pytest.approx(
        -0.5 * sum((1 - m) ** 2 + rnn.NOISE**2 for m in mean), rel=1e-9
    )
    gradient = sum((1 - m) * d for m, d in zip(mean, slope, strict=True))
    assert found.gradient == pytest.approx(gradient, rel=1e-9)
    pathwise = rnn.NOISE**2 * sum(d**2 for d in slope)
    assert found.pathwise_variance == pytest.approx(pathwise, rel=1e-5)


def test_quadrature_does_not_depend_on_its_grid_and_agrees_with_differences(
    rnn: ModuleType,
) -> None:
    coarse, fine = rnn.exact(2.4, 20, 8001), rnn.exact(2.4, 20, 16001)
    for field in ("objective", "gradient", "pathwise_variance", "score_variance"):
        assert getattr(coarse, field) == pytest.approx(getattr(fine, field), rel=2e-4)
    above, below = (rnn.exact(2.4 + h, 20, 16001).objective for h in (1e-5, -1e-5))
    assert fine.gradient == pytest.approx((above - below) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("measured_on", ["state", "beta"])
def test_combine_is_the_recursion_written_by_hand(
    rnn: ModuleType, crossed: bool, measured_on: str
) -> None:
    beta = torch.tensor([2.4], dtype=torch.float64, requires_grad=True)
    with seeded(5, {"beta": beta}):
        tape = Tape("combine", baseline=LeaveOneOut(), exact_ivw=not crossed, num_lanes=60)
        rnn.network(tape, 60, tape.per_lane(beta) if measured_on == "beta" else beta, 30)
        (by_tape,) = torch.autograd.grad(tape.surrogate(), beta)
    with seeded(5, {"beta": beta}):
        noise = torch.stack([torch.randn(60, 2, dtype=torch.float64) for _ in range(30)])
    by_hand = rnn.by_hand(noise, 2.4, measured_on, crossed=crossed).mean()
    torch.testing.assert_close(by_tape[0], by_hand, rtol=1e-8, atol=1e-10)


def test_mean_and_variance_of_every_estimator(rnn: ModuleType) -> None:
    """Horizon 20. Predicted variances give the standard errors of the means; those of the
    variances come from the batches themselves (1000 lanes each: nearly normal)."""
    beta = torch.tensor([2.4], dtype=torch.float64, requires_grad=True)
    truth, repeats = rnn.exact(2.4, 20, 12001), 60
    found = compare(
        lambda tape, lanes: rnn.network(tape, lanes, beta, 20),
        {"beta": beta},
        {
            "pathwise": "pathwise",
            "score": lambda: Tape("score", baseline=truth.objective),
            "combine": lambda: Tape("combine", baseline=LeaveOneOut()),
        },
        num_lanes=1000,
        repeats=repeats,
        reference={"beta": torch.tensor([truth.gradient])},
        seed=3,
    )
    predicted = {"pathwise": truth.pathwise_variance, "score": truth.score_variance}
    for row in found.rows:
        variance = predicted.get(row.estimator, row.variance_per_lane)
        z = (row.mean - truth.gradient) / math.sqrt(variance / 1000 / repeats)
        assert abs(z) < 4, row
        if row.estimator in predicted:
            error = variance * math.sqrt(2 / (repeats - 1))
            assert abs(row.variance_per_lane - variance) < 4 * error, row


def test_published_weights_beat_both_by_two_orders_of_magnitude(rnn: ModuleType) -> None:
    """Horizon 100, 20 batches of 1000. Published: score 79, mixed 0.53; pathwise 163 is a sample of
    a law whose true variance is 361."""
    truth = rnn.exact(2.4, 100, 12001)
    assert truth.score_variance == pytest.approx(79, rel=0.02)
    assert truth.pathwise_variance == pytest.approx(361, rel=0.01)
    generator = torch.Generator().manual_seed(0)
    lanes = []
    for _ in range(20):
        noise = rnn._noise(100, 1000, generator)
        lanes.append(rnn.by_hand(noise, 2.4, "beta", crossed=False))
    mixed = torch.stack(lanes)
    assert float(mixed.var()) == pytest.approx(0.53, rel=0.2)
    z = (float(mixed.mean()) - truth.gradient) / math.sqrt(0.53 / 20_000)
    assert abs(z) < 4

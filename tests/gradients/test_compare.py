"""The comparison table: its figures against closed forms, and its refusals."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import LeaveOneOut
from rlpg.gradients.compare import compare
from rlpg.gradients.controls import DeltaMethod, KnownMean, Relax
from rlpg.gradients.draws import antithetic, sobol
from rlpg.gradients.estimators import importance_weighted_bound
from rlpg.gradients.experiment import Problem, TapeMaker
from rlpg.gradients.gradcheck import gradcheck
from rlpg.gradients.tape import How, Tape

MEAN, SCALE = 0.5, 0.8


def leaf(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def test_means_and_variances_equal_the_closed_forms() -> None:
    # f = z^2, z = m + s e.  Pathwise for m: 2 z, variance 4 s^2; for s: 2 z e = 2 m e + 2 s e^2,
    # variance 4 m^2 + 8 s^2.  Score for m: e / s (m + s e)^2; moments of e: 1, 0, 3, 0, 15, 0.
    # E[g^2] = (m^4 + 6 m^2 s^2 * 3 + 15 s^4) / s^2, mean 2 m.
    mean, scale = leaf(MEAN), leaf(SCALE)

    def problem(tape: Tape, lanes: int) -> None:
        z = tape.sample(Normal(mean.expand(lanes), scale.expand(lanes)))
        tape.add(z**2)

    lanes, repeats = 200, 1200
    result = compare(
        problem,
        {"mean": mean, "scale": scale},
        ["score", "pathwise"],
        num_lanes=lanes,
        repeats=repeats,
        reference={"mean": torch.tensor(2 * MEAN), "scale": torch.tensor(2 * SCALE)},
    )
    m, s = MEAN, SCALE
    want = {
        ("pathwise", "mean"): (2 * m, 4 * s**2),
        ("pathwise", "scale"): (2 * s, 4 * m**2 + 8 * s**2),
        ("score", "mean"): (2 * m, (m**4 + 18 * m**2 * s**2 + 15 * s**4) / s**2 - 4 * m**2),
    }
    for row in result.rows:
        assert abs(row.bias_z) < 4
        if (row.estimator, row.parameter) in want:
            exact, variance = want[row.estimator, row.parameter]
            assert abs(row.mean - exact) < 4 * math.sqrt(variance / lanes / repeats)
            # A batch's mean is nearly Gaussian: its variance estimate scatters by sqrt(2 / R).
            assert abs(row.variance_per_lane / variance - 1) < 4 * math.sqrt(2.5 / repeats)
            assert row.lanes_needed == pytest.approx(variance / exact**2, rel=0.3)
            assert row.signal_to_noise == pytest.approx(
                exact / math.sqrt(variance / lanes), rel=0.15
            )
            assert row.ms_per_lane > 0
    table = str(result)
    assert "lanes for SNR 1" in table
    assert len(table.splitlines()) == 1 + 4 + 1
    assert result.gradients["score"].shape == (repeats, 2)


class Scripted:
    """A program whose gradients are given: repeat k of an estimator has row k of its table.

    lone     score    1 3 5 3   mean 3, variance 8/3
             pathwise 3 5 3 5   mean 4, variance 4/3
    pair     score    (3, 4) in every repeat
             pathwise (4, 4) (2, 6) (4, 4) (2, 6): mean (3, 5), variance 4/3 each
    """

    def __init__(self) -> None:
        self.lone = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self.pair = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        self.clock = 0.0
        self.tables = {
            "score": iter([(1, 3, 4), (3, 3, 4), (5, 3, 4), (3, 3, 4)]),
            "pathwise": iter([(3, 4, 4), (5, 2, 6), (3, 4, 4), (5, 2, 6)]),
        }
        self.pace = {"score": iter([0.4, 0.1, 0.3, 0.2]), "pathwise": iter([0.1] * 4)}

    def __call__(self, tape: Tape, lanes: int) -> Tensor:
        if type(tape) is not Tape:  # a replay looks for coupled lanes
            return self.lone
        self.clock += next(self.pace[tape.how])
        a, b, c = next(self.tables[tape.how])
        return a * self.lone + b * self.pair[0] + c * self.pair[1]


def test_every_figure_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Scripted()
    monkeypatch.setattr("rlpg.gradients.compare.time.perf_counter", lambda: program.clock)
    found = compare(program, {"lone": program.lone, "pair": program.pair}, num_lanes=10, repeats=4)
    lone, lone_path, pair, pair_path = found.rows
    assert (lone.mean, lone_path.mean) == (3.0, 4.0)
    assert lone.variance_per_lane == pytest.approx(80 / 3)  # times the lanes
    # |mean|^2 less the variance of the mean: 9 - (8/3) / 4 = 25/3
    assert lone.signal_to_noise == pytest.approx(math.sqrt(25 / 8))
    assert lone.lanes_needed == pytest.approx(80 / 25)
    assert lone.bias_z == 0.0  # the reference
    # standard error of the difference: (8/3 + 4/3) / 4 = 1
    assert lone_path.bias_z == pytest.approx((4 - 3) / 1)
    assert (pair.mean, pair_path.mean) == (5.0, pytest.approx(math.sqrt(34)))
    assert pair_path.variance_per_lane == pytest.approx(10 * 8 / 3)
    assert pair_path.signal_to_noise == pytest.approx(math.sqrt((34 - 2 / 3) / (8 / 3)))
    assert (pair.signal_to_noise, pair.lanes_needed) == (math.inf, 0.0)
    # (5 - 4)^2 / (1/3) = 3 = chi-square of 2 dimensions: (3 - 2) / sqrt(4)
    assert pair_path.bias_z == pytest.approx(0.5)
    # the median of 0.1, 0.2, 0.3, 0.4 s (the upper one), per lane
    assert lone.ms_per_lane == pytest.approx(30.0)
    assert lone_path.ms_per_lane == pytest.approx(10.0)
    assert found.gradients["pathwise"][1].tolist() == [5.0, 2.0, 6.0]


def test_an_exact_reference_has_no_error_of_its_own() -> None:
    program = Scripted()
    exact = {"lone": torch.tensor(2.0), "pair": torch.tensor([3.0, 4.0])}
    found = compare(
        program,
        {"lone": program.lone, "pair": program.pair},
        num_lanes=10,
        repeats=4,
        reference=exact,
    )
    lone, lone_path, pair, _ = found.rows
    assert lone.bias_z == pytest.approx((3 - 2) / math.sqrt(8 / 3 / 4))
    assert lone_path.bias_z == pytest.approx((4 - 2) / math.sqrt(4 / 3 / 4))
    assert pair.bias_z == pytest.approx(-1.0)  # chi-square 0 of 2 dimensions: (0 - 2) / sqrt(4)
    assert "bias against exact values" in str(found)


def test_no_signal_asks_for_infinitely_many_lanes() -> None:
    program = Scripted()
    program.tables = {
        "score": iter([(1, 0, 0), (-1, 0, 0), (1, 0, 0), (-1, 0, 0)]),
        "pathwise": iter([(0, 0, 0)] * 4),
    }
    found = compare(program, {"lone": program.lone}, num_lanes=10, repeats=4)
    score, pathwise = found.rows
    assert (score.signal_to_noise, score.lanes_needed) == (0.0, math.inf)
    assert (pathwise.signal_to_noise, pathwise.lanes_needed) == (math.inf, math.inf)


def test_a_bias_is_seen_and_exact_estimators_have_no_noise() -> None:
    logit = leaf(-1.5)

    def problem(tape: Tape, lanes: int) -> None:
        b = tape.sample(Bernoulli(logits=logit.expand(lanes)))
        tape.add((b - 0.45) ** 2)

    result = compare(
        problem,
        logit,
        ["expect", "score", "biased_straight_through"],
        num_lanes=50,
        repeats=200,
    )
    exact, score, straight = result.rows
    p = 1 / (1 + math.exp(1.5))
    assert exact.mean == pytest.approx(p * (1 - p) * (0.55**2 - 0.45**2))
    assert exact.variance_per_lane == pytest.approx(0.0, abs=1e-20)
    assert exact.bias_z == 0.0
    assert abs(score.bias_z) < 4
    assert straight.bias_z < -20  # and of the wrong sign:
    assert straight.mean < 0 < exact.mean


def test_makers_of_tapes_bring_their_own_baselines() -> None:
    mean = leaf(MEAN)

    def problem(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Normal(mean.expand(lanes), 1.0)) ** 2 + 5.0)

    result = compare(
        problem,
        [mean],
        {"plain": "score", "left out": lambda: Tape(baseline=LeaveOneOut())},
        num_lanes=50,
        repeats=200,
    )
    plain, left_out = result.rows
    assert left_out.variance_per_lane < plain.variance_per_lane / 3
    assert plain.parameter == "parameter 0"


def test_vectors_are_one_row_and_random_numbers_are_put_back(tmp_path: Path) -> None:
    mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def problem(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Normal(mean.expand(lanes, 3), 1.0)).sum(1))

    before = torch.random.get_rng_state()
    picture = tmp_path / "compare.png"
    result = compare(problem, mean, num_lanes=100, repeats=50, plot=picture)
    assert torch.equal(before, torch.random.get_rng_state())
    again = compare(problem, mean, num_lanes=100, repeats=50)
    assert torch.equal(result.gradients["score"], again.gradients["score"])
    score, pathwise = result.rows
    assert pathwise.mean == pytest.approx(math.sqrt(3))
    assert pathwise.variance_per_lane == pytest.approx(0.0, abs=1e-20)
    assert abs(score.bias_z) < 4
    assert pathwise.signal_to_noise > 1e6
    assert mean.grad is None
    assert picture.stat().st_size > 1000


def test_bad_arguments_are_named() -> None:
    mean = leaf(MEAN)

    def problem(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Normal(mean.expand(lanes), 1.0)))

    with pytest.raises(EstimatorError, match="expected at least 2 repeats"):
        compare(problem, mean, repeats=1)
    with pytest.raises(EstimatorError, match="a reference among"):
        compare(problem, mean, reference="truth")
    with pytest.raises(EstimatorError, match="expected reference gradients for"):
        compare(problem, mean, reference={"other": torch.zeros(())})
    with pytest.raises(EstimatorError, match="expected a leaf tensor with requires_grad"):
        compare(problem, mean.detach())
    with pytest.raises(EstimatorError, match="term 0: expected 10 lanes, got 3"):
        compare(lambda tape, lanes: problem(tape, 3), mean, num_lanes=10)
    with pytest.raises(EstimatorError, match=r"got 'score'; write \['score'\]"):
        compare(problem, mean, "score")  # type: ignore[arg-type]
    with pytest.raises(EstimatorError, match="expected how in score"):
        compare(problem, mean, ["reinforce"])  # type: ignore[list-item]

    def coupled(tape: Tape, lanes: int) -> None:
        z = tape.sample(Normal(mean.expand(lanes), 1.0))
        tape.add(z * z.mean())

    with pytest.raises(EstimatorError, match="sample 0: expected independent lanes"):
        compare(coupled, mean)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "how", ["score", "combine", "expect", "weak", "disarm", "without_replacement"]
)
def test_lanes_coupled_through_discrete_samples_are_found(how: How, seed: int) -> None:
    """Lane 0 got lane 1's outcome, mostly the same one; half of the estimators were not asked."""
    logit = leaf(-0.85)

    def coupled(tape: Tape, lanes: int) -> None:
        logits = logit.expand(lanes)
        if how == "without_replacement":
            x = tape.sample(Categorical(logits=torch.stack([logits, -logits], -1))).double()
        elif how == "combine":
            x = tape.sample(Normal(logits, 1.0)).round()
        else:
            x = tape.sample(Bernoulli(logits=logits))
        tape.add((x - x.mean(-1, keepdim=True)) ** 2)

    with pytest.raises(EstimatorError, match="expected independent lanes"):
        compare(coupled, logit, [how], num_lanes=50, repeats=2, seed=seed)
    with pytest.raises(EstimatorError, match="expected independent lanes"):
        gradcheck(coupled, logit, how, num_lanes=50, max_repeats=32, seed=seed)


def branching(name: str, logits: Tensor) -> Problem:
    """A right program that uses the shape which samples of branching nodes are said to have."""

    def program(tape: Tape, lanes: int) -> None:
        if name == "payments by outcome":
            tape.sample(Categorical(logits=logits.expand(lanes, 3)), "expect")
            tape.add(torch.tensor([[1.0], [0.0], [2.0]]).repeat(1, lanes))
        elif name == "one of each draw":
            dist = Categorical(logits=logits.expand(lanes, 3))
            one, two, three = tape.sample(dist, "without_replacement")
            tape.add(torch.stack([one, two, three]).double())
        elif name == "mean over outcomes":
            x = tape.sample(Categorical(logits=logits.expand(lanes, 3)), "expect").double()
            tape.add(x**2 - x.mean(0))
        else:
            a = tape.sample(Bernoulli(logits=logits[:1].expand(lanes)), "disarm")
            x = tape.sample(Normal(logits[1] * a, 1.0), "score")
            b = tape.sample(Bernoulli(logits=x + logits[2]), "expect")
            first, second = (b * x).unbind(1)
            tape.add(torch.stack([first**2, second], dim=1))

    return program


@pytest.mark.parametrize(
    "name", ["payments by outcome", "one of each draw", "mean over outcomes", "nodes in branches"]
)
def test_bug_programs_that_use_their_branches_were_refused(name: str) -> None:
    """Whether lanes meet was looked at with one sample in place of the branches."""
    logits = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    program = branching(name, logits)
    tapes = {"tape": lambda: Tape(num_draws=3)}
    assert len(compare(program, logits, tapes, num_lanes=20, repeats=2).rows) == 1
    gradcheck(program, logits, tapes["tape"], num_lanes=200, resolution=0.5)


def test_lanes_coupled_inside_branches_are_found() -> None:
    logits = torch.tensor([0.4, -0.2], dtype=torch.float64, requires_grad=True)

    def coupled(tape: Tape, lanes: int) -> None:
        a = tape.sample(Bernoulli(logits=logits[:1].expand(lanes)), "expect")
        x = tape.sample(Normal(logits[1] * a, 1.0), "score")
        tape.add(x * x.mean(-1, keepdim=True))

    with pytest.raises(EstimatorError, match="sample 1: expected independent lanes"):
        compare(coupled, logits, ["score"], num_lanes=20, repeats=2)


def test_a_sample_that_is_the_same_in_all_lanes_says_nothing_about_them() -> None:
    logit = leaf(40.0)

    def certain(tape: Tape, lanes: int) -> None:
        x = tape.sample(Bernoulli(logits=logit.expand(lanes)))
        tape.add((x - x.mean()) ** 2)

    assert len(compare(certain, logit, ["score"], num_lanes=20, repeats=2).rows) == 1


def test_a_program_that_draws_noise_of_its_own_is_not_taken_for_coupled_lanes() -> None:
    """The replay with one swapped sample must see the same noise, or every lane seems to change."""
    mean = torch.tensor(0.5, requires_grad=True)

    def program(tape: Tape, num_lanes: int) -> None:
        x = tape.sample(Normal(mean.expand(num_lanes), 1.0))
        tape.add(x * torch.randn(num_lanes))

    found = compare(program, {"mean": mean}, ["score"], num_lanes=20, repeats=20)
    assert len(found.rows) == 1


@pytest.mark.parametrize("source", ["NumPy", "generator", "memory"])
def test_noise_that_no_seed_of_torch_reaches_was_taken_for_coupled_lanes(source: str) -> None:
    """Two plays with the same samples differ in every lane, whatever was swapped."""
    mean = torch.tensor(0.5, requires_grad=True)
    numbers, generator, plays = np.random.default_rng(0), torch.Generator(), []

    def program(tape: Tape, num_lanes: int) -> None:
        x = tape.sample(Normal(mean.expand(num_lanes), 1.0))
        plays.append(float(x.mean()))
        if source == "NumPy":
            tape.add(x * torch.from_numpy(numbers.standard_normal(num_lanes)))
        elif source == "generator":
            tape.add(x * torch.randn(num_lanes, generator=generator))
        else:  # a mean of earlier plays
            tape.add(x - sum(plays[:-1]) / len(plays))

    found = compare(program, {"mean": mean}, ["score"], num_lanes=20, repeats=20)
    assert len(found.rows) == 1


# ---- a row for every estimator -----------------------------------------------------------------


def rows_of_coins(logits: Tensor) -> tuple[dict[str, Problem], dict[str, How | TapeMaker]]:
    """Two coins that are paid one by one; each estimator's program and tape."""

    def coins(tape: Tape, lanes: int, *, declared: bool = False, per_lane: bool = False) -> None:
        theta = tape.per_lane(logits) if per_lane else logits.expand(lanes, 2)
        x = tape.sample(Bernoulli(logits=theta[:, 0]))
        y = tape.sample(Bernoulli(logits=theta[:, 1]), depends_on=[] if declared else None)
        tape.add(2 * x, depends_on=[x] if declared else None)
        tape.add(y - 3.0, depends_on=[y] if declared else None)

    known = KnownMean(lambda b: 1.5 * b - 3.0, lambda dist: 1.5 * dist.mean - 3.0)
    tapes: dict[str, How | TapeMaker] = {
        "score": "score",
        "RLOO": lambda: Tape(baseline=LeaveOneOut(groups=5)),
        "by dependency": lambda: Tape(baseline=LeaveOneOut()),
        "known mean": lambda: Tape(control=known),
        "RELAX": lambda: Tape(control=Relax(lambda z: torch.sigmoid(z) - 2.0)),
        "DisARM": "disarm",
        "expect": "expect",
    }
    programs: dict[str, Problem] = dict.fromkeys(tapes, coins)
    programs["by dependency"] = functools.partial(coins, declared=True)
    programs["RLOO"] = functools.partial(coins, per_lane=True)
    return programs, tapes


def test_a_row_for_every_estimator_of_coins() -> None:
    logits = torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)
    programs, tapes = rows_of_coins(logits)
    p = torch.sigmoid(logits.detach())
    exact = p * (1 - p) * torch.tensor([2.0, 1.0])
    found = compare(
        programs, logits, tapes, num_lanes=20, repeats=250, reference={"parameter": exact}
    )
    variance = {row.estimator: row.variance_per_lane for row in found.rows}
    assert all(abs(row.bias_z) < 4 for row in found.rows)
    assert variance.pop("expect") < 1e-20
    plain = variance.pop("score")
    assert all(value < 0.6 * plain for value in variance.values()), variance
    with pytest.raises(EstimatorError, match="expected a program for each of"):
        compare(programs, logits, ["score"])


def test_rows_of_given_numbers_of_models_and_of_choices() -> None:
    mean = leaf(0.5)

    def quadratic(tape: Tape, lanes: int) -> None:
        tape.add(tape.sample(Normal(mean.expand(lanes), 0.8)) ** 2)

    found = compare(
        quadratic,
        mean,
        {
            "score": "score",
            "delta method": lambda: Tape(control=DeltaMethod(lambda x: x**2)),
            "pathwise": "pathwise",
            "antithetic": lambda: Tape("pathwise", uniforms=antithetic(16, 1, torch.float64)),
            "sobol": lambda: Tape("pathwise", uniforms=sobol(16, 1, torch.float64)),
        },
        num_lanes=16,
        repeats=100,
        reference={"parameter": torch.tensor(1.0)},
    )
    variance = {row.estimator: row.variance_per_lane for row in found.rows}
    assert all(abs(row.bias_z) < 4 for row in found.rows)
    assert variance["delta method"] < 1e-20
    assert variance["antithetic"] < 1e-20
    assert variance["sobol"] < 0.1 * variance["pathwise"] < variance["score"]
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    paid = torch.tensor([1.0, 0.0, -0.5, 2.0], dtype=torch.float64)

    def choice(tape: Tape, lanes: int) -> None:
        tape.add(paid[tape.sample(Categorical(logits=logits.expand(lanes, 4)))])

    found = compare(
        choice,
        logits,
        {"expect": "expect", "score": "score", "sets": "without_replacement"},
        num_lanes=20,
        repeats=150,
    )
    expect, score, sets = found.rows
    assert abs(sets.bias_z) < 4
    assert expect.variance_per_lane < 1e-20 < sets.variance_per_lane < score.variance_per_lane / 1.5


def test_a_row_for_vimco() -> None:
    """log 1/K sum w of K coins per item: the bound's own surrogate beside a plain score."""
    logit, num = leaf(0.4), 3

    def bound(tape: Tape, lanes: int, *, vimco: bool) -> Tensor:
        q = Bernoulli(logits=logit.expand(lanes, num))
        z = tape.sample(q, how="score")
        log_q = q.log_prob(z)
        log_w = (1.0 + 2 * z).log() - log_q
        each = log_w.logsumexp(1) - math.log(num)
        tape.add(each)
        if vimco:
            return importance_weighted_bound(log_w.T, log_q.T).mean()
        return (each + each.detach() * log_q.sum(1)).mean()

    exact = torch.zeros((), dtype=torch.float64)
    for z in itertools.product((0.0, 1.0), repeat=num):
        drawn = torch.tensor(z, dtype=torch.float64)
        log_q = Bernoulli(logits=logit).log_prob(drawn)
        value = ((1 + 2 * drawn).log() - log_q).logsumexp(0) - math.log(num)
        exact = exact + log_q.sum().exp() * value
    found = compare(
        {
            "score": functools.partial(bound, vimco=False),
            "VIMCO": functools.partial(bound, vimco=True),
        },
        logit,
        {"score": "score", "VIMCO": "score"},
        num_lanes=50,
        repeats=150,
        reference={"parameter": torch.autograd.grad(exact, logit)[0]},
    )
    score, vimco = found.rows
    assert abs(score.bias_z) < 4
    assert abs(vimco.bias_z) < 4
    assert vimco.variance_per_lane < score.variance_per_lane / 2

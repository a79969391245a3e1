"""The mixture of score and pathwise gradients: its weights, and that they cost no bias."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Independent, Normal

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import LeaveOneOut, OptimalConstant
from rlpg.gradients.combine import mixing_weight
from rlpg.gradients.events import Node
from rlpg.gradients.tape import How, Tape


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_weight_minimizes_the_variance_of_the_mixture() -> None:
    path = torch.randn(4000, 2) * 2
    score = 0.5 * path + torch.randn(4000, 2) * 3
    k = mixing_weight(path, score)
    for other in (k - 0.05, k + 0.05):
        at_k = (k * score + (1 - k) * path).var(0).sum()
        assert at_k < (other * score + (1 - other) * path).var(0).sum()
    # Var a = 4, Var s = 1 + 9 = 10, Cov = 2 per dimension: (4 - 2) / (4 + 10 - 4) and 4 / 14
    assert k == pytest.approx(2 / 10, abs=0.03)
    assert mixing_weight(path, score, exact_ivw=True) == pytest.approx(4 / 14, abs=0.02)


def test_weight_of_what_has_exploded_is_zero() -> None:
    fine, exploded = torch.randn(10, 1), torch.full((10, 1), float("inf"))
    assert mixing_weight(exploded, fine) == 1.0
    assert mixing_weight(fine, exploded) == 0.0
    assert mixing_weight(torch.ones(10, 1), torch.ones(10, 1)) == 0.0


def estimates(how: How, *, lanes: int, repeats: int, exact_ivw: bool = False) -> Tensor:
    """`[repeats, 2]` gradients of E[exp(a z)] with z ~ N(mean, scale), few lanes, steep cost."""
    found = []
    for _ in range(repeats):
        theta = torch.tensor([0.2, 0.8], dtype=torch.float64, requires_grad=True)
        tape = Tape(how, exact_ivw=exact_ivw)
        z = tape.sample(Normal(theta[0].expand(lanes), theta[1].expand(lanes)))
        tape.add((1.5 * z).sin() + 3 * z.square())
        tape.surrogate().backward()
        assert theta.grad is not None
        found.append(theta.grad)
    return torch.stack(found)


def test_cross_fitted_weights_are_unbiased_where_in_sample_weights_are_not() -> None:
    # E[sin(a z) + 3 z^2] = exp(-a^2 s^2 / 2) sin(a m) + 3 (m^2 + s^2)
    a, m, s = 1.5, 0.2, 0.8
    decay = math.exp(-(a**2) * s**2 / 2)
    exact = torch.tensor(
        [decay * a * math.cos(a * m) + 6 * m, -decay * a**2 * s * math.sin(a * m) + 6 * s],
        dtype=torch.float64,
    )

    def z_scores(found: Tensor) -> Tensor:
        return (found.mean(0) - exact) / (found.std(0) / math.sqrt(len(found)))

    crossed = estimates("combine", lanes=6, repeats=800)
    assert z_scores(crossed).abs().max() < 4
    in_sample = estimates("combine", lanes=6, repeats=800, exact_ivw=True)
    assert z_scores(in_sample).abs().max() > 6


def test_mixture_is_unbiased_through_several_steps_and_beats_both_parts() -> None:
    # x' = w x + s e, three steps, cost x_3^2 + sin(6 x_3): the path is noisy from the sine, the
    # score from the square. E x_3^2 and E sin(6 x_3) are closed forms in mean and variance.
    steps, repeats, lanes = 3, 240, 12

    def moments(theta: Tensor) -> Tensor:
        mean, var = torch.tensor(1.0, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for _ in range(steps):
            mean, var = theta[0] * mean, theta[0] ** 2 * var + theta[1] ** 2
        return mean**2 + var + torch.exp(-18 * var) * torch.sin(6 * mean)

    start = torch.tensor([0.9, 0.3], dtype=torch.float64)
    exact = torch.autograd.functional.jacobian(moments, start)
    spread: dict[str, float] = {}
    for how in ("score", "pathwise", "combine"):
        found = []
        for _ in range(repeats):
            theta = start.clone().requires_grad_()
            tape = Tape(how, baseline=LeaveOneOut())
            x = torch.ones(lanes, dtype=torch.float64)
            for _ in range(steps):
                x = tape.sample(Normal(theta[0] * x, theta[1].expand(lanes)))
            tape.add(x**2 + torch.sin(6 * x))
            tape.surrogate().backward()
            found.append(theta.grad)
        batch = torch.stack([grad for grad in found if grad is not None])
        z = (batch.mean(0) - exact) / (batch.std(0) / math.sqrt(repeats))
        assert z.abs().max() < 4, how
        spread[how] = float(batch.var(0).sum())
    assert spread["combine"] < 1.05 * min(spread["score"], spread["pathwise"])


def test_mixture_works_for_other_reparametrized_families_and_baselines() -> None:
    rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    tape = Tape("combine", baseline=OptimalConstant())
    lanes = 4000
    first = tape.sample(Gamma(torch.full((lanes,), 3.0, dtype=torch.float64), rate.expand(lanes)))
    second = tape.sample(Independent(Normal(mean.expand(lanes, 3), 1.0), 1))
    tape.add(first + second.square().sum(1) + 2 * second[:, 0])
    tape.surrogate().backward()
    assert rate.grad is not None
    assert mean.grad is not None
    # d/d rate of 3 / rate; d/d mean of mean^2 + 2 mean_0. Standard errors below 4 / sqrt(lanes).
    assert float(rate.grad) == pytest.approx(-0.75, abs=0.1)
    torch.testing.assert_close(
        mean.grad, torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64), atol=0.15, rtol=0.0
    )


def test_an_exploding_path_leaves_the_score() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    tape = Tape("combine")
    x = tape.sample(Normal(theta.expand(8), 1.0))
    steep = x
    for _ in range(40):
        steep = 1e3 * torch.sin(1e3 * steep)
    tape.add(torch.tanh(steep))
    tape.surrogate().backward()
    assert theta.grad is not None
    assert bool(torch.isfinite(theta.grad))


# ---- variances measured in the policy's gradient -----------------------------------------------


def steps(tape: Tape, gain: Tensor, num_steps: int = 3) -> None:
    """x' ~ N(gain x + sin(3 x), 0.3); `gain` is a number per lane."""
    x = torch.ones(len(gain), dtype=torch.float64)
    for _ in range(num_steps):
        x = tape.sample(Normal(gain * x + torch.sin(3 * x), 0.3))
    tape.add(-(x**2))


def test_lane_gradients_are_those_of_every_lane_and_their_mean_is_the_gradient() -> None:
    theta = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    for how in ("score", "pathwise", "combine"):
        tape = Tape(how, num_lanes=6)  # type: ignore[arg-type]
        copies = tape.per_lane(theta)
        assert copies.shape == (6,)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            steps(tape, copies)
        surrogate = tape.surrogate()
        (lanes,) = torch.autograd.grad(surrogate, copies, retain_graph=True)
        (whole,) = torch.autograd.grad(surrogate, theta)
        torch.testing.assert_close(lanes.sum(), whole)
        if how == "pathwise":  # the lane's own derivative, by autograd without a tape
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                free = theta.detach().expand(6).clone().requires_grad_()
                x = torch.ones(6, dtype=torch.float64)
                for _ in range(3):
                    x = Normal(free * x + torch.sin(3 * x), 0.3).rsample()
            torch.testing.assert_close(6 * lanes, torch.autograd.grad(-(x**2).sum(), free)[0])
    with pytest.raises(EstimatorError, match=r"per_lane: expected a Tape\(num_lanes="):
        Tape().per_lane(theta)


def test_policy_weights_are_the_recursion_written_by_hand() -> None:
    """Each step's weight from the variances of its share of the gradient for the gain, lane by
    lane, samples before it held fixed: `exact_ivw`, so with the published formula."""
    lanes, num_steps = 50, 3
    gain = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        tape = Tape("combine", num_lanes=lanes, exact_ivw=True)
        steps(tape, tape.per_lane(gain))
        (found,) = torch.autograd.grad(tape.surrogate(), gain)
        torch.manual_seed(4)
        noise = [torch.randn(lanes, dtype=torch.float64) for _ in range(num_steps)]
    x, seen = torch.ones(lanes, dtype=torch.float64), []
    for e in noise:
        seen.append((x, e))
        x = 0.6 * x + torch.sin(3 * x) + 0.3 * e
    paid, carried, total = -(x**2), -2 * x, torch.zeros(lanes).double()
    for before, e in reversed(seen):
        score = paid * e / 0.3
        path, mine = carried * before, score * before  # of the gain: d mean / d gain = x
        k = float(path.var() / (path.var() + mine.var()))
        mixed = k * score + (1 - k) * carried
        total += mixed * before
        carried = mixed * (0.6 + 3 * torch.cos(3 * before))
    assert float(found) == pytest.approx(float(total.mean()))


def test_policy_weights_are_unbiased_and_calmer_where_steps_are_many() -> None:
    """The gain enters every step; against the pathwise gradient, which is exact on average."""
    gain = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def gradients(how: str, *, policy: bool, repeats: int = 80) -> Tensor:
        found = []
        for _ in range(repeats):
            tape = Tape(how, baseline=0.0 if how == "combine" else None, num_lanes=40)  # type: ignore[arg-type]
            steps(tape, tape.per_lane(gain) if policy else gain.expand(40), num_steps=6)
            found.append(torch.autograd.grad(tape.surrogate(), gain)[0])
        return torch.stack(found)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        own = gradients("combine", policy=False)
        policy = gradients("combine", policy=True)
    error = math.sqrt(float(own.var() + policy.var()) / len(own))
    assert abs(float(own.mean() - policy.mean())) < 4 * error
    assert float(policy.var()) < float(own.var())


def test_a_mixture_that_nobody_needs_any_more_stayed_in_memory() -> None:
    """Its graph held it and it held its graph: training with combine grew by every window."""
    mean = torch.zeros(8, requires_grad=True)
    tape = Tape("combine")
    tape.add(tape.sample(Normal(mean + 1, torch.ones(8))).square())
    tape.surrogate().backward()
    (mixture,) = (weakref.ref(event.mixture) for event in tape.events if isinstance(event, Node))
    assert mixture() is not None
    del tape
    gc.collect()
    assert mixture() is None


@pytest.mark.parametrize("how", ["combine", "score", "pathwise", "weak"])
def test_a_later_surrogate_changed_the_gradient_of_an_earlier_one(how: How) -> None:
    """The credit of "combine" was kept in the node: 1.52 in place of -0.03."""
    found = []
    for goes_on in (False, True):
        torch.manual_seed(0)
        theta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        tape = Tape(how, baseline=LeaveOneOut() if how in ("combine", "score") else None)
        tape.add((9 * tape.sample(Normal(theta.expand(50), 1.0))).sin())
        earlier = tape.surrogate()
        if goes_on:
            tape.add(torch.randn(50, dtype=torch.float64))
            tape.surrogate()
        found += torch.autograd.grad(earlier, theta)
    assert torch.equal(*found)

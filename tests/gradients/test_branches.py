"""Branching nodes: weak derivatives against closed forms (means by z-test, variances where they are
known), antithetic pairs and sets without replacement over every outcome."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Exponential,
    Gamma,
    Normal,
    Poisson,
)

from rlpg.errors import EstimatorError
from rlpg.gradients.branches import sets_without_replacement, weak_branches
from rlpg.gradients.tape import Tape

Family = Callable[[Tensor, int], Distribution]
LANES = 20_000

CASES: dict[str, tuple[list[float], Family, Callable[[Tensor], Tensor], list[float]]] = {
    # name: parameters, distribution, f, exact gradient of E f
    "normal, square": (
        [0.7, 0.9],
        lambda theta, n: Normal(theta[0].expand(n), theta[1].expand(n)),
        lambda x: (x - 0.2).square(),
        [2 * (0.7 - 0.2), 2 * 0.9],
    ),
    "normal, step": (
        [0.7, 0.9],
        lambda theta, n: Normal(theta[0].expand(n), theta[1].expand(n)),
        lambda x: (x > 1.0).double(),
        # density at the step over scale, times 1 and (1 - m) / s
        [
            math.exp(-0.5 * (0.3 / 0.9) ** 2) / (0.9 * math.sqrt(2 * math.pi)),
            math.exp(-0.5 * (0.3 / 0.9) ** 2) / (0.9 * math.sqrt(2 * math.pi)) * 0.3 / 0.9,
        ],
    ),
    "poisson, square": (
        [1.3],
        lambda theta, n: Poisson(theta[0].expand(n)),
        lambda x: x.square(),
        [2 * 1.3 + 1],  # E x^2 = l + l^2
    ),
    "exponential, square": (
        [1.3],
        lambda theta, n: Exponential(theta[0].expand(n)),
        lambda x: x.square(),
        [-4 / 1.3**3],  # E x^2 = 2 / l^2
    ),
    "gamma, square": (
        [1.3],
        lambda theta, n: Gamma(2.5, theta[0].expand(n)),
        lambda x: x.square(),
        [-2 * 2.5 * 3.5 / 1.3**3],  # E x^2 = a (a + 1) / r^2
    ),
    "bernoulli": (
        [0.3],
        lambda theta, n: Bernoulli(probs=theta[0].expand(n)),
        lambda x: (x - 0.45).square(),
        [0.55**2 - 0.45**2],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_weak_derivative_equals_the_closed_form(name: str) -> None:
    start, family, cost, exact = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        points, weights = weak_branches(family(theta, LANES))
    assert weights.sum(0).detach().eq(1).all()
    per_lane = (weights * cost(points)).sum(0)  # [lanes]
    # Every lane has its own sample of the gradient: read it off lane weights one by one.
    total = torch.autograd.grad(per_lane.sum(), theta)[0] / LANES
    pairs = cost(points)[1::2] - cost(points)[2::2]  # [parameters, lanes], times the factors
    spread = pairs.std(1) * (total / pairs.mean(1)).abs()
    z = (total - torch.tensor(exact, dtype=torch.float64)) / (spread / math.sqrt(LANES)).clamp(
        min=1e-12
    )
    if name == "bernoulli":
        torch.testing.assert_close(total, torch.tensor(exact, dtype=torch.float64))
    else:
        assert z.abs().max() < 4


def test_gaussian_mean_of_a_square_has_the_variance_of_the_closed_form() -> None:
    # f = x^2, x+- = m +- s W with W Rayleigh: (f+ - f-) c = 4 m s W / (s sqrt(2 pi)), and
    # Var W = 2 - pi / 2, so the variance is 16 m^2 (2 - pi / 2) / (2 pi).
    mean, exact = 0.7, 16 * 0.7**2 * (2 - math.pi / 2) / (2 * math.pi)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        dist = Normal(torch.full((LANES,), mean).double().requires_grad_(), 0.9)
        points, _ = weak_branches(dist)
    change = (points[1].square() - points[2].square()) / (0.9 * math.sqrt(2 * math.pi))
    # The variance of a variance estimate is about 2 sigma^4 / n (kurtosis near 3).
    z = (float(change.var()) - exact) / (exact * math.sqrt(2 / LANES))
    assert abs(z) < 4


def test_vectors_get_branches_per_coordinate_on_the_tape() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        mean = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
        tape = Tape("weak")
        x = tape.sample(Normal(mean.expand(4000, 2), 0.5))
        assert x.shape == (9, 4000, 2)
        tape.add(x[..., 0] * x[..., 1] + x[..., 0].square())
        tape.surrogate().backward()
    # E = m0 m1 + m0^2 + const: gradient (m1 + 2 m0, m0)
    assert mean.grad is not None
    torch.testing.assert_close(
        mean.grad, torch.tensor([0.0, 0.5], dtype=torch.float64), atol=0.05, rtol=0.0
    )


def test_unsupported_shapes_are_refused() -> None:
    with pytest.raises(EstimatorError, match=r"expected batch shape \[lanes\] or \[lanes, D\]"):
        weak_branches(Normal(torch.zeros(2, 2, 2), 1.0))


# ---- antithetic pairs of coins (DisARM) --------------------------------------------------------

THETA = torch.tensor([0.8, -0.3, 0.2], dtype=torch.float64)
Cost = Callable[[Tensor], Tensor]
COINS: dict[str, tuple[int, Cost]] = {  # number of coins, cost of [..., coins]
    "one coin": (1, lambda b: (b[..., 0] - 0.45).square()),
    "three coins, added": (3, lambda b: (b.sum(-1) - 1.2).square()),
    "three coins, all or none": (3, lambda b: b.prod(-1) - 2 * (1 - b).prod(-1)),
}


def cells(p: list[float]) -> tuple[Tensor, Tensor]:
    """One uniform number per coin from every place where the pair is constant, `[outcomes, D]`, and
    the probability of the outcome."""
    places = []
    for q in p:
        ends = [0.0, min(q, 1 - q), max(q, 1 - q), 1.0]
        places.append([((a + b) / 2, b - a) for a, b in itertools.pairwise(ends)])
    outcomes = list(itertools.product(*places))
    u = torch.tensor([[place for place, _ in row] for row in outcomes], dtype=torch.float64)
    return u, torch.tensor([math.prod(w for _, w in row) for row in outcomes]).double()


def exact_coins(logits: Tensor, cost: Cost) -> Tensor:
    theta = logits.clone().requires_grad_()
    b = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(theta)))).double()
    prob = Bernoulli(logits=theta).log_prob(b).sum(-1).exp()
    return torch.autograd.grad(prob @ cost(b), theta)[0]


@pytest.mark.parametrize("name", COINS)
def test_antithetic_pairs_over_every_outcome(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num, cost = COINS[name]
    logits = THETA[:num]
    p = torch.sigmoid(logits)
    u, prob = cells(p.tolist())
    monkeypatch.setattr(torch, "rand_like", lambda like: u)
    tape = Tape("disarm", num_lanes=len(u))
    copies = tape.per_lane(logits.clone().requires_grad_())
    b = tape.sample(Bernoulli(logits=copies))
    tape.add(cost(b))
    surrogate = tape.surrogate()
    gradient = len(u) * torch.autograd.grad(surrogate, copies)[0]  # [outcomes, D]
    exact = exact_coins(logits, cost)
    torch.testing.assert_close(prob @ gradient, exact)
    # By the definition: 1/2 (f(b) - f(b~)) (b - b~) max(p, 1 - p), b = 1[u > 1 - p], b~ = 1[u < p]
    one, other = (u > 1 - p).double(), (u < p).double()
    gap = (cost(one) - cost(other))[:, None]
    by_hand = 0.5 * gap * (one - other) * torch.maximum(p, 1 - p)
    torch.testing.assert_close(gradient, by_hand)
    torch.testing.assert_close(surrogate.detach(), (cost(one) + cost(other)).mean() / 2)
    variance = prob @ gradient.square() - exact.square()
    if num == 1:  # (f_1 - f_0)^2 p q (max(p, q) / 2 - p q)
        pq, largest = float(p * (1 - p)), float(torch.maximum(p, 1 - p))
        closed = float(cost(torch.ones(1)) - cost(torch.zeros(1))) ** 2 * pq * (largest / 2 - pq)
        assert float(variance) == pytest.approx(closed)
    # Never above ARM, (f(b) - f(b~)) (u - 1/2), whose second moment is taken within the cells.
    width = prob_of_cells(p)
    inner = (u - 0.5).square() + width.square() / 12
    assert bool((variance <= prob @ (gap.square() * inner) - exact.square() + 1e-12).all())


def prob_of_cells(p: Tensor) -> Tensor:
    """`[outcomes, D]` width of each coin's cell."""
    low, high = torch.minimum(p, 1 - p), torch.maximum(p, 1 - p)
    widths = torch.stack([low, high - low, low], dim=1).tolist()
    return torch.tensor(list(itertools.product(*widths))).double()


# ---- sets without replacement ------------------------------------------------------------------

PAID = torch.tensor([1.0, -0.5, 3.0, 0.3], dtype=torch.float64)
LOGITS = torch.tensor([0.5, -0.4, -1.5, 0.9], dtype=torch.float64)


def orders(p: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
    """Every order of draws without replacement `[outcomes, K]`, and its probability."""
    found = list(itertools.permutations(range(len(p)), num_draws))
    prob = []
    for order in found:
        left, total = 1.0, 1.0
        for k in order:
            total, left = total * float(p[k]) / left, left - float(p[k])
        prob.append(total)
    return torch.tensor(found), torch.tensor(prob, dtype=torch.float64)


@pytest.mark.parametrize("num_draws", [2, 3, 4])
def test_sets_over_every_order_of_drawing(num_draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.softmax(LOGITS, 0)
    chosen, prob = orders(p, num_draws)
    assert float(prob.sum()) == pytest.approx(1.0)

    class Drawn:
        indices = chosen

    monkeypatch.setattr(Tensor, "topk", lambda self, k, dim: Drawn)
    tape = Tape("without_replacement", num_draws=num_draws, num_lanes=len(chosen))
    copies = tape.per_lane(LOGITS.clone().requires_grad_())
    a = tape.sample(Categorical(logits=copies))
    assert a.shape == (num_draws, len(chosen))
    tape.add(PAID[a] + 10.0)  # a constant must not matter
    value = [event.weighted().sum(0) for event in tape.events if hasattr(event, "weighted")]
    assert float(prob @ value[0].detach()) == pytest.approx(float(p @ PAID) + 10.0)
    gradient = len(chosen) * torch.autograd.grad(tape.surrogate(), copies)[0]
    exact = p * (PAID - p @ PAID)
    torch.testing.assert_close(prob @ gradient, exact)
    variance = float(prob @ gradient.square().sum(1) - exact.square().sum())
    # By the definition, with the probabilities of sets added up over the orders.
    by_hand = torch.stack([set_gradient(p, order) for order in chosen.tolist()])
    torch.testing.assert_close(gradient, by_hand)
    if num_draws == len(p):
        assert variance == pytest.approx(0.0, abs=1e-12)
        return
    # K draws with replacement, each with the mean of the others as its baseline.
    pairs = list(itertools.product(range(len(p)), repeat=num_draws))
    second = 0.0
    for draws in pairs:
        paid = PAID[list(draws)]
        credit = paid - (paid.sum() - paid) / (num_draws - 1)
        score = torch.eye(len(p)).double()[list(draws)] - p
        second += float(p[list(draws)].prod() * (credit @ score / num_draws).square().sum())
    assert variance < second - float(exact.square().sum())


def set_gradient(p: Tensor, chosen: list[int]) -> Tensor:
    """The estimator's formula, every probability of a set summed over its orders."""

    def prob_of(wanted: list[int], gone: tuple[int, ...]) -> float:
        total = 0.0
        for order in itertools.permutations(wanted):
            left, one = 1.0 - sum(float(p[k]) for k in gone), 1.0
            for k in order:
                one, left = one * float(p[k]) / left, left - float(p[k])
            total += one
        return total

    result = torch.zeros_like(p)
    paid = PAID + 10.0
    for s in chosen:
        others = [k for k in chosen if k != s]
        baseline = 0.0
        for t in chosen:
            rest = [k for k in others if k != t]
            ratio = 1.0 if t == s else prob_of(rest, (s, t)) / prob_of(others, (s,))
            baseline += float(p[t] * paid[t]) * ratio
        slope = p[s] * (torch.eye(len(p)).double()[s] - p)  # grad p_s
        ratio = prob_of(others, (s,)) / prob_of(chosen, ())
        result += slope * ratio * (float(paid[s]) - baseline)
    return result


def test_rounding_hid_the_gradient_of_a_rare_outcome_from_a_set() -> None:
    """In float32 the probability left by all others came out as 0, or as twice what it is."""
    paid = torch.tensor([1.0, 1e7, 5.0])
    for logit in (-14.0, -16.0, -18.0, -200.0):
        logits = torch.tensor([0.8, logit, -0.2], requires_grad=True)
        tape = Tape("without_replacement", num_draws=3)
        tape.add(paid[tape.sample(Categorical(logits=logits.expand(4, 3)))])
        found = torch.autograd.grad(tape.surrogate(), logits)[0]
        exact = torch.autograd.grad(logits.softmax(0) @ paid, logits)[0]
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_draws", [2, 3, 4])
def test_sets_of_common_and_rare_outcomes_in_float32(num_draws: int) -> None:
    """The same set in double precision gives the same weights and gradients."""
    logits = torch.tensor([0.5, -17.0, -0.4, -40.0, -16.0])
    found = {}
    for dtype in (torch.float32, torch.float64):
        leaf = logits.to(dtype).requires_grad_()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            noise = torch.empty(200, 5).exponential_().to(dtype)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Tensor, "exponential_", lambda self, noise=noise: noise)
                x, weight = sets_without_replacement(
                    Categorical(logits=leaf.expand(200, 5)), num_draws
                )
        rows = [torch.autograd.grad(w.sum(), leaf, retain_graph=True)[0] for w in weight]
        found[dtype] = x, weight.detach().float(), torch.stack(rows).float()
    assert torch.equal(found[torch.float32][0], found[torch.float64][0])
    for one, two in zip(found[torch.float32][1:], found[torch.float64][1:], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-12)


def test_sets_are_drawn_with_the_probabilities_that_they_are_weighed_with() -> None:
    p, lanes = torch.softmax(LOGITS, 0), 20_000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        drawn, weight = sets_without_replacement(Categorical(logits=LOGITS.expand(lanes, 4)), 2)
    torch.testing.assert_close(weight.sum(0), torch.ones(lanes).double())
    found = torch.zeros(4, 4).index_put((drawn[0], drawn[1]), torch.ones(lanes), accumulate=True)
    chosen, prob = orders(p, 2)
    for order, share in zip(chosen.tolist(), prob.tolist(), strict=True):
        count = float(found[tuple(order)])
        assert abs(count - lanes * share) < 4.5 * math.sqrt(lanes * share * (1 - share))


def test_a_pair_and_a_set_in_one_program_with_a_score_between() -> None:
    """Branches of both kinds around a score node agree with the exact gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        theta = torch.tensor([0.4, -0.6], dtype=torch.float64)
        tape = Tape("score", num_lanes=40_000, num_draws=2)
        copies = tape.per_lane(theta.clone().requires_grad_())
        a = tape.sample(Bernoulli(logits=copies[:, 0]), how="disarm")
        b = tape.sample(Bernoulli(logits=copies[:, 1] + a), baseline=1.0)
        logits = torch.stack([copies[:, 0] * b, a + b, torch.zeros_like(a)], -1)
        c = tape.sample(Categorical(logits=logits), how="without_replacement")
        tape.add(a + b + torch.tensor([0.0, 1.0, 3.0]).double()[c])
        found = 40_000 * torch.autograd.grad(tape.surrogate(), copies)[0]
    exact = torch.zeros((), dtype=torch.float64)
    free = theta.clone().requires_grad_()
    for one, two in itertools.product((0.0, 1.0), repeat=2):
        x, y = torch.tensor(one).double(), torch.tensor(two).double()
        log_p = Bernoulli(logits=free[0]).log_prob(x) + Bernoulli(logits=free[1] + x).log_prob(y)
        logits = torch.stack([free[0] * y, x + y, torch.zeros_like(x)])
        later = torch.softmax(logits, 0) @ torch.tensor([0.0, 1.0, 3.0]).double()
        exact = exact + log_p.exp() * (x + y + later)
    want = torch.autograd.grad(exact, free)[0]
    z = (found.mean(0) - want) / (found.std(0) / math.sqrt(len(found)))
    assert float(z.abs().max()) < 4


def test_other_distributions_and_sizes_are_refused() -> None:
    logits = torch.zeros(5, 3, requires_grad=True)
    with pytest.raises(EstimatorError, match="sample 0: expected Bernoulli for how='disarm'"):
        Tape("disarm").sample(Categorical(logits=logits))
    with pytest.raises(EstimatorError, match="sample 0: expected Categorical with batch shape"):
        Tape("without_replacement").sample(Bernoulli(logits=logits))
    with pytest.raises(EstimatorError, match="num_draws: expected 2 to 3"):
        Tape("without_replacement", num_draws=4).sample(Categorical(logits=logits))
    masked = torch.tensor([0.0, -math.inf, 1.0]).expand(5, 3)
    with pytest.raises(EstimatorError, match="at most as many as outcomes that can occur, got 3"):
        Tape("without_replacement", num_draws=3).sample(Categorical(logits=masked))
    tape = Tape("disarm")
    tape.add(tape.sample(Bernoulli(logits=logits[:, 0])))
    with pytest.raises(EstimatorError, match="expected order=1"):
        tape.surrogate(order=2)

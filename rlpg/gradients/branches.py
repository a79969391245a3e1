"""Nodes that take several points at once: *branches* with weights whose values sum to 1.

What is computed after such a node is computed once per point, `[K, lanes]`, and the objective of a
lane is the weighted sum. All that the estimators here have to say is which points, and with which
weights: the values of the weights make the objective, their gradients the estimator.

| how | points | weights |
|---|---|---|
| "expect" | the whole support | their probabilities |
| "weak" | a sample, then two coupled points per parameter | 1, then 0 with gradients c and -c |
| "disarm" | an antithetic pair | 1/2 each, with opposite gradients |
| "without_replacement" | K different outcomes | probability over that of being among the K |

Sources: Heidergott & Vazquez-Abad 2000 and Mohamed et al. 2020, table 1 and sec. 6.2 (weak
derivatives; Gaussian scale: x- = x+ times a uniform number); Dong, Mnih & Tucker 2020; Kool, van
Hoof & Welling 2020.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Exponential,
    Gamma,
    Normal,
    OneHotCategorical,
    Poisson,
)

from rlpg.errors import EstimatorError

BY_PROBS = (Bernoulli, Categorical, OneHotCategorical)  # "expect" asks no log_prob for these


def branches(
    distribution: Distribution, how: str, lane: int, num_draws: int
) -> tuple[Tensor, Tensor]:
    """Points `[K, *branches, lanes, ...]` and weights `[K, *branches, lanes]` of a node.

    Args:
        lane: which dimension of the batch shape is the lane; those before it are earlier branches.
        num_draws: K of "without_replacement".
    """
    if how == "weak":
        return weak_branches(distribution, lane)
    if how == "disarm":
        return disarm_branches(distribution, lane)
    if how == "without_replacement":
        return sets_without_replacement(distribution, num_draws, lane)
    if not distribution.has_enumerate_support or len(distribution.batch_shape) != lane + 1:
        raise EstimatorError(
            "expected a finite support and batch shape [lanes] for how='expect', got "
            f"{type(distribution).__name__} with {list(distribution.batch_shape)}; use how='score'"
        )
    x = distribution.enumerate_support().clone()  # expanded: not taken for a batch statistic
    if isinstance(distribution, BY_PROBS) and distribution._param is distribution.probs:
        p = distribution.probs  # log_prob has no slope where one of them is 0 or 1
        return x, torch.where(x == 1, p, 1 - p) if p.dim() == lane + 1 else p.movedim(-1, 0)
    return x, distribution.log_prob(x.clone()).exp()


def disarm_branches(distribution: Distribution, lane: int) -> tuple[Tensor, Tensor]:
    """The pair `b = 1[1 - u < p]`, `b~ = 1[u < p]` of one uniform number u per coin.

    The gradient for the logit of coin d is `1/2 (f(b) - f(b~)) (b_d - b~_d) max(p_d, 1 - p_d)`:
    unbiased, however many coins there are, at two evaluations; the variance is never above that of
    ARM (Yin & Zhou 2019), whose mean over u it is.

    Args:
        distribution: Bernoulli with batch shape `[lanes]` or `[lanes, D]`.

    Source: Dong, Mnih & Tucker 2020.
    """
    if not isinstance(distribution, Bernoulli):
        raise EstimatorError(
            f"expected Bernoulli for how='disarm', got {type(distribution).__name__}; use 'score'"
        )
    p, logits = distribution.probs.detach(), distribution.logits
    u = torch.rand_like(p)
    one, other = (1 - u < p).to(p), (u < p).to(p)
    slope = 0.5 * (one - other) * torch.maximum(p, 1 - p)
    change = slope * (logits - logits.detach())
    if change.dim() > lane + 1:
        change = change.flatten(lane + 1).sum(-1)
    return torch.stack([one, other]), torch.stack([0.5 + change, 0.5 - change])


def sets_without_replacement(
    distribution: Distribution, num_draws: int, lane: int = 0
) -> tuple[Tensor, Tensor]:
    """K different outcomes `[K, *batch]` of a Categorical, drawn without replacement.

    With `R(s)` the probability of the other draws if s is drawn first, over that of the whole set S
    in any order, the weights are `p(s) R(s)`: their values sum to 1 and weigh f without bias. Their
    gradient is `grad p(s) R(s) (f(s) - b_s)` with the built-in baseline
    `b_s = sum_t p(t) R(t without s) f(t)`, which needs no other lane. K = the size of the support
    is the exact expectation.

    Source: Kool, van Hoof & Welling 2020, "unordered set estimator".
    """
    if not isinstance(distribution, Categorical) or len(distribution.batch_shape) != lane + 1:
        raise EstimatorError(
            "expected Categorical with batch shape [lanes] for how='without_replacement', got "
            f"{type(distribution).__name__} with {list(distribution.batch_shape)}; use how='score'"
        )
    size = distribution.logits.shape[-1]
    if not 2 <= num_draws <= size:
        raise EstimatorError(
            f"num_draws: expected 2 to {size}, as many as there are outcomes, got {num_draws}"
        )
    logits = distribution.logits
    noise = -torch.empty_like(logits).exponential_().log()
    chosen = (logits.detach() + noise).topk(num_draws, dim=-1).indices  # [*batch, K]
    log_p = logits.gather(-1, chosen)
    if bool(log_p.isinf().any()):
        raise EstimatorError(
            f"num_draws: expected at most as many as outcomes that can occur, got {num_draws}"
        )
    every_p = logits.detach().double().softmax(-1)
    p = every_p.gather(-1, chosen).movedim(-1, 0)  # [K, *batch]
    rest = _completions(p, every_p.scatter(-1, chosen, 0.0).sum(-1))
    first = torch.stack([rest[(s,)] for s in range(num_draws)])
    value = p * first / rest[()]
    slope = torch.zeros(num_draws, *p.shape, dtype=p.dtype, device=p.device)  # [f of t, p of s]
    for s in range(num_draws):
        slope[s, s] += value[s]
        for t in range(num_draws):
            second = first[s] if s == t else rest[min(s, t), max(s, t)]
            slope[t, s] -= value[s] * p[t] * second / first[s]
    change = (log_p - log_p.detach()).movedim(-1, 0)  # of log p(s): grad p = p grad log p
    weight = value.to(log_p) + (slope.to(log_p) * change).sum(1)
    return chosen.movedim(-1, 0).clone(), weight  # autograd keeps the other


def _completions(p: Tensor, never: Tensor) -> dict[tuple[int, ...], Tensor]:
    """`[*batch]` probability that the set is completed once the draws of the key are made, in any
    order: `V(M) = sum_s p_s / (1 - p(M)) V(M and s)` and 1 for the whole set.

    Sums of positive numbers: nothing cancels, because `1 - p(M)` is summed, too, with `never`
    `[*batch]` the probability of the outcomes that were not drawn. 2^K of them.
    """
    num, found = len(p), {tuple(range(len(p))): torch.ones_like(p[0])}
    for size in range(num - 1, -1, -1):
        for made in combinations(range(num), size):
            others = [s for s in range(num) if s not in made]
            onward = [p[s] * found[tuple(sorted((*made, s)))] for s in others]
            left = sum((p[s] for s in others), never)
            found[made] = sum(onward[1:], onward[0]) / left.clamp(min=1e-300)
    return found


def weak_branches(distribution: Distribution, lane: int = 0) -> tuple[Tensor, Tensor]:
    """A sample, and two points per parameter phi: `d p / d phi = c (p+ - p-)` with two densities,
    so that `d/d phi E[f(x)] = c (E[f(x+)] - E[f(x-)])` for any f, differentiable or not.

    x+ and x- share their random numbers, which keeps the variance low where f is smooth. One
    evaluation of everything downstream per point: for few dimensions only. Branch 0 is an ordinary
    sample of weight 1; the others have weights of value 0 whose gradient is +c or -c.

    Args:
        distribution: Normal, Poisson, Exponential, Gamma (its rate) or Bernoulli with batch shape
            `[*branches, lanes]` or `[*branches, lanes, D]`; each of the D coordinates adds its own
            pairs of branches.
    """
    extra = len(distribution.batch_shape) - lane - 1
    if extra not in (0, 1) or distribution.event_shape:
        raise EstimatorError(
            "expected batch shape [lanes] or [lanes, D] without Independent, got "
            f"{list(distribution.batch_shape)} and event {list(distribution.event_shape)}"
        )
    sample = distribution.sample()
    points, weights = [sample], [torch.ones_like(sample[..., 0] if extra else sample)]
    for above, below, change in _pairs(distribution):
        if not extra:
            points += [above, below]
            weights += [change, -change]
            continue
        for d in range(sample.shape[-1]):
            here = torch.arange(sample.shape[-1], device=sample.device) == d
            points += [torch.where(here, above, sample), torch.where(here, below, sample)]
            weights += [change[..., d], -change[..., d]]
    return torch.stack(points), torch.stack(weights)


def _pairs(distribution: Distribution) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each parameter x+, x- and a tensor of value 0 and gradient c, all of batch shape."""

    def change(parameter: Tensor, factor: Tensor | float = 1.0) -> Tensor:
        return (parameter - parameter.detach()) * factor

    if isinstance(distribution, Normal):
        mean, scale = distribution.loc.detach(), distribution.scale.detach()
        rayleigh = torch.empty_like(mean).exponential_().mul(2).sqrt()
        maxwell = torch.randn(3, *mean.shape, dtype=mean.dtype, device=mean.device).norm(dim=0)
        maxwell = maxwell * (2 * torch.rand_like(mean).round() - 1)  # [*batch], both signs
        inner = maxwell * torch.rand_like(mean)
        of_mean = change(distribution.loc, 1 / (scale * math.sqrt(2 * math.pi)))
        return [
            (mean + scale * rayleigh, mean - scale * rayleigh, of_mean),
            (mean + scale * maxwell, mean + scale * inner, change(distribution.scale, 1 / scale)),
        ]
    if isinstance(distribution, Poisson):
        sample = distribution.sample()
        return [(sample + 1, sample, change(distribution.rate))]
    if isinstance(distribution, Exponential | Gamma):
        # d/d rate: c = concentration / rate, p+ the density itself, p- one more waiting time.
        rate, shape = distribution.rate.detach(), torch.ones(())
        if isinstance(distribution, Gamma):
            shape = distribution.concentration
        if shape.requires_grad:
            raise EstimatorError(
                "expected no concentration with a gradient in a Gamma, got one; use how='pathwise'"
            )
        first = distribution.sample()
        later = first + Exponential(rate).sample()
        return [(first, later, change(distribution.rate, shape.to(rate) / rate))]
    if isinstance(distribution, Bernoulli):
        ones = torch.ones_like(distribution.probs.detach())
        return [(ones, torch.zeros_like(ones), change(distribution.probs))]
    raise EstimatorError(
        "expected Normal, Poisson, Exponential, Gamma or Bernoulli for how='weak', got "
        f"{type(distribution).__name__}; use how='score'"
    )

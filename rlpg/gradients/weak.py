"""Weak (measure-valued) derivatives: the gradient as a difference of two coupled evaluations.

For a parameter phi of a density, `d p / d phi = c (p+ - p-)` with two densities p+ and p-, so that

    d/d phi E[f(x)] = c (E[f(x+)] - E[f(x-)]),

for any f, differentiable or not. x+ and x- share their random numbers, which keeps the variance
low where f is smooth. One evaluation of everything downstream per point: for few dimensions only.

A node becomes K *branches*: points with weights that sum to 1. Branch 0 is an ordinary sample of
weight 1; the others have weights of value 0 whose gradient is +c or -c.

Source: Heidergott & Vazquez-Abad 2000; the decompositions as in Mohamed et al. 2020, table 1 and
sec. 6.2 (Gaussian scale: x- = x+ times a uniform number).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Exponential, Gamma, Normal, Poisson

from rlpg.errors import EstimatorError


def weak_branches(distribution: Distribution, lane: int = 0) -> tuple[Tensor, Tensor]:
    """Points `[K, *batch]` and weights `[K, *branches, lanes]` of the coupled weak derivative.

    Args:
        distribution: Normal, Poisson, Exponential, Gamma (its rate) or Bernoulli with batch shape
            `[*branches, lanes]` or `[*branches, lanes, D]`; each of the D coordinates adds its own
            pairs of branches.
        lane: which dimension of the batch shape is the lane.
    """
    extra = len(distribution.batch_shape) - lane - 1
    if extra not in (0, 1) or distribution.event_shape:
        raise EstimatorError(
            "weak_branches: expected batch shape [lanes] or [lanes, D] and no event, got "
            f"{list(distribution.batch_shape)} and {list(distribution.event_shape)}; put the lanes "
            "first, and leave Independent out"
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
    with torch.no_grad():
        if isinstance(distribution, Normal):
            mean, scale = distribution.loc, distribution.scale
            rayleigh = torch.empty_like(mean).exponential_().mul(2).sqrt()
            maxwell = torch.randn(3, *mean.shape, dtype=mean.dtype, device=mean.device).norm(dim=0)
            maxwell = maxwell * (2 * torch.rand_like(mean).round() - 1)  # [*batch], both signs
            pairs = [
                (mean + scale * rayleigh, mean - scale * rayleigh),
                (mean + scale * maxwell, mean + scale * maxwell * torch.rand_like(mean)),
            ]
            factors = [1 / (scale * math.sqrt(2 * math.pi)), 1 / scale]
            parameters = [mean, scale]
        elif isinstance(distribution, Poisson):
            sample = distribution.sample()
            pairs, factors = [(sample + 1, sample)], [torch.ones_like(sample)]
            parameters = [distribution.rate]
        elif isinstance(distribution, Exponential):
            # p- is Gamma(2, rate): the sum of two independent waiting times.
            first, second = distribution.sample(), distribution.sample()
            pairs, factors = [(first, first + second)], [1 / distribution.rate]
            parameters = [distribution.rate]
        elif isinstance(distribution, Gamma):
            # d/d rate: c = concentration / rate, p+ the density itself, p- one more waiting time.
            shape, rate = distribution.concentration, distribution.rate
            first = distribution.sample()
            second = first + Exponential(rate).sample()
            pairs, factors = [(first, second)], [shape / rate]
            parameters = [rate]
            if shape.requires_grad:
                raise EstimatorError(
                    "weak_branches: expected a Gamma whose rate is the parameter, got a "
                    "concentration with a gradient; use how='pathwise'"
                )
        elif isinstance(distribution, Bernoulli):
            ones = torch.ones_like(distribution.probs)
            pairs, factors = [(ones, torch.zeros_like(ones))], [ones]
            parameters = [distribution.probs]
        else:
            raise EstimatorError(
                "weak_branches: expected Normal, Poisson, Exponential, Gamma or Bernoulli, got "
                f"{type(distribution).__name__}; use how='score'"
            )
    return [
        (above, below, (parameter - parameter.detach()) * factor)
        for (above, below), parameter, factor in zip(pairs, parameters, factors, strict=True)
    ]

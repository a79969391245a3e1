"""The distributions over actions that torch.distributions lacks, and how masks enter.

Everything here is an ordinary `torch.distributions.Distribution`; `Independent` sums action
dimensions. Nothing here knows a space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Normal,
    constraints,
    kl_divergence,
)
from torch.distributions.kl import register_kl

from rlpg.errors import UsageError

# Not -inf: exp(MASKED - anything a network says) is exactly 0 all the same, and 0 * MASKED and
# MASKED - MASKED are 0, so that entropies, divergences and all their gradients stay finite.
MASKED = -1e30

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()  # now the weights of an expectation under N(0, 1)


def masked_logits(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits `[..., K]` whose softmax is exactly 0 where the mask `[..., K]` is false.

    Where a row allows nothing, its mask is ignored: such is the mask of a terminal observation,
    whose action is drawn in some vector environments but never used.
    """
    if mask is None:
        return logits
    return torch.where(mask | ~mask.any(-1, keepdim=True), logits, MASKED)


def checked_log_prob(distribution: Distribution, action: Tensor, shape: Sequence[int]) -> Tensor:
    """One log-prob `[...]` per action `[..., *A]`, of a distribution that a user may have made.

    Raises:
        UsageError: the distribution gives something else than one number per action.
    """
    found: Tensor = distribution.log_prob(action)
    if found.shape != torch.Size(shape):
        raise UsageError(
            f"policy: expected one log-prob per action {list(shape)}, got {list(found.shape)}; "
            "wrap the distribution in torch.distributions.Independent"
        )
    return found


class Choice(Categorical):
    """A Categorical of logits `[..., K]`, with K as the first axis in memory.

    Softmax, log-prob and entropy of few choices each take a third of the time: torch goes through
    an outer axis many rows at a time, and through a short inner one row by row.
    """

    def __init__(self, logits: Tensor) -> None:
        self._rows = F.log_softmax(logits.movedim(-1, 0).contiguous(), 0)  # [K, ...]
        self.logits = self._param = self._rows.movedim(0, -1)
        self._num_events = logits.shape[-1]
        Distribution.__init__(self, logits.shape[:-1], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if value.shape == self.batch_shape:
            return self._rows.gather(0, value.long().unsqueeze(0)).squeeze(0)
        result: Tensor = Categorical.log_prob(self, value)
        return result

    def entropy(self) -> Tensor:
        return -(self._rows.exp() * self._rows).sum(0)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Choice:
        return Choice(self.logits.expand((*batch_shape, self._num_events)))


class IntegerBernoulli(Bernoulli):
    """A Bernoulli whose values are int64 0 and 1: the law of a two-way choice of actions."""

    def log_prob(self, value: Tensor) -> Tensor:
        result: Tensor = Bernoulli.log_prob(self, value.to(self.logits.dtype))
        return result

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        drawn: Tensor = Bernoulli.sample(self, torch.Size(sample_shape))
        return drawn.long()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        support: Tensor = Bernoulli.enumerate_support(self, expand)
        return support.long()


class Joint(Independent):  # type: ignore[type-arg]  # generic in the stubs alone
    """torch's `Independent`, also of an empty batch: what a rank has of some minibatches."""

    def log_prob(self, value: Tensor) -> Tensor:
        per_axis: Tensor = self.base_dist.log_prob(value)
        return per_axis.flatten(-self.reinterpreted_batch_ndims).sum(-1)

    def entropy(self) -> Tensor:
        per_axis: Tensor = self.base_dist.entropy()
        return per_axis.flatten(-self.reinterpreted_batch_ndims).sum(-1)


class DiagonalNormal(Joint):
    """Independent Normals over the last axes, whose log-prob takes half of torch's operations.

    Args:
        mean: `[..., *A]`.
        log_std: broadcastable to the mean, with all axes of `*A`.
        rank: number of axes of `*A`, at least 1.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, rank: int) -> None:
        self._mean, self._std, self._log_std = mean, log_std.exp(), log_std
        self.reinterpreted_batch_ndims = rank
        shape, num_batch = mean.shape, mean.ndim - rank
        Distribution.__init__(self, shape[:num_batch], shape[num_batch:], validate_args=False)

    @cached_property
    def base_dist(self) -> Normal:  # made where it is asked for
        return Normal(self._mean, self._std.expand_as(self._mean), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        axes = tuple(range(-self.reinterpreted_batch_ndims, 0))
        distance = ((value - self._mean) / self._std).square().sum(axes)  # [...]
        constant = (
            self._log_std.sum(axes) + 0.5 * math.log(2.0 * math.pi) * self.event_shape.numel()
        )
        log_prob: Tensor = -0.5 * distance - constant
        return log_prob

    def entropy(self) -> Tensor:
        per_axis = 0.5 + 0.5 * math.log(2.0 * math.pi) + self._std.expand_as(self._mean).log()
        return per_axis.flatten(-self.reinterpreted_batch_ndims).sum(-1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Distribution:
        shape = torch.Size((*batch_shape, *self.event_shape))
        return Independent(self.base_dist.expand(shape), len(self.event_shape), validate_args=False)


class SquashedNormal(Distribution):
    """The law of `a = center + half_width * tanh(u)`, `u ~ Normal(loc, scale)`, written in u.

    Values are the draws u *before* squashing, so that nothing is lost where tanh saturates;
    `log_prob(u)` is the log density of a, in units of a:

        log p(a) = log N(u; loc, scale) - log half_width - log(1 - tanh(u)^2)
        log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))        exact for every u

    (Haarnoja et al. 2018, appendix C, for the law; without their +1e-6.) `entropy` is that of a,
    by Gauss-Hermite quadrature with 32 nodes: deterministic, differentiable, and good to 1e-5 for
    scale <= 1, to 0.1 for scale = e^2.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, half_width: Tensor) -> None:
        """
        Args:
            loc, scale: of u, `[..., *A]`.
            half_width: half the width of the interval of a, broadcastable to loc.
        """
        self.normal = Normal(loc, scale, validate_args=False)
        self.half_width = half_width
        super().__init__(self.normal.batch_shape, validate_args=False)

    @property
    def loc(self) -> Tensor:
        return self.normal.loc

    @property
    def scale(self) -> Tensor:
        return self.normal.scale

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> SquashedNormal:
        parts = (self.loc, self.scale, self.half_width)
        return SquashedNormal(*(part.expand(torch.Size(batch_shape)) for part in parts))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.normal.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        drawn: Tensor = self.normal.sample(torch.Size(sample_shape))
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob: Tensor = self.normal.log_prob(value)
        return log_prob - self._log_slope(value)

    def entropy(self) -> Tensor:
        shape = (-1,) + (1,) * len(self.batch_shape)  # [32, 1, ...]
        nodes, weights = (self.loc.new_tensor(x).reshape(shape) for x in (_NODES, _WEIGHTS))
        entropy: Tensor = self.normal.entropy()
        return entropy + (weights * self._log_slope(self.loc + self.scale * nodes)).sum(0)

    def _log_slope(self, u: Tensor) -> Tensor:
        """log |da/du|."""
        return self.half_width.log() + 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))


class Layout:
    """How actions of several shapes and dtypes lie side by side in a float32 vector `[..., D]`."""

    def __init__(self, kinds: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> None:
        self._kinds = kinds
        self._sizes = [math.prod(shape) for shape, _ in kinds]
        self.size = sum(self._sizes)  # D

    def join(self, actions: Sequence[Tensor]) -> Tensor:
        """`[..., D]` of actions `[..., *shape]`."""
        flat = [
            action.reshape((*action.shape[: action.ndim - len(shape)], size)).float()
            for action, (shape, _), size in zip(actions, self._kinds, self._sizes, strict=True)
        ]
        return torch.cat(flat, -1)

    def split(self, vector: Tensor) -> list[Tensor]:
        """The actions `[..., *shape]` in `[..., D]`."""
        pieces = zip(vector.split(self._sizes, -1), self._kinds, strict=True)
        return [
            piece.reshape((*piece.shape[:-1], *shape)).to(dtype) for piece, (shape, dtype) in pieces
        ]


class Product(Distribution):
    """Independent factors of different kinds; the value is one float32 vector `[..., D]`.

    `log_prob` and `entropy` are the sums over the factors. `rsample` exists if every factor has it.
    """

    arg_constraints = {}  # noqa: RUF012  # the interface of torch
    support = constraints.independent(constraints.real, 1)

    def __init__(self, factors: Sequence[Distribution], layout: Layout) -> None:
        self.factors, self.layout = tuple(factors), layout
        batch_shape = self.factors[0].batch_shape
        super().__init__(batch_shape, torch.Size((layout.size,)), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch has a class attribute
        return all(factor.has_rsample for factor in self.factors)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        return self.layout.join([factor.sample(shape) for factor in self.factors])

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        return self.layout.join([factor.rsample(shape) for factor in self.factors])

    def log_prob(self, value: Tensor) -> Tensor:
        pairs = zip(self.factors, self.layout.split(value), strict=True)
        terms = [factor.log_prob(own) for factor, own in pairs]
        return torch.stack(torch.broadcast_tensors(*terms)).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([factor.entropy() for factor in self.factors]).sum(0)


def _kl_joint(p: Joint, q: Joint) -> Tensor:
    per_axis = kl_divergence(p.base_dist, q.base_dist)
    return per_axis.flatten(-p.reinterpreted_batch_ndims).sum(-1)


def _kl_squashed(p: SquashedNormal, q: SquashedNormal) -> Tensor:
    return kl_divergence(p.normal, q.normal)  # a bijection changes no divergence


def _kl_product(p: Product, q: Product) -> Tensor:
    pairs = zip(p.factors, q.factors, strict=True)
    return torch.stack([kl_divergence(a, b) for a, b in pairs]).sum(0)


register_kl(Joint, Joint)(_kl_joint)
register_kl(SquashedNormal, SquashedNormal)(_kl_squashed)
register_kl(Product, Product)(_kl_product)

"""Random numbers that are spread more evenly than independent ones: `Tape(uniforms=...)`.

A tape that is given uniform numbers `[lanes, D]` draws its samples by inverting distribution
functions, each node with the next columns. Every row has to be uniform by itself; the rows need not
be independent of each other. So the gradient stays unbiased, and the lanes can balance each other
out. What compares lanes (`LeaveOneOut`) is refused then: other lanes would know of a lane's sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent
from torch.quasirandom import SobolEngine

from rlpg.errors import EstimatorError


def antithetic(num_lanes: int, num_dims: int, dtype: torch.dtype | None = None) -> Tensor:
    """`[num_lanes, num_dims]` uniform numbers, lane 2i + 1 having 1 - u where lane 2i has u.

    Variance: a pair's mean has half of `Var g + Cov(g, g')`, which is 0 where the gradient is odd
    about the middle (linear in a symmetric noise), and twice that of two lanes where it is even.
    """
    if num_lanes % 2:
        raise EstimatorError(f"antithetic: expected an even number of lanes, got {num_lanes}")
    u = _inside(torch.rand(num_lanes // 2, num_dims, dtype=dtype))
    return torch.stack([u, 1 - u], dim=1).reshape(num_lanes, num_dims)


def sobol(num_lanes: int, num_dims: int, dtype: torch.dtype | None = None) -> Tensor:
    """`[num_lanes, num_dims]` scrambled Sobol numbers, from the global generator.

    Variance: up to O(1 / lanes^3) for smooth programs of few draws; with many dimensions that all
    matter, or a rough program, that of independent lanes. A power of 2 of lanes balances best.

    Args:
        num_dims: how many numbers a lane draws; at most 21201.

    Source: Owen 1997; as gradients Buchholz, Wenzel & Mandt 2018.
    """
    engine = SobolEngine(num_dims, scramble=True)
    return _inside(engine.draw(num_lanes, dtype=dtype or torch.get_default_dtype()))


def _inside(u: Tensor) -> Tensor:
    """In the open interval: the inverse of a normal's distribution function is infinite at 0."""
    return u.clamp(2.0**-24, 1 - 2.0**-24)


class Uniforms:
    """The columns of `[lanes, D]` uniform numbers, one after the other."""

    def __init__(self, numbers: Tensor) -> None:
        if not isinstance(numbers, Tensor):
            raise EstimatorError(f"uniforms: expected a tensor, got {type(numbers).__name__}")
        if numbers.dim() != 2 or not bool(((numbers > 0) & (numbers < 1)).all()):
            raise EstimatorError(
                f"uniforms: expected [lanes, D] strictly between 0 and 1, got "
                f"{list(numbers.shape)} from {float(numbers.min()):g} to {float(numbers.max()):g}"
            )
        self._numbers, self._used = numbers.clone(), 0

    def next_of(self, name: str, dist: Distribution) -> Tensor:
        """A sample by the inverse of the distribution function, with the gradient of its path."""
        shape = dist.batch_shape + dist.event_shape
        begin, self._used = self._used, self._used + math.prod(shape[1:])
        if len(self._numbers) != shape[0] or self._used > self._numbers.shape[1]:
            raise EstimatorError(
                f"{name}: expected uniforms [{shape[0]}, {self._used}] or wider, got "
                f"{list(self._numbers.shape)}; every number that a lane draws takes a column"
            )
        while isinstance(dist, Independent):
            dist = dist.base_dist
        try:
            return dist.icdf(self._numbers[:, begin : self._used].reshape(shape))
        except NotImplementedError:
            raise EstimatorError(
                f"{name}: expected a distribution with icdf where uniforms are given, got "
                f"{type(dist).__name__}; leave uniforms out"
            ) from None

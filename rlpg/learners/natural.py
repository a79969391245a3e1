"""Natural policy gradient (Kakade 2001) and TRPO (Schulman et al. 2015).

    step = sqrt(2 max_kl / (x F x)) x,      x = (F + damping)^-1 g,      F = Hessian of the mean KL

The step has the same length in KL divergence whatever the parametrization. TRPO shortens it until
the surrogate has grown and the divergence itself, not its quadratic model, is at most `max_kl`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from rlpg.distributed import sum_over_ranks, sums_over_ranks
from rlpg.errors import NumericalFault, UsageError
from rlpg.gradients import estimators
from rlpg.learners.batch import Batch
from rlpg.learners.learner import Learner
from rlpg.learners.optimizer import Number
from rlpg.learners.settings import LearnerSettings, NaturalSettings


class NaturalGradient(Learner):
    """One step of KL length `max_kl` along the natural gradient; with `line_search`, TRPO."""

    Settings: ClassVar[type[LearnerSettings]] = NaturalSettings
    settings: NaturalSettings

    def surrogate(self, batch: Batch, log_prob: Tensor) -> Tensor:
        """`sum w A r`, the likelihood ratio r against the policy that acted."""
        return estimators.likelihood_ratio(
            log_prob, batch.log_prob, batch.advantage, weight=batch.weight
        )

    def improve(self, batch: Batch, lr_scale: float) -> dict[str, Number]:
        """Direction by conjugate gradients, length by the KL, and the line search."""
        s, optimizer = self.settings, self.optimizer
        objective, _, terms = self.objective(batch)
        gradient = optimizer.gradient(objective)
        norm = optimizer.norm(gradient)
        own = terms["train/entropy"], batch.weight.sum(), objective.detach()
        entropy, weight, start_value = sums_over_ranks(*own)
        metrics: dict[str, Number] = {
            "train/entropy": entropy / weight,
            "gradient/norm": norm,
            "train/approx_kl": 0.0,
            "train/line_search_steps": 0.0,
        }
        if not gradient.any():
            return metrics
        with torch.no_grad():
            acted = batch.distribution(self.policy)
        max_kl = s.max_kl * lr_scale
        product = self.fisher_product(batch, acted)
        # Its length makes no difference, but the squares of some are 0 or infinite in float32.
        gradient = (gradient.double() * 2.0 ** -math.frexp(norm)[1]).to(gradient.dtype)
        direction = conjugate_gradient(product, gradient, s.num_cg_iterations)
        curvature = float(direction @ product(direction))
        if math.isnan(curvature):
            raise NumericalFault(
                "policy: expected a KL divergence with a finite curvature, got NaN; raise damping"
            )
        if not curvature > 0.0:
            return metrics
        step = math.sqrt(2.0 * max_kl / curvature) * direction
        start, before = optimizer.flat(), float(start_value)
        for k in range(s.num_backtracks if s.line_search else 1):
            optimizer.move_to(start + s.backtrack_factor**k * step)
            with torch.no_grad():
                sums = sums_over_ranks(self.objective(batch)[0], self.kl(batch, acted))
            after, kl = map(float, sums)
            metrics |= {"train/approx_kl": kl, "train/line_search_steps": float(k)}
            if not s.line_search or (after > before and kl <= max_kl):
                return metrics
        optimizer.move_to(start)
        return metrics | {"train/approx_kl": 0.0, "train/line_search_steps": float(k + 1)}

    def kl(self, batch: Batch, acted: Distribution) -> Tensor:
        """Mean KL(policy that acted || policy now): this rank's part of the sum over all ranks.

        Raises:
            UsageError: the distributions have no analytic divergence.
        """
        now = batch.distribution(self.policy)
        try:
            divergence = kl_divergence(acted, now)
        except NotImplementedError:
            lacking = now.base_dist if isinstance(now, Independent) else now
            raise UsageError(
                f"policy: expected distributions with an analytic KL divergence, got "
                f"{type(lacking).__name__}; register one (torch.distributions.kl.register_kl)"
            ) from None
        return batch.mean(divergence) / sum_over_ranks(batch.weight.sum())

    def fisher_product(self, batch: Batch, acted: Distribution) -> Callable[[Tensor], Tensor]:
        """`v -> F v + damping v`, F the Hessian of `kl` at the policy that acted, `[P, P]`."""
        with torch.backends.cudnn.flags(enabled=False):  # it differentiates memory only once
            slope = self.optimizer.own_gradient(self.kl(batch, acted), create_graph=True)

        def product(v: Tensor) -> Tensor:
            curved = self.optimizer.own_gradient(slope @ v, retain_graph=True)
            return sum_over_ranks(curved) + self.settings.damping * v

        return product


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, num_iterations: int
) -> Tensor:
    """`x` `[P]` with `product(x)` about `b` `[P]`, for a symmetric positive definite product.

    At most so many iterations; fewer where the residual is gone. Source: Hestenes & Stiefel 1952.
    """
    x, residual, direction, square = torch.zeros_like(b), b, b, b @ b
    for _ in range(num_iterations):
        image = product(direction)
        length = square / (direction @ image)
        x, residual = x + length * direction, residual - length * image
        before, square = square, residual @ residual
        if not square > 1e-10 * (b @ b):
            break
        direction = residual + (square / before) * direction
    return x

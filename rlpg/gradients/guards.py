"""What a tape refuses, before it can end in a gradient that is wrong: each with the node's name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch.distributions import Distribution, OneHotCategoricalStraightThrough, constraints

from rlpg.errors import EstimatorError


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts the name of the node in front of what goes wrong inside."""
    try:
        yield
    except EstimatorError as error:
        raise EstimatorError(f"{name}: {error}") from None


def check_distribution(name: str, dist: Distribution, how: str) -> None:
    if not isinstance(dist, Distribution):
        raise EstimatorError(
            f"{name}: expected a torch.distributions object, got {type(dist).__name__}; pass the "
            "distribution, not its parameters or a sample of it"
        )
    straight_through = isinstance(dist, OneHotCategoricalStraightThrough)
    if straight_through and how in ("pathwise", "combine"):
        raise EstimatorError(
            f"{name}: expected a distribution whose rsample is a path for how={how!r}, got "
            f"{type(dist).__name__}, whose gradient is biased; use how='score', or say "
            "how='biased_straight_through'"
        )


def density(name: str, dist: Distribution, x: Tensor) -> Tensor:
    """`log p(x)`, refused where there is none."""
    try:
        return dist.log_prob(x)
    except NotImplementedError:
        raise EstimatorError(
            f"{name}: expected a distribution with log_prob for how='score', got "
            f"{type(dist).__name__}; use how='pathwise'"
        ) from None


def check_support(name: str, dist: Distribution) -> None:
    """Refuses a density whose support moves with its parameters: the score misses what leaves and
    enters at the edge."""
    try:
        constraint = dist.support
    except NotImplementedError:
        return
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    edges = vars(constraint).values() if isinstance(constraint, constraints.Constraint) else ()
    if any(isinstance(edge, Tensor) and edge.requires_grad for edge in edges):
        raise EstimatorError(
            f"{name}: expected a support that does not depend on parameters, got "
            f"{type(dist).__name__}; its score is biased: use how='pathwise'"
        )


def checked_discount(
    name: str, discount: Tensor | float, lanes: int, branches: Sequence[int]
) -> Tensor | float:
    """The discount, if it is one number or one per lane, in [0, 1] and without a gradient."""
    if not isinstance(discount, Tensor):
        if not 0.0 <= discount <= 1.0:
            raise EstimatorError(f"{name}: expected a discount in [0, 1], got {discount}")
        return discount
    if discount.requires_grad:
        raise EstimatorError(
            f"{name}: expected a discount without a gradient, got one with, which would be lost; "
            "multiply the later terms by it, or detach it"
        )
    sizes = (*branches, lanes)[-discount.dim() :] if discount.dim() else ()
    if discount.dim() > 1 + len(branches) or any(
        a not in (1, b) for a, b in zip(discount.shape, sizes, strict=True)
    ):
        raise EstimatorError(
            f"{name}: expected a discount [{lanes}], one per lane, got {list(discount.shape)}"
        )
    outside = ~((discount >= 0) & (discount <= 1))
    if bool(outside.any()):
        raise EstimatorError(
            f"{name}: expected a discount in [0, 1], got {float(discount[outside][0])}"
        )
    return discount

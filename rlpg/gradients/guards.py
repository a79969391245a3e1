"""What a tape refuses, before it can end in a gradient that is wrong: each with the node's name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.distributions import (
    Categorical,
    ContinuousBernoulli,
    Distribution,
    Independent,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    constraints,
)

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import Baseline
from rlpg.gradients.parameters import leaves_of

HALF = (torch.float16, torch.bfloat16)
Scored = tuple[str, Distribution, Tensor]  # a node's name, and what was drawn from what
EXACT = {torch.float32: 2**24, torch.float64: 2**53}  # integers up to here have their own number


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
            f"{name}: expected a torch.distributions object, got {type(dist).__name__}"
        )
    if how not in ("pathwise", "combine"):
        return
    if not dist.has_rsample:
        raise EstimatorError(
            f"{name}: expected a distribution with rsample for how={how!r}, got "
            f"{type(dist).__name__}; use how='score' for this node"
        )
    if any(_is_discrete(part) for part in _parts(dist)):
        raise EstimatorError(
            f"{name}: expected a distribution whose rsample is a path for how={how!r}, got "
            f"{type(dist).__name__}, whose gradient is biased; use how='score', or say "
            "how='biased_straight_through'"
        )
    for part in _parts(dist):
        if isinstance(part, ContinuousBernoulli) and not bool(
            part._outside_unstable_region().all()
        ):
            raise EstimatorError(
                f"{name}: expected a ContinuousBernoulli away from 1/2 for how={how!r}, got a "
                "probability so near to it that torch's rsample has no gradient; use how='score'"
            )


def _parts(dist: Distribution) -> Iterator[Distribution]:
    """The distribution, and those that it draws from."""
    yield dist
    if isinstance(dist, Independent | TransformedDistribution):
        yield from _parts(dist.base_dist)
    elif isinstance(dist, MixtureSameFamily):
        yield from _parts(dist.component_distribution)


def _is_discrete(dist: Distribution) -> bool:
    try:
        return bool(getattr(dist.support, "is_discrete", False))
    except NotImplementedError:
        return False


def density(name: str, dist: Distribution, x: Tensor) -> Tensor:
    """`log p(x)`, refused where there is none, and in forward mode, which it would not reach."""
    try:
        log_prob = dist.log_prob(x)
    except NotImplementedError:
        raise EstimatorError(
            f"{name}: expected a distribution with log_prob for how='score', got "
            f"{type(dist).__name__}; use how='pathwise'"
        ) from None
    if not log_prob.requires_grad and unpack_dual(log_prob).tangent is not None:
        raise EstimatorError(
            f"{name}: expected derivatives in backward mode, got forward mode; use backward()"
        )
    return log_prob


def check_support(name: str, dist: Distribution) -> None:
    """Refuses a density whose support moves with its parameters: the score misses what leaves and
    enters at the edge. So do outcomes of probability 0 that a parameter gives another."""
    if any(_appears(part) for part in _parts(dist)):
        raise EstimatorError(
            f"{name}: expected probabilities that no parameter moves away from 0 or 1, got "
            f"{type(dist).__name__} with one exactly there; use how='expect' or 'weak'"
        )
    if any(_moves(part) for part in _parts(dist)):
        raise EstimatorError(
            f"{name}: expected a support that does not depend on parameters, got "
            f"{type(dist).__name__}; its score is biased: use how='pathwise'"
        )


# What makes probabilities of logits: its slope is 0 where one of them is 0 or 1.
_FROM_LOGITS = ("SigmoidBackward0", "SoftmaxBackward0")


def _appears(dist: Distribution) -> bool:
    """Whether a parameter moves the probability of an outcome that is impossible, or certain."""
    dist = getattr(dist, "_categorical", dist)
    given = vars(dist).get("probs", vars(dist).get("rate"))
    if not isinstance(given, Tensor) or not given.requires_grad or not _is_discrete(dist):
        return False
    if given.grad_fn is not None and given.grad_fn.name() in _FROM_LOGITS:
        return False
    at_edge = given == 0
    if "probs" in vars(dist) and not isinstance(dist, Categorical):
        at_edge = at_edge | (given == 1)
    with torch.enable_grad():
        return bool(at_edge.any()) and _depends(given[at_edge])


def _moves(dist: Distribution) -> bool:
    """Whether an edge of the support carries a gradient. Where torch declares no more than the
    codomain of the last transform, the edges of the base's support are sent through all of them."""
    if not _is_plain(dist):
        try:
            edges = [*_bounds(dist.support)]
        except NotImplementedError:
            return False
        return any(isinstance(e, Tensor) and e.requires_grad and _depends(e) for e in edges)
    transforms: list[Transform] = []
    while isinstance(dist, Independent) or _is_plain(dist):
        if isinstance(dist, TransformedDistribution):
            transforms = [*dist.transforms, *transforms]
        dist = dist.base_dist  # type: ignore[attr-defined]
    shape = dist.batch_shape + dist.event_shape
    if isinstance(dist, MixtureSameFamily):
        dist = dist.component_distribution
    ends = [0.7]  # of a support without edges every point is one
    if not _is_discrete(dist) and (bounds := [*_bounds(dist.support)]):
        ends = [float(torch.as_tensor(bound).min()) for bound in bounds] + [-math.inf, math.inf]
    elif _is_real(dist.support):
        ends = [-math.inf, math.inf]
    device = next((v.device for v in vars(dist).values() if isinstance(v, Tensor)), None)
    return any(_is_moved(torch.full(shape, end, device=device), transforms) for end in ends)


def _is_plain(dist: Distribution) -> bool:
    return (
        isinstance(dist, TransformedDistribution)
        and type(dist).support is TransformedDistribution.support
    )


def _is_real(constraint: object) -> bool:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return isinstance(constraint, type(constraints.real))


def _bounds(constraint: object) -> Iterator[Any]:
    """The edges that a constraint names, and those that it is made of."""
    for name, value in vars(constraint).items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, constraints.Constraint):
                yield from _bounds(part)
            elif isinstance(part, Tensor) or name.endswith("_bound"):
                yield part


def _is_moved(edge: Tensor, transforms: Sequence[Transform]) -> bool:
    """Whether a parameter of the transforms moves an edge that arrives at a finite place."""
    with torch.enable_grad():
        for transform in transforms:
            is_infinite = _is_real(transform.codomain) and any(
                bool(((edge == end) | edge.isinf()).all()) for end in _bounds(transform.domain)
            )
            edge = transform(edge)
            if is_infinite:  # as the logit of 0, which torch clamps to a finite number
                edge = edge * math.inf
            edge = edge if bool(edge.isfinite().all()) else edge.detach()
        return edge.requires_grad and _depends(edge)


def _depends(edge: Tensor) -> bool:
    """Whether it has a derivative for any leaf."""
    weight = torch.linspace(1, 2, edge.numel(), dtype=edge.dtype).reshape(edge.shape)
    moved = (weight.to(edge.device) * edge).sum()
    slopes = torch.autograd.grad(moved, leaves_of(edge), retain_graph=True)
    return any(bool(slope.any()) for slope in slopes)


def check_rounding(scored: Sequence[Scored]) -> None:
    """Refuses samples that rounding has moved: `log_prob` is then taken where they were not drawn.

    One in a hundred at an edge of the support, or a deviation below the rounding of its location.
    A distribution of one's own may put mass there on purpose.
    """
    scales: dict[tuple[Any, ...], list[tuple[str, Tensor, Tensor]]] = {}  # compared together
    for name, dist, x in scored:
        if not type(dist).__module__.startswith("torch.") or not x.is_floating_point():
            continue
        _check_edges(name, dist, x)
        for values in map(vars, _parts(dist)):
            loc, scale = values.get("loc"), values.get("scale")
            if isinstance(loc, Tensor) and isinstance(scale, Tensor):
                alike = loc.shape, scale.shape, loc.device, x.dtype
                scales.setdefault(alike, []).append((name, loc, scale))
    for alike, group in scales.items():
        _check_scales(group, alike[-1])


def _check_edges(name: str, dist: Distribution, x: Tensor) -> None:
    try:
        support = dist.support
    except NotImplementedError:
        return
    eps, tiny = torch.finfo(x.dtype).eps, torch.finfo(x.dtype).tiny
    is_discrete, is_simplex = _is_discrete(dist), support is constraints.simplex
    for bound in () if is_discrete else [0.0] if is_simplex else _bounds(support):
        if isinstance(bound, Tensor):  # of a uniform number, which has no mass there
            continue
        share = float(((x - bound).abs() <= max(eps * abs(bound), tiny)).double().mean())
        if share > 0.01:
            raise EstimatorError(
                f"{name}: expected samples inside the support, got {share:.0%} of those of "
                f"{type(dist).__name__} rounded to its edge; use how='pathwise', or float64"
            )


@torch.no_grad()
def _check_scales(group: Sequence[tuple[str, Tensor, Tensor]], dtype: torch.dtype) -> None:
    """Of equal shapes; together, as far as copies of them stay small."""
    most = max(1, 2**16 // max(1, group[0][1].numel()))
    for start in range(0, len(group), most):
        names, locs, scales = zip(*group[start : start + most], strict=True)
        loc, scale = (
            part[0][None] if len(part) == 1 else torch.stack(part) for part in (locs, scales)
        )
        narrow = scale < 4 * torch.finfo(dtype).eps * loc.abs()
        if bool(narrow.any()):
            first = int(narrow.reshape(len(names), -1).any(1).nonzero()[0])
            raise EstimatorError(
                f"{names[first]}: expected a scale above the rounding of its location, got "
                f"{float(scales[first].min()):.2g} in {dtype}; use how='pathwise', or float64"
            )


def lane_dim(name: str, shape: Sequence[int], branches: Sequence[int], lanes: int | None) -> int:
    """Which dimension of a batch shape is the lane: how many branch dimensions precede it."""
    if len(shape) == 0:
        raise EstimatorError(
            f"{name}: expected batch shape [lanes, ...], got []; expand it to the lanes (if its "
            "parameters are statistics of a batch: tape.resample)"
        )
    if not branches:
        return 0
    fits = [
        lane
        for lane in range(min(len(branches), len(shape) - 1) + 1)
        if shape[lane] == lanes and _fits(shape[:lane], branches)
    ]
    if len(fits) != 1:
        raise EstimatorError(
            f"{name}: expected batch shape [lanes] or [*branches, lanes] with branches "
            f"{list(branches)} and {lanes} lanes, got {list(shape)}, which fits "
            f"{'both' if fits else 'neither'}; choose a number of lanes that no branch has"
        )
    return fits[0]


def _fits(shape: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether a tensor of this shape broadcasts to the sizes."""
    pairs = zip(reversed(shape), reversed(sizes), strict=False)
    return len(shape) <= len(sizes) and all(a in (1, b) for a, b in pairs)


def check_term_shape(name: str, term: Tensor, branches: Sequence[int], *, scored: bool) -> None:
    """Refuses what is not one number per lane; of one number for all, where a score was taken."""
    if not isinstance(term, Tensor) or not 1 <= term.dim() <= 1 + len(branches):
        got = list(term.shape) if isinstance(term, Tensor) else type(term).__name__
        raise EstimatorError(
            f"{name}: expected one number per lane, got {got}; sum over all other dimensions, and "
            "let lanes meet in tape.resample only"
        )
    if not _fits(term.shape[:-1], branches):
        raise EstimatorError(
            f"{name}: expected [{', '.join(map(str, branches))}, lanes], got {list(term.shape)}; "
            "keep the leading dimensions of the branching samples"
        )
    if scored and term.shape[-1] > 1 and term.stride(-1) == 0:
        raise EstimatorError(
            f"{name}: expected one number per lane, got one expanded to all of them, which "
            "couples the lanes: use tape.resample (if it depends on no sample: term.clone())"
        )


def mean_and_deviation(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the lanes, refused where no Gaussian can be made of them."""
    if x.shape[0] < 3:
        raise EstimatorError(f"{name}: expected at least 3 lanes, got {x.shape[0]}")
    mean, deviation = x.mean(0), x.std(0)
    if not bool((deviation > 0).all()):
        raise EstimatorError(f"{name}: expected lanes that differ, got a standard deviation of 0")
    return mean, deviation


def refuse_half(name: str, x: Tensor) -> None:
    """Refuses a sample, or its probability, in half precision: a share of 1 / lanes of a gradient
    is 0 there."""
    if x.dtype in HALF:
        raise EstimatorError(
            f"{name}: expected samples in float32 or float64, and their probabilities, got "
            f"{x.dtype}; give the distribution .float() parameters"
        )


def checked_term(name: str, term: Tensor) -> Tensor:
    """A copy of the term, which the program may overwrite, in a type that holds its numbers."""
    if term.is_complex() or (term.dtype in HALF and term.requires_grad):
        raise EstimatorError(
            f"{name}: expected terms in float32 or float64, got {term.dtype}; use .float()"
        )
    if term.dtype in HALF:
        return term.float()
    if term.is_floating_point():
        return term.clone()
    largest = 1 if term.dtype == torch.bool else max(int(term.max()), -int(term.min()))
    dtype = torch.get_default_dtype()
    dtype = dtype if largest <= EXACT.get(dtype, 0) else torch.float64
    if largest > EXACT[dtype]:
        raise EstimatorError(
            f"{name}: expected integers up to 2^53, got {largest}; subtract what all have in common"
        )
    return term.to(dtype)


def refuse_standardized(names: Sequence[str], values: Tensor) -> None:
    """Refuses terms `[terms, lanes]` that the lanes' mean was taken from and their deviation
    divided out of.

    Every lane's term then depends on all lanes' samples, and a score node is credited with its own
    lane's only. Integers are spared: coins of -1 and 1 come out like that by chance.
    """
    mean, square, lanes = values.mean(1), values.square().mean(1), values.shape[1]
    unit = ((square - 1).abs() < 1e-6) | ((square - (lanes - 1) / lanes).abs() < 1e-6)
    suspect = (mean.abs() < 1e-6) & unit & (values != values.round()).any(1)
    if bool(suspect.any()):
        raise EstimatorError(
            f"{names[int(suspect.nonzero()[0])]}: expected terms of one lane each, got terms "
            "standardized across lanes; add the terms themselves, and use a baseline"
        )


def check_baseline(name: str, baseline: object) -> None:
    is_known = baseline is None or isinstance(baseline, Baseline | Tensor | int | float)
    if not is_known and (isinstance(baseline, type) or not callable(baseline)):
        raise EstimatorError(
            f"{name}: expected a number, tensor, Baseline or function, got {baseline!r}"
        )


def checked_discount(
    name: str, discount: Any, lanes: int, branches: Sequence[int]
) -> Tensor | float:
    """The discount, if it is one number or one per lane, in [0, 1] and without a gradient."""
    if not isinstance(discount, Tensor):
        if not isinstance(discount, Real) or not 0.0 <= float(discount) <= 1.0:
            raise EstimatorError(
                f"{name}: expected a discount in [0, 1], got {discount!r}; a number or a tensor"
            )
        return float(discount)
    if discount.requires_grad:
        raise EstimatorError(
            f"{name}: expected a discount without a gradient, got one with; detach it"
        )
    if not _fits(discount.shape, (*branches, lanes)):
        raise EstimatorError(
            f"{name}: expected a discount [{lanes}], one per lane, got {list(discount.shape)}"
        )
    outside = ~((discount >= 0) & (discount <= 1))
    if bool(outside.any()):
        raise EstimatorError(
            f"{name}: expected a discount in [0, 1], got {float(discount[outside][0])}"
        )
    return discount.clone()


def refuse_cut(name: str, discount: Tensor | float, path: str | None) -> None:
    """Refuses a discount that differs between lanes after `path`, a sample that may decide it."""
    if path is None or not isinstance(discount, Tensor) or discount.numel() < 2:
        return
    if bool((discount != discount.reshape(-1)[0]).any()):
        raise EstimatorError(
            f"{name}: expected a discount that is the same in all lanes after {path!r}, got one "
            "that differs; use how='score' there, or say independent=True if it decides nothing"
        )

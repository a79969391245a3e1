"""From the tape's events, in order, to one scalar: credit assignment, backward along the tape."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import Node as GradFn
from torch.distributions import Distribution

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import Baseline, Lanes, LeaveOneOut, OptimalConstant, ValueAt
from rlpg.gradients.combine import Mixture, lane_gradients, measure
from rlpg.gradients.estimators import magic_box, score_function
from rlpg.gradients.guards import naming, refuse_standardized
from rlpg.gradients.parameters import detached_twin, parameters_of


@dataclass
class Node:
    """A sample that is credited through its log-probability."""

    name: str
    index: int  # among the nodes of the tape
    sample: Tensor  # without gradient
    log_prob: Tensor  # [*branches, lanes]
    weight: Tensor | float  # W: product of the discounts since the episode's start
    branch: Tensor | None  # weight of each branch at this point, sums to 1
    baseline: Baseline | Tensor | float | Callable[[Tensor], Tensor] | None
    dist: Distribution
    mixture: Mixture | None = None  # set for "combine"
    subtracted: Tensor | None = None  # what a baseline gave before it learned from this

    @property
    def grad_fn(self) -> GradFn | None:
        """Where the gradient of later terms must arrive, if the sample carries one."""
        return None if self.mixture is None else self.mixture.sample.grad_fn


@dataclass
class Path:
    """A reparametrized sample; `grad_fn` is where the gradient of later terms must arrive."""

    name: str
    grad_fn: GradFn | None


@dataclass
class Term:
    name: str
    value: Tensor  # [*branches, lanes]
    discount: Tensor | float
    weight: Tensor | float
    branch: Tensor | None

    def weighted(self) -> Tensor:
        """`[*branches, lanes]` share of the objective, with all its gradients."""
        value = self.value if self.branch is None else self.value * self.branch
        return _times(self.weight, value)


@dataclass
class Branching:
    """From here to the end, tensors may carry `depth` leading branch dimensions."""

    name: str
    depth: int
    exact: bool


@dataclass
class Barrier:
    """All lanes met in their mean and standard deviation."""

    name: str
    x: Tensor  # [lanes, ...] what the statistics were taken of, without gradient
    mean: Tensor  # [...]
    deviation: Tensor  # [...]
    weight: Tensor | float


Event = Node | Path | Term | Branching | Barrier


@dataclass
class _Segment:
    """The shares of the objective between two barriers."""

    lanes: int
    terms: list[Tensor] = field(default_factory=list)  # weighted
    log_probs: list[Tensor] = field(default_factory=list)
    credits: list[Tensor] = field(default_factory=list)
    anchors: list[Tensor] = field(default_factory=list)

    def total(self) -> Tensor:
        total = torch.zeros(())
        if self.terms:
            total = torch.cat([term.reshape(-1) for term in self.terms]).sum() / self.lanes
        if self.log_probs:
            total = total + score_function(
                torch.cat([log_prob.reshape(-1) for log_prob in self.log_probs]),
                torch.cat([credit.reshape(-1) for credit in self.credits]),
                weight=1.0 / self.lanes,
            )
        return total + sum(self.anchors)


def build(events: Sequence[Event], lanes: int, gae_lambda: float) -> Tensor:
    """The first-order surrogate: `sum_terms W f + sum_nodes W (G - b) (log p - [log p])`, averaged
    over lanes, where G is the return from the node on."""
    _check_paths(events)
    _check_lanes(events, lanes)
    to_go = _zeros(events, lanes)  # G, times the weight of its branch
    shaped: Tensor | None = (
        None  # the part of G that lies beyond a barrier; centered, so no baseline is taken off
    )
    mixed = any(isinstance(event, Node) and event.mixture for event in events)
    segment, surrogate, link = _Segment(lanes), torch.zeros(()), torch.zeros(())
    mixtures: list[Mixture] = []
    mixed_parameters: list[Tensor] = []
    learn: list[tuple[Node, Tensor, Tensor | float]] = []
    stands_in: Tensor | None = None  # the value of the state that the step began in
    earlier_nodes = sum(isinstance(event, Node) for event in events)
    for event in reversed(events):
        if stands_in is not None and not isinstance(event, Node | Path):
            to_go, stands_in = gae_lambda * to_go + (1 - gae_lambda) * stands_in, None
        if isinstance(event, Term):
            segment.terms.append(event.weighted())
            value = event.value.detach()
            value = value if event.branch is None else value * event.branch.detach()
            to_go = value + _times(event.discount, to_go)
            shaped = None if shaped is None else _times(event.discount, shaped)
        elif isinstance(event, Branching):
            to_go = to_go.sum(0) if to_go.dim() > event.depth else to_go
        elif isinstance(event, Node):
            earlier_nodes -= 1
            returns = _returns_at(event, to_go)
            baseline = _baseline(event, returns, halves=mixed)
            learn.append((event, returns, baseline))
            left = returns if shaped is None else returns + shaped
            if event.baseline is not None:
                left = left - _in_branches(event, baseline)
            credit = _times(event.weight, left)
            if event.mixture is None:
                segment.log_probs.append(event.log_prob)
                segment.credits.append(credit)
            else:
                event.mixture.credit = credit
                segment.anchors.append(event.mixture.anchor)
                mixtures.append(event.mixture)
                mixed_parameters += parameters_of(event.dist)
            if gae_lambda < 1 and isinstance(event.baseline, ValueAt | Tensor):
                stands_in = torch.as_tensor(_in_branches(event, baseline))
        elif isinstance(event, Barrier):
            total = segment.total()
            surrogate = surrogate + total
            if earlier_nodes > 0:
                to_go = torch.zeros_like(to_go)
                shaped, link = _shaped(event, total + link)
            segment = _Segment(lanes)
    surrogate = surrogate + segment.total()
    _check_finite(surrogate, events)
    if mixtures:
        measure(surrogate, mixtures, mixed_parameters)
    _learn(learn)
    return surrogate


def dice(events: Sequence[Event], lanes: int) -> Tensor:
    """A surrogate that can be differentiated twice: `sum W f box(L)`, L the log-probability of all
    score nodes before the term in its episode, plus `W b (box(L) - box(L + log p))` per baseline.

    Source: Foerster et al. 2018, eq. 10; baseline for any order: Mao et al. 2019, eq. 8.
    """
    _check_paths(events)
    _check_lanes(events, lanes)
    learn: list[tuple[Node, Tensor, Tensor | float]] = []
    returns_of = _returns(events, lanes)
    total, history = torch.zeros(()), _zeros(events, lanes)
    for event in events:
        if isinstance(event, Barrier) or (isinstance(event, Branching) and not event.exact):
            raise EstimatorError(
                f"{event.name}: expected order=1, got 2; it has no second derivative"
            )
        if isinstance(event, Node):
            if event.mixture is not None:
                raise EstimatorError(f"{event.name}: expected order=1, got 2; use 'score'")
            after = history + event.log_prob
            returns = returns_of[id(event)]
            baseline = _baseline(event, returns)
            learn.append((event, returns, baseline))
            if event.baseline is not None:
                scale = event.weight if event.branch is None else event.weight * event.branch
                drop = magic_box(history) - magic_box(after)
                total = total + (scale * baseline * drop).sum() / lanes
            history = after
        elif isinstance(event, Term):
            total = total + (event.weighted() * magic_box(history)).sum() / lanes
            goes_on = event.discount != 0
            if isinstance(goes_on, Tensor):
                history = torch.where(goes_on, history, 0.0)
            elif not goes_on:
                history = _zeros(events, lanes)
    _check_finite(total, events)
    _learn(learn)
    return total


def _learn(learn: Sequence[tuple[Node, Tensor, Tensor | float]]) -> None:
    """Baselines learn once from each node; a second surrogate of the same tape subtracts what the
    first did, for what has been learned since contains these samples."""
    for node, returns, subtracted in learn:
        if isinstance(node.baseline, Baseline) and node.subtracted is None:
            node.baseline.update(
                _lanes(node, returns), returns[None], torch.ones_like(returns)[None]
            )
            node.subtracted = torch.as_tensor(subtracted)


def _lanes(node: Node, returns: Tensor) -> Lanes:
    return Lanes(returns, node.index, lambda: _score_square(node))


def _returns(events: Sequence[Event], lanes: int) -> dict[int, Tensor]:
    """The return of every node, by its id."""
    to_go, found = _zeros(events, lanes), {}
    for event in reversed(events):
        if isinstance(event, Term):
            value = event.value if event.branch is None else event.value * event.branch
            to_go = value.detach() + event.discount * to_go
        elif isinstance(event, Branching):
            to_go = to_go.sum(0) if to_go.dim() > event.depth else to_go
        elif isinstance(event, Node):
            found[id(event)] = _returns_at(event, to_go)
    return found


def _returns_at(node: Node, to_go: Tensor) -> Tensor:
    """The return in the node's own shape; after the last term it is 0 and has no branches yet."""
    if to_go.shape == node.log_prob.shape:
        return to_go
    if to_go.dim() < node.log_prob.dim():
        return to_go.expand(node.log_prob.shape)
    return to_go.sum_to_size(node.log_prob.shape)


def _zeros(events: Sequence[Event], lanes: int) -> Tensor:
    like = next(event.value for event in events if isinstance(event, Term))
    return torch.zeros(lanes, dtype=like.dtype, device=like.device)


def _baseline(node: Node, returns: Tensor, *, halves: bool = False) -> Tensor | float:
    """The number, or `[lanes]`, to subtract from the node's returns.

    With `halves`, statistics stay within the even and within the odd lanes: the halves between
    which "combine" swaps its weights must know nothing of each other.
    """
    given = node.baseline
    if given is None:
        return 0.0
    if isinstance(given, int | float):
        return float(given)
    if isinstance(given, Tensor):
        return _per_lane(node, given, returns)
    if node.branch is not None:
        raise EstimatorError(
            f"{node.name}: expected a number or tensor as baseline inside branches, got "
            f"{type(given).__name__}; the returns of its branches are not comparable"
        )
    if isinstance(given, Baseline):
        if node.subtracted is not None:
            return node.subtracted
        if isinstance(given, LeaveOneOut | OptimalConstant) and len(returns) < 2 * (1 + halves):
            raise EstimatorError(
                f"{node.name}: {type(given).__name__}: expected at least 2 lanes, got "
                f"{len(returns)}; add lanes"
            )
        if halves and not isinstance(given, ValueAt):
            return _by_halves(node, given, returns)
        return _per_lane(node, given(_lanes(node, returns), returns[None])[0], returns)
    if halves:
        raise EstimatorError(
            f"{node.name}: expected a number, tensor or Baseline beside how='combine', got a "
            "function; its two halves must know nothing of each other: use LeaveOneOut()"
        )
    state = torch.random.get_rng_state()
    value = _per_lane(node, torch.as_tensor(given(returns)), returns)
    _leaves_own_out(node, given, returns, value, state)
    return value


def _leaves_own_out(
    node: Node, given: Callable[[Tensor], Tensor], returns: Tensor, value: Tensor, state: Tensor
) -> None:
    """A function that is given the returns must not use lane i's for lane i: change that one, to
    more and to less than all others, and look. All lanes in turn, or 16 that the returns choose.

    Args:
        state: of the random numbers when `value` was computed; a function may draw some.
    """
    lanes, values = len(returns), returns.detach().cpu().double()
    chosen = torch.Generator().manual_seed(zlib.crc32(values.numpy().tobytes()))
    above = 1.0 + returns.abs().max()
    rounding = 64 * torch.finfo(returns.dtype).eps * float(above)
    after = torch.random.get_rng_state()
    try:
        for lane in torch.randperm(lanes, generator=chosen)[:16].tolist():
            for moved in (returns[lane] + above, returns[lane] - 2 * above):
                changed = returns.clone()
                changed[lane] = moved
                torch.random.set_rng_state(state)
                again = torch.as_tensor(given(changed))
                if float((again - value).expand(returns.shape)[lane].abs()) > rounding:
                    raise EstimatorError(
                        f"{node.name}: expected a baseline that leaves each lane's own return out, "
                        "got one that depends on it; the gradient would be biased: use "
                        "LeaveOneOut()"
                    )
    finally:
        torch.random.set_rng_state(after)


def _by_halves(node: Node, given: Baseline, returns: Tensor) -> Tensor:
    square = _score_square(node) if isinstance(given, OptimalConstant) else returns
    value = torch.empty_like(returns)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        lanes = Lanes(returns[half], node.index, lambda half=half: square[half])  # type: ignore[misc]
        value[half] = _per_lane(node, given(lanes, returns[None, half])[0], returns[half])
    return value


def _per_lane(node: Node, value: Tensor, returns: Tensor) -> Tensor:
    if value.requires_grad:
        raise EstimatorError(f"{node.name}: expected a baseline without a gradient; detach it")
    if value.dim() > 0 and value.shape != returns.shape[-value.dim() :]:
        raise EstimatorError(
            f"{node.name}: expected a baseline {list(returns.shape)}, got {list(value.shape)}; "
            "return one number per lane"
        )
    return value


def _in_branches(node: Node, baseline: Tensor | float) -> Tensor | float:
    """The baseline as it counts: times the weight of the node's branch, like its returns."""
    if node.branch is None:
        return baseline
    return (node.branch.detach() * baseline).sum_to_size(node.log_prob.shape)


def _times(factor: Tensor | float, value: Tensor) -> Tensor:
    """The product, without touching a thousand tensors where there is no discount."""
    return value if isinstance(factor, float) and factor == 1.0 else factor * value


def _score_square(node: Node) -> Tensor:
    with naming(node.name), torch.enable_grad():
        twin, leaves = detached_twin(node.dist, by_logits=True)
        log_prob = twin.log_prob(node.sample)
        lanes = len(log_prob)
        log_prob = log_prob.reshape(lanes, -1).sum(1)
        score = lane_gradients(log_prob, leaves, torch.ones_like(log_prob))
    return torch.stack([s.square().reshape(lanes, -1).sum(1) for s in score]).sum(0)


def _shaped(barrier: Barrier, later: Tensor) -> tuple[Tensor, Tensor]:
    """The shaped reward of each lane for what comes after the barrier, and a scalar that hands its
    gradient with respect to the statistics on to the barrier before."""
    d_mean, d_deviation = torch.autograd.grad(
        later,
        [barrier.mean, barrier.deviation],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    link = (d_mean * barrier.mean).sum() + (d_deviation * barrier.deviation).sum()
    mean, deviation, n = barrier.mean.detach(), barrier.deviation.detach(), len(barrier.x)
    variance, d_variance = deviation.square(), d_deviation / (2 * deviation)
    off = barrier.x - mean  # [lanes, ...]
    without = ((n - 1) * variance - off.square() * n / (n - 1)) / (n - 2)
    shaped = n / (n - 1) * (d_mean * off + d_variance * (off.square() - without))
    return shaped.reshape(n, -1).sum(1) / barrier.weight, link


def _check_finite(surrogate: Tensor, events: Sequence[Event]) -> None:
    """Looks for the culprit where the sum is not finite."""
    mixed = [e.log_prob.sum() for e in events if isinstance(e, Node) and e.mixture]
    if bool(torch.isfinite(sum(mixed, surrogate.detach()))):
        return
    terms = [event for event in events if isinstance(event, Term)]
    nodes = [event for event in events if isinstance(event, Node)]
    for name, what, values in [(t.name, "terms", t.value) for t in terms] + [
        (n.name, "log-probabilities", n.log_prob) for n in nodes
    ]:
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            raise EstimatorError(
                f"{name}: expected finite {what}, got {float(values[tuple(bad[0])])} in lane "
                f"{int(bad[0][-1])}; no gradient can be made of it"
            )


def _check_lanes(events: Sequence[Event], lanes: int) -> None:
    """Standardized terms, where a score is taken."""
    if lanes > 2 and any(isinstance(event, Node) for event in events):
        terms = [e for e in events if isinstance(e, Term) and e.value.shape == (lanes,)]
        if terms:
            refuse_standardized([(term.name, term.value.detach()) for term in terms])


def _check_paths(events: Sequence[Event]) -> None:
    """Refuses a pathwise node that no later term's gradient reaches: its gradient would be 0.

    Walks every autograd node once, from the last event to the first.
    """
    seen: set[GradFn] = set()
    terms_follow = False
    for event in reversed(events):
        if isinstance(event, Path) or (isinstance(event, Node) and event.mixture):
            if terms_follow and event.grad_fn not in seen:
                raise EstimatorError(
                    f"{event.name}: expected terms that carry the gradient of this pathwise "
                    "sample, got none (a comparison, rounding or detach between them?); use "
                    "how='score'"
                )
        elif isinstance(event, Term | Node):
            terms_follow |= isinstance(event, Term)
            root = event.value.grad_fn if isinstance(event, Term) else event.log_prob.grad_fn
            stack = [root] if root is not None and root not in seen else []
            seen.update(stack)
            while stack:
                for child, _ in stack.pop().next_functions:
                    if child is not None and child not in seen:
                        seen.add(child)
                        stack.append(child)

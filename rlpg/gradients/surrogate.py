"""From the tape's events, in order, to one scalar: credit assignment, backward along the tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node as GradFn

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import Baseline, ValueAt
from rlpg.gradients.combine import measure
from rlpg.gradients.estimators import magic_box, score_function
from rlpg.gradients.events import Barrier, Branching, Event, Node, Path, Term, times
from rlpg.gradients.guards import refuse_standardized
from rlpg.gradients.parameters import graph_of
from rlpg.gradients.subtract import baseline_of, in_branches, lanes_of


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
    _check(events, lanes)
    if gae_lambda < 1 or any(isinstance(event, Barrier) for event in events):
        _refuse_ancestors(events)
    returns_of = node_returns(events, lanes, gae_lambda)
    mixtures = [e.mixture for e in events if isinstance(e, Node) and e.mixture]
    # The part of a return that lies beyond a barrier; centered, so no baseline is taken off.
    shaped: Tensor | None = None
    segment, surrogate, link = _Segment(lanes), torch.zeros(()), torch.zeros(())
    learn: list[tuple[Node, Tensor, Tensor | float]] = []
    for event in reversed(events):
        if isinstance(event, Term):
            segment.terms.append(event.weighted())
            shaped = None if shaped is None else times(event.discount, shaped)
        elif isinstance(event, Node):
            returns = returns_of[id(event)]
            if event.controlled is not None:
                returns = returns - event.controlled.value
                repaid = times(event.weight, event.controlled.repaid)
                segment.anchors.append((repaid - repaid.detach()).sum() / lanes)
            baseline = baseline_of(event, returns, halves=bool(mixtures))
            learn.append((event, returns, baseline))
            left = returns if shaped is None else returns + shaped
            if event.baseline is not None:
                left = left - in_branches(event, baseline)
            credit = times(event.weight, left)
            if event.anchor is None:
                segment.log_probs.append(event.log_prob)
                segment.credits.append(credit)
            else:
                segment.anchors.append((event.anchor * credit.detach()).sum() / lanes)
        elif isinstance(event, Barrier):
            total = segment.total()
            surrogate, segment = surrogate + total, _Segment(lanes)
            if event.is_scored:
                shaped, link = _shaped(event, total + link)
    surrogate = surrogate + segment.total()
    _check_finite(surrogate, events)
    if mixtures:
        measure(surrogate, mixtures)
    _learn(learn)
    once = any(isinstance(e, Node) or (isinstance(e, Branching) and not e.exact) for e in events)
    return _Once.apply(surrogate) if once else surrogate  # type: ignore[no-untyped-call]


class _Once(torch.autograd.Function):
    """The identity, whose second derivative is refused: it would be that of the estimator as it
    was sampled, not of the objective.

    It is applied to the surrogate, and to what is differentiated of it, beside the surrogate.
    """

    generate_vmap_rule = True  # for torch.func.jacrev

    @staticmethod
    def forward(value: Tensor, *surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        is_last = len(ctx.saved_tensors) == 1 and not torch.is_grad_enabled()  # no graph is wanted
        return grad if is_last else _Once.jvp(ctx, grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        if len(ctx.saved_tensors) > 1:
            raise EstimatorError(
                "surrogate: expected one derivative, got a second, which order=1 does not have; "
                "use tape.surrogate(order=2)"
            )
        again: Tensor = _Once.apply(tangents[0], *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return again


def dice(events: Sequence[Event], lanes: int) -> Tensor:
    """A surrogate that can be differentiated twice: `sum W f box(L)`, L the log-probability of all
    score nodes before the term in its episode, plus `W b (box(L) - box(L + log p))` per baseline.

    Source: Foerster et al. 2018, eq. 10; baseline for any order: Mao et al. 2019, eq. 8.
    """
    _check(events, lanes)
    _refuse_ancestors(events)
    learn: list[tuple[Node, Tensor, Tensor | float]] = []
    returns_of = node_returns(events, lanes)
    total, history = torch.zeros(()), _zeros(events, lanes)
    for event in events:
        if isinstance(event, Barrier) or (isinstance(event, Branching) and not event.exact):
            raise EstimatorError(
                f"{event.name}: expected order=1, got 2; it has no second derivative"
            )
        if isinstance(event, Node):
            if event.mixture is not None or event.controlled is not None:
                raise EstimatorError(
                    f"{event.name}: expected order=1, got 2; use 'score' without a control"
                )
            after = history + event.log_prob
            baseline = baseline_of(event, returns_of[id(event)])
            learn.append((event, returns_of[id(event)], baseline))
            if event.baseline is not None:
                scale = event.weight if event.branch is None else event.weight * event.branch
                drop = magic_box(history) - magic_box(after)
                total = total + (scale * baseline * drop).sum() / lanes
            history = after
        elif isinstance(event, Term):
            total = total + (event.weighted() * magic_box(history)).sum() / lanes
            goes_on = torch.as_tensor(event.discount != 0, device=history.device)
            history = torch.where(goes_on, history, 0.0)
    _check_finite(total, events)
    _learn(learn)
    return total


def _learn(learn: Sequence[tuple[Node, Tensor, Tensor | float]]) -> None:
    """Baselines learn once from each node; a second surrogate of the same tape subtracts what the
    first did, for what has been learned since contains these samples."""
    for node, returns, subtracted in learn:
        if node.subtracted is not None:
            continue
        node.subtracted = torch.as_tensor(subtracted)
        if isinstance(node.baseline, Baseline):
            node.baseline.update(
                lanes_of(node, returns), returns[None], torch.ones_like(returns)[None]
            )
        if node.controlled is not None:
            node.controlled.learn(returns + node.controlled.value - subtracted)


def node_returns(events: Sequence[Event], lanes: int, gae_lambda: float = 1.0) -> dict[int, Tensor]:
    """The return of every node up to the next barrier, by the node's id."""
    if not _has_ancestors(events):
        return _walk(events, lanes, None, gae_lambda)
    nodes = [event for event in events if isinstance(event, Node)]  # each is paid by its own terms
    return {id(node): _walk(events, lanes, node, 1.0)[id(node)] for node in nodes}


def _has_ancestors(events: Sequence[Event]) -> bool:
    return any(isinstance(event, Term) and event.ancestors is not None for event in events)


def _refuse_ancestors(events: Sequence[Event]) -> None:
    if _has_ancestors(events):
        raise EstimatorError(
            "surrogate: expected order=1, gae_lambda=1 and no resample where terms say what they "
            "depend on, got others; leave depends_on out"
        )


def _walk(
    events: Sequence[Event], lanes: int, only: Node | None, gae_lambda: float
) -> dict[int, Tensor]:
    """The sums of the later terms at every node; of those that are paid to one node, if given."""
    to_go, found = _zeros(events, lanes), {}  # G, times the weight of its branch
    stands_in: Tensor | None = None  # the value of the state that the step began in
    for event in reversed(events):
        if stands_in is not None and not isinstance(event, Node | Path):
            to_go, stands_in = gae_lambda * to_go + (1 - gae_lambda) * stands_in, None
        if isinstance(event, Term):
            to_go = times(event.discount, to_go)
            if event.paid_to(only):
                value = event.value.detach()
                to_go = to_go + (value if event.branch is None else value * event.branch.detach())
        elif isinstance(event, Branching):
            to_go = to_go.sum(0) if to_go.dim() > event.depth else to_go
        elif isinstance(event, Node):
            found[id(event)] = _returns_at(event, to_go)
            if gae_lambda < 1 and isinstance(event.baseline, ValueAt | Tensor):
                value_of_state = baseline_of(event, found[id(event)])
                stands_in = torch.as_tensor(in_branches(event, value_of_state))
        elif isinstance(event, Barrier):
            to_go = torch.zeros_like(to_go)
    return found


def _returns_at(node: Node, to_go: Tensor) -> Tensor:
    """The return in the node's own shape; after the last term it is 0 and has no branches yet."""
    if to_go.dim() < node.log_prob.dim():
        return to_go.expand(node.log_prob.shape)
    return to_go.sum_to_size(node.log_prob.shape)


def _zeros(events: Sequence[Event], lanes: int) -> Tensor:
    like = next(event.value for event in events if isinstance(event, Term))
    return torch.zeros(lanes, dtype=like.dtype, device=like.device)


def _shaped(barrier: Barrier, later: Tensor) -> tuple[Tensor, Tensor]:
    """The shaped reward of each lane for what comes after the barrier, and a scalar that hands its
    gradient with respect to the statistics on to the barrier before."""
    statistics = [barrier.mean, barrier.deviation]
    d_mean, d_deviation = torch.autograd.grad(
        later, statistics, retain_graph=True, materialize_grads=True
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
    nodes = [event for event in events if isinstance(event, Node)]
    mixed = [node.log_prob.sum() for node in nodes if node.mixture]
    if bool(torch.isfinite(sum(mixed, surrogate.detach()))):
        return
    terms = [(e.name, "terms", e.value) for e in events if isinstance(e, Term)]
    for name, what, values in terms + [(n.name, "log-probabilities", n.log_prob) for n in nodes]:
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            raise EstimatorError(
                f"{name}: expected finite {what}, got {float(values[tuple(bad[0])].detach())} in "
                f"lane {int(bad[0][-1])}; no gradient can be made of it"
            )
    raise EstimatorError(
        f"surrogate: expected a finite number, got {float(surrogate.detach())} from finite terms "
        "and log-probabilities; look at baselines, controls and the size of sums"
    )


def _check(events: Sequence[Event], lanes: int) -> None:
    """Refuses terms standardized across lanes where a score is taken, and a pathwise node that no
    later term's gradient reaches: its gradient would be 0.

    Walks every autograd node once, from the last event to the first.
    """
    seen: set[GradFn] = set()
    terms: list[Term] = []
    for event in reversed(events):
        if isinstance(event, Path) or (isinstance(event, Node) and event.mixture):
            if terms and event.grad_fn not in seen:
                raise EstimatorError(
                    f"{event.name}: expected terms that carry the gradient of this pathwise "
                    "sample, got none (a comparison, rounding or detach between them?); use "
                    "how='score'"
                )
        elif isinstance(event, Term):
            terms.append(event)
            graph_of(event.weighted(), seen=seen)  # a path may end in the weights of branches
        elif isinstance(event, Node):
            graph_of(event.log_prob, seen=seen)
    if lanes > 2 and any(isinstance(event, Node) for event in events):
        plain = [term for term in reversed(terms) if term.value.shape == (lanes,)]
        if plain:
            names = [term.name for term in plain]
            refuse_standardized(names, torch.stack([term.value.detach() for term in plain]))

"""The tensors that a distribution's density and samples depend on."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch import distributions as D
from torch.autograd.graph import Node as GradFn

BY_LOGITS = (
    D.Bernoulli, D.Binomial, D.Categorical, D.ContinuousBernoulli, D.Geometric, D.NegativeBinomial,
)  # fmt: skip
DERIVED = {  # attributes that hold what another one says already
    D.MultivariateNormal: {"covariance_matrix", "precision_matrix", "scale_tril"},
    D.Transform: {"_cached_x_y"},
}


def parameters_of(distribution: D.Distribution) -> list[Tensor]:
    """The tensors with a gradient inside a distribution, and inside those and the transforms that
    it is built from."""
    found: list[tuple[Tensor, Tensor]] = []
    _twin(distribution, found, {})
    return [value for value, _ in found]


def detached_twin(
    distribution: D.Distribution, *, by_logits: bool = False
) -> tuple[D.Distribution, list[Tensor]]:
    """The same distribution on copies, and those of them that are leaves with a gradient, in the
    order of `parameters_of`.

    With `by_logits`, those that can be given by probabilities or by logits have logits as leaves,
    however they were made: gradients with respect to them do not depend on the choice.
    """
    found: list[tuple[Tensor, Tensor]] = []
    return _twin(distribution, found, {}, by_logits), [leaf for _, leaf in found]


def _twin(
    part: Any, found: list[tuple[Tensor, Tensor]], twins: dict[int, Any], by_logits: bool = False
) -> Any:
    """`part` on new leaves; a transform and its inverse know each other, hence `twins` by id."""
    if isinstance(part, Tensor):
        leaf = part.detach().clone()
        if part.requires_grad:
            found.append((part, leaf.requires_grad_()))
        return leaf
    if isinstance(part, list | tuple):
        return type(part)([_twin(value, found, twins, by_logits) for value in part])
    if not isinstance(part, D.Distribution | D.Transform):
        return part
    if id(part) not in twins:
        twin = twins[id(part)] = copy.copy(part)
        skipped = {
            name for kind, names in DERIVED.items() if isinstance(part, kind) for name in names
        }
        if by_logits and isinstance(part, BY_LOGITS):
            logits = part.logits
            leaf = logits.detach().clone().requires_grad_()
            found.append((logits, leaf))
            vars(twin)["logits"] = leaf
            if isinstance(part, D.Categorical):
                vars(twin)["logits"] = leaf - leaf.logsumexp(dim=-1, keepdim=True)
            vars(twin).pop("probs", None)  # made from the logits when asked for
            skipped |= {"logits", "probs", "_param"}
        for name, value in vars(part).items():
            if name not in skipped:
                changed = _twin(value, found, twins, by_logits)
                if changed is not value:
                    vars(twin)[name] = changed
    return twins[id(part)]


def graph_of(*outputs: Tensor, seen: set[GradFn] | None = None) -> set[GradFn]:
    """The autograd nodes that the outputs were computed by, and `seen`, which is added to."""
    return with_inputs((output.grad_fn for output in outputs), seen)


def with_inputs(nodes: Iterable[GradFn | None], seen: set[GradFn] | None = None) -> set[GradFn]:
    """The autograd nodes, those that their inputs were computed by, and `seen`."""
    seen = set() if seen is None else seen
    stack = [node for node in nodes if node is not None and node not in seen]
    seen.update(stack)
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return seen


def leaves_of(*outputs: Tensor) -> list[Tensor]:
    """The leaf tensors with a gradient that the outputs were computed from."""
    leaves = {id(output): output for output in outputs if output.requires_grad and output.is_leaf}
    for node in graph_of(*outputs):
        variable = getattr(node, "variable", None)  # of AccumulateGrad
        if isinstance(variable, Tensor):
            leaves[id(variable)] = variable
    return list(leaves.values())

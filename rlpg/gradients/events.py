"""What a tape writes down, in order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from torch.autograd.graph import Node as GradFn
from torch.distributions import Distribution

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import Baseline
from rlpg.gradients.combine import Mixture
from rlpg.gradients.controls import Controlled

How = Literal[
    "score",
    "pathwise",
    "expect",
    "combine",
    "weak",
    "disarm",
    "without_replacement",
    "biased_straight_through",
    "biased_gumbel_softmax",
]
_HOWS = get_args(How)  # once: every sample is asked
BRANCHING = ("expect", "weak", "disarm", "without_replacement")


@dataclass
class Node:
    """A sample that is credited through its log-probability."""

    name: str
    index: int  # among the nodes of the tape
    draw: int  # among all samples of the tape
    sample: Tensor  # without gradient
    log_prob: Tensor  # [*branches, lanes]
    weight: Tensor | float  # W: product of the discounts since the episode's start
    branch: Tensor | None  # weight of each branch at this point, sums to 1
    baseline: Baseline | Tensor | float | Callable[[Tensor], Tensor] | None
    dist: Distribution
    mixture: Mixture | None = None  # set for "combine", with the next
    anchor: Tensor | None = None  # [lanes] zeros; see `Mixture.join`
    controlled: Controlled | None = None
    lanes_may_depend: bool = False  # on each other: their random numbers were given
    subtracted: Tensor | None = None  # what a baseline gave before it learned from this

    @property
    def grad_fn(self) -> GradFn | None:
        """Where the gradient of later terms must arrive, if the sample carries one."""
        return None if self.anchor is None else self.anchor.grad_fn  # the sample's, too


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
    ancestors: frozenset[int] | None = None  # draws that it depends on; None: on all before it

    def paid_to(self, node: Node | None) -> bool:
        """Whether it counts in the return of the node; None stands for all nodes before it."""
        return node is None or self.ancestors is None or node.draw in self.ancestors

    def weighted(self) -> Tensor:
        """`[*branches, lanes]` share of the objective, with all its gradients."""
        value = self.value if self.branch is None else self.value * self.branch
        return times(self.weight, value)


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
    is_scored: bool  # whether nodes before it are to be credited with what comes after it


Event = Node | Path | Term | Branching | Barrier
# By id a sample, which draw it was, and the draws that it came from (None: all before it).
Drawn = dict[int, tuple[Tensor, int, frozenset[int] | None]]


F = TypeVar("F", bound=Callable[..., Any])


def backward_pass() -> int:
    """The number of the backward pass that is going on; -1: none."""
    return torch._C._current_graph_task_id()


def written_once(method: F) -> F:
    """A method that writes on a tape; where torch.utils.checkpoint plays a part of the program
    again in a backward pass, the tape stays as it was."""

    @functools.wraps(method)
    def played(tape: Any, *args: Any, **options: Any) -> Any:
        if backward_pass() == tape._made_in:
            return method(tape, *args, **options)
        before = {**vars(tape)}
        tape.events, tape._scored, tape._drawn = [], [], {}
        options.pop("depends_on", None)
        try:
            return method(tape, *args, **options)
        finally:
            vars(tape).update(before)

    return played  # type: ignore[return-value]


def ancestors_of(
    name: str, depends_on: Sequence[Tensor] | None, drawn: Drawn
) -> frozenset[int] | None:
    """The draws of the samples given, and of those that they came from; None: all so far."""
    if depends_on is None:
        return None
    found: set[int] = set()
    for x in depends_on:
        if id(x) not in drawn:
            raise EstimatorError(
                f"{name}: expected samples of this tape in depends_on, got another tensor"
            )
        _, draw, before = drawn[id(x)]
        found |= {draw, *(range(draw) if before is None else before)}
    return frozenset(found)


def known_how(name: str, how: str) -> How:
    if how not in _HOWS:
        raise EstimatorError(
            f"{name}: expected how in {', '.join(_HOWS)}, got {how!r}; choose one of them"
        )
    return how  # type: ignore[return-value]


def times(factor: Tensor | float, value: Tensor) -> Tensor:
    """The product, without touching a thousand tensors where there is no discount."""
    return value if isinstance(factor, float) and factor == 1.0 else factor * value

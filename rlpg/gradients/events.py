"""What a tape writes down, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node as GradFn
from torch.distributions import Distribution

from rlpg.gradients.baselines import Baseline
from rlpg.gradients.combine import Mixture


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


Event = Node | Path | Term | Branching | Barrier


def times(factor: Tensor | float, value: Tensor) -> Tensor:
    """The product, without touching a thousand tensors where there is no discount."""
    return value if isinstance(factor, float) and factor == 1.0 else factor * value

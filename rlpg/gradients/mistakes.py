"""The gradients of one program that can be asked for, and the signatures of classic mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor
from torch.distributions import Distribution

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import LeaveOneOut
from rlpg.gradients.experiment import (
    Problem,
    TapeMaker,
    gradient,
    seeded,
    seeds,
    surrogate_of,
)
from rlpg.gradients.surrogate import Node
from rlpg.gradients.tape import How, Subtract, Tape

MAX_DIRECTIONS = 12
SHORTER = 6  # times that a step is quartered where the parameters may not go so far


class Check:
    """One program with its parameters, and the gradients of it that can be asked for."""

    def __init__(
        self,
        problem: Problem,
        tensors: dict[str, Tensor],
        make: TapeMaker,
        num_lanes: int,
        order: int,
        step: float,
        seed: int,
    ) -> None:
        self.problem, self.tensors, self.make = problem, tensors, make
        self.num_lanes, self.order, self.step, self.seed = num_lanes, order, step, seed
        self.start = torch.cat([t.detach().reshape(-1) for t in tensors.values()])  # [D]
        generator = torch.Generator().manual_seed(seed)
        dims = len(self.start)
        if dims <= MAX_DIRECTIONS:
            self.directions = torch.eye(dims, dtype=torch.float64)  # [K, D]
            self.labels = [
                f"for {name}" + (f"[{k}]" if tensor.numel() > 1 else "")
                for name, tensor in tensors.items()
                for k in range(tensor.numel())
            ]
        else:
            drawn = torch.randn(MAX_DIRECTIONS, dims, generator=generator, dtype=torch.float64)
            self.directions = drawn / drawn.norm(dim=1, keepdim=True)
            self.labels = [f"along random direction {k}" for k in range(MAX_DIRECTIONS)]
        self.inner = torch.randn(dims, generator=generator, dtype=torch.float64)  # [D], order 2

    def along(self, flat: Tensor) -> Tensor:
        """`[K]` derivatives along the directions of a flat gradient `[D]`."""
        derivatives: Tensor = self.directions @ flat.detach().double().cpu()
        return derivatives

    def estimate(self, one: int) -> Tensor:
        """`[K]` what is being checked."""
        with seeded(one, self.tensors):
            surrogate = surrogate_of(self.problem, self.make(), self.num_lanes, self.order)
            if self.order == 1:
                return self.along(gradient(surrogate, self.tensors))
            first = self._flat_gradient(surrogate)
            inner = (first * self.inner.to(first)).sum()
            return self.along(gradient(inner, self.tensors))

    def _flat_gradient(self, surrogate: Tensor) -> Tensor:
        found = torch.autograd.grad(
            surrogate, list(self.tensors.values()), create_graph=True, materialize_grads=True
        )
        return torch.cat([grad.reshape(-1) for grad in found])

    def by_score(self, one: int) -> Tensor:
        return self.by_tape(one, _left_out)

    def by_tape(
        self, one: int, make: TapeMaker, mistake: Callable[[Tape], None] | None = None
    ) -> Tensor:
        """`[K]` gradient of the surrogate of a tape of our own, with a mistake or without."""
        tape = make()
        tape.num_lanes = self.num_lanes
        with seeded(one, self.tensors):
            self.problem(tape, self.num_lanes)
            if mistake is not None:
                mistake(tape)
            return self.along(gradient(tape.surrogate(), self.tensors))

    def objective_differences(self, exact: bool) -> Callable[[int], Tensor]:
        def objective(one: int) -> float:
            tape = Tape("expect" if exact else "score", num_lanes=self.num_lanes)
            with seeded(one, self.tensors):
                self.problem(tape, self.num_lanes)
            return float(tape.objective())

        return lambda one: self._differences(lambda: objective(one))

    def by_differences(self, one: int) -> Tensor:
        """`[K]` differences of the first derivative along `inner`."""

        def first() -> float:
            with seeded(one, self.tensors):
                surrogate = surrogate_of(self.problem, self.make(), self.num_lanes)
                flat = gradient(surrogate, self.tensors).double().cpu()
            return float((flat * self.inner).sum())

        return self._differences(first)

    def _differences(self, function: Callable[[], float]) -> Tensor:
        """`[K]` central differences of fourth order, with the parameters put back afterwards."""
        slopes = []
        scale = self.start.double().cpu().abs().clamp(min=1.0)
        try:
            for direction in self.directions:
                h = self.step * float((direction.abs() * scale).max())
                for _ in range(SHORTER):
                    try:
                        values = self._around(h * direction, function)
                        break
                    except ValueError:  # outside of what a distribution takes: a deviation below 0
                        h /= 4
                else:
                    raise EstimatorError(
                        "gradcheck: expected parameters that can be moved by "
                        f"{4 * h:.2g}, got a distribution that refuses them; choose a smaller step"
                    )
                slopes.append((8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h))
        finally:
            self._move_to(self.start)
        return torch.tensor(slopes, dtype=torch.float64)

    def _around(self, move: Tensor, function: Callable[[], float]) -> dict[int, float]:
        values = {}
        for k in (-2, -1, 1, 2):
            self._move_to(self.start + (k * move).to(self.start))
            values[k] = function()
        return values

    def _move_to(self, flat: Tensor) -> None:
        parts = flat.split([tensor.numel() for tensor in self.tensors.values()])
        with torch.no_grad():
            for tensor, part in zip(self.tensors.values(), parts, strict=True):
                tensor.copy_(part.reshape(tensor.shape))


def recognize(check: Check, got: Tensor, want: Tensor, z: float, tolerance: float) -> str:
    """A sentence that names the mistake whose signature the difference carries.

    Suspects that can be made on purpose are made, and their gradient is compared with what was got.

    Args:
        got, want: `[repeats, K]` derivatives along the directions.
        z: standard errors within which two means count as the same.
        tolerance: and the fraction of the gradient's length.
    """
    target = want.mean(0)
    length = float(target.norm())

    def fits(other: Tensor) -> bool:
        gap = (got.mean(0) - other.mean(0)).abs()
        noise = z * ((got.var(0) + other.var(0)) / len(got)).sqrt() + tolerance * length
        # Looking alike says something only if the noise could not hide the whole difference.
        tells = float(noise.norm()) < float((got.mean(0) - target).norm())
        return tells and bool((gap <= noise).all())

    def made_on_purpose(make: TapeMaker, mistake: Callable[[Tape], None] | None = None) -> bool:
        runs = islice(seeds(check.seed, 2), len(got))
        try:
            return fits(torch.stack([check.by_tape(one, make, mistake) for one in runs]))
        except (EstimatorError, NotImplementedError, RuntimeError):
            return False  # the program cannot even be run that way

    if _calls_torch_normal(check):
        return (
            "torch.normal was called with a mean or deviation that carries a gradient: it "
            "back-propagates zeros without a word; use tape.sample(Normal(mean, std))"
        )
    if check.order == 2:
        return (
            "the first derivative has a kink or step in it (a call's delta is one), whose own "
            "derivative autodiff takes for 0; sample that node with how='score'"
        )
    if not bool(got.any()):
        return (
            "the gradient is 0 in every repeat: a comparison, rounding, detach or integer lies "
            "between the sample and the terms; use how='score' for this node"
        )
    if made_on_purpose(_Reparametrized):
        return (
            "this is the gradient of log_prob at a reparametrized sample (rsample): the score "
            "cancels along the sample's path; draw with sample(), or drop log_prob"
        )
    if _has_discount(check) and made_on_purpose(_left_out, _forget_discount):
        return (
            "this is the gradient without the weight gamma^t in front of later samples; weigh "
            "each log_prob with the product of the discounts before it"
        )
    ratio = float((got.mean(0) * target).sum() / target.square().sum().clamp(min=1e-30))
    if fits(ratio * want):
        error = float((got - ratio * want).var(0).sum().sqrt()) / math.sqrt(len(got)) / length
        return f"the gradient is {ratio:.3g} times the right one: " + _factor(
            check, ratio, z * error
        )
    return (
        "it is not even proportional: look for a step function that only part of the gradient "
        "passes, a discount in the wrong place, log_prob of an rsample, a baseline that follows "
        "its own sample (in-sample optimal constants do), or lanes that meet in a batch statistic"
    )


def _factor(check: Check, ratio: float, margin: float) -> str:
    lanes, nodes = check.num_lanes, _num_nodes(check)
    if abs(ratio) <= margin:
        return "next to nothing arrives; a step function or detach lies on its way"
    if ratio < 0:
        return "maximize the surrogate (the minus sign belongs to the optimizer's loss)"
    if ratio > 1:
        return "something is counted twice, or summed over lanes where a mean is meant"
    of_steps, of_lanes = abs(ratio - 1 / max(nodes, 1)), abs(ratio - (1 - 1 / lanes))
    if nodes > 1 and of_steps <= min(margin, 0.5 / nodes) and of_steps <= of_lanes:
        return f"log_prob is averaged over the {nodes} samples of a lane where the sum is meant"
    if of_lanes <= min(margin, 0.5 / lanes):
        return (
            f"that is 1 - 1/{lanes}: a mean over all lanes, the sample's own included, was "
            "subtracted; leave each lane's own return out (LeaveOneOut)"
        )
    return (
        "a baseline contains the sample it is subtracted from (a moving average updated before "
        "its use, an optimal constant or group mean of the same samples); use first, update "
        "later, or leave the sample out"
    )


def _played(check: Check) -> Tape:
    tape = Tape(num_lanes=check.num_lanes)
    with seeded(check.seed, check.tensors):
        check.problem(tape, check.num_lanes)
    return tape


def _num_nodes(check: Check) -> int:
    return sum(isinstance(event, Node) for event in _played(check).events)


def _has_discount(check: Check) -> bool:
    nodes = [event for event in _played(check).events if isinstance(event, Node)]
    return any(bool(torch.as_tensor(node.weight).ne(1).any()) for node in nodes)


def _left_out() -> Tape:
    return Tape("score", baseline=LeaveOneOut())


def _calls_torch_normal(check: Check) -> bool:
    with seeded(check.seed, check.tensors):
        root = surrogate_of(check.problem, check.make(), check.num_lanes).grad_fn
    stack, seen = [root], {root}
    while stack:
        node = stack.pop()
        if node is not None:
            if node.name().startswith("NormalBackward"):
                return True
            new = {child for child, _ in node.next_functions} - seen
            seen |= new
            stack += new
    return False


def _forget_discount(tape: Tape) -> None:
    for event in tape.events:
        if isinstance(event, Node):
            event.weight = 1.0


class _Reparametrized(Tape):
    """A score tape whose samples keep their path while log_prob is taken."""

    def sample(
        self,
        dist: Distribution,
        how: How | None = None,
        baseline: Subtract = None,
        name: str | None = None,
    ) -> Tensor:
        self._num_samples += 1
        x = dist.rsample()
        log_prob = dist.log_prob(x)
        self._node(name or "", dist, x.detach(), log_prob.reshape(len(log_prob), -1).sum(1), None)
        return x.detach()

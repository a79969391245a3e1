"""The gradients of one program that can be asked for, and the signatures of classic mistakes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.distributions import Distribution

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import Baseline, LeaveOneOut, NoBaseline, ValueAt
from rlpg.gradients.events import Barrier, Branching, Node, Term
from rlpg.gradients.experiment import Problem, TapeMaker, gradient, seeded, seeds
from rlpg.gradients.parameters import graph_of, with_inputs
from rlpg.gradients.subtract import lanes_of, leaves_own_out
from rlpg.gradients.surrogate import node_returns
from rlpg.gradients.tape import How, Subtracted, Tape

MAX_DIRECTIONS = 12
SAME = 8  # repeats in which a mistake made on purpose must give the same gradient
MOVED = (  # autograd nodes of what a parameter that is overwritten takes with it: it and its views
    "AccumulateGrad", "Alias", "Diagonal", "Expand", "Permute", "Select", "Slice", "Split",
    "Squeeze", "TBackward", "Transpose", "Unbind", "Unsqueeze", "View",
)  # fmt: skip
SHORTER = 6  # times that a step is quartered where the parameters may not go so far


@dataclass
class Check:
    """One program with its parameters, and the gradients of it that can be asked for."""

    problem: Problem
    tensors: dict[str, Tensor]
    make: TapeMaker
    num_lanes: int
    order: int
    step: float
    seed: int

    def __post_init__(self) -> None:
        self.start = torch.cat([t.detach().reshape(-1) for t in self.tensors.values()])  # [D]
        with seeded(self.seed, self.tensors):  # a maker may draw
            self.like = self.make()
        generator = torch.Generator().manual_seed(self.seed)
        dims = len(self.start)
        if dims <= MAX_DIRECTIONS:
            self.directions = torch.eye(dims, dtype=torch.float64)  # [K, D]
            self.labels = [
                f"for {name}" + (f"[{k}]" if tensor.numel() > 1 else "")
                for name, tensor in self.tensors.items()
                for k in range(tensor.numel())
            ]
            sizes = [tensor.numel() for tensor in self.tensors.values()]
        else:
            drawn = torch.randn(MAX_DIRECTIONS, dims, generator=generator, dtype=torch.float64)
            self.directions = drawn / drawn.norm(dim=1, keepdim=True)
            self.labels = [f"along random direction {k}" for k in range(MAX_DIRECTIONS)]
            sizes = [MAX_DIRECTIONS]
        self.sizes = sizes  # of the groups of directions that a length is taken of
        self.inner = torch.randn(dims, generator=generator, dtype=torch.float64)  # [D], order 2

    def along(self, flat: Tensor) -> Tensor:
        """`[K]` derivatives along the directions of a flat gradient `[D]`."""
        derivatives: Tensor = self.directions @ flat.detach().double().cpu()
        return derivatives

    def refuse_outside(self) -> None:
        """Refuses what was computed from a parameter before the program began: differences do not
        move it, unless it is a view. It is the same autograd node in every play."""
        plays = [self.played(self.make) for _ in range(2)]
        with seeded(self.seed, self.tensors):
            first, second = (graph_of(t.surrogate() if own is None else own) for t, own in plays)
        known = first & second
        below = with_inputs(n for n in known if not any(part in n.name() for part in MOVED))
        leaves = [getattr(node, "variable", None) for node in below]
        for name, tensor in self.tensors.items():
            if any(leaf is tensor for leaf in leaves):
                raise EstimatorError(
                    f"{name}: expected a program that computes what it needs of it, got a tensor "
                    "made of it outside, which finite differences do not move; move that line "
                    "into the program, or give against='score'"
                )

    def lengths(self, derivatives: Tensor) -> Tensor:
        """`[K]` for each direction the length of the gradient for its parameter."""
        return torch.cat([p.norm().expand(len(p)) for p in derivatives.split(self.sizes)])

    def by_tape(self, one: int, make: TapeMaker, *, own: bool = False, order: int = 1) -> Tensor:
        """`[D]` gradient from the seed `one`: of the program's own surrogate if it has one and that
        is asked for, else of the tape's. Of order 2: of the first derivative along `inner`."""
        with seeded(one, self.tensors):
            tape, found = self._played(make)
            surrogate = found if own and found is not None else tape.surrogate(order)
            first = gradient(surrogate, self.tensors, create_graph=order == 2)
            if order == 1:
                return first
            return gradient((first * self.inner.to(first)).sum(), self.tensors)

    def played(self, make: TapeMaker) -> tuple[Tape, Tensor | None]:
        """The tape with the program of the first repeat on it, and the program's own surrogate."""
        with seeded(next(seeds(self.seed, 1)), self.tensors):
            return self._played(make)

    def _played(self, make: TapeMaker) -> tuple[Tape, Tensor | None]:
        tape = make()
        tape.num_lanes = self.num_lanes
        return tape, self.problem(tape, self.num_lanes)

    def estimate(self, one: int) -> Tensor:
        return self.along(self.by_tape(one, self.make, own=True, order=self.order))

    def by_score(self, one: int) -> Tensor:
        """`[K]` the reference of the tape's own."""
        return self.along(self.by_tape(one, lambda: self.another("score", LeaveOneOut())))

    def another(self, how: How, baseline: Baseline | None = None) -> Tape:
        """A tape for the same program, differentiated otherwise."""
        like = self.like
        return Tape(how, baseline=baseline, num_draws=like.num_draws, temperature=like.temperature)

    def by_differences(self, one: int, how: How) -> Tensor:
        """`[K]` differences of the objective, or for order 2 of its derivative along `inner`."""

        def objective() -> float:
            with seeded(one, self.tensors):
                return float(self._played(lambda: self.another(how))[0].objective())

        def first() -> float:
            flat = self.by_tape(one, self.make, own=True).double().cpu()
            return float((flat * self.inner).sum())

        return self._differences(first if self.order == 2 else objective)

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
    """What is wrong, if that can be shown; else what is known of the difference.

    Mistakes are made on purpose with the random numbers of the first repeats: the same mistake then
    gives the same gradient, repeat by repeat and up to a factor, not only on average. `got` and
    `want` are `[repeats, K]` derivatives along the directions.
    """
    tape, surrogate = check.played(check.make)
    own = surrogate is not None
    graph = graph_of(tape.surrogate() if surrogate is None else surrogate)
    if any(node.name().startswith("NormalBackward") for node in graph):
        return (
            "torch.normal was called with a mean or deviation that carries a gradient: it "
            "back-propagates zeros without a word; use tape.sample(Normal(mean, std))"
        )
    if check.order == 1 and not bool(got.any()):
        return (
            "the gradient is 0 in every repeat: a comparison, rounding, detach or integer lies "
            "between the sample and the terms; use how='score' for this node"
        )
    if check.order == 1:
        found = None if own else _peeking(tape, check.num_lanes)
        found = found or _made_on_purpose(check, got)
        if found is not None:
            return found
    if not own and tape.how.startswith("biased"):
        return f"how={tape.how!r} is biased: it differentiates something else in the sample's place"
    if not own and not any(isinstance(event, Node | Branching | Barrier) for event in tape.events):
        return (
            "along the samples' paths, with their random numbers fixed, the "
            + ("terms move" if check.order == 1 else "first derivative moves")
            + " where autodiff says they do not: a comparison, rounding or detach cuts or jumps "
            "there (a call's delta is a step); use how='score' for that node"
        )
    target = want.mean(0)
    ratio = float((got.mean(0) * target).sum() / target.square().sum().clamp(min=1e-30))
    gap = (got.mean(0) - ratio * target).abs()
    noise = z * ((got - ratio * want).var(0) / len(got)).sqrt() + tolerance * float(target.norm())
    if bool((gap <= noise).all()) and len(target) > 1:
        return f"it is {ratio:.3g} times the right one; none of the mistakes known here does that"
    return "none of the mistakes known here does that, so what is wrong is not known"


def _peeking(tape: Tape, lanes: int) -> str | None:
    """Whether a `Baseline` of the tape changes with the return it is subtracted from."""
    returns_of = node_returns(tape.events, lanes)
    for node in tape.events:
        if not isinstance(node, Node) or node.branch is not None:
            continue
        if isinstance(node.baseline, Baseline) and not isinstance(node.baseline, ValueAt):
            given, returns = node.baseline, returns_of[id(node)]

            def value(changed: Tensor, node: Node = node, given: Baseline = given) -> Tensor:
                return copy.deepcopy(given)(lanes_of(node, changed), changed[None])[0]

            try:
                leaves_own_out(node, value, returns, value(returns), torch.random.get_rng_state())
            except EstimatorError:
                return (
                    f"the baseline of {node.name!r} depends on the return that it is subtracted "
                    "from (a mean over all lanes, an average updated before its use, a constant "
                    "fitted to the same samples); leave the sample out, or update afterwards"
                )
    return None


def _made_on_purpose(check: Check, got: Tensor) -> str | None:
    first, runs = got[:SAME], list(islice(seeds(check.seed, 1), SAME))
    factors: dict[str, float | None] = {}
    for mistake, make in MISTAKES.items():
        with suppress(Exception):  # a program that counts on its branches does not run that way
            made = torch.stack([check.along(check.by_tape(one, make)) for one in runs])
            factors[mistake] = _factor(first, made)
    right = next((f for m, f in factors.items() if m.startswith("right") and f is not None), None)
    if right is not None:
        events = check.played(lambda: check.another("score"))[0].events
        lanes, nodes = check.num_lanes, sum(isinstance(event, Node) for event in events)
        causes = {
            -1.0: "maximize the surrogate (the minus sign belongs to the optimizer's loss)",
            1 / nodes: f"log_prob is averaged over the {nodes} samples of a lane where the sum is "
            "meant",
            1 - 1 / lanes: f"that is 1 - 1/{lanes}: a mean over all lanes, the sample's own "
            "included, was subtracted; leave each lane's own return out (LeaveOneOut)",
            float(lanes): f"that is the number of lanes: a sum over the {lanes} lanes is taken "
            "where their mean is meant",
        }
        near = [text for factor, text in causes.items() if abs(right - factor) < 1e-3 * abs(factor)]
        if len(near) == 1 and abs(right - 1) > 1e-3:
            return f"the gradient is {right:.3g} times the right one: {near[0]}"
        return None
    if factors.get("reparametrized") is not None:
        return (
            "this is the gradient of log_prob at a reparametrized sample (rsample): the score "
            "cancels along the sample's path; draw with sample(), or drop log_prob"
        )
    if any(f is not None for m, f in factors.items() if m.startswith("no discount")):
        return (
            "this is the gradient without the weight gamma^t in front of later samples; weigh "
            "each log_prob with the product of the discounts before it"
        )
    return None


def _factor(got: Tensor, other: Tensor) -> float | None:
    """c, if `got` is c times `other` in every repeat and direction."""
    length = float(other.square().sum())
    factor = float((got * other).sum()) / length if length > 0 else 0.0
    rest = float((got - factor * other).square().sum())
    return factor if factor != 0 and rest <= 1e-6 * float(got.square().sum()) else None


class _Reparametrized(Tape):
    """A score tape whose samples keep their path while log_prob is taken."""

    def _draw(self, name: str, dist: Distribution, how: How, subtract: Subtracted) -> Tensor:
        x = dist.rsample() if dist.has_rsample else dist.sample()
        log_prob = dist.log_prob(x)
        log_prob = log_prob.reshape(len(log_prob), -1).sum(1)
        self._node(name, dist, x.detach(), log_prob, None)
        return x.detach()


class _Rewritten(Tape):
    """A score tape whose nodes are credited by another rule, the same for all of them."""

    def __init__(self, *, whole: bool = False, discounted: bool = True, left_out: bool) -> None:
        super().__init__("score", baseline=LeaveOneOut() if left_out else NoBaseline())
        self.whole, self.discounted = whole, discounted

    def _draw(self, name: str, dist: Distribution, how: How, subtract: Subtracted) -> Tensor:
        return super()._draw(name, dist, "score", (self.baseline, None))

    def surrogate(self, order: int = 1) -> Tensor:
        nodes = [event for event in self.events if isinstance(event, Node)]
        terms = [event for event in self.events if isinstance(event, Term)]
        if self.whole:  # every sample before every term
            self.events = [*nodes, *terms]
            for term in terms:
                term.value, term.discount, term.weight = term.weighted(), 1.0, 1.0
        if self.whole or not self.discounted:
            for node in nodes:
                node.weight = 1.0
        return super().surrogate(order)


MISTAKES: dict[str, TapeMaker] = {
    "right": lambda: _Rewritten(left_out=False),
    "right, left out": lambda: _Rewritten(left_out=True),
    "right, whole": lambda: _Rewritten(whole=True, left_out=False),
    "right, whole, left out": lambda: _Rewritten(whole=True, left_out=True),
    "no discount": lambda: _Rewritten(discounted=False, left_out=False),
    "no discount, left out": lambda: _Rewritten(discounted=False, left_out=True),
    "reparametrized": _Reparametrized,
}

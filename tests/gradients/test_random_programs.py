"""Random small programs with discrete randomness: the mean of the tape's gradient over every
outcome is the derivative of the exact expectation.

A program is drawn as data (nodes, terms, discounts, baselines) and played on two machines:
`Oracle`, which knows every sample's probability and sums probability times objective over all
outcomes, and `Tape`, whose samples follow a script. Neither draws anything.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, constraints

import rlpg
from rlpg.gradients.controls import KnownMean
from rlpg.gradients.tape import Tape

THETA = torch.tensor([0.4, -0.7, 0.9], dtype=torch.float64)
MOST = 260  # outcomes of one program
LONE = ("none", "number", "tensor", "off", "average", "by node", "value")  # look at no other lane
TOGETHER = ("leave one out", "optimal", "function", *LONE)


@dataclass
class NodeSpec:
    how: str  # score, expect, weak, pathwise
    family: str  # coin, coin by probs, dice, pair
    weights: tuple[float, float, float]
    parents: tuple[int, int]  # samples its logits depend on, -1: none
    thetas: tuple[int, int]
    baseline: str
    control: float  # slope of a control variate in the sample; 0: none


@dataclass
class TermSpec:
    weights: tuple[float, float, float, float]
    samples: tuple[int, int]
    theta: int
    discount: str  # one, number, lanes, end, sample
    reuse: bool


@dataclass
class Program:
    steps: list[NodeSpec | TermSpec]
    together: bool  # lanes that look at each other, two at a time; else each outcome is a lane
    declared: bool  # whether samples and terms say what they depend on
    order: int = 1
    text: str = field(default="", repr=False)


def drawn(seed: int) -> Program:
    pick = random.Random(seed)
    more = random.Random(-1 - seed)  # of what was added later: programs keep their seeds
    together = pick.random() < 0.35
    num_nodes = pick.randint(2, 3 if together else 4)
    steps: list[NodeSpec | TermSpec] = []
    kinds = ["score", "score", "expect", "pathwise", *(["weak"] if pick.random() < 0.3 else [])]
    hows = [pick.choice(kinds) for _ in range(num_nodes)]
    if all(how in ("expect", "pathwise") for how in hows):
        hows[pick.randrange(num_nodes)] = "score"

    def number() -> float:
        return round(pick.uniform(-1.5, 1.5), 2)

    begin = 0  # the first sample of the episode: nothing is known of the one before
    for k, how in enumerate(hows):
        family = pick.choice(["coin", "coin by probs", "dice", "pair"])
        if how == "weak" or (family == "pair" and how != "score"):
            family = pick.choice(["coin", "coin by probs"])
        before = [-1, *range(begin, k)]
        steps.append(
            NodeSpec(
                how=how,
                family=family,
                weights=(number(), number(), number()),
                parents=(pick.choice(before), pick.choice(before)),
                thetas=(pick.randrange(3), pick.randrange(3)),
                baseline=pick.choice(TOGETHER if together else LONE),
                control=more.choice([0.0, 0.0, 0.8, -1.1]),
            )
        )
        for _ in range(pick.choice([0, 1, 1, 2]) if k < num_nodes - 1 else 1):
            term = TermSpec(
                weights=(number(), number(), number(), number()),
                samples=(pick.randint(begin, k), pick.randint(begin, k)),
                theta=pick.randrange(3),
                discount=pick.choice(["one", "number", "lanes", "end", "sample"]),
                reuse=pick.random() < 0.5,
            )
            steps.append(term)
            if term.discount == "end":
                begin = k + 1
                break
    order = 2 if "weak" not in hows and pick.random() < 0.25 else 1
    declared = more.random() < 0.4
    if declared or any(isinstance(step, NodeSpec) and step.control for step in steps):
        order = 1
    return Program(steps, together, declared, order, f"seed {seed}")


def distribution(spec: NodeSpec, logits: Tensor, mixin: type) -> Distribution:
    """What the node is drawn from; `mixin` says how."""
    if spec.how == "pathwise":
        return _named(mixin, Noise)(logits)
    if spec.family == "dice":
        table = torch.stack([logits, 0.3 - 0.5 * logits, torch.zeros_like(logits)], -1)
        return _named(mixin, Categorical)(logits=table)
    if spec.family == "pair":
        return _named(mixin, Bernoulli)(logits=torch.stack([logits, 0.5 - logits], -1))
    if spec.family == "coin by probs":
        return _named(mixin, Bernoulli)(probs=torch.sigmoid(logits))
    return _named(mixin, Bernoulli)(logits=logits)


def _named(mixin: type, base: type) -> Callable[..., Distribution]:
    return type(f"Scripted{base.__name__}", (mixin, base), {})


class Noise(Distribution):
    """`loc + e` with e = -1 or 1, by its path: pathwise gradients that can be enumerated."""

    has_rsample = True
    support = constraints.real
    arg_constraints = {"loc": constraints.real}  # noqa: RUF012

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape)


def play(program: Program, machine: Any, theta: Callable[[int], Tensor], mixin: type) -> None:
    """The program on a machine with `sample` and `add`, lanes as `theta` has them."""
    samples: list[Tensor] = []
    drawn: list[Tensor] = []  # the samples as the machine gave them
    paths: list[int] = []
    discounted: list[int] = []  # samples that the weight of the next term depends on
    plain: list[bool] = []  # drawn without branches or a path: usable as discount and baseline
    lanes = theta(0).shape[-1]
    buffer = torch.zeros(lanes, dtype=torch.float64)
    net = nn.Linear(1, 1).double()
    with torch.no_grad():
        net.weight.fill_(0.3)
        net.bias.fill_(-0.2)

    def said(*ks: int) -> list[Tensor] | None:
        return [drawn[k] for k in ks if k >= 0] if program.declared else None

    def at(k: int) -> Tensor:
        return samples[k] if k >= 0 else torch.ones(lanes, dtype=torch.float64)

    in_branches = False
    for step in program.steps:
        if isinstance(step, NodeSpec):
            a, b, c = step.weights
            first, second = (at(k) for k in step.parents)
            logits = a * theta(step.thetas[0]) + b * theta(step.thetas[1]) * first + c * second
            seen = [k for k in range(len(samples)) if plain[k]]
            known = 0.4 + samples[seen[-1]].detach() if seen else at(-1)
            baseline = _baseline(step.baseline, known, net, in_branches)
            if isinstance(baseline, Tensor) and step.weights[0] > 0:
                buffer.copy_(baseline)
                baseline = buffer
            x = machine.sample(
                distribution(step, logits, mixin),
                step.how,
                baseline,
                control=_control(step, in_branches),
                depends_on=said(*step.parents),
            )
            drawn.append(x)
            buffer.fill_(99.0)
            x = x.double()
            if step.family == "pair" and step.how == "score":
                x = x[..., 0] - 0.6 * x[..., 1]
            in_branches |= step.how in ("expect", "weak")
            plain.append(step.how == "score" and not in_branches)
            samples.append(x)
            paths += [len(samples) - 1] if step.how == "pathwise" else []
            continue
        a, b, c, d = step.weights
        one, two = (samples[k] for k in step.samples)
        value = a + b * one * two + c * theta(step.theta) * one + d * (two - 0.5) ** 2
        if step.reuse and not _has_path(one, two):
            value = (a + b * one * two).detach()
        needed = [*step.samples, *discounted, *paths]
        while paths:  # that reach no term are refused
            value = value + 0.3 * samples[paths.pop()]
        if step.reuse and not value.requires_grad and value.dim() == 1:
            value = buffer.copy_(value)
        usable = [k for k in range(len(samples)) if plain[k]]
        discount = _discount(step, samples, usable, lanes)
        machine.add(value, discount, independent=True, depends_on=said(*needed))
        if step.discount == "sample":
            discounted += usable[-1:]
        if step.discount == "end":
            discounted = []
            plain = [False] * len(plain)
        buffer.fill_(99.0)


def _has_path(*samples: Tensor) -> bool:
    return any(sample.requires_grad for sample in samples)


def _control(step: NodeSpec, in_branches: bool) -> KnownMean | None:
    if step.how != "score" or in_branches or not step.control or "coin" not in step.family:
        return None
    return KnownMean(lambda b: step.control * b - 0.2, lambda dist: step.control * dist.mean - 0.2)


def _discount(step: TermSpec, samples: list[Tensor], usable: list[int], lanes: int) -> Any:
    if step.discount == "sample" and usable:
        return 0.5 + 0.15 * samples[usable[-1]].detach()
    return {
        "one": 1.0,
        "number": 0.7,
        "lanes": torch.full((lanes,), 0.6, dtype=torch.float64),
        "end": 0.0,
        "sample": 0.9,
    }[step.discount]


def _baseline(name: str, known: Tensor, net: nn.Module, in_branches: bool) -> Any:
    if in_branches and name not in ("none", "number", "tensor", "off"):
        name = "number"
    if name == "average":
        average = rlpg.MovingAverage()
        average.load_state_dict({"sum": 0.6, "weight": 0.5})
        return average
    if name == "by node":
        by_node = rlpg.PerTimeStep()
        by_node.load_state_dict({"sum": torch.tensor([0.3, 0.5]), "weight": torch.ones(2)})
        return by_node
    made: dict[str, Callable[[], Any]] = {
        "none": lambda: None,
        "number": lambda: 0.8,
        "tensor": lambda: known.clone(),
        "off": rlpg.NoBaseline,
        "value": lambda: rlpg.Value(net).at(known[:, None]),
        "leave one out": rlpg.LeaveOneOut,
        "optimal": rlpg.OptimalConstant,
        "function": lambda: lambda returns: 0.5 * returns.roll(1),
    }
    return made[name]()


class Oracle:
    """Every outcome is a lane; the objective is the sum of probability times discounted terms."""

    def __init__(self, choices: list[Tensor]) -> None:
        self.choices, self.log_prob = iter(choices), torch.zeros((), dtype=torch.float64)
        self.weight = torch.ones((), dtype=torch.float64)
        self.total = torch.zeros((), dtype=torch.float64)

    def sample(self, dist: Any, how: str, baseline: Any, **ignored: Any) -> Tensor:
        x = next(self.choices)
        if how == "pathwise":
            self.log_prob = self.log_prob + math.log(0.5)
            return dist.loc + x  # type: ignore[no-any-return]
        log_prob = dist.log_prob(x)
        self.log_prob = self.log_prob + (log_prob.sum(-1) if log_prob.dim() == 2 else log_prob)
        return x

    def add(self, value: Tensor, discount: Any, **ignored: Any) -> None:
        self.total = self.total + self.weight * value
        factor = torch.as_tensor(discount, dtype=torch.float64)
        self.weight = torch.where(factor == 0, 1.0, self.weight * factor)

    def objective(self) -> Tensor:
        return (self.log_prob.exp() * self.total).sum()


class _Plain:
    """Samples are given by the machine: the oracle asks for nothing."""


def exact(program: Program) -> tuple[Tensor, Tensor]:
    """Value and gradient of the expectation."""
    nodes = [step for step in program.steps if isinstance(step, NodeSpec)]
    values = [_support(node) for node in nodes]
    outcomes = list(itertools.product(*values))
    choices = [
        torch.tensor([outcome[k] for outcome in outcomes], dtype=torch.float64)
        for k in range(len(nodes))
    ]
    theta = THETA.clone().requires_grad_()
    oracle = Oracle(choices)
    play(program, oracle, lambda i: theta[i].expand(len(outcomes)), _Plain)
    value = oracle.objective()
    return value.detach(), torch.autograd.grad(value, theta)[0]


def _support(node: NodeSpec) -> list[Any]:
    if node.how == "pathwise":
        return [-1.0, 1.0]
    if node.family == "pair":
        return list(itertools.product((0.0, 1.0), repeat=2))
    return [0.0, 1.0, 2.0] if node.family == "dice" else [0.0, 1.0]


class Script:
    """What the samples of a tape are to be, and the probability that they are."""

    def __init__(self, digits: Tensor | None, lanes: int) -> None:
        self.digits, self.lanes, self.used = digits, lanes, 0  # [outcomes or 1, coins]
        self.sizes: list[int] = []  # values of each coin
        self.log_prob = torch.zeros(lanes, dtype=torch.float64)

    def draw(self, shape: torch.Size, branches: int, size: int) -> Tensor:
        """`[*branches, lanes, *event]` digits, one coin for each place of every lane."""
        per_lane = [n for k, n in enumerate(shape) if k != branches]
        count = math.prod(per_lane)
        self.sizes += [size] * count
        if self.digits is None:
            return torch.zeros(shape, dtype=torch.float64)
        taken = self.digits[:, self.used : self.used + count]
        self.used += count
        return taken.reshape(self.lanes, *per_lane).movedim(0, branches).double()

    def mixin(self) -> type:
        script = self

        class Scripted:
            def sample(self, sample_shape: object = None) -> Tensor:
                batch: torch.Size = self.batch_shape  # type: ignore[attr-defined]
                lane = next(k for k, n in enumerate(batch) if n == script.lanes)
                size = self.logits.shape[-1] if isinstance(self, Categorical) else 2
                x = script.draw(batch, lane, size)
                log_prob = self.log_prob(x).detach()  # type: ignore[attr-defined]
                others = [k for k in range(log_prob.dim()) if k != lane]
                script.log_prob += log_prob.sum(others) if others else log_prob
                return x

            def rsample(self, sample_shape: object = None) -> Tensor:
                loc: Tensor = self.loc  # type: ignore[attr-defined]
                lane = next(k for k, n in enumerate(loc.shape) if n == script.lanes)
                x = script.draw(loc.shape, lane, 2)
                script.log_prob += math.log(0.5) * (x.numel() // script.lanes)
                return loc + 2 * x - 1

        return Scripted


def played(program: Program, script: Script, theta: Callable[[int], Tensor]) -> Tape:
    tape = Tape(num_lanes=script.lanes)
    play(program, tape, theta, script.mixin())
    return tape


def coins(program: Program) -> list[int]:
    """How many values each of a lane's coins has; lanes that no branch is as many as."""
    script = Script(None, 5)
    played(program, script, lambda i: THETA[i].clone().requires_grad_().expand(5))
    return script.sizes


def mean_estimate(program: Program, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Mean value and gradient of the surrogate over all outcomes."""
    outcomes = torch.tensor(list(itertools.product(*[range(size) for size in sizes])))
    count = len(outcomes)
    if not program.together:
        lanes = max(count, 4)  # as many as a branch has would be ambiguous
        digits = torch.cat([outcomes, outcomes[:1].expand(lanes - count, -1)])
        script = Script(digits, lanes)
        theta = THETA.expand(lanes, 3).clone().requires_grad_()
        tape = played(program, script, lambda i: theta[:, i])
        surrogate = tape.surrogate(program.order)
        gradient = lanes * torch.autograd.grad(surrogate, theta)[0]
        prob = script.log_prob.exp()
        prob[count:] = 0.0
        assert float(prob.sum()) == pytest.approx(1.0)
        return torch.tensor(math.nan), prob @ gradient
    value, total, sum_of = torch.zeros(()), torch.zeros(3, dtype=torch.float64), 0.0
    for pair in itertools.product(range(count), repeat=2):
        script = Script(outcomes[list(pair)], 2)
        theta = THETA.clone().requires_grad_()
        tape = played(program, script, lambda i, theta=theta: theta[i].expand(2))  # type: ignore[misc]
        surrogate = tape.surrogate(program.order)
        prob = float(script.log_prob.sum().exp())
        total += prob * torch.autograd.grad(surrogate, theta)[0]
        value = value + prob * surrogate.detach()
        sum_of += prob
    assert sum_of == pytest.approx(1.0)
    return value, total


def differences(seeds: range) -> list[str]:
    """What does not agree, and how many programs were small enough to try."""
    found, tried = [], 0
    for seed in seeds:
        program = drawn(seed)
        if program.together:  # two lanes, so no branch may have two
            for step in program.steps:
                if isinstance(step, NodeSpec) and step.how in ("expect", "weak"):
                    step.how, step.family = "expect", "dice"
        sizes = coins(program)
        if math.prod(sizes) ** (1 + program.together) > MOST:
            continue
        tried += 1
        value, gradient = exact(program)
        mean_value, mean_gradient = mean_estimate(program, sizes)
        if program.together and abs(float(value - mean_value)) > 1e-9:
            found.append(f"{program.text}: value {float(mean_value)} for {float(value)}")
        if float((gradient - mean_gradient).abs().max()) > 1e-9:
            found.append(f"{program.text}: {mean_gradient.tolist()} for {gradient.tolist()}")
    assert tried >= len(seeds) // 3
    return found


def test_random_programs_have_exactly_the_right_mean() -> None:
    assert differences(range(120)) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_random_programs() -> None:
    assert differences(range(1000, 16_000)) == []

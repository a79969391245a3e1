"""The tape: a program with random numbers in it becomes one differentiable scalar.

    tape = Tape(how="score")
    x = tape.sample(Normal(mean, scale))     # dim 0 = lane: a sample, a particle, an environment
    tape.add(reward(x))                      # a term of the objective, one number per lane
    tape.surrogate().backward()              # value: the objective; gradient: the estimator

The program says what happens; `how` says how to differentiate it. The tape writes down, in order,
every sample (a node) and every term. What a node can have influenced is what was added after it, so
going backward along the tape, the return of a node is

    G = f + discount * G'                    (a discount of 0 ends the episode)

and the objective of a lane is the sum of W f with W the product of the discounts before a term,
starting again from 1 after an episode's end. Lanes are independent of each other, except through
`resample`.

| how | a node gives | unbiased | asks for |
|---|---|---|---|
| "score" | log p times its return less a baseline | yes | log_prob |
| "pathwise" | a sample that carries the gradient | if terms are continuous in it | rsample |
| "expect" | the support `[K, lanes]`, terms weighted by probability | exact | enumerate_support |
| "combine" | score and pathwise, mixed by their variance | as both | rsample |
| "weak" | coupled pairs of points `[K, lanes]` | yes | see `weak.py` |
| "biased_straight_through", "biased_gumbel_softmax" | a stand-in | **no** | Bernoulli, OneHot |

Random numbers come from torch's global generator: torch.distributions cannot be given another one.
`compare` and `gradcheck` fork it, and so can you (`torch.random.fork_rng`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from rlpg.errors import EstimatorError
from rlpg.gradients.baselines import Baseline, NoBaseline
from rlpg.gradients.combine import Mixture
from rlpg.gradients.estimators import biased_gumbel_softmax, biased_straight_through
from rlpg.gradients.events import Barrier, Branching, Event, Node, Path, Term
from rlpg.gradients.guards import (
    check_distribution,
    check_support,
    check_term_shape,
    checked_discount,
    checked_sample,
    checked_term,
    density,
    lane_dim,
    mean_and_deviation,
    naming,
    refuse_cut,
)
from rlpg.gradients.parameters import parameters_of
from rlpg.gradients.surrogate import build, dice
from rlpg.gradients.weak import weak_branches

How = Literal[
    "score",
    "pathwise",
    "expect",
    "combine",
    "weak",
    "biased_straight_through",
    "biased_gumbel_softmax",
]
Subtract = Baseline | Tensor | float | Callable[[Tensor], Tensor] | None


class Tape:
    """Stochastic nodes and terms of an objective -> one surrogate.

    Args:
        how: the estimator of nodes that do not say otherwise.
        baseline: what score nodes subtract from their return unless they say otherwise: a number; a
            tensor `[lanes]` known before the sample; a `Baseline`; or a function of the lanes'
            returns `[lanes]` whose i-th value does not depend on the i-th return.
        num_lanes: checked if given, else taken from the first sample or term.
        gae_lambda: the credit rule. 1: the return as it was sampled. Below 1, a node whose baseline
            is a value of its state (`Value` or a tensor) stands in for what follows it, as in
            generalized advantage estimation; biased unless that value is exact.
        exact_ivw: "combine" with the published formula: inverse-variance weights from the same
            samples (biased). Both kinds are measured on the node's own parameters.
        temperature: of "biased_gumbel_softmax".
    """

    def __init__(
        self,
        how: How = "score",
        *,
        baseline: Subtract = None,
        num_lanes: int | None = None,
        gae_lambda: float = 1.0,
        exact_ivw: bool = False,
        temperature: float = 0.5,
    ) -> None:
        self.how = _known("Tape", how)
        self.baseline = baseline
        self.num_lanes = num_lanes
        self.gae_lambda = gae_lambda
        self.exact_ivw = exact_ivw
        self.temperature = temperature
        self.events: list[Event] = []
        self._weight: Tensor | float = 1.0  # product of the discounts since the episode's start
        self._branch: Tensor | None = None  # [K_m .. K_1, lanes] weight of each branch, sums to 1
        self._num_samples = self._num_terms = self._num_nodes = 0
        self._scored: list[tuple[str, Distribution]] = []
        self._path: str | None = None  # the first sample that carries its gradient
        self._blind: str | None = None  # the first sample that was drawn without gradients

    def sample(
        self,
        dist: Distribution,
        how: How | None = None,
        baseline: Subtract = None,
        name: str | None = None,
    ) -> Tensor:
        """A sample `[lanes, ...]` of `dist`, differentiated by `how`.

        With "expect" and "weak" a tensor `[K, lanes, ...]`: one branch per point of the support.
        What is computed from it carries that leading dimension; further branching nodes put theirs
        to the left of it (with size 1 where they do not depend on it).

        Args:
            dist: any torch distribution, batch shape `[lanes, ...]`.
            baseline: see `Tape`; for "score" and "combine".
            name: how errors call the node; "sample 3" by default.
        """
        name = self._next_name(name, "sample")
        how = _known(name, how or self.how)
        check_distribution(name, dist, how)
        return checked_sample(name, self._draw(name, dist, how, baseline))

    def _draw(self, name: str, dist: Distribution, how: How, baseline: Subtract) -> Tensor:
        lane = self._lane_dim(name, dist)
        if how == "score":
            return self._score(name, dist, baseline, lane)
        if how in ("expect", "weak"):
            return self._branching(name, dist, how, lane)
        with naming(name):
            if how == "biased_straight_through":
                return biased_straight_through(dist)
            if how == "biased_gumbel_softmax":
                return biased_gumbel_softmax(dist, self.temperature)
        if not dist.has_rsample:
            raise EstimatorError(
                f"{name}: expected a distribution with rsample for how={how!r}, got "
                f"{type(dist).__name__}; use how='score' for this node"
            )
        if how == "combine" and parameters_of(dist):
            return self._combine(name, dist, baseline)
        return self._along_path(name, dist.rsample())

    def add(
        self,
        term: Tensor,
        discount: Tensor | float = 1.0,
        name: str | None = None,
        *,
        independent: bool = False,
    ) -> None:
        """A term of the objective, to be maximized.

        Args:
            term: `[lanes]`, or `[K, lanes]` where it depends on a branching node.
            discount: in [0, 1], a number or `[lanes]`; multiplies all that comes later in the lane.
                0: the episode ended with this term, and the next one starts with weight 1. What
                comes later is then not credited to samples before the end. Where samples decide
                *when* episodes end and the program stops after a fixed number of steps, that
                leaves out how much room they left for the next episode (as every fixed-length
                rollout does); stop paying after a lane's first end, and the gradient is exact.
            name: how errors call the term.
            independent: that the discount depends on no sample which carries its gradient
                ("pathwise", "combine"). Where it may, as an ending at a threshold does, part of the
                gradient is lost, and discounts that differ between lanes are refused.
        """
        name = name or f"term {self._num_terms}"
        self._num_terms += 1
        sizes = () if self._branch is None else self._branch.shape[:-1]
        check_term_shape(name, term, sizes, scored=self._num_nodes > 0)
        self._count_lanes(name, term.shape[-1])
        term = checked_term(name, term)
        discount = checked_discount(name, discount, term.shape[-1], sizes)
        refuse_cut(name, discount, None if independent else self._path)
        self.events.append(Term(name, term, discount, self._weight, self._branch))
        if isinstance(discount, Tensor):
            self._weight = torch.where(discount == 0, 1.0, self._weight * discount)
        else:
            self._weight = 1.0 if discount == 0 else self._weight * discount

    def resample(self, x: Tensor, how: How | None = None, name: str | None = None) -> Tensor:
        """New samples `[lanes, ...]` from the Gaussian with the mean and deviation of `x`'s lanes.

        All that crosses is the batch's mean M and standard deviation (N - 1 in the denominator),
        element by element; nothing else of a lane may be used after it together with the new
        samples. Differentiated by "pathwise" (unbiased) or "score".

        Earlier score nodes are credited with the *shaped* reward: with dM and dV the gradient of
        everything later with respect to mean and variance,

            g_i = N / (N - 1) (dM (x_i - M) + dV ((x_i - M)^2 - V without i)),

        which is exact where everything later is, on average, linear in V and quadratic in M (a
        linear network with a quadratic cost), and otherwise off by O(1/N). To credit every lane
        with the whole batch's loss would be unbiased, and hopelessly noisy.

        Source: moment matching as in Gal et al. 2016; batch shaping after Parmas 2018.
        """
        name = self._next_name(name, "resample")
        how = _known(name, how or self.how)
        if how not in ("score", "pathwise"):
            raise EstimatorError(
                f"{name}: expected how='score' or 'pathwise', got {how!r}; lanes that meet in a "
                "batch statistic allow no other estimator"
            )
        if self._branch is not None or any(_is_mixed(event) for event in self.events):
            raise EstimatorError(
                f"{name}: expected 'score' and 'pathwise' nodes before it, got another estimator; "
                "their lanes must not meet in a batch statistic"
            )
        self._count_lanes(name, x.shape[0])
        mean, deviation = mean_and_deviation(name, x)
        if self._num_nodes and not mean.requires_grad:
            mean.requires_grad_()
            deviation.requires_grad_()
        self.events.append(Barrier(name, x.detach().clone(), mean, deviation, self._weight))
        dist = Normal(mean.expand(x.shape), deviation.expand(x.shape))
        if how == "score":
            return self._score(name, dist, None, 0)
        return self._along_path(name, dist.rsample())

    def surrogate(self, order: int = 1) -> Tensor:
        """Scalar J: its value is the mean over lanes of the discounted sum of terms, its gradient
        the estimator. Maximize it; `J.backward()` once.

        With `order=2` J can be differentiated twice (`torch.autograd.grad(..., create_graph=True)`)
        and both derivatives are estimators of the objective's: nodes enter as DiCE boxes, baselines
        as in Mao et al. 2019. For "score", "pathwise" (if terms are differentiable twice: a kink
        loses its second derivative) and "expect".
        """
        if self.num_lanes is None or not self._num_terms:
            raise EstimatorError("surrogate: expected at least one term, got none; call tape.add")
        if self._num_samples == 0:
            raise EstimatorError(
                "surrogate: expected at least one node, got none; draw with tape.sample (what "
                "torch.normal or dist.sample() draw carries no gradient)"
            )
        if self._blind is not None:
            raise EstimatorError(
                f"{self._blind}: expected gradients to be enabled, got a sample drawn under no_grad"
                " or inference_mode, whose gradient is lost; draw what needs none with torch.randn"
            )
        for name, dist in self._scored:
            check_support(name, dist)
        if order == 1:
            return build(self.events, self.num_lanes, self.gae_lambda)
        if order == 2 and self.gae_lambda == 1.0:
            return dice(self.events, self.num_lanes)
        raise EstimatorError(
            f"surrogate: expected order 1, or 2 with gae_lambda=1, got order={order} with "
            f"gae_lambda={self.gae_lambda}; higher derivatives need the sampled return"
        )

    def objective(self) -> Tensor:
        """Scalar without a gradient: the mean over lanes of the discounted sum of terms."""
        if self.num_lanes is None or not self._num_terms:
            raise EstimatorError("objective: expected at least one term, got none; call tape.add")
        terms = [event.weighted().detach() for event in self.events if isinstance(event, Term)]
        return torch.stack([term.sum() for term in terms]).sum() / self.num_lanes

    def _along_path(self, name: str, x: Tensor) -> Tensor:
        if x.requires_grad:
            self._path = self._path or name
            self.events.append(Path(name, x.grad_fn))
        return x

    def _next_name(self, name: str | None, kind: str) -> str:
        name = name or f"{kind} {self._num_samples}"
        self._num_samples += 1
        if self._blind is None and not torch.is_grad_enabled():
            self._blind = name
        return name

    def _score(self, name: str, dist: Distribution, baseline: Subtract, lane: int) -> Tensor:
        x = dist.sample()
        if x.requires_grad:
            raise EstimatorError(
                f"{name}: expected sample() without a gradient, got {type(dist).__name__}.sample() "
                "with one; log_prob of a reparametrized sample is no score: use how='pathwise'"
            )
        # Of a copy: a program may overwrite its own; a transform may have cached where it is from.
        kept = x.clone()
        self._scored.append((name, dist))
        log_prob = density(name, dist, kept)  # [*branches, lanes, ...]
        if log_prob.requires_grad:
            if log_prob.dim() > lane + 1:
                log_prob = log_prob.sum(tuple(range(lane + 1, log_prob.dim())))
            self._node(name, dist, kept, log_prob, baseline)
        return x

    def _node(
        self,
        name: str,
        dist: Distribution,
        x: Tensor,
        log_prob: Tensor,
        baseline: Subtract,
        mixture: Mixture | None = None,
    ) -> None:
        if baseline is None:
            baseline = self.baseline
        if isinstance(baseline, NoBaseline):
            baseline = None
        if isinstance(baseline, Tensor) and baseline.requires_grad:
            raise EstimatorError(
                f"{name}: expected a baseline without a gradient, got one with; detach it, or use "
                "Value(net) to train a network on the side"
            )
        if isinstance(baseline, Tensor):
            baseline = baseline.clone()
        index, self._num_nodes = self._num_nodes, self._num_nodes + 1
        self.events.append(
            Node(name, index, x, log_prob, self._weight, self._branch, baseline, dist, mixture)
        )

    def _combine(self, name: str, dist: Distribution, baseline: Subtract) -> Tensor:
        if self._branch is not None or any(isinstance(event, Barrier) for event in self.events):
            raise EstimatorError(
                f"{name}: expected independent lanes for how='combine', got branches or a resample "
                "before it; use 'score' or 'pathwise'"
            )
        if dist.batch_shape[0] < 4:
            raise EstimatorError(
                f"{name}: expected at least 4 lanes to mix, got {dist.batch_shape[0]}; two halves "
                "have to show a variance"
            )
        self._scored.append((name, dist))
        self._path = self._path or name
        mixture = Mixture(dist, name=name, exact_ivw=self.exact_ivw)
        self._node(name, dist, mixture.path.detach(), mixture.log_prob, baseline, mixture)
        return mixture.sample

    def _branching(self, name: str, dist: Distribution, how: str, lane: int) -> Tensor:
        if how == "weak":
            with naming(name):
                x, weight = weak_branches(dist, lane)
        else:
            if not dist.has_enumerate_support or len(dist.batch_shape) != lane + 1:
                raise EstimatorError(
                    f"{name}: expected a finite support and batch shape [lanes] for how='expect', "
                    f"got {type(dist).__name__} with {list(dist.batch_shape)}; use how='score'"
                )
            x = dist.enumerate_support()  # [K, *branches, lanes, *event]
            weight = dist.log_prob(x.clone()).exp()
        if self._branch is not None:
            missing = (1,) * (self._branch.dim() - 1 - lane)
            x = x.reshape(x.shape[0], *missing, *x.shape[1:])
            weight = weight.reshape(weight.shape[0], *missing, *weight.shape[1:])
        self._branch = weight if self._branch is None else weight * self._branch
        self.events.append(Branching(name, self._branch.dim() - 1, exact=how == "expect"))
        return x

    def _lane_dim(self, name: str, dist: Distribution) -> int:
        """Which dimension of the batch shape is the lane: how many branch dimensions precede it."""
        shape = dist.batch_shape
        if len(shape) == 0:
            raise EstimatorError(
                f"{name}: expected batch shape [lanes, ...], got []; expand the distribution to "
                "the lanes (if its parameters are statistics of a batch: tape.resample)"
            )
        if self._branch is None:
            self._count_lanes(name, shape[0])
            return 0
        return lane_dim(name, shape, self._branch.shape[:-1], self.num_lanes)

    def _count_lanes(self, name: str, lanes: int) -> None:
        if lanes == 0:
            raise EstimatorError(f"{name}: expected at least one lane, got 0; dim 0 is the lane")
        if self.num_lanes is None:
            self.num_lanes = lanes
        if lanes != self.num_lanes:
            raise EstimatorError(
                f"{name}: expected {self.num_lanes} lanes, got {lanes}; dim 0 is the lane"
            )


def _is_mixed(event: Event) -> bool:
    return isinstance(event, Node) and event.mixture is not None


def _known(name: str, how: str) -> How:
    if how not in get_args(How):
        raise EstimatorError(
            f"{name}: expected how in {', '.join(get_args(How))}, got {how!r}; choose one of them"
        )
    return how  # type: ignore[return-value]

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
| "weak" | coupled pairs of points `[K, lanes]` | yes | see `branches.py` |
| "disarm" | an antithetic pair `[2, lanes]` | yes | Bernoulli |
| "without_replacement" | different outcomes `[K, lanes]` | yes | Categorical |
| "biased_straight_through", "biased_gumbel_softmax" | a stand-in | **no** | Bernoulli, OneHot |

Random numbers come from torch's global generator, unless the tape is given `uniforms`. `compare`
and `gradcheck` fork it, and so can you (`torch.random.fork_rng`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from rlpg.errors import EstimatorError
from rlpg.gradients import guards
from rlpg.gradients.baselines import Baseline, NoBaseline
from rlpg.gradients.branches import BY_PROBS, branches
from rlpg.gradients.combine import LaneCopies, Mixture
from rlpg.gradients.controls import Control
from rlpg.gradients.draws import Uniforms
from rlpg.gradients.estimators import biased_gumbel_softmax, biased_straight_through
from rlpg.gradients.events import (
    BRANCHING,
    Barrier,
    Branching,
    Drawn,
    Event,
    Node,
    Path,
    Term,
    ancestors_of,
    backward_pass,
    known_how,
    written_once,
)
from rlpg.gradients.events import How as How
from rlpg.gradients.parameters import parameters_of
from rlpg.gradients.surrogate import build, dice

Subtract = Baseline | Tensor | float | Callable[[Tensor], Tensor] | None
Subtracted = tuple[Subtract, Control | None]


class Tape:
    """Stochastic nodes and terms of an objective -> one surrogate.

    Args:
        how: the estimator of nodes that do not say otherwise.
        baseline: what score nodes subtract from their return unless they say otherwise: a number; a
            tensor `[lanes]` known before the sample; a `Baseline`; or a function of the lanes'
            returns `[lanes]` whose i-th value does not depend on the i-th return.
        control: a control variate that score nodes subtract and pay back; see `controls.py`.
        num_lanes: checked if given, else taken from the first sample or term.
        gae_lambda: the credit rule. 1: the return as it was sampled. Below 1, a node whose baseline
            is a value of its state (`Value` or a tensor) stands in for what follows it, as in
            generalized advantage estimation; biased unless that value is exact.
        exact_ivw: "combine" with the published formula: inverse-variance weights from the same
            samples (biased). Both kinds are measured on each node's own parameters, or as published
            on those of `per_lane`.
        temperature: of "biased_gumbel_softmax".
        num_draws: K of "without_replacement".
        uniforms: `[lanes, D]` in (0, 1), of which score and pathwise nodes take the next columns
            in place of random numbers of their own; see `draws.py`.
    """

    def __init__(
        self,
        how: How = "score",
        *,
        baseline: Subtract = None,
        control: Control | None = None,
        num_lanes: int | None = None,
        gae_lambda: float = 1.0,
        exact_ivw: bool = False,
        temperature: float = 0.5,
        num_draws: int = 2,
        uniforms: Tensor | None = None,
    ) -> None:
        self.how = known_how("Tape", how)
        if not 0.0 <= gae_lambda <= 1.0:
            raise EstimatorError(f"Tape: expected gae_lambda in [0, 1], got {gae_lambda}")
        self.baseline, self.control = baseline, control
        self.num_lanes, self.num_draws = num_lanes, num_draws
        self.gae_lambda, self.exact_ivw, self.temperature = gae_lambda, exact_ivw, temperature
        self.uniforms = None if uniforms is None else Uniforms(uniforms)
        self._copies = LaneCopies()
        self._drawn: Drawn = {}
        self.events: list[Event] = []
        self._weight: Tensor | float = 1.0  # product of the discounts since the episode's start
        self._branch: Tensor | None = None  # [K_m .. K_1, lanes] weight of each branch, sums to 1
        self._num_samples = self._num_terms = self._num_nodes = 0
        self._scored: list[guards.Scored] = []
        self._path: str | None = None  # the first sample that carries its gradient
        self._blind: str | None = None  # the first sample that was drawn without gradients
        self._made_in = backward_pass()

    @written_once
    def sample(
        self,
        dist: Distribution,
        how: How | None = None,
        baseline: Subtract = None,
        name: str | None = None,
        *,
        control: Control | None = None,
        depends_on: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """A sample `[lanes, ...]` of `dist`, differentiated by `how`.

        Branching nodes ("expect", "weak", "disarm", "without_replacement") give `[K, lanes, ...]`.
        What is computed from it carries that leading dimension; further branching nodes put theirs
        to the left of it (with size 1 where they do not depend on it).

        Args:
            dist: any torch distribution, batch shape `[lanes, ...]`.
            baseline: see `Tape`; for "score" and "combine".
            name: how errors call the node; "sample 3" by default.
            control: see `Tape`; for "score".
            depends_on: the earlier samples that the parameters of `dist` were computed from, as
                `sample` returned them; all of them by default. See `add`.
        """
        name = self._next_name(name, "sample")
        how = known_how(name, how or self.how)
        guards.check_distribution(name, dist, how)
        if control is not None and how != "score":
            raise EstimatorError(
                f"{name}: expected how='score' for a control, got {how!r}; leave it out"
            )
        ancestors = ancestors_of(name, depends_on, self._drawn)
        x = self._draw(name, dist, how, (baseline, control))
        guards.refuse_half(name, x)
        self._drawn[id(x)] = x, self._num_samples - 1, ancestors
        return x

    def per_lane(self, parameter: Tensor) -> Tensor:
        """`[lanes, *shape]`: the parameter once for every lane, with its gradient.

        A program that uses these in its place has the same gradient, and that of each lane is
        `lanes * torch.autograd.grad(tape.surrogate(), copies)[0]` for the copies returned here.
        "combine" then weighs by the variance of that gradient, as total propagation was published.

        Source: Parmas et al. 2018 (PIPPS), algorithm 1.
        """
        if self.num_lanes is None:
            raise EstimatorError("per_lane: expected a Tape(num_lanes=...), got no number of lanes")
        copies = parameter.expand(self.num_lanes, *parameter.shape)
        if copies.requires_grad:
            self._copies.copies.append(copies)
        return copies

    def _draw(self, name: str, dist: Distribution, how: How, subtract: Subtracted) -> Tensor:
        branch_sizes = () if self._branch is None else self._branch.shape[:-1]
        lane = guards.lane_dim(name, dist.batch_shape, branch_sizes, self.num_lanes)
        if not branch_sizes:
            self._count_lanes(name, dist.batch_shape[0])
        if self.uniforms is not None and how not in ("score", "pathwise", "expect"):
            raise EstimatorError(
                f"{name}: expected how='score', 'pathwise' or 'expect' with uniforms, got {how!r}"
            )
        if how == "score":
            return self._score(name, dist, subtract, lane)
        if how in BRANCHING:
            return self._branching(name, dist, how, lane)
        with guards.naming(name):
            if how == "biased_straight_through":
                return biased_straight_through(dist)
            if how == "biased_gumbel_softmax":
                return biased_gumbel_softmax(dist, self.temperature)
        if how == "combine" and parameters_of(dist):
            return self._combine(name, dist, subtract[0])
        return self._along_path(name, self._rsample(name, dist))

    @written_once
    def add(
        self,
        term: Tensor,
        discount: Tensor | float = 1.0,
        name: str | None = None,
        *,
        independent: bool = False,
        depends_on: Sequence[Tensor] | None = None,
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
            depends_on: the samples that the term and the discounts before it were computed from, as
                `sample` returned them. The term is then credited to them and to those that they
                depend on themselves: exact, and its noise no longer reaches the others (its mean
                was noise, too, or a baseline). A sample left out by mistake loses part of its
                gradient, which `gradcheck` finds. All earlier samples by default.

        Source: of depends_on Schulman et al. 2015, "Gradient estimation using stochastic
        computation graphs", theorem 1.
        """
        name = name or f"term {self._num_terms}"
        ancestors = ancestors_of(name, depends_on, self._drawn)
        self._num_terms += 1
        sizes = () if self._branch is None else self._branch.shape[:-1]
        guards.check_term_shape(name, term, sizes, scored=self._num_nodes > 0)
        self._count_lanes(name, term.shape[-1])
        term = guards.checked_term(name, term)
        discount = guards.checked_discount(name, discount, term.shape[-1], sizes)
        guards.refuse_cut(name, discount, None if independent else self._path)
        self.events.append(Term(name, term, discount, self._weight, self._branch, ancestors))
        if isinstance(discount, Tensor):
            self._weight = torch.where(discount == 0, 1.0, self._weight * discount)
        else:
            self._weight = 1.0 if discount == 0 else self._weight * discount

    @written_once
    def resample(self, x: Tensor, how: How | None = None, name: str | None = None) -> Tensor:
        """New samples `[lanes, ...]` from the Gaussian with the mean and deviation of `x`'s lanes.

        All that crosses is the batch's mean M and standard deviation (N - 1 in the denominator),
        by element; nothing else of a lane may be used after it. "pathwise" is unbiased; "score":
        earlier score nodes are credited with the *shaped* reward, with dM and dV the gradient of
        everything later with respect to mean and variance,

            g_i = N / (N - 1) (dM (x_i - M) + dV ((x_i - M)^2 - V without i)),

        which is exact where everything later is, on average, linear in V and quadratic in M (a
        linear network with a quadratic cost), and otherwise off by O(1/N). To credit every lane
        with the whole batch's loss would be unbiased, and hopelessly noisy.

        Source: moment matching as in Gal et al. 2016; batch shaping after Parmas 2018.
        """
        name = self._next_name(name, "resample")
        how = known_how(name, how or self.how)
        if how not in ("score", "pathwise"):
            raise EstimatorError(f"{name}: expected how='score' or 'pathwise', got {how!r}")
        odd = self._branch is not None or self.uniforms is not None or self.control is not None
        if odd or any(isinstance(e, Node) and e.mixture for e in self.events):
            raise EstimatorError(
                f"{name}: expected 'score' and 'pathwise' nodes before it, and a tape without "
                "uniforms and control, got others; their lanes must not meet in a batch statistic"
            )
        self._count_lanes(name, x.shape[0])
        mean, deviation = guards.mean_and_deviation(name, x)
        if self._num_nodes and not mean.requires_grad:
            mean.requires_grad_()
            deviation.requires_grad_()
        kept, is_scored = x.detach().clone(), self._num_nodes > 0
        self.events.append(Barrier(name, kept, mean, deviation, self._weight, is_scored))
        dist = Normal(mean.expand(x.shape), deviation.expand(x.shape))
        if how == "score":
            return self._score(name, dist, (None, None), 0)
        return self._along_path(name, dist.rsample())

    def surrogate(self, order: int = 1) -> Tensor:
        """Scalar J: its value is the mean over lanes of the discounted sum of terms, its gradient
        the estimator. Maximize it; `J.backward()` once.

        With `order=2` J can be differentiated twice (`torch.autograd.grad(..., create_graph=True)`)
        and both derivatives are unbiased (DiCE, baselines as in Mao et al. 2019): for "score",
        "expect", and "pathwise" (a kink in a term loses its second derivative).
        """
        terms = self._terms("surrogate")
        if self._num_samples == 0:
            raise EstimatorError(
                "surrogate: expected at least one node, got none; draw with tape.sample"
            )
        if self._blind is not None:
            raise EstimatorError(
                f"{self._blind}: expected gradients to be enabled, got a sample drawn without; "
                "draw what needs none with torch.randn"
            )
        for name, dist, _ in self._scored:
            guards.check_support(name, dist)
        guards.check_rounding(self._scored)
        lanes = terms[0].value.shape[-1]
        if order == 1:
            return build(self.events, lanes, self.gae_lambda)
        if order == 2 and self.gae_lambda == 1.0:
            return dice(self.events, lanes)
        raise EstimatorError(
            f"surrogate: expected order 1, or 2 with gae_lambda=1, got order={order} with "
            f"gae_lambda={self.gae_lambda}; higher derivatives need the sampled return"
        )

    def objective(self) -> Tensor:
        """Scalar without a gradient: the mean over lanes of the discounted sum of terms."""
        sums = [term.weighted().detach().sum() for term in self._terms("objective")]
        return torch.stack(sums).sum() / float(self.num_lanes or 1)

    def _terms(self, asked: str) -> list[Term]:
        terms = [event for event in self.events if isinstance(event, Term)]
        if not terms:
            raise EstimatorError(f"{asked}: expected at least one term, got none; call tape.add")
        return terms

    def _rsample(self, name: str, dist: Distribution) -> Tensor:
        if self.uniforms is None:
            return dist.rsample()
        if backward_pass() != self._made_in:
            raise EstimatorError(
                f"{name}: expected one draw where uniforms are given, got a second one in the "
                "backward pass; draw outside torch.utils.checkpoint, or leave uniforms out"
            )
        return self.uniforms.next_of(name, dist)

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

    def _score(self, name: str, dist: Distribution, subtract: Subtracted, lane: int) -> Tensor:
        x = dist.sample() if self.uniforms is None else self._rsample(name, dist).detach()
        if x.requires_grad:
            raise EstimatorError(
                f"{name}: expected sample() without a gradient, got {type(dist).__name__}.sample() "
                "with one; log_prob of a reparametrized sample is no score: use how='pathwise'"
            )
        # Of a copy: a program may overwrite its own; a transform may have cached where it is from.
        kept = x.clone()
        self._scored.append((name, dist, kept))
        log_prob = guards.density(name, dist, kept)  # [*branches, lanes, ...]
        if log_prob.requires_grad:
            guards.refuse_half(name, log_prob)
            if log_prob.dim() > lane + 1:
                log_prob = log_prob.sum(tuple(range(lane + 1, log_prob.dim())))
            node = self._node(name, dist, kept, log_prob, subtract[0])
            control = subtract[1] or self.control
            if control is not None and self._branch is not None:
                raise EstimatorError(
                    f"{name}: expected no control inside branches, got one; leave it out"
                )
            with guards.naming(name):
                node.controlled = None if control is None else control(dist, kept)
        return x

    def _node(
        self,
        name: str,
        dist: Distribution,
        x: Tensor,
        log_prob: Tensor,
        baseline: Subtract,
        mixture: Mixture | None = None,
    ) -> Node:
        baseline = self.baseline if baseline is None else baseline
        guards.check_baseline(name, baseline)
        if isinstance(baseline, Tensor):
            if baseline.requires_grad:
                raise EstimatorError(
                    f"{name}: expected a baseline without a gradient, got one with; detach it, or "
                    "use Value(net) to train a network on the side"
                )
            baseline = baseline.clone()  # the program may overwrite its own
        baseline = None if isinstance(baseline, NoBaseline) else baseline
        if isinstance(self._weight, Tensor):  # it may have branches that the sample has not
            log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, self._weight.shape))
        index, self._num_nodes = self._num_nodes, self._num_nodes + 1
        parts = (log_prob, self._weight, self._branch, baseline, dist, mixture)
        node = Node(name, index, self._num_samples - 1, x, *parts)
        node.lanes_may_depend = self.uniforms is not None
        self.events.append(node)
        return node

    def _combine(self, name: str, dist: Distribution, baseline: Subtract) -> Tensor:
        if self._branch is not None or any(isinstance(event, Barrier) for event in self.events):
            raise EstimatorError(
                f"{name}: expected independent lanes for how='combine', got branches or a resample "
                "before it; use 'score' or 'pathwise'"
            )
        self._path = self._path or name
        mixture = Mixture(dist, name=name, exact_ivw=self.exact_ivw, lane_copies=self._copies)
        sample, anchor = mixture.join()
        path = mixture.path.detach()
        self._scored.append((name, dist, path))
        node = self._node(name, dist, path, mixture.log_prob, baseline, mixture)
        node.anchor = anchor
        return sample

    def _branching(self, name: str, dist: Distribution, how: str, lane: int) -> Tensor:
        with guards.naming(name):
            x, weight = branches(dist, how, lane, self.num_draws)  # [K, *branches, lanes, ...]
        guards.refuse_half(name, weight)
        if how != "weak" and not (how == "expect" and isinstance(dist, BY_PROBS)):
            self._scored.append((name, dist, x))
        if self._branch is not None:
            missing = (1,) * (self._branch.dim() - 1 - lane)
            x = x.reshape(x.shape[0], *missing, *x.shape[1:])
            weight = weight.reshape(weight.shape[0], *missing, *weight.shape[1:])
        self._branch = weight if self._branch is None else weight * self._branch
        self.events.append(Branching(name, self._branch.dim() - 1, exact=how == "expect"))
        return x

    def _count_lanes(self, name: str, lanes: int) -> None:
        if lanes == 0:
            raise EstimatorError(f"{name}: expected at least one lane, got 0; dim 0 is the lane")
        if self.num_lanes is None:
            self.num_lanes = lanes
        if lanes != self.num_lanes:
            raise EstimatorError(
                f"{name}: expected {self.num_lanes} lanes, got {lanes}; dim 0 is the lane"
            )

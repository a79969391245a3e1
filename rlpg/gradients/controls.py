"""Control variates: what is subtracted from a return although it depends on the sample.

A baseline must not depend on the sample, because nothing pays back what it would take from the
mean. A control variate c(x) pays it back: the node is credited with `G - c(x)`, and the gradient of
`E c(x)` is added, exactly or by an estimate of less noise. Unbiased for any c; the variance falls
as far as c resembles the return. Baselines come on top: they see `G - c(x)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution

from rlpg.errors import EstimatorError
from rlpg.gradients.parameters import detached_twin, leaves_of


@dataclass(frozen=True)
class Controlled:
    """A control variate at one sample."""

    value: Tensor  # [lanes] c(x), without a gradient
    repaid: Tensor  # [lanes], whose mean gradient is that of E c(x), for the parameters of x only
    learn: Callable[[Tensor], None] = lambda left: None  # is given G - b [lanes], once


class Control(ABC):
    """The control variate of score nodes: `tape.sample(dist, control=...)`, or `Tape(control=...)`.

    A subclass writes `__call__`.
    """

    @abstractmethod
    def __call__(self, dist: Distribution, x: Tensor) -> Controlled:
        """Of the sample x `[lanes, ...]` of dist."""


@final
class KnownMean(Control):
    """`c(x)` whose mean under the distribution is known in closed form.

    Args:
        control: maps the sample `[lanes, ...]` to c `[lanes]`; a gradient it carries is ignored.
        mean: maps the distribution to `E c` `[lanes]`, with its gradient.

    Source: Mohamed et al. 2020, sec. 7.4.
    """

    def __init__(
        self, control: Callable[[Tensor], Tensor], mean: Callable[[Distribution], Tensor]
    ) -> None:
        self.control, self.mean = control, mean

    def __call__(self, dist: Distribution, x: Tensor) -> Controlled:
        value, repaid = self.control(x).detach(), self.mean(dist)
        if value.shape != x.shape[:1] or repaid.shape != x.shape[:1]:
            raise EstimatorError(
                f"expected control and mean [{len(x)}], got {list(value.shape)} and "
                f"{list(repaid.shape)}; return one number per lane"
            )
        twin, leaves = detached_twin(dist)
        if {*map(id, leaves_of(self.mean(twin)))} - {*map(id, leaves)}:
            raise EstimatorError(
                "expected a control whose mean depends on the distribution only, got a gradient "
                "for another tensor; detach it"
            )
        return Controlled(value, repaid)


@final
class DeltaMethod(Control):
    """The second-order expansion of a model of the return about the distribution's mean m,
    `f(m) + f'(m) (x - m) + 1/2 sum_d f_dd(m) (x_d - m_d)^2`, with the mean
    `f(m) + 1/2 sum_d f_dd(m) var_d`.

    For distributions with independent coordinates. Takes the whole variance of a normal's score if
    the return is f, and f quadratic without products of coordinates.

    Args:
        model: f, differentiable twice: `[lanes, ...]` to `[lanes]`, lane by lane.

    Source: Paisley, Blei & Jordan 2012; Mohamed et al. 2020, sec. 7.4.2.
    """

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model = model

    def __call__(self, dist: Distribution, x: Tensor) -> Controlled:
        with torch.enable_grad():
            at = dist.mean.detach().requires_grad_()  # [lanes, ...]
            f = self.model(at)
            if f.shape != at.shape[:1] or not f.requires_grad:
                raise EstimatorError(
                    f"expected a differentiable model of the return, [{len(at)}], got "
                    f"{list(f.shape)}{'' if f.requires_grad else ' without a gradient'}"
                )
            (slope,) = torch.autograd.grad(f.sum(), at, create_graph=True)
            coordinates = slope.reshape(len(slope), -1).unbind(1)
            bend = [
                torch.autograd.grad(part.sum(), at, retain_graph=True)[0].reshape(len(at), -1)[:, d]
                if part.requires_grad
                else torch.zeros_like(part)
                for d, part in enumerate(coordinates)
            ]
            curve, slope = torch.stack(bend, dim=1), slope.detach().reshape(len(at), -1)
            mean = dist.mean.reshape(len(at), -1)
            variance = dist.variance.reshape(len(at), -1)
            off, moved = x.reshape(len(at), -1) - mean.detach(), mean - mean.detach()
            value = f + (slope * off + 0.5 * curve * off.square()).sum(1)
            second = variance + moved.square()
            repaid = f.detach() + (slope * moved + 0.5 * curve * second).sum(1)
        return Controlled(value.detach(), repaid)


@final
class Relax(Control):
    """A learned c(z~) of the relaxed sample: RELAX; REBAR where c is the cost of a softened z.

    A discrete sample b = H(z) is a function of continuous logits plus noise z, whose path has a
    gradient. With z~ drawn given b, c(z~) is subtracted and `c(z) - c(z~)` is differentiated along
    both paths. Unbiased for any c; how much variance is left depends on c, which is therefore
    trained on it: after `tape.surrogate()`, minimize `loss()` with an optimizer of c's own.

    Args:
        control: c, maps z `[lanes, ...]` to `[lanes]`, lane by lane: a network, or
            `lambda z: eta * f(torch.sigmoid(z / temperature))` with eta and temperature to be
            trained (REBAR). Of Bernoulli z has the shape of b, of Categorical one more dimension.

    Source: Tucker et al. 2017 (REBAR); Grathwohl et al. 2018, eq. 7 to 9 (RELAX).
    """

    def __init__(self, control: Callable[[Tensor], Tensor]) -> None:
        self.control = control
        self._squares: list[Tensor] = []

    def __call__(self, dist: Distribution, x: Tensor) -> Controlled:
        if not isinstance(dist, Bernoulli | Categorical):
            raise EstimatorError(
                f"Relax: expected Bernoulli or Categorical, got {type(dist).__name__}"
            )
        with torch.enable_grad():
            logits = dist.logits.detach().requires_grad_()
            given = _given(dist, logits, x)  # z~
            path = logits + (_given(dist, logits, x) - logits).detach()  # z
            value = self.control(given).reshape(len(x))
            gap = (self.control(path).reshape(len(x)) - value).sum()
            (slope,) = torch.autograd.grad(gap, logits, create_graph=True)  # [lanes, ...]
            twin: Distribution = type(dist)(logits=logits)
            (score,) = torch.autograd.grad(twin.log_prob(x).sum(), logits)
        lanes = len(x)

        def learn(left: Tensor) -> None:
            rest = (left - value).reshape(lanes, *(1,) * (score.dim() - 1))
            self._squares.append((rest * score + slope).square().reshape(lanes, -1).sum(1))

        moved = dist.logits - dist.logits.detach()
        repaid = (slope.detach() * moved).reshape(lanes, -1).sum(1)
        return Controlled(value.detach(), repaid, learn)

    def loss(self) -> Tensor:
        """Mean squared length of the nodes' gradients for their logits since the last call: their
        variance, but for a constant."""
        if not self._squares:
            raise EstimatorError("Relax: expected a surrogate before loss(), got none; build it")
        squares, self._squares[:] = torch.cat(self._squares), []
        return squares.mean()


def _given(dist: Distribution, logits: Tensor, x: Tensor) -> Tensor:
    """z with H(z) = x, from its conditional distribution, with the gradient for the logits."""
    tiny = torch.finfo(logits.dtype).tiny
    v = torch.rand_like(logits).clamp(tiny, 1 - torch.finfo(logits.dtype).eps)
    if isinstance(dist, Bernoulli):
        p = torch.sigmoid(logits)
        u = torch.where(x == 1, 1 - p + v * p, v * (1 - p))
        return logits + torch.logit(u.clamp(tiny, 1 - torch.finfo(u.dtype).eps))
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    chosen = x.long()[..., None]
    arrival = -v.log()  # [lanes, K] unit exponentials
    first = arrival.gather(-1, chosen)  # of the chosen outcome, in time of the whole process
    later = first + arrival / log_p.exp()
    top = torch.arange(logits.shape[-1], device=logits.device) == chosen
    return -torch.where(top, first, later).log() + logits.logsumexp(-1, keepdim=True)

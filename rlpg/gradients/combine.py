"""Score function and pathwise gradient of one sample, mixed by how noisy each turns out to be.

Both are unbiased for the gradient with respect to the distribution's parameters, so
`k score + (1 - k) path` is as well, as long as k does not depend on the lane it is applied to.
Every node gets its own k, chosen when the backward pass reaches it, so that what is mixed further
upstream is already the mixture of everything downstream (total propagation).

How k is found without bias: the lanes are split in two halves, the even and the odd. A measuring
pass gives each half the k that *its own* lanes suggest, so each half is a function of itself only;
the real pass then swaps the two numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from rlpg.errors import EstimatorError
from rlpg.gradients.guards import naming
from rlpg.gradients.parameters import detached_twin, leaves_of, parameters_of

FEWEST_LANES = 4  # two halves have to show a variance


def lane_gradients(output: Tensor, parameters: list[Tensor], grad_output: Tensor) -> list[Tensor]:
    """Gradients of `output`, weighted by `grad_output`, with lanes first; 0 where nothing arrives.

    Raises where none arrives at all, and where a parameter is shared by the lanes: what each lane
    contributes could not be told.
    """
    found = torch.autograd.grad(
        output, parameters, grad_output, retain_graph=True, allow_unused=True
    )
    lanes = grad_output.shape[0]
    if all(grad is None for grad in found):
        raise EstimatorError("expected a density that depends on its parameters, got none")
    if any(grad is not None and (grad.dim() == 0 or len(grad) != lanes) for grad in found):
        raise _shared(parameters, lanes)
    return [
        torch.zeros_like(parameter) if grad is None else grad
        for parameter, grad in zip(parameters, found, strict=True)
    ]


def _shared(parameters: list[Tensor], lanes: int) -> EstimatorError:
    return EstimatorError(
        f"expected distribution parameters with {lanes} lanes first, got "
        f"{[list(parameter.shape) for parameter in parameters]}; expand them to the lanes"
    )


def mixing_weight(path: Tensor, score: Tensor, *, exact_ivw: bool = False) -> float:
    """k in [0, 1], the weight of the score function with the least variance of the mixture.

    With `a` the pathwise and `s` the score gradient and variances summed over D,
    `k = (Var a - Cov(a, s)) / Var(a - s)`; with `exact_ivw` the covariance is left out: the
    published inverse-variance weighting (Parmas et al. 2018, eq. 12).

    Args:
        path, score: `[lanes, D]` gradients of the same parameters, lane by lane.
    """
    var_path, var_score = path.var(0).sum(), score.var(0).sum()
    if not bool(torch.isfinite(var_path)):
        return 1.0
    if not bool(torch.isfinite(var_score)):
        return 0.0
    if exact_ivw:
        above, below = var_path, var_path + var_score
    else:
        centered = (path - path.mean(0)) * (score - score.mean(0))
        above = var_path - centered.sum() / (len(path) - 1)
        below = (path - score).var(0).sum()
    return float((above / below).clamp(0.0, 1.0)) if bool(below > 0) else 0.0


@dataclass
class LaneCopies:
    """The lanes' copies of the parameters in whose gradient the variances are measured: those of
    `Tape.per_lane`. Without any, they are measured in the gradient of each node's own parameters.
    """

    copies: list[Tensor] = field(default_factory=list)  # [lanes, ...]
    cut: bool = False  # whether gradients stop at samples


class Mixture:
    """One sample, its two gradients, and the weights between them.

    In the backward pass the distribution's parameters get `(1 - k)` of the gradient along the path
    and `k` of the score times the credit.

    Args:
        distribution: has rsample; its parameters have lanes first.
    """

    def __init__(
        self, distribution: Distribution, *, name: str, exact_ivw: bool, lane_copies: LaneCopies
    ) -> None:
        if (lanes := distribution.batch_shape[0]) < FEWEST_LANES:
            raise EstimatorError(f"{name}: expected at least {FEWEST_LANES} lanes, got {lanes}")
        self.name, self.lane_copies, self.own = name, lane_copies, parameters_of(distribution)
        twin, self.leaves = detached_twin(distribution)
        self.path = twin.rsample()  # [lanes, ...]
        log_prob = twin.log_prob(self.path.detach())
        self.log_prob = log_prob.reshape(len(log_prob), -1).sum(1)  # [lanes]
        with naming(name):
            self._own_parameters()
        self.exact_ivw = exact_ivw
        self.score_share: Tensor | None = None  # [lanes], k; None while measuring

    def join(self) -> tuple[Tensor, Tensor]:
        """The sample `[lanes, ...]`, and zeros `[lanes]` whose gradient is what the score is paid.

        They are the caller's: their graph holds this object, so that, kept in it, neither would
        ever be freed.
        """
        joined: tuple[Tensor, Tensor] = _Join.apply(self, *self.own)  # type: ignore[no-untyped-call]
        return joined

    def _own_parameters(self) -> None:
        """Refuses parameters of which it cannot be told what each lane contributes."""
        one_lane = self.path[0].sum() + self.log_prob[0]
        known = {id(leaf) for leaf in self.leaves}
        if any(id(leaf) not in known for leaf in leaves_of(one_lane)):
            raise EstimatorError(
                "expected all parameters in tensors of the distribution, got one elsewhere (a "
                "network inside a transform?); use how='pathwise' or 'score'"
            )
        found = torch.autograd.grad(one_lane, self.leaves, retain_graph=True, allow_unused=True)
        if any(bool(grad[1:].any()) for grad in found if grad is not None and grad.dim()):
            raise _shared(self.leaves, len(self.path))

    def gradients(self, grad_path: Tensor, paid: Tensor) -> list[Tensor]:
        """The mixed gradient of every parameter, where `paid` `[lanes]` weighs the scores."""
        with naming(self.name):
            path = lane_gradients(self.path, self.leaves, grad_path)
            score = lane_gradients(self.log_prob, self.leaves, paid)
        share = self._measure(path, score) if self.score_share is None else self.score_share
        mixed = []
        for a, s in zip(path, score, strict=True):
            k = share.reshape(-1, *(1,) * (a.dim() - 1))
            # Where k is 1 the path may have exploded: 0 times infinity must not come back as NaN.
            mixed.append(torch.where(k < 1, (1 - k) * a, 0.0) + torch.where(k > 0, k * s, 0.0))
        return mixed

    def _measure(self, path: list[Tensor], score: list[Tensor]) -> Tensor:
        """`[lanes]` k that each half suggests for itself; keeps the swapped one."""
        lanes = len(self.path)
        path, score = self._at_policy(path) or path, self._at_policy(score) or score
        a = torch.cat([grad.reshape(lanes, -1) for grad in path], dim=1)  # [lanes, D]
        s = torch.cat([grad.reshape(lanes, -1) for grad in score], dim=1)
        own, swapped = torch.empty_like(self.log_prob), torch.empty_like(self.log_prob)
        if self.exact_ivw:
            self.score_share = own.fill_(mixing_weight(a, s, exact_ivw=True))
            return own
        own[::2] = swapped[1::2] = mixing_weight(a[::2], s[::2])
        own[1::2] = swapped[::2] = mixing_weight(a[1::2], s[1::2])
        self.score_share = swapped
        return own

    def _at_policy(self, gradients: list[Tensor]) -> list[Tensor]:
        """What this node alone contributes to the gradient of the lanes' copies, if anything."""
        if not self.lane_copies.copies:
            return []
        self.lane_copies.cut = True
        try:
            found = torch.autograd.grad(
                self.own, self.lane_copies.copies, gradients, retain_graph=True, allow_unused=True
            )
        finally:
            self.lane_copies.cut = False
        reached = [grad for grad in found if grad is not None]
        return reached if any(bool(grad.any()) for grad in reached) else []


class _Join(torch.autograd.Function):
    """parameters -> (sample, an anchor of zeros `[lanes]`).

    The anchor times the credit is added to the surrogate, so that the score is paid with the sign
    and the scale that the caller gives the surrogate.
    """

    @staticmethod
    def forward(ctx: Any, mixture: Mixture, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        ctx.mixture = mixture
        return mixture.path.detach().clone(), torch.zeros_like(mixture.log_prob)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_path: Tensor, paid: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.mixture.lane_copies.cut:  # what lies upstream of this sample is another node's share
            return (None,) * (1 + len(ctx.mixture.own))
        with torch.enable_grad():
            return None, *ctx.mixture.gradients(grad_path, paid)


def measure(surrogate: Tensor, mixtures: list[Mixture]) -> None:
    """The measuring pass: one backward pass through `surrogate` that sets every `score_share`."""
    parameters = [parameter for mixture in mixtures for parameter in mixture.own]
    torch.autograd.grad(surrogate, parameters, retain_graph=True, allow_unused=True)
    unreached = sum(mixture.score_share is None for mixture in mixtures)
    if unreached:
        raise EstimatorError(f"combine: expected a gradient at every node, got none at {unreached}")

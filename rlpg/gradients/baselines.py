"""Baselines: what can be subtracted from a return without touching the mean gradient.

A baseline may know everything except the sample it is subtracted from and what followed from it.
Used first and updated afterwards, a mean of *past* returns qualifies; so does the mean over *other*
environments of the same batch. A mean that contains the sample itself does not: it scales the
gradient of a batch of N by (N - 1) / N (Greensmith, Bartlett & Baxter 2004, section 3).

One family serves the learners, whose samples are a rollout `[T, N]`, and the tape, whose samples
are the N lanes of one node, `[1, N]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from rlpg.distributed import max_over_ranks, sums_over_ranks
from rlpg.errors import EstimatorError


class Samples(Protocol):
    """Where returns come from: a `Rollout`, or one node of a tape."""

    @property
    def time(self) -> Tensor:
        """`[T, N]` int64 index of the step within its episode."""

    @property
    def valid(self) -> Tensor:
        """`[T, N]` bool: the slots that are real transitions."""


class Baseline(ABC):
    """What is subtracted from a return: used first, updated afterwards.

    A subclass writes `__call__`, and the other methods where it learns something.
    """

    @abstractmethod
    def __call__(self, samples: Samples, returns: Tensor) -> Tensor:
        """`[T, N]` without gradient; entry `[t, n]` must not depend on `returns[t, n]`, nor on what
        followed from that sample.

        Args:
            samples: where the returns come from.
            returns: `[T, N]` return-to-go of each sample.
        """

    def update(
        self, samples: Samples, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        """Learn from the returns that the baseline has been subtracted from.

        Args:
            samples: where the returns come from.
            returns: `[T, N]` return-to-go of each sample.
            weight: `[T, N]`, 0 where a return means nothing.
            lr_scale: multiplies the learning rate, where there is one.

        Returns:
            Metrics to log, by TensorBoard tag.
        """
        return {}

    def compile(self) -> None:  # noqa: B027 (nothing to compile)
        """Compile the network, where there is one."""

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to continue exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (nothing to load)
        """Continue from `state_dict()`."""


@final
class NoBaseline(Baseline):
    """Zero: plain REINFORCE."""

    def __call__(self, samples: Samples, returns: Tensor) -> Tensor:
        return torch.zeros_like(returns)


@final
class MovingAverage(Baseline):
    """Exponential mean of the returns of past updates, corrected for its start at 0.

    Unbiased: the mean of update k uses updates 0 .. k-1 only. Before the first update it is 0.

    Args:
        decay: weight in [0, 1) of the past at each update; 0 keeps the last update's mean only.
    """

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = _fraction(decay)
        self._sum = 0.0
        self._weight = 0.0

    @property
    def value(self) -> float:
        """The mean of past returns, the same number for every sample."""
        return self._sum / self._weight if self._weight > 0 else 0.0

    def __call__(self, samples: Samples, returns: Tensor) -> Tensor:
        return torch.full_like(returns, self.value)

    def update(
        self, samples: Samples, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        counts = weight > 0
        paid = torch.where(counts, returns, 0.0).double().sum()
        total, whole = sums_over_ranks(counts.sum(), paid)
        if total > 0:
            mean = float(whole) / int(total)
            self._sum = self.decay * self._sum + (1 - self.decay) * mean
            self._weight = self.decay * self._weight + (1 - self.decay)
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum, self._weight = float(state["sum"]), float(state["weight"])


@final
class PerTimeStep(Baseline):
    """For each step of an episode the exponential mean of past returns from that step on.

    Unbiased for the reason `MovingAverage` is. A time not seen so far gets the value of the latest
    time that was; before the first update everything is 0. On a tape the steps are its nodes.

    Args:
        decay: weight in [0, 1) of the past, at each update that sees the time step.
    """

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = _fraction(decay)
        self._sum = torch.zeros(0, dtype=torch.float64)  # [K]
        self._weight = torch.zeros(0, dtype=torch.float64)  # [K]

    def __call__(self, samples: Samples, returns: Tensor) -> Tensor:
        time, seen = samples.time, self._weight > 0
        if not bool(seen.any()):
            return torch.zeros_like(returns)
        known = seen.nonzero()[:, 0]  # [S]
        mean = (self._sum[known] / self._weight[known]).to(returns.dtype)
        place = torch.searchsorted(known, time.cpu().contiguous(), right=True) - 1
        return mean[place.clamp(min=0)].to(time.device)

    def update(
        self, samples: Samples, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        total, count = _by_time(returns, samples.time, weight > 0)
        total, count = (part.cpu() for part in sums_over_ranks(total.sum(1), count.sum(1)))  # [K]
        longer = len(count) - len(self._weight)
        if longer > 0:
            self._sum = torch.cat([self._sum, self._sum.new_zeros(longer)])
            self._weight = torch.cat([self._weight, self._weight.new_zeros(longer)])
        seen = (count > 0).nonzero()[:, 0]
        mean = total[seen] / count[seen]
        self._sum[seen] = self.decay * self._sum[seen] + (1 - self.decay) * mean
        self._weight[seen] = self.decay * self._weight[seen] + (1 - self.decay)
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum.clone(), "weight": self._weight.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sum = state["sum"].to(torch.float64, copy=True)
        self._weight = state["weight"].to(torch.float64, copy=True)


@final
class LeaveOneOut(Baseline):
    """The mean return that the *other* lanes had: on a tape from the same node on, in a rollout
    from the same time on (see `leave_one_out`).

    Unbiased for independent lanes. Variance: that of the true mean times N / (N - 1).

    Args:
        groups: K of "K samples for each of several items" (RLOO): lanes 0 to K-1 belong to the
            first item, the next K to the second, and the mean is over the others of the group.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!", eq. 7.
    """

    def __init__(self, groups: int | None = None) -> None:
        if groups is not None and groups < 2:
            raise EstimatorError(f"LeaveOneOut: expected groups of at least 2 lanes, got {groups}")
        self.groups = groups

    def __call__(self, samples: Samples, returns: Tensor) -> Tensor:
        lanes = returns.shape[1]
        size = self.groups or lanes
        if lanes % size:
            raise EstimatorError(f"LeaveOneOut: expected a multiple of {size} lanes, got {lanes}")
        if isinstance(samples, Lanes):  # one step, at the same time in all lanes
            grouped = returns.reshape(-1, size)  # [items, K]
            others = (grouped.sum(1, keepdim=True) - grouped) / max(size - 1, 1)
            return others.reshape(returns.shape)
        parts = [part.split(size, dim=1) for part in (returns, samples.time, samples.valid)]
        return torch.cat(
            [
                leave_one_out(r, time=t, valid=v, is_whole=self.groups is not None)
                for r, t, v in zip(*parts, strict=True)
            ],
            dim=1,
        )


@final
class OptimalConstant(Baseline):
    """For each lane `b = sum |s|^2 G / sum |s|^2` over the *other* lanes, s the score.

    The constant with the least variance (Greensmith et al. 2004, theorem 8), where s is taken with
    respect to the distribution's own parameters. Estimated from all lanes it would be biased: it
    follows the return it is subtracted from. Only a tape knows the scores.
    """

    def __call__(self, samples: Samples, returns: Tensor) -> Tensor:
        if not isinstance(samples, Lanes):
            raise EstimatorError(
                "OptimalConstant: expected samples with score_square(), got "
                f"{type(samples).__name__}, which has none; use LeaveOneOut(), or a tape"
            )
        weight = samples.score_square()  # [T, N]
        total = weight * returns
        rest = weight.sum(1, keepdim=True) - weight
        mean = (total.sum(1, keepdim=True) - total) / rest.clamp(min=1e-30)
        return torch.where(rest > 0, mean, 0.0)


@final
class Value(Baseline):
    """A network's estimate of the return: `tape.sample(dist, baseline=value.at(state))`.

    The state is what is known *before* the sample. Nothing is trained by itself:
    after `surrogate()`, minimize `value.loss()` with an optimizer of its own. A learner takes `net`
    for its value network, and trains it.

    Args:
        net: maps `[lanes, ...]` to `[lanes]` or `[lanes, 1]`; in a learner, the policy's features
            `[B, F]` to `[B, 1]`.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._errors: list[Tensor] = []

    def __call__(self, samples: Samples, returns: Tensor) -> Tensor:
        raise EstimatorError(
            "Value: expected the state of a node, got none; write baseline=value.at(state)"
        )

    def at(self, state: Tensor) -> ValueAt:
        """The baseline of one node, at its state `[lanes, ...]`."""
        # Of a copy: its loss must not reach what led to the state, nor see it overwritten.
        estimate = self.net(state.detach().clone())
        if estimate.dim() == 2 and estimate.shape[1] == 1:
            estimate = estimate[:, 0]
        if estimate.shape != state.shape[:1]:
            raise EstimatorError(
                f"Value: expected the network to return [{state.shape[0]}] or "
                f"[{state.shape[0]}, 1], got {list(estimate.shape)}; one value per lane"
            )
        return ValueAt(estimate, self._errors)

    def loss(self) -> Tensor:
        """Mean squared error of all estimates since the last call, with its gradient."""
        if not self._errors:
            raise EstimatorError("Value: expected a surrogate before loss(), got none; build it")
        errors, self._errors[:] = torch.cat(self._errors), []
        return errors.square().mean()


@final
class ValueAt(Baseline):
    """A `Value` at one state; a value of the state for `gae_lambda`, too."""

    def __init__(self, estimate: Tensor, errors: list[Tensor]) -> None:
        self._estimate, self._errors = estimate, errors  # [lanes]

    def __call__(self, samples: Samples, returns: Tensor) -> Tensor:
        return self._estimate.detach()[None]  # [1, lanes]

    def update(
        self, samples: Samples, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        self._errors.append(self._estimate - returns[0])
        return {}


@dataclass(frozen=True)
class Lanes:
    """The samples of one node of a tape, one per lane: T = 1."""

    like: Tensor  # [lanes], for size and device
    index: int  # of the node on the tape
    squares: Callable[[], Tensor]  # gives [lanes]

    @property
    def time(self) -> Tensor:
        return torch.full_like(self.like, self.index, dtype=torch.int64)[None]

    @property
    def valid(self) -> Tensor:
        return torch.ones_like(self.like, dtype=torch.bool)[None]

    def score_square(self) -> Tensor:
        """`[1, lanes]` squared length of `d log p / d parameters`."""
        return self.squares()[None]


def leave_one_out(
    returns: Tensor, *, time: Tensor, valid: Tensor, is_whole: bool = False
) -> Tensor:
    """`[T, N]` mean of the returns that *others* in the batch had from the same time on.

    For the slot of environment n at time k of its episode: the mean of `returns` over all valid
    slots with time k of the other environments (all of their episodes). Where no other environment
    has got as far as k: the mean over all their valid slots; without other environments: 0.

    To leave out only the sample's own episode would not be enough: the action decides how much room
    the environment's next episode has.

    Args:
        returns, time, valid: `[T, N]`; see `Samples`.
        is_whole: whether these are all the environments, also where there are other ranks.
    """
    total, count = _by_time(returns, time, valid)  # [K, N]
    time = torch.where(valid, time, 0)
    all_total, all_count = total.sum(0), count.sum(0)  # [N]
    sums = total.sum(1), count.sum(1), all_total.sum(), all_count.sum()
    by_time, count_by_time, whole, size = sums if is_whole else sums_over_ranks(*sums)
    others, number = by_time[:, None] - total, count_by_time[:, None] - count
    others, number = others.gather(0, time), number.gather(0, time)  # [T, N]
    fallback = (whole - all_total) / (size - all_count).clamp(min=1)
    mean = torch.where(number > 0, others / number.clamp(min=1), fallback.expand(time.shape))
    return torch.where(valid, mean, 0.0).to(returns.dtype)


def _by_time(returns: Tensor, time: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and counts `[K, N]` float64 of returns by environment and time within the episode."""
    if not (returns.dim() == 2 and returns.shape == time.shape == valid.shape):
        raise EstimatorError(
            f"baseline: expected returns, time and valid as [T, N], got {list(returns.shape)}, "
            f"{list(time.shape)}, {list(valid.shape)}"
        )
    time = torch.where(valid, time, 0)
    shape = (int(max_over_ranks(time.max())) + 1, time.shape[1])
    zeros = torch.zeros(shape, dtype=torch.float64, device=returns.device)
    paid = torch.where(valid, returns.detach(), 0.0).double()
    return zeros.scatter_add(0, time, paid), zeros.scatter_add(0, time, valid.double())


def _fraction(decay: float) -> float:
    if not 0.0 <= decay < 1.0:
        raise EstimatorError(f"decay: expected a number in [0, 1), got {decay}; 0.9 is usual")
    return decay


STATISTICAL: dict[str, type[Baseline]] = {
    "none": NoBaseline,
    "moving_average": MovingAverage,
    "time_step": PerTimeStep,
    "leave_one_out": LeaveOneOut,
}

"""Statistical baselines: what can be subtracted from a return without touching the mean gradient.

A baseline may know everything except the sample it is subtracted from and what followed from it.
Used first and updated afterwards, a mean of *past* returns qualifies; so does the mean over *other*
environments of the same batch. A mean that contains the sample itself does not: it scales the
gradient of a batch of N by (N - 1) / N.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from rlpg.errors import EstimatorError


class Baseline(ABC):
    """What a node of a `Tape` subtracts from its return: one number per lane, or one for all."""

    @abstractmethod
    def before(self, returns: Tensor, score_square: Callable[[], Tensor]) -> Tensor | float:
        """The value, asked for before `update`; entry i must not depend on `returns[i]`.

        Args:
            returns: `[lanes]` the returns it will be subtracted from.
            score_square: gives `[lanes]` squared length of `d log p / d parameters`.
        """

    def update(self, returns: Tensor) -> None:  # noqa: B027  (most have nothing to learn)
        """Learn from the returns, after every node of the tape has had its baseline."""


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

    def before(self, returns: Tensor, score_square: Callable[[], Tensor]) -> float:
        return self.value

    def update(self, returns: Tensor, weight: Tensor | None = None) -> None:
        """Take in the returns that `value` has already been subtracted from.

        Args:
            returns: any shape, e.g. `[T, N]`.
            weight: same shape, e.g. `valid`; None counts every entry once.
        """
        counts = torch.ones_like(returns) if weight is None else weight
        total = float(counts.double().sum())
        if total > 0:
            mean = float(torch.where(counts != 0, returns * counts, 0.0).double().sum()) / total
            self._sum = self.decay * self._sum + (1 - self.decay) * mean
            self._weight = self.decay * self._weight + (1 - self.decay)

    def state_dict(self) -> dict[str, float]:
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._sum, self._weight = float(state["sum"]), float(state["weight"])


@final
class PerTimeStep:
    """For each step of an episode the exponential mean of past returns from that step on.

    Unbiased for the reason `MovingAverage` is. A time not seen so far gets the value of the latest
    time that was; before the first update everything is 0.

    Args:
        decay: weight in [0, 1) of the past, at each update that sees the time step.
    """

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = _fraction(decay)
        self._sum = torch.zeros(0, dtype=torch.float64)  # [K]
        self._weight = torch.zeros(0, dtype=torch.float64)  # [K]

    def __call__(self, time: Tensor) -> Tensor:
        """`[T, N]` float32 baseline for `time`, `[T, N]` int64 index within the episode."""
        seen = self._weight > 0
        if not bool(seen.any()):
            return torch.zeros(time.shape, device=time.device)
        known = seen.nonzero()[:, 0]  # [S]
        mean = (self._sum[known] / self._weight[known]).to(torch.float32)
        place = torch.searchsorted(known, time.cpu(), right=True) - 1
        return mean[place.clamp(min=0)].to(time.device)

    def update(self, returns: Tensor, *, time: Tensor, valid: Tensor) -> None:
        """Take in `[T, N]` returns that the baseline has already been subtracted from."""
        total, count = _by_time(returns, time, valid)
        total, count = total.sum(1).cpu(), count.sum(1).cpu()  # [K]
        longer = len(count) - len(self._weight)
        if longer > 0:
            self._sum = torch.cat([self._sum, self._sum.new_zeros(longer)])
            self._weight = torch.cat([self._weight, self._weight.new_zeros(longer)])
        seen = (count > 0).nonzero()[:, 0]
        mean = total[seen] / count[seen]
        self._sum[seen] = self.decay * self._sum[seen] + (1 - self.decay) * mean
        self._weight[seen] = self.decay * self._weight[seen] + (1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        return {"sum": self._sum.clone(), "weight": self._weight.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._sum, self._weight = state["sum"].clone(), state["weight"].clone()


@final
class LeaveOneOut(Baseline):
    """For each lane the mean return of the other lanes.

    Unbiased for independent lanes. Variance: that of the true mean times N / (N - 1).
    """

    def before(self, returns: Tensor, score_square: Callable[[], Tensor]) -> Tensor:
        _two_lanes("LeaveOneOut", returns)
        return (returns.sum() - returns) / (len(returns) - 1)


@final
class OptimalConstant(Baseline):
    """For each lane `b = sum |s|^2 G / sum |s|^2` over the *other* lanes, s the score.

    The constant with the least variance (Greensmith et al. 2004, theorem 8), where s is taken with
    respect to the distribution's own parameters. Estimated from all lanes it would be biased: it
    follows the return it is subtracted from.
    """

    def before(self, returns: Tensor, score_square: Callable[[], Tensor]) -> Tensor:
        _two_lanes("OptimalConstant", returns)
        weight = score_square()  # [lanes]
        total = weight * returns
        rest = weight.sum() - weight
        return torch.where(rest > 0, (total.sum() - total) / rest.clamp(min=1e-30), 0.0)


@final
class Value:
    """A network's estimate of the return: `tape.sample(dist, baseline=value(state))`.

    The state is what is known *before* the sample. Nothing is trained behind the caller's back:
    after `surrogate()`, minimize `value.loss()` with an optimizer of its own.

    Args:
        net: maps `[lanes, ...]` to `[lanes]` or `[lanes, 1]`.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._errors: list[Tensor] = []

    def __call__(self, state: Tensor) -> ValueAt:
        """The baseline of one node, at its state."""
        estimate = self.net(state.detach())  # its loss must not reach what led to the state
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

    def before(self, returns: Tensor, score_square: Callable[[], Tensor]) -> Tensor:
        return self._estimate.detach()

    def update(self, returns: Tensor) -> None:
        self._errors.append(self._estimate - returns)


def leave_one_out(
    returns: Tensor, *, time: Tensor, valid: Tensor, leave_out: str = "environment"
) -> Tensor:
    """`[T, N]` mean of the returns that *others* in the batch had from the same time on.

    For the slot of environment n at time k of its episode: the mean of `returns` over all valid
    slots with time k of the other environments (all of their episodes). Where no other environment
    has got as far as k: the mean over all their valid slots; without other environments: 0.

    Environments are independent given the policy, so this is unbiased however long the episodes
    are and wherever the rollout cuts them. It is not enough to leave out the sample's own episode:
    in a rollout of fixed length the action decides how much room the environment's next episode
    has. With a fixed number of complete episodes per environment that is no matter, and
    `leave_out="episode"` uses the environment's other episodes as well.

    Variance: as with the true mean at each time, plus 1/(number of others).

    Args:
        returns: `[T, N]`, reward-to-go; a gradient is ignored.
        time: `[T, N]` int64 index of the step within its episode.
        valid: `[T, N]` bool.
        leave_out: "environment", or "episode" for batches of whole episodes.
    """
    if leave_out not in ("environment", "episode"):
        raise EstimatorError(
            f"leave_out: expected 'environment' or 'episode', got {leave_out!r}; "
            "'environment' is always unbiased"
        )
    total, count = _by_time(returns, time, valid)  # [K, N]
    returns, time = returns.detach(), torch.where(valid, time, 0)
    all_total, all_count = total.sum(0), count.sum(0)  # [N]
    if leave_out == "environment":
        others, number = total.sum(1, keepdim=True) - total, count.sum(1, keepdim=True) - count
        others, number = others.gather(0, time), number.gather(0, time)  # [T, N]
    else:
        others = total.sum(1)[time] - returns.double()
        number = count.sum(1)[time] - 1
    fallback = (all_total.sum() - all_total) / (all_count.sum() - all_count).clamp(min=1)
    mean = torch.where(number > 0, others / number.clamp(min=1), fallback.expand(time.shape))
    return torch.where(valid, mean, 0.0).to(returns.dtype)


def _by_time(returns: Tensor, time: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and counts `[K, N]` float64 of returns by environment and time within the episode."""
    if not (returns.dim() == 2 and returns.shape == time.shape == valid.shape):
        raise EstimatorError(
            "baseline: expected returns, time and valid as [T, N], got "
            f"{list(returns.shape)}, {list(time.shape)}, {list(valid.shape)}; "
            "give one entry per step and environment"
        )
    time = torch.where(valid, time, 0)
    shape = (int(time.max()) + 1, time.shape[1])
    zeros = torch.zeros(shape, dtype=torch.float64, device=returns.device)
    paid = torch.where(valid, returns.detach(), 0.0).double()
    return zeros.scatter_add(0, time, paid), zeros.scatter_add(0, time, valid.double())


def _two_lanes(name: str, returns: Tensor) -> None:
    if len(returns) < 2:
        raise EstimatorError(f"{name}: expected at least 2 lanes, got {len(returns)}; add lanes")


def _fraction(decay: float) -> float:
    if not 0.0 <= decay < 1.0:
        raise EstimatorError(f"decay: expected a number in [0, 1), got {decay}; 0.9 is usual")
    return decay

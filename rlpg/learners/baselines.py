"""What REINFORCE subtracts from a return. Use first, then update: it never contains its own sample.

A baseline that does not depend on the action leaves the gradient unbiased and takes variance away
(Greensmith, Bartlett & Baxter 2004, section 3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from rlpg.gradients import baselines as statistical
from rlpg.rollouts.rollout import Rollout


class Baseline(ABC):
    """`baseline(rollout, returns) -> [T, N]`, then `baseline.update(...)`."""

    @abstractmethod
    def __call__(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """What to subtract from each return: `[T, N]`, without gradient."""

    def update(
        self, rollout: Rollout, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        """Learn from the returns just used.

        Args:
            rollout: where they came from.
            returns: `[T, N]`, return-to-go of each step.
            weight: `[T, N]`, 0 where a return means nothing (slots that are not real or dropped).
            lr_scale: multiplies the learning rate, where there is one.

        Returns:
            Figures to log, by TensorBoard tag.
        """
        return {}

    def compile(self) -> None:  # noqa: B027 (nothing to compile)
        """Compile what `Reinforce.compile` says, where there is a network."""

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to continue exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (nothing to load)
        """Continue from `state_dict()`."""


class NoBaseline(Baseline):
    """Zero: plain REINFORCE."""

    def __call__(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """`[T, N]` zeros."""
        return torch.zeros_like(returns)


class MovingAverage(Baseline):
    """One number: the exponential mean of past updates' returns."""

    def __init__(self, decay: float = 0.9) -> None:
        self._average = statistical.MovingAverage(decay)

    def __call__(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """`[T, N]`, the same number everywhere."""
        return torch.full_like(returns, self._average.value)

    def update(
        self, rollout: Rollout, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        """Take the batch's returns in."""
        self._average.update(returns, (weight > 0).to(returns.dtype))
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The running sums."""
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._average.load_state_dict(state)


class PerTimeStep(Baseline):
    """One number per step of the episode: the exponential mean of past returns from there on."""

    def __init__(self, decay: float = 0.9) -> None:
        self._means = statistical.PerTimeStep(decay)

    def __call__(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """`[T, N]` by the step's index within its episode."""
        return self._means(rollout.time)

    def update(
        self, rollout: Rollout, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        """Take the batch's returns in."""
        self._means.update(returns, time=rollout.time, valid=weight > 0)
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The running sums by time."""
        return dict(self._means.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._means.load_state_dict(state)


class LeaveOneOut(Baseline):
    """The mean return that the *other* environments of the batch had from the same time on."""

    def __call__(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """`[T, N]`; 0 where there is no other environment."""
        return statistical.leave_one_out(returns, time=rollout.time, valid=rollout.valid)


STATISTICAL: dict[str, type[Baseline]] = {
    "none": NoBaseline,
    "moving_average": MovingAverage,
    "time_step": PerTimeStep,
    "leave_one_out": LeaveOneOut,
}

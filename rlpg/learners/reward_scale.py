"""Scaling for the learner alone: the rollout's rewards stay what the environment paid."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlpg.distributed import gather_columns, moments_over_ranks, own_columns
from rlpg.errors import UsageError
from rlpg.gradients import returns
from rlpg.rollouts.rollout import Rollout, rows


class RewardScale:
    """The running deviation of the discounted sum of rewards so far, restarted at episode starts.

    `scale` is what rewards are to be divided by; 1 while no two sums have differed. The sum
    restarts where the episode does, at truncations too, and bogus steps are left out.

    Source: Engstrom et al. 2020, "Implementation Matters", section 3, who measure what it does.
    """

    def __init__(self, gamma: float) -> None:
        self._gamma = gamma
        self._count, self._mean, self._m2 = 0, 0.0, 0.0
        self._running: Tensor | None = None  # [N], the sums of unfinished episodes

    @property
    def scale(self) -> float:
        return math.sqrt(self._m2 / self._count) if self.is_known else 1.0

    @property
    def is_known(self) -> bool:
        """Whether rewards have been seen that tell it."""
        return self._m2 > 0

    def update(self, rollout: Rollout) -> None:
        """Take a rollout's rewards into account."""
        before = None
        if self._running is not None:  # where collecting began afresh, so does the sum
            goes_on = rollout.time[0] > 0
            if self._running.shape == goes_on.shape:
                before = self._running.to(rollout.reward.device) * goes_on
            elif goes_on.any():
                raise UsageError(
                    f"reward_scale.running: expected {list(goes_on.shape)}, one sum for each "
                    f"environment, got {list(self._running.shape)}"
                )
        so_far, self._running = returns.discounted_so_far(
            rollout.reward, done=rollout.done, valid=rollout.valid, gamma=self._gamma, before=before
        )
        batch = rows(rollout.valid)(so_far).double()
        size, own = torch.tensor(len(batch)), batch.sum()
        own_m2 = (batch - own / max(len(batch), 1)).square().sum()
        found = moments_over_ranks(size, own, own_m2, own_m2)
        told = torch.stack([part.to(own.device, torch.float64) for part in found[:3]])
        count, mean, m2 = told.tolist()
        if count == 0:
            return
        # Chan, Golub & LeVeque 1979: moments of two sets from the moments of each.
        total, delta = self._count + int(count), mean - self._mean
        self._m2 += m2 + delta**2 * self._count * count / total
        self._mean += delta * count / total
        self._count = total

    def state_dict(self) -> dict[str, Any]:
        """The moments and the unfinished sums."""
        moments = {"count": self._count, "mean": self._mean, "m2": self._m2}
        if self._running is None:
            return moments
        return {**moments, "running": gather_columns(self._running)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count, self._mean, self._m2 = state["count"], state["mean"], state["m2"]
        running = state.get("running")
        self._running = None if running is None else own_columns(running)

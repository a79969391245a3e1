"""Advantages: what each step of a rollout is worth, and its share in the mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpg.distributed import is_alone, moments_over_ranks, sum_over_ranks, sums_over_ranks
from rlpg.errors import UsageError
from rlpg.gradients import returns
from rlpg.gradients.baselines import STATISTICAL, Baseline
from rlpg.learners import rules
from rlpg.learners.settings import LearnerSettings
from rlpg.learners.values import StateValue
from rlpg.rollouts.rollout import Rollout, rows


@dataclass(frozen=True)
class Advantages:
    """What each step is worth; all `[T, N]` and without gradient."""

    returns: Tensor  # return-to-go, in the learner's reward units
    advantage: Tensor  # return-to-go minus baseline, 0 where the weight is 0
    normalized: Tensor  # the advantage as the surrogate takes it: normalized on request
    weight: Tensor  # share of the step in the mean; 0 where a slot is not real or was dropped
    objective: Tensor  # scalar: the Monte-Carlo estimate of the expected return
    number: int  # steps of positive weight, of all ranks


class AdvantageRule:
    """From rewards to `Advantages`, as the settings say.

    Raises:
        UsageError: the baseline does not predict values, which the settings need.
    """

    def __init__(self, baseline: Baseline, settings: LearnerSettings) -> None:
        predicts, name = isinstance(baseline, StateValue), type(baseline).__name__
        gae_lambda, truncated_return = settings.gae_lambda, settings.truncated_return
        if gae_lambda == "auto":
            gae_lambda = rules.gae_lambda(predicts, truncated_return)
        if gae_lambda == 1.0 and not predicts:
            gae_lambda = None  # the whole return
        if truncated_return == "auto":
            truncated_return = rules.truncated_return(predicts)
        if gae_lambda is not None and not predicts:
            raise UsageError(
                f"gae_lambda: needs a baseline that predicts values (linear, value), got {name}"
            )
        if truncated_return == "bootstrap" and not predicts:
            raise UsageError(
                f"truncated_return: bootstrap needs a baseline that predicts values, got {name}"
            )
        if gae_lambda is not None and truncated_return != "bootstrap":
            raise UsageError(
                f"truncated_return: expected bootstrap with gae_lambda, got {truncated_return}"
            )
        self.baseline, self.settings = baseline, settings
        self.gae_lambda, self.truncated_return = gae_lambda, truncated_return

    @torch.no_grad()
    def __call__(self, rollout: Rollout, reward: Tensor) -> Advantages:
        """The advantages of a rollout, whose rewards in the learner's units are `[T, N]`."""
        s, valid = self.settings, rollout.valid
        ends = {"terminated": rollout.terminated, "truncated": rollout.truncated, "valid": valid}
        if isinstance(self.baseline, StateValue):
            value, successor = self.baseline.predict(rollout)
        if self.gae_lambda is not None:
            advantage = returns.gae(
                reward, value, successor_value=successor, **ends,
                gamma=s.gamma, gae_lambda=self.gae_lambda,
            )  # fmt: skip
            to_go = advantage + value
        else:
            bootstrap = successor if self.truncated_return == "bootstrap" else None
            to_go = returns.reward_to_go(reward, **ends, gamma=s.gamma, bootstrap=bootstrap)
            if not isinstance(self.baseline, StateValue):
                value = self.baseline(rollout, to_go.clone())  # it may write into them
                if not isinstance(value, Tensor) or value.shape != to_go.shape:
                    is_tensor = isinstance(value, Tensor)
                    got = list(value.shape) if is_tensor else type(value).__name__
                    raise UsageError(
                        f"baseline: expected shape [T, N] = {list(to_go.shape)}, got {got}"
                    )
                is_ours = type(self.baseline) in STATISTICAL.values()  # no look, no wait for a GPU
                if not is_ours and not bool(value[valid].isfinite().all()):
                    raise UsageError("baseline: expected finite numbers, got NaN or infinity")
            advantage = to_go - value

        keep = returns.complete(**ends) if self.truncated_return == "drop" else valid
        to_go, advantage = torch.where(valid, to_go, 0.0), torch.where(keep, advantage, 0.0)
        weight = keep.to(reward.dtype)
        first = keep & (rollout.time == 0)
        first[0] |= keep[0]  # an episode that began in an earlier rollout counts from here
        number, episodes = sums_over_ranks(keep.sum(), first.sum())
        count = (episodes if s.average == "episodes" else number).clamp(min=1).to(reward.dtype)
        objective = sum_over_ranks((to_go * first).sum()) / count
        normalized = normalize(advantage, keep) if s.normalize_advantages else advantage
        if s.gamma_weight:
            weight = weight * s.gamma ** rollout.time.to(reward.dtype)
            number = sum_over_ranks((weight / count > 0).sum())  # gamma^t may be 0 in float32
        return Advantages(
            to_go, advantage, normalized, weight / count, objective, number=int(number)
        )


def normalize(x: Tensor, keep: Tensor) -> Tensor:
    """`(x - mean) / deviation` over the entries that are kept, 0 elsewhere.

    The mean and the deviation contain each entry, so this is biased: by (N - 1) / N for the mean.
    With fewer than two entries, or all of them equal up to rounding, there is no deviation to
    divide by: the entries are only centered, and a single one is left as it is.
    """
    wide = torch.where(keep, x, 0.0).double()  # the mean of equal float32 numbers is exact there
    total = wide.sum()
    centered = torch.where(keep, wide - total / keep.sum().clamp(min=1), 0.0)
    largest = wide.abs().max() if wide.numel() else total
    count, mean, square, largest = moments_over_ranks(
        keep.sum(), total, centered.square().sum(), largest
    )
    if not is_alone():
        centered = torch.where(keep, wide - mean, 0.0)
    divided = _divided(centered, square / (count - 1), largest)
    return torch.where(count < 2, wide, divided).to(x.dtype)


def normalize_rows(x: Tensor) -> Tensor:
    """`normalize` of each row of `[M, S]`, with all of S >= 2 entries, where there is one rank.

    The same bits as row by row, in a fraction of the calls.
    """
    wide = x.double()
    centered = wide - wide.mean(1, keepdim=True)
    square = centered.square().sum(1, keepdim=True)
    largest = wide.abs().amax(1, keepdim=True)
    return _divided(centered, square / (x.shape[1] - 1), largest).to(x.dtype)


def _divided(centered: Tensor, variance: Tensor, largest: Tensor) -> Tensor:
    deviation = variance.sqrt()
    is_rounding = deviation <= 1e-6 * largest
    return centered / torch.where(is_rounding, 1.0, deviation)


def variance_removed(returns: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    """1 - E[w^2 A^2] / E[w^2 G^2]: the share of the gradient's second moment a baseline took away.

    The score function's second moment is E[|score|^2 A^2]; the scores are the same with and
    without a baseline, so the ratio needs no further pass (exact where |score| and A are
    uncorrelated). Negative: the baseline does harm.

    Args:
        returns, advantage, weight: `[T, N]`.
    """
    before = (weight * returns).square().sum().double()
    after = (weight * advantage).square().sum().double()
    return torch.where(before > 0, 1.0 - after / before, math.nan)


def explained_variance(returns: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    """1 - Var(returns - baseline) / Var(returns), over steps of positive weight; nan for one value.

    Args:
        returns, advantage, weight: `[T, N]`; `advantage` is `returns` minus the baseline.
    """
    slots = rows(weight > 0)
    target, error = slots(returns), slots(advantage)
    if len(target) < 2:
        return target.new_tensor(math.nan)
    variance = torch.var(target).double()
    return torch.where(variance > 0, 1.0 - torch.var(error).double() / variance, math.nan)

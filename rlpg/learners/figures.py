"""What an update tells about itself: how noisy its gradient was, what its baseline was worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlpg.rollouts.rollout import rows


def signal_to_noise(per_group: Tensor, sizes: Sequence[int]) -> float:
    """|E g|^2 / tr Cov g, from K gradients that independent groups contributed to g = sum of them.

    With N environments in all, n_k and g_k of group k, and C an environment's covariance / N^2,

        E sum_k n_k |g_k / n_k - g / N|^2 = (K - 1) tr C,      Cov g = N C,

    and |g|^2 less that noise is unbiased for |E g|^2 (it may come out negative: all noise).
    At 1, the batch has the size McCandlish et al. 2018 (eq. 2.8) call critical.

    Args:
        per_group: `[K, P]`. With K = 1 there is nothing to compare: nan.
        sizes: `[K]`, the number of environments in each group.
    """
    if len(per_group) < 2:
        return math.nan
    size = torch.tensor(sizes, dtype=per_group.dtype, device=per_group.device).unsqueeze(1)
    gradient, num_envs = per_group.sum(dim=0), size.sum()
    spread = (size * (per_group / size - gradient / num_envs).square()).sum()
    noise = float(num_envs * spread) / (len(per_group) - 1)
    signal = float(gradient.square().sum()) - noise
    return signal / noise if noise > 0 else math.nan


def variance_removed(returns: Tensor, advantage: Tensor, weight: Tensor) -> float:
    """1 - E[w^2 A^2] / E[w^2 G^2]: the share of the gradient's second moment a baseline took away.

    The score function's second moment is E[|score|^2 A^2]; the scores are the same with and
    without a baseline, so the ratio needs no further pass (exact where |score| and A are
    uncorrelated). Negative: the baseline does harm.

    Args:
        returns, advantage, weight: `[T, N]`.
    """
    before = float((weight * returns).square().sum())
    after = float((weight * advantage).square().sum())
    return 1.0 - after / before if before > 0 else math.nan


def explained_variance(returns: Tensor, advantage: Tensor, weight: Tensor) -> float:
    """1 - Var(returns - baseline) / Var(returns), over steps of positive weight; nan for one value.

    Args:
        returns, advantage, weight: `[T, N]`; `advantage` is `returns` minus the baseline.
    """
    slots = rows(weight > 0)
    target, error = slots(returns), slots(advantage)
    if len(target) < 2:
        return math.nan
    variance = float(torch.var(target))
    return 1.0 - float(torch.var(error)) / variance if variance > 0 else math.nan

"""How noisy the gradient of an update was; nothing here changes the update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rlpg.distributed import num_ranks

FOUR_GROUPS = 2048  # samples from which on the noise of the gradient is told from four groups


def environment_groups(num_steps: int, num_envs: int) -> list[slice]:
    """Four groups of environments, or two where four would cost more in calls than in work."""
    num_groups = min(4 if num_steps * num_envs >= FOUR_GROUPS else 2, num_envs)
    bounds = [num_envs * k // num_groups for k in range(num_groups + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def signal_to_noise(
    per_group: Tensor, sizes: Sequence[int], gradient: Tensor | None = None
) -> Tensor:
    """|E g|^2 / tr Cov g, from K gradients that independent groups contributed to g = sum of them.

    With N environments in all, n_k and g_k of group k, and C an environment's covariance / N^2,

        E sum_k n_k |g_k / n_k - g / N|^2 = (K - 1) tr C,      Cov g = N C,

    and |g|^2 less that noise is unbiased for |E g|^2 (it may come out negative: all noise).
    At 1, the batch has the size McCandlish et al. 2018 (eq. 2.8) call critical.

    Args:
        per_group: `[K, P]`. With K = 1 there is nothing to compare: nan.
        sizes: `[K]`, the number of environments in each group; the same on all ranks.
        gradient: `[P]`, the sum of the groups of all ranks, whose noise is estimated from this
            rank's groups; None: the sum of these.
    """
    if len(per_group) < 2:
        return per_group.new_tensor(math.nan)
    size = torch.tensor(sizes, dtype=per_group.dtype, device=per_group.device).unsqueeze(1)
    own, num_envs = per_group.sum(dim=0), size.sum()
    spread = (size * (per_group / size - own / num_envs).square()).sum()
    noise = (num_envs * spread).double() / (len(per_group) - 1)
    if gradient is not None:
        own, noise = gradient, noise * num_ranks()
    signal = own.square().sum().double() - noise
    return torch.where(noise > 0, signal / noise, math.nan)

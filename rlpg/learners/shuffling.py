"""A random order of the samples of all ranks, of which each rank takes its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpg.distributed import gather_columns, is_alone, num_ranks, own_columns, sum_over_ranks
from rlpg.rollouts.rollout import rows


@dataclass(frozen=True)
class Places:
    """Where this rank's samples are among those of all ranks, laid as one process lays them."""

    number: int  # of samples of all ranks
    own: Tensor | None = None  # [S] int64; None when alone: 0, 1, ...


def places(
    keep: Tensor, number: int, groups: Callable[[int], Sequence[slice]], *, in_order: bool
) -> Places:
    """The places of this rank's steps `keep` `[T, n]`, which are a number of them, laid one group
    of environments after the other; or, in order, of the sequences of all environments."""
    num_steps, num_envs = keep.shape
    if in_order:
        number = num_envs * num_ranks()
        return Places(number, None if is_alone() else own_columns(torch.arange(number)))
    if is_alone():
        return Places(number)
    number = int(sum_over_ranks(torch.tensor(number)))
    whole = torch.ones(num_steps, num_envs * num_ranks(), dtype=torch.uint8)  # [T, N]
    if number < whole.numel():
        whole = gather_columns(keep.to("cpu", torch.uint8).T).T
    of_all = [whole[:, envs] for envs in groups(whole.shape[1])]
    laid = torch.cat([part.reshape(-1) for part in of_all])  # [T N]
    place = (laid.long().cumsum(0) - 1).split([part.numel() for part in of_all])
    grid = torch.cat([part.view(num_steps, -1) for part in place], 1)  # [T, N]
    own = own_columns(grid, 1).to(keep.device)  # [T, n]
    return Places(number, torch.cat([rows(keep[:, e])(own[:, e]) for e in groups(num_envs)]))


def shuffled(
    places: Places, bounds: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, list[int]]:
    """`[S]` this rank's samples in a random order of all, and where the bounds, which are in that
    order, cut them. The generator is in the same state on all ranks."""
    order = torch.randperm(places.number, generator=generator)
    if places.own is None:
        return order, list(bounds)
    sample = torch.full((places.number,), -1)
    sample[places.own.cpu()] = torch.arange(len(places.own))
    drawn = sample[order]
    is_own = drawn >= 0
    before = torch.cat([is_own.new_zeros(1, dtype=torch.int64), is_own.cumsum(0)])
    return drawn[is_own], before[torch.tensor(bounds)].tolist()

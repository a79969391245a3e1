"""A random order of the samples of all ranks, of which each rank takes its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpg.distributed import gather_columns, is_alone, num_ranks, own_columns, sum_over_ranks


@dataclass(frozen=True)
class Places:
    """Where this rank's samples are among those of all ranks, laid as one process lays them."""

    number: int  # of samples of all ranks
    own: Tensor | None = None  # [S] int64; None when alone: 0, 1, ...


def columns(num_envs: int) -> Places:
    """The places of sequences, one for each of a rank's environments."""
    number = num_envs * num_ranks()
    return Places(number, None if is_alone() else own_columns(torch.arange(number)))


def grid(keep: Tensor, widths: Sequence[int]) -> tuple[int, Tensor]:
    """The number of steps that are kept by all ranks, and `[T, n]` the place of each step.

    Args:
        keep: `[T, n]` bool, this rank's steps that are kept.
        widths: environments in each of the groups that are laid one after the other; all ranks'.
    """
    num_steps, num_envs = keep.shape
    number = int(sum_over_ranks(keep.sum()))
    whole = torch.ones(num_steps, num_envs * num_ranks(), dtype=torch.uint8)  # [T, N]
    if number < whole.numel():
        whole = gather_columns(keep.to("cpu", torch.uint8).T).T
    laid = torch.cat([part.reshape(-1) for part in whole.split(list(widths), 1)])  # [T N]
    place = (laid.long().cumsum(0) - 1).split([num_steps * width for width in widths])
    parts = [part.view(num_steps, -1) for part in place]  # [T, width]
    return number, own_columns(torch.cat(parts, 1), 1).to(keep.device)


def shuffled(
    places: Places, bounds: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, list[int]]:
    """`[S]` this rank's samples in a random order of all, and where the bounds of that order cut.

    Args:
        places: of this rank's samples.
        bounds: in the order of all samples, from 0 to their number.
        generator: in the same state on all ranks.
    """
    order = torch.randperm(places.number, generator=generator)
    if places.own is None:
        return order, list(bounds)
    sample = torch.full((places.number,), -1)
    sample[places.own.cpu()] = torch.arange(len(places.own))
    drawn = sample[order]
    is_own = drawn >= 0
    before = torch.cat([is_own.new_zeros(1, dtype=torch.int64), is_own.cumsum(0)])
    return drawn[is_own], before[torch.tensor(bounds)].tolist()

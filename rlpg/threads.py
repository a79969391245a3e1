"""How many CPU threads torch uses while we use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlpg.policies import Policy

LARGE = 2**15  # weights from which on a second thread shortens an update (by 40 % at 2^16)
MOST = 4


def threads_for(policy: Policy) -> int:
    """How many threads its networks learn fastest on: one for small ones, else up to four.

    Never more than torch would use by itself (the cores, or OMP_NUM_THREADS). Two threads gain
    nothing for two layers of 64, and lose much where another program wants the core.
    """
    weights = sum(parameter.numel() for parameter in policy.network.parameters())
    is_large = weights >= LARGE or bool(policy.observations.images)
    return min(torch.get_num_threads(), MOST) if is_large else 1


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Torch on `count` threads, and what it had before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

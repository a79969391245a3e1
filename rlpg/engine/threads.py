"""How many CPU threads torch uses while we use it, and how many cores there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path

import torch


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Torch on `count` threads, and what it had before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container (cgroup 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with suppress(OSError, ValueError):  # no quota: `max 100000`, or no such file
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores or 1, ceil(int(quota) / int(period)))
    return cores or 1

"""Where the networks compute: on which device, with how many CPU threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlpg.distributed import gather, local_ranks
from rlpg.errors import UsageError


def device_of(said: str) -> torch.device:
    """The device of the setting: `cpu`, `cuda`, or `auto`, which is cuda where there is one.

    Of the processes that torchrun has started on a machine, each takes a GPU of its own.

    Raises:
        UsageError: there is no GPU, or there are fewer than processes.
    """
    own, processes = local_ranks()
    count = torch.cuda.device_count() if said != "cpu" and torch.cuda.is_available() else 0
    if said == "cuda" and count == 0:
        raise UsageError(
            "device: expected a GPU that torch can use for cuda, got none; set device to cpu or "
            "auto, or install a torch with CUDA"
        )
    if 0 < count < processes:
        raise UsageError(
            f"device: expected a GPU for each of the {processes} processes on this machine, got "
            f"{count}; start fewer processes, or set device to cpu"
        )
    return torch.device("cuda", own) if count else torch.device("cpu")


def require_one_kind(device: torch.device) -> None:
    """UsageError where processes compute on different kinds of devices; call it on all of them."""
    if len(kinds := sorted(set(gather(device.type)))) > 1:
        raise UsageError(
            f"device: expected one kind for the processes on all machines, got "
            f"{' and '.join(kinds)}; set device to cpu"
        )


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Torch on `count` threads, and what it had before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

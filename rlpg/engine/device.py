"""Where the networks compute: on which device, with how many threads, in which of torch's modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from rlpg.distributed import gather, local_ranks
from rlpg.errors import UsageError


def device_of(said: str) -> torch.device:
    """The device of the setting: `cpu`, `cuda`, or `auto`, which is cuda where there is one.

    Of the processes that torchrun has started on a machine, each takes a GPU of its own; UsageError
    where there is none, or there are fewer than processes.
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
            f"device: expected one kind on all machines, got {' and '.join(kinds)}; set it to cpu"
        )


@contextmanager
def fresh_torch(count: int) -> Iterator[None]:
    """Torch on `count` threads and in `usual_modes`, and what it had before afterwards."""
    with usual_modes() as modes:
        modes.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(count)
        yield


@contextmanager
def usual_modes() -> Iterator[ExitStack]:
    """Torch as a new process has it, and as the caller has set it afterwards: float32, tensors on
    the CPU where no device is named, gradients. The caller's modes are not the run's: its workers,
    and the process that resumes it, know nothing of them."""
    with ExitStack() as modes:
        modes.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # else torch would ask at every call
            modes.enter_context(torch.device("cpu"))
        yield modes

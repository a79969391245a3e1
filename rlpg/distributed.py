"""Several processes that train one policy: who they are, and sums over them.

`torchrun` starts them; each is a rank. The numbers that a rank gets from here are those that the
others get, too, so whoever decides by such numbers alone decides like the others.
A process that is alone gets its own numbers back, and torch.distributed is not imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from rlpg.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(hours=1)  # for a rank that is silent; one that is dead is noticed at once
MEETING = timedelta(minutes=10)  # for all ranks to be there


def is_alone() -> bool:
    """Whether no process group has been initialized."""
    module = sys.modules.get("torch.distributed")
    return module is None or not module.is_available() or not module.is_initialized()


def rank() -> int:
    """Which of the processes this is; 0 when alone. Rank 0 writes."""
    return 0 if is_alone() else int(_group().get_rank())


def num_ranks() -> int:
    return 1 if is_alone() else int(_group().get_world_size())


def is_started_by_torchrun() -> bool:
    """Whether this process is to be one of several."""
    return all(name in os.environ for name in OF_TORCHRUN) and os.environ["WORLD_SIZE"] != "1"


def is_first() -> bool:
    """Whether this process is alone or rank 0, also before and after it is joined to the others."""
    return not is_started_by_torchrun() or os.environ["RANK"] == "0"


def local_ranks() -> tuple[int, int]:
    """Which of the processes on this machine this is, and how many there are."""
    if not is_started_by_torchrun():
        return 0, 1
    told = os.environ.get
    return int(told("LOCAL_RANK", 0)), int(told("LOCAL_WORLD_SIZE", 1))


def restarts() -> tuple[int, int]:
    """How often torchrun has started the processes again, and how often it would at most."""
    told = os.environ.get
    return int(told("TORCHELASTIC_RESTART_COUNT", 0)), int(told("TORCHELASTIC_MAX_RESTARTS", 0))


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the ranks that torchrun has started; nothing where it has not, or they are joined.

    Raises:
        UsageError: this build of torch cannot do it.
    """
    if not is_started_by_torchrun() or not is_alone():
        yield
        return
    import torch
    import torch.distributed as group

    if not (group.is_available() and group.is_gloo_available()):
        raise UsageError("torchrun: expected a torch with gloo; install another build of torch")
    backend = "gloo"
    if torch.cuda.is_available() and group.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with _lost():
        store, _, _ = next(_group().rendezvous("env://", number, size, timeout=MEETING))
        fresh = _fresh(store, number, size)
        group.init_process_group(
            backend, store=fresh, rank=number, world_size=size, timeout=TIMEOUT
        )
    threading.Thread(target=_outlive_no_parent, args=(os.getppid(),), daemon=True).start()
    try:
        yield
    finally:
        group.destroy_process_group()


def _fresh(store: Any, number: int, size: int) -> Any:
    """The store under a name that ranks of an earlier attempt have not used.

    torchrun keeps one store for all attempts, with the addresses of ranks that are dead: the ranks
    of this attempt greet the first one, which gives each that answers the same new name.
    """
    own = uuid.uuid4().hex
    if number > 0:
        store.set(f"rlpg/greeting/{number}", own)
        name = store.get(f"rlpg/name/{own}").decode()  # waits until it is there
        store.set(f"rlpg/known/{name}/{number}", "")
        return _group().PrefixStore(name, store)
    deadline, waiting = time.monotonic() + MEETING.total_seconds(), set(range(1, size))
    while waiting:
        for other in list(waiting):
            if store.check([greeting := f"rlpg/greeting/{other}"]):
                store.set(f"rlpg/name/{store.get(greeting).decode()}", own)
            if store.check([f"rlpg/known/{own}/{other}"]):
                waiting.remove(other)
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing from rank {min(waiting)}")
        time.sleep(0.01)
    return _group().PrefixStore(own, store)


def _outlive_no_parent(parent: int) -> None:
    """Save and end where torchrun has been killed: nobody would end the ranks."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def share(name: str, number: int) -> int:
    """A rank's part of a number that is the sum over all ranks.

    Raises:
        UsageError: it does not divide.
    """
    part, rest = divmod(number, num_ranks())
    if rest or not part:
        raise UsageError(
            f"{name}: expected a multiple of the {num_ranks()} processes, got {number}"
        )
    return part


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, the same on each; the tensor itself when alone."""
    return _reduced(values, "SUM")


def max_over_ranks(values: Tensor) -> Tensor:
    """The largest of each entry over all ranks; the tensor itself when alone."""
    return _reduced(values, "MAX")


def sums_over_ranks(*values: Tensor) -> tuple[Tensor, ...]:
    """`sum_over_ranks` of several scalars or vectors in one message; float64 unless alone."""
    if is_alone():
        return values
    import torch

    place = values[-1].device
    flat = torch.cat([value.detach().to(place, torch.float64).reshape(-1) for value in values])
    parts = sum_over_ranks(flat).split([value.numel() for value in values])
    return tuple(part.view(value.shape) for part, value in zip(parts, values, strict=True))


def moments_over_ranks(
    count: Tensor, total: Tensor, m2: Tensor, largest: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count, mean, sum of squared deviations and largest of all ranks, in one message.

    Args:
        count, total, m2, largest: scalars of this rank; `m2` are squares around its own mean.

    Source: Chan, Golub & LeVeque 1979, for the sum of squares.
    """
    if is_alone():
        return count, total / count.clamp(min=1), m2, largest
    import torch

    own = torch.stack([part.detach().to(total.device).double() for part in (count, total, m2)])
    rows = gather_columns(torch.cat([own, largest.detach().double().reshape(1)])[None])  # [k, 4]
    counts, totals, squares, maxima = rows.unbind(1)
    number = counts.sum()
    mean = totals.sum() / number.clamp(min=1)
    between = counts * (totals / counts.clamp(min=1) - mean).square()
    return number, mean, (squares + between).sum(), maxima.max()


def means_over_ranks(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics of which each rank has its own, as their means, in one message."""
    if is_alone():
        return metrics
    import torch

    total = sum_over_ranks(torch.tensor(list(metrics.values()), dtype=torch.float64))
    return dict(zip(metrics, (total / num_ranks()).tolist(), strict=True))


def _reduced(values: Tensor, operation: str) -> Tensor:
    if is_alone():
        return values
    import torch

    # A tensor that inference_mode has made may not be written to outside of it.
    total = values.detach().clone(memory_format=torch.contiguous_format)
    with _lost():
        _group().all_reduce(total, getattr(_group().ReduceOp, operation))
    return total


def gather_columns(values: Tensor) -> Tensor:
    """Per-environment values of all ranks, in the order of the environments."""
    if is_alone():
        return values
    import torch

    own = values.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(num_ranks())]
    with _lost():
        _group().all_gather(parts, own)
    return torch.cat(parts)


def own_columns(values: Tensor, dim: int = 0) -> Tensor:
    """This rank's part of what `gather_columns` gave."""
    return values if is_alone() else values.tensor_split(num_ranks(), dim)[rank()]


def gather(value: T) -> list[T]:
    """The value of each rank, in their order."""
    if is_alone():
        return [value]
    values: list[Any] = [None] * num_ranks()
    with _lost():
        _group().all_gather_object(values, value)
    return values


def from_first(make: Callable[[], T]) -> T:
    """What rank 0 has made, for all; what it raises instead ends the others, without a word.

    Raises:
        SystemExit: rank 0 has raised.
    """
    if is_alone():
        return make()
    told: list[Any] = [False, None]
    try:
        if rank() == 0:
            told = [True, make()]
    finally:
        with _lost():
            _group().broadcast_object_list(told, src=0)
    if not told[0]:
        raise SystemExit(1)
    return told[1]  # type: ignore[no-any-return]


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"rank {os.environ.get('RANK', '?')}: expected the other processes to answer, got: "
            f"{reason:.200}; one of them has ended, see what it says"
        ) from error


def _group() -> Any:
    import torch.distributed

    return torch.distributed

"""Several processes that train one policy: who they are, and sums over them.

A process that is alone gets its own numbers back, and torch.distributed is not imported.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def is_alone() -> bool:
    """Whether no process group has been initialized."""
    module = sys.modules.get("torch.distributed")
    return module is None or not module.is_available() or not module.is_initialized()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, the same on each; the tensor itself when alone."""
    if is_alone():
        return values
    import torch.distributed as group

    total = values.clone()
    group.all_reduce(total)
    return total

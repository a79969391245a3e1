"""Large networks learn on several threads, small ones on one."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlpg.policies import Policy
from rlpg.threads import MOST, cpu_threads, threads_for

VECTOR = spaces.Box(-1, 1, (4,), np.float32)


@pytest.mark.parametrize(
    ("space", "hidden", "expected"),
    [
        (VECTOR, (64, 64), 1),
        (VECTOR, (256, 256), MOST),
        (spaces.Box(0, 255, (8, 8), np.uint8), (16,), MOST),
    ],
)
def test_by_size(space: spaces.Space[Any], hidden: tuple[int, ...], expected: int) -> None:
    policy = Policy.create(
        space, spaces.Discrete(2), hidden=hidden, generator=torch.Generator().manual_seed(0)
    )
    for available in (1, 8):  # what torch has by itself is not exceeded
        with cpu_threads(available):
            assert threads_for(policy) == min(expected, available)

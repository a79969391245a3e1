"""Adam on a flat gradient, and the gradient that is flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_MEAN_DECAY, _SQUARE_DECAY, _EPS = 0.9, 0.999, 1e-8


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1) for some parameters, given their gradient as `[P]`.

    The step of `torch.optim.Adam` to rounding, which a test compares. That one loads half of a
    compiler with its first step (a second and 77 MB), and each of its steps takes several times as
    long as this one: for a small network, as long as the gradient itself.

    Args:
        parameters: changed in place; P numbers in all.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in parameters]
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self._mean, self._square = torch.zeros_like(flat), torch.zeros_like(flat)  # [P]
        self._count = 0

    @torch.no_grad()
    def step(self, gradient: Tensor, learning_rate: float) -> None:
        """Against the gradient `[P]` of a loss."""
        self._count += 1
        self._mean.lerp_(gradient, 1 - _MEAN_DECAY)
        self._square.lerp_(gradient.square(), 1 - _SQUARE_DECAY)
        # Both averages began at 0; dividing by the weight of what they have seen makes up for it.
        deviation = (self._square / (1 - _SQUARE_DECAY**self._count)).sqrt_().add_(_EPS)
        direction = self._mean / deviation
        length = learning_rate / (1 - _MEAN_DECAY**self._count)
        for parameter, part in zip(self._parameters, direction.split(self._sizes), strict=True):
            parameter.sub_(part.view_as(parameter), alpha=length)

    def state_dict(self) -> dict[str, Any]:
        """The moments so far."""
        return {"count": self._count, "mean": self._mean.clone(), "square": self._square.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._count = int(state["count"])
        self._mean.copy_(state["mean"])
        self._square.copy_(state["square"])


def flat_gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """`[P]`: the gradient of a scalar, its parts one after the other."""
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters)])

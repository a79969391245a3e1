"""`Optimizer`: gradient ascent by Adam on one flat parameter vector, for policies and critics.

The one minus sign, the norm clip and the check that a gradient is finite are here. A CPU reads its
numbers as they come; elsewhere steps wait for nothing, and `read` waits once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from rlpg.distributed import sum_over_ranks
from rlpg.errors import NumericalFault, UsageError
from rlpg.gradients.parameters import leaves_of

_BETAS, _EPS = (0.9, 0.999), 1e-8
Number = float | Tensor
"""A number that is known, or a scalar on a device."""


class Optimizer:
    """Adam (Kingma & Ba 2015, algorithm 1) for some parameters, P numbers in all.

    The parameters become views of one flat vector `[P]`, so that a step is one call whatever their
    number. `torch.optim.Adam` takes the same step, but its first step imports torch's compiler (a
    second and 77 MB), and every step takes several times as long.

    Args:
        parameters: by name; those that require a gradient are changed in place.
        learning_rate: Adam's.
        max_grad_norm: longer gradients are shortened to this norm; None: never.
        owner: whose parameters they are, for messages.

    Raises:
        UsageError: there is nothing to optimize, or the parameters have no shape yet, or differ in
            dtype or device.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        learning_rate: float,
        max_grad_norm: float | None = None,
        owner: str = "policy",
    ) -> None:
        named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        if not named:
            raise UsageError(
                f"{owner}: expected parameters that require a gradient, got none; a policy from "
                "rlpg.load is frozen until policy.requires_grad_(True)"
            )
        lazy = [name for name, parameter in named if isinstance(parameter, UninitializedParameter)]
        if lazy:
            raise UsageError(
                f"{owner}: expected parameters that have a shape, got {lazy[0]} of a lazy layer"
            )
        self._names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        kinds = {(p.dtype, p.device) for p in self.parameters}
        if len(kinds) > 1 or self.parameters[0].dtype not in (torch.float32, torch.float64):
            raise UsageError(
                f"{owner}: expected parameters in float32, or all in float64, on one device, got "
                f"{', '.join(sorted(f'{dtype} on {device}' for dtype, device in kinds))}"
            )
        self.learning_rate, self.max_grad_norm = learning_rate, max_grad_norm
        self._owner = owner
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self._flatten()
        self._mean, self._square = torch.zeros_like(self._flat), torch.zeros_like(self._flat)  # [P]
        self._count = torch.zeros((), device=self._flat.device)  # steps so far
        self._lost = torch.zeros_like(self._count, dtype=torch.float64)  # steps that `read` tells

    def refuse_others(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Raises UsageError where not the same parameters require a gradient as at first."""
        names = {name for name, parameter in parameters if parameter.requires_grad}
        if others := sorted(names.symmetric_difference(self._names)):
            raise UsageError(
                f"{self._owner}: expected the parameters to require a gradient that did when the "
                f"learner was made, got a change of {others[0]}; make another learner"
            )

    def gradient(self, objective: Tensor) -> Tensor:
        """`[P]`: the gradient of a scalar, summed over ranks; unused parameters count 0."""
        return sum_over_ranks(self.own_gradient(objective))

    def own_gradient(
        self, objective: Tensor, *, create_graph: bool = False, retain_graph: bool = False
    ) -> Tensor:
        """`[P]`: `gradient` of this rank alone; options as of `torch.autograd.grad`."""
        parts = torch.autograd.grad(
            objective,
            self.parameters,
            create_graph=create_graph,
            retain_graph=create_graph or retain_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        flat: Tensor = torch._utils._flatten_dense_tensors(parts)  # in one call; none is sparse
        return flat

    def step(self, gradient: Tensor, lr_scale: float = 1.0) -> Number:
        """One step up the gradient `[P]` of what is maximized; the gradient's norm.

        Elsewhere than on a CPU the norm is a scalar that has not been waited for, and `read` raises
        for a gradient that is not finite.

        Raises:
            UsageError: it is not `[P]`, or has another dtype than the parameters.
            NumericalFault: the gradient is not finite; nothing is changed.
        """
        if gradient.shape != self._flat.shape or gradient.dtype != self._flat.dtype:
            raise UsageError(
                f"{self._owner}: expected a gradient [P] = {list(self._flat.shape)} in "
                f"{self._flat.dtype}, got {list(gradient.shape)} in {gradient.dtype}"
            )
        if gradient.device.type != "cpu":
            return self._step_unread(gradient, self.learning_rate * lr_scale)
        norm = self.norm(gradient)
        length = norm if self.max_grad_norm is None else min(norm, self.max_grad_norm)
        if not length * length < torch.finfo(gradient.dtype).max:
            # Adam would never recover from a second moment that is not finite.
            raise NumericalFault(self._fault(self._culprit(gradient)))
        if length < norm:
            gradient = gradient * (length / norm)
        self._ascend(gradient, self.learning_rate * lr_scale)
        return norm

    def _step_unread(self, gradient: Tensor, learning_rate: float) -> Tensor:
        """`step`, whose numbers stay where they are."""
        norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.float64)
        length = norm if self.max_grad_norm is None else norm.clamp(max=self.max_grad_norm)
        is_lost = ~(norm.isfinite() & (length.square() < torch.finfo(gradient.dtype).max))
        gradient = gradient * torch.where(length < norm, length / norm, 1.0)
        self._ascend(gradient, learning_rate, is_lost.float())
        self._lost += is_lost
        return norm

    def read(self, values: Mapping[str, Number]) -> dict[str, float]:
        """The values as numbers; those on the device are waited for once.

        Raises:
            NumericalFault: a gradient since the last call was not finite; its step was not taken.
        """
        there = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        for name, value in values.items():
            if isinstance(value, Tensor) and value.numel() != 1:
                raise UsageError(f"{name}: expected one number, got shape {list(value.shape)}")
            if not isinstance(value, Tensor | Real):
                raise UsageError(f"{name}: expected one number, got {type(value).__name__}")
        scalars = [value.detach().to(self._lost).reshape(()) for value in there.values()]
        lost, *found = torch.stack([self._lost, *scalars]).tolist()
        if lost:
            self._lost.zero_()
            raise NumericalFault(self._fault("one of its parameters"))
        return {**values, **dict(zip(there, found, strict=True))}

    def norm(self, gradient: Tensor) -> float:
        """Euclidean norm of a gradient `[P]`; NumericalFault if it is not finite."""
        norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        if not math.isfinite(norm):
            raise NumericalFault(self._fault(self._culprit(gradient)))
        return norm

    @torch.no_grad()
    def move_to(self, values: Tensor) -> None:
        """Set the parameters to the flat vector `[P]`."""
        self._rebind()
        self._flat.copy_(values)

    def flat(self) -> Tensor:
        """A copy of the parameters, `[P]`."""
        self._rebind()
        return self._flat.clone()

    @torch.no_grad()
    def _ascend(
        self, gradient: Tensor, learning_rate: float, is_lost: Tensor | None = None
    ) -> None:
        self._rebind()
        self._count += 1 if is_lost is None else 1 - is_lost
        torch._fused_adam_(
            [self._flat], [gradient], [self._mean], [self._square], [], [self._count],
            lr=-learning_rate, beta1=_BETAS[0], beta2=_BETAS[1], weight_decay=0.0, eps=_EPS,
            amsgrad=False, maximize=False,  # which would keep the moments of -gradient
            found_inf=is_lost,
        )  # fmt: skip

    @torch.no_grad()
    def _flatten(self) -> None:
        self._flat = torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])
        nn.utils.vector_to_parameters(self._flat, self.parameters)
        self._places = [parameter.data_ptr() for parameter in self.parameters]

    def _rebind(self) -> None:
        """Make views again of parameters that were given other memory: by another learner."""
        if [parameter.data_ptr() for parameter in self.parameters] != self._places:
            self._flatten()

    def _culprit(self, gradient: Tensor) -> str:
        """The first parameter whose gradient is not finite."""
        sizes = [float(part.square().sum()) for part in gradient.split(self._sizes)]
        pairs = zip(self._names, sizes, strict=True)
        return next((name for name, size in pairs if not size < math.inf), "all")

    def _fault(self, bad: str) -> str:
        return (
            f"{self._owner}: expected a finite gradient, got NaN, infinity or more than can be "
            f"squared in {bad} after {int(self._count)} steps; look at the rewards, lower the "
            "learning rate, or set max_grad_norm"
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": int(self._count),
            "mean": self._mean.clone(),
            "square": self._square.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._count.fill_(int(state["count"]))
        self._mean.copy_(state["mean"])
        self._square.copy_(state["square"])


def refuse_unregistered(output: Tensor, parameters: Iterable[Tensor], name: str) -> None:
    """Raise UsageError where the output has a gradient for a tensor that is not a parameter."""
    known = {id(parameter) for parameter in parameters}
    for leaf in leaves_of(output):
        if id(leaf) not in known:
            raise UsageError(
                f"{name}: expected every tensor that learns among its parameters(), got one of "
                f"shape {list(leaf.shape)} that is not; keep layers in nn.ModuleList and tensors "
                "in nn.Parameter, or call requires_grad_(False)"
            )

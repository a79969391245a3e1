"""Heads for Box actions: Normal with clipping, Normal through tanh, Beta.

Every dimension with two finite bounds is mapped affinely, so that a head works in units in which
[-1, 1] is [low, high] (for "beta": (0, 1)). One with a single bound begins at the bound, so that
not every first action is clipped to it; the others pass as they are. For an integer Box the
interval reaches half a unit beyond the bounds before it is rounded: each integer has an equal cell.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Beta, Distribution, Normal

from rlpg.errors import SpaceError
from rlpg.policies.distributions import DiagonalNormal, SquashedNormal
from rlpg.policies.heads import Array, Head, independent

_LARGEST_WIDTH = 1e15  # bounds further apart mean "unbounded"; float32 could not map them
_BETA_LEAST = 1.001  # concentrations stay above 1, so that the mode is in the interior
_UNIT_EPS = 2.0**-24


class BoxHead(Head):
    """What the heads of a Box share: its bounds, and the map from and to [-1, 1]."""

    is_discrete = False

    def __init__(self, space: spaces.Box[Any]) -> None:
        super().__init__()
        self.space = space
        self.action_shape, self.action_dtype = tuple(space.shape), torch.float32
        self._size = math.prod(self.action_shape)
        self._dtype, self._is_integer = space.dtype, space.dtype.kind != "f"
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        cell = 0.5 if self._is_integer else 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            is_bounded = space.bounded_below & space.bounded_above & np.isfinite(high - low)
            is_bounded &= high - low < _LARGEST_WIDTH
            has_low = space.bounded_below & (np.abs(low) < _LARGEST_WIDTH)
            has_high = space.bounded_above & (np.abs(high) < _LARGEST_WIDTH)
            only_low, only_high = has_low & ~has_high, has_high & ~has_low
            self._center = np.select(  # [*A]
                [is_bounded, only_low, only_high], [(low + high) / 2, low, high]
            )
            self._half_width = np.where(is_bounded, (high - low) / 2 + cell, 1.0)  # [*A]
        self._is_bounded = bool(is_bounded.all() and (self._half_width > 0).all())
        if self._is_integer:  # bounds as floats that the integer type can hold
            self._low = _inward(space.low, low, np.inf)
            self._high = _inward(space.high, high, -np.inf)
        else:
            self._low, self._high = space.low, space.high
            if self._dtype.itemsize <= 4:  # float64 arithmetic would only be cast back
                self._center = self._center.astype(np.float32)
                self._half_width = self._half_width.astype(np.float32)

    def _require_bounds(self, gaussian: str, name: str) -> None:
        """Raise SpaceError unless every dimension is a bounded interval."""
        if not self._is_bounded:
            raise SpaceError(
                f'{name}: expected finite bounds low < high for gaussian="{gaussian}", got '
                f'{self._low.min():g} to {self._high.max():g}; use gaussian="clipped"'
            )

    @abstractmethod
    def _unit(self, action: Any, tanh: Callable[[Any], Any]) -> Any:
        """An action in units of [-1, 1], in NumPy or torch, whose tanh it gets."""

    def to_env(self, action: Array) -> Array:
        scaled = self._unit(action, np.tanh) * self._half_width + self._center
        # Casting a float can leave the bounds by its rounding, so it comes before the clipping.
        scaled = np.rint(scaled) if self._is_integer else scaled.astype(self._dtype, copy=False)
        inside: Array = np.minimum(np.maximum(scaled, self._low), self._high)
        return inside.astype(self._dtype, copy=False)

    def to_env_on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        parts = (self._half_width, self._center, self._low, self._high)
        half_width, center, low, high = (torch.as_tensor(part, device=device) for part in parts)
        dtype = torch.from_numpy(np.empty(0, self._dtype)).dtype

        def to_env(action: Tensor) -> Tensor:
            scaled = self._unit(action, torch.tanh) * half_width + center
            if not self._is_integer:
                return torch.clamp(scaled, low, high)
            return torch.clamp(torch.round(scaled), low, high).to(dtype)

        return to_env


def _inward(exact: Array, rounded: Array, toward: float) -> Array:
    """Bounds as float64 that do not leave the integer bounds by rounding (2^63 - 1 would)."""
    off = rounded.astype(object) > exact if toward < 0 else rounded.astype(object) < exact
    return np.where(off.astype(bool), np.nextafter(rounded, toward), rounded)


class GaussianHead(BoxHead):
    """A Normal per dimension, clipped for the environment or squashed by tanh.

    The mean is an output of the network; the log standard deviation is a parameter of the head,
    or outputs of the network, in the head's units, kept above its floor smoothly:

        log_std = floor + softplus(raw - floor)

    so that it cannot collapse, and its gradient is never 0: it can always come back.

    "clipped": the action is the draw, its log-prob that of the draw; bounds concern only `to_env`.
    "squashed": the action is the draw u before tanh, its log-prob the exact log density of the
    environment's action, in the environment's units.
    """

    def __init__(
        self,
        space: spaces.Box[Any],
        *,
        name: str,
        is_squashed: bool,
        is_dependent: bool,
        log_std_init: float,
        log_std_floor: float,
    ) -> None:
        super().__init__(space)
        self.num_outputs = 2 * self._size if is_dependent else self._size
        self._is_squashed, self._floor = is_squashed, log_std_floor
        if is_squashed:
            self._require_bounds("squashed", name)
            half_width = torch.as_tensor(self._half_width, dtype=torch.float32)
            self.register_buffer("_width", half_width, persistent=False)
        above = log_std_init - log_std_floor
        self._raw_init = log_std_floor + above + math.log(-math.expm1(-above))  # softplus^-1
        raw = torch.full(self.action_shape, self._raw_init)
        self.raw_log_std = None if is_dependent else nn.Parameter(raw)

    _width: Tensor  # [*A], half of the squashed action's interval

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation, `[..., *A]` and broadcastable to it."""
        if self.raw_log_std is None:
            mean, deviation = _halves(outputs, self.action_shape)
            raw = deviation + self._raw_init
        else:
            mean, raw = _shaped(outputs, self.action_shape), self.raw_log_std
        return mean, self._log_std(raw)

    def _log_std(self, raw: Tensor) -> Tensor:
        return F.softplus(raw - self._floor) + self._floor

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        mean, log_std = self.moments(outputs)
        rank = len(self.action_shape)
        if not self._is_squashed and rank > 0:
            return DiagonalNormal(mean, log_std, rank)
        std = log_std.exp().expand_as(mean)
        law: Distribution = Normal(mean, std, validate_args=False)
        if self._is_squashed:
            law = SquashedNormal(mean, std, self._width.expand_as(mean))
        return independent(law, rank)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        if self.raw_log_std is None:
            return None
        std = self._log_std(self.raw_log_std.detach()).exp().reshape(self._size)
        return std.to(generator.device) * _normal((*shape, self._size), generator)

    def draw(
        self, outputs: Tensor, generator: torch.Generator, mask: Tensor | None = None
    ) -> Tensor:
        if self.raw_log_std is not None:
            return super().draw(outputs, generator, mask)
        mean, log_std = self.moments(outputs)
        noise = _normal(mean.shape, generator).to(mean.device)
        return torch.addcmul(mean, log_std.exp(), noise).detach()

    def mode(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.moments(outputs)[0].detach()

    def mode_array(self, outputs: Array) -> Array:
        mean = outputs[..., : self._size]
        return mean.reshape((*outputs.shape[:-1], *self.action_shape))

    def _unit(self, action: Any, tanh: Callable[[Any], Any]) -> Any:
        return tanh(action) if self._is_squashed else action


class BetaHead(BoxHead):
    """A Beta per dimension (Chou, Maturana and Scherer 2017): no mass is lost at the bounds.

    `alpha, beta = 1.001 + softplus(outputs)`, both above 1: one mode, in the interior. The action
    is x in (0, 1) and log-probs are densities in x; in the environment's units, subtract
    `log(high - low)` per dimension.
    """

    def __init__(self, space: spaces.Box[Any], *, name: str) -> None:
        super().__init__(space)
        self.num_outputs = 2 * self._size
        self._require_bounds("beta", name)

    def _concentrations(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and beta, `[..., *A]` each."""
        return _halves(F.softplus(outputs) + _BETA_LEAST, self.action_shape)

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        alpha, beta = self._concentrations(outputs)
        return independent(Beta(alpha, beta, validate_args=False), len(self.action_shape))

    def draw(
        self, outputs: Tensor, generator: torch.Generator, mask: Tensor | None = None
    ) -> Tensor:
        # torch's Beta takes no generator; Gamma(a) / (Gamma(a) + Gamma(b)) is its definition.
        concentrations = (F.softplus(outputs.detach()) + _BETA_LEAST).to(generator.device)
        gammas = torch._standard_gamma(concentrations, generator=generator).to(outputs.device)
        first, second = _halves(gammas, self.action_shape)
        return (first / (first + second)).clamp(_UNIT_EPS, 1.0 - _UNIT_EPS)

    def mode(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        alpha, beta = self._concentrations(outputs.detach())
        return (alpha - 1.0) / (alpha + beta - 2.0)

    def _unit(self, action: Any, tanh: Callable[[Any], Any]) -> Any:
        return 2.0 * action - 1.0


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _shaped(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[..., *A]` from `[..., size]`."""
    return flat if len(shape) == 1 else flat.reshape((*flat.shape[:-1], *shape))


def _halves(flat: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two tensors `[..., *A]` from `[..., 2 * size]`."""
    first, second = flat.chunk(2, -1)
    return _shaped(first, shape), _shaped(second, shape)

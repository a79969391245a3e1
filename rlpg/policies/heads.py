"""Heads: what a network says, as a distribution over the actions of a space that counts.

`boxes.py` has the heads of Box, `actions.py` that of Dict and Tuple and the choice among all; no
other module inspects an action space. Inside rlpg an action is one tensor in its head's own units;
`to_env` translates.

| space         | action `[..., *A]`           | distribution                                 |
|---------------|------------------------------|----------------------------------------------|
| Discrete      | int64 `[...]` from 0         | Categorical, or Bernoulli for two on request |
| MultiDiscrete | int64 `[..., *shape]` from 0 | independent Categoricals                     |
| MultiBinary   | float32 `[..., *shape]`      | independent Bernoullis                       |
| Box           | float32 `[..., *shape]`      | independent Normal, SquashedNormal or Beta   |
| Dict, Tuple   | float32 `[..., D]`           | Product of the leaves, in gymnasium's order  |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution

from rlpg.errors import SpaceError
from rlpg.policies.distributions import MASKED, Choice, IntegerBernoulli, Joint, masked_logits
from rlpg.policies.spaces import Space

Array = np.ndarray[Any, Any]


class Head(nn.Module, ABC):
    """The last step of a policy.

    Attributes:
        space: the action space.
        num_outputs: how many numbers the network must give.
        num_mask: M, how many entries an action mask has; 0 where nothing can be masked.
        is_discrete: whether an action is a choice among finitely many, in every part of it.
        action_shape, action_dtype: of an action inside rlpg, without batch.
    """

    space: Space
    num_outputs: int
    num_mask: int = 0
    is_discrete: bool = True
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype

    @abstractmethod
    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        """The distribution, with batch shape `[...]`.

        Args:
            outputs: `[..., num_outputs]`.
            mask: `[..., num_mask]` bool, true where an action is allowed; probability of the
                others is exactly 0. A choice of which nothing is allowed ignores its mask.
        """

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        """`[*shape, num_outputs]` such that `mode(outputs + noise)` has the law of `forward`.

        Gumbel noise for a choice, logistic for a coin, normal for a Normal: what is random can be
        drawn before the outputs are known. It is on the generator's device; None where there is
        no such noise.
        """
        return None

    def draw(
        self, outputs: Tensor, generator: torch.Generator, mask: Tensor | None = None
    ) -> Tensor:
        """Actions `[..., *A]` with the law of `forward`, without its objects; no gradient."""
        noise = self.noise(outputs.shape[:-1], generator)
        assert noise is not None, "a head without noise has a draw of its own"
        return self.mode(outputs + noise.to(outputs.device), mask)

    @abstractmethod
    def mode(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """The deterministic actions `[..., *A]`: the most likely category, the center of a Normal
        (squashed: of u, so that it is the median of the action), the mode of a Beta."""

    def mode_array(self, outputs: Array) -> Array:
        """`mode` without a mask for numpy arrays."""
        array: Array = self.mode(torch.from_numpy(outputs)).numpy()
        return array

    @abstractmethod
    def to_env(self, action: Array) -> Any:
        """What a vector environment takes for actions `[B, *A]`: always inside the space."""

    def to_env_on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """`to_env` for tensors `[..., *A]` on a device: a function that never leaves it.

        Raises:
            SpaceError: actions of this kind cannot be given to an environment as one tensor.
        """
        raise SpaceError(f"action: expected no Dict and no Tuple, got {self.space}")


class CategoricalHead(Head):
    """Discrete: one logit per action."""

    def __init__(self, space: spaces.Discrete[Any] | spaces.MultiDiscrete[Any]) -> None:
        super().__init__()
        self.space = space
        sizes = space.n if isinstance(space, spaces.Discrete) else space.nvec.astype(np.int64)
        self.num_outputs = self.num_mask = int(np.sum(sizes))
        self.action_shape, self.action_dtype = tuple(space.shape or ()), torch.int64
        self._start, self._dtype = np.asarray(space.start, np.int64), np.dtype(space.dtype)
        self._is_shifted = bool(self._start.any())

    def _logits(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        """`[..., *A, K]`."""
        return masked_logits(outputs, mask)

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        return independent(Choice(self._logits(outputs, mask)), len(self.action_shape))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return _gumbel((*shape, self.num_outputs), generator)

    def mode(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._logits(outputs, mask).argmax(-1)

    def mode_array(self, outputs: Array) -> Array:
        best: Array = outputs.argmax(-1)
        return best

    def to_env(self, action: Array) -> Array:
        shifted = action + self._start if self._is_shifted else action
        return shifted.astype(self._dtype, copy=False)

    def to_env_on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        start = torch.from_numpy(self._start).to(device)
        return lambda action: action + start if self._is_shifted else action


class BernoulliHead(CategoricalHead):
    """Discrete(2) with one logit, that of the second action."""

    def __init__(self, space: spaces.Discrete[Any]) -> None:
        super().__init__(space)
        self.num_outputs = 1

    def _logit(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        logit = outputs[..., 0]
        if mask is None:
            return logit
        only = mask[..., 1].to(logit.dtype) - mask[..., 0].to(logit.dtype)  # 1, 0 or -1
        return logit - MASKED * only

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        return IntegerBernoulli(logits=self._logit(outputs, mask), validate_args=False)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return _logistic((*shape, 1), generator)

    def mode(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return (self._logit(outputs, mask) > 0).long()

    def mode_array(self, outputs: Array) -> Array:
        return (outputs[..., 0] > 0).astype(np.int64)


class MultiCategoricalHead(CategoricalHead):
    """MultiDiscrete of any rank: the logits of all its choices, one after the other.

    Choices of different sizes are padded to the largest, so that all are one Categorical.
    """

    _index: Tensor  # [K * width] where each padded logit comes from
    _is_real: Tensor  # [*shape, width] bool

    def __init__(self, space: spaces.MultiDiscrete[Any]) -> None:
        super().__init__(space)
        nvec = space.nvec.astype(np.int64).ravel()
        self._width = int(nvec.max())
        self._is_padded = bool((nvec < self._width).any())
        if self._is_padded:
            column = np.arange(self._width)
            is_real = column < nvec[:, None]  # [K, width]
            index = np.where(is_real, (np.cumsum(nvec) - nvec)[:, None] + column, 0)
            is_real = is_real.reshape((*space.shape, self._width))
            self.register_buffer("_index", torch.from_numpy(index.ravel()), persistent=False)
            self.register_buffer("_is_real", torch.from_numpy(is_real), persistent=False)

    def _logits(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        if self._is_padded:
            outputs = outputs[..., self._index]  # [..., K * width]
            mask = None if mask is None else mask[..., self._index]
        shape = (*self.action_shape, self._width)
        logits = outputs.reshape((*outputs.shape[:-1], *shape))
        if self._is_padded:
            logits = torch.where(self._is_real, logits, MASKED)
        if mask is not None:
            mask = mask.reshape((*mask.shape[:-1], *shape))
            logits = masked_logits(logits, mask & self._is_real if self._is_padded else mask)
        return logits

    mode_array = Head.mode_array  # whose choices may be padded


class MultiBinaryHead(Head):
    """MultiBinary: one logit per bit. A masked bit stays 0."""

    def __init__(self, space: spaces.MultiBinary) -> None:
        super().__init__()
        self.space = space
        self.action_shape, self.action_dtype = tuple(space.shape), torch.float32
        self.num_outputs = self.num_mask = math.prod(self.action_shape)

    def _logits(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        logits = outputs if mask is None else torch.where(mask, outputs, MASKED)
        return logits.reshape((*logits.shape[:-1], *self.action_shape))

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        bits = Bernoulli(logits=self._logits(outputs, mask), validate_args=False)
        return independent(bits, len(self.action_shape))

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return _logistic((*shape, self.num_outputs), generator)

    def mode(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        return (self._logits(outputs, mask) > 0).float()

    def to_env(self, action: Array) -> Array:
        return action.astype(np.int8)

    def to_env_on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        return lambda action: action.to(torch.int8)


def independent(distribution: Distribution, rank: int) -> Distribution:
    """The distribution with its last `rank` dimensions as one action."""
    return Joint(distribution, rank, validate_args=False) if rank else distribution


def _gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise: argmax(logits + noise) has the law softmax(logits).

    A float32 uniform has 24 bits: probabilities below about 1e-7 are not resolved.
    """
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    # Without the clamp a 0 would be -inf, and let a masked action win where one alone is allowed.
    return uniform.clamp_(min=1e-30).log_().neg_().log_().neg_()


def _logistic(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard logistic noise: logit + noise > 0 has the probability sigmoid(logit)."""
    return torch.rand(shape, generator=generator, device=generator.device).logit_(eps=1e-30)

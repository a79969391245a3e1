"""From an action space to its head: `make_head`, and the nesting of Dict and Tuple."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution

from rlpg.errors import SpaceError, UsageError
from rlpg.policies.boxes import BetaHead, GaussianHead
from rlpg.policies.distributions import Layout, Product
from rlpg.policies.heads import (
    Array,
    BernoulliHead,
    CategoricalHead,
    Head,
    MultiBinaryHead,
    MultiCategoricalHead,
)
from rlpg.policies.spaces import Path, Space, children, leaves, path_name

GAUSSIANS = ("clipped", "squashed", "beta")
STDS = ("independent", "dependent")


def make_head(
    action_space: Space,
    *,
    gaussian: str = "clipped",
    std: str = "independent",
    log_std_init: float = 0.0,
    log_std_floor: float = -5.0,
    bernoulli: bool = False,
) -> Head:
    """The head for an action space.

    Args:
        gaussian: for Box actions. "clipped": a Normal whose draws are clipped for the environment;
            its log-prob is that of the draw before clipping. "squashed": a Normal through tanh,
            with the exact log-prob. "beta": a Beta. The last two need finite bounds.
        std: "independent" of the state, or "dependent" on it (twice the outputs); not for "beta".
        log_std_init: log standard deviation at the start, in the head's own units.
        log_std_floor: what the log standard deviation cannot go below.
        bernoulli: for Discrete(2): one logit instead of two.

    Raises:
        SpaceError: the space, or its combination with an option, is not supported.
        UsageError: an option has no such value.
    """
    if gaussian not in GAUSSIANS:
        raise UsageError(f"gaussian: expected one of {', '.join(GAUSSIANS)}, got {gaussian}")
    if std not in STDS:
        raise UsageError(f"std: expected one of {', '.join(STDS)}, got {std}")
    if not -20.0 <= log_std_floor < log_std_init <= 20.0:
        raise UsageError(
            "log_std_init, log_std_floor: expected -20 <= floor < init <= 20, "
            f"got floor {log_std_floor} and init {log_std_init}"
        )
    if bernoulli and not (isinstance(action_space, spaces.Discrete) and action_space.n == 2):
        raise SpaceError(
            f"action: expected Discrete(2) for bernoulli=True, got {action_space}; leave it out"
        )

    def leaf_head(space: Space, path: Path) -> Head:
        name = path_name("action", path)
        if 0 in (space.shape or ()):
            raise SpaceError(f"{name}: expected at least one number, got shape {space.shape}")
        if isinstance(space, spaces.Discrete):
            return BernoulliHead(space) if bernoulli else CategoricalHead(space)
        if isinstance(space, spaces.MultiDiscrete):
            return MultiCategoricalHead(space)
        if isinstance(space, spaces.MultiBinary):
            return MultiBinaryHead(space)
        assert isinstance(space, spaces.Box)  # `leaves` lets nothing else through
        if gaussian == "beta":
            return BetaHead(space, name=name)
        return GaussianHead(
            space,
            name=name,
            is_squashed=gaussian == "squashed",
            is_dependent=std == "dependent",
            log_std_init=log_std_init,
            log_std_floor=log_std_floor,
        )

    heads = [leaf_head(space, path) for path, space in leaves(action_space, "action")]
    if not heads:
        raise SpaceError(f"action: expected at least one action, got {action_space}")
    return heads[0] if children(action_space) is None else ProductHead(action_space, heads)


class ProductHead(Head):
    """Dict and Tuple: a head per leaf, fed with neighboring stretches of the outputs."""

    def __init__(self, space: Space, heads: Sequence[Head]) -> None:
        super().__init__()
        self.space = space
        self.heads = nn.ModuleList(heads)
        self.parts = tuple(heads)  # the same, typed
        self.layout = Layout([(head.action_shape, head.action_dtype) for head in heads])
        self.num_outputs = sum(head.num_outputs for head in heads)
        self.num_mask = sum(head.num_mask for head in heads)
        self.is_discrete = all(head.is_discrete for head in heads)
        self.action_shape, self.action_dtype = (self.layout.size,), torch.float32

    def inputs(
        self, outputs: Tensor, mask: Tensor | None
    ) -> Iterator[tuple[Head, Tensor, Tensor | None]]:
        """Each head with its stretch of the outputs and of the mask."""
        pieces = outputs.split([head.num_outputs for head in self.parts], -1)
        start = 0
        for head, piece in zip(self.parts, pieces, strict=True):
            stop = start + head.num_mask
            yield head, piece, mask[..., start:stop] if mask is not None and stop > start else None
            start = stop

    def forward(self, outputs: Tensor, mask: Tensor | None = None) -> Distribution:
        factors = [head.forward(piece, part) for head, piece, part in self.inputs(outputs, mask)]
        return Product(factors, self.layout)

    def draw(
        self, outputs: Tensor, generator: torch.Generator, mask: Tensor | None = None
    ) -> Tensor:
        inputs = self.inputs(outputs, mask)
        return self.layout.join([head.draw(piece, generator, part) for head, piece, part in inputs])

    def mode(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        inputs = self.inputs(outputs, mask)
        return self.layout.join([head.mode(piece, part) for head, piece, part in inputs])

    def to_env(self, action: Array) -> Any:
        pieces = zip(self.parts, self.layout.split(torch.from_numpy(action)), strict=True)
        return _build(self.space, iter([head.to_env(piece.numpy()) for head, piece in pieces]))


def first(space: Space, env_action: Any) -> Any:
    """The first action of a batch of environment actions, as `space.contains` wants it."""
    parts = children(space)
    if isinstance(space, spaces.Discrete):
        return env_action[0]
    if parts is None:
        return np.asarray(env_action[0])
    chosen = [(key, first(part, env_action[key])) for key, part in parts]
    return dict(chosen) if isinstance(space, spaces.Dict) else tuple(part for _, part in chosen)


def _build(space: Space, pieces: Iterator[Any]) -> Any:
    """The nested dict or tuple of `space` from its leaves in order."""
    parts = children(space)
    if parts is None:
        return next(pieces)
    built = [(key, _build(part, pieces)) for key, part in parts]
    return dict(built) if isinstance(space, spaces.Dict) else tuple(part for _, part in built)

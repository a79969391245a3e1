"""Observation normalization: running mean and variance as part of the policy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlpg.distributed import sum_over_ranks, sums_over_ranks
from rlpg.errors import NumericalFault, UsageError

_EPS = 1e-8


class Normalizer(nn.Module):
    """`clip((x - mean) / sqrt(var + eps), -clip, clip)` with running moments of x.

    Only features marked `normalized` are touched; images and categories pass unchanged. The
    identity before the first update. Moments are float64 and merged pairwise (Chan, Golub and
    LeVeque 1979), so neither a huge offset nor a long run costs accuracy. `count`, `mean` and `m2`
    are saved with the policy; updates happen only when a learner or rank calls for them.
    """

    count: Tensor  # [] float64, total weight
    mean: Tensor  # [K] float64, K = number of normalized features
    m2: Tensor  # [K] float64, sum of squared deviations from the mean
    _center: Tensor  # [F] float32, like the next two: the affine map that `_derive` makes
    _scale: Tensor
    _shift: Tensor

    def __init__(self, normalized: Tensor, *, clip: float = 10.0) -> None:
        """
        Args:
            normalized: `[F]` bool, which features to normalize.
            clip: largest absolute value that comes out, at least 1.
        """
        super().__init__()
        if not clip >= 1.0:
            raise UsageError(f"observation_clip: expected at least 1, got {clip}")
        self.clip = clip
        num_features, num_normalized = len(normalized), int(normalized.sum())
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(num_normalized, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(num_normalized, dtype=torch.float64))
        every = num_normalized == num_features
        self._index = None if every else normalized.nonzero()[:, 0]
        # The affine map as float32: x - center is exact for large offsets, shift mends the rest.
        self.register_buffer("_center", torch.zeros(num_features), persistent=False)
        self.register_buffer("_scale", torch.ones(num_features), persistent=False)
        self.register_buffer("_shift", torch.zeros(num_features), persistent=False)
        self.is_identity = True  # nothing has been counted yet
        nn.Module.register_load_state_dict_post_hook(self, _derive_after_loading)

    @property
    def var(self) -> Tensor:
        """`[K]` float64, the population variance so far."""
        return self.m2 / self.count.clamp(min=1.0)

    @property
    def affine(self) -> tuple[Tensor, Tensor, Tensor]:
        """`[F]` each: center, scale and shift of `(x - center) * scale + shift`."""
        return self._center, self._scale, self._shift

    def forward(self, features: Tensor) -> Tensor:
        """Normalized features `[..., F]` of features `[..., F]`."""
        if self.is_identity:
            return features
        centered = features - self._center
        return torch.addcmul(self._shift, centered, self._scale).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Count features `[..., F]`, of all ranks.

        Raises:
            NumericalFault: their moments are not finite; nothing is changed.
        """
        rows = features if self._index is None else features[..., self._index.to(features.device)]
        rows = rows.reshape(-1, len(self.mean)).to(torch.float64)  # [B, K]
        size = torch.tensor(float(len(rows)), dtype=torch.float64, device=rows.device)
        count, summed = sums_over_ranks(size, rows.sum(0))
        mean = summed / count.clamp(min=1.0)
        m2 = sum_over_ranks((rows - mean).square().sum(0))
        total = self.count + count
        is_finite = mean.isfinite().all() & m2.isfinite().all()
        is_sound, has_seen = torch.stack([is_finite, total > 0]).tolist()  # waits once
        if not is_sound:
            raise NumericalFault(
                "observations: expected finite numbers to normalize, got NaN or inf"
            )
        if not has_seen:
            return
        delta = mean - self.mean
        self.mean += delta * (count / total)
        self.m2 += m2 + delta.square() * (self.count * count / total)
        self.count.copy_(total)
        self.is_identity = False
        self._derive()

    def _derive(self) -> None:
        where = slice(None) if self._index is None else self._index.to(self.mean.device)
        center = self.mean.float()
        scale = (self.var + _EPS).rsqrt()
        self._center[where] = center
        self._scale[where] = scale.float()
        self._shift[where] = ((center.double() - self.mean) * scale).float()


def _derive_after_loading(module: Normalizer, incompatible_keys: object) -> None:
    module.is_identity = bool(module.count == 0)
    if not module.is_identity:
        module._derive()

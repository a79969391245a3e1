"""Networks: features in, numbers out. Used by policies and by value networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlpg.errors import UsageError
from rlpg.policies.observations import Observations

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
}
HIDDEN_GAIN = math.sqrt(2.0)
_CONV_CHANNELS = (16, 32, 64, 64)  # then 64
_CONV_SIDE = 4
_MAX_PARAMETERS = 2**23  # with Adam, and a value network as large, a checkpoint can hold them

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Leaves the weights unset: torch would draw them from its global generator."""


class _Conv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        """As in `_Linear`."""


class MLP(nn.Module):
    """`[..., num_inputs] -> [..., num_outputs]`: linear layers with an activation in between.

    Weights are orthogonal (Saxe et al. 2014) with gain sqrt(2) in hidden layers and `output_gain`
    in the last, biases 0, drawn from `generator`; without a generator they are left unset, for
    `load_state_dict` to fill.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        output_gain: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UsageError(
                f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation}"
            )
        sizes = [num_inputs, *hidden, num_outputs]
        if min(sizes) < 1 or sum(a * b for a, b in itertools.pairwise(sizes)) > _MAX_PARAMETERS:
            raise UsageError(
                f"hidden: expected positive layer sizes with at most {_MAX_PARAMETERS} weights in "
                f"all, got {sizes}"
            )
        self.activation = activation
        gains = [HIDDEN_GAIN] * len(hidden) + [output_gain]
        self.linears = [
            _initialized(_Linear(a, b), gain, generator)
            for (a, b), gain in zip(itertools.pairwise(sizes), gains, strict=True)
        ]
        self.layers = nn.ModuleList(self.linears)  # registers them; the list is quicker to walk

    def forward(self, inputs: Tensor) -> Tensor:
        # Plain F.linear: calling a module costs more than a tiny product.
        activation = ACTIVATIONS[self.activation]
        *first, last = self.linears
        for layer in first:
            inputs = activation(F.linear(inputs, layer.weight, layer.bias))
        return F.linear(inputs, last.weight, last.bias)


class CNN(nn.Module):
    """`[B, C, H, W] -> [B, num_outputs]`: 3x3 convolutions that halve the image.

    As many as bring the shorter side to at most 4, at least two, with 16, 32, 64, 64, ...
    channels and ReLU: one rule for an 8x8 board and a 210x160 screen.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Conv2d] = []
        while len(layers) < 2 or min(height, width) > _CONV_SIDE:
            out = _CONV_CHANNELS[min(len(layers), len(_CONV_CHANNELS) - 1)]
            conv = _Conv2d(channels, out, 3, stride=2, padding=1)
            layers.append(_initialized(conv, HIDDEN_GAIN, generator))
            channels, height, width = out, (height + 1) // 2, (width + 1) // 2
        self.layers = nn.ModuleList(layers)
        self.num_outputs = channels * height * width

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = F.relu(layer(images))
        return images.flatten(1)  # [B, C * H * W]


class Network(nn.Module):
    """`[..., F] -> [..., num_outputs]` for the features of any observation space.

    Images go through a `CNN` each; what comes out joins the other features in an `MLP`.
    """

    _plain: Tensor  # [P] int64, the features that belong to no image

    def __init__(
        self,
        observations: Observations,
        num_outputs: int,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        output_gain: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.images = observations.images
        plain = torch.ones(observations.num_features, dtype=torch.bool)
        for image in self.images:
            plain[image.features] = False
        self.register_buffer("_plain", plain.nonzero()[:, 0], persistent=False)
        cnns = [CNN(image.channels_first_shape, generator=generator) for image in self.images]
        self.cnns = nn.ModuleList(cnns)
        num_inputs = int(plain.sum()) + sum(cnn.num_outputs for cnn in cnns)
        self.mlp = MLP(
            num_inputs,
            num_outputs,
            hidden=hidden,
            activation=activation,
            output_gain=output_gain,
            generator=generator,
        )

    def forward(self, features: Tensor) -> Tensor:
        if not self.images:
            return self.mlp.forward(features)
        batch = features.shape[:-1]
        rows = features.reshape(math.prod(batch), features.shape[-1])  # [B, F]
        parts = [
            cnn(image.channels_first(rows))
            for cnn, image in zip(self.cnns, self.images, strict=True)
        ]
        joined = torch.cat([rows[:, self._plain], *parts], -1)  # [B, num_inputs]
        return self.mlp.forward(joined).reshape((*batch, self.num_outputs))


def _initialized(layer: Layer, gain: float, generator: torch.Generator | None) -> Layer:
    if generator is not None:
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer

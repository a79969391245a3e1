"""Networks: features in, numbers out. Used by policies and by value networks."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

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
_BOARD_SIDE = 12  # up to here a single cell matters, and nothing is halved
_MAX_PARAMETERS = 2**23  # with Adam, and a value network as large, a checkpoint can hold them

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)
Carry = Tensor | tuple[Tensor, ...] | None
"""What a policy with memory hands from step to step: tensors `[N, ...]`; None without memory."""


MEMORIES: dict[str, Callable[[int, int], nn.Module]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class MLP(nn.Module):
    """`[..., num_inputs] -> [..., num_outputs]`: linear layers with an activation in between.

    Weights are orthogonal (Saxe et al. 2014) with gain sqrt(2) in hidden layers and `output_gain`
    in the last, biases 0, drawn from `generator`; without a generator they are for
    `load_state_dict` to set.
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
                f"hidden: expected sizes from 1, {_MAX_PARAMETERS} weights at most, got {sizes}"
            )
        self.activation = activation
        gains = [HIDDEN_GAIN] * len(hidden) + [output_gain]
        self.linears = [
            _layer(partial(nn.Linear, a, b), gain, generator)
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
    """`[B, C, H, W] -> [B, num_outputs]`: 3x3 convolutions and ReLU.

    Sides of at most 12, a board: one convolution of 16 channels that pads nothing, as in MinAtar
    (Young & Tian 2019). Longer ones: as many that halve the image as bring its shorter side to at
    most 4, with 16, 32, 64, 64, ... channels.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        channels, height, width = shape
        stride = 1 if max(height, width) <= _BOARD_SIDE else 2
        padding = int(stride == 2 or min(height, width) < 3)
        layers: list[nn.Conv2d] = []
        while not layers or (stride == 2 and min(height, width) > _CONV_SIDE):
            out = _CONV_CHANNELS[min(len(layers), len(_CONV_CHANNELS) - 1)]
            make = partial(nn.Conv2d, channels, out, 3, stride=stride, padding=padding)
            layers.append(_layer(make, HIDDEN_GAIN, generator))
            channels = out
            height, width = ((s + 2 * padding - 3) // stride + 1 for s in (height, width))
        self.layers = nn.ModuleList(layers)
        self.num_outputs = channels * height * width

    def forward(self, images: Tensor) -> Tensor:
        for layer in self.layers:
            images = F.relu(layer(images))
        return images.flatten(1)  # [B, C * H * W]


class Memory(nn.Module):
    """A GRU (Cho et al. 2014) or LSTM (Hochreiter & Schmidhuber 1997) over `[T, n, num_inputs]`.

    The carry is `[n, size]`, a pair of them for an LSTM; it is 0 where an episode starts. Weights
    are orthogonal, biases 0, drawn from `generator`.
    """

    def __init__(
        self, kind: str, num_inputs: int, size: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if kind not in MEMORIES:
            raise UsageError(f"memory: expected one of {', '.join(MEMORIES)} or none, got {kind}")
        if not (size >= 1 and 4 * size * (size + num_inputs) <= _MAX_PARAMETERS):
            raise UsageError(
                f"memory_size: expected at least 1, {_MAX_PARAMETERS} weights at most, got {size}"
            )
        self.size, self.is_pair = size, kind == "lstm"
        # A learner keeps all weights in one vector; for cuDNN it copies them at every call.
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")
        with torch.random.fork_rng(devices=[]):
            self.core = MEMORIES[kind](num_inputs, size)
        if generator is not None:
            for name, parameter in self.core.named_parameters():
                if name.startswith("weight"):
                    for gate in parameter.detach().split(size):
                        nn.init.orthogonal_(gate, generator=generator)
                else:
                    nn.init.zeros_(parameter)

    def initial_carry(self, num_envs: int) -> Carry:
        """Zeros, on the device of the weights."""
        zeros = next(self.parameters()).new_zeros(num_envs, self.size)
        return (zeros, zeros.clone()) if self.is_pair else zeros

    def stretches(
        self, inputs: Tensor, carry: Carry, episode_start: Tensor | None, *, cut: int = 0
    ) -> Iterator[tuple[int, Tensor, Carry]]:
        """The sequence `[T, n, num_inputs]` in stretches in which no episode starts but at the
        first step.

        Args:
            carry: `[n, size]` before the first step; None: zeros.
            episode_start: `[T, n]` bool; None: no episode starts.
            cut: a time index at which a stretch ends in any case.

        Yields:
            For each stretch: the time index behind its last step, its outputs `[t, n, size]`, and
            the carry after it.
        """
        num_steps, num_envs = inputs.shape[:2]
        carry = self.initial_carry(num_envs) if carry is None else carry
        starts: list[int] = []
        if episode_start is not None:
            starts = [t for t, any_env in enumerate(episode_start.any(1).tolist()) if any_env]
        for first, stop in itertools.pairwise(sorted({0, cut, num_steps, *starts})):
            if episode_start is not None and first in starts:
                carry = restarted(carry, episode_start[first])
            stacked = map_carry(lambda part: part.unsqueeze(0), carry)  # [1, n, size]
            outputs, stacked = self.core(inputs[first:stop], stacked)
            carry = map_carry(lambda part: part[0], stacked)
            yield stop, outputs, carry

    def forward(
        self, inputs: Tensor, carry: Carry, episode_start: Tensor | None
    ) -> tuple[Tensor, Carry]:
        """Outputs `[T, n, size]` and the carry after the last step; arguments as `stretches`."""
        stretches = list(self.stretches(inputs, carry, episode_start))
        outputs = [part for _, part, _ in stretches]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), stretches[-1][2]


def refuse_unusable(module: nn.Module, name: str) -> None:
    """Raise UsageError where a layer's output for a sample depends on chance or on the rest of its
    batch, or where one number in memory stands for several: no file could be read into them.

    A policy with such a layer has other log-probs when it learns than when it acted. In evaluation
    mode (a frozen encoder) these layers do neither.
    """
    for path, layer in module.named_modules():
        is_random = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
        if isinstance(layer, nn.RNNBase | nn.MultiheadAttention):
            is_random = layer.dropout > 0
        if layer.training and (is_random or isinstance(layer, nn.modules.batchnorm._BatchNorm)):
            what = "dropout" if is_random else "batch normalization"
            raise UsageError(
                f"{name}: expected the same output for a sample whenever it is seen, got {what} in "
                f"{path or 'it'} ({type(layer).__name__}); leave it out (nn.LayerNorm is allowed), "
                "or call eval() on that layer"
            )

    for path, tensor in module.state_dict().items():
        sizes = () if is_lazy(tensor) else zip(tensor.shape, tensor.stride(), strict=True)
        if any(size > 1 and step == 0 for size, step in sizes):
            raise UsageError(
                f"{name}: expected numbers of its own for every entry of {path}, got one expanded "
                f"to {list(tensor.shape)}; call clone() on it"
            )


class _Custom(nn.Module):
    """A user's module on rows `[B, num_inputs]`, whatever the leading dimensions are."""

    def __init__(self, module: nn.Module, num_outputs: int) -> None:
        super().__init__()
        self.module, self.num_outputs = module, num_outputs

    def forward(self, inputs: Tensor) -> Tensor:
        batch = inputs.shape[:-1]
        rows = inputs.reshape(math.prod(batch), inputs.shape[-1])  # [B, num_inputs]
        outputs = self.module(rows.clone())  # it may change them, which are the rollout's own
        expected = rows.shape[0], self.num_outputs  # len(rows) would be a constant when exported
        if not isinstance(outputs, Tensor) or outputs.shape != expected:
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UsageError(f"network: expected [B, num_outputs] = {list(expected)}, got {got}")
        return outputs.reshape((*batch, self.num_outputs))


class Network(nn.Module):
    """`[..., F] -> [..., num_outputs]` for the features of any observation space.

    Images go through a `CNN` each; what comes out joins the other features. Then come the memory,
    where there is one, and an `MLP`, or the module that a user brings, which gets the features of
    images as they are where it comes first.

    Args:
        observations: say which features there are, and which of them are images.
        num_outputs: how many numbers come out.
        seen: indices `[F']` of the features to look at; None: all.
        hidden, activation, output_gain: of the `MLP`.
        memory, memory_size: `gru`, `lstm` or None, and its width.
        factory: `factory(num_inputs, num_outputs)` makes the module instead of the `MLP`.
        generator: draws the initial weights; without it they are for `load_state_dict` to set.
    """

    _plain: Tensor  # [P] int64, the features that belong to no image

    def __init__(
        self,
        observations: Observations,
        num_outputs: int,
        *,
        seen: Tensor | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        output_gain: float = 1.0,
        memory: str | None = None,
        memory_size: int = 64,
        factory: Callable[[int, int], nn.Module] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        is_seen = torch.ones(observations.num_features, dtype=torch.bool)
        if seen is not None:
            is_seen[:] = False
            is_seen[seen] = True
        takes_images = factory is None or memory is not None
        self.images = [
            image for image in observations.images if takes_images and is_seen[image.features].all()
        ]
        for image in self.images:
            is_seen[image.features] = False
        self.register_buffer("_plain", is_seen.nonzero()[:, 0], persistent=False)
        self._is_whole = not self.images and bool(is_seen.all())
        cnns = [CNN(image.channels_first_shape, generator=generator) for image in self.images]
        self.cnns = nn.ModuleList(cnns)
        num_inputs = int(is_seen.sum()) + sum(cnn.num_outputs for cnn in cnns)
        self.memory = None
        if memory is not None:
            self.memory = Memory(memory, num_inputs, memory_size, generator=generator)
            num_inputs = memory_size
        self.mlp: MLP | _Custom
        if factory is None:
            self.mlp = MLP(
                num_inputs,
                num_outputs,
                hidden=hidden,
                activation=activation,
                output_gain=output_gain,
                generator=generator,
            )
        else:
            with global_generator_from(generator):
                module = factory(num_inputs, num_outputs)
            if not isinstance(module, nn.Module):
                raise UsageError(f"network: expected a torch.nn.Module, got {module!r:.80}")
            self.mlp = _Custom(module, num_outputs)

    def encode(self, features: Tensor) -> Tensor:
        """`[..., num_inputs]` of features `[..., F]`: what memory or MLP take."""
        if self._is_whole:
            return features
        if not self.images:
            return features[..., self._plain]
        batch = features.shape[:-1]
        rows = features.reshape(math.prod(batch), features.shape[-1])  # [B, F]
        parts = [
            cnn(image.channels_first(rows))
            for cnn, image in zip(self.cnns, self.images, strict=True)
        ]
        joined = torch.cat([rows[:, self._plain], *parts], -1)  # [B, num_inputs]
        return joined.reshape((*batch, joined.shape[-1]))

    def forward(
        self, features: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """Outputs `[..., num_outputs]` of features `[..., F]`, and the carry after them.

        With memory: features `[T, n, F]`, carry `[n, ...]`, episode_start `[T, n]` bool.
        """
        inputs = self.encode(features)
        if self.memory is not None:
            inputs, carry = self.memory.forward(inputs, carry, episode_start)
        return self.mlp.forward(inputs), carry


def carry_parts(carry: Carry) -> tuple[Tensor, ...]:
    """The tensors of a carry; none without memory."""
    return carry if isinstance(carry, tuple) else () if carry is None else (carry,)


def checked_carry(carry: Carry, num_envs: int, what: str) -> Carry:
    """The carry; UsageError if it is not tensors `[N, ...]`."""
    for part in carry if type(carry) is tuple else (carry,):
        if not isinstance(part, Tensor) or part.shape[:1] != (num_envs,):
            got = f"shape {list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            raise UsageError(
                f"{what}: expected a carry [N, ...] = [{num_envs}, ...], a tensor or a tuple of "
                f"them, got {got}; an nn.LSTM wants part[None], and returns what part[0] is then"
            )
    return carry


def map_carry(function: Callable[[Tensor], Tensor], carry: Carry) -> Carry:
    """The carry with a function applied to each of its tensors; None stays None."""
    if carry is None or isinstance(carry, Tensor):
        return carry if carry is None else function(carry)
    return tuple(function(part) for part in carry)


def restarted(carry: Carry, starts: Tensor) -> Carry:
    """The carry, tensors `[n, ...]`, with zeros where an episode starts, `[n]` bool."""
    return map_carry(
        lambda part: torch.where(starts.reshape(-1, *(1,) * (part.ndim - 1)), 0.0, part), carry
    )


@contextmanager
def global_generator_from(
    generator: torch.Generator | None, device: torch.device | None = None
) -> Iterator[None]:
    """Lets code that draws from torch's global generators draw from a stream of ours instead.

    The global generators, of the CPU and of `device`, are as they were afterwards; the stream has
    moved by one number.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    devices = {place for place in (generator.device, device) if place and place.type == "cuda"}
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _layer(make: Callable[[], Layer], gain: float, generator: torch.Generator | None) -> Layer:
    """An orthogonal layer; without a generator its weights are any, and the global one stays."""
    with torch.random.fork_rng(devices=[]):
        layer = make()
    if generator is not None:
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer

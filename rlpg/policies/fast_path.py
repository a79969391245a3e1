"""`StandardPolicy` in NumPy, for collecting: packed observations in, actions out.

A small network spends its time in calls, not in arithmetic, and between two steps of an environment
torch's code has left the caches: there its calls cost two to three times what they cost in a loop
of their own. So a small MLP on the CPU is evaluated in NumPy, with the same weights, and all that
can be known before the first step (weights, moments, noise) is prepared once per rollout.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from rlpg.policies.heads import Array, Head
from rlpg.policies.networks import ACTIVATIONS, MLP, Carry, Network
from rlpg.policies.normalizer import Normalizer
from rlpg.policies.policy import Actor

_STEPS_AHEAD = 128  # most steps whose noise is drawn at once
# Multiplications in a product from which NumPy's BLAS may start threads of its own.
_ONE_THREAD = 64**3
_IN_NUMPY: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}


def array_actor(
    network: Network,
    normalizer: Normalizer | None,
    head: Head,
    generator: torch.Generator | None,
    *,
    num_envs: int,
    num_steps: int,
) -> Actor | None:
    """`Policy.actor` for features that are the observations; None for more than an MLP."""
    if not isinstance(network.mlp, MLP) or network.memory is not None:
        return None
    noisy = generator is not None
    if noisy and head.noise((0, num_envs), torch.Generator()) is None:
        return None
    normalize, mlp = _normalize(normalizer), _mlp(network.mlp, num_envs, head.num_outputs)
    noise, t, left = np.empty(0), 0, num_steps

    def act(obs: Array, carry: Carry, episode_start: Tensor | None) -> tuple[Array, Carry]:
        nonlocal noise, t, left
        with np.errstate(all="ignore"):  # what is not finite is the collector's to report
            outputs = mlp(normalize(obs))  # [N, num_outputs]
            if generator is not None:
                if t == len(noise):
                    ahead = min(max(left, 1), _STEPS_AHEAD)
                    drawn = head.noise((ahead, num_envs), generator)
                    assert drawn is not None
                    noise, t, left = drawn.numpy(), 0, left - ahead
                outputs = outputs + noise[t]
                t += 1
            return head.mode_array(outputs), carry

    return act


def _normalize(normalizer: Normalizer | None) -> Callable[[Array], Array]:
    """`Normalizer.forward` for the moments as they are."""
    if normalizer is None or normalizer.is_identity:
        return lambda features: features
    center, scale, shift = (moment.numpy() for moment in normalizer.affine)
    clip = normalizer.clip

    def forward(features: Array) -> Array:
        out: Array = (features - center) * scale
        out += shift
        np.maximum(out, -clip, out=out)
        np.minimum(out, clip, out=out)
        return out

    return forward


def _mlp(mlp: MLP, num_rows: int, num_outputs: int) -> Callable[[Array], Array]:
    """The first outputs of `MLP.forward` of `[num_rows, num_inputs]`; weights as they are."""
    activation = _IN_NUMPY.get(mlp.activation) or _by_torch(ACTIVATIONS[mlp.activation])
    *first, last = (
        _linear(layer, num_rows, num_outputs if layer is mlp.linears[-1] else layer.out_features)
        for layer in mlp.linears
    )

    def forward(inputs: Array) -> Array:
        for linear in first:
            inputs = activation(linear(inputs))
        return last(inputs)

    return forward


def _linear(layer: nn.Linear, num_rows: int, num_outputs: int) -> Callable[[Array], Array]:
    weight = layer.weight.detach()[:num_outputs].t().contiguous()
    bias = layer.bias.detach()[:num_outputs]
    if num_rows * weight.numel() > _ONE_THREAD:
        return _by_torch(lambda inputs: torch.addmm(bias, inputs, weight))
    factor, summand = weight.numpy(), bias.numpy()

    def forward(inputs: Array) -> Array:
        out: Array = inputs @ factor
        out += summand
        return out

    return forward


def _by_torch(function: Callable[[Tensor], Tensor]) -> Callable[[Array], Array]:
    """A function of tensors, as one of arrays that share their memory."""

    def forward(inputs: Array) -> Array:
        array: Array = function(torch.from_numpy(inputs)).numpy()
        return array

    return forward

"""`StandardPolicy` in NumPy, for collecting: packed observations in, actions out.

A small network spends its time in calls, not in arithmetic, and between two steps of an environment
torch's code has left the caches: there its calls cost two to three times what they cost in a loop
of their own. So a small MLP on the CPU is evaluated in NumPy, with the same weights, and all that
can be known before the first step (weights, moments, noise) is prepared once per rollout. Of an MLP
on another device the outputs come here; the noise, and so the actions, are drawn in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from rlpg.policies.heads import Array, Head
from rlpg.policies.networks import ACTIVATIONS, MLP, Carry
from rlpg.policies.normalizer import Normalizer

_STEPS_AHEAD = 128  # most steps whose noise is drawn at once
# Multiplications in a product from which NumPy's BLAS may start threads of its own.
_ONE_THREAD = 64**3
_IN_NUMPY: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}


class ArrayActor:
    """An `Actor` that can also be asked about environments that are at different steps.

    Args:
        mlp, normalizer, head: of the policy, whose observations are its features.
        generator: of the noise, which the head must have; None: there is none.
        num_envs: N.
        num_steps: how many steps to expect.
    """

    def __init__(
        self,
        mlp: MLP,
        normalizer: Normalizer | None,
        head: Head,
        generator: torch.Generator | None,
        num_envs: int,
        num_steps: int,
    ) -> None:
        if mlp.linears[0].weight.device.type == "cpu":
            self._normalize = _normalize(normalizer)
            self._mlp = _mlp(mlp, num_envs, head.num_outputs)
        else:
            self._normalize = _unchanged
            self._mlp = _elsewhere(mlp, normalizer, head.num_outputs)
        self._head, self._generator = head, generator
        self._sizes = num_envs, num_steps
        self._noise: list[Array] = []  # of each step so far, and of some that follow
        self._mixed: Array = np.empty(0)  # [N, ...] noise of each environment's own step
        self._step = 0

    def __call__(
        self, obs: Array, carry: Carry, episode_start: Tensor | None
    ) -> tuple[Array, Carry]:
        """The actions of the next step, in all environments."""
        noise = None if self._generator is None else self._noise_of(self._step, self._generator)
        self._step += 1
        return self._act(obs, noise), carry

    def at(self, obs: Array, steps: Iterable[tuple[int, slice]]) -> Array:
        """Actions `[N, *A]`, of which only those in the given rows count.

        All rows go through the network whichever count: products of another size could round
        differently, and an action must not depend on which environments were ready.

        Args:
            obs: `[N, *O]`.
            steps: a step of the rollout, and the rows that are at it.
        """
        if self._generator is None:
            return self._act(obs, None)
        for t, rows in steps:
            noise = self._noise_of(t, self._generator)
            if not self._mixed.size:
                self._mixed = np.zeros_like(noise)
            self._mixed[rows] = noise[rows]
        return self._act(obs, self._mixed)

    def _act(self, obs: Array, noise: Array | None) -> Array:
        with np.errstate(all="ignore"):  # what is not finite is the collector's to report
            outputs = self._mlp(self._normalize(obs))
            return self._head.mode_array(outputs if noise is None else outputs + noise)

    def _noise_of(self, t: int, generator: torch.Generator) -> Array:
        num_envs, num_steps = self._sizes
        while t >= len(self._noise):
            ahead = min(max(num_steps - len(self._noise), 1), _STEPS_AHEAD)
            drawn = self._head.noise((ahead, num_envs), generator)
            assert drawn is not None
            self._noise.extend(drawn.numpy())
        return self._noise[t]


def _normalize(normalizer: Normalizer | None) -> Callable[[Array], Array]:
    """`Normalizer.forward` for the moments as they are."""
    if normalizer is None or normalizer.is_identity:
        return _unchanged
    center, scale, shift = (moment.numpy() for moment in normalizer.affine)
    clip = normalizer.clip

    def forward(features: Array) -> Array:
        out: Array = (features - center) * scale
        out += shift
        np.maximum(out, -clip, out=out)
        return np.minimum(out, clip, out=out)

    return forward


def _unchanged(features: Array) -> Array:
    return features


def _elsewhere(
    mlp: MLP, normalizer: Normalizer | None, num_outputs: int
) -> Callable[[Array], Array]:
    """The first outputs for observations `[N, F]`, which go to the MLP's device."""
    device = mlp.linears[0].weight.device

    @torch.inference_mode()
    def forward(obs: Array) -> Array:
        features = torch.from_numpy(obs).to(device)
        features = features if normalizer is None else normalizer.forward(features)
        array: Array = mlp.forward(features)[..., :num_outputs].cpu().numpy()
        return array

    return forward


def _mlp(mlp: MLP, num_rows: int, num_outputs: int) -> Callable[[Array], Array]:
    """The first outputs of `MLP.forward` of `[num_rows, num_inputs]`; weights as they are."""
    activation = _IN_NUMPY.get(mlp.activation) or _by_torch(ACTIVATIONS[mlp.activation])
    hidden = [_linear(layer, num_rows, layer.out_features) for layer in mlp.linears[:-1]]
    last = _linear(mlp.linears[-1], num_rows, num_outputs)

    def forward(inputs: Array) -> Array:
        for linear in hidden:
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
    return lambda inputs: function(torch.from_numpy(inputs)).numpy()

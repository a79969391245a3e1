"""Environments as pure functions of tensors, and Gymnasium's view of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .vectorized import Array, ArrayVectorEnv

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Batched(ABC):
    """An environment as three functions of tensors: any batch, any device, float32 or float64.

    They keep nothing, draw nothing, change no argument, and never look at a value to decide what
    to do next. So a step can be differentiated, compiled, and recorded in a CUDA graph, and one
    that is called for 65 536 environments launches as many kernels as for one.

    Attributes:
        observation_space, action_space: of one environment.
        max_episode_steps: Gymnasium's time limit; who steps the environment applies it.
        num_uniforms: U, how many random numbers decide how an episode starts.
    """

    observation_space: spaces.Box
    action_space: spaces.Space[Any]
    max_episode_steps: int
    num_uniforms: int

    @abstractmethod
    def start(self, uniform: Tensor) -> Tensor:
        """The state `[..., S]` at the start of an episode, for uniform `[..., U]` in [0, 1)."""

    @abstractmethod
    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next state `[..., S]`, the reward `[...]`, and terminated `[...]` bool.

        Differentiable in the state and in a continuous action; see each class for its kinks.

        Args:
            state: `[..., S]`; its dtype and device are those of the results.
            action: `[...]` integers for `Discrete`, `[..., *A]` for `Box`, of any dtype.
        """

    @abstractmethod
    def observe(self, state: Tensor) -> Tensor:
        """The observation `[..., *O]` of a state `[..., S]`, in its dtype; differentiable."""

    def reset(
        self, num_envs: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """States `[num_envs, S]` at the start of episodes, on the generator's device."""
        shape = (num_envs, self.num_uniforms)
        return self.start(
            torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
        )


def normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers of uniform ones in [0, 1), in shape and dtype; never infinite."""
    least = torch.finfo(uniform.dtype).eps / 2
    drawn: Tensor = torch.special.ndtri(uniform.clamp(least, 1 - least))
    return drawn


class TorchVectorEnv(ArrayVectorEnv):
    """A `Batched` environment as a Gymnasium vector environment: torch inside, NumPy outside.

    Seeds, `SAME_STEP` autoreset, time limit and `state_dict` are those of `ArrayVectorEnv`. The
    state is kept in float64, which holds float32 exactly. Every step moves all data to the device
    and back: use it where Gymnasium's interface is expected. Steps that stay on a device are those
    of `rlpg.TensorCollector`, which takes a `Batched` or one of these.

    Args:
        dynamics: the environment.
        num_envs: N.
        max_episode_steps: None: the environment's own.
        device: where it computes.
        dtype: "float64" or "float32", in which it computes.
    """

    def __init__(
        self,
        dynamics: Batched,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        device: str = "cpu",
        dtype: str = "float64",
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        self.dynamics = dynamics
        self._dtype, self._device = DTYPES[dtype], torch.device(device)
        super().__init__(
            num_envs,
            dynamics.observation_space,
            dynamics.action_space,
            max_episode_steps or dynamics.max_episode_steps,
        )

    def _start(self, generator: np.random.Generator) -> Array:
        return self._starts([generator])[:, 0]

    @torch.inference_mode()
    def _starts(self, generators: list[np.random.Generator]) -> Array:
        uniform = np.array(
            [generator.random(self.dynamics.num_uniforms) for generator in generators]
        )
        return _array(self.dynamics.start(self._tensor(uniform))).T

    @torch.inference_mode()
    def _advance(self, action: Array) -> tuple[Array, Array]:
        state, reward, terminated = self.dynamics.step(
            self._tensor(self.state.T), torch.from_numpy(action).to(self._device)
        )
        self.state = _array(state).T
        return _array(reward), terminated.cpu().numpy()

    @torch.inference_mode()
    def _observe(self, state: Array, elapsed: Array) -> Array:
        return self.dynamics.observe(self._tensor(state.T)).float().cpu().numpy()

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self._device, self._dtype).contiguous()


def _array(tensor: Tensor) -> Array:
    """float64, in memory of its own."""
    return tensor.to("cpu", torch.float64).numpy()

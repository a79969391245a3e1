"""`Policy`: observations in, a distribution over actions out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from rlpg.errors import SpaceError, UsageError
from rlpg.policies.acting import Actor, array_actor, torch_actor
from rlpg.policies.actions import first, make_head
from rlpg.policies.networks import Network
from rlpg.policies.normalizer import Normalizer
from rlpg.policies.observations import Observations
from rlpg.policies.spaces import Space, space_from_data, space_to_data

Carry = Tensor | None
_OUTPUT_GAIN = 0.01  # a first policy that is nearly uniform, or centerd
_FORMAT = 1


class Policy(nn.Module):
    """Packed observation -> features -> normalized -> network -> head.

    Make one with `Policy.create`. `forward` is for learning, `draw` for collecting, `act` for
    using: numpy in, numpy out. `describe()` and `state_dict()` together are all of it.

    Attributes:
        observations: packs observations and makes features of them.
        head: makes distributions, and translates actions for the environment.
        normalizer: running moments of the features; None where there is nothing to normalize.
    """

    def __init__(
        self, description: dict[str, Any], generator: torch.Generator | None = None
    ) -> None:
        """
        Args:
            description: as `describe` returns it.
            generator: draws the initial weights; without it they are for `load_state_dict` to set.
        """
        super().__init__()
        self._description = _checked(description)
        self.observations = Observations.from_description(description["observations"])
        self.head = make_head(space_from_data(description["action_space"]), **description["head"])
        if self.observations.num_mask not in (0, self.head.num_mask):
            raise SpaceError(
                f"action mask: expected {self.head.num_mask or 'no'} entries for "
                f"{self.head.space}, got {self.observations.num_mask}"
            )
        normalized, clip = self.observations.normalized, description["observation_clip"]
        is_normalizing = description["normalize_observations"] and bool(normalized.any())
        self.normalizer = Normalizer(normalized, clip=clip) if is_normalizing else None
        self.network = Network(
            self.observations,
            self.head.num_outputs,
            **description["network"],
            output_gain=_OUTPUT_GAIN,
            generator=generator,
        )
        self._has_mask = self.observations.mask_slice is not None
        self._generator: torch.Generator | None = None

    @classmethod
    def create(
        cls,
        observation_space: Space,
        action_space: Space,
        *,
        generator: torch.Generator,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        normalize_observations: bool = True,
        observation_clip: float = 10.0,
        gaussian: str = "clipped",
        std: str = "independent",
        log_std_init: float = 0.0,
        log_std_floor: float = -5.0,
        bernoulli: bool = False,
        info_mask: int = 0,
        images: bool | Literal["auto"] = "auto",
    ) -> Policy:
        """A policy with fresh weights, orthogonal, with gain 0.01 in the last layer.

        Args:
            generator: draws the weights; the global one is never touched.
            hidden, activation: of the network; see `Network`.
            normalize_observations, observation_clip: see `Normalizer`.
            gaussian, std, log_std_init, log_std_floor, bernoulli: see `make_head`.
            info_mask, images: see `Observations`.

        Raises:
            SpaceError: a space is not supported; the message lists what is.
            UsageError: an option has no such value.
        """
        observations = Observations(observation_space, info_mask=info_mask, images=images)
        make_head(action_space, bernoulli=bernoulli)  # refuse what cannot be described, by name
        description = {
            "format": _FORMAT,
            "observations": observations.describe(),
            "action_space": space_to_data(action_space),
            "network": {"hidden": [int(size) for size in hidden], "activation": activation},
            "head": {
                "gaussian": gaussian,
                "std": std,
                "log_std_init": float(log_std_init),
                "log_std_floor": float(log_std_floor),
                "bernoulli": bernoulli,
            },
            "normalize_observations": normalize_observations,
            "observation_clip": float(observation_clip),
        }
        return cls(description, generator)

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Policy:
        """A policy of this description whose weights are for `load_state_dict` to set.

        Raises:
            UsageError (SpaceError): the description is not one that `describe` could have made.
        """
        return cls(description)

    def describe(self) -> dict[str, Any]:
        """JSON-able: spaces, network and head, everything but `state_dict()`."""
        return copy.deepcopy(self._description)

    # ---- torch

    def features(self, obs: Tensor) -> Tensor:
        """Normalized features `[..., F]` of packed obs `[..., *O]`; value networks eat the same."""
        features = self.observations.features(obs)
        return features if self.normalizer is None else self.normalizer.forward(features)

    def distribution_from_features(
        self, features: Tensor, mask: Tensor | None = None
    ) -> Distribution:
        """The distribution with batch shape `[...]` for `features(obs)` and `observations.mask`."""
        return self.head.forward(self.network(features), mask)  # a call: it may be compiled

    def forward(self, obs: Tensor, carry: Carry = None) -> tuple[Distribution, Carry]:
        """The distribution with batch shape `[...]` for packed observations `[..., *O]`.

        The carry is that of a recurrent policy; this one has none and returns what it was given.
        """
        mask = self.observations.mask(obs)
        return self.distribution_from_features(self.features(obs), mask), carry

    def draw(self, obs: Tensor, carry: Carry, generator: torch.Generator) -> tuple[Tensor, Carry]:
        """Actions `[N, *A]` with the law of `forward`, for packed observations `[N, *O]`.

        Call it under `torch.inference_mode()`, with a generator on the policy's device.
        """
        outputs = self.network.forward(self.features(obs))
        mask = self.observations.mask(obs) if self._has_mask else None
        return self.head.draw(outputs, generator, mask), carry

    def mode(self, obs: Tensor, carry: Carry = None) -> tuple[Tensor, Carry]:
        """The deterministic actions `[N, *A]`; see `Head.mode`."""
        outputs = self.network.forward(self.features(obs))
        return self.head.mode(outputs, self.observations.mask(obs)), carry

    # ---- numpy

    def actor(self, generator: torch.Generator | None, num_envs: int, num_steps: int = 1) -> Actor:
        """`draw` (`mode` without a generator) for the many calls until the next update.

        It takes packed observations `[N, *O]` and the carry, and returns actions `[N, *A]` and the
        next carry: numpy arrays, under `torch.inference_mode()`. The actions have the law of
        `draw`, not its bits: the noise of many steps is drawn at once.

        Args:
            generator: of the draws, on the policy's device. None: the deterministic actions.
            num_envs: N.
            num_steps: how many calls to expect.
        """
        quick = array_actor(self, generator, num_envs, num_steps)
        return torch_actor(self, generator) if quick is None else quick

    def seed(self, seed: int) -> None:
        """Fix what stochastic `act` draws from now on."""
        self._generator = torch.Generator(self._device()).manual_seed(seed)

    @torch.inference_mode()
    def act(self, obs: Any, deterministic: bool = False, action_mask: object = None) -> Any:
        """What `env.step` takes for one raw observation, or for a batch of them.

        Args:
            obs: as an environment or a vector environment returned it; which, its shape says.
            deterministic: the most likely action instead of a draw. Draws come from the policy's
                own generator: `seed` it, or it is seeded by the operating system.
            action_mask: `info["action_mask"]`, `[M]` or `[B, M]`, where the policy was trained so.

        Raises:
            SpaceError: the observation does not fit the policy's space.
        """
        batch_size = self.observations.batch_size(obs)
        packed = self.observations.pack(obs, batch_size, action_mask)
        tensor = torch.from_numpy(packed).to(self._device())
        tensor = tensor.unsqueeze(0) if batch_size is None else tensor  # [B, *O]
        if deterministic:
            action, _ = self.mode(tensor)
        else:
            if self._generator is None:
                self.seed(int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> 1))
            assert self._generator is not None
            action, _ = self.draw(tensor, None, self._generator)
        env_action = self.head.to_env(action.cpu().numpy())
        return first(self.head.space, env_action) if batch_size is None else env_action

    def _device(self) -> torch.device:
        return next(self.parameters()).device


def _checked(description: object) -> dict[str, Any]:
    """The description, if its keys and the types of its values are those of `describe`."""
    _require(description, _SHAPE, "policy description")
    assert isinstance(description, dict)
    if description["format"] != _FORMAT:
        raise UsageError(
            f"policy description: expected format {_FORMAT}, got {description['format']}; "
            "it needs another version of rlpg"
        )
    hidden = description["network"]["hidden"]
    if len(hidden) > 64 or not all(type(size) is int for size in hidden):
        raise UsageError(f"hidden: expected a few layer sizes, got {str(hidden)[:60]}")
    return description


_SHAPE: dict[str, Any] = {
    "format": int,
    "observations": dict,
    "action_space": dict,
    "network": {"hidden": list, "activation": str},
    "head": {
        "gaussian": str,
        "std": str,
        "log_std_init": float,
        "log_std_floor": float,
        "bernoulli": bool,
    },
    "normalize_observations": bool,
    "observation_clip": float,
}


def _require(value: object, shape: Any, name: str) -> None:
    if isinstance(shape, type):
        if type(value) is not shape:
            raise UsageError(f"{name}: expected {shape.__name__}, got {str(value)[:60]}")
        return
    if not isinstance(value, dict) or set(value) != set(shape):
        got = sorted(map(str, value)) if isinstance(value, dict) else str(value)[:60]
        raise UsageError(f"{name}: expected {', '.join(shape)}, got {got}")
    for key, part in shape.items():
        _require(value[key], part, f"{name}.{key}")

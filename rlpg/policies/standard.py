"""`StandardPolicy`: the policy that ships."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from rlpg.errors import SpaceError, UsageError
from rlpg.policies.actions import make_head
from rlpg.policies.fast_path import ArrayActor
from rlpg.policies.networks import MLP, Carry, Network
from rlpg.policies.normalizer import Normalizer
from rlpg.policies.observations import Images
from rlpg.policies.policy import FORMAT, Actor, Policy
from rlpg.policies.references import Part, UserParts, reference_to
from rlpg.policies.spaces import Space, space_to_data

_OUTPUT_GAIN = 0.01  # a first policy that is nearly uniform, or centered


@final
class StandardPolicy(Policy):
    """Packed observation -> features -> normalized -> network, with memory or not -> head.

    Not to be subclassed, because collecting takes a shortcut through NumPy: subclass `Policy`.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        *,
        generator: torch.Generator | None,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        network: Part | None = None,
        memory: str | None = None,
        memory_size: int = 64,
        shared_torso: bool = False,
        critic_only: Sequence[str] = (),
        images: Images = "auto",
        normalize_observations: bool = True,
        observation_clip: float = 10.0,
        gaussian: str = "clipped",
        std: str = "independent",
        log_std_init: float = 0.0,
        log_std_floor: float = -5.0,
        bernoulli: bool = False,
        info_mask: int = 0,
    ) -> None:
        """A policy with fresh weights, orthogonal, with gain 0.01 in the last layer.

        Args:
            observation_space, action_space: of one environment.
            generator: draws the weights; the global one is never touched. None: they are for
                `load_state_dict` to set.
            hidden, activation: of the network; see `Network`.
            network: `network(num_features, num_outputs)` makes another module; or `module:Name`.
            memory, memory_size: `gru` or `lstm` before the network, and its width.
            shared_torso: the network has one more output, the last: the value of the state.
            critic_only: entries of a Dict observation that only value networks see.
            images: which arrays are images; see `Observations`.
            normalize_observations, observation_clip: see `Normalizer`.
            gaussian, std, log_std_init, log_std_floor, bernoulli: see `make_head`.
            info_mask: length of `info["action_mask"]`, 0 where the environment has none.

        Raises:
            SpaceError: a space is not supported; the message lists what is.
            UsageError: an option has no such value.
        """
        super().__init__(observation_space, action_space, info_mask=info_mask, images=images)
        reference = factory = None
        if network is not None:
            reference = reference_to(network, "network")
            parts = UserParts(network=network, import_modules=True)
            factory = parts.find("network", reference)
            made = getattr(factory, "func", factory)  # of a partial
            if isinstance(made, type) and issubclass(made, Policy):
                raise UsageError(
                    f"network: expected what makes a torch.nn.Module, got the policy "
                    f"{reference.name}; pass policy=; on the command line, --policy.factory"
                )
        head = {
            "gaussian": gaussian,
            "std": std,
            "log_std_init": float(log_std_init),
            "log_std_floor": float(log_std_floor),
            "bernoulli": bernoulli,
        }
        self.head = make_head(action_space, **head)  # type: ignore[arg-type]  # of several types
        if self.observations.num_mask not in (0, self.head.num_mask):
            raise SpaceError(
                f"action mask: expected {self.head.num_mask or 'no'} entries for "
                f"{self.head.space}, got {self.observations.num_mask}"
            )
        self._description: dict[str, Any] = {
            "format": FORMAT,
            "observations": self.observations.describe(),
            "action_space": space_to_data(action_space),
            "network": {
                "hidden": [int(size) for size in hidden],
                "activation": activation,
                "factory": None if reference is None else reference.name,
                "kwargs": {} if reference is None else dict(reference.kwargs),
                "memory": memory,
                "memory_size": int(memory_size),
            },
            "head": head,
            "critic_only": list(critic_only),
            "normalize_observations": normalize_observations,
            "observation_clip": float(observation_clip),
        } | ({"shared_torso": True} if shared_torso else {})
        normalized = self.observations.normalized
        if normalize_observations and bool(normalized.any()):
            self.normalizer = Normalizer(normalized, clip=observation_clip)
        if shared_torso and critic_only:
            raise UsageError(
                f"critic_only: expected no entry with shared_torso, got {', '.join(critic_only)}"
            )
        self._seen = self.observations.features_without(critic_only)
        self._shares = shared_torso
        self._make_network = partial(
            Network,
            self.observations,
            activation=activation,
            memory=memory,
            memory_size=memory_size,
            factory=factory,
        )
        self.network = self._make_network(
            self.head.num_outputs + shared_torso,
            hidden=hidden,
            seen=self._seen,
            output_gain=_OUTPUT_GAIN,
            generator=generator,
        )

    def __init_subclass__(cls) -> None:
        raise TypeError("StandardPolicy is final; subclass rlpg.Policy and define forward")

    def make_critic(
        self, *, hidden: Sequence[int] | None = None, generator: torch.Generator
    ) -> Network:
        hidden = self._description["network"]["hidden"] if hidden is None else hidden
        return self._make_network(1, hidden=hidden, generator=generator)

    def describe(self) -> dict[str, Any]:
        return copy.deepcopy(self._description)

    # ---- torch

    @property
    def shared_network(self) -> Network | None:  # type: ignore[override]  # read-only here
        return self.network if self._shares else None

    def initial_carry(self, num_envs: int) -> Carry:
        return None if self.network.memory is None else self.network.memory.initial_carry(num_envs)

    @property
    def has_memory(self) -> bool:
        return self.network.memory is not None

    def forward(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Distribution, Carry]:
        outputs, carry = self.network(self.features(obs), carry, episode_start)  # may be compiled
        return self.head.forward(self._for_head(outputs), self.observations.mask(obs)), carry

    def forward_with_value(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Distribution, Tensor]:
        if not self._shares:
            return super().forward_with_value(obs, carry, episode_start)
        outputs, _ = self.network(self.features(obs), carry, episode_start)
        law = self.head.forward(self._for_head(outputs), self.observations.mask(obs))
        return law, outputs[..., -1]

    def _for_head(self, outputs: Tensor) -> Tensor:
        return outputs[..., : self.head.num_outputs] if self._shares else outputs

    def outputs(
        self, obs: Tensor, carry: Carry, episode_start: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Carry]:
        """Outputs `[N, num_outputs]` of one step, the action mask and the next carry."""
        features, mask = self.features(obs), self.observations.mask(obs)
        if self.network.memory is None:
            return self._for_head(self.network.forward(features)[0]), mask, None
        starts = None if episode_start is None else episode_start.unsqueeze(0)  # [1, N]
        outputs, carry = self.network.forward(features.unsqueeze(0), carry, starts)
        return self._for_head(outputs[0]), mask, carry

    def draw(
        self,
        obs: Tensor,
        carry: Carry,
        generator: torch.Generator,
        episode_start: Tensor | None = None,
    ) -> tuple[Tensor, Carry]:
        outputs, mask, carry = self.outputs(obs, carry, episode_start)
        return self.head.draw(outputs, generator, mask), carry

    def mode(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        outputs, mask, carry = self.outputs(obs, carry, episode_start)
        return self.head.mode(outputs, mask), carry

    def actor(self, generator: torch.Generator | None, num_envs: int, num_steps: int = 1) -> Actor:
        seen, mlp = self.observations, self.network.mlp
        is_whole = seen.is_plain and seen.num_mask == 0 and self._seen is None
        if not isinstance(mlp, MLP) or not is_whole or self.has_memory:
            return super().actor(generator, num_envs, num_steps)
        if generator is not None and self.head.noise((0, 1), torch.Generator()) is None:
            return super().actor(generator, num_envs, num_steps)
        return ArrayActor(mlp, self.normalizer, self.head, generator, num_envs, num_steps)

"""`Policy`: observations in, a distribution over actions out. `StandardPolicy`: the one that ships.

Subclass `Policy`, define `forward`, and it acts, learns, is saved, resumed and evaluated by what
`forward` says. There is no second path: `StandardPolicy` alone may take the one in NumPy.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from rlpg.errors import SpaceError, UsageError
from rlpg.policies.actions import first, make_head
from rlpg.policies.fast_path import Actor, Array, array_actor
from rlpg.policies.networks import Carry, Network, global_generator_from
from rlpg.policies.normalizer import Normalizer
from rlpg.policies.observations import Observations
from rlpg.policies.spaces import Space, space_from_data, space_to_data
from rlpg.references import Part, Reference, UserParts, reference_to

_OUTPUT_GAIN = 0.01  # a first policy that is nearly uniform, or centered
_FORMAT = 2


class Policy(nn.Module, ABC):
    """Observation -> distribution over actions.

    A subclass defines `forward`, and `initial_carry` if it has memory. Actions are in the units of
    its `head`: categories count from 0, and an interval of a Box is [-1, 1].

    Attributes:
        observations: packs observations, and makes features of them.
        head: says how actions look, and translates them for the environment.
        normalizer: running moments of the features, which a learner updates; None: no
            normalization. A subclass may set one.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        *,
        info_mask: int = 0,
        images: bool | Literal["auto"] = "auto",
    ) -> None:
        """
        Args:
            observation_space, action_space: of one environment.
            info_mask: length of `info["action_mask"]`, 0 where the environment has none.
            images: which uint8 arrays are images; see `Observations`.

        Raises:
            SpaceError: a space is not supported; the message lists what is.
        """
        super().__init__()
        self.observations = Observations(observation_space, info_mask=info_mask, images=images)
        self.head = make_head(action_space)
        self.normalizer: Normalizer | None = None
        self._generator: torch.Generator | None = None  # of `act`
        self._carry: Carry = None  # of `act`, [B, ...]
        self._starts: Tensor | None = None  # [B] bool: the next observation starts an episode

    # ---- what a subclass defines

    @abstractmethod
    def forward(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Distribution, Carry]:
        """The distribution of actions, and the carry for the next step.

        Args:
            obs: packed observations `[..., *O]`; with memory, a sequence `[T, n, *O]`.
            carry: with memory, `[n, ...]` before the first step; None without.
            episode_start: `[T, n]` bool: the carry is reset to the initial one before such steps.

        Returns:
            A distribution with batch shape `[...]`, whose log-prob of actions `[..., *A]` is
            `[...]` (use `torch.distributions.Independent`); and the carry, None without memory.
        """

    def initial_carry(self, num_envs: int) -> Carry:
        """The carry at the start of an episode: tensors `[N, ...]`; None: without memory."""
        return None

    # ---- torch

    @property
    def has_memory(self) -> bool:
        """Whether there is a carry."""
        return self.initial_carry(1) is not None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def features(self, obs: Tensor) -> Tensor:
        """Normalized features `[..., F]` of packed obs `[..., *O]`, also for value networks."""
        features = self.observations.features(obs)
        return features if self.normalizer is None else self.normalizer.forward(features)

    def make_critic(
        self, *, hidden: Sequence[int] | None = None, generator: torch.Generator
    ) -> Network:
        """A value network on `features`, with memory where `StandardPolicy` has it.

        Args:
            hidden: units of each of its hidden layers; None: as in the policy, else 64, 64.
            generator: draws the weights.
        """
        hidden = (64, 64) if hidden is None else hidden
        return Network(self.observations, 1, hidden=hidden, generator=generator)

    def draw(
        self,
        obs: Tensor,
        carry: Carry,
        generator: torch.Generator,
        episode_start: Tensor | None = None,
    ) -> tuple[Tensor, Carry]:
        """Actions `[N, *A]` with the law of `forward`, and the next carry.

        Args:
            obs: packed observations `[N, *O]` of one step.
            carry: `[N, ...]`, or None.
            generator: of the draws, on the policy's device.
            episode_start: `[N]` bool, for a policy with memory.
        """
        distribution, carry = self._step(obs, carry, episode_start)
        with global_generator_from(generator):  # torch's distributions take no generator
            action = distribution.sample()
        return self._action(action, len(obs)), carry

    def mode(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """The deterministic actions `[N, *A]`: the distribution's mode, else its mean."""
        distribution, carry = self._step(obs, carry, episode_start)
        try:
            action = distribution.mode
        except NotImplementedError:
            action = distribution.mean
        return self._action(action, len(obs)), carry

    def _step(
        self, obs: Tensor, carry: Carry, episode_start: Tensor | None
    ) -> tuple[Distribution, Carry]:
        """`forward` for one step: batch shape `[N]`, or `[1, N]` with memory."""
        if not self.has_memory:
            distribution, after = self(obs)
            if after is not None:
                raise UsageError(
                    f"{type(self).__name__}.forward: expected no carry, because initial_carry "
                    "returns None, got one; define initial_carry"
                )
            return distribution, None
        carry = self.initial_carry(len(obs)) if carry is None else carry
        starts = None if episode_start is None else episode_start.unsqueeze(0)  # [1, N]
        return self(obs.unsqueeze(0), carry, starts)  # type: ignore[no-any-return]  # nn.Module

    def _action(self, action: Tensor, num_envs: int) -> Tensor:
        expected = (num_envs, *self.head.action_shape)
        if self.has_memory:
            action = action[0]  # [1, N, *A] of one step
        if action.shape != expected:
            raise UsageError(
                f"{type(self).__name__}.forward: expected a distribution of actions [N, *A] = "
                f"{list(expected)}, got {list(action.shape)}; wrap it in Independent, or change "
                "its parameters"
            )
        return action.detach()

    # ---- numpy

    def actor(self, generator: torch.Generator | None, num_envs: int, num_steps: int = 1) -> Actor:
        """`draw` (`mode` without a generator) for the calls until the next update.

        It takes packed observations `[N, *O]`, the carry and `[N]` episode starts, and returns
        actions `[N, *A]` and the next carry; observations and actions are numpy arrays. Call it
        under `torch.inference_mode()`.

        Args:
            generator: of the draws, on the policy's device. None: the deterministic actions.
            num_envs: N.
            num_steps: how many calls to expect.
        """
        device = self.device

        def act(obs: Array, carry: Carry, episode_start: Tensor | None) -> tuple[Array, Carry]:
            packed = torch.from_numpy(obs).to(device)  # [N, *O]
            if generator is None:
                action, carry = self.mode(packed, carry, episode_start)
            else:
                action, carry = self.draw(packed, carry, generator, episode_start)
            return action.cpu().numpy(), carry

        return act

    def seed(self, seed: int) -> None:
        """Fix what stochastic `act` draws from now on."""
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def reset(self, mask: object = None) -> None:
        """Tell `act` that the next observation starts an episode; a policy with memory forgets.

        Args:
            mask: `[B]` bool, in which entries of the batch; None: in all.

        Raises:
            UsageError: the mask has another length than the last batch.
        """
        if mask is None or self._carry is None:
            self._carry = self._starts = None
            return
        starts = torch.as_tensor(np.asarray(mask, dtype=bool), device=self.device)
        remembered = _batch_size(self._carry)
        if starts.shape != (remembered,):
            raise UsageError(
                f"mask: expected [B] = [{remembered}], one entry per observation of the last call "
                f"of act, got {list(starts.shape)}"
            )
        self._starts = starts if self._starts is None else self._starts | starts

    @torch.inference_mode()
    def act(self, obs: Any, deterministic: bool = False, action_mask: object = None) -> Any:
        """What `env.step` takes for one raw observation, or for a batch of them.

        A policy with memory remembers from call to call; `reset` makes it forget.

        Args:
            obs: as an environment or a vector environment returned it; which, its shape says.
            deterministic: the mode of the distribution instead of a draw (see `Head.mode`). Draws
                come from the policy's own generator: `seed` it, or the operating system does.
            action_mask: `info["action_mask"]`, `[M]` or `[B, M]`, where the policy was trained so.

        Raises:
            SpaceError: the observation does not fit the policy's space, or is not finite.
        """
        batch_size = self.observations.batch_size(obs)
        packed = self.observations.pack(obs, batch_size, action_mask)
        if packed.dtype.kind == "f" and not np.isfinite(packed).all():
            raise SpaceError("observation: expected finite numbers, got NaN or infinity")
        tensor = torch.from_numpy(packed).to(self.device)
        tensor = tensor.unsqueeze(0) if batch_size is None else tensor  # [B, *O]
        carry, starts = self._carry_of_act(len(tensor))
        if deterministic:
            action, self._carry = self.mode(tensor, carry, starts)
        else:
            if self._generator is None:
                self.seed(int(np.random.SeedSequence().generate_state(1, np.uint64)[0]) >> 1)
            assert self._generator is not None
            action, self._carry = self.draw(tensor, carry, self._generator, starts)
        self._starts = None
        env_action = self.head.to_env(
            action.cpu().numpy().astype(self.head.numpy_dtype, copy=False)
        )
        return first(self.head.space, env_action) if batch_size is None else env_action

    def _carry_of_act(self, batch_size: int) -> tuple[Carry, Tensor | None]:
        carry = self._carry
        if carry is None or not self.has_memory:
            return None, None
        remembered = _batch_size(carry)
        if remembered != batch_size:
            raise SpaceError(
                f"observation: expected a batch of {remembered}, whose episodes this policy "
                f"remembers, got {batch_size}; call policy.reset() where episodes start"
            )
        return carry, self._starts

    # ---- files

    def describe(self) -> dict[str, Any]:
        """JSON-able: all that is needed to make the policy again, but `state_dict()`."""
        reference = self.__dict__.get("_reference") or reference_to(type(self), "policy")
        return {
            "format": _FORMAT,
            "policy": reference.name,
            "kwargs": dict(reference.kwargs),
            "observations": self.observations.describe(),
            "action_space": space_to_data(self.head.space),
        }

    @staticmethod
    def from_description(description: object, parts: UserParts | None = None) -> Policy:
        """The policy of this description, whose weights are for `load_state_dict` to set.

        Args:
            description: as `describe` returned it.
            parts: the user's own policy or network, where the description names one.

        Raises:
            UsageError (SpaceError): the description is not one that `describe` could have made,
                or names a part that was not given.
        """
        parts = parts or UserParts()
        if not isinstance(description, dict) or description.get("format") != _FORMAT:
            got = description.get("format") if isinstance(description, dict) else description
            raise UsageError(
                f"policy description: expected format {_FORMAT}, got {got!r:.60}; "
                "it needs another version of rlpg"
            )
        if "policy" not in description:
            return StandardPolicy.from_description(description, parts)
        _require(description, _SHAPE, "policy description")
        observations = Observations.from_description(description["observations"])
        reference = Reference(description["policy"], description["kwargs"])
        return make_own_policy(
            parts.find("policy", reference),
            reference,
            observations.space,
            space_from_data(description["action_space"]),
            info_mask=observations.info_mask,
            generator=torch.Generator().manual_seed(0),
        )


def make_own_policy(
    factory: Any,
    reference: Reference,
    observation_space: Space,
    action_space: Space,
    *,
    info_mask: int = 0,
    generator: torch.Generator,
) -> Policy:
    """A user's policy: `factory(observation_space, action_space)`, its weights from a generator.

    `factory` also gets `info_mask=` where the environment gives action masks in `info`.

    Raises:
        UsageError: it made something else than a `Policy`.
    """
    options = {"info_mask": info_mask} if info_mask else {}
    with global_generator_from(generator):
        policy = factory(observation_space, action_space, **options)
    if not isinstance(policy, Policy):
        raise UsageError(
            f"policy: expected {reference.name} to make an rlpg.Policy, got {policy!r:.80}"
        )
    policy._reference = reference  # type: ignore[assignment]  # plain data, no module
    return policy


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
        critic_only: Sequence[str] = (),
        images: bool | Literal["auto"] = "auto",
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
            critic_only: entries of a Dict observation that only value networks see.
            images: which uint8 arrays are images; see `Observations`.
            normalize_observations, observation_clip: see `Normalizer`.
            gaussian, std, log_std_init, log_std_floor, bernoulli: see `make_head`.
            info_mask: length of `info["action_mask"]`, 0 where the environment has none.

        Raises:
            SpaceError: a space is not supported; the message lists what is.
            UsageError: an option has no such value.
        """
        super().__init__(observation_space, action_space, info_mask=info_mask, images=images)
        reference = None if network is None else reference_to(network, "network")
        factory = None
        if network is not None and reference is not None:
            may_import = UserParts(network=network, import_modules=True)
            factory = may_import.find("network", reference)
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
        self._description = {
            "format": _FORMAT,
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
        }
        normalized = self.observations.normalized
        if normalize_observations and bool(normalized.any()):
            self.normalizer = Normalizer(normalized, clip=observation_clip)
        self._factory = factory
        self._seen = self.observations.features_without(critic_only)
        self.network = self._make_network(
            self.head.num_outputs, hidden, generator, seen=self._seen, output_gain=_OUTPUT_GAIN
        )
        self._has_mask = self.observations.mask_slice is not None

    def __init_subclass__(cls) -> None:
        raise TypeError("StandardPolicy is final; subclass rlpg.Policy and define forward")

    def _make_network(
        self,
        num_outputs: int,
        hidden: Sequence[int],
        generator: torch.Generator | None,
        **options: Any,
    ) -> Network:
        settings = self._description["network"]
        assert isinstance(settings, dict)
        return Network(
            self.observations,
            num_outputs,
            hidden=hidden,
            activation=settings["activation"],
            memory=settings["memory"],
            memory_size=settings["memory_size"],
            factory=self._factory,
            generator=generator,
            **options,
        )

    @property
    def sees_all(self) -> bool:
        """Whether no feature is hidden from the policy."""
        return self._seen is None

    def make_critic(
        self, *, hidden: Sequence[int] | None = None, generator: torch.Generator
    ) -> Network:
        if hidden is None:
            settings = self._description["network"]
            assert isinstance(settings, dict)
            hidden = settings["hidden"]
        return self._make_network(1, hidden, generator)

    def describe(self) -> dict[str, Any]:
        return copy.deepcopy(self._description)

    @staticmethod
    def from_description(description: object, parts: UserParts | None = None) -> StandardPolicy:
        _require(description, _STANDARD_SHAPE, "policy description")
        assert isinstance(description, dict)
        network = description["network"]
        hidden = network["hidden"]
        if len(hidden) > 64 or not all(type(size) is int for size in hidden):
            raise UsageError(f"hidden: expected a few layer sizes, got {str(hidden)[:60]}")
        factory = None
        if network["factory"] is not None:
            reference = Reference(network["factory"], network["kwargs"])
            factory = (parts or UserParts()).find("network", reference)
        observations = Observations.from_description(description["observations"])
        policy = StandardPolicy(
            observations.space,
            space_from_data(description["action_space"]),
            generator=None,
            hidden=hidden,
            activation=network["activation"],
            network=factory,
            memory=network["memory"],
            memory_size=network["memory_size"],
            critic_only=description["critic_only"],
            normalize_observations=description["normalize_observations"],
            observation_clip=description["observation_clip"],
            images=description["observations"].get("images", "auto"),
            info_mask=observations.info_mask,
            **description["head"],
        )
        policy._description = copy.deepcopy(description)
        return policy

    # ---- torch

    def initial_carry(self, num_envs: int) -> Carry:
        return None if self.network.memory is None else self.network.memory.initial_carry(num_envs)

    @property
    def has_memory(self) -> bool:
        return self.network.memory is not None

    def forward(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Distribution, Carry]:
        outputs, carry = self.network(self.features(obs), carry, episode_start)  # may be compiled
        return self.head.forward(outputs, self.observations.mask(obs)), carry

    def _outputs(
        self, obs: Tensor, carry: Carry, episode_start: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Carry]:
        """Outputs `[N, num_outputs]` of one step, the action mask and the next carry."""
        features = self.features(obs)
        mask = self.observations.mask(obs) if self._has_mask else None
        if self.network.memory is None:
            return self.network.forward(features)[0], mask, None
        starts = None if episode_start is None else episode_start.unsqueeze(0)  # [1, N]
        outputs, carry = self.network.forward(features.unsqueeze(0), carry, starts)
        return outputs[0], mask, carry

    def draw(
        self,
        obs: Tensor,
        carry: Carry,
        generator: torch.Generator,
        episode_start: Tensor | None = None,
    ) -> tuple[Tensor, Carry]:
        outputs, mask, carry = self._outputs(obs, carry, episode_start)
        return self.head.draw(outputs, generator, mask), carry

    def mode(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        outputs, mask, carry = self._outputs(obs, carry, episode_start)
        return self.head.mode(outputs, mask), carry

    def actor(self, generator: torch.Generator | None, num_envs: int, num_steps: int = 1) -> Actor:
        quick = array_actor(self, generator, num_envs, num_steps)
        return super().actor(generator, num_envs, num_steps) if quick is None else quick


def _batch_size(carry: Tensor | tuple[Tensor, ...]) -> int:
    return len(carry if isinstance(carry, Tensor) else carry[0])


_SHAPE: dict[str, Any] = {
    "format": int,
    "policy": str,
    "kwargs": dict,
    "observations": dict,
    "action_space": dict,
}
_STANDARD_SHAPE: dict[str, Any] = {
    "format": int,
    "observations": dict,
    "action_space": dict,
    "network": {
        "hidden": list,
        "activation": str,
        "factory": (str, type(None)),
        "kwargs": dict,
        "memory": (str, type(None)),
        "memory_size": int,
    },
    "head": {
        "gaussian": str,
        "std": str,
        "log_std_init": float,
        "log_std_floor": float,
        "bernoulli": bool,
    },
    "critic_only": list,
    "normalize_observations": bool,
    "observation_clip": float,
}


def _require(value: object, shape: Any, name: str) -> None:
    """UsageError unless the keys and the types of the values are those of the shape."""
    if not isinstance(shape, Mapping):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if type(value) not in kinds:
            raise UsageError(f"{name}: expected {kinds[0].__name__}, got {str(value)[:60]}")
        return
    if not isinstance(value, dict) or set(value) != set(shape):
        got = sorted(map(str, value)) if isinstance(value, dict) else str(value)[:60]
        raise UsageError(f"{name}: expected {', '.join(shape)}, got {got}")
    for key, part in shape.items():
        _require(value[key], part, f"{name}.{key}")

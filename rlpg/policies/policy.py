"""`Policy`: observations in, a distribution over actions out.

Subclass `Policy`, define `forward`, and it acts, learns, is saved, resumed and evaluated by what
`forward` says. Only `StandardPolicy`, the one that ships, may act by another path (NumPy).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from rlpg.errors import SpaceError, UsageError
from rlpg.policies.actions import first, make_head
from rlpg.policies.heads import Array, Head
from rlpg.policies.networks import Carry, Network, carry_parts, global_generator_from
from rlpg.policies.normalizer import Normalizer
from rlpg.policies.observations import Images, Observations
from rlpg.policies.references import reference_to
from rlpg.policies.spaces import Space, space_to_data

FORMAT = 2  # of descriptions

Actor = Callable[[Array, Carry, Tensor | None], tuple[Array, Carry]]
"""`actor(obs [N, *O], carry, episode_start [N]) -> actions [N, *A], the next carry`."""


class Policy(nn.Module, ABC):
    """Observation -> distribution over actions.

    A subclass defines `forward`, and `initial_carry` if it has memory. Actions are in the units of
    its `head`: categories count from 0, and an interval of a Box is [-1, 1].

    Attributes:
        observations: packs observations, and makes features of them.
        head: says how actions look, and translates them for the environment.
        normalizer: running moments of the features, which a learner updates; None: no
            normalization. A subclass may set one.
        shared_network: the network whose last output is the value of the state, where policy and
            critic share it (`StandardPolicy(shared_torso=True)`); None: the critic has its own.
    """

    shared_network: Network | None = None

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        *,
        info_mask: int = 0,
        images: Images = "auto",
    ) -> None:
        """
        Args:
            observation_space, action_space: of one environment.
            info_mask: length of `info["action_mask"]`, 0 where the environment has none.
            images: which arrays are images; see `Observations`.

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

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        is_taken = hasattr(type(self), name) or (name == "head" and not isinstance(value, Head))
        if is_taken and isinstance(value, nn.Module | nn.Parameter):
            raise UsageError(
                f"{type(self).__name__}.{name}: expected another name for a "
                f"{type(value).__name__}, because the class itself uses this one"
            )
        super().__setattr__(name, value)

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

    def forward_with_value(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Distribution, Tensor]:
        """The distribution of `forward`, and the values `[...]` of a policy that shares its torso.

        Raises:
            UsageError: its critic has a network of its own.
        """
        raise UsageError(
            f"{type(self).__name__}: expected a torso shared with the critic, got none"
        )

    def make_critic(
        self, *, hidden: Sequence[int] | None = None, generator: torch.Generator
    ) -> nn.Module:
        """A value network on `features`, with memory where `StandardPolicy` has it.

        A subclass may return any module that maps `[B, F]` to `[B, 1]`.

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
            generator: of the draws. One on the CPU gives the same random numbers wherever the
                policy is, unless its distributions draw for themselves, on its device.
            episode_start: `[N]` bool, for a policy with memory.
        """
        distribution, carry = self._step(obs, carry, episode_start)
        # torch's distributions take no generator.
        with global_generator_from(generator, self.device):
            action = distribution.sample()
        return self._action(action, obs.shape[0]), carry

    def mode(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """The deterministic actions `[N, *A]`: the distribution's mode, else its mean."""
        distribution, carry = self._step(obs, carry, episode_start)
        try:
            action = distribution.mode
        except NotImplementedError:
            action = self._mean(distribution)
        if action.is_floating_point():
            with suppress(NotImplementedError):  # NaN where none is likelier than the others
                action = torch.where(action.isnan(), distribution.mean, action)
        return self._action(action, obs.shape[0]), carry  # len(obs) could not be exported

    def _mean(self, distribution: Distribution) -> Tensor:
        try:
            return distribution.mean
        except NotImplementedError:
            raise UsageError(
                f"{type(self).__name__}.forward: expected a distribution with a mode or a mean, "
                f"which is the deterministic action, got {distribution}; define mode in a subclass"
            ) from None

    def _step(
        self, obs: Tensor, carry: Carry, episode_start: Tensor | None
    ) -> tuple[Distribution, Carry]:
        """`forward` for one step: batch shape `[N]`, or `[1, N]` with memory."""
        if self.has_memory:
            carry = self.initial_carry(len(obs)) if carry is None else carry
            starts = None if episode_start is None else episode_start.unsqueeze(0)  # [1, N]
            found = self(obs.unsqueeze(0), carry, starts)
        else:
            found = self(obs)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise UsageError(
                f"{type(self).__name__}.forward: expected (distribution, carry), got "
                f"{type(found).__name__}; return (distribution, None) without memory"
            )
        if isinstance(found[0], Tensor):
            raise UsageError(
                f"{type(self).__name__}.forward: expected a distribution, got a tensor of shape "
                f"{list(found[0].shape)}; return one that it parametrizes, as Categorical(logits=x)"
            )
        if found[1] is not None and not self.has_memory:
            raise UsageError(
                f"{type(self).__name__}.forward: expected no carry, because initial_carry "
                "returns None, got one; define initial_carry"
            )
        return found

    def _action(self, action: Tensor, num_envs: int) -> Tensor:
        expected = (num_envs, *self.head.action_shape)
        if self.has_memory:
            action = action[0]  # [1, N, *A] of one step
        if action.shape != expected:
            raise UsageError(
                f"{type(self).__name__}.forward: expected a distribution of actions [N, *A] = "
                f"{list(expected)}, got {list(action.shape)}; is it wrapped in Independent?"
            )
        if action.is_floating_point() and not self.head.action_dtype.is_floating_point:
            raise UsageError(
                f"{type(self).__name__}.forward: expected a distribution of integers for "
                f"{self.head.space}, got one of {action.dtype}; use Categorical, or draw integers"
            )
        return action.detach()

    # ---- numpy

    def actor(self, generator: torch.Generator | None, num_envs: int, num_steps: int = 1) -> Actor:
        """`draw` (`mode` without a generator) for the calls until the next update.

        It takes packed observations `[N, *O]`, the carry and `[N]` episode starts, and returns
        actions `[N, *A]` and the next carry; observations and actions are numpy arrays. No caller
        is to be in `torch.inference_mode()`: an environment may differentiate.

        Args:
            generator: of the draws, on the CPU. None: the deterministic actions.
            num_envs: N.
            num_steps: how many calls to expect.
        """
        device = self.device

        @torch.inference_mode()
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
        self._generator = torch.Generator().manual_seed(int(seed))

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
        if starts.shape != (self._remembered,):
            raise UsageError(
                f"mask: expected [B] = [{self._remembered}], one entry per observation of the last "
                f"call of act, got {list(starts.shape)}"
            )
        self._starts = starts if self._starts is None else self._starts | starts

    @torch.inference_mode()
    def act(self, obs: Any, deterministic: bool = False, action_mask: object = None) -> Any:
        """What `env.step` takes for one raw observation, or for a batch of them.

        A policy with memory remembers from call to call; `reset` makes it forget.

        Args:
            obs: one observation of an environment, or a batch of a vector environment; its shape
                tells which.
            deterministic: the mode of the distribution instead of a draw (see `Head.mode`). Draws
                come from the policy's own generator, which `seed` seeds, else the operating system.
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
        if self._remembered not in (0, len(tensor)):
            raise SpaceError(
                f"observation: expected a batch of {self._remembered}, whose episodes this policy "
                f"remembers, got {len(tensor)}; call policy.reset() where episodes start"
            )
        carry, starts = self._carry, self._starts
        if deterministic:
            action, self._carry = self.mode(tensor, carry, starts)
        else:
            if self._generator is None:
                self.seed(int(np.random.SeedSequence().generate_state(1, np.uint64)[0]) >> 1)
            assert self._generator is not None
            action, self._carry = self.draw(tensor, carry, self._generator, starts)
        self._starts = None
        env_action = self.head.to_env(action.to("cpu", self.head.action_dtype).numpy())
        return first(self.head.space, env_action) if batch_size is None else env_action

    def predict(
        self,
        observation: Any,
        state: tuple[Array, ...] | None = None,
        episode_start: object = None,
        deterministic: bool = False,
        *,
        action_mask: object = None,
    ) -> tuple[Any, tuple[Array, ...] | None]:
        """`act` as scripts for Stable-Baselines3 call it: the memory comes and goes with the call.

        Args:
            observation, deterministic, action_mask: see `act`.
            state: what the last call returned; None: the memory at the start of an episode.
            episode_start: `[B]` bool, or one for one observation: the memory starts again there.

        Returns:
            The action, and the state for the next call; None without memory.
        """
        remembered = self._carry, self._starts
        self._carry = self._starts = None
        if state is not None and self.has_memory:
            tensors = tuple(torch.from_numpy(np.array(part)).to(self.device) for part in state)
            self._carry = tensors if isinstance(self.initial_carry(1), tuple) else tensors[0]
            if episode_start is not None:
                self.reset(np.reshape(np.asarray(episode_start, dtype=bool), -1))
        try:
            action = self.act(observation, deterministic, action_mask)
            after = self._carry
        finally:
            self._carry, self._starts = remembered
        return action, tuple(part.cpu().numpy() for part in carry_parts(after)) or None

    @property
    def _remembered(self) -> int:
        """B of the carry of `act`; 0 without one."""
        return len(carry_parts(self._carry)[0]) if self._carry is not None else 0

    # ---- files

    def describe(self) -> dict[str, Any]:
        """JSON-able: all that is needed to make the policy again, but `state_dict()`."""
        reference = self.__dict__.get("_reference") or reference_to(type(self), "policy")
        return {
            "format": FORMAT,
            "policy": reference.name,
            "kwargs": dict(reference.kwargs),
            "observations": self.observations.describe(),
            "action_space": space_to_data(self.head.space),
        }

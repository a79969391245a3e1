"""`BaseCollector`: what every collector has, wherever its environments compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlpg.errors import EnvironmentFault, UsageError
from rlpg.policies.distributions import checked_log_prob
from rlpg.rollouts.rollout import Rollout
from rlpg.rollouts.seeds import seed_sequence

if TYPE_CHECKING:
    from rlpg.policies import Policy


class BaseCollector(ABC):
    """Collects rollouts, each continuing where the last one stopped.

    Args:
        envs: the environments.
        policy: draws the actions; on its device before the collector is made.
        seed: of the actions.
        num_envs: N.
        log_prob: whether rollouts carry `log_prob`; a learner that computes it anyway saves the
            pass by turning it off.
        deterministic: take the policy's deterministic action (`Policy.mode`) instead of a draw.
    """

    def __init__(
        self,
        envs: Any,
        policy: Policy,
        seed: int | np.random.SeedSequence,
        *,
        num_envs: int,
        log_prob: bool,
        deterministic: bool,
    ) -> None:
        self.envs = envs
        self.policy = policy
        self.num_envs = num_envs
        self.env_steps = 0  # real transitions so far
        self.vector_steps = 0  # steps of all environments at once so far
        self.env_seconds = 0.0  # spent in the environments so far, where they are stepped alone
        self._log_prob = log_prob
        self._seed = seed_sequence(seed)
        self._device = policy.device
        # On the CPU: random numbers, and files with the state of their streams, know no device.
        self._generator = stream(self._seed, torch.device("cpu"))
        self._drawing = None if deterministic else self._generator

    def steps(self, num_steps: int) -> Rollout:
        """The next `num_steps` steps of every environment; episodes run on into the next call.

        Raises:
            EnvironmentFault: what an environment returned cannot be used; names step and
                environment.
        """
        if num_steps < 1:
            raise UsageError(f"steps: expected at least 1, got {num_steps}")
        return self._finished(self._steps(num_steps))

    def episodes(self, per_env: int = 1, *, max_steps: int = 100_000) -> Rollout:
        """Exactly `per_env` whole episodes of every environment, from a fresh reset.

        "The first k to finish" would over-represent short episodes. Environments that are done
        early step on, but those slots are not `valid`. Episodes that were running are dropped.

        Args:
            per_env: episodes per environment.
            max_steps: mean length of an environment's episodes beyond which they count as never
                ending.

        Raises:
            EnvironmentFault: an environment lacks an episode after `per_env * max_steps` steps.
        """
        if per_env < 1:
            raise UsageError(f"episodes: expected at least 1 per environment, got {per_env}")
        rollout = self._finished(self._episodes(per_env, max_steps))
        self.restart()  # episodes beyond the quota are discarded
        return rollout

    @abstractmethod
    def _steps(self, num_steps: int) -> Rollout: ...

    @abstractmethod
    def _episodes(self, per_env: int, max_steps: int) -> Rollout: ...

    @abstractmethod
    def restart(self) -> None:
        """Makes the next rollout begin with a reset; running episodes are dropped."""

    def close(self) -> None:
        self.envs.close()

    def state_dict(self) -> dict[str, Any]:
        """All that decides what is collected next, but the policy: plain values, numpy arrays."""
        return {
            "env_steps": self.env_steps,
            "vector_steps": self.vector_steps,
            "generator": self._generator.get_state().numpy().copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> str:
        """Continue from a `state_dict`, with environments made as those were.

        Returns:
            "", or in one line why the environments could not be brought back; collecting then goes
            on with fresh episodes.
        """
        self.env_steps = int(state["env_steps"])
        self.vector_steps = int(state["vector_steps"])
        set_stream(self._generator, state["generator"])
        return ""

    def _finished(self, rollout: Rollout) -> Rollout:
        """Counted, and with the log-probs of its actions, where they were asked for."""
        self.env_steps += rollout.num_steps
        if not self._log_prob:
            return rollout
        shown = rollout.to(self._device)
        with torch.no_grad():
            distribution, _ = self.policy(shown.obs[:-1], shown.carry, shown.episode_start[:-1])
            found = checked_log_prob(distribution, shown.action, shown.reward.shape)
        return replace(rollout, log_prob=found.to(rollout.reward.device))


def never_ends(ends: np.ndarray, wanted: int, limit: int) -> EnvironmentFault:
    """What to say where an environment has not ended enough episodes, for `[N]` ends of each."""
    return EnvironmentFault(
        f"environment {int(ends.argmin())}: expected {wanted} episodes to end within {limit} "
        f"steps, got {int(ends.min())}; give it a time limit (max_episode_steps) or raise max_steps"
    )


def stream(seed: np.random.SeedSequence, device: torch.device) -> torch.Generator:
    """A generator on the device, at the start of the seed's stream."""
    return torch.Generator(device).manual_seed(int(seed.generate_state(1, np.uint64)[0]))


def set_stream(generator: torch.Generator, state: Any) -> None:
    """Brings a generator to the state that `get_state().numpy()` gave."""
    generator.set_state(torch.from_numpy(np.array(state, dtype=np.uint8)))

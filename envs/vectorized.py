"""N environments as NumPy arrays, and one environment made from the same code.

An environment written this way states its dynamics once, on arrays: `ArrayVectorEnv` steps N copies
of it, `SingleEnv` is the ordinary Gymnasium environment (the same code with N = 1).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]


class ArrayVectorEnv(VectorEnv[Array, Array, Array]):
    """N environments whose state is one array `[S, N]`, stepped together.

    Autoreset is `SAME_STEP`: an episode that ends is replaced within the step, so every step is a
    real transition; its true last observation is in `info["final_obs"]` (an object array, with the
    mask `info["_final_obs"]`), as in `gymnasium.vector.SyncVectorEnv`. Every environment has a
    random generator of its own, so environment i meets the same episodes whatever N is.
    `truncated` is what Gymnasium's `TimeLimit` says: the limit is reached, terminated or not.

    A subclass gives `_start`, `_advance` and `_observe`. Randomness inside an episode is drawn by
    `_start` and kept in the state: nothing is drawn per step, and `state_dict` is small and exact.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (typed so by Gymnasium)
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    state_dtype: ClassVar[DTypeLike] = np.float64

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        max_episode_steps: int | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.max_episode_steps = max_episode_steps
        self._step_limit = (
            np.iinfo(np.int64).max if max_episode_steps is None else max_episode_steps
        )
        self._action_shape = (num_envs, *(action_space.shape or ()))
        self._largest_action = _largest_action(action_space)
        self.generators: list[np.random.Generator] = []
        self.state: Array = np.empty(0)  # [S, N] once reset
        self.elapsed = np.zeros(num_envs, dtype=np.int64)  # [N] steps in the running episode

    @abstractmethod
    def _start(self, generator: np.random.Generator) -> Array:
        """`[S]`: the state at the start of an episode, and all that chance will do in it."""

    def _starts(self, generators: list[np.random.Generator]) -> Array:
        """`[S, K]`: `_start` for K environments."""
        return np.array([self._start(generator) for generator in generators]).T

    @abstractmethod
    def _advance(self, action: Array) -> tuple[Array, Array]:
        """Move `self.state` by one step; the reward `[N]` float64 and `terminated` `[N]` bool."""

    @abstractmethod
    def _observe(self, state: Array, elapsed: Array) -> Array:
        """`[K, *O]`: a new array of observations of `state` `[S, K]`, `elapsed` `[K]`."""

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every environment.

        Args:
            seed: one seed per environment, or an int s for s, s + 1, ... as in `SyncVectorEnv`;
                None goes on with the streams there are.
            options: none are known; anything given is refused.
        """
        if options:
            raise ValueError(f"options: expected none, got {sorted(options)}; leave them out")
        if seed is not None or not self.generators:
            seeds: list[int | None] = [None] * self.num_envs
            if isinstance(seed, int | np.integer):
                seeds = [int(seed) + i for i in range(self.num_envs)]
            elif seed is not None:
                seeds = [int(s) for s in seed]
            if len(seeds) != self.num_envs:
                raise ValueError(
                    f"seed: expected an int or {self.num_envs} seeds, got {len(seeds)}; "
                    "give one per environment"
                )
            self.generators = [seeding.np_random(s)[0] for s in seeds]
        return self._restart(np.arange(self.num_envs)), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Observation, reward, terminated, truncated and info after `actions` `[N, *A]`."""
        obs, reward, terminated = self.transition(actions)
        truncated = self.elapsed >= self._step_limit
        done = terminated | truncated
        info: dict[str, Any] = {}
        if done.any():
            ended = np.flatnonzero(done)
            final_obs = np.empty(self.num_envs, dtype=object)
            for env, last in zip(ended, obs[ended], strict=True):
                final_obs[env] = last
            info = {"final_obs": final_obs, "_final_obs": done}
            obs[ended] = self._restart(ended)
        return obs, reward, terminated, truncated, info

    def transition(self, actions: Array) -> tuple[Array, Array, Array]:
        """Observation, reward and terminated after `actions`, without limit and without reset."""
        if not self.generators:
            raise gymnasium.error.ResetNeeded("step: expected a reset before the first step; reset")
        reward, terminated = self._advance(self._checked(actions))
        self.elapsed += 1
        return self._observe(self.state, self.elapsed), reward, terminated

    def state_dict(self) -> dict[str, Any]:
        """All that decides the future: arrays, and the generators' states as JSON-able dicts."""
        return {
            "state": self.state.copy(),
            "elapsed": self.elapsed.copy(),
            "generators": [generator.bit_generator.state for generator in self.generators],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where the environments that gave `state_dict` stood."""
        if len(state_dict["generators"]) != self.num_envs:
            raise ValueError(
                f"state_dict: expected {self.num_envs} environments, got "
                f"{len(state_dict['generators'])}; make as many environments as were saved"
            )
        self.generators = [np.random.default_rng() for _ in range(self.num_envs)]
        for generator, state in zip(self.generators, state_dict["generators"], strict=True):
            generator.bit_generator.state = state
        self.state = np.array(state_dict["state"], dtype=self.state_dtype)
        self.elapsed = np.array(state_dict["elapsed"], dtype=np.int64)

    def _restart(self, envs: Array) -> Array:
        """`[K, *O]`: the first observations of new episodes in the environments `envs` `[K]`."""
        start = self._starts([self.generators[env] for env in envs])  # [S, K]
        if len(envs) == self.num_envs:
            self.state = start.astype(self.state_dtype)
        else:
            self.state[:, envs] = start
        self.elapsed[envs] = 0
        return self._observe(start, self.elapsed[envs])

    def _checked(self, actions: Array) -> Array:
        """`actions` as an array of the action space's kind, shape and range."""
        action = np.asarray(actions)
        if action.shape != self._action_shape:
            raise InvalidAction(
                f"actions: expected shape {self._action_shape}, got {action.shape}; "
                "give one action per environment"
            )
        if self._largest_action is None:
            return action.astype(self.single_action_space.dtype, copy=False)
        if action.dtype.kind not in "biu":
            raise InvalidAction(f"actions: expected integers, got {action.dtype}; convert them")
        if action.min() < 0 or (action > self._largest_action).any():
            raise InvalidAction(
                f"actions: expected members of {self.single_action_space}, got values from "
                f"{action.min()} to {action.max()}; keep them inside the space"
            )
        return action


class SingleEnv(gymnasium.Env[Any, Any]):
    """One environment of an `ArrayVectorEnv`, as an ordinary Gymnasium environment."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (typed so by Gymnasium)

    def __init__(self, envs: ArrayVectorEnv, render_mode: str | None = None) -> None:
        self.envs = envs
        self.observation_space = envs.single_observation_space
        self.action_space = envs.single_action_space
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Observation and info at the start of an episode."""
        super().reset(seed=seed)
        self.envs.generators = [self.np_random]
        obs, info = self.envs.reset(options=options)
        return obs[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated (never: `TimeLimit` does that) and info."""
        obs, reward, terminated = self.envs.transition(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), False, {}


def _largest_action(space: spaces.Space[Any]) -> Array | int | None:
    """The largest member of a space of integers that starts at 0; None for a `Box`."""
    if isinstance(space, spaces.Discrete):
        return int(space.n) - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec - 1
    return 1 if isinstance(space, spaces.MultiBinary) else None

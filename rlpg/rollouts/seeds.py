"""A seed for every episode, from (run, environment, episode) and from nothing else.

Two runs share no stream; environment 0 sees the same episodes whether it has 7 neighbors or 700.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from rlpg.errors import EnvironmentFault, RlpgError, UsageError, words
from rlpg.rollouts.shared import view
from rlpg.rollouts.validation import Validator, flat_mask, is_number
from rlpg.rollouts.watchdog import Calls, close_quietly, is_from_a_signal
from rlpg.rollouts.workers import WorkerEnvs

OURS = "rlpg/"  # ids of our environments; their vector versions take a seed per environment

RETURNED = {"reset": "(obs, info)", "step": "(obs, reward, terminated, truncated, info)"}
_BLOCK = 64  # episodes
_KEY = 0x656E76  # keeps these streams apart from whatever else is spawned from the run's seed
_MARK = "rlpg_seeded"


def seed_sequence(seed: int | np.random.SeedSequence) -> np.random.SeedSequence:
    """The seed as a SeedSequence.

    Raises:
        UsageError: it is no integer, or negative.
    """
    if isinstance(seed, np.random.SeedSequence):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise UsageError(f"seed: expected an integer of at least 0, got {seed!r:.40}")
    return np.random.SeedSequence(int(seed))


class EpisodeSeeds(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gives every episode its own seed, and every error the index of its environment.

    A reset without a seed takes the next seed of the stream (run, env_index, episode). Seeds have
    31 bits, because environments hand them to `numpy.random.seed` and to C: two given episodes
    share one with probability 5e-10. The last observation of an episode is copied, because the
    reset that follows within the same vector step may overwrite the environment's buffer.

    Args:
        seed: of the run.
        env_index: which of the run's environments it is.
        calls: is told when a call of the environment begins and ends.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        seed: np.random.SeedSequence,
        env_index: int,
        calls: Calls | None = None,
    ) -> None:
        super().__init__(env)
        self.calls = calls or Calls()  # replaced by a worker
        self.env_index = env_index
        self.episode = -1
        self.episode_seed: int | None = None
        self.saved: Mapping[str, Any] = {}  # what `replay_saved` goes back to
        self._run = seed
        self._block = -1
        self._seeds: list[int] = []  # of the episodes in this block
        self._actions: list[Any] = []  # of the running episode so far
        self._obs: Any = None  # the last one given out
        self._total: float | None = None  # of rewards; None: an older version did not save it
        self._before: tuple[Any, ...] | None = None  # the episode before, as `_played` takes it
        self._validator = Validator(env.observation_space)
        self._mask_size: int | None = None  # entries of the first action mask

    def restart_seeds(self, run: np.random.SeedSequence) -> None:
        """Continues with the first episode of another run's stream."""
        self.episode, self._run, self._block = -1, run, -1
        self._actions, self._before = [], None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The first observation of the next episode, and what is read of its info."""
        self.episode += 1
        block, place = divmod(self.episode, _BLOCK)
        if block != self._block:
            self._block, self._seeds = block, _block_of_seeds(self._run, self.env_index, block)
        if self._actions:
            last = copy.deepcopy(self._obs)  # the reset may overwrite it
            self._before = self.episode_seed, self._actions, last, self._total
        self.episode_seed = self._seeds[place] if seed is None else seed
        self._actions, self._total = [], 0.0
        try:
            with self.calls.begin(self):
                self._obs, info = self.env.reset(seed=self.episode_seed, options=options)
                fitted = self._validator.observation(self._obs)
                self._validator.outcome(0.0, False, False, info)
                read = self._read(info)
        except BaseException as error:
            raise self._fault("reset", error) from error
        return fitted, read

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The environment's own step, with what is read of its info."""
        taken = action.copy() if isinstance(action, np.ndarray) else copy.deepcopy(action)
        try:
            with self.calls.begin(self):
                obs, reward, terminated, truncated, info = self.env.step(action)
                fitted = self._validator.observation(obs)
                self._validator.outcome(reward, terminated, truncated, info)
                read = self._read(info)
        except BaseException as error:
            raise self._fault("step", error) from error
        if terminated or truncated:
            fitted = copy.deepcopy(fitted)
        self._actions.append(taken)
        self._obs = obs
        if self._total is not None:
            self._total += float(reward)
        return fitted, reward, terminated, truncated, read

    def _read(self, info: Mapping[Any, Any]) -> dict[str, Any]:
        """The entries of an `info` that are used: the action mask, `[M]` bool, and parts of the
        reward, as floats.

        Others may be anything, and a vector environment would put each into an array with those of
        the other environments: of the type and shape that came first, which the next need not fit.
        """
        read: dict[str, Any] = {}
        for name, value in info.items():
            if name == "action_mask" and value is not None:
                mask = flat_mask(value)
                if self._mask_size not in (None, len(mask)):
                    raise EnvironmentFault(
                        f'info["action_mask"]: expected {self._mask_size} entries, as before, got '
                        f"{len(mask)}"
                    )
                self._mask_size, read[name] = len(mask), mask
            elif isinstance(name, str) and name[:7] == "reward_" and is_number(value):
                read[name] = float(value)
        return read

    def close(self) -> None:
        """Close the environment; what goes wrong there harms no one any more."""
        close_quietly(self.env.close, self)

    def episode_state(self) -> dict[str, Any]:
        """Where the environment stands: the number of its episode and how to get to the same point
        in it. With an episode that has just begun comes the one before, which shows more."""
        state: dict[str, Any] = {"episode": self.episode}
        if self.episode_seed is None:  # there was none
            return state
        if self._before is not None and not self._actions:
            state["before"] = self._played(*self._before)
        return state | self._now()

    def _now(self) -> dict[str, Any]:
        return self._played(self.episode_seed, self._actions, self._obs, self._total)

    def _played(
        self, seed: int | None, actions: list[Any], obs: Any, total: float | None
    ) -> dict[str, Any]:
        """An episode as data: its seed, its actions so far, and what came of them."""
        together: Any = None  # [T, *A] in the structure of their space
        if actions:
            empty: Any = create_empty_array(self.action_space, len(actions))
            together = concatenate(self.action_space, actions, empty)
        played = {"seed": seed, "count": len(actions), "actions": together, "obs": digest(obs)}
        return played if total is None else played | {"total": total}

    def replay_saved(self) -> str:
        """Go to where `episode_state` gave `saved`.

        Returns:
            "", or why it could not be: an error would end the worker, and training with it.
        """
        state, self.saved = self.saved, {}
        self.episode = state["episode"]
        for played in (state.get("before", {}), state):
            if "seed" not in played:
                continue
            self.episode = state["episode"] - 1
            try:
                self.reset(seed=played["seed"])
                for t in range(played["count"]):
                    self.step(view(played["actions"], t))
            except EnvironmentFault as fault:
                return str(fault)
            if "total" not in played:
                self._total = None
            now = self._now()
            if any(now[name] != played[name] for name in ("obs", "total") if name in now):
                return (
                    f"environment {self.env_index}: the same seed and actions led elsewhere, it "
                    "does not repeat itself"
                )
        return ""

    @property
    def whereabouts(self) -> str:
        return f"environment {self.env_index}, episode {self.episode} (seed {self.episode_seed})"

    def _fault(self, call: str, error: BaseException) -> EnvironmentFault:
        if is_from_a_signal(error):
            raise error
        said = words(error)
        if not isinstance(error, RlpgError):
            said = f"{call}() raised {said}"
            if "values to unpack" in said:  # most likely of what the environment returned
                said += f"; let {call}() return {RETURNED[call]}"
        return EnvironmentFault(f"{self.whereabouts}: {said}")


def digest(obs: Any) -> str:
    """sha256 of an observation's bytes, whatever its structure."""
    found = hashlib.sha256()
    _feed(found, obs)
    return found.hexdigest()


def _feed(found: Any, obs: Any) -> None:
    if isinstance(obs, Mapping):
        for key in sorted(obs):
            found.update(str(key).encode())
            _feed(found, obs[key])
    elif isinstance(obs, tuple | list):
        for part in obs:
            _feed(found, part)
    else:
        array = np.ascontiguousarray(obs)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(array.tobytes())


def derived_seed(run: np.random.SeedSequence, env_index: int, episode: int) -> int:
    """A 31-bit seed from (run, env_index, episode); the run's own state does not move."""
    block, place = divmod(episode, _BLOCK)
    return _block_of_seeds(run, env_index, block)[place]


def _block_of_seeds(run: np.random.SeedSequence, env_index: int, block: int) -> list[int]:
    # One SeedSequence costs 10 us, as much as an episode of Blackjack: make many seeds with it.
    child = np.random.SeedSequence(run.entropy, spawn_key=(*run.spawn_key, _KEY, env_index, block))
    return [int(word) for word in child.generate_state(_BLOCK) >> 1]


def reseed(envs: VectorEnv[Any, Any, Any], run: np.random.SeedSequence) -> None:
    """Lets environments from `make_envs` begin the streams of another run at their next reset.

    EnvPool cannot: its seeds are fixed when it is made, and it goes on where it is.
    """
    base: Any = envs.unwrapped
    if is_seeded_by_episode(envs):
        base.call("restart_seeds", run)
    elif not is_envpool(envs):
        seed_streams(envs, run)


def seed_streams(
    envs: VectorEnv[Any, Any, Any], run: np.random.SeedSequence, first_env: int = 0
) -> Any:
    """Resets with a seed per environment, or one for all where they share one stream.

    Gymnasium's own rule for one seed s is s, s + 1, ...: neighbors that runs would share.
    """
    seed: Any = derived_seed(run, first_env, 0)
    spec, base = envs.spec, envs.unwrapped
    if isinstance(base, SyncVectorEnv | AsyncVectorEnv) or (spec and spec.id.startswith(OURS)):
        seed = [derived_seed(run, first_env + n, 0) for n in range(envs.num_envs)]
    result = envs.reset(seed=seed)
    envs.metadata = {**envs.metadata, _MARK: True}
    return result


def is_envpool(envs: VectorEnv[Any, Any, Any]) -> bool:
    """Whether EnvPool made it (its seeds are fixed at construction)."""
    return any(base.__module__.startswith("envpool.") for base in type(envs.unwrapped).__mro__)


def is_seeded(envs: VectorEnv[Any, Any, Any]) -> bool:
    """Whether the environments already have their random streams."""
    return is_envpool(envs) or is_seeded_by_episode(envs) or _MARK in envs.metadata


def is_seeded_by_episode(envs: VectorEnv[Any, Any, Any]) -> bool:
    """Whether every episode has a seed of its own, by `EpisodeSeeds`."""
    base = envs.unwrapped
    if isinstance(base, SyncVectorEnv):
        return all(isinstance(env, EpisodeSeeds) for env in base.envs)
    return isinstance(base, WorkerEnvs)

"""The environment that is checked, and how more of it are made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from rlpg.checks.play import AnyEnv
from rlpg.rollouts import MadeEnvs, copy_of, find_spec, make_envs
from rlpg.rollouts.ids import own_words


class Subject:
    """The environment, and how more of it are made."""

    def __init__(self, env: str | AnyEnv, kwargs: dict[str, Any]) -> None:
        self._given, self._kwargs = env, kwargs
        self.is_ours = isinstance(env, str)  # made here, closed here
        self.spec: EnvSpec | None
        if isinstance(env, str):
            with own_words(env):
                self.spec, _ = find_spec(env)
            self.name = self.spec.id
            self.env = self._made()
        else:
            self.spec, self.env = env.spec, env
            self.name = self.spec.id if self.spec else type(env.unwrapped).__name__
        self.limit = self.spec.max_episode_steps if self.spec else None
        # Atari counts frames itself.
        self.is_limited = self.limit is not None or (
            self.spec is not None and "max_num_frames_per_episode" in self.spec.kwargs
        )

    def fresh(self) -> AnyEnv | None:
        """Another one, or None where there is no way to make it."""
        return self._made() if isinstance(self._given, str) else copy_of(self._given)

    def bare(self) -> AnyEnv:
        """One without the wrappers that Gymnasium adds of itself."""
        if not isinstance(self._given, str):
            return self._given.unwrapped
        assert self.spec is not None  # an id has one
        spec = replace(self.spec, order_enforce=False, max_episode_steps=None)
        with own_words(self.name):
            return gymnasium.make(
                spec, max_episode_steps=-1, disable_env_checker=True, **self._kwargs
            )

    def vector(self, num_envs: int, backend: str, *, seed: int, episode_cap: int) -> MadeEnvs:
        """Copies side by side."""
        return make_envs(
            self._given,
            num_envs,
            seed=seed,
            kwargs=self._kwargs,
            backend=backend,
            episode_cap=episode_cap,
        )

    def _made(self) -> AnyEnv:
        assert self.spec is not None
        with own_words(self.name):
            return gymnasium.make(self.spec, disable_env_checker=True, **self._kwargs)

    def close(self) -> None:
        """Closes what was made here; `close` has a check of its own."""
        if self.is_ours:
            close_quietly(self.env)


def close_quietly(env: AnyEnv | VectorEnv[Any, Any, Any] | None) -> None:
    """Closes it, whatever it says."""
    try:
        if env is not None:
            env.close()
    except (Exception, SystemExit):
        return

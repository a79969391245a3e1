"""The environment that is checked, and how more of it are made."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from rlpg.checks.play import AnyEnv
from rlpg.rollouts import MadeEnvs, another_like, environment_name, find_spec, make_envs
from rlpg.rollouts.environments import made_by
from rlpg.rollouts.ids import Factory, own_words


class Subject:
    """The environment, and how more of it are made.

    Attributes:
        env: the one that is checked.
        is_ours: whether it was made here, and is closed here.
        spec: what Gymnasium knows of it.
        is_limited: whether it has a time limit.
        whereabouts: its name, for messages about a call that hangs.
    """

    def __init__(
        self, env: str | AnyEnv | Factory, kwargs: dict[str, Any], seed: int, episode_cap: int
    ) -> None:
        self._given, self._kwargs = env, kwargs
        self._seed, self._episode_cap = seed, episode_cap
        self._id_spec: EnvSpec | None = None
        self.is_ours = not isinstance(env, gymnasium.Env)
        self.whereabouts = environment_name(env)
        with own_words(env):
            if isinstance(env, str):
                self._id_spec, _ = find_spec(env)
                self.whereabouts = self._id_spec.id
            self.env: AnyEnv = env if isinstance(env, gymnasium.Env) else self._made()
        self.spec = self._id_spec or self.env.spec
        # Atari counts frames itself.
        self.is_limited = self.spec is not None and (
            self.spec.max_episode_steps is not None
            or "max_num_frames_per_episode" in self.spec.kwargs
        )

    def fresh(self) -> AnyEnv | None:
        """Another one, or None where there is no way to make it."""
        with own_words(self.whereabouts):
            another: AnyEnv | None = self._made()
        return another

    def vector(self, num_envs: int, backend: str) -> MadeEnvs:
        return make_envs(
            self._given,
            num_envs,
            seed=self._seed,
            kwargs=self._kwargs,
            backend=backend,
            episode_cap=self._episode_cap,
        )

    def _made(self) -> Any:
        if self._id_spec is not None:
            return gymnasium.make(self._id_spec, disable_env_checker=True, **self._kwargs)
        another: Any = another_like(self._given)
        return None if another is None else made_by(another, **self._kwargs)

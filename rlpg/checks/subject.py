"""The environment that is checked, and how more of it are made."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from rlpg.checks.play import AnyEnv
from rlpg.rollouts import another_like, environment_name, find_spec
from rlpg.rollouts.environments import made_by
from rlpg.rollouts.ids import Factory, own_words


class Subject:
    """The environment `env`, and what it was made of; `whereabouts` is its name in messages."""

    def __init__(self, env: str | AnyEnv | Factory, kwargs: dict[str, Any]) -> None:
        self.given, self.kwargs = env, kwargs
        self.is_ours = not isinstance(env, gymnasium.Env)  # made here, to be closed here
        self.whereabouts = environment_name(env)
        self._make: Any = another_like(env)
        self.spec: EnvSpec | None = None
        with own_words(env):
            if isinstance(env, str):
                self.spec, _ = find_spec(env)
                self.whereabouts = self.spec.id
                self._make = partial(gymnasium.make, self.spec, disable_env_checker=True)
            self.env = env if isinstance(env, gymnasium.Env) else made_by(self._make, **kwargs)
        self.spec = self.spec or self.env.spec
        # A time limit; Atari counts frames itself.
        self.is_limited = self.spec is not None and (
            self.spec.max_episode_steps is not None
            or "max_num_frames_per_episode" in self.spec.kwargs
        )

    def fresh(self) -> AnyEnv | None:
        """Another one, or None where there is no way to make it."""
        if self._make is None:
            return None
        with own_words(self.whereabouts):
            another = made_by(self._make, **self.kwargs)
        return another

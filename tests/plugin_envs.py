"""Environments as other packages have them: registered in a function, with text to be read."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register, registry


class Mission(spaces.Space[str]):
    """Text of a class of its own, as in MiniGrid."""

    def __init__(self) -> None:
        super().__init__(shape=None, dtype=str)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return "go"

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mission)


class Told(gymnasium.Env[Any, Any]):
    """Numbers, and words beside them; three steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {
                "mission": Mission(),
                "numbers": spaces.Box(-1.0, 1.0, (2,), np.float32),
                "inner": spaces.Dict({"text": spaces.Text(9), "count": spaces.Discrete(4)}),
            }
        )
        self.action_space = spaces.Discrete(2)

    def _seen(self) -> dict[str, Any]:
        numbers = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        inner = {"text": "abcd"[: self.count + 1], "count": self.count}
        return {"mission": "go", "numbers": numbers, "inner": inner}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return self._seen(), float(action), self.count == 3, False, {}


def register_envs() -> None:
    """What the entry point `gymnasium.envs` of MinAtar names."""
    if "Plugin/Told-v1" not in registry:
        register("Plugin/Told-v1", entry_point="plugin_envs:Told")

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


INFOS: dict[str, list[dict[Any, Any]]] = {  # of one step, and of the next
    "other shapes": [{"goals": np.zeros(2)}, {"goals": np.zeros(3)}],
    "a number, then words": [{"why": 1}, {"why": "late"}],
    "words, then a number": [{"why": "late"}, {"why": 1.5}],
    "a table, then a number": [{"why": {"late": 1}}, {"why": 2}],
    "a number, then a table": [{"why": 2}, {"why": {"late": 1}}],
    "an array, then none": [{"why": np.zeros(2)}, {"why": None}],
    "other dtypes": [{"why": np.zeros(2, int)}, {"why": np.array(["a", "b"])}],
    "a large integer": [{"why": 1}, {"why": 10**30}],
    "an integer, then nan": [{"why": 1}, {"why": float("nan")}],
    "keys that are no words": [{1: 2, ("a", 1): 2}],
    "what cannot be pickled": [{"why": lambda: 0}],
    "names of Gymnasium": [{"final_info": 1, "_why": 1, "why": 2}],
    "a part that is a word": [{"reward_a": 1}, {"reward_a": "bad"}],
}


class Informed(Told):
    """Its infos differ from step to step and from episode to episode."""

    def __init__(self, infos: str) -> None:
        super().__init__()
        self.infos = INFOS[infos]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, _ = super().reset(seed=seed)
        return obs, self._info()

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], self._info()

    def _info(self) -> dict[Any, Any]:
        return dict(self.infos[int(self.np_random.integers(len(self.infos)))])


class Parts(Told):
    """Tells 1, then halves, of its reward: the mean of the part is 0.5."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"reward_a": [1, 0.5, False][self.count - 1]}


class Masked(Told):
    """Its masks are what it was told, in this order, and then from the start."""

    def __init__(self, masks: list[Any]) -> None:
        super().__init__()
        self.masks = masks

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs, _ = super().reset(seed=seed)
        return obs, {"action_mask": self.masks[0]}

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"action_mask": self.masks[self.count % len(self.masks)]}


def register_envs() -> None:
    """What the entry point `gymnasium.envs` of MinAtar names."""
    if "Plugin/Told-v1" not in registry:
        register("Plugin/Told-v1", entry_point="plugin_envs:Told")

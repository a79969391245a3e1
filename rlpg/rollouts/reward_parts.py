"""The parts of the reward that environments tell in `info`, as curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlpg.rollouts.validation import is_scalar


class RewardParts:
    """Sums of the entries `reward_*` of `info` over the steps of a rollout, by environment.

    An entry counts where the environment gave it: a vector environment tells by `_reward_*`, and
    puts what belongs to the end of an episode that it reset at once into `final_info`.
    """

    def __init__(self, num_envs: int) -> None:
        self._num_envs = num_envs
        self._sums: dict[str, np.ndarray] = {}  # [2, N]: the sum, and over how many steps

    def add(self, info: Mapping[str, Any]) -> None:
        """Take the `info` of a step of all environments; what is no number is left out."""
        for name in info:
            if name[:7] == "reward_":
                values, given = np.asarray(info[name]), info.get(f"_{name}", slice(None))
                if values.shape == (self._num_envs,) and values.dtype.kind in "fiub":
                    total, count = self._of(name)
                    total[given] += values[given]
                    count[given] += 1
        if isinstance(info.get("final_info"), Mapping):
            self.add(info["final_info"])

    def add_single(self, info: Mapping[str, Any], env: int) -> None:
        """Take the `info` of one environment; the sums are those of `add`, to the bit."""
        for name, value in info.items():
            if name[:7] == "reward_" and (isinstance(value, float) or is_scalar(value, "fiub")):
                total, count = self._of(name)
                total[env] += value
                count[env] += 1
        if isinstance(info.get("final_info"), Mapping):
            self.add_single(info["final_info"], env)

    def taken(self) -> dict[str, np.ndarray]:
        """The sums `[2, N]` by name; they begin anew."""
        sums, self._sums = self._sums, {}
        return sums

    def put(self, sums: Mapping[str, np.ndarray], rows: slice) -> None:
        """Take the sums of some of the environments."""
        for name, of_rows in sums.items():
            self._of(name)[:, rows] = of_rows

    def means(self) -> dict[str, float]:
        """Mean per step, by name."""
        both = {name: sums.sum(axis=1).tolist() for name, sums in self._sums.items()}
        return {name: total / count for name, (total, count) in both.items() if count}

    def _of(self, name: str) -> np.ndarray:
        if name not in self._sums:
            self._sums[name] = np.zeros((2, self._num_envs))
        return self._sums[name]

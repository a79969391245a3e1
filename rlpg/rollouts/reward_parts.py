"""The parts of the reward that environments tell in `info`, as curves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlpg.rollouts.validation import is_number

Sums = tuple[np.ndarray, np.ndarray]  # [N] each: the sum, and over how many steps


class RewardParts:
    """Sums of the entries `reward_*` of `info` over the steps of a rollout, by environment.

    An entry counts where the environment gave it: a vector environment tells by `_reward_*`, and
    puts what belongs to the end of an episode that it reset at once into `final_info`.
    """

    def __init__(self, num_envs: int) -> None:
        self._num_envs = num_envs
        self._sums: dict[str, Sums] = defaultdict(lambda: (np.zeros(num_envs), np.zeros(num_envs)))

    def add(self, info: Mapping[str, Any]) -> None:
        """Take the `info` of a step of all environments; what is no number is left out."""
        for name in info:
            if isinstance(name, str) and name[:7] == "reward_":
                values, given = np.asarray(info[name]), info.get(f"_{name}", slice(None))
                if values.shape == (self._num_envs,) and values.dtype.kind in "fiub":
                    total, count = self._sums[name]
                    total[given] += values[given]
                    count[given] += 1
        if isinstance(info.get("final_info"), Mapping):
            self.add(info["final_info"])

    def add_single(self, info: Mapping[str, Any], env: int) -> None:
        """Take the `info` of one environment; the sums are those of `add`, to the bit."""
        for name, value in info.items():
            if name[:7] == "reward_" and is_number(value):
                total, count = self._sums[name]
                total[env] += value
                count[env] += 1
        if isinstance(info.get("final_info"), Mapping):
            self.add_single(info["final_info"], env)

    def taken(self, rows: slice) -> dict[str, Sums]:
        """The sums of some of the environments, by name; they begin anew."""
        sums = {name: (total[rows], count[rows]) for name, (total, count) in self._sums.items()}
        self._sums.clear()
        return sums

    def put(self, sums: Mapping[str, Sums], rows: slice) -> None:
        """Take what `taken` gave."""
        for name, of_rows in sums.items():
            for mine, theirs in zip(self._sums[name], of_rows, strict=True):
                mine[rows] = theirs

    def means(self) -> dict[str, float]:
        """Mean per step, by name."""
        both = {name: (float(a.sum()), float(b.sum())) for name, (a, b) in self._sums.items()}
        return {name: total / count for name, (total, count) in both.items() if count}

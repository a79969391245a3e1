"""The parts of the reward that an environment tells in `info`, as curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class RewardParts:
    """Sums of the entries `reward_*` of `info` over the steps of a rollout.

    An entry counts where the environment gave it: a vector environment tells by `_reward_*`, and
    puts what belongs to the end of an episode that it reset at once into `final_info`.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}  # and over how many steps

    def add(self, info: Mapping[str, Any]) -> None:
        """Take the `info` of a step of all environments; what is no number is left out."""
        for name in info:
            if name[:7] == "reward_":
                values = np.asarray(info[name])
                given = info.get(f"_{name}")
                if values.ndim == 1 and values.dtype.kind in "fiub":
                    total, count = self._sums.get(name, (0.0, 0))
                    values = values if given is None else values[given]
                    self._sums[name] = total + float(values.sum()), count + len(values)
        if "final_info" in info and isinstance(info["final_info"], Mapping):
            self.add(info["final_info"])

    def means(self) -> dict[str, float]:
        """Mean per step, by name."""
        return {name: total / count for name, (total, count) in self._sums.items() if count}

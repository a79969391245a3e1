"""Where observations leave the bounds of their space. That is said once, and training goes on."""

from __future__ import annotations

import math

import numpy as np
from gymnasium import spaces

from rlpg.policies.observations import Observations
from rlpg.policies.spaces import leaves, path_name
from rlpg.rollouts.buffer import step_name
from rlpg.rollouts.rollout import Rollout
from rlpg.rollouts.validation import beyond


class Bounds:
    """The finite bounds of the float Boxes in an observation space, in its packed form."""

    def __init__(self, observations: Observations) -> None:
        shape = observations.shape
        self._names: list[str] = []  # of the packed numbers
        low = np.full(math.prod(shape), -np.inf, np.float32)
        high = -low
        for path, part in leaves(observations.space, "observation"):
            start, size = len(self._names), math.prod(part.shape or ())
            self._names += [path_name("observation", path)] * size
            if isinstance(part, spaces.Box) and part.dtype.kind == "f":
                with np.errstate(over="ignore"):  # 1e300 is no bound for float32
                    low[start : start + size] = part.low.ravel()
                    high[start : start + size] = part.high.ravel()
        self._low, self._high = low.reshape(shape), high.reshape(shape)
        self.exist = bool((np.isfinite(low) | np.isfinite(high)).any())

    def remark(self, rollout: Rollout, first_step: int) -> str:
        """One line about the first observation that is out of bounds, or "".

        `first_step` is the number of the rollout's first step.
        """
        found = self._outside(rollout.obs.numpy())  # [T + 1, N, *O]
        if found is not None:
            (t, n, *where), words = found
            place = step_name(t - 1, first_step)
        else:
            found = self._outside(rollout.final_obs.numpy())  # [K, *O]
            if found is None:
                return ""
            (k, *where), words = found
            n = int(rollout.final_env[k])
            place = f"step {first_step + int(rollout.final_step[k])}"
        return (
            f"{place}, environment {n}: {words} at {where}, which is out of the space's bounds; "
            "training goes on, and this is said once"
        )

    def _outside(self, obs: np.ndarray) -> tuple[list[int], str] | None:
        """Where the first number out of bounds is, and what it is."""
        is_outside = (obs < self._low) | (obs > self._high)
        if not is_outside.any():
            return None
        at: list[int] = np.argwhere(is_outside)[0].tolist()
        inner = tuple(at[len(at) - self._low.ndim :])
        name = self._names[int(np.ravel_multi_index(inner, self._low.shape))]
        return at, beyond(name, self._low[inner], self._high[inner], obs[tuple(at)])

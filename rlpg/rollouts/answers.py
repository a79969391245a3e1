"""What one environment gives back, checked where its index is known.

Beside the others in a batch a wrong answer loses its index, or even its wrongness: Gymnasium's
shared memory broadcasts an observation of shape (1,) to (3,), and casts strings to numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from rlpg.errors import EnvironmentFault

_NUMBERS = (float, int, np.floating, np.integer, np.bool_)
_FLAGS = (bool, np.bool_, int, np.integer)
_ADVICE = "correct the environment or its observation_space"


class Answers:
    """Checks the answers of an environment with this observation space."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._space = space
        self._shape = space.shape if isinstance(space, spaces.Box) else None
        self._dtype = space.dtype
        self._categories = range(0)
        if isinstance(space, spaces.Discrete):
            self._categories = range(int(space.start), int(space.start + space.n))

    def observation(self, obs: Any) -> Any:
        """The observation, in the dtype of its space.

        Raises:
            EnvironmentFault: a part has the wrong shape, is no number that the dtype can hold, or
                no category of the space. What is not finite, or out of a Box, is another's affair.
        """
        # The usual answers cost two comparisons.
        if type(obs) is np.ndarray and obs.shape == self._shape and obs.dtype == self._dtype:
            return obs
        if type(obs) is int and obs in self._categories:
            return obs
        return _fitted(self._space, obs, "observation")

    def outcome(self, reward: Any, terminated: Any, truncated: Any, info: Any) -> None:
        """Nothing, if this is one number, two flags and a dict.

        Raises:
            EnvironmentFault: it is something else.
        """
        if (
            isinstance(reward, float)  # numpy's float64 is one
            and (terminated is False or terminated is True)
            and (truncated is False or truncated is True)
            and type(info) is dict
        ):
            return
        if not isinstance(reward, _NUMBERS) and not _is_scalar(reward, "fiub"):
            raise EnvironmentFault(f"reward: expected a number, got {_words(reward)}")
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, _FLAGS) and not _is_scalar(flag, "biu"):
                raise EnvironmentFault(f"{name}: expected True or False, got {_words(flag)}")
        if not isinstance(info, Mapping):
            raise EnvironmentFault(f"info: expected a dict, got {_words(info)}")


def _fitted(space: spaces.Space[Any], obs: Any, name: str) -> Any:
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping) or not obs.keys() >= space.spaces.keys():
            raise _unfit(name, f"a dict with {', '.join(map(str, space.spaces))}", obs)
        return {key: _fitted(s, obs[key], f"{name}[{key!r}]") for key, s in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            raise _unfit(name, f"a tuple of {len(space.spaces)}", obs)
        return tuple(_fitted(s, obs[k], f"{name}[{k}]") for k, s in enumerate(space.spaces))
    if space.shape is None or space.dtype is None:
        return obs  # a space that no policy can be made for
    try:
        array = np.asarray(obs)
    except ValueError:  # lists of different lengths
        array = np.array(None)
    if array.shape != space.shape or not np.can_cast(array.dtype, space.dtype, "same_kind"):
        raise _unfit(name, f"{space.dtype} of shape {space.shape}", obs)
    low, high = _categories(space)
    if low is not None and ((array < low) | (array > high)).any():
        raise _unfit(name, f"values from {low} to {high}", obs)
    if array.dtype == space.dtype:
        return obs
    with np.errstate(over="ignore"):
        cast = array.astype(space.dtype)
    wrong = np.isfinite(array) & ~np.isfinite(cast) if cast.dtype.kind == "f" else cast != array
    if wrong.any():
        where = np.argwhere(wrong)[0].tolist()
        got = f"{array[wrong][0]} at {where}"
        raise EnvironmentFault(
            f"{name}: expected numbers that {space.dtype} can hold, got {got}; {_ADVICE}"
        )
    return cast


def _categories(space: spaces.Space[Any]) -> tuple[Any, Any]:
    """The smallest and largest values of a space of categories; None, None of a Box."""
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return (0, 1) if isinstance(space, spaces.MultiBinary) else (None, None)


def _is_scalar(value: Any, kinds: str) -> bool:
    """Whether it is a single number as numpy, torch and jax have them."""
    return np.shape(value) == () and np.asarray(value).dtype.kind in kinds


def _unfit(name: str, expected: str, got: Any) -> EnvironmentFault:
    return EnvironmentFault(f"{name}: expected {expected}, got {_words(got)}; {_ADVICE}")


def _words(value: Any) -> str:
    if isinstance(value, np.ndarray):
        numbers = f" {value.tolist()}" if value.size <= 4 else ""
        return f"{value.dtype} of shape {value.shape}{numbers:.60}"
    return f"{value!r:.60}" if value is None else f"{type(value).__name__} {value!r:.60}"

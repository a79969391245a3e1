"""Whether a value fits its space: the one place that asks, for the collector and for check-env.

    misfit      the collector                      check-env
    refused     raises EnvironmentFault            fault
    converted   casts it to the space's dtype      warning
    bounds      says so once, and goes on          warning

Values are looked at where the index of their environment is known, before they are in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium import spaces

from rlpg.errors import EnvironmentFault

_NUMBERS = (float, int, np.floating, np.integer)
_LOST = 1e-3  # less is no change that an environment means
_ADVICE = "correct the environment or its observation_space"


class Misfit(NamedTuple):
    """What about a value is not as it should be, and what follows; see the table above."""

    kind: Literal["refused", "converted", "bounds"]
    text: str  # `observation[2]: expected -1 to 1, got 1.5`


def fitted(space: spaces.Space[Any], obs: Any, name: str = "observation") -> Any:
    """The observation as arrays and numbers in the dtype of its space; what is one is not copied.

    Raises:
        EnvironmentFault: a part has the wrong shape, is no number that the dtype can hold, or no
            category of the space. What is not finite or out of bounds passes.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, Mapping) or not obs.keys() >= space.spaces.keys():
            raise _fault(name, f"a dict with {', '.join(map(str, space.spaces))}", obs)
        return {key: fitted(s, obs[key], f"{name}[{key!r}]") for key, s in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple | list) or len(obs) != len(space.spaces):
            raise _fault(name, f"a tuple of {len(space.spaces)}", obs)
        return tuple(fitted(s, obs[k], f"{name}[{k}]") for k, s in enumerate(space.spaces))
    if space.shape is None or space.dtype is None:
        return obs  # a space that no policy can be made for
    array = as_array(obs)
    are_integers = array.dtype.kind in "iub" and space.dtype.kind in "iub"  # of whatever sign
    is_kind = are_integers or np.can_cast(array.dtype, space.dtype, "same_kind")
    if array.shape != space.shape or not is_kind:
        raise _fault(name, f"{space.dtype} of shape {space.shape}", obs)
    low, high = _categories(space)
    if low is not None and ((array < low) | (array > high)).any():
        raise _fault(name, f"values from {low} to {high}", obs)
    if array.dtype == space.dtype:  # torch would pass its tensors from a worker as open files
        return obs if np.isscalar(obs) else array
    with np.errstate(over="ignore"):
        cast = array.astype(space.dtype)
    wrong = np.isfinite(array) & ~np.isfinite(cast) if cast.dtype.kind == "f" else cast != array
    if wrong.any():
        got = f"{array[wrong][0]} at {np.argwhere(wrong)[0].tolist()}"
        raise EnvironmentFault(f"{name}: expected numbers that {space.dtype} can hold, got {got}")
    return cast


def observation_misfit(space: spaces.Space[Any], obs: Any) -> Misfit | None:
    """The first misfit of an observation, those that are refused before the others."""
    try:
        fitted(space, obs)
    except EnvironmentFault as fault:
        return Misfit("refused", str(fault))
    return next(_remarks(space, obs, "observation"), None)


def _remarks(space: spaces.Space[Any], obs: Any, name: str) -> Iterator[Misfit]:
    """What about an observation that `fitted` takes is still not as its space says."""
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, dict) or obs.keys() != space.spaces.keys():
            only = f"a dict with {', '.join(map(str, space.spaces))} and nothing else"
            yield _misfit("converted", name, only, obs)
        for key, part in space.spaces.items():
            yield from _remarks(part, obs[key], f"{name}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        if not isinstance(obs, tuple):
            yield _misfit("converted", name, f"a tuple of {len(space.spaces)}", obs)
        for index, part in enumerate(space.spaces):
            yield from _remarks(part, obs[index], f"{name}[{index}]")
    elif space.shape is None or space.dtype is None:
        if not space.contains(obs):
            yield _misfit("refused", name, f"one of {space}", obs)
    elif not isinstance(obs, np.ndarray) and not (space.shape == () and np.isscalar(obs)):
        yield _misfit("converted", name, "a numpy array", obs)
    elif isinstance(space, spaces.Box):
        array = np.asarray(obs)
        if isinstance(obs, np.ndarray) and array.dtype != space.dtype:
            text = f"{name}: expected dtype {space.dtype}, got {array.dtype}"
            yield Misfit("converted", text)
        is_outside = (array < space.low) | (array > space.high)  # a NaN is neither
        if is_outside.any():
            at = tuple(np.argwhere(is_outside)[0].tolist())
            text = beyond(element(name, at), space.low[at], space.high[at], array[at])
            yield Misfit("bounds", text)


def reward_misfit(reward: Any) -> Misfit | None:
    """What is wrong with a reward; one real number is right, also if it is not finite."""
    if isinstance(reward, _NUMBERS) and not isinstance(reward, bool):
        return None
    kind: Any = "converted" if is_scalar(reward, "fiub") else "refused"
    return _misfit(kind, "reward", "a number", reward)


def flag_misfit(name: str, flag: Any) -> Misfit | None:
    """What is wrong with `terminated` or `truncated`."""
    if isinstance(flag, bool | np.bool_):
        return None
    kind: Any = "converted" if is_scalar(flag, "biu") else "refused"
    return _misfit(kind, name, "True or False", flag)


def info_misfit(info: Any) -> Misfit | None:
    """What is wrong with an info."""
    if isinstance(info, dict):
        return None
    return _misfit("converted" if isinstance(info, Mapping) else "refused", "info", "a dict", info)


def not_finite(value: Any, name: str) -> str:
    """The first number that float32 cannot hold, NaN included, in words; "" if there is none."""
    for part, array in arrays_in(value, name):
        if (at := where_not_finite(array)) is not None:
            return f"{element(part, at)}: expected a finite float32, got {array[at]:.9g}"
    return ""


def where_not_finite(array: np.ndarray) -> tuple[int, ...] | None:
    """The index of the first number that float32 cannot hold, if there is one."""
    if array.dtype.kind != "f":
        return None
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(array.astype(np.float32, copy=False))
    return None if is_finite.all() else tuple(np.argwhere(~is_finite)[0].tolist())


def lost_change(before: Any, now: Any, name: str) -> str:
    """The first number of an observation whose change float32 does not show, in words, or ""."""
    had = dict(arrays_in(before, name))
    for part, new in arrays_in(now, name):
        old = had.get(part, new)  # of a Sequence, there are not always as many
        if new.dtype.kind not in "fiu" or new.dtype.itemsize < 4 or old.shape != new.shape:
            continue
        with np.errstate(all="ignore"):
            is_same = old.astype(np.float32) == new.astype(np.float32)
            is_lost = is_same & (np.abs(new.astype(np.float64) - old.astype(np.float64)) > _LOST)
        if is_lost.any():
            at = tuple(np.argwhere(is_lost)[0].tolist())
            numbers = f"{old[at]:.15g} and, at the next call, {new[at]:.15g}"
            return f"{element(part, at)}: {numbers} are the same number as float32"
    return ""


class Validator:
    """Checks what an environment with this observation space gives back."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._space, self._dtype = space, space.dtype
        self._shape = space.shape if isinstance(space, spaces.Box) else None
        self._categories = range(0)
        if isinstance(space, spaces.Discrete):
            self._categories = range(int(space.start), int(space.start + space.n))

    def observation(self, obs: Any) -> Any:
        """`fitted` of the observation."""
        # The usual ones cost two comparisons.
        if type(obs) is np.ndarray and obs.shape == self._shape and obs.dtype == self._dtype:
            return obs
        if type(obs) is int and obs in self._categories:
            return obs
        try:
            return fitted(self._space, obs)
        except EnvironmentFault as fault:
            raise EnvironmentFault(f"{fault}; {_ADVICE}") from None

    def outcome(self, reward: Any, terminated: Any, truncated: Any, info: Any) -> None:
        """Nothing, if this is one number, two flags and a dict; else EnvironmentFault."""
        if (
            isinstance(reward, float)  # numpy's float64 is one
            and (terminated is False or terminated is True)
            and (truncated is False or truncated is True)
            and type(info) is dict
        ):
            return
        flags = flag_misfit("terminated", terminated), flag_misfit("truncated", truncated)
        for misfit in (reward_misfit(reward), *flags, info_misfit(info)):
            if misfit is not None and misfit.kind == "refused":
                raise EnvironmentFault(misfit.text)


# --------------------------------------------------------------------------------------- details


def arrays_in(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays in a dict or tuple, in whatever depth, as `name['camera'][0]`."""
    if isinstance(value, Mapping | tuple):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from arrays_in(part, f"{name}[{key!r}]")
    else:
        yield name, as_array(value)


def element(name: str, index: tuple[int, ...]) -> str:
    """`observation[2, 3]`."""
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def as_array(value: Any) -> np.ndarray:
    """As numpy has it; one None where it cannot."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # lists of different lengths, tensors with grad
        return np.array(None)


def _categories(space: spaces.Space[Any]) -> tuple[Any, Any]:
    """The smallest and largest values of a space of categories; None, None of a Box."""
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return (0, 1) if isinstance(space, spaces.MultiBinary) else (None, None)


def is_scalar(value: Any, kinds: str) -> bool:
    """Whether it is a single number as numpy, torch and jax have them."""
    return np.shape(value) == () and as_array(value).dtype.kind in kinds


def flat_mask(mask: Any) -> np.ndarray:
    """`[M]` bool of an action mask; the parts of a composite action's one after the other.

    Raises:
        EnvironmentFault: it is nothing of numbers.
    """
    parts = [as_array(part) for part in (mask if isinstance(mask, tuple | list) else (mask,))]
    if any(part.dtype.kind not in "biuf" for part in parts):
        raise _fault('info["action_mask"]', "an array of booleans", mask)
    return np.concatenate([part.ravel() for part in parts]).astype(bool)


def is_number(value: Any) -> bool:
    """Whether it is a single real number or a boolean."""
    return isinstance(value, float) or is_scalar(value, "fiub")


def beyond(name: str, low: Any, high: Any, value: Any) -> str:
    return f"{name}: expected {low:.6g} to {high:.6g}, got {value:.6g}"


def _fault(name: str, expected: str, got: Any) -> EnvironmentFault:
    return EnvironmentFault(f"{name}: expected {expected}, got {_words(got)}")


def _misfit(kind: Literal["refused", "converted"], name: str, expected: str, got: Any) -> Misfit:
    return Misfit(kind, f"{name}: expected {expected}, got {_words(got)}")


def _words(value: Any) -> str:
    if isinstance(value, np.ndarray):
        numbers = f" {value.tolist()}" if value.size <= 4 else ""
        return f"{value.dtype} of shape {value.shape}{numbers:.60}"
    text = " ".join(f"{value!r:.60}".split())
    return text if value is None else f"{type(value).__name__} {text}"

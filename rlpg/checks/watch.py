"""Watchers: what can be seen in single calls. Each keeps the first thing that is wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from rlpg.checks.play import Seen, element, fingerprint, flat_mask, mask_in
from rlpg.checks.report import Finding, Status, brief, counted, listed
from rlpg.policies import Head
from rlpg.policies.observations import MASK_KEY
from rlpg.policies.spaces import Path, Space, children, path_name

_KEPT = 4  # observations that are looked at again after each call
_REAL = (int, float, np.integer, np.floating)


class Watch(ABC):
    """Looks at every call; says at the end what it found."""

    name: str  # of the check
    fine: str  # what to say if nothing is wrong

    def __init__(self) -> None:
        self.num_seen = 0
        self._first: dict[Status, str] = {}
        self._count: dict[Status, int] = {"fault": 0, "warning": 0}

    @abstractmethod
    def see(self, seen: Seen) -> None:
        """Looks at one call."""

    def wrong(self, seen: Seen, what: str, *, advice: str, status: Status = "fault") -> None:
        """Keeps what is wrong if it is the first of its kind, and counts."""
        self._first.setdefault(status, f"{seen.where}: {what}; {advice}")
        self._count[status] += 1

    def finding(self) -> Finding:
        """The worst that was seen."""
        if not self.num_seen:
            return Finding(self.name, "skipped", "no call returned")
        for status in ("fault", "warning"):
            if status in self._first:
                more = self._count[status] - 1
                also = f" (and {counted(more, 'more time')})" if more else ""
                return Finding(self.name, status, self._first[status] + also)
        return Finding(self.name, "ok", self.fine)


class ObservationWatch(Watch):
    """Type, shape, dtype and range of every observation."""

    name = "observations"
    fine = "each has the type, shape, dtype and range of the observation space"

    def __init__(self, space: Space) -> None:
        super().__init__()
        self._space = space

    def see(self, seen: Seen) -> None:
        self.num_seen += 1
        for status, what in _misfits(self._space, seen.obs, ()):
            advice = "correct it, or observation_space"
            if status == "warning":
                advice = "correct the bounds of observation_space"
            self.wrong(seen, what, advice=advice, status=status)
            break


def _misfits(space: Space, obs: Any, path: Path) -> Iterator[tuple[Status, str]]:
    """What about an observation is not as its space says."""
    name = path_name("observation", path)
    parts = children(space)
    if parts is None:
        yield from _leaf_misfits(space, obs, name)
    elif isinstance(space, spaces.Dict):
        if not isinstance(obs, dict):
            yield "fault", f"{name}: expected a dict, got a {type(obs).__name__}"
        elif obs.keys() != space.spaces.keys():
            yield "fault", f"{name}: expected the keys {[*space.spaces]}, got {brief([*obs])}"
        else:
            for key, part in parts:
                yield from _misfits(part, obs[key], (*path, key))
    elif not isinstance(obs, tuple) or len(obs) != len(parts):
        size = f" of {len(obs)}" if isinstance(obs, tuple) else ""
        yield "fault", f"{name}: expected a tuple of {len(parts)}, got a {type(obs).__name__}{size}"
    else:
        for (key, part), value in zip(parts, obs, strict=True):
            yield from _misfits(part, value, (*path, key))


def _leaf_misfits(space: Space, obs: Any, name: str) -> Iterator[tuple[Status, str]]:
    if isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary):
        is_box = isinstance(space, spaces.Box)
        is_scalar = space.shape == () and isinstance(obs, np.generic | float | int)
        if not isinstance(obs, np.ndarray) and not is_scalar:
            yield "fault", f"{name}: expected a numpy array, got a {type(obs).__name__}"
        elif np.shape(obs) != space.shape:
            yield "fault", f"{name}: expected shape {space.shape}, got {np.shape(obs)}"
        elif isinstance(obs, np.ndarray) and is_box and obs.dtype != space.dtype:
            yield "fault", f"{name}: expected dtype {space.dtype}, got {obs.dtype}"
        elif isinstance(obs, np.ndarray) and obs.dtype.kind not in "biuf":
            yield "fault", f"{name}: expected numbers, got dtype {obs.dtype}"
        elif isinstance(space, spaces.Box):
            yield from _outside(space.low, space.high, obs, name, "warning")
        elif isinstance(space, spaces.MultiDiscrete):
            start = space.start.astype(np.int64)
            yield from _outside(start, start + space.nvec.astype(np.int64) - 1, obs, name, "fault")
        else:
            yield from _outside(np.zeros(space.shape), np.ones(space.shape), obs, name, "fault")
    elif isinstance(space, spaces.Discrete):
        if not space.contains(obs):
            last = space.start + space.n - 1
            got = f"{brief(obs)} ({type(obs).__name__})"
            yield "fault", f"{name}: expected an integer from {space.start} to {last}, got {got}"
    elif not space.contains(obs):
        yield "fault", f"{name}: expected one of {brief(space)}, got {brief(obs)}"


def _outside(
    low: np.ndarray, high: np.ndarray, obs: Any, name: str, status: Status
) -> Iterator[tuple[Status, str]]:
    array = np.asarray(obs)
    is_outside = (array < low) | (array > high)  # a NaN is neither; `numbers` finds it
    if is_outside.any():
        index = tuple(int(i) for i in np.argwhere(is_outside)[0])
        value, ends = array[index], f"{brief(low[index])} to {brief(high[index])}"
        yield status, f"{element(name, index)}: expected {ends}, got {brief(value)}"


class NumberWatch(Watch):
    """NaN, inf, and what float32 cannot hold."""

    name = "numbers"
    fine = "every number in observations and rewards is finite as float32"

    def see(self, seen: Seen) -> None:
        self.num_seen += 1
        found = next(_not_finite(seen.obs, ()), "")
        if not found and isinstance(seen.reward, _REAL):
            found = next(_not_finite(np.asarray(seen.reward), None), "")
        if found:
            advice = "training would stop there; find the step that makes it"
            self.wrong(seen, found, advice=advice)


def _not_finite(value: Any, path: Path | None) -> Iterator[str]:
    if path is not None and isinstance(value, Mapping | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in items:
            yield from _not_finite(part, (*path, key))
        return
    if not isinstance(value, np.ndarray | float | np.floating):
        return
    array = np.asarray(value)
    if array.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32))
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        name = "reward" if path is None else path_name("observation", path)
        got = brief(array[index])
        yield f"{element(name, index)}: expected a finite float32, got {got}"


class RewardWatch(Watch):
    """The type of every reward."""

    name = "rewards"
    fine = "each is one real number"

    def see(self, seen: Seen) -> None:
        self.num_seen += seen.step >= 0
        if isinstance(seen.reward, bool) or not isinstance(seen.reward, _REAL):
            kind = type(seen.reward).__name__
            if isinstance(seen.reward, np.ndarray):
                kind = f"array of shape {seen.reward.shape}"
            what = f"reward: expected a float, got {brief(seen.reward)} ({kind})"
            self.wrong(seen, what, advice="return float(reward)")


class EndWatch(Watch):
    """The types of the ends, and whether they mean two different things."""

    name = "ends"
    fine = "terminated and truncated are booleans"

    def __init__(self) -> None:
        super().__init__()
        self.terminated = self.truncated = self._both = 0
        self._last: Seen | None = None

    def see(self, seen: Seen) -> None:
        self.num_seen += seen.step >= 0
        for name, flag in (("terminated", seen.terminated), ("truncated", seen.truncated)):
            if not isinstance(flag, bool | np.bool_):
                what = f"{name}: expected a bool, got {brief(flag)} ({type(flag).__name__})"
                self.wrong(seen, what, advice=f"return bool({name})")
                return
        self.terminated += bool(seen.terminated)
        self.truncated += bool(seen.truncated)
        self._both += bool(seen.terminated and seen.truncated)
        self._last = seen if seen.is_end else self._last

    def finding(self) -> Finding:
        # An end on the very step of a time limit is both; if every end is, one was copied.
        if self._last is not None and 1 < self._both == self.terminated == self.truncated:
            what = f"all {self._both} episodes ended both terminated and truncated"
            advice = "set truncated only where a limit cut the episode off"
            self.wrong(self._last, what, advice=advice, status="warning")
        return super().finding()


class InfoWatch(Watch):
    """The type of every info."""

    name = "info"
    fine = "each is a dict"

    def see(self, seen: Seen) -> None:
        self.num_seen += 1
        if not isinstance(seen.info, dict):
            what = f"info: expected a dict, got {brief(seen.info)} ({type(seen.info).__name__})"
            self.wrong(seen, what, advice="return {} where there is nothing to say")


class MaskWatch(Watch):
    """Action masks: always there or never, of the right length, with something allowed."""

    name = "action mask"
    fine = "none; all actions are allowed"

    def __init__(self, head: Head | None) -> None:
        super().__init__()
        self._size = 0 if head is None else head.num_mask
        self._with_mask: bool | None = None

    @property
    def has_one(self) -> bool:
        """Whether masks come with the observations."""
        return bool(self._with_mask)

    def see(self, seen: Seen) -> None:
        mask = mask_in(seen)
        self.num_seen += 1
        if self._with_mask is None:
            self._with_mask = mask is not None
            if mask is not None:
                self.fine = f"one of {self._size} entries with every observation"
        if mask is None:
            if self._with_mask and not seen.is_end:
                advice = f'put info["{MASK_KEY}"] into every reset and step'
                self.wrong(seen, "action mask: expected one, got none", advice=advice)
            return
        flat = flat_mask(mask)
        if not self._with_mask:
            advice = f'put info["{MASK_KEY}"] into every reset and step'
            self.wrong(seen, "action mask: got one after a reset without one", advice=advice)
        elif flat is None or flat.size != self._size:
            got = "no numbers" if flat is None else flat.size
            what = f"action mask: expected {self._size or 'no'} entries for the action space"
            advice = "give one entry per choice, or train with --policy.action_mask false"
            self.wrong(seen, f"{what}, got {got}", advice=advice)
        elif not flat.any() and not seen.is_end:
            advice = "end the episode, or allow an action; a mask without any is ignored"
            self.wrong(seen, "action mask: nothing is allowed", advice=advice, status="warning")


class BufferWatch(Watch):
    """Whether observations stay as they were when the environment goes on."""

    name = "buffers"
    fine = "an observation stays as it was when the environment goes on"

    def __init__(self) -> None:
        super().__init__()
        self._kept: deque[tuple[Seen, str]] = deque(maxlen=_KEPT)

    def see(self, seen: Seen) -> None:
        self.num_seen += 1
        for old, bits in self._kept:
            if fingerprint(old.obs) != bits:
                what = f"changed the observation that {old.where} had returned"
                advice = "return a copy; rlpg copies what it keeps, other programs may not"
                self.wrong(seen, what, advice=advice, status="warning")
                self._kept.clear()
                break
        self._kept.append((seen, fingerprint(seen.obs)))


class ActionWatch(Watch):
    """Whether an environment leaves the actions that it is given as they are."""

    name = "actions"
    fine = "step() leaves them as they are"

    def see(self, seen: Seen) -> None:
        self.num_seen += seen.step >= 0
        if seen.step >= 0 and fingerprint(seen.action) != seen.given:
            what = "changed the action that it was given"
            advice = "work on a copy; the changed one would be learned from and replayed"
            self.wrong(seen, what, advice=advice)


class GeneratorWatch(Watch):
    """Whether calls change the generators that the whole process shares."""

    name = "global random"
    fine = "random, numpy.random and torch are left alone"

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def see(self, seen: Seen) -> None:
        self.num_seen += 1
        if seen.drawn:
            self.names |= {*seen.drawn}
            what = f"changed the global generator of {listed(seen.drawn)}"
            advice = "draw from self.np_random"
            self.wrong(seen, what, advice=advice, status="warning")

"""Watchers: what can be seen in single calls. Each keeps the first thing that is wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from rlpg.checks.play import Seen, fingerprint, flat_mask, mask_in
from rlpg.checks.report import Finding, Status, counted, listed
from rlpg.policies import Head
from rlpg.policies.observations import MASK_KEY
from rlpg.policies.spaces import Space
from rlpg.rollouts.validation import (
    flag_misfit,
    info_misfit,
    not_finite,
    observation_misfit,
    reward_misfit,
)

_KEPT = 4  # observations that are looked at again after each call

Wrong = tuple[Status, str, str]  # what is wrong, and what to do
Look = Callable[[Seen], Wrong | None]


class Watch:
    """Looks at every call; says at the end what it found.

    Args:
        name: of the check.
        fine: what to say if nothing is wrong.
        look: what is wrong with a call, or None.
        resets: whether a reset is looked at too.
    """

    def __init__(self, name: str, fine: str, look: Look, *, resets: bool = True) -> None:
        self.name, self.fine, self._look, self._resets = name, fine, look, resets
        self.num_seen = 0
        self._first: dict[Status, str] = {}
        self._count: dict[Status, int] = {"fault": 0, "warning": 0}

    def see(self, seen: Seen) -> None:
        """Looks at one call; keeps what is wrong if it is the first of its kind, and counts."""
        if seen.step < 0 and not self._resets:
            return
        self.num_seen += 1
        if (wrong := self._look(seen)) is not None:
            status, what, advice = wrong
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


def watch_observations(space: Space) -> Watch:
    """Type, shape, dtype and range of every observation."""

    def look(seen: Seen) -> Wrong | None:
        misfit = observation_misfit(space, seen.obs)
        if misfit is None:
            return None
        if misfit.kind == "bounds":
            return "warning", misfit.text, "correct the bounds of observation_space"
        return "fault", misfit.text, "correct it, or observation_space"

    fine = "each has the type, shape, dtype and range of the observation space"
    return Watch("observations", fine, look)


def watch_numbers() -> Watch:
    """NaN, inf, and what float32 cannot hold."""

    def look(seen: Seen) -> Wrong | None:
        found = not_finite(seen.obs, "observation")
        if not found and reward_misfit(seen.reward) is None:
            found = not_finite(seen.reward, "reward")
        advice = "training would stop there; find the step that makes it"
        return ("fault", found, advice) if found else None

    fine = "every number in observations and rewards is finite as float32"
    return Watch("numbers", fine, look)


def watch_rewards() -> Watch:
    """The type of every reward."""

    def look(seen: Seen) -> Wrong | None:
        misfit = reward_misfit(seen.reward)
        return None if misfit is None else ("fault", misfit.text, "return float(reward)")

    return Watch("rewards", "each is one real number", look, resets=False)


def watch_infos() -> Watch:
    """The type of every info."""

    def look(seen: Seen) -> Wrong | None:
        misfit = info_misfit(seen.info)
        advice = "return {} where there is nothing to say"
        return None if misfit is None else ("fault", misfit.text, advice)

    return Watch("info", "each is a dict", look)


class EndWatch(Watch):
    """The types of the ends, and whether they mean two different things."""

    def __init__(self) -> None:
        fine = "terminated and truncated are booleans"
        super().__init__("ends", fine, self._look_at_flags, resets=False)
        self.terminated = self.truncated = self._both = 0
        self._last: Seen | None = None

    def _look_at_flags(self, seen: Seen) -> Wrong | None:
        for name in ("terminated", "truncated"):
            if (misfit := flag_misfit(name, getattr(seen, name))) is not None:
                return "fault", misfit.text, f"return bool({name})"
        self.terminated += bool(seen.terminated)
        self.truncated += bool(seen.truncated)
        self._both += bool(seen.terminated and seen.truncated)
        self._last = seen if seen.is_end else self._last
        return None

    def finding(self) -> Finding:
        """An end on the very step of a time limit is both; if every end is, one was copied."""
        if self._last is not None and 1 < self._both == self.terminated == self.truncated:
            what = f"all {self._both} episodes ended both terminated and truncated"
            advice = "set truncated only where a limit cut the episode off"
            self._first.setdefault("warning", f"{self._last.where}: {what}; {advice}")
            self._count["warning"] += 1
        return super().finding()


class MaskWatch(Watch):
    """Action masks: always there or never, of the right length, with something allowed."""

    def __init__(self, head: Head | None) -> None:
        super().__init__("action mask", "none; all actions are allowed", self._look_at_mask)
        self._size = 0 if head is None else head.num_mask
        self.has_one = False  # whether masks come with the observations

    def _look_at_mask(self, seen: Seen) -> Wrong | None:
        mask = mask_in(seen)
        if self.num_seen == 1 and mask is not None:
            self.has_one = True
            self.fine = f"one of {self._size} entries with every observation"
        advice = f'put info["{MASK_KEY}"] into every reset and step'
        if mask is None:
            is_missing = self.has_one and not seen.is_end
            return ("fault", "action mask: expected one, got none", advice) if is_missing else None
        if not self.has_one:
            return "fault", "action mask: got one after a reset without one", advice
        flat = flat_mask(mask)
        if flat is None or flat.size != self._size:
            got = "no numbers" if flat is None else flat.size
            what = f"action mask: expected {self._size or 'no'} entries for the action space"
            advice = "give one entry per choice, or train with --policy.action_mask false"
            return "fault", f"{what}, got {got}", advice
        if not flat.any() and not seen.is_end:
            advice = "end the episode, or allow an action; a mask without any is ignored"
            return "warning", "action mask: nothing is allowed", advice
        return None


def watch_actions() -> Watch:
    """Whether an environment leaves the actions that it is given as they are."""

    def look(seen: Seen) -> Wrong | None:
        if fingerprint(seen.action) == seen.given:
            return None
        advice = "work on a copy; the changed one would be learned from and replayed"
        return "fault", "changed the action that it was given", advice

    return Watch("actions", "step() leaves them as they are", look, resets=False)


def watch_buffers() -> Watch:
    """Whether observations stay as they were when the environment goes on."""
    kept: deque[tuple[Seen, str]] = deque(maxlen=_KEPT)

    def look(seen: Seen) -> Wrong | None:
        changed = next((old for old, bits in kept if fingerprint(old.obs) != bits), None)
        if changed is not None:
            kept.clear()
        kept.append((seen, fingerprint(seen.obs)))
        if changed is None:
            return None
        advice = "return a copy; rlpg copies what it keeps, other programs may not"
        return "warning", f"changed the observation that {changed.where} had returned", advice

    fine = "an observation stays as it was when the environment goes on"
    return Watch("buffers", fine, look)


class GeneratorWatch(Watch):
    """Whether calls change the generators that the whole process shares."""

    def __init__(self) -> None:
        fine = "random, numpy.random and torch are left alone"
        super().__init__("global random", fine, self._look_at_generators)
        self.names: set[str] = set()

    def _look_at_generators(self, seen: Seen) -> Wrong | None:
        if not seen.drawn:
            return None
        self.names |= {*seen.drawn}
        what = f"changed the global generator of {listed(seen.drawn)}"
        return "warning", what, "draw from self.np_random"

"""What can be seen in single calls: of each check the first thing that is wrong."""

from __future__ import annotations

import copy
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from rlpg.checks.play import Seen, fingerprint, flat_mask, mask_in
from rlpg.checks.report import Finding, Status, listed
from rlpg.errors import counted
from rlpg.policies import Head
from rlpg.policies.observations import MASK_KEY
from rlpg.policies.spaces import Space
from rlpg.rollouts.validation import (
    Misfit,
    flag_misfit,
    info_misfit,
    lost_change,
    not_finite,
    observation_misfit,
    reward_misfit,
)

_KEPT = 4  # observations that are looked at again after each call
_OF_STEPS = ("rewards", "ends", "actions")  # a reset has none of these

Wrong = tuple[Status, str, str]  # what is wrong, and what to do


class Watcher:
    """Looks at every call, and says at the end what each check found."""

    def __init__(self, space: Space, head: Head | None) -> None:
        self.terminated = self.truncated = self._both = 0
        self.has_mask = False  # whether masks come with the observations
        self.generators: set[str] = set()  # global ones that some call changed
        self._space, self._num_mask = space, 0 if head is None else head.num_mask
        self._looks: dict[str, tuple[Callable[[Seen], Wrong | None], str]] = {
            # each check, how it looks at a call, and what it says if nothing is wrong
            "observations": (self._observation, "each has the type, shape, dtype and range of the"
                             " observation space"),
            "numbers": (self._numbers, "every number in observations and rewards is finite as"
                        " float32"),
            "rewards": (lambda seen: _wrong(reward_misfit(seen.reward), "return float(reward)"),
                        "each is one real number"),
            "ends": (self._ends, "terminated and truncated are booleans"),
            "info": (lambda seen: _wrong(info_misfit(seen.info), "return {} if there is nothing"),
                     "each is a dict"),
            "action mask": (self._mask, "none; all actions are allowed"),
            "actions": (self._action, "step() leaves them as they are"),
            "buffers": (self._buffers, "an observation stays as it was when the environment goes"
                        " on"),
            "global random": (self._generators, "random, numpy.random and torch are left alone"),
        }  # fmt: skip
        self._calls = self._steps = 0
        self._kept: deque[Seen] = deque(maxlen=_KEPT)
        self._last_end: Seen | None = None
        self._before: Any = None  # the last observation
        self._first: dict[tuple[str, Status], str] = {}
        self._count: Counter[tuple[str, Status]] = Counter()

    def __call__(self, seen: Seen) -> None:
        self._calls += 1
        self._steps += seen.step >= 0
        for check, (look, _) in self._looks.items():
            if (wrong := look(seen)) is not None:
                self._note(check, seen, *wrong)

    def _note(self, check: str, seen: Seen, status: Status, what: str, advice: str) -> None:
        self._first.setdefault((check, status), f"{seen.where}: {what}; {advice}")
        self._count[check, status] += 1

    def findings(self) -> list[Finding]:
        """One for each check; of the global generators `finding` alone."""
        # An end on the very step of a time limit is both; if every end is, one was copied.
        if self._last_end is not None and 1 < self._both == self.terminated == self.truncated:
            what = f"all {self._both} episodes ended both terminated and truncated"
            advice = "set truncated only where a limit cut the episode off"
            self._note("ends", self._last_end, "warning", what, advice)
        return [self.finding(check) for check in self._looks if check != "global random"]

    def finding(self, check: str) -> Finding:
        """The worst that was seen."""
        if not (self._steps if check in _OF_STEPS else self._calls):
            return Finding(check, "skipped", "no call returned")
        for status in ("fault", "warning"):
            if (check, status) in self._first:
                more = self._count[check, status] - 1
                also = f" (and {counted(more, 'more time')})" if more else ""
                return Finding(check, status, self._first[check, status] + also)
        fine = self._looks[check][1]
        if check == "action mask" and self.has_mask:
            fine = f"one of {self._num_mask} entries with every observation"
        return Finding(check, "ok", fine)

    # ---- one look at one call each

    def _observation(self, seen: Seen) -> Wrong | None:
        misfit = observation_misfit(self._space, seen.obs)
        is_beyond = misfit is not None and misfit.kind == "bounds"
        at_fault = "the bounds of " if is_beyond else "it, or "
        return _wrong(misfit, f"correct {at_fault}observation_space")

    def _numbers(self, seen: Seen) -> Wrong | None:
        found = not_finite(seen.obs, "observation")
        misfit = reward_misfit(seen.reward)
        if not found and (misfit is None or misfit.kind == "converted"):
            found = not_finite(seen.reward, "reward")
        if found:
            return "fault", found, "training would stop there; find the step that makes it"
        misfit = observation_misfit(self._space, seen.obs)
        if misfit is not None and misfit.kind == "refused":  # of another form than the last one
            return None
        before, self._before = self._before, copy.deepcopy(seen.obs)
        lost = "" if before is None else lost_change(before, seen.obs, "observation")
        advice = "policies see float32; subtract what such numbers have in common"
        return ("warning", lost, advice) if lost else None

    def _ends(self, seen: Seen) -> Wrong | None:
        wrong: Wrong | None = None
        for name in ("truncated", "terminated"):
            if (misfit := flag_misfit(name, getattr(seen, name))) is not None:
                wrong = _wrong(misfit, f"return bool({name})")
                if misfit.kind == "refused":
                    return wrong
        self.terminated += bool(seen.terminated)
        self.truncated += bool(seen.truncated)
        self._both += bool(seen.terminated and seen.truncated)
        self._last_end = seen if seen.is_end else self._last_end
        return wrong

    def _mask(self, seen: Seen) -> Wrong | None:
        """Always there or never, of the right length, with something allowed."""
        mask = mask_in(seen)
        if self._calls == 1:
            self.has_mask = mask is not None
        advice = f'put info["{MASK_KEY}"] into every reset and step'
        if mask is None:
            is_missing = self.has_mask and not seen.is_end
            return ("fault", "action mask: expected one, got none", advice) if is_missing else None
        if not self.has_mask:
            return "fault", "action mask: got one after a reset without one", advice
        flat = flat_mask(mask)
        if flat is None or flat.size != self._num_mask:
            got = "no numbers" if flat is None else flat.size
            what = f"action mask: expected {self._num_mask or 'no'} entries for the action space"
            advice = "give one entry per choice, or train with --policy.action_mask false"
            return "fault", f"{what}, got {got}", advice
        if not flat.any() and not seen.is_end:
            advice = "end the episode, or allow an action; a mask without any is ignored"
            return "warning", "action mask: nothing is allowed", advice
        return None

    def _action(self, seen: Seen) -> Wrong | None:
        if fingerprint(seen.action) == seen.given:
            return None
        advice = "work on a copy; the changed one would be learned from and replayed"
        return "fault", "changed the action that it was given", advice

    def _buffers(self, seen: Seen) -> Wrong | None:
        changed = next((old for old in self._kept if fingerprint(old.obs) != old.bits), None)
        if changed is not None:
            self._kept.clear()
        self._kept.append(seen)
        if changed is None:
            return None
        advice = "return a copy; rlpg copies what it keeps, other programs may not"
        return "warning", f"changed the observation that {changed.where} had returned", advice

    def _generators(self, seen: Seen) -> Wrong | None:
        if not seen.drawn:
            return None
        self.generators |= {*seen.drawn}
        what = f"changed the global generator of {listed(seen.drawn)}"
        return "warning", what, "draw from self.np_random"


def _wrong(misfit: Misfit | None, advice: str) -> Wrong | None:
    """What is wrong, if anything is: a fault is what training refuses."""
    if misfit is None:
        return None
    return "fault" if misfit.kind == "refused" else "warning", misfit.text, advice

"""`check_env`: is this an environment that can be trained on, and what is wrong with it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from rlpg.checks import repeat
from rlpg.checks.outside import check_by_gymnasium, check_vectors
from rlpg.checks.play import (
    AnyEnv,
    Episode,
    global_generators,
    place,
    play,
    random_actions,
    restore_generators,
)
from rlpg.checks.report import Finding, Report, Status, brief
from rlpg.checks.subject import Subject
from rlpg.checks.watch import Watcher
from rlpg.errors import EnvironmentSetupError, SpaceError, UsageError, counted, words
from rlpg.policies import Head, Observations, make_head
from rlpg.rollouts import derived_seed
from rlpg.rollouts.ids import Factory
from rlpg.rollouts.watchdog import close_quietly, interrupted

_MOST_STEPS = 50  # times `steps`: the search for an end of an episode ends there
_SLOW = 1000  # microseconds per step, from which processes of their own pay
_SILENT = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def check_env(
    env: str | AnyEnv | Factory,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    steps: int = 1000,
    episodes: int = 3,
    seed: int = 0,
    episode_cap: int = 1000,
) -> Report:
    """Report what is wrong with an environment; nothing is trained.

    Plays at least `steps` random steps and `episodes` episodes and looks at every call; plays
    episodes again, in the same environment and in a new one; asks Gymnasium's checker; and lets
    rlpg collect from copies. An environment that raises is a fault in the report. The global
    generators of `random`, numpy and torch are left as they were.

    Args:
        env: an id, a class or function that makes an environment, or an environment object, which
            is left open. One that cannot be copied is compared with itself only.
        env_kwargs: arguments for its constructor.
        steps, episodes: play at least this many.
        seed: of the episodes and the actions.
        episode_cap: where to cut the episodes of an environment without a time limit.

    Raises:
        UsageError: an argument has an impossible value.
        EnvironmentSetupError: the id is unknown, or the environment cannot be built.
    """
    counts = {"steps": steps, "episodes": episodes, "episode_cap": episode_cap}
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"{name}: expected at least 1, got {count}")
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed: expected 0 to 2^32 - 1, got {seed}")
    if isinstance(env, VectorEnv):
        raise UsageError(f"env: expected an environment, got {env}; pass one copy")
    if env_kwargs and isinstance(env, gymnasium.Env):
        raise UsageError("env_kwargs: expected an id to apply them to, got an environment")
    generators = global_generators()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for category in _SILENT:
                warnings.simplefilter("ignore", category)
            subject = Subject(env, dict(env_kwargs or {}))
            try:
                return _Check(subject, steps, episodes, seed, episode_cap).report(caught)
            finally:
                if subject.is_ours:
                    close_quietly(subject.env.close, subject)
    finally:
        restore_generators(generators)


class _Check:
    """One run over all checks."""

    def __init__(
        self, subject: Subject, steps: int, episodes: int, seed: int, episode_cap: int
    ) -> None:
        self.subject, self.env, self.seed = subject, subject.env, seed
        self.steps, self.num_episodes, self.episode_cap = steps, episodes, episode_cap
        self.findings: list[Finding] = []
        self.first: Episode | None = None  # what is played again: the first episode, and
        self.last: Episode | None = None  # the longest of the others
        self.lengths: list[int] = []
        self.ended = 0
        self.failed: Episode | None = None  # the one that ended because a call raised
        self.seconds: dict[str, list[float]] = {"reset": [], "step": []}

    def report(self, caught: list[warnings.WarningMessage]) -> Report:
        head, can_play = self._check_spaces()
        repeats = can_play and self._check_play(head)
        self._check_close()
        # Gymnasium's own style remarks aside.
        texts = [
            f"{w.category.__name__}: {' '.join(str(w.message).split())}"
            for w in caught
            if not str(w.message).startswith("\x1b[33mWARN: ")
        ]
        self.findings += [Finding("warnings", "warning", text) for text in dict.fromkeys(texts)]
        return Report(
            env=self.subject.whereabouts,
            seed=self.seed,
            findings=tuple(self.findings),
            lengths=tuple(self.lengths),
            step_microseconds=self._microseconds("step"),
            repeats=repeats,
        )

    def _add(self, check: str, status: Status, text: str) -> None:
        self.findings.append(Finding(check, status, text))

    def _microseconds(self, call: str) -> float:
        seconds = self.seconds[call]
        return 1e6 * float(np.median(seconds)) if seconds else float("nan")

    def _check_spaces(self) -> tuple[Head | None, bool]:
        """The head for the actions if there is one, and whether one can play at all."""
        texts, faults, head = [], [], None
        for name in ("observation_space", "action_space"):
            try:
                space = getattr(self.env, name)
            except Exception as error:  # a property may raise anything
                space = words(error)
            if not isinstance(space, gymnasium.Space):
                what = f"{name}: expected a gymnasium.Space, got {brief(space)}"
                self._add("spaces", "fault", f"{what}; set it in the constructor")
                return None, False
            try:
                if name == "action_space":
                    head = make_head(space)
                    size = counted(head.num_outputs, "output")
                else:
                    seen = Observations(space)
                    size = counted(seen.num_features, "feature") + seen.without
            except SpaceError as error:
                faults.append(str(error))
                continue
            is_box = isinstance(space, gymnasium.spaces.Box)  # whose bounds are long
            form = f"Box {space.shape} {space.dtype}" if is_box else brief(space)
            texts.append(f"{form}: {size}")
        self._add("spaces", "fault" if faults else "ok", "; ".join(faults or texts))
        return head, True

    def _check_play(self, head: Head | None) -> bool:
        """All checks that play; whether episodes repeat."""
        watcher = Watcher(self.env.observation_space, head)
        self._explore(head, watcher)
        for call, seconds in self.seconds.items():
            failed = self.failed
            if failed is not None and failed.failed == call:
                where = place(failed.number, failed.seed, len(failed.calls) - 1)
                advice = "reset it with that seed to see it again"
                self._add(call, "fault", f"{where} {failed.problem}; {advice}")
            elif seconds:
                self._add(call, "ok", f"returned {counted(len(seconds), 'time')}")
            else:
                self._add(call, "skipped", "nothing could be reset")
        self.findings += watcher.findings()
        self._check_lengths(watcher)
        repeats = self._check_repeats(watcher)
        self._check_by_others(watcher)
        step, reset = self._microseconds("step"), self._microseconds("reset")
        slow = "; --environment.backend async runs copies side by side" if step > _SLOW else ""
        text = f"{step:.0f} µs per step, {reset:.0f} µs per reset{slow}"
        is_known = bool(self.seconds["step"])
        self._add("speed", *(("ok", text) if is_known else ("skipped", "no step returned")))
        return repeats

    def _explore(self, head: Head | None, watcher: Watcher) -> None:
        """Plays random episodes until there are enough of them, and of steps."""
        choose = random_actions(self.env, head, self.seed)
        budget = _MOST_STEPS * max(self.steps, self.episode_cap)
        run, number = np.random.SeedSequence(self.seed), 0
        while sum(self.lengths) < self.steps or len(self.lengths) < self.num_episodes:
            left = budget - sum(self.lengths)
            if left <= 0 or self.failed is not None:
                return
            longest = left if self.subject.is_limited else min(self.episode_cap, left)
            seed = derived_seed(run, 0, number)
            episode = play(self.env, number, seed, choose, longest, see=watcher)
            for seen in episode.calls:
                self.seconds["reset" if seen.step < 0 else "step"].append(seen.seconds)
            self.failed = episode if episode.failed else None
            if episode.failed == "reset":
                return
            self.lengths.append(episode.length)
            self.ended += episode.ended
            if number < 2 or self.last is None or episode.length >= self.last.length:
                self.last = episode  # a long one says more
            self.first = self.first or episode
            number += 1

    def _check_lengths(self, watcher: Watcher) -> None:
        name, num, cap = "episodes", len(self.lengths), self.episode_cap
        if self.failed is not None:
            self._add(name, "skipped", "not every call returned")
            return
        if self.ended == num:
            low, middle, high = np.percentile(self.lengths, [0, 50, 100])
            text = f"{num} of {low:g} to {high:g} steps, median {middle:g}"
            ends = f"{watcher.terminated} terminated, {watcher.truncated} truncated"
            self._add(name, "ok", f"{text}; {ends}")
        elif self.subject.is_limited:
            what = f"{self.ended} of {num} ended within {sum(self.lengths)} steps"
            self._add(name, "warning", f"{what}; give a higher --steps to look further")
        else:
            what = f"{num - self.ended} of {num} episodes did not end within {cap} steps"
            cut = f"rlpg would cut them off at environment.episode_cap = {cap} steps"
            advice = "register it with max_episode_steps, or set environment.max_episode_steps"
            self._add(name, "warning", f"{what}, and it has no time limit; {cut}: {advice}")

    def _check_repeats(self, watcher: Watcher) -> bool:
        if self.first is None or self.last is None:
            for name in ("replay", "early reset", "global random", "seeds", "after the end"):
                self._add(name, "skipped", "nothing could be played")
            return False
        env, first, last = self.env, self.first, self.last
        replayed = repeat.check_replay(self.subject, first, last)
        repeats = replayed.status == "ok"
        early = repeat.check_reset_anywhere(env, first, last, repeats=repeats)
        shared = repeat.check_global_generators(env, watcher, first, repeats=repeats)
        seeds = repeat.check_seeds(env, first, repeats=repeats)
        self.findings += [replayed, early, shared, seeds]
        self.findings.append(repeat.check_after_end(env, last, repeats=repeats))
        kept = watcher.finding("actions").status != "fault"
        return repeats and kept and early.status == "ok" and shared.status != "fault"

    def _check_by_others(self, watcher: Watcher) -> None:
        try:
            bare = self.subject.fresh() if self.subject.is_ours else self.env
        except EnvironmentSetupError:  # `replay` says so
            for name in ("copies", "gymnasium"):
                self._add(name, "skipped", "another environment cannot be made")
            return
        assert bare is not None  # an id or a factory can always be asked
        found = {finding.check: finding.status for finding in self.findings}
        harmless = ("replay", "global random", "seeds")
        faults = [c for c, status in found.items() if status == "fault" and c not in harmless]
        if faults:
            self._add("copies", "skipped", f"correct `{faults[0]}` first")
        else:
            made = check_vectors(self.subject, seed=self.seed, episode_cap=self.episode_cap)
            self.findings.append(made)
        # Its checker would stop at what has been found, and say it again.
        wrong = [c for c, status in found.items() if status in ("fault", "warning")]
        first = next((check for check in wrong if check != "episodes"), None)
        if first is not None:
            self._add("gymnasium", "skipped", f"correct `{first}` first")
        else:
            self.findings += check_by_gymnasium(
                bare.unwrapped, seed=self.seed, has_mask=watcher.has_mask
            )
        if self.subject.is_ours:
            close_quietly(bare.close, self.subject)

    def _check_close(self) -> None:
        try:
            env = self.subject.fresh()
        except EnvironmentSetupError:  # `replay` says so
            env = None
        if env is None:
            self._add("close", "skipped", "there is no way to make another one")
            return
        tries: tuple[tuple[str, Status], ...] = (("", "fault"), (" a second time", "warning"))
        for count, status in tries:
            try:
                with interrupted(self.subject):
                    env.close()
            except (Exception, SystemExit) as error:
                self._add(
                    "close", status, f"close(){count} failed: {words(error):.300}; let it return"
                )
                return
        self._add("close", "ok", "returns, also before any reset and a second time")

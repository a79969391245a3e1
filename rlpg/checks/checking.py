"""`check_env`: is this an environment that can be trained on, and what is wrong with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from rlpg.checks import watch
from rlpg.checks.outside import check_by_gymnasium, check_vectors
from rlpg.checks.play import (
    AnyEnv,
    Episode,
    RandomActions,
    Seen,
    kept_generators,
    place,
    play,
)
from rlpg.checks.repeat import (
    check_after_end,
    check_global_generators,
    check_replay,
    check_reset_anywhere,
    check_seeds,
)
from rlpg.checks.report import Finding, Report, brief, counted, words
from rlpg.checks.subject import Subject
from rlpg.errors import EnvironmentSetupError, SpaceError, UsageError
from rlpg.policies import Head, Observations, make_head
from rlpg.rollouts import derived_seed
from rlpg.rollouts.environments import close_quietly
from rlpg.rollouts.ids import Factory
from rlpg.rollouts.watchdog import CLOSING_SECONDS, interrupted

STEPS, EPISODES, EPISODE_CAP = 1000, 3, 1000
_MOST_STEPS = 50  # times `steps`: the search for an end of an episode ends there
_MOST_PROBLEMS = 3  # episodes that raised; the next ones would too
_SLOW = 1000  # microseconds per step, from which processes of their own pay
_SILENT = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def check_env(
    env: str | AnyEnv | Factory,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    steps: int = STEPS,
    episodes: int = EPISODES,
    seed: int = 0,
    episode_cap: int = EPISODE_CAP,
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
    with kept_generators(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for category in _SILENT:
            warnings.simplefilter("ignore", category)
        subject = Subject(env, dict(env_kwargs or {}))
        try:
            return _Check(subject, steps, episodes, seed, episode_cap).report(caught)
        finally:
            subject.close()


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
        self.problems: list[Episode] = []
        self.step_seconds: list[float] = []
        self.reset_seconds: list[float] = []

    def report(self, caught: list[warnings.WarningMessage]) -> Report:
        """All findings."""
        head, can_play = self._check_spaces()
        repeats = can_play and self._check_play(head)
        self._check_close()
        self.findings += _warned(caught)
        microseconds = 1e6 * float(np.median(self.step_seconds)) if self.step_seconds else np.nan
        return Report(
            env=self.subject.name,
            seed=self.seed,
            findings=tuple(self.findings),
            lengths=tuple(self.lengths),
            step_microseconds=microseconds,
            repeats=repeats,
        )

    # ---- spaces

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
                    size = counted(Observations(space).num_features, "feature")
                texts.append(f"{_form(space)}: {size}")
            except SpaceError as error:
                faults.append(str(error))
        self._add("spaces", "fault" if faults else "ok", "; ".join(faults or texts))
        return head, True

    # ---- playing

    def _check_play(self, head: Head | None) -> bool:
        """All checks that play; whether episodes repeat."""
        generators, masks = watch.GeneratorWatch(), watch.MaskWatch(head)
        watchers: list[watch.Watch] = [
            watch.watch_observations(self.env.observation_space),
            watch.watch_numbers(),
            watch.watch_rewards(),
            ends := watch.EndWatch(),
            watch.watch_infos(),
            masks,
            watch.watch_actions(),
            watch.watch_buffers(),
        ]
        self._explore(RandomActions(self.env, head, self.seed), [*watchers, generators])
        for call in ("reset", "step"):
            self._check_call(call)
        self.findings += [watcher.finding() for watcher in watchers]
        self._check_lengths(ends)
        repeats = self._check_repeats(generators)
        self._check_by_others(has_mask=masks.has_one)
        self._check_speed()
        return repeats

    def _explore(self, choose: Callable[[Seen], Any], watchers: list[watch.Watch]) -> None:
        """Plays random episodes until there are enough of them, and of steps."""
        budget = _MOST_STEPS * max(self.steps, self.episode_cap)
        run, number = np.random.SeedSequence(self.seed), 0
        while sum(self.lengths) < self.steps or len(self.lengths) < self.num_episodes:
            left = budget - sum(self.lengths)
            if left <= 0 or len(self.problems) >= _MOST_PROBLEMS:
                return
            longest = left if self.subject.is_limited else min(self.episode_cap, left)
            seed = derived_seed(run, 0, number)
            episode = play(self.env, number, seed, choose, longest, watchers=watchers)
            self.reset_seconds += episode.seconds[:1]
            self.step_seconds += episode.seconds[1:]
            self.problems += [episode] if episode.failed else []
            if episode.failed == "reset":
                return
            self.lengths.append(episode.length)
            self.ended += episode.ended
            if number < 2 or self.last is None or episode.length >= self.last.length:
                self.last = episode  # a long one says more
            self.first = self.first or episode
            number += 1

    def _check_call(self, call: str) -> None:
        count = len(self.reset_seconds) if call == "reset" else len(self.step_seconds)
        problem = next((e for e in self.problems if e.failed == call), None)
        if problem is not None:
            where = place(problem.number, problem.seed, len(problem.rows) - 1)
            advice = "reset it with that seed to see it again"
            self._add(call, "fault", f"{where} {problem.problem}; {advice}")
        elif count:
            self._add(call, "ok", f"returned {counted(count, 'time')}")
        else:
            self._add(call, "skipped", "nothing could be reset")

    def _check_lengths(self, ends: watch.EndWatch) -> None:
        name, cap = "episodes", self.episode_cap
        if not self.lengths or self.problems:
            self._add(name, "skipped", "not every call returned")
            return
        low, middle, high = np.percentile(self.lengths, [0, 50, 100])
        text = (
            f"{len(self.lengths)} of {low:g} to {high:g} steps, median {middle:g}; "
            f"{ends.terminated} terminated, {ends.truncated} truncated"
        )
        if self.ended == len(self.lengths):
            self._add(name, "ok", text)
        elif self.subject.is_limited:
            what = f"{self.ended} of {len(self.lengths)} ended within {sum(self.lengths)} steps"
            self._add(name, "warning", f"{what}; give a higher --steps to look further")
        else:
            what = f"{len(self.lengths) - self.ended} of {len(self.lengths)} episodes did not end"
            advice = "register it with max_episode_steps, or set environment.max_episode_steps"
            self._add(
                name,
                "warning",
                f"{what} within {cap} steps, and it has no time limit; rlpg would cut them off at "
                f"environment.episode_cap = {cap} steps: {advice}",
            )

    def _check_repeats(self, generators: watch.GeneratorWatch) -> bool:
        if self.first is None or self.last is None:
            for name in ("replay", "early reset", "global random", "seeds", "after the end"):
                self._add(name, "skipped", "nothing could be played")
            return False
        first, last = self.first, self.last
        replayed = check_replay(self.env, self.subject.fresh, first, last)
        repeats = replayed.status == "ok"
        early = check_reset_anywhere(self.env, first, last, repeats=repeats)
        shared = check_global_generators(self.env, generators, first, repeats=repeats)
        self.findings += [replayed, early, shared]
        self.findings.append(check_seeds(self.env, first, repeats=repeats))
        self.findings.append(check_after_end(self.env, last, repeats=repeats))
        kept = not any(f.check == "actions" and f.status == "fault" for f in self.findings)
        return repeats and kept and early.status == "ok" and shared.status != "fault"

    # ---- the rest

    def _check_by_others(self, *, has_mask: bool) -> None:
        subject = self.subject
        try:
            bare = subject.bare()
        except EnvironmentSetupError:  # `replay` says so
            for name in ("copies", "gymnasium"):
                self._add(name, "skipped", "another environment cannot be made")
            return
        hard = [finding for finding in self.findings if finding.status == "fault"]
        stopping = [f.check for f in hard if f.check not in ("replay", "global random", "seeds")]
        if stopping:
            self._add("copies", "skipped", f"correct `{stopping[0]}` first")
        else:
            collected = check_vectors(
                lambda n, backend: subject.vector(
                    n, backend, seed=self.seed, episode_cap=self.episode_cap
                ),
                seed=self.seed,
                has_vector=subject.spec is not None and subject.spec.vector_entry_point is not None,
                is_ours=subject.is_ours,
            )
            self.findings.append(collected)
        self.findings += check_by_gymnasium(bare, self.findings, seed=self.seed, has_mask=has_mask)
        if subject.is_ours:
            close_quietly(bare)

    def _check_close(self) -> None:
        try:
            env = self.subject.fresh()
        except EnvironmentSetupError:  # `replay` says so
            env = None
        if env is None:
            self._add("close", "skipped", "there is no way to make another one")
            return
        for count, status in (("", "fault"), (" a second time", "warning")):
            try:
                with interrupted(self.subject, CLOSING_SECONDS):
                    env.close()
            except (Exception, SystemExit) as error:
                self._add("close", status, f"close(){count} raised {words(error)}; let it return")
                return
        self._add("close", "ok", "returns, also before any reset and a second time")

    def _check_speed(self) -> None:
        if not self.step_seconds:
            self._add("speed", "skipped", "no step returned")
            return
        step, reset = (
            1e6 * float(np.median(seconds)) for seconds in (self.step_seconds, self.reset_seconds)
        )
        slow = "; --environment.backend async runs copies side by side" if step > _SLOW else ""
        self._add("speed", "ok", f"{step:.0f} µs per step, {reset:.0f} µs per reset{slow}")

    def _add(self, check: str, status: Any, text: str) -> None:
        self.findings.append(Finding(check, status, text))


def _form(space: gymnasium.Space[Any]) -> str:
    """A space in a few words; the bounds of a Box are long."""
    if isinstance(space, gymnasium.spaces.Box):
        return f"Box {space.shape} {space.dtype}"
    return brief(space)


def _warned(caught: list[warnings.WarningMessage]) -> list[Finding]:
    """One finding per distinct warning of the environment, Gymnasium's own style remarks aside."""
    texts = dict.fromkeys(
        f"{w.category.__name__}: {' '.join(str(w.message).split())}"
        for w in caught
        if not str(w.message).startswith("\x1b[33mWARN: ")
    )
    return [Finding("warnings", "warning", text) for text in texts]

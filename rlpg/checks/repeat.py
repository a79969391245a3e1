"""Checks that play an episode again: does it repeat, and what does it depend on."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rlpg.checks.play import (
    AnyEnv,
    Episode,
    Scramble,
    difference,
    fingerprint,
    place,
    replay,
)
from rlpg.checks.report import Finding, counted, listed, words
from rlpg.checks.watch import GeneratorWatch
from rlpg.errors import EnvironmentSetupError
from rlpg.rollouts.environments import close_quietly

_OTHER_SEEDS = 3
_EARLY, _LATE = 20, 200  # steps by which most differences show, and nearly all


def check_replay(
    env: AnyEnv, fresh: Callable[[], AnyEnv | None], first: Episode, last: Episode
) -> Finding:
    """Whether episodes come out to the same bits in the environment that played them and in a new
    one, with the global generators where they were."""
    name, declared = "replay", env.spec is not None and env.spec.nondeterministic
    try:
        new = [fresh(), fresh()]
    except EnvironmentSetupError as error:
        return Finding(name, "fault", f"a second environment cannot be made: {error}")
    status: Any = "warning" if declared else "fault"
    said = " (it is registered as nondeterministic)" if declared else ""
    try:
        if new[0] is not None and (parted := difference(first, replay(new[0], first))):
            advice = "let everything random come from self.np_random, which reset(seed=...) seeds"
            text = f"{parted}, in a new environment with the same seed and actions{said}; {advice}"
            return Finding(name, status, text)
        advice = "let reset() set everything anew, from its seed alone"
        for episode in dict.fromkeys((first.number, last.number)):
            again = first if episode == first.number else last
            if parted := difference(again, replay(env, again)):
                how = "when the same environment played it again"
                return Finding(name, status, f"{parted}, {how}{said}; {advice}")
        if new[1] is not None and (parted := difference(last, replay(new[1], last))):
            how = f"in a new environment that had not played {counted(last.number, 'episode')}"
            return Finding(name, status, f"{parted}, {how}{said}; {advice}")
    finally:
        for one in filter(None, new):
            close_quietly(one)
    played = listed(str(n) for n in dict.fromkeys((first.number, last.number)))
    nouns = "episode" if first is last else "episodes"
    where = "played again" if new[0] is None else "played again and in a new environment"
    lengths = listed(str(e.length) for e in ((first,) if first is last else (first, last)))
    text = f"{nouns} {played} ({lengths} steps) came out the same to the bit when {where}"
    return Finding(name, "ok", text)


def check_reset_anywhere(env: AnyEnv, first: Episode, last: Episode, *, repeats: bool) -> Finding:
    """Whether a reset in the middle of an episode is a reset."""
    name, middle = "early reset", first.length // 2
    replay(env, first, num_steps=middle)
    again = replay(env, last, num_steps=_LATE)
    if again.failed == "reset":
        text = f"reset after {counted(middle, 'step')} of an unfinished episode {again.problem}"
        return Finding(name, "fault", f"{text}; rlpg resets in mid-episode when it starts anew")
    if not repeats:
        return Finding(name, "ok", "reset() returns in the middle of an episode")
    if parted := difference(last, again):
        text = f"{parted}, after a reset in the middle of another episode"
        return Finding(name, "fault", f"{text}; let reset() set everything anew")
    text = f"after {counted(middle, 'step')} of an unfinished episode the next one is as ever"
    return Finding(name, "ok", text)


def check_global_generators(
    env: AnyEnv, watch: GeneratorWatch, first: Episode, *, repeats: bool
) -> Finding:
    """Whether an episode depends on generators that it shares with the whole process."""
    found = watch.finding()
    if found.status != "warning":
        return found
    if not repeats:
        return found
    parted = difference(first, replay(env, first, before_call=Scramble(), pinned=False))
    if not parted:
        return Finding(found.check, "warning", f"{found.text}; this episode did not depend on it")
    text = f"{found.text}; with {listed(sorted(watch.names))} elsewhere, {parted}"
    return Finding(found.check, "fault", text)


def check_seeds(env: AnyEnv, first: Episode, *, repeats: bool) -> Finding:
    """Whether another seed makes another episode, where the environment draws at all."""
    name = "seeds"
    if not repeats:
        return Finding(name, "skipped", "`replay` comes first")
    others = [(first.seed + k) % 2**31 for k in range(1, _OTHER_SEEDS + 1)]
    for num_steps in (_EARLY, None):  # most show it early
        for seed in others:
            if difference(first, replay(env, first, seed=seed, num_steps=num_steps)):
                return Finding(name, "ok", "another seed makes another episode")
    replay(env, first, num_steps=0, seed=others[0])
    other = _own_generators(env)
    replay(env, first, num_steps=0)
    before = _own_generators(env)
    replay(env, first)
    after = _own_generators(env)
    for attribute, state in before.items():
        if state == other.get(attribute) and state != after.get(attribute):
            text = f"{_OTHER_SEEDS} other seeds made the same episode, yet the environment draws"
            advice = "hand reset's seed to super().reset(seed=seed), and draw from self.np_random"
            return Finding(name, "warning", f"{text} from {attribute}; {advice}")
    return Finding(name, "ok", "all make the same episode: nothing depends on random numbers")


def check_after_end(env: AnyEnv, episode: Episode, *, repeats: bool) -> Finding:
    """What a step after the end does, and whether a reset makes it undone."""
    name = "after the end"
    if not episode.ended:
        return Finding(name, "skipped", "no episode ended")
    replay(env, episode)
    said = "returns"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that is what it is supposed to warn about
        try:
            env.step(copy.deepcopy(episode.actions[-1]))
        except (Exception, SystemExit) as error:
            said = f"raises {words(error)}"
    again = replay(env, episode, num_steps=0)
    if again.failed:
        text = f"a step after the end {said}, and then reset {again.problem}"
        return Finding(name, "fault", f"{text}; let reset() set everything anew")
    if repeats and difference(episode, again):
        where = place(episode.number, episode.seed, -1)
        text = f"{where}: came out differently after a step beyond the end"
        return Finding(name, "fault", f"{text}; let reset() set everything anew")
    return Finding(name, "ok", f"a step {said}, a reset starts anew; rlpg never steps there")


def _own_generators(env: AnyEnv) -> dict[str, str]:
    """The states of the generators among the environment's attributes."""
    found = {}
    for name, value in vars(env.unwrapped).items():
        if isinstance(value, np.random.Generator):
            found[name] = repr(value.bit_generator.state)
        elif isinstance(value, np.random.RandomState):
            found[name] = fingerprint(value.get_state(legacy=False))
        elif isinstance(value, random.Random):
            found[name] = repr(value.getstate())
        elif isinstance(value, torch.Generator):
            found[name] = fingerprint(value.get_state().numpy())
    return found

"""Checks that play an episode again: does it repeat, and what does it depend on."""

from __future__ import annotations

import copy
import itertools
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rlpg.checks.play import (
    AnyEnv,
    Episode,
    Misbehaved,
    difference,
    fingerprint,
    global_generators,
    place,
    replay,
    restore_generators,
)
from rlpg.checks.report import Finding, Status, listed
from rlpg.checks.subject import Subject
from rlpg.checks.watch import Watcher
from rlpg.errors import EnvironmentSetupError, counted, words
from rlpg.rollouts.watchdog import close_quietly

_OTHER_SEEDS = 3
_EARLY, _LATE = 20, 200  # steps by which most differences show, and nearly all
_ANEW = "let reset() set everything anew"
_OF_ITS_OWN = (
    "let each have a state of its own, and change no attribute of the class (a space there is one "
    "that sample() draws from) and no variable of a module"
)


def check_replay(subject: Subject, first: Episode, last: Episode) -> Finding:
    """Whether episodes come out to the same bits in the environment that played them and in a new
    one, with the global generators where they were."""
    name, env = "replay", subject.env
    try:
        new = [subject.fresh(), subject.fresh()]
    except EnvironmentSetupError as error:
        return Finding(name, "fault", f"a second environment cannot be made: {error}")
    played = {episode.number: episode for episode in (first, last)}
    own = "let everything random come from self.np_random, which reset(seed=...) seeds"
    reset = f"{_ANEW}, from its seed alone"
    late = f"in a new environment that had not played {counted(last.number, 'episode')}"
    tries = [
        (new[0], first, "in a new environment with the same seed and actions", own),
        *(
            (env, one, "when the same environment played it again", reset)
            for one in played.values()
        ),
        (new[1], last, late, reset),
    ]
    declared = env.spec is not None and env.spec.nondeterministic
    status: Status = "warning" if declared else "fault"
    said = " (it is registered as nondeterministic)" if declared else ""
    try:
        for where, episode, how, advice in tries:
            if where is not None and (parted := difference(episode, replay(where, episode))):
                return Finding(name, status, f"{parted}, {how}{said}; {advice}")
        if new[0] is not None and new[1] is not None and not last.failed:
            beside = replay(new[0], first, before_call=_turns(new[1], last, first))
            if parted := difference(first, beside):
                how = f"while another environment was played in between{said}"
                return Finding(name, status, f"{parted}, {how}; {_OF_ITS_OWN}")
    finally:
        for one in filter(None, new):
            close_quietly(one.close, subject)
    nouns = "episode" if len(played) == 1 else "episodes"
    where_to = "played again"
    if new[0] is not None:
        where_to += ", in a new environment and beside another one"
    lengths = listed(str(episode.length) for episode in played.values())
    text = f"{nouns} {listed(map(str, played))} ({lengths} steps) came out the same to the bit"
    return Finding(name, "ok", f"{text} when {where_to}")


def _turns(neighbor: AnyEnv, other: Episode, first: Episode) -> Callable[[], None]:
    """What plays another episode in a neighbor, over and over, one call at a time; the global
    generators are where `first` began, and the neighbor leaves them alone."""
    restore_generators(first.random)
    actions = itertools.cycle([None, *other.actions])  # None: a reset

    def turn() -> None:
        states, action = global_generators(), copy.deepcopy(next(actions))
        try:
            if action is None:
                neighbor.reset(seed=other.seed, options=None)
            else:
                neighbor.step(action)
        except (Exception, SystemExit) as error:
            raise Misbehaved(f"made another environment raise {words(error):.300}") from error
        finally:
            restore_generators(states)

    return turn


def check_reset_anywhere(env: AnyEnv, first: Episode, last: Episode, *, repeats: bool) -> Finding:
    """Whether a reset in the middle of an episode is a reset."""
    name, middle = "early reset", first.length // 2
    replay(env, first, num_steps=middle)
    again = replay(env, last, num_steps=_LATE)
    begun = f"after {counted(middle, 'step')} of an unfinished episode"
    if again.failed == "reset":
        text = f"reset {begun} {again.problem}; rlpg resets in mid-episode when it starts anew"
        return Finding(name, "fault", text)
    if not repeats:
        return Finding(name, "ok", "reset() returns in the middle of an episode")
    if parted := difference(last, again):
        text = f"{parted}, after a reset in the middle of another episode; {_ANEW}"
        return Finding(name, "fault", text)
    return Finding(name, "ok", f"{begun} the next one is as ever")


def check_global_generators(
    env: AnyEnv, watcher: Watcher, first: Episode, *, repeats: bool
) -> Finding:
    """Whether an episode depends on generators that it shares with the whole process."""
    found = watcher.finding("global random")
    if found.status != "warning" or not repeats:
        return found
    numbers = itertools.count(1)

    def scramble() -> None:
        seed = next(numbers)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)

    parted = difference(first, replay(env, first, before_call=scramble))
    if not parted:
        return Finding(found.check, "warning", f"{found.text}; this episode did not depend on it")
    text = f"{found.text}; with {listed(sorted(watcher.generators))} elsewhere, {parted}"
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
    states = []
    for seed, num_steps in ((others[0], 0), (first.seed, 0), (first.seed, None)):
        replay(env, first, seed=seed, num_steps=num_steps)
        states.append(_own_generators(env))
    other, before, after = states
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
            said = f"raises {words(error):.300}"
    again = replay(env, episode, num_steps=0)
    if again.failed:
        text = f"a step after the end {said}, and then reset {again.problem}; {_ANEW}"
        return Finding(name, "fault", text)
    if repeats and difference(episode, again):
        where = place(episode.number, episode.seed, -1)
        text = f"{where}: came out differently after a step beyond the end; {_ANEW}"
        return Finding(name, "fault", text)
    return Finding(name, "ok", f"a step {said}, a reset starts anew; rlpg never steps there")


def _own_generators(env: AnyEnv) -> dict[str, Any]:
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

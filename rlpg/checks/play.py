"""Playing one environment, call by call, so that every call can be watched and repeated."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from rlpg.checks.report import brief
from rlpg.errors import EnvironmentFault, counted, words
from rlpg.policies import Head
from rlpg.policies.actions import first
from rlpg.policies.observations import MASK_KEY
from rlpg.rollouts import validation
from rlpg.rollouts.seeds import digest
from rlpg.rollouts.validation import arrays_in, element

AnyEnv = gymnasium.Env[Any, Any]

_LARGEST_SHOWN = 4096  # bytes of an observation that is kept to show how another one differs


class Seen(NamedTuple):
    """What one call was given and gave back; a reset has no action, reward or ends."""

    episode: int
    seed: int
    step: int  # from 0; -1 is the reset
    obs: Any
    bits: str  # the fingerprint of the observation
    info: Any
    reward: Any
    terminated: Any
    truncated: Any
    action: Any  # the object that the environment got
    given: str  # the fingerprint of the action before
    drawn: tuple[str, ...]  # global generators that this call changed
    seconds: float

    @property
    def where(self) -> str:
        return place(self.episode, self.seed, self.step)

    @property
    def ends(self) -> str:
        """Both of them, for messages and to be compared."""
        return f"{brief(self.terminated)}, {brief(self.truncated)}"

    @property
    def is_end(self) -> bool:
        flags = (self.terminated, self.truncated)
        return any(isinstance(f, bool | np.bool_ | int | np.integer) and f for f in flags)


@dataclass
class Episode:
    """An episode, as far as it came."""

    number: int
    seed: int
    random: dict[str, Any]  # the global generators before its reset
    actions: list[Any] = field(default_factory=list)  # also the one that raised
    # The reset and every step that returned; of observations copies, and of large ones none.
    calls: list[Seen] = field(default_factory=list)
    ended: bool = False
    failed: str = ""  # "reset" or "step": the call that raised or returned nonsense
    problem: str = ""  # and what it did

    @property
    def length(self) -> int:
        """Steps that returned."""
        return max(len(self.calls) - 1, 0)


class Misbehaved(Exception):
    """A call that raised, or returned something of another form than Gymnasium's."""


def place(episode: int, seed: int, step: int) -> str:
    """How messages say where something happened."""
    call = "reset" if step < 0 else f"step {step}"
    return f"{call} of episode {episode} (seed {seed})"


def play(
    env: AnyEnv,
    number: int,
    seed: int,
    choose: Callable[[Seen], Any],
    num_steps: int,
    *,
    see: Callable[[Seen], None] = lambda seen: None,
    before_call: Callable[[], None] = lambda: None,
) -> Episode:
    """One episode, or its first `num_steps`; what the environment raises is kept, not raised."""
    episode = Episode(number, seed, global_generators())

    def called(step: int, action: Any = None) -> Seen:
        call: Callable[[], Any] = partial(env.step, action)
        names = "obs, reward, terminated, truncated, info"
        if step < 0:
            call, names = partial(env.reset, seed=seed, options=None), "obs, info"
        given = fingerprint(action)
        before_call()
        before, start = global_generators(), perf_counter()
        obs, *outcome, info = _result(call, names)
        seconds, bits = perf_counter() - start, fingerprint(obs)
        paid = outcome or [0.0, False, False]
        about = [action, given, _changed(before), seconds]
        return Seen._make([number, seed, step, obs, bits, info, *paid, *about])

    step = -1
    try:
        seen = called(step)
        while True:
            see(seen)
            episode.calls.append(_kept(seen))
            episode.ended = seen.is_end
            step += 1
            if episode.ended or step >= num_steps:
                return episode
            action = choose(seen)
            episode.actions.append(copy.deepcopy(action))
            seen = called(step, action)
    except Misbehaved as error:
        episode.failed = "reset" if step < 0 else "step"
        episode.problem = str(error)
    return episode


def replay(
    env: AnyEnv,
    episode: Episode,
    *,
    seed: int | None = None,
    num_steps: int | None = None,
    before_call: Callable[[], None] | None = None,
) -> Episode:
    """The same actions again, with the same seed or another one.

    The global generators are put to where they were when the episode began, so that a difference
    has another cause than they; unless `before_call` says otherwise.
    """
    if before_call is None:
        restore_generators(episode.random)
    actions = iter(copy.deepcopy(episode.actions[:num_steps]))
    return play(
        env,
        episode.number,
        episode.seed if seed is None else seed,
        lambda _: next(actions),
        len(episode.actions[:num_steps]),
        before_call=before_call or (lambda: None),
    )


def difference(first: Episode, second: Episode) -> str:
    """Where two plays of the same actions part, in words; "" if they do not.

    They are compared as far as the shorter one was asked to go.
    """
    for one, other in zip(first.calls, second.calls, strict=False):
        if one.bits != other.bits:
            return f"{one.where}: {_parted(one.obs, other.obs)}"
        if fingerprint(one.reward) != fingerprint(other.reward):
            return f"{one.where}: the reward was {brief(one.reward)}, then {brief(other.reward)}"
        if one.ends != other.ends:
            return f"{one.where}: terminated, truncated were {one.ends}, then {other.ends}"
    expected = first.problem if len(first.actions) <= len(second.actions) else ""
    if bool(expected) != bool(second.problem):
        where = place(first.number, first.seed, min(len(first.calls), len(second.calls)) - 1)
        return f"{where}: it {expected or 'returned'}, then it {second.problem or 'returned'}"
    return ""


def random_actions(env: AnyEnv, head: Head | None, seed: int) -> Callable[[Seen], Any]:
    """Uniformly random answers; only allowed ones where the environment gives a mask."""
    space = copy.deepcopy(env.action_space)  # the environment's own is left alone
    space.seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def choose(seen: Seen) -> Any:
        mask = flat_mask(mask_in(seen))
        if head is None or mask is None or mask.size != head.num_mask:
            return space.sample()
        outputs, allowed = torch.zeros(1, head.num_outputs), torch.from_numpy(mask)[None]
        batch = head.to_env(head.draw(outputs, generator, allowed).numpy())
        return first(space, batch)

    return choose


def mask_in(seen: Seen) -> Any:
    """The action mask that comes with an observation; None without one."""
    if isinstance(seen.info, Mapping) and seen.info.get(MASK_KEY) is not None:
        return seen.info[MASK_KEY]
    return seen.obs.get(MASK_KEY) if isinstance(seen.obs, Mapping) else None


def flat_mask(mask: Any) -> np.ndarray | None:
    """`[M]` bool, the parts of a composite action side by side; None where it is no mask."""
    try:
        return validation.flat_mask(mask)
    except (EnvironmentFault, ValueError):
        return None


def global_generators() -> dict[str, Any]:
    """The states of the generators that the whole process shares."""
    return {
        "random": random.getstate(),
        "numpy.random": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state().numpy(),
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    random.setstate(states["random"])
    np.random.set_state(states["numpy.random"])
    torch.set_rng_state(torch.from_numpy(states["torch"]))


def _changed(before: Mapping[str, Any]) -> tuple[str, ...]:
    after = global_generators()
    changed = ["random"] if before["random"] != after["random"] else []  # 625 integers
    for name in ("numpy.random", "torch"):
        changed += [name] if fingerprint(before[name]) != fingerprint(after[name]) else []
    return tuple(changed)


def fingerprint(value: Any) -> str:
    """Equal for equal bits, whatever an environment returned."""
    try:
        return digest(value)
    except (TypeError, ValueError, RuntimeError):
        return repr(value)


def _result(call: Callable[[], Any], names: str) -> Any:
    try:
        result = call()
    except (Exception, SystemExit) as error:
        raise Misbehaved(f"raised {words(error):.300}") from error
    if not isinstance(result, tuple) or len(result) != len(names.split()):
        what = f" of {counted(len(result), 'value')}" if isinstance(result, tuple) else ""
        raise Misbehaved(f"expected to return ({names}), got a {type(result).__name__}{what}")
    return result


def _kept(seen: Seen) -> Seen:
    """What differences are looked for in, and shown from."""
    size = sum(int(array.nbytes) for _, array in arrays_in(seen.obs, ""))
    try:
        obs = copy.deepcopy(seen.obs) if size <= _LARGEST_SHOWN else None
    except (TypeError, ValueError, RuntimeError):  # it cannot be copied: it is not shown
        obs = None
    return seen._replace(obs=obs, info=None, action=None)


def _parted(first: Any, second: Any) -> str:
    """`observation[2] was 0.1, then 0.2`."""
    ours, theirs = (dict(arrays_in(obs, "observation")) for obs in (first, second))
    if first is not None and second is not None and ours.keys() == theirs.keys():
        for name, one in ours.items():
            other = theirs[name]
            if one.shape != other.shape or one.dtype != other.dtype:
                forms = (f"{part.dtype} of shape {part.shape}" for part in (one, other))
                return f"{name} was {', then '.join(forms)}"
            for at in np.ndindex(one.shape):
                if one[at].tobytes() != other[at].tobytes():
                    return f"{element(name, at)} was {brief(one[at])}, then {brief(other[at])}"
    return "observation came out differently"

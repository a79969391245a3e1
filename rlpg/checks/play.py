"""Playing one environment, call by call, so that every call can be watched and repeated."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.vector.utils import batch_space, iterate

from rlpg.checks.report import brief, counted, words
from rlpg.policies import Head
from rlpg.policies.observations import MASK_KEY
from rlpg.policies.spaces import Path, path_name
from rlpg.rollouts.seeds import digest
from rlpg.rollouts.validation import as_array, element

AnyEnv = gymnasium.Env[Any, Any]

_BY_BITS = ("numpy.random", "torch")
_LARGEST_SHOWN = 4096  # bytes of an observation that is kept to show how another one differs


class Seen(NamedTuple):
    """What one call was given and gave back; a reset has no action, reward or ends."""

    episode: int
    seed: int
    step: int  # from 0; -1 is the reset
    obs: Any
    info: Any
    reward: Any = 0.0
    terminated: Any = False
    truncated: Any = False
    action: Any = None  # the object that the environment got
    given: str = ""  # the fingerprint of the action before
    drawn: tuple[str, ...] = ()  # global generators that this call changed
    seconds: float = 0.0

    @property
    def where(self) -> str:
        """For messages."""
        return place(self.episode, self.seed, self.step)

    @property
    def is_end(self) -> bool:
        """Whether the episode is over."""
        return _true(self.terminated, self.truncated)


class Row(NamedTuple):
    """What a call gave back, made comparable."""

    obs: str
    reward: str
    ends: str
    shown: Any  # a copy of the observation, or None where it is large
    paid: Any


@dataclass
class Episode:
    """An episode, as far as it came."""

    number: int
    seed: int
    random: dict[str, Any]  # the global generators before its reset
    actions: list[Any] = field(default_factory=list)  # also the one that raised
    rows: list[Row] = field(default_factory=list)  # of the reset and of every step that returned
    seconds: list[float] = field(default_factory=list)  # that they took
    ended: bool = False
    failed: str = ""  # "reset" or "step": the call that raised or returned nonsense
    problem: str = ""  # and what it did

    @property
    def length(self) -> int:
        """Steps that returned."""
        return max(len(self.rows) - 1, 0)


class Watcher(Protocol):
    """Sees every call in the order of time."""

    def see(self, seen: Seen) -> None:
        """Looks at one call."""
        ...


class Misbehaved(Exception):
    """A call that raised, or returned something of another form than Gymnasium's."""


def place(episode: int, seed: int, step: int) -> str:
    """How messages say where something happened."""
    call = "reset" if step < 0 else f"step {step}"
    return f"{call} of episode {episode} (seed {seed})"


# -------------------------------------------------------------------------------------- playing


def play(
    env: AnyEnv,
    number: int,
    seed: int,
    choose: Callable[[Seen], Any],
    num_steps: int,
    *,
    watchers: Sequence[Watcher] = (),
    before_call: Callable[[], None] | None = None,
) -> Episode:
    """One episode, or its first `num_steps`; what the environment raises is kept, not raised."""
    episode = Episode(number, seed, global_generators())

    def called(step: int, action: Any = None) -> Seen:
        given = fingerprint(action)
        if before_call is not None:
            before_call()
        before, start = global_generators(), perf_counter()
        if step < 0:
            obs, info = _result(lambda: env.reset(seed=seed, options=None), "obs, info")
            outcome: Any = (0.0, False, False)
        else:
            names = "obs, reward, terminated, truncated, info"
            obs, *outcome, info = _result(lambda: env.step(action), names)
        about_call = action, given, _changed(before), perf_counter() - start
        return Seen._make((number, seed, step, obs, info, *outcome, *about_call))

    step = -1
    try:
        seen = called(step)
        while True:
            for watcher in watchers:
                watcher.see(seen)
            episode.rows.append(_row(seen))
            episode.seconds.append(seen.seconds)
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
    pinned: bool = True,
) -> Episode:
    """The same seed and actions again; another seed on request.

    Args:
        pinned: put the global generators to where they were when the episode began, so that a
            difference has another cause than they.
    """
    if pinned:
        restore_generators(episode.random)
    actions = episode.actions if num_steps is None else episode.actions[:num_steps]
    remaining = iter(copy.deepcopy(actions))
    return play(
        env,
        episode.number,
        episode.seed if seed is None else seed,
        lambda _: next(remaining),
        len(actions),
        before_call=before_call,
    )


def difference(first: Episode, second: Episode) -> str:
    """Where two plays of the same actions part, in words; "" if they do not.

    They are compared as far as the shorter one was asked to go.
    """
    for t, (one, other) in enumerate(zip(first.rows, second.rows, strict=False)):
        where = place(first.number, first.seed, t - 1)
        if one.obs != other.obs:
            return f"{where}: {_parted(one.shown, other.shown)}"
        if one.reward != other.reward:
            return f"{where}: the reward was {brief(one.paid)}, then {brief(other.paid)}"
        if one.ends != other.ends:
            return f"{where}: terminated, truncated were {one.ends}, then {other.ends}"
    expected = first.problem if len(first.actions) <= len(second.actions) else ""
    if bool(expected) != bool(second.problem):
        where = place(first.number, first.seed, min(len(first.rows), len(second.rows)) - 1)
        return f"{where}: it {expected or 'returned'}, then it {second.problem or 'returned'}"
    return ""


class RandomActions:
    """Uniformly random actions; only allowed ones where the environment gives a mask."""

    def __init__(self, env: AnyEnv, head: Head | None, seed: int) -> None:
        self._space = copy.deepcopy(env.action_space)  # the environment's own is left alone
        self._space.seed(seed)
        self._head = head
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, seen: Seen) -> Any:
        """The answer to an observation."""
        mask = flat_mask(mask_in(seen))
        if self._head is None or mask is None or mask.size != self._head.num_mask:
            return self._space.sample()
        outputs = torch.zeros(1, self._head.num_outputs)
        allowed = torch.from_numpy(mask)[None]
        drawn = self._head.draw(outputs, self._generator, allowed)
        batch = self._head.to_env(drawn.numpy())
        return next(iter(iterate(batch_space(self._space, 1), batch)))


def mask_in(seen: Seen) -> Any:
    """The action mask that comes with an observation; None without one."""
    if isinstance(seen.info, Mapping) and seen.info.get(MASK_KEY) is not None:
        return seen.info[MASK_KEY]
    return seen.obs.get(MASK_KEY) if isinstance(seen.obs, Mapping) else None


def flat_mask(mask: Any) -> np.ndarray | None:
    """`[M]` bool, the parts of a composite action side by side; None where it is no mask."""
    parts = mask if isinstance(mask, tuple | list) and len(mask) else (mask,)
    try:
        flat = np.concatenate([np.ravel(part) for part in parts])
    except ValueError:
        return None
    return flat != 0 if flat.dtype.kind in "biuf" else None


# ---------------------------------------------------------------------------- global generators


def global_generators() -> dict[str, Any]:
    """The states of the generators that the whole process shares."""
    return {
        "random": random.getstate(),
        "numpy.random": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state().numpy(),
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Puts them back."""
    random.setstate(states["random"])
    np.random.set_state(states["numpy.random"])
    torch.set_rng_state(torch.from_numpy(states["torch"]))


@contextmanager
def kept_generators() -> Iterator[None]:
    """Whatever happens inside, the process finds its generators as they were."""
    states = global_generators()
    try:
        yield
    finally:
        restore_generators(states)


class Scramble:
    """Puts the global generators somewhere else before every call, always the same way."""

    def __init__(self) -> None:
        self._seed = 2**20

    def __call__(self) -> None:
        self._seed += 1
        random.seed(self._seed)
        np.random.seed(self._seed)
        torch.default_generator.manual_seed(self._seed)


def _changed(before: Mapping[str, Any]) -> tuple[str, ...]:
    after = global_generators()
    is_same = {name: fingerprint(before[name]) == fingerprint(after[name]) for name in _BY_BITS}
    is_same["random"] = before["random"] == after["random"]  # 625 integers
    return tuple(name for name in before if not is_same[name])


# -------------------------------------------------------------------------------------- details


def fingerprint(value: Any) -> str:
    """Equal for equal bits, whatever an environment returned."""
    try:
        return digest(value)
    except (TypeError, ValueError):
        return repr(value)


def _result(call: Callable[[], Any], names: str) -> Any:
    try:
        result = call()
    except (Exception, SystemExit) as error:
        raise Misbehaved(f"raised {words(error)}") from error
    if not isinstance(result, tuple) or len(result) != len(names.split()):
        got = f"a {type(result).__name__}"
        if isinstance(result, tuple):
            got = f"a tuple of {counted(len(result), 'value')}"
        raise Misbehaved(f"expected to return ({names}), got {got}")
    return result


def _true(*flags: Any) -> bool:
    return any(isinstance(flag, bool | np.bool_ | int | np.integer) and flag for flag in flags)


def _row(seen: Seen) -> Row:
    size = sum(int(array.nbytes) for _, array in _leaves(seen.obs, ()))
    try:
        shown = copy.deepcopy(seen.obs) if size <= _LARGEST_SHOWN else None
    except (TypeError, ValueError):  # it cannot be copied: it is not shown
        shown = None
    ends = f"{brief(seen.terminated)}, {brief(seen.truncated)}"
    return Row(fingerprint(seen.obs), fingerprint(seen.reward), ends, shown, seen.reward)


def _leaves(obs: Any, path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays in an observation, by name."""
    if isinstance(obs, Mapping | tuple):
        for key, part in obs.items() if isinstance(obs, Mapping) else enumerate(obs):
            yield from _leaves(part, (*path, key))
    else:
        yield path_name("observation", path), as_array(obs)


def _parted(first: Any, second: Any) -> str:
    """`observation[2] was 0.1, then 0.2`."""
    ours, theirs = dict(_leaves(first, ())), dict(_leaves(second, ()))
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

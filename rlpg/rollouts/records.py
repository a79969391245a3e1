"""What the files of a run say of an environment object, and an environment from what they say.

An object that `gymnasium.make` can make again is recorded so; others have a name that is no id.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec, registry
from gymnasium.vector import VectorEnv, VectorWrapper

from rlpg.errors import EnvironmentSetupError

# Wrappers that take arguments as data, write no files and open no windows.
WRAPPERS = (
    "AtariPreprocessing", "ClipAction", "ClipReward", "DelayObservation", "DiscretizeAction",
    "DiscretizeObservation", "FilterObservation", "FlattenObservation", "FrameStackObservation",
    "GrayscaleObservation", "MaxAndSkipObservation", "NormalizeObservation", "NormalizeReward",
    "RecordEpisodeStatistics", "RepeatAction", "RescaleAction", "RescaleObservation",
    "ReshapeObservation", "ResizeObservation", "StickyAction", "TimeAwareObservation",
)  # fmt: skip
# What `gymnasium.make` adds by itself, and what a time limit says.
_ADDED = (gymnasium.wrappers.OrderEnforcing, gymnasium.wrappers.PassiveEnvChecker,
          gymnasium.wrappers.TimeLimit)  # fmt: skip
_VECTOR = ("num_envs", "vectorization_mode", "vector_kwargs")  # arguments of `make_vec`


@dataclass(frozen=True)
class Record:
    """An environment as data: what differs from the registered one of that id."""

    id: str
    kwargs: Mapping[str, Any]
    max_episode_steps: int | None
    wrappers: Mapping[str, Mapping[str, Any]]  # by class, the innermost first


def record_of(env: object) -> Record | None:
    """What makes an environment, a vector environment or an `EnvSpec` again; None: nothing can."""
    spec = env if isinstance(env, EnvSpec) else getattr(env, "spec", None)
    if not isinstance(spec, EnvSpec) or isinstance(env, VectorWrapper):
        return None
    registered = registry.get(spec.id)
    if registered is None or spec.entry_point != registered.entry_point:
        return None
    kwargs = {name: value for name, value in spec.kwargs.items() if name not in _VECTOR}
    limit = spec.max_episode_steps
    if isinstance(env, VectorEnv):
        limit = kwargs.pop("max_episode_steps", limit)
    try:
        own = {
            name: _data(value)
            for name, value in kwargs.items()
            if name not in registered.kwargs or _data(value) != _data(registered.kwargs[name])
        }
        wrappers = dict(map(_recorded, added := _added_wrappers(env, spec, registered)))
    except ValueError:  # what no file can hold
        return None
    if len(wrappers) < len(added):  # one of them twice
        return None
    is_own_limit = limit is not None and limit != registered.max_episode_steps
    return Record(spec.id, own, limit if is_own_limit else None, wrappers)


def wrapped(spec: EnvSpec, wrappers: Mapping[str, Mapping[str, Any]]) -> EnvSpec:
    """The spec of an environment in some of Gymnasium's wrappers.

    Raises:
        EnvironmentSetupError: a wrapper that is none of `WRAPPERS`.
    """
    for name in wrappers:
        if name not in WRAPPERS:
            raise EnvironmentSetupError(
                f"environment.wrappers: expected some of {', '.join(WRAPPERS)}, got {name!r:.60}; "
                "pass an environment in other wrappers as an object"
            )
    added = tuple(
        WrapperSpec(name, f"gymnasium.wrappers:{name}", dict(kwargs))
        for name, kwargs in wrappers.items()
    )
    return replace(spec, additional_wrappers=(*spec.additional_wrappers, *added))


def _added_wrappers(env: object, spec: EnvSpec, registered: EnvSpec) -> tuple[WrapperSpec, ...]:
    """The wrappers around what `gymnasium.make` makes of the id."""
    wrappers = spec.additional_wrappers
    if isinstance(env, gymnasium.Wrapper):  # its entry point may have wrapped it, too
        count = 0
        layer: gymnasium.Env[Any, Any] = env
        while isinstance(layer, gymnasium.Wrapper) and not isinstance(layer, _ADDED[:2]):
            count += not isinstance(layer, _ADDED)
            layer = layer.env
        wrappers = wrappers[len(wrappers) - count :]
    known = registered.additional_wrappers
    return wrappers[len(known) :] if wrappers[: len(known)] == known else wrappers


def _recorded(wrapper: WrapperSpec) -> tuple[str, dict[str, Any]]:
    """Its name, and those of its arguments that are not the defaults."""
    module, _, name = wrapper.entry_point.partition(":")
    is_known = module.startswith("gymnasium.wrappers") and name in WRAPPERS
    if not is_known or wrapper.kwargs is None:
        raise ValueError
    defaults = inspect.signature(getattr(gymnasium.wrappers, name)).parameters
    return name, {
        key: _data(value)
        for key, value in wrapper.kwargs.items()
        if key not in defaults or value is not defaults[key].default
    }


def _data(value: object) -> Any:
    """The value as recipes hold it, a scalar or a list of scalars; else ValueError."""
    entries = value if isinstance(value, list | tuple) else [value]
    scalars = [entry.item() if isinstance(entry, np.generic) else entry for entry in entries]
    if not all(isinstance(scalar, bool | int | float | str) for scalar in scalars):
        raise ValueError
    return scalars if entries is value else scalars[0]

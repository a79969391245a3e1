"""From environments to rollouts: `make_envs`, `Collector`, `Rollout`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlpg.rollouts.collector import Collector
    from rlpg.rollouts.environments import (
        BACKENDS,
        MadeEnvs,
        can_be_copied,
        copy_of,
        make_envs,
    )
    from rlpg.rollouts.ids import find_spec, full_id
    from rlpg.rollouts.rollout import Episodes, Rollout
    from rlpg.rollouts.seeds import EpisodeSeeds, derived_seed, reseed
    from rlpg.rollouts.vector import autoreset_mode, probe_action_mask
    from rlpg.rollouts.watchdog import hangs_end_the_process

__all__ = [
    "BACKENDS",
    "Collector",
    "EpisodeSeeds",
    "Episodes",
    "MadeEnvs",
    "Rollout",
    "autoreset_mode",
    "can_be_copied",
    "copy_of",
    "derived_seed",
    "find_spec",
    "full_id",
    "hangs_end_the_process",
    "make_envs",
    "probe_action_mask",
    "reseed",
]

_HOME = {
    "BACKENDS": "environments",
    "Collector": "collector",
    "EpisodeSeeds": "seeds",
    "Episodes": "rollout",
    "MadeEnvs": "environments",
    "Rollout": "rollout",
    "autoreset_mode": "vector",
    "can_be_copied": "environments",
    "copy_of": "environments",
    "derived_seed": "seeds",
    "find_spec": "ids",
    "full_id": "ids",
    "hangs_end_the_process": "watchdog",
    "make_envs": "environments",
    "probe_action_mask": "vector",
    "reseed": "seeds",
}


def __getattr__(name: str) -> Any:
    """Public names are looked up when used: worker processes need no torch."""
    if name in _HOME:
        return getattr(importlib.import_module(f"rlpg.rollouts.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rlpg.rollouts' has no attribute {name!r}")

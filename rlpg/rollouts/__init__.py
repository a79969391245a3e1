"""From environments to rollouts: `make_envs`, `Collector`, `Rollout`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rlpg.registration import register_environments

if TYPE_CHECKING:
    from rlpg.rollouts.base import BaseCollector
    from rlpg.rollouts.collector import Collector
    from rlpg.rollouts.environments import MadeEnvs, another_like, make_envs
    from rlpg.rollouts.ids import EnvSource, environment_name, find_spec, full_id
    from rlpg.rollouts.records import record_of, wrapped
    from rlpg.rollouts.rollout import Episodes, Rollout
    from rlpg.rollouts.seeds import EpisodeSeeds, derived_seed, reseed
    from rlpg.rollouts.tensor_collector import TensorCollector
    from rlpg.rollouts.vector import autoreset_mode, probe_action_mask
    from rlpg.rollouts.watchdog import hangs_end_the_process

__all__ = [
    "BaseCollector", "Collector", "EnvSource", "EpisodeSeeds", "Episodes", "MadeEnvs",
    "Rollout", "TensorCollector", "another_like", "autoreset_mode", "derived_seed",
    "environment_name", "find_spec", "full_id", "hangs_end_the_process",
    "make_envs", "probe_action_mask", "record_of", "reseed", "wrapped",
]  # fmt: skip

register_environments()

_HOMES = {
    "base": ["BaseCollector"],
    "collector": ["Collector"],
    "environments": ["MadeEnvs", "another_like", "make_envs"],
    "ids": ["EnvSource", "environment_name", "find_spec", "full_id"],
    "records": ["record_of", "wrapped"],
    "rollout": ["Episodes", "Rollout"],
    "seeds": ["EpisodeSeeds", "derived_seed", "reseed"],
    "tensor_collector": ["TensorCollector"],
    "vector": ["autoreset_mode", "probe_action_mask"],
    "watchdog": ["hangs_end_the_process"],
}


def __getattr__(name: str) -> Any:
    """Public names are looked up when used: worker processes need no torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"rlpg.rollouts.{home}"), name)
    raise AttributeError(f"module 'rlpg.rollouts' has no attribute {name!r}")

"""From environments to rollouts: `make_envs`, `Collector`, `Rollout`."""

from rlpg.registration import register_environments
from rlpg.rollouts.base import BaseCollector
from rlpg.rollouts.collector import Collector
from rlpg.rollouts.environments import (
    BACKENDS,
    MadeEnvs,
    another_like,
    make_envs,
)
from rlpg.rollouts.ids import EnvSource, environment_name, find_spec, full_id
from rlpg.rollouts.records import record_of, wrapped
from rlpg.rollouts.rollout import Episodes, Rollout, Window
from rlpg.rollouts.seeds import EpisodeSeeds, derived_seed, reseed
from rlpg.rollouts.tensor_collector import TensorCollector
from rlpg.rollouts.vector import autoreset_mode, probe_action_mask
from rlpg.rollouts.watchdog import hangs_end_the_process

__all__ = [
    "BACKENDS",
    "BaseCollector",
    "Collector",
    "EnvSource",
    "EpisodeSeeds",
    "Episodes",
    "MadeEnvs",
    "Rollout",
    "TensorCollector",
    "Window",
    "another_like",
    "autoreset_mode",
    "derived_seed",
    "environment_name",
    "find_spec",
    "full_id",
    "hangs_end_the_process",
    "make_envs",
    "probe_action_mask",
    "record_of",
    "reseed",
    "wrapped",
]

register_environments()

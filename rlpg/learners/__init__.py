"""Learners: a rollout in, a better policy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlpg.learners.batch import Batch
    from rlpg.learners.learner import Learner
    from rlpg.learners.natural import NaturalGradient
    from rlpg.learners.pathwise import Pathwise
    from rlpg.learners.ppo import PPO
    from rlpg.learners.reinforce import Reinforce

__all__ = ["PPO", "Batch", "Learner", "NaturalGradient", "Pathwise", "Reinforce"]

_HOME = {
    "Batch": "rlpg.learners.batch",
    "Learner": "rlpg.learners.learner",
    "NaturalGradient": "rlpg.learners.natural",
    "PPO": "rlpg.learners.ppo",
    "Pathwise": "rlpg.learners.pathwise",
    "Reinforce": "rlpg.learners.reinforce",
}


def __getattr__(name: str) -> Any:
    """Classes are looked up when used: their settings (`rlpg.learners.settings`) need no torch."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'rlpg.learners' has no attribute {name!r}")

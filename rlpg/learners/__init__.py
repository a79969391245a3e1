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


def __getattr__(name: str) -> Any:
    """Classes are looked up when used: their settings (`rlpg.learners.settings`) need no torch."""
    if name in __all__:  # each is in the module of its name
        home = name.removesuffix("Gradient").lower()
        return getattr(importlib.import_module(f"rlpg.learners.{home}"), name)
    raise AttributeError(f"module 'rlpg.learners' has no attribute {name!r}")

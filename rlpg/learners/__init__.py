"""Learners: a rollout in, a better policy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlpg.learners.baselines import Baseline
    from rlpg.learners.reinforce import Reinforce

__all__ = ["Baseline", "Reinforce"]

_HOME = {"Baseline": "rlpg.learners.baselines", "Reinforce": "rlpg.learners.reinforce"}


def __getattr__(name: str) -> Any:
    """Classes are looked up when used: their settings (`rlpg.learners.settings`) need no torch."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'rlpg.learners' has no attribute {name!r}")

"""Learners: a rollout in, a better policy."""

from rlpg.gradients.baselines import Baseline
from rlpg.learners.reinforce import Reinforce

__all__ = ["Baseline", "Reinforce"]

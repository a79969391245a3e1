"""REINFORCE (Williams 1992): raise the log-probability of actions in proportion to their advantage.

    g = 1/count  sum_{t,n}  gamma^t  grad log pi(a | s)  A(t, n),      A = return-to-go - baseline

Every choice that changes what is estimated has a name; `AdvantageRule` shows their arithmetic.
With a value baseline, GAE and short rollouts this is A2C (Mnih et al. 2016).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from rlpg.gradients import estimators
from rlpg.learners.batch import Batch
from rlpg.learners.learner import Learner
from rlpg.learners.settings import LearnerSettings, ReinforceSettings


class Reinforce(Learner):
    """One gradient step per rollout, along the score function times the advantage."""

    Settings: ClassVar[type[LearnerSettings]] = ReinforceSettings
    uses_log_prob = False  # at the policy that acted every likelihood ratio is 1

    def surrogate(self, batch: Batch, log_prob: Tensor) -> Tensor:
        """`sum w A log pi`, without bias where the advantage has none."""
        return estimators.score_function(log_prob, batch.advantage, weight=batch.weight)

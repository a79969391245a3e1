"""What each step of a rollout is worth: returns, advantages, and its share in the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlpg.errors import UsageError
from rlpg.gradients import returns
from rlpg.gradients.baselines import Baseline
from rlpg.learners.scaling import standardize
from rlpg.learners.values import StateValue
from rlpg.rollouts.rollout import Rollout


@dataclass(frozen=True)
class Credit:
    """What each step is worth; all `[T, N]` and without gradient."""

    returns: Tensor  # return-to-go, in the learner's reward units
    advantage: Tensor  # return-to-go minus baseline, 0 where the weight is 0
    multiplier: Tensor  # what multiplies grad log pi: the advantage, standardized on request
    weight: Tensor  # share of the step in the mean; 0 where a slot is not real or was dropped
    objective: Tensor  # scalar: the Monte-Carlo estimate that a surrogate takes as its value


class CreditRule:
    """From rewards to `Credit`, by the options that `Reinforce` documents.

    Raises:
        UsageError: options that contradict each other.
    """

    def __init__(
        self,
        baseline: Baseline,
        *,
        gamma: float,
        gae_lambda: float | None,
        truncated_return: Literal["bootstrap", "drop", "terminal"] | None,
        gamma_weight: bool,
        average: Literal["steps", "episodes"],
        normalize_advantages: bool,
    ) -> None:
        predicts, name = isinstance(baseline, StateValue), type(baseline).__name__
        if gae_lambda is not None and not predicts:
            raise UsageError(
                f"gae_lambda: needs a baseline that predicts values (linear, value), got {name}; "
                "set gae_lambda to None"
            )
        if truncated_return == "bootstrap" and not predicts:
            raise UsageError(
                "truncated_return: bootstrap needs a baseline that predicts values (linear, "
                f"value), got {name}; choose drop or terminal"
            )
        if gae_lambda is not None and truncated_return not in (None, "bootstrap"):
            raise UsageError(
                f"truncated_return: expected bootstrap with gae_lambda, got {truncated_return}; "
                "set gae_lambda to none"
            )
        self.baseline = baseline
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.truncated_return = truncated_return or ("bootstrap" if predicts else "terminal")
        self.gamma_weight, self.average = gamma_weight, average
        self.normalize_advantages = normalize_advantages

    @torch.no_grad()
    def __call__(self, rollout: Rollout, reward: Tensor) -> Credit:
        """The credit of a rollout. Reads the baseline, changes nothing.

        Args:
            rollout: where the rewards come from.
            reward: `[T, N]`, the rewards in the learner's units.
        """
        valid = rollout.valid
        ends = {"terminated": rollout.terminated, "truncated": rollout.truncated, "valid": valid}
        if isinstance(self.baseline, StateValue):
            value, successor = self.baseline.predict(rollout)
        if self.gae_lambda is not None:
            advantage = returns.gae(
                reward, value, successor_value=successor, **ends,
                gamma=self.gamma, gae_lambda=self.gae_lambda,
            )  # fmt: skip
            to_go = advantage + value
        else:
            bootstrap = successor if self.truncated_return == "bootstrap" else None
            to_go = returns.reward_to_go(reward, **ends, gamma=self.gamma, bootstrap=bootstrap)
            if not isinstance(self.baseline, StateValue):
                value = self.baseline(rollout, to_go)
            advantage = to_go - value

        keep = returns.complete(**ends) if self.truncated_return == "drop" else valid
        to_go, advantage = torch.where(valid, to_go, 0.0), torch.where(keep, advantage, 0.0)
        weight = keep.to(reward.dtype)
        first = keep & (rollout.time == 0)
        first[0] |= keep[0]  # an episode that began in an earlier rollout counts from here
        count = (first if self.average == "episodes" else keep).sum().clamp(min=1)
        objective = (to_go * first).sum() / count
        multiplier = standardize(advantage, weight) if self.normalize_advantages else advantage
        if self.gamma_weight:
            weight = weight * self.gamma ** rollout.time.to(reward.dtype)
        return Credit(to_go, advantage, multiplier, weight / count, objective)

"""PPO (Schulman et al. 2017): several epochs of minibatches on the clipped likelihood ratio.

    maximize  sum w min(r A, clip(r, 1 - eps, 1 + eps) A),      r = pi(a | s) / pi_acted(a | s)

The clip takes the gradient away where a step would move the policy further from the one that acted
and be paid for it: a bias, in exchange for using each sample more than once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlpg.distributed import sum_over_ranks
from rlpg.gradients import estimators
from rlpg.gradients.baselines import STATISTICAL
from rlpg.learners import rules
from rlpg.learners.advantages import Advantages
from rlpg.learners.batch import Batch, normalized
from rlpg.learners.learner import Learner
from rlpg.learners.optimizer import Number
from rlpg.learners.settings import LearnerSettings, PPOSettings
from rlpg.policies.spaces import num_continuous
from rlpg.rollouts.rollout import Rollout

_LEAST_CLIP_RANGE = 1e-6
_Step = tuple[Batch, Tensor, dict[str, Tensor], Number]  # with [S] log-probs; sums; norm


class PPO(Learner):
    """The clipped surrogate of equation 7, `num_epochs` times over `num_minibatches`."""

    Settings: ClassVar[type[LearnerSettings]] = PPOSettings
    settings: PPOSettings
    _adapted = 1.0  # of the learning rate, by desired_kl

    def surrogate(self, batch: Batch, log_prob: Tensor) -> Tensor:
        """`sum w min(r A, clip(r) A)`; at the policy that acted, its gradient is REINFORCE's."""
        parts, weight = (log_prob, batch.log_prob, batch.advantage), batch.weight
        clip_range = self.clip_range
        return estimators.clipped_likelihood_ratio(*parts, weight=weight, clip_range=clip_range)

    @property
    def clip_range(self) -> float:
        """Its present value; above 0 also where its schedule has come to an end."""
        return max(self.scheduled("clip_range", self.settings.clip_range), _LEAST_CLIP_RANGE)

    @property
    def _recomputes(self) -> bool:
        """Whether the baseline learns between passes: a mean of past returns would then contain
        those that it is subtracted from."""
        is_mean = isinstance(self.baseline, tuple(STATISTICAL.values()))
        return self.settings.recompute_advantages and not is_mean

    def improve(self, batch: Batch, lr_scale: float) -> dict[str, Number]:
        """Epochs of minibatches, until `target_kl` is passed."""
        s, fitted, passes = self.settings, dict[str, Number](), list[dict[str, Number]]()
        length = len(batch.weight) if batch.in_order else None
        number, dims = batch.places.number, num_continuous(self.policy.head.space)
        num_minibatches = rules.num_minibatches(s.num_minibatches, number, length, dims)
        for num_epochs in range(1, s.num_epochs + 1):
            minibatches = list(batch.minibatches(num_minibatches, self.generator))
            if s.normalize_advantages and s.normalize_advantages_over == "minibatch":
                minibatches = normalized(minibatches)
            steps = [self._step(minibatch, lr_scale * self._adapted) for minibatch in minibatches]
            passes.append(self._metrics(steps))
            if self._recomputes:
                fitted |= super().fit_baseline(batch.rollout, batch.advantages, lr_scale)
            if s.target_kl is not None and passes[-1]["train/approx_kl"] > s.target_kl:
                break
            if self._recomputes and num_epochs < s.num_epochs:
                advantages = self.advantages(batch.rollout)
                fresh = Batch.of(batch.rollout, advantages, in_order=batch.in_order)
                batch = replace(fresh, log_prob=batch.log_prob, value=batch.value)
        metrics = fitted | {n: sum(p[n] for p in passes) / num_epochs for n in passes[0]}
        if s.num_epochs == num_minibatches == 1:  # before its only step the policy is where it was
            with torch.no_grad():
                _, log_prob, terms = self.objective(batch)
            passes = [self._metrics([(batch, log_prob, terms, 0.0)])]
        metrics["train/approx_kl"] = passes[-1]["train/approx_kl"]
        metrics["train/learning_rate"] = s.learning_rate * lr_scale * self._adapted
        if s.desired_kl is not None:
            self._adapt(float(metrics["train/approx_kl"]), s.desired_kl)
        return metrics | {"train/num_epochs": float(num_epochs)}

    def fit_baseline(
        self, rollout: Rollout, advantages: Advantages, lr_scale: float
    ) -> dict[str, float]:
        """Nothing with `recompute_advantages`: then the baseline has learned in every pass."""
        return {} if self._recomputes else super().fit_baseline(rollout, advantages, lr_scale)

    def _step(self, batch: Batch, lr_scale: float) -> _Step:
        """One gradient step, and what is to be known about the policy before it."""
        objective, log_prob, terms = self.objective(batch)
        norm = self.optimizer.step(self.optimizer.gradient(objective), lr_scale)
        return batch, log_prob, terms, norm

    def _metrics(self, steps: list[_Step]) -> dict[str, Number]:
        """Of a pass of all ranks: every minibatch before its step; not waited for."""
        batches, log_probs, terms, norms = zip(*steps, strict=True)
        pairs = zip(batches, log_probs, strict=True)
        log_ratio = torch.cat([(now - b.log_prob).reshape(-1) for b, now in pairs]).double()
        if batches[0].in_order:  # else there are samples of positive weight only
            log_ratio = log_ratio[torch.cat([b.weight.reshape(-1) for b in batches]) > 0]
        less_one = torch.expm1(log_ratio)
        is_clipped = (less_one.abs() > self.clip_range).double()
        own = (less_one - log_ratio).sum(), is_clipped.sum(), torch.ones_like(log_ratio).sum()
        kl, clipped, count = sum_over_ranks(torch.stack(own))
        rows = [[*term.values(), b.weight.sum()] for term, b in zip(terms, batches, strict=True)]
        *sums, weight = sum_over_ranks(torch.stack([torch.stack(row) for row in rows])).T
        pairs = zip(terms[0], sums, strict=True)
        # The environments of a minibatch with memory may have no step that counts.
        return {name: (x / weight).nanmean().double() for name, x in pairs} | {
            "train/approx_kl": kl / count,
            "train/clip_fraction": clipped / count,
            "gradient/norm": sum(norms) / len(steps),
        }

    def _adapt(self, kl: float, desired: float) -> None:
        """Raise or lower the learning rate by 1.5 where the KL is off by a factor of 2.

        Schulman et al. 2017, section 4, adapt a penalty so; rsl_rl and others the learning rate.
        """
        s = self.settings
        factor = 1.0 / 1.5 if kl > 2.0 * desired else 1.5 if kl < desired / 2.0 else 1.0
        rate = s.learning_rate * self._adapted * factor
        self._adapted = min(max(rate, s.min_learning_rate), s.max_learning_rate) / s.learning_rate

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"adapted": self._adapted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._adapted = float(state["adapted"])

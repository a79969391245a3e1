"""Pathwise: a policy improved through the environment's own derivatives (SHAC, Xu et al. 2022).

    maximize  1/(N T) sum_n  sum_{t < T} gamma^t r_t  +  gamma^T V(s_T)

over windows of T steps, in which states, actions and rewards are one differentiable program. The
value at the end stands for all that follows, so that the path stays short enough to be smooth. A
tape holds the program; the setting `gradient` says how it is differentiated.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlpg.errors import UsageError
from rlpg.gradients.afterwards import add_terms
from rlpg.gradients.baselines import Baseline
from rlpg.learners.batch import Batch
from rlpg.learners.learner import KL_SAMPLES, Learner
from rlpg.learners.optimizer import Number
from rlpg.learners.settings import LearnerSettings, PathwiseSettings
from rlpg.learners.values import StateValue, ValueNetwork, module_state
from rlpg.rollouts.rollout import Rollout


class TargetValue(StateValue):
    """A value network, used through a copy of itself that follows it slowly.

        target <- decay target + (1 - decay) network,        after every update

    Source: Xu et al. 2022, section 3.2.
    """

    def __init__(self, learned: ValueNetwork, decay: float) -> None:
        self._learned, self._decay = learned, decay
        self._used = copy.copy(learned)
        self._used.network = copy.deepcopy(learned.network).requires_grad_(False)

    def value(self, obs: Tensor) -> Tensor:
        """V `[...]` of observations `[..., *O]`, differentiable in them."""
        return self._used.value(obs)

    def predict(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return self._used.predict(rollout)

    def update(  # type: ignore[override]  # the samples of a learner are a rollout
        self, samples: Rollout, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        metrics = self._learned.update(samples, returns, weight, lr_scale)
        target, learned = self._used.network, self._learned.network
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), learned.parameters(), strict=True):
                slow.lerp_(fast, 1.0 - self._decay)
        return metrics

    def refuse_unregistered(self, obs: Tensor) -> None:
        self._learned.refuse_unregistered(obs)

    def compile(self) -> None:
        self._learned.compile()

    def state_dict(self) -> dict[str, Any]:
        return self._learned.state_dict() | {"target": module_state(self._used.network)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._learned.load_state_dict({k: v for k, v in state.items() if k != "target"})
        self._used.network.load_state_dict(state["target"])


class Pathwise(Learner):
    """One gradient step per window, through the tape of `TensorCollector(..., gradient=...)`."""

    Settings: ClassVar[type[LearnerSettings]] = PathwiseSettings
    settings: PathwiseSettings
    uses_log_prob = False
    baseline: TargetValue

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not isinstance(self.baseline, ValueNetwork):
            raise UsageError(f"baseline: expected value, got {type(self.baseline).__name__}")
        self.baseline = TargetValue(self.baseline, self.settings.target_decay)
        self.advantage_rule.baseline = self.baseline
        self.gradient = self.settings.gradient

    def _check_shared_torso(self, baseline: str | Baseline) -> None:
        raise UsageError(
            "shared_torso: expected false for Pathwise, whose windows end in the value of another "
            "network, got true; set policy.shared_torso to false, or choose another learner"
        )

    def surrogate(self, batch: Batch, log_prob: Tensor) -> Tensor:
        """The objective of the window, whose gradient is the one that `gradient` names."""
        rollout, gamma = batch.rollout, self.settings.gamma
        window, scale = rollout.window, self.reward_scale.scale if self.reward_scale else 1.0
        if window is None:
            raise UsageError(
                "rollout: expected one that can be differentiated, got one without a window; "
                f"collect with TensorCollector(..., gradient={self.gradient!r})"
            )
        # Where a step is the last of its episode or of the window, a value stands for what follows.
        is_last = rollout.done.clone()  # [T, N]
        is_last[-1] = True
        follows = torch.zeros_like(rollout.reward)  # [T, N]
        follows[-1] = self.baseline.value(window.last_obs)
        final = self.baseline.value(window.final_obs)  # [K]
        follows = follows.index_put((rollout.final_step, rollout.final_env), final)
        follows = torch.where(rollout.terminated, 0.0, follows)
        terms = window.reward / scale + gamma * follows
        discounts = gamma * (~is_last).to(terms.dtype)
        values = self.baseline.predict(rollout)[0].unbind()
        gae_lambda = self.advantage_rule.gae_lambda
        tape = copy.copy(window.tape)  # the rollout's has no terms: it can be asked again
        tape.gae_lambda = 1.0 if gae_lambda is None else gae_lambda
        add_terms(tape, terms.unbind(), discounts.unbind(), values)
        return tape.surrogate() * batch.weight.sum() / len(terms)  # weight: of this rank

    def improve(self, batch: Batch, lr_scale: float) -> dict[str, Number]:
        """One step along the gradient of the whole window."""
        objective, log_prob, sums = self.objective(batch)
        norm = self.optimizer.step(self.optimizer.gradient(objective), lr_scale)
        return {name: value / batch.weight.sum() for name, value in sums.items()} | {
            "train/approx_kl": self.approx_kl(replace(batch, log_prob=log_prob), KL_SAMPLES),
            "gradient/norm": norm,
        }

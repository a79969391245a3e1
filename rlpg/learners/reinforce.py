"""REINFORCE (Williams 1992): raise the log-probability of actions in proportion to their advantage.

    g = 1/count  sum_{t,n}  gamma^t  grad log pi(a | s)  A(t, n),      A = return-to-go - baseline

Every choice that changes what is estimated has a name; `CreditRule` shows their arithmetic.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from rlpg.errors import NumericalFault
from rlpg.gradients import estimators
from rlpg.gradients.baselines import Baseline, Value
from rlpg.learners.adam import Adam, flat_gradient
from rlpg.learners.credit import Credit, CreditRule
from rlpg.learners.figures import explained_variance, signal_to_noise, variance_removed
from rlpg.learners.scaling import RewardScale
from rlpg.learners.values import make_baseline, module_state, pieces
from rlpg.policies import Policy
from rlpg.rollouts.rollout import Rollout, rows

KL_SAMPLES = 256  # of the batch, that train/approx_kl looks at
FOUR_GROUPS = 2048  # samples from which on the noise of the gradient is told from four groups

Samples = tuple[Tensor, Tensor, Tensor, Tensor]


class Reinforce:
    """The policy-gradient learner: `surrogate` to differentiate, `update` to take one step.

    Args:
        policy: what is improved, in place; its observation normalizer learns after each step.
        baseline: an object, or one of `none`, `moving_average`, `time_step`, `leave_one_out`,
            `linear`, `value`.
        gamma: discount per step.
        gae_lambda: weight of longer returns in GAE (Schulman et al. 2016, eq. 16), for baselines
            that predict values (`linear`, `value`). Below 1 it trades variance for the bias of the
            predicted values. None: return-to-go minus the baseline.
        truncated_return: what is added to the return of an episode that was cut, by a time limit or
            by the end of the rollout. `bootstrap`: the discounted value of its last state (for
            baselines that predict values). `drop`: the episode leaves the gradient, which then
            over-represents short episodes. `terminal`: nothing, as if it had ended. None:
            `bootstrap` where the baseline can, else `terminal`.
        gamma_weight: weigh step t of an episode by gamma^t. The gradient of the discounted
            objective demands it, and nearly everyone drops it (Thomas 2014).
        average: divide the sum over steps by the number of `steps` or of `episodes`. Only
            `episodes` estimates the gradient of the expected return; `steps` differs from it by a
            factor that depends on the lengths of the episodes in the batch.
        entropy_coef: weight of the entropy of the action distribution, summed and averaged over
            steps as the rest is.
        normalize_advantages: shift and scale the batch's advantages to mean 0 and deviation 1
            (biased: the batch's own moments contain each sample).
        max_grad_norm: longer gradients are shortened to this norm.
        learning_rate: Adam's learning rate.
        reward_scaling: divide rewards by the running deviation of the discounted return so far.
        value_hidden, value_learning_rate, num_value_epochs, num_value_minibatches: of the value
            network, which is regressed on the returns.
        generator: stream that initializes and shuffles the value network.

    Raises:
        UsageError: options that contradict each other.
    """

    def __init__(
        self,
        policy: Policy,
        baseline: str | Baseline = "value",
        *,
        gamma: float = 0.99,
        gae_lambda: float | None = None,
        truncated_return: Literal["bootstrap", "drop", "terminal"] | None = None,
        gamma_weight: bool = False,
        average: Literal["steps", "episodes"] = "steps",
        entropy_coef: float = 0.0,
        normalize_advantages: bool = False,
        max_grad_norm: float | None = None,
        learning_rate: float = 3e-3,
        reward_scaling: bool = False,
        value_hidden: tuple[int, ...] = (64, 64),
        value_learning_rate: float = 3e-3,
        num_value_epochs: int = 4,
        num_value_minibatches: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        self._generator = generator or torch.Generator().manual_seed(0)
        if isinstance(baseline, str | Value):
            baseline = make_baseline(
                baseline,
                policy,
                hidden=value_hidden,
                learning_rate=value_learning_rate,
                epochs=num_value_epochs,
                minibatches=num_value_minibatches,
                generator=self._generator,
            )
        self.policy, self.baseline = policy, baseline
        self.credit_rule = CreditRule(
            baseline,
            gamma=gamma,
            gae_lambda=gae_lambda,
            truncated_return=truncated_return,
            gamma_weight=gamma_weight,
            average=average,
            normalize_advantages=normalize_advantages,
        )
        self.entropy_coef = entropy_coef
        self.max_grad_norm = max_grad_norm
        self.learning_rate = learning_rate
        self.reward_scale = RewardScale(gamma) if reward_scaling else None
        self.num_updates = 0
        self._parameters = [p for p in policy.parameters() if p.requires_grad]
        self._optimizer = Adam(self._parameters)

    def compile(self) -> None:
        """Compiles the networks for learning, which takes half a minute, once.

        Whether updates become shorter is for a measurement: those of two layers of 64 do not.
        Acting is not touched. The bits of a compiled run are its own.
        """
        self.policy.network.compile(dynamic=True)
        self.baseline.compile()

    def surrogate(self, rollout: Rollout) -> Tensor:
        """Scalar: its value estimates the objective, its gradient is the REINFORCE estimator."""
        credit = self.credit(rollout)
        gain, _, _ = self._gain(*_samples(rollout, credit, slice(None)))
        return credit.objective + gain

    def credit(self, rollout: Rollout) -> Credit:
        """What each step of the rollout is worth; changes nothing."""
        return self.credit_rule(rollout, self.scaled_reward(rollout))

    def scaled_reward(self, rollout: Rollout) -> Tensor:
        """`[T, N]` rewards in the learner's units."""
        return rollout.reward / self.reward_scale.scale if self.reward_scale else rollout.reward

    def _gain(
        self, obs: Tensor, action: Tensor, multiplier: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What S samples add to the surrogate; their `[S]` log-probs and entropy, detached."""
        distribution, _ = self.policy(obs)
        log_prob = distribution.log_prob(action)  # [S]
        gain = estimators.score_function(log_prob, multiplier, weight=weight)
        with torch.set_grad_enabled(self.entropy_coef != 0.0):
            entropy = (weight * distribution.entropy()).sum()
        return gain + self.entropy_coef * entropy, log_prob.detach(), entropy.detach()

    def _gradient(self, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient `[P]` of the loss; `[S]` log-probs and the entropy of the samples."""
        gradient, log_probs, entropies = torch.zeros(()), [], []
        for obs, action, multiplier, weight in pieces(*samples):
            gain, log_prob, entropy = self._gain(obs, action, multiplier, weight)
            # The one minus sign: everything above is maximized, the optimizer minimizes.
            gradient = flat_gradient(-gain, self._parameters) + gradient
            log_probs.append(log_prob)
            entropies.append(entropy)
        return gradient, torch.cat(log_probs), torch.stack(entropies).sum()

    def update(self, rollout: Rollout, *, lr_scale: float = 1.0) -> dict[str, float]:
        """One gradient step on the policy; then the baseline, the scale and the normalizer learn.

        Args:
            rollout: fresh from the policy as it is now (on-policy).
            lr_scale: multiplies every learning rate: the present value of a schedule.

        Returns:
            Figures to log, by TensorBoard tag.

        Raises:
            NumericalFault: a gradient is not finite. Nothing has changed if it is the policy's; if
                it is the value network's, the policy has taken its step.
        """
        credit = self.credit(rollout)
        # Independent groups of environments cost no extra pass and show the gradient's noise.
        gradients, entropy = [], 0.0
        groups = _groups(*rollout.reward.shape)
        for envs in groups:
            samples = _samples(rollout, credit, envs)
            gradient, log_prob, bonus = self._gradient(samples)
            gradients.append(gradient)
            entropy += float(bonus)
        per_group = torch.stack(gradients)  # [K, P]
        total = float(credit.weight.sum())
        figures = {
            "train/policy_loss": -float((credit.weight * credit.multiplier).sum()),
            "train/entropy": entropy / total if total else math.nan,
            "train/learning_rate": self.learning_rate * lr_scale,
            "train/explained_variance": explained_variance(
                credit.returns, credit.advantage, credit.weight
            ),
            "gradient/norm": float(per_group.sum(dim=0).double().norm()),
            "gradient/signal_to_noise": signal_to_noise(
                per_group, [envs.stop - envs.start for envs in groups]
            ),
            "gradient/variance_removed_by_baseline": variance_removed(
                credit.returns, credit.advantage, credit.weight
            ),
        }
        if total:  # else every episode was dropped: no step, not even one of momentum
            self._step(per_group.sum(dim=0), lr_scale)
            figures["train/approx_kl"] = self._divergence(samples, log_prob)
        figures |= self.baseline.update(
            rollout, credit.returns, (credit.weight > 0).to(credit.weight.dtype), lr_scale
        )
        if self.reward_scale:
            self.reward_scale.update(rollout)
        if self.policy.normalizer is not None:
            seen = rows(rollout.valid)(rollout.obs[:-1])  # [S, *O]
            self.policy.normalizer.update(self.policy.observations.features(seen))
        self.num_updates += 1
        return figures

    def _step(self, gradient: Tensor, lr_scale: float) -> None:
        """Check, clip and apply a flat gradient `[P]` of the loss."""
        norm = float(gradient.double().norm())
        if self.max_grad_norm is not None and norm > self.max_grad_norm:
            gradient = gradient * (self.max_grad_norm / norm)
        if not gradient.square().sum().isfinite():  # Adam would never get over it
            raise NumericalFault(self._fault(gradient))
        self._optimizer.step(gradient, self.learning_rate * lr_scale)

    @torch.no_grad()
    def _divergence(self, samples: Samples, log_prob: Tensor) -> float:
        """KL(old || new) on some of the batch, by the low-variance estimator (Schulman 2020)."""
        some = slice(None, None, max(1, len(log_prob) // KL_SAMPLES))
        obs, action, *_ = samples
        distribution, _ = self.policy(obs[some])
        log_ratio = distribution.log_prob(action[some]) - log_prob[some]
        return float((torch.expm1(log_ratio) - log_ratio).mean())

    def _fault(self, gradient: Tensor) -> str:
        names = [name for name, p in self.policy.named_parameters() if p.requires_grad]
        parts = gradient.split([p.numel() for p in self._parameters])
        sizes = [float(part.square().sum()) for part in parts]
        bad = next((n for n, size in zip(names, sizes, strict=True) if not size < math.inf), "all")
        return (
            f"gradient of {bad}: expected finite numbers, got nan, inf or more than can be squared "
            f"at update {self.num_updates}; look at the rewards, lower "
            "learner.learning_rate, or set learner.max_grad_norm"
        )

    def state_dict(self) -> dict[str, Any]:
        """All that training needs to continue exactly, the policy's weights included."""
        return {
            "policy": module_state(self.policy),
            "optimizer": self._optimizer.state_dict(),
            "baseline": self.baseline.state_dict(),
            "reward_scale": self.reward_scale.state_dict() if self.reward_scale else {},
            "generator": self._generator.get_state(),
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.policy.load_state_dict(state["policy"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.baseline.load_state_dict(state["baseline"])
        if self.reward_scale:
            self.reward_scale.load_state_dict(state["reward_scale"])
        self._generator.set_state(state["generator"])
        self.num_updates = state["num_updates"]


def _samples(rollout: Rollout, credit: Credit, envs: slice) -> Samples:
    """`[S, ...]` each: observation, action, multiplier and weight of the slots that count.

    The others may hold anything, and never reach a network.
    """
    weight = credit.weight[:, envs]
    slots = rows(weight > 0)
    return (
        slots(rollout.obs[:-1, envs]),
        slots(rollout.action[:, envs]),
        slots(credit.multiplier[:, envs]),
        slots(weight),
    )


def _groups(num_steps: int, num_envs: int) -> list[slice]:
    """Four groups of environments, or two where four would cost more in calls than in work."""
    num_groups = min(4 if num_steps * num_envs >= FOUR_GROUPS else 2, num_envs)
    bounds = [num_envs * k // num_groups for k in range(num_groups + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]

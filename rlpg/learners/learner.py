"""`Learner`: a rollout in, a better policy out.

`update` is the same for all: advantages -> `improve` -> the baseline, the reward scale and the
normalizer learn. A learner states what it maximizes (`surrogate`) and, if it is not one gradient
step, how (`improve`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from rlpg.distributed import means_over_ranks, num_ranks, sum_over_ranks
from rlpg.errors import UsageError, call
from rlpg.gradients.baselines import Baseline
from rlpg.gradients.tape import How
from rlpg.learners import rules
from rlpg.learners.advantages import AdvantageRule, Advantages, explained_variance, variance_removed
from rlpg.learners.batch import Batch, refuse_too_many
from rlpg.learners.examination import NUM_UPDATES, examine
from rlpg.learners.gradient_noise import signal_to_noise
from rlpg.learners.optimizer import Number, Optimizer
from rlpg.learners.reward_scale import RewardScale
from rlpg.learners.settings import SEPARATE_CRITIC, LearnerSettings
from rlpg.learners.values import StateValue, ValueNetwork, make_baseline, module_state, squares
from rlpg.policies import Policy
from rlpg.policies.networks import refuse_unusable
from rlpg.rollouts.rollout import Rollout, rows
from rlpg.settings import SCHEDULE, scheduled

KL_SAMPLES = 256  # of the batch, that train/approx_kl looks at after a single step
Schedules = Mapping[str, Callable[[float], float]]


class Learner(ABC):
    """Improves a policy from rollouts. Subclasses define `surrogate`, and `improve` if need be.

    A subclass that has settings of its own names their type, a frozen dataclass under
    `LearnerSettings`, as `Settings`; they are keyword arguments of the constructor, and
    `self.settings`.

    Args:
        policy: what is improved, in place; its observation normalizer learns after each step.
        baseline: an `rlpg.Baseline`, or the name of one; None: what the settings say.
        generator: stream that initializes and shuffles the value network and the minibatches.
        schedules: functions of progress in [0, 1] by setting (`learning_rate`, `entropy_coef`,
            ...), whose value multiplies the setting; they win over `<setting>_schedule`.
        settings: of the learner, by name; see `LearnerSettings`.

    Raises:
        UsageError: settings that do not exist, do not fit, or contradict each other; a policy with
            dropout or batch normalization.
    """

    Settings: ClassVar[type[LearnerSettings]] = LearnerSettings
    uses_log_prob: ClassVar[bool] = True  # `batch.log_prob` is that of the policy that acted
    gradient: How | None = None  # that rollouts are to come with; see `TensorCollector`

    def __init_subclass__(cls, **options: Any) -> None:
        """Raises UsageError where `update` is overridden: what it does around `improve` is lost."""
        super().__init_subclass__(**options)
        if "update" in vars(cls):
            raise UsageError(
                f"{cls.__name__}.update: expected it not to be overridden; define surrogate, and "
                "improve where one gradient step is not enough"
            )

    def __init__(
        self,
        policy: Policy,
        baseline: str | Baseline | None = None,
        *,
        generator: torch.Generator | None = None,
        schedules: Schedules | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(baseline, str):
            settings["baseline"] = baseline
        self.settings = self.Settings.from_values(settings)
        self.policy = policy
        self.generator = generator or torch.Generator().manual_seed(0)
        self.schedules = self._checked(schedules or {})
        s = self.settings
        refuse_unusable(policy, "policy")
        chosen = baseline if isinstance(baseline, Baseline) else s.baseline
        if policy.shared_network is not None:
            self._check_shared_torso(chosen)
        self.baseline = make_baseline(chosen, policy, s, self.generator)
        self.advantage_rule = AdvantageRule(self.baseline, s)
        is_auto = s.entropy_coef == "auto"
        by_rule = rules.entropy_coef(policy.head.is_discrete)
        self.entropy_coef = by_rule if is_auto else s.entropy_coef
        self.reward_scale = RewardScale(s.gamma) if s.reward_scaling else None
        self.optimizer = Optimizer(
            policy.named_parameters(), learning_rate=s.learning_rate, max_grad_norm=s.max_grad_norm
        )
        self.num_updates = 0
        self.progress = 0.0  # share of the run that is done, of the present update

    def _checked(self, schedules: Schedules) -> Schedules:
        """Raises UsageError where a schedule belongs to no setting, or a function is only named."""
        known = [n.removesuffix(SCHEDULE) for n in self.settings.names() if n.endswith(SCHEDULE)]
        if not isinstance(schedules, Mapping):
            raise UsageError(
                f"schedules: expected functions by setting, {{{known[0]!r}: function}}, got "
                f"{schedules!r:.60}"
            )
        for name in schedules:
            if name not in known:
                raise UsageError(f"schedules: expected {' or '.join(known)}, got {name!r}")
            if not callable(schedules[name]):
                raise UsageError(
                    f"schedules: expected a function of progress for {name}, got "
                    f"{schedules[name]!r:.60}; a name (linear) goes into learner.{name}{SCHEDULE}"
                )
        for name in known:
            value = getattr(self.settings, name + SCHEDULE)
            if ":" in value and name not in schedules:
                raise UsageError(
                    f"{name}{SCHEDULE}: expected the function {value} itself; pass it in Python as "
                    f'schedules={{"{name}": function}}'
                )
        return dict(schedules)

    def _check_shared_torso(self, baseline: str | Baseline) -> None:
        """Raises UsageError where the learner, a setting or the baseline has no use for one."""
        if "value_coef" not in self.settings.names():
            raise UsageError(
                f"shared_torso: expected false for {type(self).__name__}, whose steps are measured "
                "on the policy alone, got true; choose another learner, or a critic of its own"
            )
        defaults = {field.name: field.default for field in fields(self.settings)}
        for name in SEPARATE_CRITIC:
            value = getattr(self.settings, name)
            if value != defaults[name]:
                raise UsageError(f"{name}: expected nothing with shared_torso, got {value}")
        if baseline != "value":
            got = baseline if isinstance(baseline, str) else type(baseline).__name__
            raise UsageError(f"baseline: expected value, with policy.shared_torso, got {got}")

    def check_rollouts(self, num_steps: int | None, num_envs: int) -> None:
        """Raise UsageError where rollouts of this size are too small for the minibatches asked for.

        Args:
            num_steps: of each environment; None: unknown.
        """
        asked = [("num_minibatches", self.policy.has_memory)]
        if isinstance(self.baseline, ValueNetwork):
            asked.append(("num_value_minibatches", self.baseline.network.memory is not None))
        for name, in_order in asked:
            wanted: Any = getattr(self.settings, name, "auto")
            # Nobody asked for a default: one environment with memory is one minibatch.
            is_own = wanted != getattr(type(self.settings), name, "auto")
            if wanted != "auto" and is_own and (in_order or num_steps is not None):
                most = num_envs if in_order else num_envs * (num_steps or 1)
                refuse_too_many(f"learner.{name}", wanted, most, in_order=in_order)

    # ---- what a subclass defines

    @abstractmethod
    def surrogate(self, batch: Batch, log_prob: Tensor) -> Tensor:
        """Scalar to maximize: its gradient is the learner's.

        Args:
            batch: S samples with their advantages and weights.
            log_prob: `[S]` of the batch's actions under the policy as it is now.
        """

    def improve(self, batch: Batch, lr_scale: float) -> Mapping[str, Number]:
        """Make the policy better: one gradient step, unless a subclass does otherwise.

        Args:
            batch: the whole rollout's samples.
            lr_scale: multiplies the learning rate.

        Returns:
            Metrics to log, by TensorBoard tag. A scalar that is left on the device is read with the
            others, in one wait.
        """
        # Independent groups of environments cost no extra pass and show the gradient's noise.
        gradients, log_probs, sums = [], [], dict[str, Tensor]()
        for group in batch.groups:
            gradient = torch.zeros_like(self.optimizer.flat())
            for chunk in group.chunks() if len(group) or not len(batch) else ():
                objective, log_prob, terms = self.objective(chunk)
                gradient = self.optimizer.own_gradient(objective) + gradient
                log_probs.append(log_prob)
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0.0) + term.double()
            gradients.append(gradient)
        per_group = torch.stack(gradients)  # [K, P]
        gradient = sum_over_ranks(per_group.sum(dim=0))
        norm = self.optimizer.step(gradient, lr_scale)
        batch = replace(batch, log_prob=torch.cat(log_probs, dim=1 if batch.in_order else 0))
        return {name: value / batch.weight.sum() for name, value in sums.items()} | {
            "train/approx_kl": self.approx_kl(batch, KL_SAMPLES),
            "gradient/norm": norm,
            "gradient/signal_to_noise": signal_to_noise(per_group, batch.group_sizes, gradient),
        }

    # ---- what subclasses use

    def objective(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Scalar to maximize: the surrogate, the entropy bonus, and a shared critic's loss.

            surrogate + entropy_coef sum w H - value_coef sum w (V - G)^2

        The last term is there where policy and critic share their layers. Also returns `[S]`
        log-probs and the weighted sums of entropies and squared errors by tag, all detached.
        """
        value = None
        if self.policy.shared_network is None:
            distribution = batch.distribution(self.policy)
        else:
            parts = batch.obs, batch.carry, batch.episode_start
            distribution, value = self.policy.forward_with_value(*parts)
        log_prob = batch.log_prob_of(distribution)  # [S]
        coef = self.scheduled("entropy_coef", self.entropy_coef)
        with torch.set_grad_enabled(torch.is_grad_enabled() and coef != 0.0):
            entropy = self._entropy(batch, distribution, is_needed=coef != 0.0)
        objective = self.surrogate(batch, log_prob)
        if not isinstance(objective, Tensor) or objective.ndim:
            is_tensor = isinstance(objective, Tensor)
            got = f"shape {list(objective.shape)}" if is_tensor else type(objective).__name__
            raise UsageError(
                f"{type(self).__name__}.surrogate: expected a scalar, got {got}; use batch.mean"
            )
        if torch.is_grad_enabled() and not objective.requires_grad:
            raise UsageError(
                f"{type(self).__name__}.surrogate: expected a scalar that depends on the policy, "
                "got a constant; compute it from log_prob, without detach() and no_grad()"
            )
        if coef != 0.0:
            objective = objective + coef * entropy
        terms = {"train/entropy": entropy.detach()}
        if value is not None:
            clip_range = getattr(self.settings, "value_clip_range", None)
            loss = batch.mean(squares(value, batch.returns, batch.value, clip_range))
            objective = objective - self.settings.value_coef * loss
            terms["train/value_loss"] = loss.detach()
        return objective, log_prob.detach(), terms

    def _entropy(self, batch: Batch, distribution: Distribution, *, is_needed: bool) -> Tensor:
        """Scalar: the weighted sum of entropies; nan where nobody knows a formula."""
        try:
            return batch.mean(distribution.entropy())
        except NotImplementedError:
            if is_needed:
                raise UsageError(
                    f"entropy_coef: expected 0, because {type(distribution).__name__} has no "
                    "entropy; define the distribution's entropy(), or set entropy_coef to 0"
                ) from None
            return batch.weight.new_tensor(math.nan)

    def scheduled(self, name: str, value: Any) -> float:
        """A setting's value at the present progress."""
        own = getattr(self.settings, name + SCHEDULE, "constant")
        schedule = self.schedules.get(name, own)
        factor = call(f"schedules: {name}", scheduled, schedule, self.progress)
        if not 0.0 <= factor < math.inf:
            raise UsageError(
                f"schedules: expected a finite number >= 0 for {name} at progress "
                f"{self.progress:g}, got {factor:g}"
            )
        return float(value) * factor

    @torch.no_grad()
    def approx_kl(self, batch: Batch, num_samples: int | None = None) -> Tensor:
        """KL(policy that acted || policy now), by the low-variance estimator (Schulman 2020).

        Args:
            batch: with log-probs.
            num_samples: use about this many, evenly spread; None: use all.
        """
        size = batch.weight.numel() if num_samples is not None else 0
        some = batch[slice(None, None, max(1, size // num_samples))] if num_samples else batch
        log_ratio = some.log_prob_of(some.distribution(self.policy)) - some.log_prob
        kl = torch.expm1(log_ratio) - log_ratio
        counts = some.weight > 0
        return torch.where(counts, kl, 0.0).sum() / counts.sum().clamp(min=1)

    @torch.no_grad()
    def batch(self, rollout: Rollout, advantages: Advantages | None = None) -> Batch:
        """The rollout's samples with their advantages, by default as they are now."""
        advantages = advantages or self.advantages(rollout)
        batch = Batch.of(rollout, advantages, in_order=self.policy.has_memory)
        if not self.uses_log_prob:
            return batch
        log_probs = [c.log_prob_of(c.distribution(self.policy)) for c in batch.chunks()]
        return replace(batch, log_prob=torch.cat(log_probs, dim=1 if batch.in_order else 0))

    def advantages(self, rollout: Rollout) -> Advantages:
        """What each step of the rollout is worth; changes nothing."""
        return self.advantage_rule(rollout, self.scaled_reward(rollout))

    def scaled_reward(self, rollout: Rollout) -> Tensor:
        """`[T, N]` rewards in the learner's units."""
        return rollout.reward / self.reward_scale.scale if self.reward_scale else rollout.reward

    # ---- the update

    @final
    def update(
        self, rollout: Rollout, *, progress: float = 0.0, lr_scale: float = 1.0
    ) -> dict[str, float]:
        """Improve the policy; then the baseline, the reward scale and the normalizer learn.

        The first rewards are divided by their own deviation: a value network that has learned from
        them as they are, 1e4 say, does not come back from there to targets of about 1.

        Args:
            rollout: fresh from the policy as it is now (on-policy).
            progress: share of the run that is done, in [0, 1], for the schedules.
            lr_scale: multiplies every learning rate, besides the schedule.

        Returns:
            Metrics to log, by TensorBoard tag.

        Raises:
            NumericalFault: a gradient is not finite. Nothing has changed if it is the first one of
                the policy; if it is the value network's, the policy has taken its step. Elsewhere
                than on a CPU it is raised after the other steps were taken.
        """
        self.optimizer.refuse_others(self.policy.named_parameters())
        self.progress = min(max(progress, 0.0), 1.0)
        rollout = rollout.to(self.policy.device)
        lr_scale *= self.scheduled("learning_rate", 1.0)
        was_scaled = self.reward_scale is not None and self.reward_scale.is_known
        if self.reward_scale and not was_scaled:
            self.reward_scale.update(rollout)
        advantages = self.advantages(rollout)
        weight = advantages.weight
        own_loss = -(weight * advantages.normalized).sum().double()
        unread: dict[str, Number] = {
            "train/policy_loss": own_loss * num_ranks(),
            "train/entropy": math.nan,
            "train/explained_variance": explained_variance(
                advantages.returns, advantages.advantage, weight
            ),
            "gradient/norm": 0.0,
            "gradient/signal_to_noise": math.nan,
            "gradient/variance_removed_by_baseline": variance_removed(
                advantages.returns, advantages.advantage, weight
            ),
        }
        if "learning_rate" in self.settings.names():
            unread["train/learning_rate"] = self.settings.learning_rate * lr_scale
        if advantages.number > 0:  # else every episode was dropped: no step at all
            batch = self.batch(rollout, advantages)
            if self.num_updates < NUM_UPDATES:
                examine(batch, self.policy, self.baseline)
            learned = self.improve(batch, lr_scale)
            unread |= _by_tag(learned, f"{type(self).__name__}.improve")
        metrics = self.optimizer.read(unread)
        learned = self.fit_baseline(rollout, advantages, lr_scale)
        fitted = _by_tag(learned, f"{type(self.baseline).__name__}.update")
        known = {tag: value for tag, value in fitted.items() if isinstance(value, float)}
        metrics |= known if len(known) == len(fitted) else self.optimizer.read(fitted)
        if isinstance(self.baseline, StateValue):
            self.baseline.advance(rollout)
        if self.reward_scale and was_scaled:
            self.reward_scale.update(rollout)
        if self.policy.normalizer is not None:
            seen = rows(rollout.valid)(rollout.obs[:-1])  # [S, *O]
            self.policy.normalizer.update(self.policy.observations.features(seen))
        self.num_updates += 1
        return means_over_ranks(metrics)

    def fit_baseline(
        self, rollout: Rollout, advantages: Advantages, lr_scale: float
    ) -> dict[str, float]:
        """Let the baseline learn from the returns that it was subtracted from."""
        counts = (advantages.weight > 0).to(advantages.weight.dtype)
        return self.baseline.update(rollout, advantages.returns, counts, lr_scale)

    @final
    def estimate(self, rollout: Rollout) -> Tensor:
        """Scalar whose value estimates the objective and whose gradient is the learner's.

        With `average="episodes"` the objective is the expected discounted return of an episode;
        with `average="steps"` it is that divided by the mean length.
        """
        batch = self.batch(rollout.to(self.policy.device))
        value, _, _ = self.objective(batch)
        return batch.advantages.objective + value - value.detach()

    def compile(self) -> None:
        """Compiles the networks for learning, which takes half a minute, once.

        Measure whether updates become shorter: with two layers of 64 units they do not. Acting is
        not compiled. A compiled run does not have the bits of one that is not.
        """
        network = getattr(self.policy, "network", self.policy)
        network.compile(dynamic=True)
        self.baseline.compile()

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """All that training needs to continue exactly, the policy's weights included."""
        return {
            "policy": module_state(self.policy),
            "optimizer": self.optimizer.state_dict(),
            "baseline": self.baseline.state_dict(),
            "reward_scale": self.reward_scale.state_dict() if self.reward_scale else {},
            "generator": self.generator.get_state(),
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline.load_state_dict(state["baseline"])
        if self.reward_scale:
            self.reward_scale.load_state_dict(state["reward_scale"])
        self.generator.set_state(state["generator"])
        self.num_updates = state["num_updates"]


def _by_tag(metrics: object, what: str) -> Mapping[str, Number]:
    """What a part returned; UsageError if it is no mapping."""
    if not isinstance(metrics, Mapping):
        raise UsageError(
            f"{what}: expected metrics by tag, got {type(metrics).__name__}; return {{}} for none"
        )
    return metrics

"""What each learner can be told, and the learners by name; imports no torch.

`AGENTS` says which settings an agent has, where its class is, and where its defaults differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from rlpg.errors import RecipeError
from rlpg.settings import Count, Fraction, Layers, NonNegative, Positive, Schedule, Settings, one_of

PREDICTING = ("linear", "value")  # the baselines that predict the value of a state
SEPARATE_CRITIC = (  # settings of a value network that shares no layer with the policy
    "value_hidden", "value_learning_rate", "num_value_epochs", "num_value_minibatches",
)  # fmt: skip


def moot(baseline: str, *, shared_torso: bool) -> set[str]:
    """Settings that mean nothing beside these two, and are refused."""
    of_values = set() if baseline in PREDICTING else {"gae_lambda"}
    return of_values | set(SEPARATE_CRITIC if shared_torso else ())


_NAMES = ("none", "moving_average", "time_step", "leave_one_out", *PREDICTING)
BaselineName = Annotated[str, one_of(*_NAMES, or_own="Class")]


@dataclass(frozen=True)
class LearnerSettings(Settings):
    """What every learner can be told."""

    table: ClassVar[str] = "learner"

    baseline: BaselineName = "value"
    """what is subtracted from the return"""
    gamma: Fraction = 0.99
    """discount per step"""
    gae_lambda: Literal["auto"] | Fraction | None = "auto"
    """GAE's weight of longer returns, for baselines that predict values: linear, value
    (none: the whole return minus the baseline, as 1 is for other baselines; auto: 0.95 where the
    baseline predicts values)"""
    truncated_return: Literal["auto", "bootstrap", "drop", "terminal"] = "auto"
    """a cut-off episode: add the value of its last state, drop it, or count it as ended (auto:
    bootstrap if the baseline predicts values; else collect whole episodes and count it as ended)"""
    gamma_weight: bool = False
    """weigh step t by gamma^t, as the gradient of the discounted objective does"""
    average: Literal["steps", "episodes"] = "steps"
    """the gradient is a mean over steps, or over episodes"""
    entropy_coef: Literal["auto"] | NonNegative = "auto"
    """weight of the entropy bonus (auto: 0.02 for discrete actions; 0 for continuous ones, whose
    entropy grows without bound)"""
    entropy_coef_schedule: Schedule = "constant"
    """keep the weight of the entropy bonus, or lower it linearly to 0: over the run, or (cooldown)
    over its second half"""
    normalize_advantages: bool = True
    """shift and scale the advantages of a batch to mean 0 and standard deviation 1"""
    max_grad_norm: Positive | None = 0.5
    """longer gradients are shortened to this norm (none: never)"""
    learning_rate: Positive = 5e-3
    """learning rate of the policy"""
    learning_rate_schedule: Schedule = "linear"
    """keep the learning rates, or lower them linearly to 0: over the run, or (cooldown) over its
    second half"""
    value_hidden: Literal["auto"] | Layers = "auto"
    """units of each hidden layer of the value network (auto: those of the policy)"""
    value_learning_rate: Positive = 3e-3
    """learning rate of the value network"""
    num_value_epochs: Count = 2
    """passes of the value network over a rollout"""
    num_value_minibatches: Literal["auto"] | Count = 2
    """minibatches of the value network in each of its passes (auto: of about 64 samples; with
    memory of whole environments, at least 4); the default is lower where there are fewer samples"""
    value_coef: Positive = 0.5
    """weight of the value loss in the objective, where policy and value network share their layers
    (policy.shared_torso)"""
    reward_scaling: bool = True
    """the learner sees rewards divided by the running standard deviation of the return"""

    def check(self) -> None:
        is_own = ":" in self.baseline  # which may predict values
        asks = self.gae_lambda not in ("auto", None, 1.0)
        if asks and not is_own and self.baseline not in PREDICTING:
            raise RecipeError(
                f"{self.key('gae_lambda')}: expected auto, none or 1 with baseline "
                f"{self.baseline}, which does not predict values, got {self.gae_lambda}"
            )

    @property
    def num_value_passes(self) -> int:
        """Passes of the value network each time that it learns from a rollout."""
        return self.num_value_epochs


@dataclass(frozen=True)
class ReinforceSettings(LearnerSettings):
    """REINFORCE: the score function times the advantage, one gradient step per rollout."""


@dataclass(frozen=True)
class PPOSettings(LearnerSettings):
    """PPO: the clipped likelihood ratio, in epochs of minibatches."""

    learning_rate: Positive = 3e-4
    learning_rate_schedule: Schedule = "constant"
    value_learning_rate: Positive = 1e-3
    num_value_epochs: Count = 10
    num_value_minibatches: Literal["auto"] | Count = "auto"
    clip_range: Positive = 0.2
    """the likelihood ratio counts within 1 +- this"""
    clip_range_schedule: Schedule = "constant"
    """keep the clip range, or lower it linearly to 0: over the run, or (cooldown) over its second
    half"""
    num_epochs: Count = 10
    """passes over a rollout"""
    num_minibatches: Literal["auto"] | Count = "auto"
    """minibatches in each pass (auto: of about 64 samples, however large the rollout is, and of
    256 from seven continuous action dimensions on, six in rollouts of 1,500 samples; with memory
    of whole environments, at least 4)"""
    target_kl: Positive | None = None
    """stop the passes over a rollout when the policy is further than this from the one that acted
    (none: never)"""
    normalize_advantages_over: Literal["batch", "minibatch"] = "minibatch"
    """where normalize_advantages takes mean and standard deviation from"""
    recompute_advantages: bool = False
    """compute the advantages again before every pass, with the values as they are then: the value
    network makes one pass with every pass of the policy, and num_value_epochs is not used"""
    value_clip_range: Positive | None = None
    """a value may move by this much per rollout before its loss stops pulling (none: freely)"""
    desired_kl: Positive | None = None
    """raise and lower the learning rate, besides its schedule, to keep the policy about this far
    from the one that acted (none: leave it to the schedule)"""
    min_learning_rate: Positive = 1e-5
    """desired_kl lowers the learning rate no further"""
    max_learning_rate: Positive = 1e-2
    """desired_kl raises the learning rate no further"""

    def check(self) -> None:
        super().check()
        if self.min_learning_rate > self.max_learning_rate:
            raise RecipeError(
                f"{self.key('min_learning_rate')}: expected at most max_learning_rate = "
                f"{self.max_learning_rate}, got {self.min_learning_rate}"
            )

    @property
    def num_value_passes(self) -> int:
        return 1 if self.recompute_advantages else self.num_value_epochs


@dataclass(frozen=True)
class NaturalSettings(LearnerSettings):
    """Natural gradient: a step of a given KL divergence, with a line search where it is TRPO."""

    unused: ClassVar[frozenset[str]] = frozenset({"learning_rate", "max_grad_norm", "value_coef"})

    learning_rate_schedule: Schedule = "constant"
    num_value_epochs: Count = 5
    num_value_minibatches: Literal["auto"] | Count = "auto"
    max_kl: Positive = 0.01
    """length of a step: the mean KL divergence between the policy before and after it"""
    damping: NonNegative = 0.1
    """multiple of the identity that is added to the Fisher matrix"""
    num_cg_iterations: Count = 10
    """iterations of conjugate gradients"""
    line_search: bool = False
    """shorten the step until the surrogate has grown and the KL divergence is at most max_kl"""
    num_backtracks: Count = 10
    """steps of the line search before it gives up"""
    backtrack_factor: Annotated[float, Meta(gt=0, lt=1)] = 0.8
    """each step of the line search is shorter by this factor"""


@dataclass(frozen=True)
class PathwiseSettings(LearnerSettings):
    """Pathwise: short windows differentiated through the environment, and a value at their end."""

    unused: ClassVar[frozenset[str]] = frozenset({
        "average", "gamma_weight", "normalize_advantages", "truncated_return"
    })  # fmt: skip

    gradient: Literal["pathwise", "score", "combine"] = "pathwise"
    """how a window is differentiated: through the environment, by the score function of the
    actions, or by both, mixed at every step by their variance"""
    target_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.2
    """share of itself that the value network which ends the windows keeps at every update"""

    def check(self) -> None:
        super().check()
        if self.baseline != "value":
            raise RecipeError(
                f"{self.key('baseline')}: expected value, in which windows end, got {self.baseline}"
            )


@dataclass(frozen=True)
class Agent:
    """What a name of an agent stands for."""

    settings: type[LearnerSettings]
    learner: str  # "module:Class"
    defaults: Mapping[str, Any] = field(default_factory=dict)  # by dotted key, where they differ


_LONG = {"rollout.num_steps": "auto"}
AGENTS: Mapping[str, Agent] = MappingProxyType({
    "reinforce": Agent(ReinforceSettings, "rlpg.learners.reinforce:Reinforce"),
    "a2c": Agent(
        ReinforceSettings,
        "rlpg.learners.reinforce:Reinforce",
        {"rollout.num_steps": 8, "learner.gae_lambda": 1.0, "learner.normalize_advantages": False},
    ),
    "ppo": Agent(PPOSettings, "rlpg.learners.ppo:PPO", _LONG),
    "npg": Agent(NaturalSettings, "rlpg.learners.natural:NaturalGradient", _LONG),
    "trpo": Agent(
        NaturalSettings,
        "rlpg.learners.natural:NaturalGradient",
        _LONG | {"learner.line_search": True},
    ),
    "pathwise": Agent(
        PathwiseSettings,
        "rlpg.learners.pathwise:Pathwise",
        {
            "policy.gaussian": "squashed",  # beyond a bound, no gradient comes along the path
            "policy.log_std_init": -0.7,
            "rollout.num_envs": 64,
            "rollout.num_steps": 16,
            "learner.max_grad_norm": 1.0,
            "learner.num_value_epochs": 8,
            "learner.num_value_minibatches": 4,
        },
    ),
})  # fmt: skip


def agents_with(name: str) -> list[str]:
    """The agents that have a setting of this name in their learner's table."""
    return [agent for agent, entry in AGENTS.items() if name in entry.settings.names()]

"""The tables of a recipe that are the same for every agent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from rlpg.errors import RecipeError
from rlpg.settings import Arguments, Count, Finite, Layers, Positive, Settings, Size, one_of

LARGEST_ROLLOUT = 1 << 24  # steps of all environments in one update
LARGEST_NETWORK = 1 << 26  # weights between hidden layers

Reference = Annotated[str, one_of(or_own="Name")]


@dataclass(frozen=True)
class EnvironmentSettings(Settings):
    """Which environment, and how it is built."""

    table: ClassVar[str] = "environment"

    id: str = ""
    """a Gymnasium id: CartPole-v1, or module:Id-v0"""
    kwargs: Arguments = field(default_factory=dict)
    """keyword arguments for the environment"""
    wrappers: dict[str, Arguments] = field(default_factory=dict)
    """wrappers of Gymnasium around it, the innermost first, with their keyword arguments:
    {FlattenObservation = {}, RepeatAction = {num_repeats = 2}}"""
    backend: Literal["auto", "native", "sync", "async", "envpool"] = "auto"
    """how the copies run: vectorized by the environment, in this process, in worker processes"""
    max_episode_steps: Count | None = None
    """time limit in steps (none: the environment's own)"""
    episode_cap: Count = 1000
    """time limit for environments that have none of their own"""
    timeout: Positive = 60.0
    """seconds a step or reset may take before the environment counts as hanging"""
    num_workers: Count | None = None
    """processes of the backend async (none: as many as usable cores)"""


@dataclass(frozen=True)
class PolicySettings(Settings):
    """From observation to action distribution."""

    table: ClassVar[str] = "policy"

    hidden: Layers = (64, 64)
    """units of each hidden layer"""
    activation: Literal["tanh", "relu", "elu", "silu", "gelu"] = "tanh"
    """nonlinearity between the layers"""
    network: Reference | None = None
    """a network of your own, for policy and critic: network(num_features, num_outputs) gives an
    nn.Module (none: the layers above, or a CNN for images)"""
    network_kwargs: Arguments = field(default_factory=dict)
    """more keyword arguments for the network"""
    memory: Literal["gru", "lstm"] | None = None
    """recurrent layer between observations and network"""
    memory_size: Size = 64
    """units of the recurrent layer"""
    factory: Reference | None = None
    """a policy of your own: factory(observation_space, action_space) gives an rlpg.Policy, which
    replaces everything else in this table but action_mask and, for the value network, hidden"""
    kwargs: Arguments = field(default_factory=dict)
    """more keyword arguments for the factory"""
    shared_torso: bool = False
    """policy and value network share all layers but the last, and one objective trains both, in
    which learner.value_coef weighs the value loss"""
    critic_only: tuple[str, ...] = ()
    """entries of a Dict observation that only the value network sees"""
    images: Literal["auto"] | bool = "auto"
    """bytes, floats from 0 to one bound and planes of bools are images (auto: if they look so)"""
    normalize_observations: bool = True
    """subtract the running mean of observations and divide by their standard deviation"""
    observation_clip: Positive = 10.0
    """bound of a normalized observation, in standard deviations"""
    gaussian: Literal["clipped", "squashed", "beta"] = "clipped"
    """continuous actions: a Gaussian clipped for the environment, a tanh-Gaussian, or a Beta"""
    std: Literal["independent", "dependent"] = "independent"
    """whether the Gaussian's width depends on the observation"""
    log_std_init: Literal["auto"] | Finite = "auto"
    """log of the Gaussian's first standard deviation (auto: 0.5 - 0.65 log(action dimensions), at
    least -1; 0 up to five but with ppo, npg and trpo)"""
    log_std_floor: Finite = -5.0
    """the log standard deviation never falls below this"""
    bernoulli: bool = False
    """two discrete actions: one Bernoulli logit instead of two categorical ones"""
    action_mask: bool = True
    """use the environment's action mask where it gives one"""

    def check(self) -> None:
        num_weights = sum(a * b for a, b in zip(self.hidden, self.hidden[1:], strict=False))
        if num_weights > LARGEST_NETWORK:
            raise RecipeError(
                f"policy.hidden: expected at most {LARGEST_NETWORK:,} weights, got {num_weights:,}"
            )
        if self.network is not None and self.factory is not None:
            raise RecipeError(
                f"policy.network: expected none with policy.factory, got {self.network}"
            )
        for setting, name in (("network", "network_kwargs"), ("factory", "kwargs")):
            if (given := getattr(self, name)) and getattr(self, setting) is None:
                raise RecipeError(
                    f"policy.{name}: expected none without policy.{setting}, got {given!r:.80}"
                )


@dataclass(frozen=True)
class RolloutSettings(Settings):
    """How much experience one update sees."""

    table: ClassVar[str] = "rollout"

    num_envs: Size = 16
    """copies of the environment"""
    num_steps: Literal["auto"] | Annotated[int, Meta(ge=1, le=1_000_000)] = 32
    """steps per environment and update (auto: the more, the longer the run is: 2 sqrt(total_steps)
    in all environments together, at least 64; 64 with memory)"""
    episodes_per_env: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """whole episodes per environment and update, instead of steps"""

    def check(self) -> None:
        own = 0 if self.num_steps == "auto" else self.num_steps
        size = self.num_envs * (self.episodes_per_env or own)
        if size > LARGEST_ROLLOUT:
            name = "num_steps" if self.episodes_per_env is None else "episodes_per_env"
            raise RecipeError(
                f"rollout.{name}: expected at most {LARGEST_ROLLOUT:,} in all, got {size:,}"
            )


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """How the policy is measured, on environments of its own."""

    table: ClassVar[str] = "evaluation"

    every: Count | None = None
    """environment steps between evaluations (none: a twentieth of total_steps, and none while the
    evaluations have taken more steps than the training)"""
    episodes: Size = 10
    """episodes per evaluation"""
    num_envs: Size = 10
    """copies of the environment"""
    final_episodes: Literal["auto"] | Size = "auto"
    """episodes of the evaluation after training (auto: 100, or from 10 on as many as take half as
    many steps as the training)"""
    stochastic: bool = True
    """evaluate with sampled actions too, besides the deterministic ones"""


@dataclass(frozen=True)
class CheckpointSettings(Settings):
    """What a run can be continued from."""

    table: ClassVar[str] = "checkpoint"

    every: Count | None = None
    """environment steps between checkpoints (none: as often as evaluations)"""
    keep_last: Size = 3
    """older checkpoints are removed; one made at the best evaluation is kept"""


@dataclass(frozen=True)
class LogSettings(Settings):
    """The curves."""

    table: ClassVar[str] = "log"

    every: Count | None = None
    """environment steps between log entries (none: a 500th of total_steps)"""
    tensorboard: bool = True
    """write TensorBoard events, besides progress.jsonl"""

"""Settings that follow from others: every rule and its reason, in one place; imports no torch.

A setting that is `auto` gets what its rule says once the environment is known. `rlpg train ENV
--explain` prints what came of it, with these reasons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

GAE_LAMBDA = 0.95
DISCRETE_ENTROPY_COEF = 0.02
MINIBATCH_SIZE, WIDE_MINIBATCH_SIZE = 64, 256  # samples
LEAST_SEQUENCES = 4  # environments in a minibatch of whole sequences
FEWEST_STEPS, MOST_STEPS = 64, 2048  # per environment and update
WIDEST, NARROWING, NARROWEST = 0.5, 0.65, -1.0  # of the first log standard deviation
FEW, MANY, VERY_MANY = 5, 6, 7  # action dimensions
LARGE_ROLLOUT = 1500  # samples; 16 environments have 2048 in a run of a million steps


def log_std_init(num_action_dims: int, *, plain: bool = False) -> float:
    """Log of a Gaussian's first standard deviation: `0.5 - 0.65 log D`, D action dimensions.

    Args:
        plain: the learner follows the plain gradient (`reinforce`, `a2c`; any but `ppo`, `npg` and
            `trpo`): 0 up to 5 dimensions.

    Fitted to the runs that docs/learners.md and docs/ablations.md list. Never below -1: with a
    hundred dimensions -2.5 made PPO worse than it began, one step moved the policy too far.
    """
    if plain and num_action_dims <= FEW:
        return 0.0
    return max(round(WIDEST - NARROWING * math.log(max(num_action_dims, 1)), 2), NARROWEST)


def num_steps(total_steps: int, num_envs: int, *, has_memory: bool = False) -> int:
    """Steps per environment and update: about `2 sqrt(total_steps)` samples, at least 64 steps.

    The longer the run, the larger the rollout: few steps soon make many updates, and many steps
    make updates with little noise, which is what a policy that is already good needs
    (docs/ablations.md). A power of two, so that a little more of a budget is no other run.

    With memory always 64: a minibatch is of whole sequences, so longer ones would make as many
    gradient steps of more samples, not more of them.
    """
    if has_memory:
        return FEWEST_STEPS
    power = round(math.log2(2 * math.sqrt(total_steps) / num_envs))
    return min(max(1 << max(power, 0), FEWEST_STEPS), MOST_STEPS)


def entropy_coef(is_discrete: bool) -> float:
    """Weight of the entropy bonus."""
    return DISCRETE_ENTROPY_COEF if is_discrete else 0.0


def gae_lambda(predicts_values: bool, truncated_return: str) -> float | None:
    """GAE's weight of longer returns; None, also where a cut end means something else: no GAE."""
    return GAE_LAMBDA if predicts_values and truncated_return in ("auto", "bootstrap") else None


def truncated_return(predicts_values: bool) -> Literal["bootstrap", "terminal"]:
    """What the cut end of an episode means."""
    return "bootstrap" if predicts_values else "terminal"


def minibatch_size(num_action_dims: int, num_samples: int) -> int:
    """Samples in a minibatch of a policy with D continuous action dimensions.

    The log of a likelihood ratio is a sum over dimensions: with many, the noise of a small
    minibatch moves the policy out of the clip range (docs/learners.md).

    Args:
        num_samples: of the rollout.
    """
    many = MANY if num_samples >= LARGE_ROLLOUT else VERY_MANY
    return WIDE_MINIBATCH_SIZE if num_action_dims >= many else MINIBATCH_SIZE


def num_minibatches(
    wanted: Literal["auto"] | int,
    number: int,
    length: int | None = None,
    num_action_dims: int = 0,
) -> int:
    """Minibatches of a rollout, as many as are wanted, else by rule.

    The steps of one environment follow from each other: a minibatch of a single sequence would
    have a gradient, and normalized advantages, of hardly more than one independent sample.

    Args:
        number: samples of the rollout; with memory, its sequences.
        length: steps of a sequence; None without memory.
        num_action_dims: continuous ones of the policy; 0 for a value network.
    """
    if wanted != "auto":
        return wanted
    size = minibatch_size(num_action_dims, number * (length or 1))
    if length is None:
        return max(1, number // size)
    return max(1, min(number * length // size, number // LEAST_SEQUENCES))


REASONS: Mapping[str, str] = MappingProxyType({
    "agent": "the one shipped for the environment, else ppo",
    "device": "cuda where torch finds a GPU, else cpu",
    "policy.log_std_init": "0.5 - 0.65 log(action dimensions), at least -1: one dimension has to "
    "try its whole range, many at once would drown in noise; 0 up to five but with ppo, npg "
    "and trpo",
    "policy.images": "uint8, or floats from 0 to one bound with channels, at least 36 x 36, are "
    "images; so are planes of bools, at least 5 x 5",
    "environment.backend": "the fastest way that can be resumed to the same bits",
    "rollout.num_steps": "about 2 sqrt(total_steps) samples per update, at least 64 steps: a short "
    "run needs many updates, a long one updates with little noise; 64 with memory, whose "
    "minibatches are of whole sequences",
    "rollout.episodes_per_env": "without predicted values nobody knows what the cut end of an "
    "episode is worth, so whole episodes are collected",
    "learner.gae_lambda": "0.95 where the baseline predicts values, else the whole return",
    "learner.truncated_return": "a cut end is worth what the baseline predicts; where it predicts "
    "nothing, the episode counts as ended",
    "learner.entropy_coef": "0.02 for discrete actions: taught by a large penalty to do nothing, a "
    "policy would keep doing nothing; 0 for continuous ones, whose entropy grows without bound",
    "learner.num_minibatches": "of about 64 samples, however large the rollout is; of 256 from "
    "seven continuous action dimensions on (six in rollouts of 1,500 samples), whose ratios small "
    "minibatches move too far; with memory of whole environments, at least 4 of them, because the "
    "steps of one are too much alike",
    "learner.num_value_minibatches": "of about 64 samples; with memory of whole environments, at "
    "least 4",
    "learner.value_hidden": "the layers of the policy",
    "evaluation.every": "a twentieth of total_steps, while evaluations have not taken more steps "
    "than the training",
    "evaluation.final_episodes": "100, or from 10 on as many as take half as many steps as the "
    "training",
    "checkpoint.every": "as often as evaluations, and after a minute at the latest",
    "log.every": "a 500th of total_steps",
})  # fmt: skip

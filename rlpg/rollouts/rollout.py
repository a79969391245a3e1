"""`Rollout`: what a policy and an environment did together, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlpg.policies.networks import Carry, map_carry

if TYPE_CHECKING:
    from rlpg.gradients.tape import Tape


@dataclass(frozen=True)
class Episodes:
    """Episodes that ended inside a rollout, in the order in which they ended.

    `returns` are undiscounted sums of the environment's own rewards in float64, `lengths` count
    transitions; both include what happened before this rollout began.
    """

    returns: np.ndarray  # [E] float64
    lengths: np.ndarray  # [E] int64
    env: np.ndarray  # [E] int64, index of the environment
    step: np.ndarray  # [E] int64, time index in the rollout of the episode's last transition

    def __len__(self) -> int:
        return len(self.returns)


@dataclass(frozen=True)
class Window:
    """What of a rollout carries a gradient, where its environments can be differentiated.

    The tape's samples are the T actions `[N, *A]`, in order; its terms are the learner's to add
    (`gradients.afterwards.add_terms`). An episode that ends inside the rollout passes no gradient
    to the next one.
    """

    tape: Tape
    reward: Tensor  # [T, N] float32
    last_obs: Tensor  # [N, *O], as `Rollout.obs[-1]`
    final_obs: Tensor  # [K, *O], as `Rollout.final_obs`


@dataclass(frozen=True)
class Rollout:
    """T steps of N environments, time-major; the same for every backend and autoreset mode.

    A slot `[t, n]` is a real transition where `valid` is true: the policy saw `obs[t, n]`, drew
    `action[t, n]`, and the environment paid `reward[t, n]`. Slots that are not valid (the reset
    step of `NEXT_STEP` environments, steps past a quota of episodes) must carry no weight.

    `terminated` and `truncated` are never both true: termination wins. The observation after a
    transition is `obs[t + 1, n]`, except where the environment was reset within the step; there it
    is in `final_obs`. `successor` puts the two together.
    """

    obs: Tensor  # [T + 1, N, *O] packed observations; the last is what follows the last step
    action: Tensor  # [T, N, *A] as drawn by the policy, before clipping for the environment
    log_prob: Tensor | None  # [T, N] at collection, or None where the learner recomputes it
    reward: Tensor  # [T, N] float32, as the environment paid it
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool
    valid: Tensor  # [T, N] bool
    time: Tensor  # [T, N] int64, index of the step within its episode, 0 at the start
    episode_start: Tensor  # [T + 1, N] bool, obs[t, n] is the first of an episode
    carry: Carry  # [N, ...] of the policy before the first step; None without memory
    final_obs: Tensor  # [K, *O] true last observations that obs[1:] does not hold
    final_step: Tensor  # [K] int64, their time index
    final_env: Tensor  # [K] int64, their environment index
    episodes: Episodes
    window: Window | None = None  # where a gradient was asked for
    reward_parts: Mapping[str, float] = field(default_factory=dict)  # means of info's reward_*

    @property
    def done(self) -> Tensor:
        """`[T, N]` bool: the episode ended with this transition."""
        return self.terminated | self.truncated

    @property
    def num_steps(self) -> int:
        """Number of real transitions."""
        return int(self.valid.sum())

    def successor(self, per_obs: Tensor, per_final_obs: Tensor) -> Tensor:
        """`[T, N, ...]`: a function of the observation, taken at every transition's true successor.

        Args:
            per_obs: `[T + 1, N, ...]`, the function at `obs`.
            per_final_obs: `[K, ...]`, the function at `final_obs`.
        """
        out = per_obs[1:].clone()
        out[self.final_step, self.final_env] = per_final_obs
        return out

    def to(self, device: torch.device | str) -> Rollout:
        """The same rollout with its tensors on `device`; the episode statistics stay in numpy."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        moved["carry"] = map_carry(lambda part: part.to(device), self.carry)
        return replace(self, **moved)


def rows(counts: Tensor, *, are_all: bool = False) -> Callable[[Tensor], Tensor]:
    """What takes the S slots that count, `[T, N]` bool, out of `[T, N, ...]`, as `[S, ...]`.

    Where all of them do, as in most rollouts, nothing has to be looked for; `are_all` says so.
    """
    if are_all or bool(counts.all()):
        return lambda per_slot: per_slot.flatten(0, 1)
    return lambda per_slot: per_slot[counts]

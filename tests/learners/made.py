"""Policies, random rollouts and states to compare, for the tests of all learners."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from listed import make_rollout
from torch import Tensor

from rlpg import Learner
from rlpg.policies import Policy, StandardPolicy
from rlpg.rollouts import Rollout

BASELINES = ("none", "moving_average", "time_step", "leave_one_out", "linear", "value")
SPACE = spaces.Box(-1.0, 1.0, (3,))


ACTION_SPACES: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "discrete": (spaces.Discrete(3, start=-1), {}),
    "bernoulli": (spaces.Discrete(2), {"bernoulli": True}),
    "multidiscrete": (spaces.MultiDiscrete([[2, 3], [4, 2]]), {}),
    "multibinary": (spaces.MultiBinary(4), {}),
    "clipped": (spaces.Box(-2.0, 3.0, (2,)), {}),
    "dependent": (spaces.Box(-np.inf, np.inf, (2, 2)), {"std": "dependent"}),
    "squashed": (spaces.Box(-2.0, 3.0, (2,)), {"gaussian": "squashed"}),
    "beta": (spaces.Box(-2.0, 3.0, (2,)), {"gaussian": "beta"}),
    "masked": (spaces.Discrete(4), {"info_mask": 4}),
    "product": (
        spaces.Dict({"go": spaces.Discrete(3), "how": spaces.Box(0.0, 1.0, (2,))}),
        {},
    ),
}


def make_policy(
    action_space: spaces.Space[Any] | None = None,
    observation_space: spaces.Space[Any] = SPACE,
    **options: Any,
) -> Policy:
    generator = torch.Generator().manual_seed(3)
    action_space = spaces.Discrete(3) if action_space is None else action_space
    settings = {"hidden": (8,), "generator": generator} | options
    return StandardPolicy(observation_space, action_space, **settings)


def draw_rollout(policy: Policy, seed: int, *, num_steps: int = 9, num_envs: int = 6) -> Rollout:
    """Random observations and rewards, the policy's own actions, every kind of end, and slots that
    are not valid where a NEXT_STEP environment has them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_steps, num_envs)
    obs = torch.randn(num_steps + 1, num_envs, 3, generator=generator)
    if (num_mask := policy.observations.info_mask) > 0:
        mask = torch.rand(num_steps + 1, num_envs, num_mask, generator=generator) < 0.5
        mask[..., 0] |= ~mask.any(-1)
        obs = torch.cat([obs, mask.float()], -1)
    rows = obs[:-1].flatten(0, 1)
    with torch.inference_mode():
        action = policy.draw(rows, policy.initial_carry(len(rows)), generator)[0]
    terminated, truncated, valid = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
    time = torch.zeros(shape, dtype=torch.int64)
    for n in range(num_envs):
        clock, resets = 0, False
        for t in range(num_steps):
            valid[t, n], time[t, n] = not resets, clock
            chance = float(torch.rand((), generator=generator))
            terminated[t, n] = valid[t, n] & (chance < 0.15)
            truncated[t, n] = valid[t, n] & (0.15 <= chance < 0.3)
            resets = bool(terminated[t, n] | truncated[t, n])
            clock = 0 if resets or not valid[t, n] else clock + 1
    action = action.reshape(*shape, *action.shape[1:]).clone()
    carry = before = policy.initial_carry(num_envs)
    for t in range(num_steps if policy.has_memory else 0):
        with torch.no_grad():
            action[t], carry = policy.draw(obs[t], carry, generator, (time[t] == 0) & valid[t])
    return make_rollout(
        obs,
        action,
        torch.randn(shape, generator=generator),
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        time=time,
        carry=before,
    )


def flat_state(state: Any) -> list[Any]:
    """All leaves of a nested state, in order; tensors as bytes."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in (key, *flat_state(state[key]))]
    if isinstance(state, (list, tuple)):
        return [leaf for entry in state for leaf in flat_state(entry)]
    return [state.numpy().tobytes()] if isinstance(state, Tensor) else [state]


def surrogate_gradient(learner: Learner, rollout: Rollout) -> Tensor:
    parameters = list(learner.policy.parameters())
    grads = torch.autograd.grad(learner.estimate(rollout), parameters)
    return torch.cat([grad.reshape(-1) for grad in grads])


def weights(learner: Learner) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in learner.policy.parameters()])

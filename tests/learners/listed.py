"""Rollouts written by hand, and decision processes so small that all their episodes are listed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from rlpg.envs import bandit, chain
from torch import Tensor

from rlpg import Baseline, Learner, Reinforce
from rlpg.learners.values import StateValue
from rlpg.policies import Carry, Policy, StandardPolicy
from rlpg.rollouts import Episodes, Rollout

PLAIN: dict[str, Any] = {
    "gae_lambda": None,
    "entropy_coef": 0.0,
    "normalize_advantages": False,
    "max_grad_norm": None,
    "learning_rate": 5e-3,
    "learning_rate_schedule": "constant",
    "value_learning_rate": 3e-3,
    "num_value_epochs": 4,
    "num_value_minibatches": 4,
    "reward_scaling": False,
}
"""The settings without which an estimator is not the plain one of the textbooks."""


def plain(policy: Policy, baseline: str | Baseline = "none", **options: Any) -> Reinforce:
    """REINFORCE, and nothing that the options do not ask for."""
    return Reinforce(policy, baseline, **(PLAIN | options))


def make_rollout(
    obs: Any,
    action: Any,
    reward: Any,
    *,
    terminated: Any = None,
    truncated: Any = None,
    valid: Any = None,
    time: Any = None,
    episode_start: Any = None,
    carry: Carry = None,
    finals: Sequence[tuple[int, int, Any]] = (),
) -> Rollout:
    """A rollout from nested lists; without flags: one episode per environment, all terminated.

    Args:
        obs: `[T + 1, N, *O]`.
        finals: `(step, env, obs)` of the last observations that `obs` does not hold.
    """
    obs, action = torch.as_tensor(obs), torch.as_tensor(action)
    reward = torch.as_tensor(reward, dtype=torch.get_default_dtype())
    shape = reward.shape  # [T, N]
    flags = [
        torch.zeros(shape, dtype=torch.bool) if given is None else torch.as_tensor(given)
        for given in (terminated, truncated, valid)
    ]
    if terminated is None and truncated is None:
        flags[0][-1] = True
    if valid is None:
        flags[2][:] = True
    if time is None:
        time = torch.arange(shape[0])[:, None].expand(shape).clone()
    time = torch.as_tensor(time)
    if episode_start is None:
        waits = ~flags[2][-1:]  # for the slot after an end; else an episode begins after the end
        last = waits if bool((~flags[2]).any()) else (flags[0] | flags[1])[-1:]
        episode_start = torch.cat([(time == 0) & flags[2], last])
    nobody = np.zeros(0, dtype=np.int64)
    return Rollout(
        obs=obs,
        action=action,
        log_prob=None,
        reward=reward,
        terminated=flags[0],
        truncated=flags[1],
        valid=flags[2],
        time=time,
        episode_start=torch.as_tensor(episode_start),
        carry=carry,
        final_obs=torch.stack([torch.as_tensor(o) for *_, o in finals]) if finals else obs[0, :0],
        final_step=torch.tensor([t for t, *_ in finals], dtype=torch.int64),
        final_env=torch.tensor([n for _, n, _ in finals], dtype=torch.int64),
        episodes=Episodes(nobody.astype(float), nobody, nobody, nobody),
    )


@dataclass(frozen=True)
class Episode:
    """One of all that can happen, with the environment's factor of its probability."""

    states: tuple[int, ...]
    actions: tuple[int, ...]
    rewards: tuple[float, ...]
    probability: float
    ends: str = "terminated"

    def __len__(self) -> int:
        return len(self.actions)


def bandit_episodes() -> list[Episode]:
    """One per arm."""
    return [Episode((0,), (arm,), (paid,), 1.0) for arm, paid in enumerate(bandit.REWARDS)]


def chain_episodes(
    num_steps: int = chain.NUM_STEPS, *, stops: bool = False, limit: str = "terminated"
) -> list[Episode]:
    """All episodes of the chain.

    Args:
        num_steps: after which it ends, by `limit`: "terminated" or "truncated".
        stops: it also terminates when action 1 is taken in state 1.
    """
    found = set()
    for states in itertools.product((0, 1), repeat=num_steps):
        for actions in itertools.product((0, 1), repeat=num_steps):
            length = num_steps
            ends = limit
            if stops and (1, 1) in zip(states, actions, strict=True):
                length = list(zip(states, actions, strict=True)).index((1, 1)) + 1
                ends = "terminated"
            s, a = states[:length], actions[:length]
            to_one = [chain.START, *(chain.MOVE[i, j] for i, j in zip(s, a, strict=True))]
            factors = [p if i == 1 else 1 - p for i, p in zip(s, to_one, strict=False)]
            rewards = tuple(float(chain.REWARD[i, j]) for i, j in zip(s, a, strict=True))
            found.add(Episode(s, a, rewards, float(np.prod(factors)), ends))
    return sorted(found, key=lambda episode: (episode.states, episode.actions))


def tabular_policy(
    num_states: int, num_actions: int, *, copies: int = 1, scale: float = 1.0
) -> Policy:
    """A softmax policy with logits of its own in every state; the larger the scale, the further
    from uniform.

    With copies, states `s + num_states * k` of copy k have the logits of s, but weights of their
    own: one backward pass gives the gradient of every copy.
    """
    space, actions = spaces.Discrete(num_states * copies), spaces.Discrete(num_actions)
    policy = StandardPolicy(space, actions, hidden=(), generator=torch.Generator())
    generator = torch.Generator().manual_seed(0)
    weight, bias = policy.parameters()  # [action, state], [action]
    with torch.no_grad():
        weight.copy_(torch.randn(num_actions, num_states, generator=generator).repeat(1, copies))
        bias.normal_(generator=generator)
        weight.mul_(scale)
        bias.mul_(scale)
    return policy


def log_table(policy: Policy) -> Tensor:
    """`[state, action]` log-probabilities, written out from the weights, with their gradient."""
    weight, bias = policy.parameters()  # [action, state], [action]
    return torch.log_softmax(weight.T + bias, dim=1)


def exact(
    policy: Policy, episodes: Iterable[Episode], gamma: float = 1.0, *, until: int | None = None
) -> tuple[float, Tensor]:
    """`J = E[sum_t gamma^t r_t]`, and `[A, S]` its gradient: autograd through the sum over all.

    Args:
        until: count only the influence of the first so many actions.
    """
    logits = log_table(policy).detach().requires_grad_()  # [S, A]
    table = torch.log_softmax(logits, dim=1)
    objective = torch.zeros(())
    for episode in episodes:
        total = sum(gamma**t * r for t, r in enumerate(episode.rewards))
        log_prob = table[list(episode.states), list(episode.actions)]
        kept = log_prob[:until].sum()
        if until is not None:
            kept = kept + log_prob[until:].sum().detach()
        objective = objective + episode.probability * total * kept.exp()
    (gradient,) = torch.autograd.grad(objective, logits)
    return objective.item(), gradient.T


def outcome_probability(policy: Policy, drawn: Sequence[Episode]) -> float:
    """Of these episodes in this order."""
    table = log_table(policy).detach().exp()
    probability = 1.0
    for episode in drawn:
        chosen = table[list(episode.states), list(episode.actions)].prod()
        probability *= episode.probability * float(chosen)
    return probability


def batches(
    policy: Policy, episodes: Sequence[Episode], num_envs: int = 1
) -> list[tuple[float, Rollout]]:
    """Every batch of one episode per environment, with its probability."""
    return [
        (outcome_probability(policy, drawn), side_by_side(drawn))
        for drawn in itertools.product(episodes, repeat=num_envs)
    ]


def side_by_side(drawn: Sequence[Episode]) -> Rollout:
    """`[T, N]` of N episodes; the slots after a short one are not valid."""
    shape = (max(len(episode) for episode in drawn), len(drawn))
    obs = torch.zeros(shape[0] + 1, shape[1], dtype=torch.int64)
    action, reward = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    flags = {name: torch.zeros(shape, dtype=torch.bool) for name in ("terminated", "truncated")}
    valid = torch.zeros(shape, dtype=torch.bool)
    for n, episode in enumerate(drawn):
        length = len(episode)
        obs[:length, n] = torch.tensor(episode.states)
        action[:length, n] = torch.tensor(episode.actions)
        reward[:length, n] = torch.tensor(episode.rewards)
        valid[:length, n] = True
        flags[episode.ends][length - 1, n] = True
    return make_rollout(obs, action, reward, valid=valid, **flags)


@dataclass(frozen=True)
class Moments:
    """Of an estimator, exactly."""

    value: float  # E[surrogate]
    mean: Tensor  # [A, S], E[gradient] with respect to the logits
    variance: float  # trace of the covariance of the gradient


def moments(learner: Learner, outcomes: Sequence[tuple[float, Rollout]]) -> Moments:
    """Sums over all batches that can happen, with one surrogate each."""
    weight, _ = learner.policy.parameters()
    values, estimates = [], []
    for _, rollout in outcomes:
        surrogate = learner.estimate(rollout)
        values.append(surrogate.item())
        estimates.append(torch.autograd.grad(surrogate, weight)[0])
    return _sums([probability for probability, _ in outcomes], values, torch.stack(estimates))


def moments_at_once(learner: Learner, policy: Policy, episodes: Sequence[Episode]) -> Moments:
    """The same for batches of one episode, if none looks at the others: all in one rollout.

    Args:
        learner: of a policy with as many copies as there are episodes.
        policy: the one that was copied.
    """
    rollout = copies_of(side_by_side(episodes), policy.observations.num_features)
    surrogate = learner.estimate(rollout)
    weight, _ = learner.policy.parameters()
    (grad,) = torch.autograd.grad(surrogate, weight)  # [A, S K]
    estimates = len(episodes) * grad.reshape(len(grad), len(episodes), -1).movedim(1, 0)
    probabilities = [outcome_probability(policy, [episode]) for episode in episodes]
    values = learner.advantages(rollout).returns[0].tolist()
    assert abs(surrogate.item() - float(np.mean(values))) < 1e-12
    return _sums(probabilities, values, estimates)


def copies_of(rollout: Rollout, num_states: int) -> Rollout:
    """The rollout in which environment k sees states of copy k."""
    offset = num_states * torch.arange(rollout.reward.shape[1])  # [N]
    return replace(rollout, obs=rollout.obs + offset)


def _sums(probabilities: Sequence[float], values: Sequence[float], estimates: Tensor) -> Moments:
    p = torch.tensor(probabilities)
    assert abs(float(p.sum()) - 1) < 1e-12  # nothing was forgotten
    mean = torch.einsum("k,kas->as", p, estimates)
    square = float(torch.einsum("k,kas,kas->", p, estimates, estimates))
    return Moments(float(p @ torch.tensor(values)), mean, square - float(mean.square().sum()))


def true_values(policy: Policy, episodes: Sequence[Episode], gamma: float = 1.0) -> Tensor:
    """`[T + 1, S]` of `E[return-to-go | time, state]`, and 0 after the last step."""
    num_states = policy.observations.num_features
    longest = max(len(episode) for episode in episodes)
    paid = torch.zeros(longest + 1, num_states, dtype=torch.float64)
    seen = torch.zeros_like(paid)
    for episode in episodes:
        probability = outcome_probability(policy, [episode])
        to_go = 0.0
        for t in reversed(range(len(episode))):
            to_go = episode.rewards[t] + gamma * to_go
            paid[t, episode.states[t]] += probability * to_go
            seen[t, episode.states[t]] += probability
    return torch.where(seen > 0, paid / seen.clamp(min=1e-30), 0.0)


class TableValue(StateValue):
    """V(time, state) from a table `[T + 1, S]`, for every copy of the states."""

    def __init__(self, table: Tensor) -> None:
        self._table = table

    def predict(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        state = rollout.obs % self._table.shape[1]  # [T + 1, N]
        after = rollout.successor(state, rollout.final_obs % self._table.shape[1])  # [T, N]
        return self._table[rollout.time, state[:-1]], self._table[rollout.time + 1, after]

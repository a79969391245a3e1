"""The tape and the gym learner are one mechanism: on the same data, the same gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv

import rlpg
from rlpg.rollouts.rollout import Episodes, Rollout

GAMMA = 0.9
BASELINE = 0.7


def play(
    envs: VectorEnv[Any, Any, Any], policy: rlpg.Policy, num_steps: int
) -> tuple[rlpg.Tape, Rollout]:
    """Play once; written down by a tape and as a rollout."""
    tape = rlpg.Tape(how="score", baseline=BASELINE)
    raw, _ = envs.reset(seed=[5 + n for n in range(envs.num_envs)])
    rows: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("obs", "action", "reward", "terminated", "truncated", "time")
    }
    time = torch.zeros(envs.num_envs, dtype=torch.int64)
    for _ in range(num_steps):
        obs = torch.from_numpy(policy.observations.pack(raw, envs.num_envs))
        distribution, _ = policy(obs)
        action = tape.sample(distribution)
        raw, reward, terminated, truncated, _ = envs.step(policy.head.to_env(action.numpy()))
        done = torch.from_numpy(terminated | truncated)
        paid = torch.from_numpy(np.asarray(reward, dtype=np.float32))
        tape.add(paid, discount=torch.where(done, 0.0, GAMMA))
        row = (obs, action, paid, *map(torch.from_numpy, (terminated, truncated & ~terminated)))
        for values, value in zip(rows.values(), (*row, time), strict=True):
            values.append(value)
        time = torch.where(done, 0, time + 1)
    last = torch.from_numpy(policy.observations.pack(raw, envs.num_envs))
    stacked = {name: torch.stack(values) for name, values in rows.items()}
    none = np.zeros(0, dtype=np.int64)
    rollout = Rollout(
        **{**stacked, "obs": torch.cat([stacked["obs"], last[None]])},
        log_prob=None,
        valid=torch.ones_like(stacked["terminated"]),
        episode_start=torch.cat([stacked["time"], time[None]]) == 0,
        carry=None,
        final_obs=last[:0],
        final_step=torch.zeros(0, dtype=torch.int64),
        final_env=torch.zeros(0, dtype=torch.int64),
        episodes=Episodes(np.zeros(0), none, none, none),
    )
    return tape, rollout


class Constant(rlpg.Baseline):
    def __call__(self, rollout: Rollout, returns: torch.Tensor) -> torch.Tensor:
        return torch.full_like(returns, BASELINE)


@pytest.mark.parametrize(("env", "num_steps"), [("rlpg/Chain-v0", 4), ("CartPole-v1", 60)])
def test_tape_and_learner_give_the_same_gradient(env: str, num_steps: int) -> None:
    """With gamma^t and a mean over episodes. The tape's mean is over lanes: E episodes in N lanes
    are a factor E / N."""
    envs, _ = rlpg.make_envs(env, 6, seed=0)
    policy = rlpg.StandardPolicy(
        envs.single_observation_space,
        envs.single_action_space,
        generator=torch.Generator().manual_seed(0),
        hidden=(8,),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tape, rollout = play(envs, policy, num_steps)
    learner = rlpg.Reinforce(
        policy,
        Constant(),
        gamma=GAMMA,
        gamma_weight=True,
        average="episodes",
        gae_lambda=None,
        truncated_return="terminal",
        normalize_advantages=False,
        reward_scaling=False,
        entropy_coef=0.0,
    )
    parameters = list(policy.parameters())
    theirs = tape.surrogate()
    ours = learner.estimate(rollout)
    episodes = int((rollout.time == 0).sum())
    assert (episodes > 6) == (env == "CartPole-v1")
    factor = episodes / 6
    assert ours.item() * factor == pytest.approx(theirs.item(), rel=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        torch.testing.assert_close(a * factor, b, rtol=1e-4, atol=1e-6)

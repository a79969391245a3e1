"""Baselines that predict the value of any state."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlpg.learners.values import LinearValue, ValueNetwork
from rlpg.policies import Network, Observations
from rlpg.rollouts import Rollout

sys.path.append(str(Path(__file__).parent))
from listed import make_rollout


def random_rollout(num_steps: int = 40, num_envs: int = 5) -> Rollout:
    """Two features; episodes of 20 steps, the first cut by a time limit with the true last
    observation kept aside."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(num_steps + 1, num_envs, 2, generator=generator)
    time = (torch.arange(num_steps) % 20)[:, None].expand(num_steps, num_envs).clone()
    truncated = time == 19
    finals = [(19, n, torch.randn(2, generator=generator)) for n in range(num_envs)]
    return make_rollout(
        obs, torch.zeros(num_steps, num_envs), torch.zeros(num_steps, num_envs),
        truncated=truncated, time=time, finals=finals,
    )  # fmt: skip


def known_value(obs: Tensor, time: Tensor) -> Tensor:
    """Something the features can express."""
    t = time / 100
    return 3 * obs[..., 0] - obs[..., 1] ** 2 + 5 * t - 4 * t**3 + 2


def test_a_linear_value_finds_what_its_features_can_express() -> None:
    rollout = random_rollout()
    linear = LinearValue(lambda obs: obs, ridge=1e-12)
    assert not linear.predict(rollout)[0].any()  # 0 before the first update
    linear.update(rollout, known_value(rollout.obs[:-1], rollout.time), torch.ones(40, 5))
    value, successor = linear.predict(rollout)
    torch.testing.assert_close(
        value, known_value(rollout.obs[:-1], rollout.time), atol=1e-4, rtol=0
    )
    # The successor has the clock of its own episode, and is the last state, not the next reset.
    after = rollout.successor(rollout.obs, rollout.final_obs)
    expected = known_value(after, rollout.time + 1)
    torch.testing.assert_close(successor, expected, atol=1e-4, rtol=0)


def test_a_linear_value_is_the_ridge_solution_on_what_counts() -> None:
    rollout = random_rollout(num_steps=6, num_envs=3)
    generator = torch.Generator().manual_seed(1)
    returns = torch.randn(6, 3, generator=generator)
    weight = (torch.rand(6, 3, generator=generator) < 0.7).float()
    linear = LinearValue(lambda obs: obs, ridge=0.1)
    linear.update(rollout, returns, weight)
    counts = weight.numpy() > 0
    obs = rollout.obs[:-1].numpy()[counts].astype(np.float64)
    t = rollout.time.numpy()[counts][:, None] / 100
    x = np.concatenate([obs, obs**2, t, t**2, t**3, np.ones_like(t)], axis=1)
    gram = x.T @ x + 0.1 * len(x) * np.eye(8)
    expected = np.linalg.solve(gram, x.T @ returns.numpy()[counts].astype(np.float64))
    assert linear.coefficients is not None
    np.testing.assert_allclose(linear.coefficients, expected, rtol=1e-9)


def test_a_linear_value_bears_features_that_never_change() -> None:
    rollout = random_rollout()
    linear = LinearValue(lambda obs: torch.cat([torch.ones_like(obs), 1e9 * obs], -1))
    linear.update(rollout, torch.full((40, 5), 7.0), torch.ones(40, 5))
    torch.testing.assert_close(
        linear.predict(rollout)[0], torch.full((40, 5), 7.0), atol=1e-2, rtol=0
    )
    before = linear.coefficients
    linear.update(rollout, torch.full((40, 5), 7.0), torch.zeros(40, 5))  # nothing to learn from
    assert linear.coefficients is before


def make_network(
    *, learning_rate: float = 0.01, epochs: int = 1, minibatches: int = 1
) -> ValueNetwork:
    generator = torch.Generator().manual_seed(0)
    space = spaces.Box(-np.inf, np.inf, (2,))
    network = Network(Observations(space), 1, hidden=(16,), generator=generator)
    return ValueNetwork(
        network,
        lambda obs: obs,
        learning_rate=learning_rate,
        num_epochs=epochs,
        num_minibatches=minibatches,
        generator=generator,
    )


@pytest.mark.parametrize("minibatches", [1, 4])
def test_a_value_network_regresses_on_the_returns(minibatches: int) -> None:
    rollout = random_rollout()
    target = known_value(rollout.obs[:-1], torch.zeros(()))
    network = make_network(epochs=100 // minibatches, minibatches=minibatches)
    metrics = [network.update(rollout, target, torch.ones(40, 5)) for _ in range(10)]
    error = (network.predict(rollout)[0] - target).square().mean()
    assert float(error) < 0.02 * float(target.var())
    assert metrics[-1]["train/value_loss"] < 0.05 * metrics[0]["train/value_loss"]


def test_the_value_of_a_true_last_state() -> None:
    rollout, network = random_rollout(), make_network()
    value, successor = network.predict(rollout)
    with torch.no_grad():
        last = network.network(rollout.final_obs)[0][:, 0]  # [K]
        after = network.network(rollout.obs[1:])[0][..., 0]  # [T, N]
    torch.testing.assert_close(successor[19], last)
    torch.testing.assert_close(successor[20:], after[20:])
    torch.testing.assert_close(value[1:], after[:-1])


def test_every_real_step_counts_once_in_an_epoch() -> None:
    # A constant 0 network, learning rate 0: the losses of the minibatches are means of squares.
    # 7 real steps in 3 minibatches are of 3, 3 and 1: each is seen once, and no other.
    rollout = random_rollout(num_steps=4, num_envs=3)
    weight = torch.zeros(4, 3)
    weight[:3, :2] = 1.0
    weight[3, 2] = 1.0
    network = make_network(learning_rate=0.0, minibatches=3)
    for parameter in network.network.parameters():
        torch.nn.init.zeros_(parameter)
    seen: list[Tensor] = []
    network._features = lambda obs: (seen.append(obs), obs)[1]  # type: ignore[func-returns-value]
    network.update(rollout, torch.ones(4, 3), weight)
    assert [len(obs) for obs in seen] == [3, 3, 1]
    got = sorted(torch.cat(seen).tolist())
    assert got == sorted(rollout.obs[:-1][weight > 0].tolist())


def test_lr_scale_of_a_value_network() -> None:
    rollout = random_rollout()
    steps = []
    for scale in (1.0, 0.5, 0.0):
        network = make_network()
        before = [p.detach().clone() for p in network.network.parameters()]
        network.update(rollout, torch.ones(40, 5), torch.ones(40, 5), scale)
        after = list(network.network.parameters())
        steps.append(
            math.sqrt(
                sum(
                    float((a - b).square().sum().detach())
                    for a, b in zip(after, before, strict=True)
                )
            )
        )
    assert steps[1] == pytest.approx(steps[0] / 2, rel=1e-3)
    assert steps[2] == 0.0


def test_an_outlier_moves_a_value_network_no_further_than_others() -> None:
    # The gradient is shortened to 1 before Adam sees it: its second moment stays at most 1.
    rollout, network = random_rollout(), make_network()
    network.update(rollout, torch.full((40, 5), 1e6), torch.ones(40, 5))
    moments = network.state_dict()["optimizer"]
    total = float(moments["square"].sum()) / (1 - 0.999)
    assert total == pytest.approx(1.0, rel=1e-3)

"""Baselines that predict the value of any state."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rlpg.learners.values import LinearValue, ValueNetwork, squares
from rlpg.policies import Network, Observations, map_carry
from rlpg.rollouts import Rollout

sys.path.append(str(Path(__file__).parent))
from listed import make_rollout
from made import draw_rollout, flat_state, make_policy


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


@pytest.mark.parametrize("num_steps", [2, 6])
def test_a_linear_value_is_the_ridge_solution_on_what_counts(num_steps: int) -> None:
    """With more samples than numbers and with fewer, as with images: 40 x 40 x 3 took 30 s."""
    rollout = random_rollout(num_steps=num_steps, num_envs=3)
    generator = torch.Generator().manual_seed(1)
    returns = torch.randn(num_steps, 3, generator=generator)
    weight = (torch.rand(num_steps, 3, generator=generator) < 0.7).float()
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


def test_samples_of_a_large_batch_had_the_weight_of_their_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """200 samples in chunks of 64, the last one of 8: the step and the loss are those of one."""
    rollout = random_rollout()
    returns = known_value(rollout.obs[:-1], rollout.time)
    losses, states = [], []
    for size in (10**6, 64):
        monkeypatch.setattr("rlpg.learners.values.CHUNK", size)
        network = make_network()
        losses.append(network.update(rollout, returns, torch.ones(40, 5))["train/value_loss"])
        states.append(torch.cat([p.detach().flatten() for p in network.network.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(states[1], states[0], rtol=1e-5, atol=1e-7)
    # Adam's first step has the sign of the gradient alone; its moments have the size.
    flat = rollout.obs[:-1].flatten(0, 1), returns.flatten(), returns.flatten()
    loss, gradient = network._gradient(*flat, size=200)
    value = network.network(rollout.obs[:-1].flatten(0, 1))[0][:, 0]
    whole = (value - returns.flatten()).square().mean()
    torch.testing.assert_close(loss, whole.detach())
    torch.testing.assert_close(gradient, network._optimizer.gradient(-whole))


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


# ------------------------------------------------------------------------- critics with memory


def make_critic(
    kind: str, *, learning_rate: float = 0.01, epochs: int = 1, minibatches: int = 1, seed: int = 0
) -> ValueNetwork:
    """With weights that make its memory matter."""
    generator = torch.Generator().manual_seed(seed)
    observations = Observations(spaces.Box(-np.inf, np.inf, (3,)))
    network = Network(observations, 1, hidden=(4,), memory=kind, memory_size=5, generator=generator)
    return ValueNetwork(
        network,
        lambda obs: obs,
        learning_rate=learning_rate,
        num_epochs=epochs,
        num_minibatches=minibatches,
        generator=generator,
    )


def by_hand(
    critic: ValueNetwork, rollout: Rollout, carry: Any = None, *, next_step: bool
) -> tuple[Tensor, Tensor, Any]:
    """Values and successors' values `[T, N]` by a loop over environments and steps, and the carry
    before the last observation. Every episode is remembered from its own start to its own end."""
    network = critic.network
    num_steps, num_envs = rollout.reward.shape
    value, after = torch.zeros(num_steps, num_envs), torch.zeros(num_steps, num_envs)
    carries = []
    finals = {
        (int(t), int(n)): obs
        for t, n, obs in zip(rollout.final_step, rollout.final_env, rollout.final_obs, strict=True)
    }

    def look(obs: Tensor, memory: Any) -> tuple[Tensor, Any]:
        with torch.no_grad():
            out, new = network(obs[None, None], memory, None)
        return out[0, 0, 0], new

    for n in range(num_envs):
        memory = map_carry(lambda part: part[n : n + 1], carry)  # noqa: B023
        for t in range(num_steps):
            if rollout.episode_start[t, n]:
                memory = None
            value[t, n], memory = look(rollout.obs[t, n], memory)
            ended = bool(rollout.done[t, n])
            follows = rollout.obs[t + 1, n] if next_step or not ended else finals[t, n]
            after[t, n], _ = look(follows, memory)
        carries.append(memory)
    parts = zip(*(c if isinstance(c, tuple) else (c,) for c in carries), strict=True)
    stacked = tuple(torch.cat(part) for part in parts)
    return value, after, stacked if len(stacked) > 1 else stacked[0]


def remembered_rollout(seed: int, *, next_step: bool, num_envs: int = 4) -> Rollout:
    """Random ends of both kinds; where an environment resets at once, the last observations aside.

    The episode that is cut by the end of the rollout goes on in that of the next seed.
    """
    policy = make_policy()
    rollout = draw_rollout(policy, seed, num_steps=11, num_envs=num_envs)
    if next_step:
        return rollout
    generator = torch.Generator().manual_seed(seed)
    done = torch.rand(11, num_envs, generator=generator) < 0.3
    kind = torch.rand(11, num_envs, generator=generator) < 0.5
    time = torch.zeros(11, num_envs, dtype=torch.int64)
    for t in range(1, 11):
        time[t] = torch.where(done[t - 1], 0, time[t - 1] + 1)
    finals = [(int(t), int(n), torch.randn(3, generator=generator)) for t, n in done.nonzero()]
    return make_rollout(
        rollout.obs, rollout.action, rollout.reward, terminated=done & kind,
        truncated=done & ~kind, time=time, finals=finals,
    )  # fmt: skip


@pytest.mark.parametrize("next_step", [True, False], ids=["next step", "same step"])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
class TestMemory:
    @pytest.mark.parametrize("seed", range(5))
    def test_truncation_is_valued_with_what_led_to_it(
        self, kind: str, next_step: bool, seed: int
    ) -> None:
        # V at the true last observation, with the carry of its own episode: not with that of the
        # next one, and not with a fresh one.
        critic, rollout = make_critic(kind), remembered_rollout(seed, next_step=next_step)
        assert (rollout.done).any()
        value, successor = critic.predict(rollout)
        expected, after, _ = by_hand(critic, rollout, next_step=next_step)
        real = rollout.valid
        torch.testing.assert_close(value[real], expected[real], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(successor[real], after[real], rtol=1e-4, atol=1e-5)

    def test_remembers_from_rollout_to_rollout(self, kind: str, next_step: bool) -> None:
        critic = make_critic(kind, learning_rate=0.0)
        rollouts = [remembered_rollout(seed, next_step=next_step) for seed in range(3)]
        goes_on = torch.zeros_like(rollouts[0].episode_start[0])
        carry = None
        for rollout in rollouts:
            start = rollout.episode_start.clone()
            start[0] = goes_on  # in the second rollout nobody starts with it
            rollout = replace(rollout, episode_start=start)
            got, _ = critic.predict(rollout)
            expected, _, carry = by_hand(critic, rollout, carry, next_step=next_step)
            real = rollout.valid
            torch.testing.assert_close(got[real], expected[real], rtol=1e-4, atol=1e-5)
            critic.update(rollout, rollout.reward, real.float())
            assert torch.equal(critic.predict(rollout)[0], got)  # learning is not going on
            critic.advance(rollout)

    def test_goes_on_where_nothing_was_learned(self, kind: str, next_step: bool) -> None:
        critic = make_critic(kind)
        rollout = remembered_rollout(0, next_step=next_step)
        critic.update(rollout, rollout.reward, torch.zeros_like(rollout.reward))
        critic.advance(rollout)
        _, _, carry = by_hand(critic, rollout, next_step=next_step)
        kept = critic.state_dict()["carry"]
        parts = carry if isinstance(carry, tuple) else (carry,)
        for got, expected in zip(kept, parts, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    def test_the_step_is_down_the_squared_error(self, kind: str, next_step: bool) -> None:
        # Adam's first mean is a tenth of the gradient (up to the clip at norm 1).
        critic, rollout = make_critic(kind), remembered_rollout(1, next_step=next_step)
        generator = torch.Generator().manual_seed(3)
        target = torch.randn(rollout.reward.shape, generator=generator)
        keep = rollout.valid & (torch.rand(target.shape, generator=generator) < 0.7)
        outputs, _ = critic.network(rollout.obs[:-1], None, rollout.episode_start[:-1])
        loss = (outputs[..., 0] - target)[keep].square().mean()
        parts = torch.autograd.grad(loss, list(critic.network.parameters()))
        expected = -torch.cat([part.reshape(-1) for part in parts])
        expected = expected / max(1.0, float(expected.norm()))
        metrics = critic.update(rollout, torch.where(keep, target, 1e9), keep.float())
        assert metrics["train/value_loss"] == pytest.approx(loss.item(), rel=1e-4)
        mean = critic.state_dict()["optimizer"]["mean"]
        torch.testing.assert_close(10 * mean, expected, rtol=1e-3, atol=1e-5)

    def test_minibatches_are_whole_sequences(self, kind: str, next_step: bool) -> None:
        critic = make_critic(kind, minibatches=2)
        seen: list[Tensor] = []
        critic._features = lambda obs: (seen.append(obs), obs)[1]  # type: ignore[func-returns-value]
        rollout = remembered_rollout(1, next_step=next_step)
        critic.update(rollout, rollout.reward, rollout.valid.float())
        assert [part.shape for part in seen] == [(11, 2, 3)] * 2
        columns = torch.cat(seen, 1)
        for n in range(4):
            same = (columns == rollout.obs[:-1, n : n + 1]).flatten(2).all(-1).all(0)
            assert same.sum() == 1

    def test_a_saved_critic_goes_on_with_the_same_bits(self, kind: str, next_step: bool) -> None:
        critic, twin = make_critic(kind), make_critic(kind, seed=9)
        rollouts = [remembered_rollout(seed, next_step=next_step) for seed in range(3)]
        for k, rollout in enumerate(rollouts):
            if k == 2:
                twin.load_state_dict(critic.state_dict())
                assert flat_state(twin.state_dict()) == flat_state(critic.state_dict())
                again = twin.predict(rollout)
                assert all(map(torch.equal, critic.predict(rollout), again))
                twin.update(rollout, rollout.reward, rollout.valid.float())
                twin.advance(rollout)
            critic.update(rollout, rollout.reward, rollout.valid.float())
            critic.advance(rollout)
        assert flat_state(twin.state_dict()) == flat_state(critic.state_dict())


def test_another_number_of_environments_begins_afresh() -> None:
    critic = make_critic("gru")
    first, second = (remembered_rollout(0, next_step=True, num_envs=n) for n in (4, 3))
    fresh, _ = critic.predict(second)
    critic.update(first, first.reward, first.valid.float())
    critic.advance(first)
    again = make_critic("gru")
    again.load_state_dict(critic.state_dict() | {"carry": []})
    assert torch.equal(critic.predict(second)[0], again.predict(second)[0])
    assert fresh.shape == (11, 3)


class TestClipRange:
    """max((v - g)^2, (clip(v, old - c, old + c) - g)^2), by hand for one number."""

    @pytest.mark.parametrize(
        ("value", "old", "target", "slope"),
        [
            (1.0, 1.05, 3.0, 2 * (1.0 - 3.0)),  # within the range: the plain error's
            (1.0, 0.5, 3.0, 0.0),  # moved by 0.5 towards the target: (0.6 - 3)^2 is larger, flat
            (1.0, 1.5, 3.0, 2 * (1.0 - 3.0)),  # moved away from it: (1 - 3)^2 is larger
            (1.0, 0.5, -3.0, 2 * (1.0 + 3.0)),  # the same downwards
            (1.0, 1.5, -3.0, 0.0),
        ],
    )
    def test_by_hand(self, value: float, old: float, target: float, slope: float) -> None:
        v = torch.tensor(value, requires_grad=True)
        square = squares(v, torch.tensor(target), torch.tensor(old), 0.1)
        (got,) = torch.autograd.grad(square, v)
        assert got.item() == pytest.approx(slope)

    def test_the_range_is_around_the_values_before_the_update(self) -> None:
        # Two epochs: in the second one every value has left the range, and nothing moves it on.
        # A linear network of positive features, because there the first step raises all values.
        rollout, critics = random_rollout(), []
        for num_epochs in (1, 2):
            observations = Observations(spaces.Box(-np.inf, np.inf, (2,)))
            generator = torch.Generator().manual_seed(0)
            critic = ValueNetwork(
                Network(observations, 1, hidden=(), generator=generator),
                lambda obs: obs.abs() + 1,
                num_epochs=num_epochs,
                clip_range=1e-9,
                generator=generator,
            )
            critic.update(rollout, torch.full((40, 5), 100.0), torch.ones(40, 5))
            critics.append(critic.state_dict()["optimizer"])
        assert [state["count"] for state in critics] == [1, 2]
        # a second step with gradient 0: Adam's mean decays
        torch.testing.assert_close(critics[1]["mean"], 0.9 * critics[0]["mean"])

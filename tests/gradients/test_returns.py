"""Returns and advantages against a plain loop over environments and time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlpg.errors import EstimatorError
from rlpg.gradients import returns as R

Batch = dict[str, Tensor]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Random rollouts; with `gaps`, a slot that is no transition follows every end, filled with
    rubbish, as environments that reset on the next step leave it."""
    num_steps, num_envs = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    gaps, seed = draw(st.booleans()), draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    shape = (num_steps, num_envs)
    ends = torch.rand(shape, generator=generator) < 0.3
    terminated = ends & (torch.rand(shape, generator=generator) < 0.5)
    truncated = ends & ~terminated
    valid = torch.ones(shape, dtype=torch.bool)
    if gaps:
        for t in range(1, num_steps):
            valid[t] = ~((terminated | truncated)[t - 1] & valid[t - 1])
        terminated &= valid
        truncated &= valid
    batch = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name in ("reward", "value", "successor_value")
    }
    for tensor in batch.values():
        tensor[~valid] = float("nan")
    return {**batch, "terminated": terminated, "truncated": truncated, "valid": valid}


def loop(batch: Batch, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Bootstrapped return and generalized advantage, slot by slot, by their definition as sums."""
    reward, value, after = batch["reward"], batch["value"], batch["successor_value"]
    to_go, advantage = torch.zeros_like(reward), torch.zeros_like(reward)
    num_steps, num_envs = reward.shape
    for n in range(num_envs):
        for start in range(num_steps):
            if not batch["valid"][start, n]:
                continue
            for k, t in enumerate(range(start, num_steps)):
                over = bool(batch["terminated"][t, n])
                cut = bool(batch["truncated"][t, n]) or t == num_steps - 1
                to_go[start, n] += gamma**k * reward[t, n]
                delta = reward[t, n] - value[t, n] + (0 if over else gamma * after[t, n])
                advantage[start, n] += (gamma * lam) ** k * delta
                if over or cut:
                    to_go[start, n] += 0 if over else gamma ** (k + 1) * after[t, n]
                    break
    return to_go, advantage


def ends(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("terminated", "truncated", "valid")}


@settings(max_examples=60)
@given(batches(), st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from([0.0, 0.7, 1.0]))
def test_returns_and_advantages_equal_their_definition(
    batch: Batch, gamma: float, lam: float
) -> None:
    to_go, advantage = loop(batch, gamma, lam)
    after = batch["successor_value"]
    got = R.reward_to_go(batch["reward"], **ends(batch), gamma=gamma, bootstrap=after)
    torch.testing.assert_close(got, to_go)
    got = R.gae(
        batch["reward"],
        batch["value"],
        successor_value=after,
        **ends(batch),
        gamma=gamma,
        gae_lambda=lam,
    )
    torch.testing.assert_close(got, advantage)


def test_truncation_of_an_endless_episode_changes_no_return() -> None:
    # Reward 1 for ever is worth 1 / (1 - gamma) from every state, wherever time limits cut it.
    gamma, shape = 0.9, (7, 2)
    worth = torch.full(shape, 1 / (1 - gamma), dtype=torch.float64)
    truncated = torch.zeros(shape, dtype=torch.bool)
    truncated[2, 0] = truncated[6, 1] = True
    no, yes = torch.zeros_like(truncated), torch.ones_like(truncated)
    reward = torch.ones(shape, dtype=torch.float64)
    got = R.reward_to_go(
        reward, terminated=no, truncated=truncated, valid=yes, gamma=gamma, bootstrap=worth
    )
    torch.testing.assert_close(got, worth)
    advantage = R.gae(
        reward,
        worth,
        successor_value=worth,
        terminated=no,
        truncated=truncated,
        valid=yes,
        gamma=gamma,
        gae_lambda=0.5,
    )
    torch.testing.assert_close(advantage, torch.zeros_like(worth))


def test_without_bootstrap_an_open_end_is_worth_nothing() -> None:
    reward = torch.ones(3, 1)
    no = torch.zeros(3, 1, dtype=torch.bool)
    truncated = torch.tensor([[False], [True], [False]])
    got = R.reward_to_go(reward, terminated=no, truncated=truncated, valid=~no, gamma=1.0)
    assert got[:, 0].tolist() == [2.0, 1.0, 1.0]


@settings(max_examples=40)
@given(batches(), st.integers(1, 8))
def test_sums_so_far_do_not_depend_on_where_rollouts_are_cut(batch: Batch, cut: int) -> None:
    reward, valid = batch["reward"], batch["valid"]
    done = batch["terminated"] | batch["truncated"]
    whole, last = R.discounted_so_far(reward, done=done, valid=valid, gamma=0.9)
    expected = torch.zeros_like(reward)
    for n in range(reward.shape[1]):
        running = 0.0
        for t in range(len(reward)):
            running = float(reward[t, n]) + 0.9 * running if valid[t, n] else 0.0
            expected[t, n] = running
            running *= not bool(done[t, n])
    torch.testing.assert_close(whole, expected)
    if cut < len(reward):
        first, carry = R.discounted_so_far(
            reward[:cut], done=done[:cut], valid=valid[:cut], gamma=0.9
        )
        second, end = R.discounted_so_far(
            reward[cut:], done=done[cut:], valid=valid[cut:], gamma=0.9, before=carry
        )
        torch.testing.assert_close(torch.cat([first, second]), whole)
        torch.testing.assert_close(end, last)


def test_complete_marks_the_steps_of_episodes_that_terminate_inside() -> None:
    no = torch.zeros(6, 1, dtype=torch.bool)
    terminated, truncated, valid = no.clone(), no.clone(), ~no
    terminated[1] = True
    valid[2] = False
    truncated[4] = True
    got = R.complete(terminated=terminated, truncated=truncated, valid=valid)
    assert got[:, 0].tolist() == [True, True, False, False, False, False]


@pytest.mark.parametrize("num_steps", [1, 2, 5, 8, 33])
def test_doubling_equals_the_loop(num_steps: int) -> None:
    generator = torch.Generator().manual_seed(num_steps)
    income = torch.randn(num_steps, 3, generator=generator, dtype=torch.float64)
    goes_on = torch.rand(num_steps, 3, generator=generator) < 0.8
    got = R._doubling(income, 0.9 * goes_on.double())
    torch.testing.assert_close(got, R._backward(income, 0.9, goes_on))


def test_inputs_are_left_alone_and_results_carry_no_gradient() -> None:
    reward = torch.ones(3, 2)
    value = torch.ones(3, 2, requires_grad=True)
    no = torch.zeros(3, 2, dtype=torch.bool)
    got = R.gae(
        reward,
        value,
        successor_value=value,
        terminated=no,
        truncated=no,
        valid=~no,
        gamma=0.9,
        gae_lambda=0.9,
    )
    assert not got.requires_grad
    assert reward.tolist() == [[1.0, 1.0]] * 3
    assert got.dtype == torch.float32


def test_shapes_that_do_not_fit_are_refused() -> None:
    no = torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(EstimatorError, match=r"expected every tensor as \[T, N\] = \[3, 2\]"):
        R.reward_to_go(torch.ones(3, 2), terminated=no, truncated=no[:1], valid=~no, gamma=0.9)
    with pytest.raises(EstimatorError, match="put time first"):
        R.discounted_so_far(torch.ones(3), done=no[:, 0], valid=~no[:, 0], gamma=0.9)

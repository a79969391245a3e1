"""Batches: groups, chunks and minibatches cover the samples once and weigh them as before."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlpg import Batch
from rlpg.errors import UsageError
from rlpg.learners import batch as module

sys.path.append(str(Path(__file__).parent))
from listed import plain
from made import draw_rollout, make_policy, weights

MEMORIES = (None, "gru", "lstm")
each_memory = pytest.mark.parametrize("memory", MEMORIES)


def make(
    memory: str | None, *, num_steps: int = 9, num_envs: int = 6, seed: int = 0
) -> tuple[Batch, Tensor]:
    """A batch, and the gradient of its surrogate."""
    policy = make_policy(memory=memory, memory_size=4)
    learner = plain(policy)
    batch = learner.batch(draw_rollout(policy, seed, num_steps=num_steps, num_envs=num_envs))
    return batch, learner.optimizer.gradient(learner.objective(batch)[0])


def gradient_of(batch: Batch, memory: str | None) -> Tensor:
    learner = plain(make_policy(memory=memory, memory_size=4))
    return learner.optimizer.gradient(learner.objective(batch)[0])


def marks(batch: Batch) -> list[tuple[float, ...]]:
    """Which samples, or whole sequences, are in the batch."""
    if batch.in_order:
        return sorted(tuple(column.reshape(-1).tolist()) for column in batch.obs.unbind(1))
    return sorted(tuple(row.tolist()) for row in batch.obs)


@each_memory
class TestParts:
    @pytest.mark.parametrize("num_minibatches", [1, 2, 4, 5, 6])
    def test_minibatches_cover_everything_once(
        self, memory: str | None, num_minibatches: int
    ) -> None:
        batch, _ = make(memory)
        generator = torch.Generator().manual_seed(0)
        parts = list(batch.minibatches(num_minibatches, generator))
        assert len(parts) == num_minibatches
        assert sorted(mark for part in parts for mark in marks(part)) == marks(batch)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1

    @pytest.mark.parametrize("num_minibatches", [2, 4, 5])
    def test_the_mean_of_their_gradients_is_that_of_the_batch(
        self, memory: str | None, num_minibatches: int
    ) -> None:
        """Each with its share of the samples: parts of 11, 11 and 10 differ."""
        batch, expected = make(memory)
        parts = list(batch.minibatches(num_minibatches, torch.Generator().manual_seed(0)))
        total = sum(len(part) / len(batch) * gradient_of(part, memory) for part in parts)
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)

    def test_their_weights_are_those_of_a_mean(self, memory: str | None) -> None:
        batch, _ = make(memory)
        for part in batch.minibatches(3, torch.Generator().manual_seed(0)):
            if memory is None:
                assert part.weight.sum().item() == pytest.approx(1.0)
            else:  # environments have more or fewer real steps
                assert part.weight.sum().item() == pytest.approx(1.0, abs=0.3)

    def test_are_shuffled_anew_each_time(self, memory: str | None) -> None:
        batch, _ = make(memory)
        generator = torch.Generator().manual_seed(0)
        orders = [[marks(part) for part in batch.minibatches(3, generator)] for _ in range(3)]
        assert orders[0] != orders[1] != orders[2]
        again = [marks(p) for p in batch.minibatches(3, torch.Generator().manual_seed(0))]
        assert again == orders[0]

    def test_groups_cover_everything_and_add_up(self, memory: str | None) -> None:
        batch, expected = make(memory, num_steps=50, num_envs=41)  # four groups, one larger
        groups = batch.groups
        assert batch.group_sizes == (10, 10, 10, 11)
        assert sorted(mark for group in groups for mark in marks(group)) == marks(batch)
        total = sum(gradient_of(group, memory) for group in groups)
        torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-5)

    def test_chunks_cover_everything_and_add_up(
        self, memory: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch, expected = make(memory)
        for chunk in (1, 7, 20, 1000):  # of samples: fewer than a sequence has are one sequence
            monkeypatch.setattr(module, "CHUNK", chunk)
            chunks = list(batch.chunks())
            assert sorted(mark for part in chunks for mark in marks(part)) == marks(batch)
            if memory is None:
                assert max(len(part) for part in chunks) <= chunk
            total = sum(gradient_of(part, memory) for part in chunks)
            torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)

    def test_carry_and_starts_follow_their_environments(self, memory: str | None) -> None:
        batch, _ = make(memory)
        if memory is None:
            assert batch.carry is None
            assert batch.episode_start is None
            return
        rollout = batch.rollout
        index = torch.tensor([4, 1])
        part = batch[index]
        assert part.episode_start is not None
        assert torch.equal(part.episode_start, rollout.episode_start[:-1, index])
        assert torch.equal(part.obs, rollout.obs[:-1, index])
        parts = zip(*(c if isinstance(c, tuple) else (c,) for c in (part.carry, batch.carry)),
                    strict=True)  # fmt: skip
        for got, whole in parts:
            assert torch.equal(got, whole[index])  # type: ignore[index]
        assert len(part) == 2

    def test_too_many(self, memory: str | None) -> None:
        batch, _ = make(memory)
        what = "samples" if memory is None else "environments"
        with pytest.raises(UsageError, match=rf"at most the {len(batch)} {what}.*got 1000; lower"):
            list(batch.minibatches(1000, torch.Generator()))


@each_memory
def test_a_mean_ignores_what_stands_where_the_weight_is_0(memory: str | None) -> None:
    batch, _ = make(memory)
    values = torch.ones_like(batch.weight)
    assert batch.mean(values).item() == pytest.approx(1.0)
    values[batch.weight == 0] = math.nan
    assert batch.mean(values).item() == pytest.approx(1.0)


@each_memory
@settings(max_examples=10)
@given(num_envs=st.integers(1, 5), num_steps=st.integers(1, 6), seed=st.integers(0, 99))
def test_of_any_size_the_parts_add_up(
    memory: str | None, num_envs: int, num_steps: int, seed: int
) -> None:
    batch, expected = make(memory, num_steps=num_steps, num_envs=num_envs, seed=seed)
    assert sum(len(group) for group in batch.groups) == len(batch)
    for num in {1, len(batch)}:
        parts = list(batch.minibatches(num, torch.Generator().manual_seed(seed)))
        total = sum(len(part) / len(batch) * gradient_of(part, memory) for part in parts)
        torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-5)


def test_a_step_is_the_same_in_groups_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes through the network at once changes the rounding and nothing else."""
    after = []
    for chunk in (3, 10**6):
        monkeypatch.setattr(module, "CHUNK", chunk)
        learner = plain(make_policy(), max_grad_norm=0.1)
        learner.update(draw_rollout(learner.policy, 0))
        after.append(weights(learner))
    torch.testing.assert_close(after[0], after[1], rtol=1e-3, atol=1e-5)

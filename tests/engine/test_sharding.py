"""What the ranks of a run have each for itself, when another number of ranks goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlpg.engine import sharding
from rlpg.policies import StandardPolicy
from rlpg.rollouts import BaseCollector, Collector, TensorCollector, make_envs

SIX = 6  # environments of all ranks


def collector(kind: str, ranks: int, rank: int) -> BaseCollector:
    """What rank `rank` of `ranks` collects with."""
    name, options = "rlpg/TorchPendulum-v1", {}
    if kind == "one by one":  # each environment's state is kept for itself
        name, options = "Pendulum-v1", {"backend": "sync"}
    envs = make_envs(name, SIX // ranks, seed=0, first_env=rank * SIX // ranks, **options).envs
    policy = StandardPolicy(
        envs.single_observation_space,
        envs.single_action_space,
        memory="gru" if kind == "gru" else None,
        hidden=(4,),
        generator=torch.Generator().manual_seed(0),
    )
    if kind in ("pathwise", "tensor"):
        gradient = "pathwise" if kind == "pathwise" else None
        return TensorCollector(envs, policy, rank, gradient=gradient)  # type: ignore[arg-type]
    return Collector(envs, policy, rank)


def running(state: Any) -> list[np.ndarray]:
    """What is counted for each environment `[N]` of the states of all ranks, one after another."""
    states = [one.get("standing") or one for one in state]
    return [np.concatenate([one[name] for one in states]) for name in ("returns", "lengths")]


@pytest.mark.parametrize("kind", ["vector", "one by one", "gru", "tensor", "pathwise"])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2), (6, 1)])
def test_every_kind_of_collector_goes_on_in_any_number_of_ranks(
    kind: str, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environments of `pathwise` could not be dealt out again: KeyError: 'ended'."""
    saved = []
    for number in range(before):
        one = collector(kind, before, number)
        one.steps(5)
        saved.append(one.state_dict())
        one.close()
    monkeypatch.setattr(sharding, "num_ranks", lambda: after)
    found = []
    for number in range(after):
        monkeypatch.setattr(sharding, "rank", lambda number=number: number)
        monkeypatch.setattr(sharding, "rank_key", lambda number=number: (after, number))
        whole = saved[0] if before == 1 else {"ranks": saved}
        state, note = sharding.own_collector_state(whole, seed=0)
        assert note == f"continued in another number of processes: {before} saved, {after} now"
        one = collector(kind, after, number)
        assert one.load_state_dict(state) == ""
        found.append(one.state_dict())
        rollout = one.steps(3)
        assert torch.isfinite(rollout.reward).all()
        assert (rollout.time[0] == 5).all(), "an episode began anew"
        one.close()
    for was, now in zip(running(saved), running(found), strict=True):
        np.testing.assert_array_equal(was, now)
    assert sum(one["env_steps"] for one in found) == 5 * SIX
    streams = {one["generator"].tobytes() for one in found}
    assert len(streams) == after


def test_as_many_ranks_keep_what_each_had() -> None:
    one = collector("pathwise", 1, 0)
    one.steps(2)
    state = one.state_dict()
    assert sharding.own_collector_state(state, seed=0) == (state, "")
    one.close()

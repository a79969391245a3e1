"""What the ranks have each for itself, in one checkpoint: their environments and action streams.

A run that goes on with another number of ranks deals the environments out again, in their order;
the streams of actions are then new ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rlpg.distributed import gather, is_alone, num_ranks, rank
from rlpg.engine.components import rank_key, seed_sequence
from rlpg.errors import TrainingError
from rlpg.rollouts import BaseCollector, Episodes
from rlpg.rollouts.base import stream

PER_ENV = ("obs", "ended", "returns", "lengths", "starts", "carry")  # [N, ...] of a `Collector`


def collector_state(collector: BaseCollector) -> dict[str, Any]:
    """Where the environments of all ranks stand; call it on all of them."""
    states = gather(collector.state_dict())
    return states[0] if len(states) == 1 else {"ranks": states}


def own_collector_state(saved: Mapping[str, Any], seed: int) -> tuple[Mapping[str, Any], str]:
    """This rank's part of what any number of ranks have saved, and what is to be said about it, if
    anything."""
    states: Sequence[Mapping[str, Any]] = saved.get("ranks", [saved])
    if len(states) == num_ranks():
        return states[rank()], ""
    steps = sum(state["env_steps"] for state in states)
    vector_steps = max(state["vector_steps"] for state in states)
    part, rest = divmod(steps, num_ranks())

    def fresh(*key: int) -> np.ndarray:
        run = seed_sequence(seed, "actions", *rank_key(), vector_steps, *key)
        return stream(run, torch.device("cpu")).get_state().numpy().copy()

    state = {
        "env_steps": part + (rest if rank() == 0 else 0),
        "vector_steps": vector_steps,
        "generator": fresh(),
    }
    if "standing" in states[0]:  # of a `TensorCollector`
        state |= {"starts": fresh(1), "standing": _own([one["standing"] for one in states], 0)}
    else:
        state |= {name: _own([one[name] for one in states], 0) for name in PER_ENV}
        state["environments"] = _own([one["environments"] for one in states], -1)
    return (
        state,
        f"continued in another number of processes: {len(states)} saved, {num_ranks()} now",
    )


def _own(parts: Sequence[Any], axis: int) -> Any:
    """This rank's environments of those that several ranks have.

    They are in trees with one axis or list for them. The environments of a vector environment of
    ours are in the last axis of its arrays.
    """
    first = parts[0]
    if isinstance(first, np.ndarray):
        whole = np.concatenate(parts, axis)
        number = whole.shape[axis] // num_ranks()
        return whole.take(range(rank() * number, (rank() + 1) * number), axis)
    if isinstance(first, Mapping):
        return {key: _own([part[key] for part in parts], axis) for key in first}
    if isinstance(first, list) and axis == 0:  # a carry of several parts
        return [_own(entries, axis) for entries in zip(*parts, strict=True)]
    if isinstance(first, list):  # an entry for each environment
        entries = [entry for part in parts for entry in part]
        number = len(entries) // num_ranks()
        return entries[rank() * number :][:number]
    return first


def merged(episodes: Sequence[Episodes], num_envs: int) -> Episodes:
    """The episodes of all ranks in several rollouts, in the order of their ends; call it on all of
    them, each with its own."""
    if is_alone() and len(episodes) == 1:
        return episodes[0]
    told = gather([(e.returns, e.lengths, e.env + rank() * num_envs, e.step) for e in episodes])
    ordered = []
    for ranks in zip(*told, strict=True):
        columns = [np.concatenate(column) for column in zip(*ranks, strict=True)]
        order = np.lexsort((columns[2], columns[3]))
        ordered.append([column[order] for column in columns])
    return Episodes(*(np.concatenate(column) for column in zip(*ordered, strict=True)))


def require_equal(parameters: torch.Tensor) -> None:
    """TrainingError where the ranks do not have the same parameters; call it on all of them."""
    if is_alone():
        return
    digests = gather(hashlib.sha256(parameters.cpu().numpy().tobytes()).hexdigest())
    if len(set(digests)) > 1:
        raise TrainingError(
            "policy: expected the same parameters in all processes, got different ones; are they "
            "on different processors, or is a part of your own random?"
        )

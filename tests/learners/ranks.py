"""Runs functions on several ranks: a process each, joined by gloo through a file.

One process imports torch and what is called; the others are forked from it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from rlpg.policies import map_carry
from rlpg.rollouts import Rollout


def on_ranks(number: int, work: Callable[..., Any], *args: Any, timeout: float = 250) -> list[Any]:
    """What `work(*args)` returns on each of so many ranks."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe() for _ in range(number)]
        target = (folder, [theirs for _, theirs in pipes], work, args)
        process = context.Process(target=_ranks, args=target, daemon=True)
        process.start()
        for _, theirs in pipes:
            theirs.close()
        try:
            found = []
            for pipe, _ in pipes:
                assert pipe.poll(timeout), "a rank did not answer"
                found.append(pipe.recv())
                assert not isinstance(found[-1], str), found[-1]
            return found
        finally:
            with suppress(ProcessLookupError):  # it has not come as far as having a group
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()


def _ranks(folder: str, pipes: list[Any], work: Any, args: Any) -> None:
    """Rank 0, which has imported everything, and has used none of it when it forks the others."""
    os.setpgid(0, 0)
    for rank, pipe in enumerate(pipes[1:], start=1):
        if os.fork() == 0:
            try:
                _rank(rank, len(pipes), folder, pipe, work, args)
            finally:
                os._exit(0)
    _rank(0, len(pipes), folder, pipes[0], work, args)


def _rank(rank: int, number: int, folder: str, pipe: Any, work: Any, args: Any) -> None:
    torch.set_num_threads(1)
    path = Path(folder) / "group"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=number
    )
    try:
        pipe.send(work(*args))
    except Exception:
        pipe.send(traceback.format_exc())
    with suppress(EOFError):
        pipe.recv()  # until it is killed: the others may still be talking to it


def columns_of(rollout: Rollout, rank: int, number: int) -> Rollout:
    """A rank's environments."""
    size = rollout.reward.shape[1] // number
    own = slice(rank * size, (rank + 1) * size)
    is_own = (rollout.final_env >= own.start) & (rollout.final_env < own.stop)
    return replace(
        rollout,
        **{
            name: getattr(rollout, name)[:, own]
            for name in ("obs", "action", "reward", "terminated", "truncated", "valid", "time",
                         "episode_start")
        },
        carry=map_carry(lambda part: part[own], rollout.carry),
        final_obs=rollout.final_obs[is_own],
        final_step=rollout.final_step[is_own],
        final_env=rollout.final_env[is_own] - own.start,
    )  # fmt: skip

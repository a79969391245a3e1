"""Collection with worker processes against one process, in turns; waits for a quiet machine.

    python scripts/pool_benchmark.py                             three environments, 32 copies each
    python scripts/pool_benchmark.py HalfCheetah-v5 --rounds 9 --busy 2      do not wait

Ways to collect 64 steps of 32 environments with a policy of two layers of 64:

    sync        Collector on environments in this process
    pool        Collector on the worker pool
    twice       two processes that know nothing of each other, with half the environments each: what
                the cores can do at best

A round counts only if all other programs together have used less than `--busy` cores during it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from rlpg.policies import Policy, StandardPolicy
from rlpg.rollouts import Collector, make_envs

NUM_STEPS = 64


def policy_for(envs: Any) -> Policy:
    spaces = envs.single_observation_space, envs.single_action_space
    return StandardPolicy(*spaces, hidden=(64, 64), generator=torch.Generator().manual_seed(0))


def alone(env_id: str, num_envs: int, channel: Connection) -> None:
    """Collects when it is told to, in a process of its own."""
    torch.set_num_threads(1)
    envs, _ = make_envs(env_id, num_envs, seed=0, backend="sync")
    collector = Collector(envs, policy_for(envs), log_prob=False)
    while channel.recv():
        collector.steps(NUM_STEPS)
        channel.send(True)


def busy_seconds() -> float:
    """Of all cores, since the machine was started."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def own_seconds(pids: list[int]) -> float:
    total = 0.0
    for pid in pids:
        with open(f"/proc/{pid}/schedstat") as file:
            total += int(file.read().split()[0]) / 1e9
    return total


def measure(env_id: str, options: argparse.Namespace) -> None:
    num_envs: int = options.num_envs
    sync, _ = make_envs(env_id, num_envs, seed=0, backend="sync")
    policy = policy_for(sync)
    pool, _ = make_envs(env_id, num_envs, seed=0, backend="async")
    workers: Any = pool.unwrapped
    pairs = [multiprocessing.Pipe() for _ in range(2)]
    others = [
        multiprocessing.Process(target=alone, args=(env_id, num_envs // 2, theirs), daemon=True)
        for _, theirs in pairs
    ]
    for process in others:
        process.start()
    collectors = [Collector(envs, policy, log_prob=False) for envs in (sync, pool)]

    def twice() -> None:
        for ours, _ in pairs:
            ours.send(True)
        for ours, _ in pairs:
            ours.recv()

    ways: dict[str, Callable[[], Any]] = {
        "sync": lambda: collectors[0].steps(NUM_STEPS),
        "pool": lambda: collectors[1].steps(NUM_STEPS),
        "twice": twice,
    }
    started = [*workers.processes, *others]
    pids = [os.getpid(), *(process.pid for process in started)]
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    loads: list[float] = []
    for way in ways.values():
        way()
    deadline = time.monotonic() + options.seconds
    while len(loads) < options.rounds and time.monotonic() < deadline:
        began, busy, own = time.perf_counter(), busy_seconds(), own_seconds(pids)
        time.sleep(0.3)
        if (busy_seconds() - busy) / 0.3 > options.busy:
            continue
        began, busy, own = time.perf_counter(), busy_seconds(), own_seconds(pids)
        found = {}
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            found[name] = NUM_STEPS * num_envs / (time.perf_counter() - start)
        passed = time.perf_counter() - began
        load = (busy_seconds() - busy - own_seconds(pids) + own) / passed
        if load > options.busy:
            continue
        loads.append(load)
        for name, speed in found.items():
            speeds[name].append(speed)
    if not loads:
        print(f"{env_id}: never quiet")
    else:
        print(
            f"{env_id}, {num_envs} environments, {len(loads)} rounds, others used "
            f"{statistics.median(loads):.2f} cores"
        )
        for name, values in speeds.items():
            ratio = statistics.median(v / s for v, s in zip(values, speeds["sync"], strict=True))
            print(f"  {name:8} {statistics.median(values):9,.0f} steps/s  {ratio:.2f}", flush=True)
    for ours, _ in pairs:
        ours.send(False)
    for envs in (sync, pool):
        envs.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("envs", nargs="*")
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--busy", type=float, default=0.25, help="cores that others may use")
    parser.add_argument("--seconds", type=float, default=300.0, help="to wait for quiet rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for env_id in options.envs or ("HalfCheetah-v5", "BipedalWalker-v3", "LunarLander-v3"):
        measure(env_id, options)


if __name__ == "__main__":
    main()

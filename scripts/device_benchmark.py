#!/usr/bin/env python
"""Steps per second of environments that stay on their device, from 1 k to 64 k of them.

    scripts/device_benchmark.py                         # on the GPU if there is one, else the CPU
    scripts/device_benchmark.py --env Pendulum-v1 --json device.json
    scripts/device_benchmark.py --device cpu --environments 1024 4096
    scripts/device_benchmark.py --learner               # a learner on the CPU and on the GPU

Three programs, each on tensors and, beside it in the same run, on the NumPy version of the same
environment (always on the CPU): stepping alone, with actions drawn beforehand; collecting rollouts
with a policy of 64 x 64; and collecting with an update of REINFORCE (value network, one pass). On
CUDA the tensor programs are replayed as graphs. Programs take turns; medians.

With `--learner`: PPO with the setting `device` of a training, 16 environments times 64 steps that
cost nothing, for layers of several widths and for pictures: milliseconds of a rollout and of an
update.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from rlpg.envs.batched_classic import FAMILY

from rlpg.engine.components import make_collector, make_learner, make_policy, training_envs
from rlpg.learners import Reinforce
from rlpg.policies import Policy, StandardPolicy
from rlpg.rollouts import Collector, make_envs
from rlpg.rollouts.tensor_collector import Replayed, TensorCollector
from rlpg.runs.recipe import Recipe, override
from rlpg.runs.run import versions
from rlpg.verbs.training import collect

SIZES = (1024, 4096, 16384, 65536)
NUM_STEPS = 16  # of a rollout
Program = Callable[[], object]


def learner_and_policy(name: str, device: torch.device) -> tuple[Reinforce, Policy]:
    """The same weights on every device."""
    env = FAMILY[name]()
    policy = StandardPolicy(
        env.observation_space, env.action_space, generator=torch.Generator().manual_seed(0)
    ).to(device)
    return Reinforce(policy, gae_lambda=0.95, num_value_epochs=1, num_value_minibatches=1), policy


def drawn_actions(name: str, num_envs: int) -> list[np.ndarray]:
    """`NUM_STEPS` batches of actions of the environment's space."""
    envs = FAMILY[name].numpy_version(num_envs)
    envs.action_space.seed(0)
    return [envs.action_space.sample() for _ in range(NUM_STEPS)]


def tensor_programs(name: str, num_envs: int, device: torch.device) -> dict[str, Program]:
    """`step`, `collect` and `train` on tensors; each call is `NUM_STEPS` steps."""
    env = FAMILY[name]()
    generator = torch.Generator(device).manual_seed(0)
    actions = [torch.from_numpy(a).to(device) for a in drawn_actions(name, num_envs)]
    state = env.reset(num_envs, generator)
    elapsed = torch.zeros(num_envs, dtype=torch.int64, device=device)

    def stepping() -> None:
        now, steps = state, elapsed
        for action in actions:
            now, _, terminated = env.step(now, action)
            steps = steps + 1
            done = terminated | (steps >= env.max_episode_steps)
            first = env.reset(num_envs, generator)
            now, steps = torch.where(done[:, None], first, now), steps.masked_fill(done, 0)
            env.observe(now)
        state.copy_(now)
        elapsed.copy_(steps)

    work = Replayed(stepping, device, [generator])

    def step() -> None:
        with torch.inference_mode():
            work()

    learner, policy = learner_and_policy(name, device)
    collector = TensorCollector(env, policy, num_envs=num_envs, log_prob=False)
    return {
        "step": step,
        "collect": lambda: collector.steps(NUM_STEPS),
        "train": lambda: learner.update(collector.steps(NUM_STEPS)),
    }


def numpy_programs(name: str, num_envs: int) -> dict[str, Program]:
    """The same with the NumPy version."""
    envs, _ = make_envs(name, num_envs, seed=0, backend="native")
    actions = drawn_actions(name, num_envs)

    def step() -> None:
        for action in actions:
            envs.step(action)

    learner, policy = learner_and_policy(name, torch.device("cpu"))
    collector = Collector(make_envs(name, num_envs, seed=0).envs, policy, log_prob=False)
    return {
        "step": step,
        "collect": lambda: collector.steps(NUM_STEPS),
        "train": lambda: learner.update(collector.steps(NUM_STEPS)),
    }


def seconds_per_call(program: Program, seconds: float, wait: Program) -> float:
    """Mean time of a call, over as many as fit into `seconds`, at least one."""
    wait()
    calls, began = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - began < seconds:
        program()
        wait()
        calls += 1
    return (time.perf_counter() - began) / calls


def measure(
    name: str, num_envs: int, device: torch.device, repeats: int, seconds: float
) -> dict[str, float]:
    """Steps per second by program: `tensor step`, `NumPy step`, ..."""
    wait: Program = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    tensors, arrays = tensor_programs(name, num_envs, device), numpy_programs(name, num_envs)
    rates: dict[str, float] = {}
    for kind in tensors:  # "train" last: it changes what the policy costs no more
        pair = {f"tensor {kind}": tensors[kind], f"NumPy {kind}": arrays[kind]}
        for program in pair.values():
            for _ in range(3):  # the second call is the one that records a graph
                program()
        found: dict[str, list[float]] = {label: [] for label in pair}
        for _ in range(repeats):
            for label, program in pair.items():
                found[label].append(seconds_per_call(program, seconds, wait))
        for label, times in found.items():
            rates[label] = NUM_STEPS * num_envs / statistics.median(times)
    return rates


class Noise(gymnasium.Env[np.ndarray, Any]):
    """The same observation at every step: what remains is the cost of the learner."""

    action_space = spaces.Discrete(6)

    def __init__(self, pictures: bool) -> None:
        self.observation_space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
        if not pictures:
            self.observation_space = spaces.Box(-3, 3, (32,))
        self.observation_space.seed(0)
        self._observation = self.observation_space.sample()
        self._steps = 0

    def reset(self, **told: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self._steps = 0
        return self._observation, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self._observation, float(action), self._steps == 100, False, {}


def learner_milliseconds(
    hidden: str, device: str, threads: int, repeats: int
) -> tuple[float, float]:
    """Of a rollout, and of an update of PPO; `hidden` is a width or `pictures`."""
    torch.set_num_threads(threads)
    layers: dict[str, Any] = {} if hidden == "pictures" else {"policy.hidden": (int(hidden),) * 2}
    said = {"environment.id": "Noise", "environment.backend": "sync", "device": device}
    recipe = override(Recipe.of("ppo"), said | layers)
    env = partial(Noise, hidden == "pictures")
    wait: Program = torch.cuda.synchronize if device == "cuda" else lambda: None
    with training_envs(env, recipe) as (envs, _):
        learner = make_learner(make_policy(envs, recipe), recipe)
        collector = make_collector(envs, learner, recipe, lambda remark: None)
        times: list[tuple[float, float]] = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            rollout = collect(collector, recipe)
            collected = time.perf_counter()
            learner.update(rollout)
            wait()
            times.append((collected - began, time.perf_counter() - collected))
    rollouts, updates = zip(*times[1:], strict=True)  # the first one prepares
    return 1e3 * statistics.median(rollouts), 1e3 * statistics.median(updates)


def print_learners(device: torch.device, repeats: int) -> None:
    """A table in Markdown. The CPU has one thread for what is small, which is faster, and all of
    its threads for what is not."""
    every = torch.get_num_threads()
    print("PPO, 16 environments, 64 steps, 10 passes of 16 minibatches: ms rollout + ms update\n")
    print("| network | threads | cpu | cuda |\n|---|---:|---:|---:|")
    for hidden, threads in (("64", 1), ("256", 1), ("1024", every), ("pictures", every)):
        cells = ["-", "-"]
        for index, place in enumerate(("cpu", device.type)[: 1 + (device.type == "cuda")]):
            rollout, update = learner_milliseconds(hidden, place, threads, repeats)
            cells[index] = f"{rollout:,.0f} + {update:,.0f}"
        what = "pictures 84 x 84 x 4" if hidden == "pictures" else f"{hidden} x {hidden}"
        print(f"| {what} | {threads} | {' | '.join(cells)} |", flush=True)


def table(rows: list[dict[str, float]]) -> str:
    """Markdown, in million steps per second."""
    labels = [label for label in rows[0] if label != "environments"]
    lines = ["| environments | " + " | ".join(labels) + " |", "|---:" * (len(labels) + 1) + "|"]
    for row in rows:
        cells = [f"{row[label] / 1e6:.2f}" for label in labels]
        lines.append(f"| {row['environments']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(set(FAMILY) - {"CartPoleContinuous-v0"})  # it has no NumPy version
    parser.add_argument("--env", default="CartPole-v1", choices=names)
    parser.add_argument("--environments", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per program")
    parser.add_argument("--seconds", type=float, default=0.5, help="least, of one measurement")
    parser.add_argument("--learner", action="store_true", help="measure a learner instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    options = parser.parse_args()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.learner:
        print_learners(device, options.repeats)
        return
    torch.set_num_threads(options.threads)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    if device.type == "cpu":
        print("no GPU is used: these are the figures of the CPU, for both versions\n")
    print(f"{options.env}, {NUM_STEPS} steps per rollout, {options.threads} thread(s), {where}")
    print("million steps per second\n")
    rows: list[dict[str, float]] = []
    for num_envs in options.environments:
        rates = measure(options.env, num_envs, device, options.repeats, options.seconds)
        rows.append({"environments": num_envs, **rates})
    print(table(rows))
    if options.json:
        report = {
            "env": options.env,
            "device": device.type,
            "machine": where,
            "threads": options.threads,
            "num_steps": NUM_STEPS,
            "versions": versions(),
            "rows": rows,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

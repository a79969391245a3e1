#!/usr/bin/env python
"""Train with default settings on all of classic control and toy text, and write what came of it.

    scripts/check_defaults.py [ENV ...] [--seeds 10 11 12] [--jobs 2]

For every environment: the mean return of uniformly random actions, and the mean return of the
policy that each seed ends with. Writes docs/defaults.md and docs/defaults.json. A seed that is
done is kept in the work folder (runs/defaults) and not trained again unless the defaults changed.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from training_seeds import cpu_seconds, workers

import rlpg
from rlpg.runs.recipe import flatten, override
from rlpg.runs.run import versions

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "defaults.json"
ENVS = (
    "CartPole-v0",
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "Blackjack-v1",
    "FrozenLake-v1",
    "FrozenLake8x8-v1",
    "CliffWalking-v1",
    "CliffWalkingSlippery-v1",
    "Taxi-v4",
)
EPISODES = {"Blackjack-v1": 2000}  # one hand is mostly luck; 100 episodes of the others
CLEARLY = 5.0  # standard errors of the difference, at least
# Training is the same, bit for bit, whether it is watched or not.
UNWATCHED = {
    "evaluation.every": rlpg.Recipe().total_steps,
    "evaluation.stochastic": False,
    "log.tensorboard": False,
}


def main() -> int:
    """Exit code 0: every seed learned; 1: one did not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("envs", nargs="*", metavar="ENV", help="(all of classic and toy text)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12], help="(10 11 12)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--work", type=Path, default=Path("runs/defaults"), help="(runs/defaults)")
    arguments = parser.parse_args()
    envs = arguments.envs or list(ENVS)
    tasks = [(env, seed) for env in envs for seed in arguments.seeds]
    rows: dict[str, list[dict[str, Any]]] = {env: [] for env in envs}
    with workers(arguments.jobs) as pool:
        baselines = pool.map(random_actions, envs)
        done = pool.map(partial(train, work=arguments.work), *zip(*tasks, strict=True))
        for (env, seed), row in zip(tasks, done, strict=True):
            print(f"{env} seed {seed}: {row['mean']:.2f}", flush=True)
            rows[env].append(row)
        report = [entry(env, base, rows[env]) for env, base in zip(envs, baselines, strict=True)]
    write(report, f"scripts/check_defaults.py --seeds {' '.join(map(str, arguments.seeds))}")
    return 0 if all(line["learned"] for line in report) else 1


def train(env: str, seed: int, work: Path) -> dict[str, Any]:
    """The row of one seed: trained now, or read from the work folder."""
    recipe = override(rlpg.Recipe(), {"seed": seed, "environment.id": env})
    settings = json.loads(json.dumps(flatten(recipe)))
    folder, done = work / env / str(seed), work / env / f"{seed}.json"
    if done.exists():
        row: dict[str, Any] = json.loads(done.read_text())
        if row.pop("recipe").items() <= settings.items():  # a newer setting changes nothing
            return row
    done.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    wall, cpu = time.perf_counter(), cpu_seconds()
    run = rlpg.train(env, seed=seed, run_dir=folder, recipe="default", overrides=UNWATCHED)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    result = rlpg.evaluate(run.policy, env, episodes(env), seed=0)
    row = {
        "seed": seed,
        "mean": round(result.mean, 4),
        "std": round(result.std, 4),
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
    }
    done.write_text(json.dumps({**row, "recipe": settings}))
    return row


def random_actions(env: str) -> dict[str, float]:
    """Mean and standard deviation of the return of uniformly random actions."""
    made = rlpg.make_envs(env, 1, seed=0, backend="sync")
    made.envs.action_space.seed(0)
    returns = []
    for _ in range(episodes(env)):
        made.envs.reset()
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = made.envs.step(made.envs.action_space.sample())
            total, ended = total + float(reward[0]), bool(terminated[0] or truncated[0])
        returns.append(total)
    made.envs.close()
    return {"mean": round(float(np.mean(returns)), 4), "std": round(float(np.std(returns)), 4)}


def episodes(env: str) -> int:
    """How many a mean return is the mean of."""
    return EPISODES.get(env, 100)


def entry(env: str, base: dict[str, float], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the report says of one environment."""

    def learned(row: dict[str, Any]) -> bool:
        error = math.sqrt((base["std"] ** 2 + row["std"] ** 2) / episodes(env))
        return bool(row["mean"] - base["mean"] > CLEARLY * error)

    return {
        "environment": env,
        "episodes": episodes(env),
        "random": base,
        "seeds": rows,
        "learned": all(learned(row) for row in rows),
    }


def write(report: list[dict[str, Any]], command: str) -> None:
    """docs/defaults.json and docs/defaults.md."""
    total = rlpg.Recipe().total_steps
    known = versions()
    content = {
        "total_steps": total,
        "environments": report,
        "versions": {key: known[key] for key in known if key not in ("platform", "machine")},
        "command": command,
    }
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(content, indent=1) + "\n")
    lines = [
        "# What the defaults reach",
        "",
        f"Generated by `{command}`. `rlpg train ENV --recipe default`: agent `ppo`,",
        f"no recipe, no option, {total:,} environment steps. Mean return of 100 episodes",
        "(Blackjack 2,000), of uniformly random actions, and of each seed's policy at the end of",
        "training (deterministic actions).",
        f"*Learned* means: every seed is better than random by more than {CLEARLY:g} standard",
        "errors. CPU time is for one seed on one thread with an evaluation at the end: its wall",
        f"time where nothing else runs. Measured with version {known['rlpg']}.",
        "",
        "| environment | random | trained, by seed | learned | CPU time |",
        "|---|---:|---|---|---:|",
        *map(line, report),
    ]
    REPORT.with_suffix(".md").write_text("\n".join(lines) + "\n")


def line(item: dict[str, Any]) -> str:
    """One environment's line of the table."""
    rows = item["seeds"]
    means = ", ".join(f"{row['mean']:.2f}" for row in rows)
    seconds = median(row["cpu_seconds"] for row in rows)
    learned = "yes" if item["learned"] else "no"
    return (
        f"| {item['environment']} | {item['random']['mean']:.2f} | {means} | {learned} "
        f"| {seconds:.0f} s |"
    )


if __name__ == "__main__":
    sys.exit(main())

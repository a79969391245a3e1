#!/usr/bin/env python
"""What each default of `ppo` is worth: one setting changed at a time, on short trainings.

    scripts/ablations.py [SETTING=VALUE ...] [--seeds 200 201 202 203 204] [--jobs 1]

Every seed is kept in the work folder (runs/ablations) as soon as it is done, so the program can be
stopped and started at will. It trains the default first, then one change after the other on all
tasks, and writes docs/ablations.md and docs/ablations.json after each. No default was chosen with
these seeds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from training_seeds import (
    Job,
    number,
    parsed,
    parser_of,
    random_actions,
    rows_of,
    train_all,
    without_machine,
)

from rlpg.runs.recipe import Recipe, flatten, override
from rlpg.runs.run import versions
from rlpg.verbs.scores import Array, interval

ROOT = Path(__file__).resolve().parents[1]
PAGE, DATA = ROOT / "docs" / "ablations.md", ROOT / "docs" / "ablations.json"
SEEDS = (200, 201, 202, 203, 204)
EPISODES = 100  # of deterministic actions, of each policy and of random actions
DEFAULT = "default"


@dataclass(frozen=True)
class Task:
    """An environment, and the environment steps of a training on it."""

    total_steps: int  # a multiple of every rollout, so all changes learn from as many steps
    is_discrete: bool = False


TASKS: Mapping[str, Task] = {
    "CartPole-v1": Task(12_288, is_discrete=True),
    "Acrobot-v1": Task(8_192, is_discrete=True),
    "rlpg/Replenishment-v0": Task(16_384, is_discrete=True),
    "MountainCarContinuous-v0": Task(16_384),
    "InvertedPendulum-v5": Task(12_288),
    "Hopper-v5": Task(10_240),
}
# As they are typed, the most interesting first.
CHANGES = (
    "policy.normalize_observations=false",
    "learner.reward_scaling=false",
    "policy.log_std_init=0",
    "learner.entropy_coef=0",
    "learner.entropy_coef=0.01",
    "learner.normalize_advantages=false",
    "rollout.num_steps=32",
    "rollout.num_steps=128",
    "learner.num_epochs=5",
    "learner.learning_rate_schedule=linear",
    "learner.gae_lambda=0.9",
    "learner.gae_lambda=1",
    "learner.recompute_advantages=true",
    "learner.target_kl=0.02",
    "policy.shared_torso=true",
    "policy.activation=relu",
    "policy.gaussian=squashed",
    "learner.max_grad_norm=none",
    "learner.gamma=0.98",
    "learner.gamma=0.995",
    "rollout.num_envs=8",
    "learner.normalize_advantages_over=batch",
    "learner.value_clip_range=0.2",
)
ONLY = {  # where the change would be none, or has no meaning
    "policy.log_std_init=0": False,
    "learner.entropy_coef=0": True,
    "learner.entropy_coef=0.01": False,
    "policy.gaussian=squashed": False,
}
# A job trains on one core, and nothing is evaluated on the way.
CHEAP = {
    "environment.backend": "sync", "evaluation.episodes": 1, "evaluation.final_episodes": 1,
}  # fmt: skip


def main() -> None:
    """Train what is missing of the changes that are asked for, and write the page."""
    parser = parser_of(__doc__, "SETTING=VALUE", "runs/ablations", jobs=1, seeds=SEEDS)
    arguments = parsed(parser, CHANGES)
    names = [(task, change) for change in (DEFAULT, *arguments.names) for task in tasks_of(change)]
    jobs = {job_of(task, change): arguments.seeds for task, change in names}
    train_all(jobs, arguments.work, arguments.jobs, partial(record, arguments=arguments))


def tasks_of(change: str) -> list[str]:
    """The tasks that a change is tried on."""
    return [name for name, task in TASKS.items() if ONLY.get(change) in (None, task.is_discrete)]


def job_of(task: str, change: str) -> Job:
    """The training of the default agent with a change, or without one."""
    steps = TASKS[task].total_steps
    settings: dict[str, object] = {
        "environment.id": task,
        "total_steps": steps,
        "evaluation.every": steps,
        **CHEAP,
    }
    if change != DEFAULT:
        setting, value = change.split("=")
        settings[setting] = value
    return Job(f"{task}/{change}", task, override(Recipe.of("ppo"), settings), math.inf, EPISODES)


def record(job: Job, arguments: argparse.Namespace) -> None:
    """Add a change on a task to the data, and write the page anew."""
    known: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {"tasks": {}}
    rows = rows_of(job, arguments.seeds, arguments.work)
    task, _, change = job.name.rpartition("/")
    entry = known["tasks"].setdefault(task, {"random": random_actions(task, EPISODES)})
    entry["total_steps"] = TASKS[task].total_steps
    entry.setdefault("changes", {})[change] = {
        "means": {str(row["seed"]): row["mean"] for row in rows},
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows), 1),
        "commits": sorted({row["commit"] for row in rows}),
    }
    known["versions"] = without_machine(versions())
    known["command"] = f"scripts/ablations.py --seeds {' '.join(map(str, arguments.seeds))}"
    DATA.write_text(json.dumps(known, indent=1) + "\n")
    PAGE.write_text(page(known))


def page(known: Mapping[str, Any]) -> str:
    """The text of docs/ablations.md: the changes that were tried on all of their tasks."""
    tasks = [task for task in TASKS if task in known["tasks"]]
    tried = {task: known["tasks"][task]["changes"] for task in tasks}

    def seeds(task: str, change: str) -> list[str]:
        return list(tried.get(task, {}).get(change, {"means": ()})["means"])

    def is_done(change: str) -> bool:
        return all([] != seeds(t, DEFAULT) == seeds(t, change) for t in tasks_of(change))

    done, waiting = filter(is_done, CHANGES), [name for name in CHANGES if not is_done(name)]
    differences = sorted((difference(known, change), change) for change in done)
    entries = [entry for changes in tried.values() for entry in changes.values()]
    commits = sorted({commit for entry in entries for commit in entry["commits"]})
    minutes = sum(entry["cpu_seconds"] for entry in entries) / 60
    steps = ", ".join(f"{task} {TASKS[task].total_steps:,}" for task in tasks)
    return "\n".join([
        "# What the defaults of `ppo` are worth",
        "",
        f"Generated by `{known['command']}` (data and versions: `docs/ablations.json`; commit",
        f"{', '.join(commits)}; {minutes:.0f} minutes of CPU time). The agent `ppo` with its",
        "defaults, and the same with one setting changed. No default was chosen with these seeds.",
        "A score is the mean return of 100 episodes of deterministic actions with the policy at",
        "the end of training. `rlpg train ENV --recipe default --explain` says what each default",
        "is, also where it follows from a rule.",
        "",
        f"The trainings are short: {steps} environment steps. So the tables say what",
        "helps to learn soon, and little of what helps in long runs.",
        "",
        "## Difference to the default",
        "",
        "The score of the changed agent minus that of the default, as a share of what the default",
        "learns on the task (its mean score minus that of uniformly random actions), averaged over",
        "tasks and seeds. At -0.20 a fifth of what the default learns is lost without it. The",
        "interval is the 95 % percentile interval of a bootstrap that draws the tasks, and in each",
        "the seeds. With so few of both it is rough, and of twenty such intervals about one",
        "excludes 0 by chance. *Earns its place*: the interval is below 0. *Hurts*: above 0.",
        "",
        "| change | default | tasks | difference (95 % interval) | the default |",
        "|---|---|---:|---:|---|",
        *(summary_row(change, found) for found, change in differences),
        "",
        *([f"Not tried yet: {', '.join(f'`{name}`' for name in waiting)}.", ""] * bool(waiting)),
        "The small first weights of the policy's last layer are no setting, so they are not here.",
        "",
        "## Every task",
        "",
        "Median over seeds (first to third quartile).",
        "",
        f"| change | {' | '.join(tasks)} |",
        f"|---|{'---:|' * len(tasks)}",
        f"| random actions | {' | '.join(random_score(known, task) for task in tasks)} |",
        *(
            f"| {f'`{name}`' if name != DEFAULT else DEFAULT} | "
            f"{' | '.join(cell(tried[task].get(name)) for task in tasks)} |"
            for name in (DEFAULT, *CHANGES)
            if any(name in changes for changes in tried.values())
        ),
        "",
    ])  # fmt: skip


def difference(known: Mapping[str, Any], change: str) -> tuple[float, float, float]:
    """Mean difference to the default in normalized scores, and its interval's ends."""
    pairs = [normalized(known["tasks"][task], change) for task in tasks_of(change)]
    generator = np.random.default_rng(0)

    def drawn(tasks: Array) -> float:
        """Of tasks `[K, 2, S]` that were drawn, with seeds drawn here."""
        seeds = generator.integers(tasks.shape[-1], size=tasks.shape)
        means = np.take_along_axis(tasks, seeds, axis=-1).mean(axis=(0, 2))  # [2]
        return float(means[1] - means[0])

    scores = np.array(pairs)  # [K, 2, S]
    means = scores.mean(axis=(0, 2))
    low, high = interval([scores], drawn)
    return float(means[1] - means[0]), float(low), float(high)


def normalized(entry: Mapping[str, Any], change: str) -> Array:
    """Scores of the default and of the change, `[2, S]`: 0 is random, 1 the mean default."""
    default, changed = (list(entry["changes"][k]["means"].values()) for k in (DEFAULT, change))
    floor = entry["random"]["mean"]
    scores: Array = (np.array([default, changed]) - floor) / (np.mean(default) - floor)
    return scores


def summary_row(change: str, found: Sequence[float]) -> str:
    """One line of the first table."""
    mean, low, high = found
    verdict = "earns its place" if high < 0 else "hurts" if low > 0 else "no clear difference"
    value = flatten(Recipe.of("ppo"))[change.split("=")[0]]
    shown = str(value).lower()
    return (
        f"| `{change}` | {shown} | {len(tasks_of(change))} | "
        f"{mean:+.2f} ({low:+.2f} to {high:+.2f}) | {verdict} |"
    )


def random_score(known: Mapping[str, Any], task: str) -> str:
    """The mean return of random actions."""
    return number(known["tasks"][task]["random"]["mean"])


def cell(entry: Mapping[str, Any] | None) -> str:
    """Median and quartiles of a change on a task."""
    if entry is None:
        return "-"
    low, middle, high = np.percentile(list(entry["means"].values()), [25, 50, 75])
    return f"{number(middle)} ({number(low)} to {number(high)})"


if __name__ == "__main__":
    main()

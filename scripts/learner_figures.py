#!/usr/bin/env python
"""What the learners reach with their defaults, or with few settings: figures for the documents.

    scripts/learner_figures.py [NAME ...] [--seeds 100 101 102 103 104] [--jobs 2]

Every seed is kept in the work folder (runs/figures) as soon as it is done, so the program can be
stopped and started at will. It writes docs/learner_figures.md and docs/learner_figures.json after
each figure, from all that are done; hyperparameters were chosen with other seeds (0 to 4).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from training_seeds import (
    Job,
    number,
    parsed,
    parser_of,
    rows_of,
    train_all,
    without_machine,
)

from rlpg.runs.recipe import Recipe, override
from rlpg.runs.run import versions

ROOT = Path(__file__).resolve().parents[1]
PAGE, DATA = ROOT / "docs" / "learner_figures.md", ROOT / "docs" / "learner_figures.json"


class Positions(gymnasium.ObservationWrapper[Any, Any, Any]):
    """CartPole of which only the positions are seen: one observation tells no direction."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: Any) -> Any:
        return observation[::2]


class RepeatPrevious(gymnasium.Env[Any, Any]):
    """32 steps; reward 1/28 for naming the symbol, one of four, that was seen 4 steps before.

    Source: the task of that name in POPGym (Morad et al. 2023), with rewards 0 instead of -1.
    """

    observation_space, action_space = spaces.Discrete(4), spaces.Discrete(4)
    delay, length = 4, 32

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.symbols, self.step_index = self.np_random.integers(4, size=self.length + 1), 0
        return int(self.symbols[0]), {}

    def step(self, action: Any) -> Any:
        t = self.step_index
        is_right = t >= self.delay and int(action) == self.symbols[t - self.delay]
        self.step_index = t + 1
        reward = is_right / (self.length - self.delay)
        return int(self.symbols[t + 1]), reward, t + 1 == self.length, False, {}


@dataclass(frozen=True)
class Figure:
    """An agent on an environment, and what its mean return is to be for so many of five seeds."""

    env: str | Callable[[], gymnasium.Env[Any, Any]]
    agent: str
    total_steps: int
    target: float
    needed: float  # share of the seeds
    overrides: Mapping[str, Any] = field(default_factory=dict)
    median: bool = False  # the target is the median's, whatever the share


CARTPOLE = {"target": 475, "needed": 1.0, "total_steps": 50_000}
MEMORY = {
    "policy.memory": "lstm", "rollout.num_envs": 32, "rollout.num_steps": 64,
    "learner.num_minibatches": 4, "learner.num_value_minibatches": 4, "learner.learning_rate": 1e-3,
}  # fmt: skip
FIGURES: dict[str, Figure] = {
    **{f"CartPole-v1-{agent}": Figure("CartPole-v1", agent, **CARTPOLE)  # type: ignore[arg-type]
       for agent in ("reinforce", "a2c", "ppo", "npg", "trpo")},
    "HalfCheetah-v5-ppo": Figure("HalfCheetah-v5", "ppo", 300_000, 2500, 1.0, median=True),
    "Hopper-v5-ppo": Figure("Hopper-v5", "ppo", 300_000, 2700, 1.0, median=True),
    "TMaze-10-ppo-memory": Figure("rlpg/TMaze-v0", "ppo", 120_000, 1.0, 1.0, MEMORY),
    "CartPole-positions-ppo-memory": Figure(Positions, "ppo", 100_000, 450, 0.8, MEMORY),
    "RepeatPrevious-ppo-memory": Figure(RepeatPrevious, "ppo", 300_000, 0.9, 0.8, MEMORY),
}  # fmt: skip


def main() -> None:
    """Train what is missing of the figures that are asked for, and write the page."""
    arguments = parsed(parser_of(__doc__, "NAME", "runs/figures"), FIGURES)
    jobs = {job_of(name): arguments.seeds for name in arguments.names}
    train_all(jobs, arguments.work, arguments.jobs, lambda job: record(job, arguments))


def job_of(name: str) -> Job:
    """What is to be trained for a figure."""
    figure = FIGURES[name]
    changes = {"total_steps": figure.total_steps, **figure.overrides}
    if isinstance(figure.env, str):
        changes["environment.id"] = figure.env
    return Job(name, figure.env, override(Recipe.of(figure.agent), changes), figure.target)


def record(job: Job, arguments: argparse.Namespace) -> None:
    """Add a figure to the data, and write the page anew."""
    known: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {}
    rows = rows_of(job, arguments.seeds, arguments.work)
    recipe = {key: value for key, value in rows[0]["recipe"].items() if key != "seed"}
    seeds = " ".join(str(row["seed"]) for row in rows)
    known[job.name] = {
        "seeds": [{key: value for key, value in row.items() if key != "recipe"} for row in rows],
        "recipe": recipe,
        "versions": without_machine(versions()),
        "command": f"scripts/learner_figures.py {job.name} --seeds {seeds}",
    }
    DATA.write_text(json.dumps(known, indent=1) + "\n")
    PAGE.write_text(page(known))


def page(known: Mapping[str, Any]) -> str:
    """The text of docs/learner_figures.md."""
    done = [name for name in FIGURES if name in known]
    return "\n".join([
        "# What the learners reach",
        "",
        "Generated by `scripts/learner_figures.py` (data, settings and versions:",
        "`docs/learner_figures.json`). Mean return of 100 episodes of deterministic actions with",
        "the policy at the *end* of training, for every seed that was run.",
        "",
        "| figure | steps | target | met | median (lowest to highest) | CPU time | by seed |",
        "|---|---:|---|---|---|---:|---|",
        *(summary_row(name, known[name]) for name in done),
        "",
        "## Settings that differ from the agent's defaults",
        "",
        *(f"- {name}: {differences(name)}. `{known[name]['command']}`" for name in done),
        "",
    ])  # fmt: skip


def summary_row(name: str, entry: Mapping[str, Any]) -> str:
    """One line of the table."""
    figure, rows = FIGURES[name], entry["seeds"]
    means = sorted(row["mean"] for row in rows)
    num_met = sum(mean >= figure.target for mean in means)
    is_met = num_met >= figure.needed * len(rows)
    target = f"{figure.target:g}, {round(figure.needed * len(rows))} of {len(rows)}"
    if figure.median:
        is_met, target = median(means) >= figure.target, f"median {figure.target:g}"
    by_seed = ", ".join(f"{row['seed']}: {number(row['mean'])}" for row in rows)
    return (
        f"| {name} | {entry['recipe']['total_steps']:,} | {target} | "
        f"{'yes' if is_met else 'no'}: {num_met} of {len(rows)} | "
        f"{number(median(means))} ({number(means[0])} to {number(means[-1])}) | "
        f"{median(row['cpu_seconds'] for row in rows):.0f} s | {by_seed} |"
    )


def differences(name: str) -> str:
    """The overrides of a figure, as they are typed."""
    settings = FIGURES[name].overrides
    return ", ".join(f"`{key} = {value}`" for key, value in settings.items()) or "none"


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Train the shipped agents with their recipes, write what they reached, ship a policy of each.

    scripts/retrain_agents.py [NAME ...] [--seeds 100 101 102 103 104] [--jobs 2] [--device cuda]
    scripts/retrain_agents.py --check [NAME ...]

A seed that is done is kept in the work folder (runs/agents) and not trained again unless the
recipe changed, so the program can be stopped and started at will. What it writes is generated:
agents/NAME/results.json, agents/NAME/policy/, docs/results.md, a table of README.md, and
docs/defaults.md, which compares with these results. Recipes are tuned on other seeds (0 to 4, and
200 to 204) than those that are reported.

The shipped policy is that of the median seed, not of the best one, so it shows what a recipe is
to be expected to reach. `--check` trains nothing: it evaluates the shipped policies again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import check_defaults
import numpy as np
from training_seeds import (
    Job,
    evaluated,
    number,
    parsed,
    parser_of,
    rows_of,
    train_all,
    without_machine,
)

import rlpg
from rlpg.engine.shipped import agent_for
from rlpg.runs.recipe import load_recipe
from rlpg.runs.store import load_policy, save_policy
from rlpg.verbs.scores import interquartile_mean

ROOT = Path(__file__).resolve().parents[1]
AGENTS, TABLE, README = ROOT / "agents", ROOT / "docs" / "results.md", ROOT / "README.md"
BEGIN, END = "<!-- results: written by scripts/retrain_agents.py -->", "<!-- end of results -->"
EPISODES, EVALUATION_SEED = 100, 0  # what `rlpg evaluate NAME` does when told nothing else


@dataclass(frozen=True)
class Target:
    """What mean return at the end of training which share of the seeds must reach."""

    mean: float
    needed: float = 0.8  # share of the seeds that must reach it
    note: str = ""  # for the table: where the number comes from, or why it is missed


TARGETS = {
    "CartPole-v1-reinforce": Target(475, 1.0),
    "Acrobot-v1-reinforce": Target(-90),
    "MountainCarContinuous-v0-reinforce": Target(90),
    "Pendulum-v1-reinforce": Target(-200),
    "LunarLander-v3-reinforce": Target(
        200, 1.0, note="missed: one seed of twenty lands less often"
    ),
    "InvertedPendulum-v5-reinforce": Target(990),
    "rlpg-UnitCommitment-v0-reinforce": Target(
        -5, note="optimum -4.34, random -15.86; the target is our own"
    ),
    "rlpg-Replenishment-v0-reinforce": Target(45, note="optimum 53.67, random -50.99"),
    "rlpg-Catch-v0-reinforce": Target(4.5, note="optimum 5, random -3.13"),
    "CartPole-v1-a2c": Target(475),
    "Acrobot-v1-a2c": Target(-90),
    "InvertedPendulum-v5-a2c": Target(990),
    "rlpg-UnitCommitment-v0-a2c": Target(-5, note="optimum -4.34; the target is our own"),
    "CartPole-v1-ppo": Target(475),
    "Taxi-v4-ppo": Target(7.5, note="masked; optimum 7.93, random -770"),
    "rlpg-TMaze-v0-ppo": Target(
        1.0,
        note="with memory; without it 0.5 is the most there is. Of two more seeds one (0) stays "
        "at 0.46",
    ),
    "Acrobot-v1-ppo": Target(-78),
    "MountainCar-v0-ppo": Target(-110),
    "MountainCarContinuous-v0-ppo": Target(92),
    "LunarLander-v3-ppo": Target(260),
    "LunarLanderContinuous-v3-ppo": Target(260),
    "BipedalWalker-v3-ppo": Target(260),
    "Walker2d-v5-ppo": Target(3500),
    "HalfCheetah-v5-ppo": Target(
        6000, note="6,000 is asked of the median; three of ten seeds stay below it"
    ),
    "Hopper-v5-ppo": Target(
        3000, note="3,000 is asked of the median; four of ten seeds stay below it"
    ),
    "Ant-v5-ppo": Target(
        3000, note="3,000 is asked of the median; no contact forces in the observation"
    ),
    "HalfCheetah-v5-trpo": Target(6000, note="missed by three seeds of five and by the median"),
    "Hopper-v5-trpo": Target(3000, note="3,000 is asked of the median"),
    "Walker2d-v5-trpo": Target(3500, note="one seed of five stays at a third of it"),
    "Swimmer-v5-trpo": Target(
        340, note="340 is asked of the median; two of five seeds stay below it"
    ),
    "Swimmer-v5-ppo": Target(340, note="340 is asked of the median"),
    "MinAtar-Breakout-v1-ppo": Target(20),
    "MinAtar-SpaceInvaders-v1-ppo": Target(
        100,
        note="episodes are cut after 1,000 steps, as gymnax does; whole ones of the shipped policy "
        "come to 204 (`rlpg.evaluate` with `episode_cap=10_000`)",
    ),
    "MinAtar-Asterix-v1-ppo": Target(
        15, note="15.0 is what PPO of gymnax-blines comes to in 10 million steps"
    ),
    "MinAtar-Freeway-v1-ppo": Target(
        58.8, note="58.8 is what PPO of gymnax-blines comes to in 10 million steps"
    ),
    "MinAtar-Seaquest-v1-ppo": Target(
        5, note="no figure for PPO is known to us; the target is our own, set after the runs"
    ),
    "Pendulum-v1-ppo": Target(-165, note="-165 is asked of the median"),
}


def main() -> int:
    """Exit code 0: all done; 1: a shipped policy does not do what its results say."""
    parser = parser_of(__doc__, "NAME", "runs/agents")
    parser.add_argument("--device", default="cpu", help="where policy and learner are (cpu)")
    parser.add_argument("--check", action="store_true", help="evaluate what is shipped, only")
    arguments = parsed(parser, TARGETS)
    names = arguments.names
    if arguments.check:
        return 0 if sum(map(check, names)) == len(names) else 1

    def done(job: Job) -> None:
        publish(job, arguments.seeds, arguments.work)
        write_table()
        check_defaults.write(check_defaults.known())

    jobs = {job_of(name, arguments.device): arguments.seeds for name in names}
    train_all(jobs, arguments.work, arguments.jobs, done)
    return 0


def job_of(name: str, device: str = "cpu") -> Job:
    """The training of an agent that ships."""
    recipe, target = load_recipe(AGENTS / name / "recipe.toml"), TARGETS[name].mean
    return Job(name, recipe.environment.id, recipe, target, EPISODES, EVALUATION_SEED, device)


def publish(job: Job, seeds: list[int], work: Path) -> None:
    """Write agents/NAME/results.json and the median seed's policy beside it."""
    name, recipe, target = job.name, job.recipe, TARGETS[job.name]
    rows = rows_of(job, seeds, work)
    settings = {key: value for key, value in rows[0]["recipe"].items() if key != "seed"}
    rows = [{key: value for key, value in row.items() if key != "recipe"} for row in rows]
    ordered = sorted(rows, key=lambda row: row["mean"])
    chosen = ordered[(len(ordered) - 1) // 2]["seed"]
    run = work / name / str(chosen)
    num_met = sum(row["mean"] >= target.mean for row in rows)
    results = {
        "environment": recipe.environment.id,
        "agent": recipe.agent,
        "total_steps": recipe.total_steps,
        "evaluation": f"after training, {EPISODES} episodes of deterministic actions, seed "
        f"{EVALUATION_SEED}: what `rlpg evaluate {name}` does",
        "target": target.mean,
        "target_needed": f"{round(target.needed * len(rows))} of {len(rows)} seeds",
        "target_reached": f"{num_met} of {len(rows)} seeds",
        "target_met": num_met >= target.needed * len(rows),
        "policy_seed": chosen,
        "policy_is": "that of the median seed",
        "seeds": rows,
        "recipe": settings,
        "versions": without_machine(json.loads((run / "versions.json").read_text())),
        "command": f"scripts/retrain_agents.py {name} --seeds {' '.join(map(str, seeds))}"
        + f" --device {job.device}" * (job.device != "cpu"),
    }
    (AGENTS / name / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    description, arrays = load_policy(run / "policy")
    description["versions"] = without_machine(description["versions"])
    save_policy(AGENTS / name / "policy", description, arrays)


def write_table() -> None:
    """docs/results.md and the table of README.md, from every results.json there is."""
    files = [AGENTS / name / "results.json" for name in TARGETS]
    found = [(file.parent.name, json.loads(file.read_text())) for file in files if file.exists()]
    lines = [
        "# What the shipped agents reach",
        "",
        "Generated by `scripts/retrain_agents.py`. Mean return of 100 episodes of deterministic",
        "actions with the policy at the *end* of training (not the best one on the way), for every",
        "seed that was run. `rlpg evaluate NAME` plays the shipped policy, that of the median",
        "seed. CPU time is for one seed on one thread, evaluations included: its wall time where",
        "nothing else runs (here something did, which makes CPU times longer, too); of a GPU it is",
        "the wall time, with other seeds on the same GPU. Recipes are",
        "tuned on the seeds 0 to 4 (LunarLander by REINFORCE on 200 to 204, too) and reported on",
        "others, from 100 to 119.",
        "",
        "| agent | steps | target | met | median | interquartile mean | lowest to highest "
        "| first at target, median | CPU time |",
        "|---|---:|---:|---|---:|---:|---|---:|---:|",
        *(summary_row(name, results) for name, results in found),
        "",
        "## Every seed",
        "",
        "| agent | seeds | mean return by seed | commit |",
        "|---|---|---|---|",
        *(
            f"| {name} | {', '.join(str(row['seed']) for row in results['seeds'])} | "
            f"{', '.join(number(row['mean']) for row in results['seeds'])} | "
            f"{', '.join(sorted({row.get('commit', '-') for row in results['seeds']}))} |"
            for name, results in found
        ),
    ]
    notes = [f"- {name}: {TARGETS[name].note}." for name, _ in found if TARGETS[name].note]
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join([*lines, "", *notes]).rstrip() + "\n")
    write_readme([results for _, results in found])


def write_readme(found: list[dict[str, Any]]) -> None:
    """The table of README.md: for every environment the agent that it gets."""
    lines = [
        "| environment | agent | steps | seeds | median return | lowest to highest | CPU time |",
        "|---|---|---:|---:|---:|---|---:|",
        *(readme_row(one) for one in found if one["agent"] == agent_for(one["environment"])),
    ]
    text = README.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    README.write_text("\n".join([before, "", *lines, "", after]))


def readme_row(results: dict[str, Any]) -> str:
    """The line of an environment in README.md."""
    means = sorted(row["mean"] for row in results["seeds"])
    kwargs = results["recipe"]["environment.kwargs"]
    told = "".join(f", `{name}={value}`" for name, value in kwargs.items())
    return (
        f"| {results['environment']}{told} | {results['agent']} | {results['total_steps']:,} | "
        f"{len(means)} | {number(median(means))} | {number(means[0])} to {number(means[-1])} | "
        f"{time_of(results['seeds'])} |"
    )


def time_of(rows: list[dict[str, Any]]) -> str:
    """What a seed takes."""
    key, where = ("cpu_seconds", "") if rows[0]["cpu_seconds"] else ("wall_seconds", " on a GPU")
    return f"{median(row[key] for row in rows):.0f} s{where}"


def summary_row(name: str, results: dict[str, Any]) -> str:
    """One agent's line of the table."""
    rows = results["seeds"]
    means = sorted(row["mean"] for row in rows)
    firsts = [row["first_step_at_target"] or float("inf") for row in rows]
    first = median(firsts)
    met = f"{'yes' if results['target_met'] else 'no'}: {results['target_reached']}"
    return (
        f"| {name} | {results['total_steps']:,} | {results['target']:g} | {met} | "
        f"{number(median(means))} | {number(float(interquartile_mean(np.array(means))))} | "
        f"{number(means[0])} to {number(means[-1])} | "
        f"{f'{first:,.0f}' if first < float('inf') else '-'} | {time_of(rows)} |"
    )


def check(name: str) -> bool:
    """Whether the shipped policy still does what its results say."""
    results = json.loads((AGENTS / name / "results.json").read_text())
    row = next(row for row in results["seeds"] if row["seed"] == results["policy_seed"])
    policy = rlpg.load(name)
    env, settings = results["environment"], results["recipe"]
    mean = evaluated(policy, env, EPISODES, EVALUATION_SEED, settings)["mean"]
    low, high = row["ci"]
    fits = bool(low <= mean <= high)
    verdict = "reproduced" if fits else "NOT REPRODUCED"
    print(f"{name}: {mean:.2f}, recorded {row['mean']:.2f} ({low:.2f} to {high:.2f}): {verdict}")
    return fits


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Agents that may differentiate their environment, and agents that may not, on the same tasks.

    scripts/learning_through_a_model.py                          # what is not in the report yet
    scripts/learning_through_a_model.py --tasks lqr --agents pathwise score --seeds 100 101
    scripts/learning_through_a_model.py --quick                  # a few updates, nothing written

Every run is one agent, trained on one task with one seed, and judged on fresh episodes that all
share, with deterministic actions. Writes docs/pictures/learning_through_a_model.json after every
run, skips the runs that it finds there, and ends with the picture beside it and docs/hedging.md.
Settings were chosen with the seeds 0 and 1.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from rlpg.envs.batched import Batched
from rlpg.envs.hedging import HedgingDynamics, leland_volatility
from rlpg.envs.lqr import LQRDynamics
from rlpg.envs.swing_up import SwingUpDynamics, tip_distance
from torch import Tensor
from training_seeds import SEEDS, without_machine

from rlpg.engine.components import make_learner, make_policy, resolved, seed_sequence, training_envs
from rlpg.policies import Policy
from rlpg.rollouts import TensorCollector
from rlpg.runs.recipe import Recipe, override
from rlpg.runs.run import versions

DOCS = Path(__file__).resolve().parents[1] / "docs"
REPORT, PAGE = DOCS / "pictures" / "learning_through_a_model.json", DOCS / "hedging.md"
POINTS = 40  # of a curve
FRESH = 1_000_003  # seed of the episodes that judge; the runs have small ones
COLORS = {
    "pathwise": "#2a6f97", "score": "#c0504d", "combine": "#5a9c5a", "ppo": "#777777",
    "reinforce": "#e8a33d",
}  # fmt: skip

Act = Callable[[Tensor], Tensor]  # observations [N, *O] -> actions [N, *A] for the environment
Judge = Callable[[Any, Tensor, Sequence[Tensor]], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """What is learned, for how long, and how it is judged."""

    env: str
    dynamics: Callable[..., Batched]
    kwargs: Mapping[str, Any]
    judge: Judge
    title: str
    label: str  # of the figure that the curves show
    figure: str  # its name in what `judge` returns
    mark: float | None  # that the figure is to reach; None: Leland's on the same episodes
    more_is_better: bool
    settings: Mapping[str, Any]  # for all agents
    own: Mapping[str, Mapping[str, Any]]  # by agent, `total_steps` included


def lqr(env: LQRDynamics, returns: Tensor, states: Sequence[Tensor]) -> dict[str, float]:
    best = float(env.problem.optimal_return())
    mean = float(returns.mean())
    return {"return": mean, "above optimal cost": mean / best - 1}


def hedging(env: HedgingDynamics, returns: Tensor, states: Sequence[Tensor]) -> dict[str, float]:
    wealth = states[-1][:, 2].double()
    worst = wealth <= wealth.quantile(env.tail)
    spread = float(wealth.std())
    return {
        "mean": float(wealth.mean()),
        "std": spread,
        "mean-variance": float(wealth.mean()) - env.risk_aversion / 2 * spread**2,
        "cvar": float(wealth[worst].mean()),
        "quantile": float(wealth.quantile(env.tail)),
        "std over theory": spread / env.discretization_error(),
    }


def swing_up(env: SwingUpDynamics, returns: Tensor, states: Sequence[Tensor]) -> dict[str, float]:
    near = torch.stack([tip_distance(state) < 0.25 for state in states[-10:]])  # the last second
    return {"return": float(returns.mean()), "balanced": float(near.all(0).double().mean())}


GRADIENTS = ("pathwise", "score", "combine")  # of the agent pathwise
COST = 0.002
HEDGE = {"learner.gamma": 1.0, "rollout.num_steps": 30}
# A window is an episode, so the path needs no value; and little noise, which pays costs, too.
PATH = {
    "policy.log_std_init": -4.0, "learner.learning_rate": 1e-2,
    "learner.num_value_epochs": 1, "learner.num_value_minibatches": 1,
}  # fmt: skip
SCORE = {
    "policy.log_std_init": -2.0, "rollout.num_envs": 256,
    "learner.num_value_epochs": 2, "learner.num_value_minibatches": 4,
}  # fmt: skip
CLIPPED = {
    "policy.log_std_init": -1.3, "rollout.num_envs": 256,
    "learner.learning_rate": 1e-3, "learner.learning_rate_schedule": "linear",
    "learner.num_epochs": 5, "learner.num_minibatches": 8,
    "learner.num_value_epochs": 5, "learner.num_value_minibatches": 8,
}  # fmt: skip


def kinds(total_steps: int, **settings: Any) -> dict[str, dict[str, Any]]:
    """The three kinds of gradient of the agent pathwise, with the same settings."""
    return {name: {"total_steps": total_steps, **settings} for name in GRADIENTS}


def hedgers(total_steps: int, num_envs: int) -> dict[str, dict[str, Any]]:
    """Who hedges; those that do not differentiate the environment have twice as many steps."""
    path = {**PATH, "rollout.num_envs": num_envs, "total_steps": total_steps}
    others = {"score": SCORE, "reinforce": SCORE, "ppo": CLIPPED}
    twice = {name: {**own, "total_steps": 2 * total_steps} for name, own in others.items()}
    return {"pathwise": path, "combine": path, **twice}


TASKS: Mapping[str, Task] = {
    "lqr": Task(
        "rlpg/LQR-v0", LQRDynamics, {"observe_time": True}, lqr,
        "linear-quadratic control", "cost above the optimum", "above optimal cost", 0.01, False,
        {"policy.gaussian": "clipped", "learner.gamma": 1.0, "policy.log_std_init": -1.0},
        kinds(40_000, **{"rollout.num_steps": 5}),
    ),
    "hedging": Task(
        "rlpg/Hedging-v0", HedgingDynamics, {}, hedging,
        "hedging without costs", "standard deviation over theory", "std over theory", 1.05, False,
        HEDGE, hedgers(500_000, 128),
    ),
    # The levels are about the mean and the 5 % quantile of what Leland's hedge ends with.
    "mean_variance": Task(
        "rlpg/Hedging-v0", HedgingDynamics, {"cost": COST, "level": -0.5}, hedging,
        "hedging with costs, mean-variance", "mean - variance / 2", "mean-variance", None, True,
        HEDGE, hedgers(500_000, 128),
    ),
    "cvar": Task(
        "rlpg/Hedging-v0", HedgingDynamics, {"cost": COST, "level": -1.3, "objective": "cvar"},
        hedging, "hedging with costs, CVaR", "mean of the worst 5 %", "cvar", None, True,
        HEDGE, hedgers(1_000_000, 512),
    ),
    "swing_up": Task(
        "rlpg/SwingUp-v0", SwingUpDynamics, {"exploring_starts": True}, swing_up,
        "swing-up", "share of poles balanced", "balanced", 0.95, True,
        {"rollout.num_envs": 32},
        {
            **kinds(100_000, **{"rollout.num_steps": 8, "learner.learning_rate": 3e-3}),
            "ppo": {"total_steps": 1_000_000},
        },
    ),
}  # fmt: skip
SHOWN = ("lqr", "hedging", "mean_variance", "cvar")  # nobody has balanced the pole


@torch.no_grad()
def play(env: Any, judge: Judge, act: Act, paths: int, seed: int = FRESH) -> dict[str, float]:
    """What `judge` says of fresh episodes, the same for all who are judged."""
    state = env.reset(paths, torch.Generator().manual_seed(seed))
    returns, states = torch.zeros(paths), []
    is_over = torch.zeros(paths, dtype=torch.bool)
    for _ in range(env.max_episode_steps):
        state, reward, terminated = env.step(state, act(env.observe(state)))
        returns = returns + torch.where(is_over, 0.0, reward)
        is_over = is_over | terminated
        states.append(state)
        if bool(is_over.all()):
            break
    return judge(env, returns, states)


def deterministic(policy: Policy) -> Act:
    to_env = policy.head.to_env_on(policy.device)
    return lambda obs: to_env(policy.mode(obs)[0])


def of_seller(task: Task, who: str, paths: int = 20_000, seed: int = FRESH) -> dict[str, float]:
    """What somebody ends with who hedges by a formula, or not at all."""
    env: Any = task.dynamics(**task.kwargs)
    adjusted = leland_volatility(env.volatility, env.cost, env.years / env.num_steps)
    acts: Mapping[str, Act] = {
        "no hedge": lambda obs: torch.zeros(len(obs), 1),
        "Black-Scholes": env.delta,
        "Leland": partial(env.delta, volatility=adjusted),
    }
    return play(env, task.judge, acts[who], paths, seed)


def is_reached(task: Task, figure: float, mark: float) -> bool:
    return figure > mark if task.more_is_better else figure < mark


def train(task: Task, agent: str, seed: int, *, share: float = 1.0) -> dict[str, Any]:
    """One run; `share` of its steps."""
    settings = {**task.settings, **task.own[agent], "seed": seed, "environment.id": task.env}
    settings |= {f"environment.kwargs.{key}": value for key, value in task.kwargs.items()}
    if agent in GRADIENTS:
        settings["learner.gradient"] = agent
    recipe = resolved(override(Recipe.of("pathwise" if agent in GRADIENTS else agent), settings))
    total = int(recipe.total_steps * share)
    env: Any = task.dynamics(**{k: v for k, v in task.kwargs.items() if k != "exploring_starts"})
    tests = {"paths": 1_000, "seed": FRESH + 1}
    mark = of_seller(task, "Leland", **tests)[task.figure] if task.mark is None else task.mark
    spent, reached = 0.0, None
    curve: list[list[float]] = []
    with training_envs(task.env, recipe) as (envs, _):
        policy = make_policy(envs, recipe)
        learner = make_learner(policy, recipe)
        collector = TensorCollector(
            envs, policy, seed_sequence(seed, "actions"), gradient=learner.gradient, log_prob=False
        )
        while collector.env_steps < total:
            began = time.process_time()
            progress = collector.env_steps / total
            learner.update(collector.steps(recipe.steps_per_env), progress=progress)
            spent += time.process_time() - began
            if collector.env_steps * POINTS >= total * (len(curve) + 1):
                figure = play(env, task.judge, deterministic(policy), **tests)[task.figure]
                curve.append([collector.env_steps, round(figure, 4)])
                if reached is None and is_reached(task, figure, mark):
                    reached = collector.env_steps
    result = play(env, task.judge, deterministic(policy), 20_000)
    return {
        "steps": collector.env_steps,
        "reached": reached,  # environment steps until the task's mark, on 1,000 episodes
        "cpu_seconds": round(spent, 1),  # of training
        **{key: round(value, 5) for key, value in result.items()},
        "curve": curve,
    }


def runs_of(report: Mapping[str, Any], name: str, agent: str) -> list[dict[str, Any]]:
    return [run for key, run in report["runs"].items() if key.startswith(f"{name}/{agent}/")]


def median_reached(runs: Sequence[Mapping[str, Any]]) -> float:
    """Steps until the mark, of the run in the middle; infinite where that did not come to it."""
    return median(math.inf if run["reached"] is None else run["reached"] for run in runs)


def thousands(steps: float) -> str:
    return f"{steps / 1000:,.0f} k" if math.isfinite(steps) else "not reached"


def label_of(agent: str) -> str:
    return f"pathwise, gradient `{agent}`" if agent in GRADIENTS else agent


def hedging_table(report: Mapping[str, Any], name: str) -> list[str]:
    """Markdown: who hedges by a formula, then the agents, with the medians over seeds."""
    task, known = TASKS[name], report["references"][name]
    lines = [
        f"| who | {task.label}: median (lowest to highest) | mark met | first met after | steps "
        "| CPU time |",
        "|---|---|---|---:|---:|---:|",
        *(f"| {who} | {found[task.figure]:.3f} | | | | |" for who, found in known.items()),
    ]
    mark = known["Leland"][task.figure] if task.mark is None else task.mark
    for agent in task.own:
        if runs := runs_of(report, name, agent):
            values = sorted(run[task.figure] for run in runs)
            met = sum(is_reached(task, value, mark) for value in values)
            lines.append(
                f"| {label_of(agent)} | {median(values):.3f} ({values[0]:.3f} to {values[-1]:.3f}) "
                f"| {met} of {len(runs)} | {thousands(median_reached(runs))} | "
                f"{thousands(runs[0]['steps'])} | {median(r['cpu_seconds'] for r in runs):.0f} s |"
            )
    return lines


def combine_table(report: Mapping[str, Any]) -> list[str]:
    """Markdown: the steps that each kind of gradient takes to a task's mark."""
    lines = [
        "| task | mark | pathwise | score | combine | combine / better of the two |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name in SHOWN:
        task, found = TASKS[name], {kind: runs_of(report, name, kind) for kind in GRADIENTS}
        if all(found.values()):
            steps = {kind: median_reached(runs) for kind, runs in found.items()}
            better = min(steps["pathwise"], steps["score"])
            ratio = f"{steps['combine'] / better:.2f}" if math.isfinite(better) else ""
            mark = "Leland's" if task.mark is None else f"{task.mark:g}"
            lines.append(
                f"| {task.title} | {task.label} {mark} | "
                f"{' | '.join(thousands(steps[kind]) for kind in GRADIENTS)} | {ratio} |"
            )
    return lines


def page(report: Mapping[str, Any]) -> str:
    """The text of docs/hedging.md."""
    seeds = sorted({int(key.rsplit("/", 1)[1]) for key in report["runs"]})
    sections = []
    for name in ("hedging", "mean_variance", "cvar"):
        sections += [f"## {TASKS[name].title.capitalize().replace('cvar', 'CVaR')}", ""]
        sections += [*hedging_table(report, name), ""]
    return "\n".join([
        "# Hedging an option: three agents, three kinds of gradient",
        "",
        "Generated by `scripts/learning_through_a_model.py` (data and versions:",
        "`docs/pictures/learning_through_a_model.json`; settings: the script's table `TASKS`).",
        "What the task is, and what to make of the figures:",
        "[learning through a model](learning_through_a_model.md#hedging).",
        "",
        f"Seeds {', '.join(map(str, seeds))} (where fewer have run, *mark met* counts them);",
        "settings were chosen with the seeds 0 and 1. All are judged on the same 20,000 fresh",
        "paths, with deterministic actions and the policy at the *end* of training. Those that do",
        "not differentiate the environment have twice as many steps. CPU time is that of training",
        "in one thread. The mark is 1.05 without costs, and with costs what Leland's hedge has on",
        "the same paths. *First met*: of 40 tests on 1,000 other paths; median over the seeds.",
        "",
        f"![The figures over environment steps](pictures/{REPORT.stem}.png)",
        "",
        *sections,
        "## Combine against the better of the two",
        "",
        "Environment steps after which a run first met the mark, median over the seeds.",
        "",
        *combine_table(report),
        "",
    ])  # fmt: skip


def draw(report: Mapping[str, Any]) -> Figure:
    """One picture per task: the median over seeds of each agent, and from lowest to highest."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    limits = {"hedging": (0.9, 2.5), "mean_variance": (-1.3, -0.5), "cvar": (-3.2, -1.3)}
    for axes, name in zip(figure.subplots(2, 2).flat, SHOWN, strict=True):
        task = TASKS[name]
        for agent in task.own:
            curves = [run["curve"] for run in runs_of(report, name, agent)]
            if curves:
                points = torch.tensor(curves)  # [seeds, points, 2]
                steps, values = points[0, :, 0] / 1000, points[..., 1]
                axes.plot(steps, values.median(0).values, color=COLORS[agent], lw=1.4)
                lowest, highest = values.amin(0), values.amax(0)
                axes.fill_between(steps, lowest, highest, color=COLORS[agent], alpha=0.15, lw=0)
        for who, style in (("Black-Scholes", ":"), ("Leland", "--")):
            found = report["references"].get(name, {}).get(who)
            if found and not (name == "hedging" and who == "Leland"):
                axes.axhline(found[task.figure], color="black", ls=style, lw=1)
        axes.set(title=task.title, xlabel="environment steps, thousands", ylabel=task.label)
        if name in limits:
            axes.set_ylim(limits[name])
        else:
            axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    for agent, color in COLORS.items():
        axes.plot([], [], color=color, label=label_of(agent).replace("`", ""))
    axes.plot([], [], color="black", ls=":", label="Black-Scholes delta")
    axes.plot([], [], color="black", ls="--", label="Leland's delta")
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    """Train what is missing, and write what is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", choices=TASKS, nargs="+", default=SHOWN)
    parser.add_argument("--agents", choices=COLORS, nargs="+", default=list(COLORS))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="a few updates, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"runs": {}}
    if REPORT.exists() and not options.quick:
        report = json.loads(REPORT.read_text(encoding="utf-8"))
    report["versions"] = without_machine(versions())
    report["references"] = {
        name: {who: of_seller(TASKS[name], who) for who in ("no hedge", "Black-Scholes", "Leland")}
        for name in ("hedging", "mean_variance", "cvar")
    }
    for seed in options.seeds[:1] if options.quick else options.seeds:
        for name in options.tasks:
            for agent in [a for a in options.agents if a in TASKS[name].own]:
                key = f"{name}/{agent}/{seed}"
                if key in report["runs"]:
                    continue
                run = train(TASKS[name], agent, seed, share=0.02 if options.quick else 1.0)
                report["runs"][key] = run
                said = {k: v for k, v in run.items() if k != "curve"}
                print(key, *(f"{k} {v}" for k, v in said.items()), sep=", ", flush=True)
                if not options.quick:
                    REPORT.write_text(json.dumps(report) + "\n", encoding="utf-8")
    if not options.quick:
        REPORT.write_text(json.dumps(report) + "\n", encoding="utf-8")
        draw(report).savefig(REPORT.with_suffix(".png"), dpi=90)
        PAGE.write_text(page(report), encoding="utf-8")


if __name__ == "__main__":
    main()

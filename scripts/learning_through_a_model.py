#!/usr/bin/env python
"""Agents that may differentiate their environment, and agents that may not, on the same tasks.

    scripts/learning_through_a_model.py                          # what is not in the report yet
    scripts/learning_through_a_model.py --tasks lqr --agents pathwise ppo --seeds 100 101
    scripts/learning_through_a_model.py --quick                  # a few updates, nothing written

Every run is one agent, trained on one task with one seed, and judged on fresh episodes that all
share, with deterministic actions. Writes learning_through_a_model.json and .png in docs/pictures
after every run, and skips the runs that it finds there.
"""

from __future__ import annotations

import argparse
import json
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

from rlpg.engine.components import make_learner, make_policy, resolved, seed_sequence, training_envs
from rlpg.policies import Policy
from rlpg.rollouts import TensorCollector
from rlpg.runs.recipe import Recipe, override

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
REPORT = PICTURES / "learning_through_a_model.json"
POINTS = 20  # of a curve
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
    is_reached: Callable[[dict[str, float]], bool]
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
        "std over theory": spread / env.discretization_error(),
    }


def swing_up(env: SwingUpDynamics, returns: Tensor, states: Sequence[Tensor]) -> dict[str, float]:
    near = torch.stack([tip_distance(state) < 0.25 for state in states[-10:]])  # the last second
    return {"return": float(returns.mean()), "balanced": float(near.all(0).double().mean())}


WINDOW: Mapping[str, Any] = {"rollout.num_envs": 32, "learner.num_value_minibatches": 4}
HEDGE = {"learner.gamma": 1.0, "policy.log_std_init": -2.0}
EPISODES = {"rollout.num_envs": 64, "rollout.num_steps": 30, "learner.learning_rate": 5e-3}
COST = 0.002


def kinds(total_steps: int, **settings: Any) -> dict[str, dict[str, Any]]:
    """The three kinds of gradient of the agent pathwise, with the same settings."""
    return {
        name: {**WINDOW, "learner.gradient": name, "total_steps": total_steps, **settings}
        for name in ("pathwise", "score", "combine")
    }


TASKS: Mapping[str, Task] = {
    "lqr": Task(
        "rlpg/LQR-v0", LQRDynamics, {"observe_time": True}, lqr,
        "linear-quadratic control", "cost above the optimum", "above optimal cost",
        lambda found: found["above optimal cost"] < 0.01,
        {"policy.gaussian": "clipped", "learner.gamma": 1.0, "policy.log_std_init": -1.0},
        {
            **kinds(40_000, **{"rollout.num_steps": 5, "rollout.num_envs": 64}),
            "ppo": {"total_steps": 300_000}, "reinforce": {"total_steps": 300_000},
        },
    ),
    "hedging": Task(
        "rlpg/Hedging-v0", HedgingDynamics, {}, hedging,
        "hedging without costs", "standard deviation over theory", "std over theory",
        lambda found: found["std over theory"] < 1.05,
        HEDGE,
        {
            **kinds(200_000, **EPISODES),
            "ppo": {"total_steps": 600_000}, "reinforce": {"total_steps": 600_000},
        },
    ),
    "mean_variance": Task(
        "rlpg/Hedging-v0", HedgingDynamics, {"cost": COST, "level": -0.5}, hedging,
        "hedging with costs", "mean - variance / 2", "mean-variance",
        lambda found: found["mean-variance"] > -0.62,
        HEDGE,
        {
            **kinds(400_000, **EPISODES),
            "ppo": {"total_steps": 600_000}, "reinforce": {"total_steps": 600_000},
        },
    ),
    "cvar": Task(
        "rlpg/Hedging-v0", HedgingDynamics, {"cost": COST, "level": -1.0, "objective": "cvar"},
        hedging, "hedging with costs", "mean of the worst 5 %", "cvar",
        lambda found: found["cvar"] > -1.55,
        HEDGE,
        {
            **kinds(400_000, **EPISODES | {"rollout.num_envs": 128, "learner.learning_rate": 1e-2}),
            "ppo": {"total_steps": 600_000}, "reinforce": {"total_steps": 600_000},
        },
    ),
    "swing_up": Task(
        "rlpg/SwingUp-v0", SwingUpDynamics, {"exploring_starts": True}, swing_up,
        "swing-up", "return", "return",
        lambda found: found["balanced"] >= 0.95,
        {},
        {
            **kinds(100_000, **{"rollout.num_steps": 8, "learner.learning_rate": 3e-3}),
            "ppo": {"total_steps": 1_000_000, "rollout.num_envs": 32},
        },
    ),
}  # fmt: skip


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


def train(task: Task, agent: str, seed: int, *, share: float = 1.0) -> dict[str, Any]:
    """One run; `share` of its steps."""
    name = agent if agent in ("ppo", "reinforce") else "pathwise"
    settings = {**task.settings, **task.own[agent], "seed": seed, "environment.id": task.env}
    settings |= {f"environment.kwargs.{key}": value for key, value in task.kwargs.items()}
    recipe = resolved(override(Recipe.of(name), settings))
    total = int(recipe.total_steps * share)
    env: Any = task.dynamics(**{k: v for k, v in task.kwargs.items() if k != "exploring_starts"})
    began = time.process_time()
    curve: list[list[float]] = []
    reached = None
    with training_envs(task.env, recipe) as (envs, _):
        policy = make_policy(envs, recipe)
        learner = make_learner(policy, recipe)
        collector = TensorCollector(
            envs, policy, seed_sequence(seed, "actions"), gradient=learner.gradient, log_prob=False
        )
        while collector.env_steps < total:
            progress = collector.env_steps / total
            learner.update(collector.steps(recipe.rollout.num_steps), progress=progress)
            if collector.env_steps * POINTS >= total * (len(curve) + 1):
                found = play(env, task.judge, deterministic(policy), 1_000, FRESH + 1)
                curve.append([collector.env_steps, round(found[task.figure], 4)])
                if reached is None and task.is_reached(found):
                    reached = collector.env_steps
    result = play(env, task.judge, deterministic(policy), 20_000)
    return {
        "curve": curve,
        "reached": reached,  # environment steps until the task's mark, on 1,000 episodes
        "cpu_seconds": round(time.process_time() - began, 1),
        **{key: round(value, 5) for key, value in result.items()},
    }


def references() -> dict[str, dict[str, float]]:
    """Who holds the delta of Black and Scholes or of Leland, on the same fresh paths."""
    found = {}
    for name in ("hedging", "mean_variance"):
        env: Any = HedgingDynamics(**TASKS[name].kwargs)
        adjusted = leland_volatility(env.volatility, env.cost, env.years / env.num_steps)
        for label, volatility in (("Black-Scholes", env.volatility), ("Leland", adjusted)):
            act = partial(env.delta, volatility=volatility)
            found[f"{name}/{label}"] = play(env, hedging, act, 20_000)
    return found


def table(report: Mapping[str, Any]) -> str:
    """Markdown: the medians over seeds."""
    lines = ["| task | agent | seeds | figure | reached, steps |", "|---|---|---:|---:|---:|"]
    for name, task in TASKS.items():
        for agent in task.own:
            runs = [run for key, run in report.items() if key.startswith(f"{name}/{agent}/")]
            if not runs:
                continue
            reached = [run["reached"] for run in runs if run["reached"] is not None]
            steps = f"{median(reached):,.0f}" if reached else ""
            figure = "balanced" if name == "swing_up" else task.figure
            values = [run[figure] for run in runs]
            lines.append(
                f"| {name} | {agent} | {len(runs)} | {figure} {median(values):.4f} "
                f"({min(values):.4f} to {max(values):.4f}) | {steps} ({len(reached)} of "
                f"{len(runs)}) |"
            )
    return "\n".join(lines)


def draw(report: Mapping[str, Any], known: Mapping[str, dict[str, float]]) -> Figure:
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    known_tasks = {key.split("/")[0] for key in report}
    shown = [(name, task) for name, task in TASKS.items() if name in known_tasks]
    for axes, (name, task) in zip(figure.subplots(2, 3).flat, shown, strict=False):
        for key, run in report.items():
            of, agent, _ = key.split("/")
            if of == name:
                steps, values = zip(*run["curve"], strict=True)
                axes.plot([n / 1000 for n in steps], values, color=COLORS[agent], lw=1.1, alpha=0.8)
        for label, style in (("Black-Scholes", ":"), ("Leland", "--")):
            found = known.get(f"{'mean_variance' if name == 'cvar' else name}/{label}")
            if found and not (name == "hedging" and label == "Leland"):
                axes.axhline(found[task.figure], color="black", ls=style, lw=1)
        axes.set(title=task.title, xlabel="environment steps, thousands", ylabel=task.label)
        if name == "lqr":
            axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[len(shown) :]:
        axes.axis("off")
    legend = figure.axes[-1]
    for agent, color in COLORS.items():
        label = agent if agent in ("ppo", "reinforce") else f"pathwise, gradient {agent}"
        legend.plot([], [], color=color, label=label)
    legend.plot([], [], color="black", ls=":", label="Black-Scholes delta")
    legend.plot([], [], color="black", ls="--", label="Leland's delta")
    legend.legend(frameon=False, loc="center")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--agents", choices=COLORS, nargs="+", default=list(COLORS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    parser.add_argument("--quick", action="store_true", help="a few updates, nothing written")
    parser.add_argument(
        "--report", type=Path, default=REPORT, help="JSON; the picture is beside it"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    if options.report.exists() and not options.quick:
        report = json.loads(options.report.read_text(encoding="utf-8"))
    known = references()
    for seed in options.seeds[:1] if options.quick else options.seeds:
        for name in options.tasks:
            for agent in [a for a in options.agents if a in TASKS[name].own]:
                key = f"{name}/{agent}/{seed}"
                if key in report:
                    continue
                report[key] = run = train(
                    TASKS[name], agent, seed, share=0.02 if options.quick else 1.0
                )
                said = {k: v for k, v in run.items() if k != "curve"}
                print(key, *(f"{k} {v}" for k, v in said.items()), sep=", ", flush=True)
                if not options.quick:
                    options.report.parent.mkdir(parents=True, exist_ok=True)
                    options.report.write_text(json.dumps(report) + "\n", encoding="utf-8")
    for label, found in known.items():
        print(label, *(f"{k} {v:.4f}" for k, v in found.items()), sep=", ")
    print(table(report))
    if not options.quick:
        draw(report, known).savefig(options.report.with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main()

"""Several seeds of a recipe, each trained once: what the programs that report on seeds share.

A seed that is done is kept in a work folder and not trained again unless its settings changed, so
a program that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

import rlpg
from rlpg.rollouts import EnvSource, make_envs
from rlpg.runs.recipe import Recipe, flatten

# Curves that nobody will look at; without them a run comes to the same policy, sooner.
UNWATCHED = {"evaluation.stochastic": False, "log.tensorboard": False, "checkpoint.keep_last": 1}


SEEDS = (100, 101, 102, 103, 104)  # what is reported; nothing was tuned on them


def parser_of(
    doc: str | None, metavar: str, work: str, *, jobs: int = 2, seeds: Sequence[int] = SEEDS
) -> argparse.ArgumentParser:
    """The words that programs which train several seeds share."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar=metavar, help="(all)")
    shown = f"({seeds[0]} to {seeds[-1]})"
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds, help=shown)
    parser.add_argument("--jobs", type=int, default=jobs, help=f"processes ({jobs})")
    parser.add_argument("--work", type=Path, default=Path(work), help=f"({work})")
    return parser


def parsed(parser: argparse.ArgumentParser, known: Collection[str]) -> argparse.Namespace:
    """The words typed, with all names where none was."""
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(known)):
        parser.error(f"{unknown[0]}: expected one of {', '.join(known)}")
    arguments.names = arguments.names or list(known)
    return arguments


@dataclass(frozen=True, eq=False)  # a recipe holds tables, so jobs are told apart by identity
class Job:
    """A recipe to train with several seeds."""

    name: str
    env: EnvSource  # an id, or a function at the top of a module
    recipe: Recipe
    target: float  # mean return
    episodes: int = 100  # of deterministic actions, after training
    evaluation_seed: int = 0
    device: str = "cpu"


def train_all(
    jobs: Mapping[Job, Sequence[int]], work: Path, processes: int, done: Callable[[Job], None]
) -> None:
    """Train what is missing, one process per run; `done` when a job's last seed is there."""
    todo = {job.name: set(seeds) for job, seeds in jobs.items()}
    with workers(processes) as pool:
        futures = {
            pool.submit(train_one, job, seed, work): (job, seed)
            for job, seeds in jobs.items()
            for seed in seeds
        }
        for future in as_completed(futures):
            job, seed = futures[future]
            print(f"{job.name} seed {seed}: {future.result()['mean']:.2f}", flush=True)
            todo[job.name].remove(seed)
            if not todo[job.name]:
                done(job)


def workers(processes: int) -> ProcessPoolExecutor:
    """Processes that end when this one is gone, however it ended."""
    context = get_context("spawn")
    return ProcessPoolExecutor(processes, context, end_without_parent, (os.getpid(),))


def end_without_parent(parent: int) -> None:
    """Without this, a training whose program was killed goes on to its end."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=look, daemon=True).start()


def train_one(job: Job, seed: int, work: Path) -> dict[str, Any]:
    """The row of one seed: trained now, or read from the work folder if that recipe was trained."""
    settings = plain(flatten(job.recipe) | {"seed": seed})
    folder, file = work / job.name / str(seed), work / job.name / f"{seed}.json"
    if file.exists():
        row: dict[str, Any] = json.loads(file.read_text())
        if row["recipe"].items() <= settings.items():  # a newer setting changes nothing
            return row
    file.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    wall, cpu = time.perf_counter(), cpu_seconds()
    run = rlpg.train(
        job.env,
        job.recipe.agent,
        seed=seed,
        run_dir=folder,
        recipe=job.recipe,
        overrides=UNWATCHED | {"device": job.device},
        quiet=True,
    )
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    summary = evaluated(run.policy, job.env, job.episodes, job.evaluation_seed, settings)
    row = {
        "seed": seed,
        **{key: summary[key] for key in ("mean", "std", "ci", "median", "min", "max")},
        "first_step_at_target": first_step(run.path, job.target),
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1) if job.device == "cpu" else None,
        "steps_per_second": round(job.recipe.total_steps / wall),
        "device": job.device,
        "commit": commit(),
        "recipe": settings,
    }
    file.write_text(json.dumps(row))
    return row


def cpu_seconds() -> float:
    """CPU time of this process so far, and of its worker processes that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def rows_of(job: Job, seeds: Sequence[int], work: Path) -> list[dict[str, Any]]:
    """The rows of the seeds that are done, in order."""
    files = [work / job.name / f"{seed}.json" for seed in sorted(seeds)]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def commit() -> str:
    """The commit of the code that trains, with a + where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "rlpg", "envs"], capture_output=True, text=True
    )
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def evaluated(
    policy: rlpg.Policy,
    env: EnvSource,
    episodes: int,
    seed: int,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What `rlpg evaluate` would measure, with the arguments and time limits of the training."""
    result = rlpg.evaluate(
        policy,
        env,
        episodes,
        seed,
        env_kwargs=None if callable(env) else settings["environment.kwargs"],
        max_episode_steps=settings["environment.max_episode_steps"],
        episode_cap=settings["environment.episode_cap"],
    )
    return {key: round_all(value) for key, value in result.summary().items()}


def played(env: str, act: Callable[[Any], Any], seed: int, num_envs: int = 100) -> np.ndarray:
    """Returns `[N]` of the first episode of each of N environments, whoever acts `[N, *A]`."""
    envs, _ = make_envs(env, num_envs, seed=seed)
    obs, _ = envs.reset()
    total, is_running = np.zeros(num_envs), np.ones(num_envs, dtype=bool)
    while is_running.any():
        obs, reward, terminated, truncated, _ = envs.step(act(obs))
        total += reward * is_running
        is_running &= ~(terminated | truncated)
    envs.close()
    return total


def random_actions(env: str, episodes: int) -> dict[str, float]:
    """Mean and standard deviation of the return of uniformly random actions."""
    made = rlpg.make_envs(env, 1, seed=0, backend="sync")
    made.envs.action_space.seed(0)
    returns = []
    for _ in range(episodes):
        made.envs.reset()
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = made.envs.step(made.envs.action_space.sample())
            total, ended = total + float(reward[0]), bool(terminated[0] or truncated[0])
        returns.append(total)
    made.envs.close()
    return {"mean": round(float(np.mean(returns)), 4), "std": round(float(np.std(returns)), 4)}


def first_step(run: Path, target: float) -> int | None:
    """The first evaluation during training whose mean reached the target."""
    with np.load(run / "evaluations.npz") as file:
        reached = file["results"].mean(axis=1) >= target
        return int(file["timesteps"][reached.argmax()]) if reached.any() else None


def without_machine(known: dict[str, str]) -> dict[str, str]:
    """Versions that mean something to others."""
    return {key: known[key] for key in known if key not in ("platform", "machine")}


def number(value: float) -> str:
    """Two decimals for small numbers, one for large ones."""
    return f"{value:.2f}" if abs(value) < 20 else f"{value:.1f}"


def round_all(value: Any) -> Any:
    """Numbers as they are worth reading: six decimals."""
    if isinstance(value, list):
        return [round_all(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as they come back from JSON."""
    result: dict[str, Any] = json.loads(json.dumps(settings))
    return result

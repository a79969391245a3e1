"""The figures of the learners: what a row is, that a seed is trained once, and the page."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from learner_figures import FIGURES, Positions, RepeatPrevious, job_of, page
from training_seeds import SEEDS, Job, rows_of, train_one

from rlpg.runs.recipe import override

SMALL = {"total_steps": 256, "rollout.num_envs": 2, "rollout.num_steps": 64}
QUICK = {"evaluation.episodes": 1, "evaluation.final_episodes": 1, "learner.num_minibatches": 1}


def small(name: str) -> Job:
    job = job_of(name)
    recipe = override(job.recipe, SMALL | QUICK | {"learner.num_epochs": 1})
    return dataclasses.replace(job, recipe=recipe, episodes=2)


def test_every_figure_is_a_recipe() -> None:
    for name, figure in FIGURES.items():
        assert job_of(name).recipe.total_steps == figure.total_steps


def test_a_seed_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = small("CartPole-v1-ppo")
    row = train_one(job, 3, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("training_seeds.rlpg.train", None)
        assert train_one(job, 3, tmp_path) == row
    changed = dataclasses.replace(job, recipe=override(job.recipe, {"learner.gamma": 0.9}))
    again = train_one(changed, 3, tmp_path)
    assert again["recipe"]["learner.gamma"] == 0.9
    assert [kept["recipe"] for kept in rows_of(changed, [3, 4], tmp_path)] == [again["recipe"]]
    json.dumps(again)


def test_the_page_says_what_was_met() -> None:
    seeds = [{"seed": s, "mean": mean, "cpu_seconds": 2.0} for s, mean in enumerate((1.0, 0.5))]
    entry = {"seeds": seeds, "recipe": {"total_steps": 60_000}, "command": "the command"}
    text = page({"TMaze-10-ppo-memory": entry})
    assert "| TMaze-10-ppo-memory | 60,000 | 1, 2 of 2 | no: 1 of 2 | 0.75 (0.50 to 1.00) |" in text
    assert "`policy.memory = lstm`" in text
    assert "`the command`" in text


def test_environments_that_need_memory() -> None:
    env = RepeatPrevious()
    seen, total, done = [env.reset(seed=0)[0]], 0.0, False
    while not done:
        action = seen[-1 - env.delay] if len(seen) > env.delay else 0
        obs, reward, done, _, _ = env.step(action)
        seen.append(obs)
        total += reward
    assert total == pytest.approx(1.0)
    assert len(seen) == env.length + 1
    positions = Positions()
    obs, _ = positions.reset(seed=0)
    assert obs.shape == positions.observation_space.shape == (2,)
    assert set(SEEDS).isdisjoint(range(5))


def test_a_killed_program_left_its_training_running(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; sys.path.append(sys.argv[1]); from training_seeds import workers\n"
        "if __name__ == '__main__':\n"
        "    pool = workers(1); print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 60); time.sleep(60)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(code)
    scripts = str(Path(__file__).parents[2] / "scripts")
    with subprocess.Popen(
        [sys.executable, str(program), scripts], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
        # The end of the pipe comes when the last who holds it is gone.
        has_ended, _, _ = select.select([process.stdout], [], [], 30)
        if not has_ended:
            os.kill(worker, signal.SIGKILL)
    assert has_ended

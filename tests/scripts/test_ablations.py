"""The ablations: what is trained, that it is trained once, and what the tables say."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablations
import pytest
from ablations import (
    CHANGES,
    DEFAULT,
    TASKS,
    cell,
    difference,
    job_of,
    main,
    normalized,
    page,
    tasks_of,
)
from training_seeds import Job

import rlpg
from rlpg.runs.recipe import Recipe, diff, override

TINY = {"total_steps": 64, "rollout.num_envs": 2, "rollout.num_steps": 32}


def known_of(scores: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """The data of changes on tasks; random actions have a score of 100."""
    tasks = {}
    for task, changes in scores.items():
        entries = {
            change: {
                "means": {str(200 + k): mean for k, mean in enumerate(means)},
                "cpu_seconds": 30.0,
                "commits": ["abc"],
            }
            for change, means in changes.items()
        }
        tasks[task] = {"random": {"mean": 100.0, "std": 1.0}, "changes": entries}
    return {"tasks": tasks, "command": "the command"}


def everywhere(change: str, by_task: list[list[float]], default: list[float]) -> dict[str, Any]:
    scores = zip(tasks_of(change), by_task, strict=True)
    return known_of({task: {DEFAULT: default, change: means} for task, means in scores})


def test_a_change_is_one_setting_of_the_default_agent() -> None:
    for task in TASKS:
        base = job_of(task, DEFAULT).recipe
        same = {"total_steps", "environment.id", "environment.backend"}
        assert {key for key in diff(base, Recipe.of("ppo")) if "evaluation." not in key} == same
    for change in CHANGES:
        for task in tasks_of(change):
            changed = diff(job_of(task, change).recipe, job_of(task, DEFAULT).recipe)
            assert list(changed) == [change.split("=")[0]]


def test_every_change_learns_from_as_many_steps() -> None:
    for task in TASKS:
        for change in (DEFAULT, *CHANGES):
            recipe = job_of(task, change).recipe
            rollout = recipe.rollout.num_envs * recipe.steps_per_env
            assert recipe.total_steps % rollout == 0


def test_the_difference_is_a_share_of_what_the_default_learns() -> None:
    # 200 is the default's mean, 100 that of random actions: 150 is half of what is learned.
    change = "learner.gamma=0.98"
    halves = [[150.0] * 5] * len(TASKS)
    known = everywhere(change, halves, [200.0] * 5)
    assert difference(normalized(known, change)) == (-0.5, -0.5, -0.5)
    assert "-0.50 (-0.50 to -0.50) | 0.00 | earns its place |" in page(known)
    better = everywhere(change, [[300.0] * 5] * len(TASKS), [200.0] * 5)
    assert "+1.00 (+1.00 to +1.00) | 1.00 | hurts |" in page(better)


def test_the_interval_is_over_tasks_and_over_seeds() -> None:
    change = "learner.gamma=0.98"
    by_task = [[200.0 + 10 * k] * 5 for k in range(len(TASKS))]  # the seeds are all alike
    mean, low, high = difference(normalized(everywhere(change, by_task, [200.0] * 5), change))
    assert low < mean < high
    by_seed = [[150.0, 175.0, 200.0, 225.0, 250.0]] * len(TASKS)  # the tasks are all alike
    mean, low, high = difference(normalized(everywhere(change, by_seed, [200.0] * 5), change))
    assert low < mean == 0 < high
    assert "| 0.50 | no clear difference |" in page(everywhere(change, by_seed, [200.0] * 5))


def test_a_change_that_is_not_done_on_every_task_is_not_compared() -> None:
    change, (first, *_) = "policy.activation=relu", TASKS
    known = everywhere(change, [[150.0] * 5] * len(TASKS), [200.0] * 5)
    del known["tasks"][first]["changes"][change]["means"]["204"]
    text = page(known)
    assert "`policy.activation=relu` | tanh" not in text
    assert "`policy.activation=relu`" in text.partition("Not tried yet: ")[2].partition("\n")[0]
    assert "| `policy.activation=relu` | 150.0 (150.0 to 150.0) |" in text


def test_a_cell_has_the_median_and_the_quartiles() -> None:
    known = known_of({"CartPole-v1": {DEFAULT: [500.0, 100.0, 400.0, 200.0, 300.0]}})
    entry = known["tasks"]["CartPole-v1"]["changes"][DEFAULT]
    assert cell(entry) == "300.0 (200.0 to 400.0)"
    assert cell(None) == "-"


def test_a_program_that_is_started_again_trains_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_all_here: Callable[..., None]
) -> None:
    def tiny(task: str, change: str) -> Job:
        job = job_of(task, change)
        recipe = override(job.recipe, TINY | {"learner.num_epochs": 1})
        return dataclasses.replace(job, recipe=recipe, episodes=2)

    monkeypatch.setattr(ablations, "TASKS", {"CartPole-v1": TASKS["CartPole-v1"]})
    monkeypatch.setattr(ablations, "CHANGES", ("learner.gamma=0.98",))
    monkeypatch.setattr(ablations, "EPISODES", 2)
    monkeypatch.setattr(ablations, "job_of", tiny)
    monkeypatch.setattr(ablations, "train_all", train_all_here)
    monkeypatch.setattr(ablations, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(ablations, "DATA", tmp_path / "data.json")
    words = ["learner.gamma=0.98", "--seeds", "3", "4", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["ablations.py", *words])
    main()
    text = (tmp_path / "page.md").read_text()
    (tmp_path / "work/CartPole-v1/learner.gamma=0.98/4.json").unlink()
    folders, train = [], rlpg.train

    def watched(*words: Any, run_dir: Path, **named: Any) -> rlpg.Run:
        folders.append(run_dir)
        return train(*words, run_dir=run_dir, **named)

    monkeypatch.setattr("training_seeds.rlpg.train", watched)
    main()
    assert folders == [tmp_path / "work/CartPole-v1/learner.gamma=0.98/4"]
    assert (tmp_path / "page.md").read_text().splitlines()[6:] == text.splitlines()[6:]
    known = json.loads((tmp_path / "data.json").read_text())
    assert known["tasks"]["CartPole-v1"]["changes"].keys() == {DEFAULT, "learner.gamma=0.98"}


def test_the_page_that_ships_is_of_the_data_that_ship() -> None:
    assert page(json.loads(ablations.DATA.read_text())) == ablations.PAGE.read_text()

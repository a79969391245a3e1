"""What the defaults reach: that it is the default agent, and what the report says of a task."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import check_defaults
import pytest
from check_defaults import ENVS, KEPT, REPORT, entry, job_of, line, main
from training_seeds import number, plain

from rlpg.runs.recipe import Recipe, diff, flatten


def test_every_environment_is_trained_by_the_default_agent() -> None:
    for env in ENVS:
        job = job_of(env)
        changed = diff(job.recipe, Recipe.of("ppo"))
        assert set(changed) - {"total_steps"} == {"environment.id", "evaluation.every"}
        assert job.recipe.environment.id == env
        assert job.recipe.total_steps == ENVS[env]


@pytest.mark.parametrize(("mean", "learned"), [(26.0, True), (14.0, False)])
def test_learned_is_better_by_five_standard_errors(mean: float, learned: bool) -> None:
    # standard error of the difference of means of 100: sqrt((6^2 + 8^2) / 100) = 1
    rows: list[dict[str, Any]] = [
        {**dict.fromkeys(KEPT, 0), "mean": 90.0, "std": 8.0},
        {**dict.fromkeys(KEPT, 0), "mean": mean, "std": 8.0, "seed": 1},
    ]
    found = entry("CartPole-v1", {"mean": 10.0, "std": 6.0}, rows)
    assert found["learned"] is learned
    assert all(row.keys() == set(KEPT) for row in found["seeds"])
    word, part = "yes" if learned else "no", ((90.0 + mean) / 2 - 10) / (500 - 10)
    assert line(found) == (
        f"| CartPole-v1 | 300,000 | 10.00 | 0, 1 | 90.0, {number(mean)} | {word} | 500.0 "
        f"| {part:.2f} | 0 s | - |"
    )


def test_the_page_shows_the_report_and_the_agents_that_ship() -> None:
    report = json.loads(REPORT.read_text())["environments"]
    assert [item["environment"] for item in report] == list(ENVS)
    page = REPORT.with_suffix(".md").read_text()
    assert page.endswith("\n".join(map(line, report)) + "\n")


def test_a_seed_that_is_kept_is_reported_and_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_all_here: Callable[..., None]
) -> None:
    before = json.loads(REPORT.read_text())
    folder, report = tmp_path / "work" / "CartPole-v1", tmp_path / "defaults.json"
    folder.mkdir(parents=True)
    recipe = plain(flatten(job_of("CartPole-v1").recipe) | {"seed": 10})
    row = {**dict.fromkeys(KEPT, 1), "seed": 10, "mean": 400.0, "recipe": recipe}
    (folder / "10.json").write_text(json.dumps(row))
    monkeypatch.setattr(check_defaults, "train_all", train_all_here)
    monkeypatch.setattr(check_defaults, "REPORT", report)
    other = next(item for item in before["environments"] if item["environment"] == "Taxi-v4")
    report.write_text(json.dumps({"environments": [other]}))
    monkeypatch.setattr("training_seeds.rlpg.train", None)
    words = ["CartPole-v1", "--seeds", "10", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["check_defaults.py", *words])
    assert main() == 0
    made = json.loads(report.read_text())
    assert made.keys() == before.keys()
    assert [item["environment"] for item in made["environments"]] == ["CartPole-v1", "Taxi-v4"]
    assert made["environments"][1] == other
    assert made["environments"][0].keys() == before["environments"][0].keys()
    assert made["environments"][0]["seeds"][0]["mean"] == 400.0
    row = "| CartPole-v1 | 300,000 | 23.0 | 10 | 400.0 | yes | 500.0 | 0.79 | 1 s |"
    assert row in report.with_suffix(".md").read_text()

"""What ships of an agent: every seed's row, the median seed's policy, and the pages about them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import check_defaults
import pytest
import retrain_agents
from retrain_agents import BEGIN, END, TARGETS, Target, main

import rlpg
from rlpg.runs.store import load_policy

NAME = "CartPole-v1-ppo"
RECIPE = """agent = "ppo"
total_steps = 64
environment.id = "CartPole-v1"
rollout.num_envs = 2
rollout.num_steps = 8
evaluation.every = 32
evaluation.episodes = 2
"""


@pytest.fixture
def house(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_all_here: Callable[..., None]
) -> Path:
    """A folder with one agent's recipe and a README, in place of the repository."""
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "recipe.toml").write_text(RECIPE)
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setattr(retrain_agents, "AGENTS", tmp_path)
    monkeypatch.setattr(retrain_agents, "TABLE", tmp_path / "docs" / "results.md")
    monkeypatch.setattr(retrain_agents, "README", tmp_path / "README.md")
    monkeypatch.setattr(retrain_agents, "TARGETS", {NAME: Target(-1.0), "absent": Target(1.0)})
    monkeypatch.setattr(retrain_agents, "EPISODES", 5)
    monkeypatch.setattr(retrain_agents, "agent_for", lambda env_id: "ppo")
    monkeypatch.setattr(retrain_agents, "train_all", train_all_here)
    (tmp_path / "docs").mkdir()
    report = check_defaults.REPORT.read_text()
    (tmp_path / "docs" / "defaults.json").write_text(report)
    monkeypatch.setattr(check_defaults, "REPORT", tmp_path / "docs" / "defaults.json")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, house: Path, *words: str) -> int:
    """The program, told these words."""
    work = ["--work", str(house / "work")]
    monkeypatch.setattr(sys, "argv", ["retrain_agents.py", NAME, *words, *work])
    return main()


@pytest.mark.parametrize("seeds", [(7,), (3, 1), (5, 6, 8)])
def test_the_policy_of_the_median_seed_ships(
    house: Path, monkeypatch: pytest.MonkeyPatch, seeds: tuple[int, ...]
) -> None:
    assert run(monkeypatch, house, "--seeds", *map(str, seeds)) == 0
    results = json.loads((house / NAME / "results.json").read_text())
    rows = results["seeds"]
    assert [row["seed"] for row in rows] == sorted(seeds)
    means = {row["mean"]: row["seed"] for row in rows}
    assert results["policy_seed"] == means[sorted(means)[(len(means) - 1) // 2]]
    kept = house / "work" / NAME / str(results["policy_seed"]) / "policy"
    shipped = load_policy(house / NAME / "policy")[1]
    assert {key: value.tobytes() for key, value in shipped.items()} == {
        key: value.tobytes() for key, value in load_policy(kept)[1].items()
    }
    assert "--device" not in results["command"]
    assert {"platform", "machine"}.isdisjoint(results["versions"])
    page, readme = (house / "docs" / "results.md").read_text(), (house / "README.md").read_text()
    assert f"| {NAME} | 64 | -1 | yes: {len(seeds)} of {len(seeds)} seeds |" in page
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "old" not in readme
    assert f"| CartPole-v1 | ppo | 64 | {len(seeds)} |" in readme
    defaults = (house / "docs" / "defaults.md").read_text()
    assert "| CartPole-v1 | 300,000 |" in defaults, "they are compared with the new results"


def test_a_shipped_policy_that_does_not_do_what_its_results_say_is_noticed(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, house, "--seeds", "7")
    load = rlpg.load
    monkeypatch.setattr(rlpg, "load", lambda name: load(house / name / "policy"))
    assert run(monkeypatch, house, "--check") == 0
    file = house / NAME / "results.json"
    results = json.loads(file.read_text())
    results["seeds"][0]["ci"] = [499.0, 500.0]
    file.write_text(json.dumps(results))
    assert run(monkeypatch, house, "--check") == 1
    assert "NOT REPRODUCED" in capsys.readouterr().out


def test_the_end_was_evaluated_without_the_time_limit_of_the_recipe(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = house / NAME / "recipe.toml"
    file.write_text(RECIPE + "environment.max_episode_steps = 3\n")
    run(monkeypatch, house, "--seeds", "7")
    row = json.loads((house / NAME / "results.json").read_text())["seeds"][0]
    assert (row["mean"], row["max"]) == (3, 3)


def test_the_device_that_is_asked_for_trains_and_is_named(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, devices = rlpg.train, []

    def train_here(*args: Any, overrides: dict[str, Any], **kwargs: Any) -> Any:
        devices.append(overrides["device"])
        return train(*args, overrides={**overrides, "device": "cpu"}, **kwargs)

    monkeypatch.setattr("training_seeds.rlpg.train", train_here)
    assert run(monkeypatch, house, "--seeds", "7", "--device", "cuda") == 0
    results = json.loads((house / NAME / "results.json").read_text())
    assert devices == ["cuda"]
    assert results["command"].endswith("--seeds 7 --device cuda")
    assert results["seeds"][0]["device"] == "cuda"
    assert results["seeds"][0]["cpu_seconds"] is None
    assert "on a GPU" in (house / "docs" / "results.md").read_text()


def test_every_agent_that_ships_has_a_target_and_a_recipe() -> None:
    folders = {path.parent.name for path in retrain_agents.AGENTS.glob("*/recipe.toml")}
    assert folders == set(TARGETS)

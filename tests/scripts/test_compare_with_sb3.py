"""The other library's recipes run, and stand beside ours on one page."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import compare_with_sb3
import pytest
from compare_with_sb3 import ZOO, page, schedule, train

SMALL = {"n_timesteps": 128, "n_envs": 1, "n_steps": 64, "batch_size": 64, "n_epochs": 1}


def test_a_linear_schedule_ends_at_zero() -> None:
    falls = schedule("lin_0.2")
    assert [falls(1.0), falls(0.5), falls(0.0)] == [0.2, 0.1, 0.0]
    assert schedule(0.2) == 0.2


def test_the_page_has_both_sides() -> None:
    row = {"seed": 100, "mean": 480.0, "total_steps": 100_000, "cpu_seconds": 30.0}
    text = page({"CartPole-v1": [row, row | {"seed": 101, "mean": 500.0}]})
    assert "| Stable-Baselines3 PPO | 100,000 | 490.0 | 490.0 | 100: 480.0, 101: 500.0" in text
    assert "| CartPole-v1 | rlpg reinforce | 100,000 | 500.0 |" in text


def test_the_page_that_ships_is_of_the_data_and_the_agents_that_ship() -> None:
    """Two more agents for CartPole were added, and the page went on to show one."""
    assert page(json.loads(compare_with_sb3.DATA.read_text())) == compare_with_sb3.PAGE.read_text()


@pytest.mark.skipif(
    importlib.util.find_spec("stable_baselines3") is None, reason="the extra bench is missing"
)
@pytest.mark.parametrize("env", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
def test_a_recipe_of_the_zoo_is_trained_once(
    env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_with_sb3, "EPISODES", 2)
    assert env in ZOO
    row = train(env, 3, tmp_path, **SMALL)
    assert row == train(env, 3, tmp_path, n_timesteps=None)  # not again
    assert row[1]["total_steps"] == 128

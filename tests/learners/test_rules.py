"""The rules behind `auto`: what they say, and that a run is trained with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import rlpg
from rlpg.engine.components import num_continuous
from rlpg.learners import rules
from rlpg.learners.settings import AGENTS
from rlpg.runs.recipe import Recipe, flatten, load_recipe

BOX = spaces.Box(-1.0, 1.0, (2, 3))


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (BOX, 6),
        (spaces.Discrete(3), 0),
        (spaces.MultiBinary(3), 0),
        (spaces.Box(0, 255, (4,), np.uint8), 0),
        (spaces.Tuple([BOX, spaces.Discrete(2), spaces.Dict(a=BOX)]), 12),
    ],
)
def test_continuous_dimensions_of_an_action(space: Any, expected: int) -> None:
    assert num_continuous(space) == expected


@pytest.mark.parametrize(
    ("num_dims", "expected"),
    [(0, 0.5), (1, 0.5), (2, 0.05), (3, -0.21), (6, -0.66), (10, -1.0), (17, -1.0), (1000, -1.0)],
)
def test_the_more_dimensions_an_action_has_the_narrower_is_the_first_law(
    num_dims: int, expected: float
) -> None:
    assert rules.log_std_init(num_dims) == expected


@pytest.mark.parametrize(
    ("wanted", "number", "length", "expected"),
    [
        ("auto", 2048, None, 32),  # of 64 samples
        ("auto", 63, None, 1),
        ("auto", 16, 128, 4),  # of 4 sequences
        ("auto", 16, 32, 4),
        ("auto", 64, 8, 8),  # of 64 samples, in 8 sequences
        ("auto", 3, 128, 1),
        (16, 16, 128, 16),  # what is asked for is done
        (5, 2048, None, 5),
    ],
)
def test_minibatches_are_of_64_samples_or_of_4_sequences(
    wanted: Any, number: int, length: int | None, expected: int
) -> None:
    assert rules.num_minibatches(wanted, number, length) == expected


@pytest.mark.parametrize("agent", AGENTS)
def test_every_setting_that_can_be_auto_has_a_reason(agent: str) -> None:
    autos = {key for key, value in flatten(Recipe.of(agent)).items() if value == "auto"}
    assert autos
    assert autos <= set(rules.REASONS)


@pytest.mark.parametrize(
    ("env", "agent", "said", "expected"),
    [
        ("Pendulum-v1", "ppo", {}, 0.5),
        ("Pendulum-v1", "reinforce", {}, 0.0),
        ("Pendulum-v1", "reinforce", {"policy.log_std_init": "auto"}, 0.5),
        ("Pendulum-v1", "ppo", {"policy.log_std_init": -1.0}, -1.0),
    ],
)
def test_a_run_begins_with_the_width_of_the_rule_and_its_recipe_says_so(
    env: str, agent: str, said: dict[str, Any], expected: float, tmp_path: Path
) -> None:
    small = {"rollout.num_envs": 2, "rollout.num_steps": 8, "evaluation.final_episodes": 1}
    run = rlpg.train(
        env, agent, recipe="default", total_steps=16, run_dir=tmp_path / "run", quiet=True,
        overrides={**small, **said, "learner.num_value_epochs": 1},
    )  # fmt: skip
    assert load_recipe(run.path / "recipe.toml").policy.log_std_init == expected
    assert run.policy.describe()["head"]["log_std_init"] == expected

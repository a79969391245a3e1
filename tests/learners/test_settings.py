"""What each learner can be told, and what follows from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlpg import PPO, Learner, Reinforce
from rlpg.errors import RecipeError
from rlpg.learners.settings import (
    AGENTS,
    LearnerSettings,
    NaturalSettings,
    PPOSettings,
    agents_with,
)
from rlpg.runs.recipe import Recipe, flatten

sys.path.append(str(Path(__file__).parent))
from made import make_policy


@pytest.mark.parametrize("baseline", ["none", "moving_average", "time_step", "leave_one_out"])
def test_gae_lambda_with_a_baseline_that_cannot_predict_is_refused(baseline: str) -> None:
    """It was ignored, and recorded all the same."""
    with pytest.raises(RecipeError, match=f"none or 1 with baseline {baseline}, which does not"):
        LearnerSettings(baseline=baseline, gae_lambda=0.9)
    for whole in ("auto", None, 1.0):
        LearnerSettings(baseline=baseline, gae_lambda=whole)
    for predicting in ("linear", "value", "my:Own"):
        LearnerSettings(baseline=predicting, gae_lambda=0.9)


def test_the_bounds_of_the_adaptive_learning_rate_are_in_order() -> None:
    with pytest.raises(RecipeError, match="min_learning_rate: expected at most"):
        PPOSettings(min_learning_rate=1.0)


def test_a_setting_without_meaning_is_not_there() -> None:
    assert not {"learning_rate", "max_grad_norm"} & set(NaturalSettings().values())
    assert agents_with("learning_rate") == ["reinforce", "a2c", "ppo", "pathwise"]
    assert agents_with("clip_range") == ["ppo"]
    assert agents_with("nothing") == []


@pytest.mark.parametrize("name", AGENTS)
def test_the_defaults_of_an_agent_are_its_own(name: str) -> None:
    flat = flatten(Recipe.of(name))
    assert {key: flat[key] for key in AGENTS[name].defaults} == dict(AGENTS[name].defaults)
    assert type(Recipe.of(name).learner) is AGENTS[name].settings


@pytest.mark.parametrize(("name", "learner"), [("reinforce", Reinforce), ("ppo", PPO)])
def test_a_class_has_the_defaults_of_its_agent(name: str, learner: type[Learner]) -> None:
    """`rlpg.PPO(policy)` had those of `reinforce`."""
    assert learner(make_policy()).settings == Recipe.of(name).learner


def test_importing_the_learners_imports_no_torch() -> None:
    code = "import sys, rlpg.learners, rlpg.learners.settings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

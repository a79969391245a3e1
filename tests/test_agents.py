"""The shipped agents: each loads, fits its environment, and does about what its results say.

The full reproduction is `scripts/retrain_agents.py --check`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import rlpg
from rlpg.engine.assembly import Hooks, assembled
from rlpg.engine.components import log_std_init, resolved
from rlpg.engine.evaluator import check_spaces
from rlpg.engine.loading import load_saved
from rlpg.engine.shipped import (
    shipped_agents,
    shipped_folder,
    shipped_recipe,
    shipped_results,
)
from rlpg.errors import RlpgError
from rlpg.learners import rules
from rlpg.policies.references import UserParts
from rlpg.policies.spaces import num_continuous
from rlpg.runs.recipe import Recipe, flatten, load_recipe, override
from rlpg.verbs.evaluation import evaluate_saved

EXPECTED = {
    "Acrobot-v1-reinforce",
    "CartPole-v1-reinforce",
    "InvertedPendulum-v5-reinforce",
    "LunarLander-v3-reinforce",
    "MountainCarContinuous-v0-reinforce",
    "Pendulum-v1-reinforce",
    "rlpg-Catch-v0-reinforce",
    "rlpg-Replenishment-v0-reinforce",
    "rlpg-UnitCommitment-v0-reinforce",
}
EPISODES = 3
LARGEST_POLICY = 300_000  # bytes

every_agent = pytest.mark.parametrize("name", shipped_agents())


def results_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shipped_folder(name) / "results.json").read_text())
    return found


def shipped_row(results: dict[str, Any]) -> dict[str, Any]:
    """The seed whose policy is shipped."""
    rows: list[dict[str, Any]] = results["seeds"]
    return next(row for row in rows if row["seed"] == results["policy_seed"])


def test_what_was_promised_is_shipped() -> None:
    assert set(shipped_agents()) >= EXPECTED


def test_the_list_of_agents_has_a_line_of_results_for_each() -> None:
    lines = dict(shipped_results())
    assert list(lines) == shipped_agents()
    assert all("steps" in line and "seeds" in line for line in lines.values())


@every_agent
def test_an_agent_is_found_by_its_environment(name: str) -> None:
    results = results_of(name)
    recipe = load_recipe(shipped_folder(name) / "recipe.toml")
    assert recipe.environment.id == results["environment"]
    assert shipped_recipe(recipe.environment.id, recipe.agent) == recipe
    assert recipe.total_steps == results["total_steps"]


@every_agent
def test_results_were_made_with_the_recipe_that_is_shipped(name: str) -> None:
    made_with = results_of(name)["recipe"]
    recipe = load_recipe(shipped_folder(name) / "recipe.toml")
    space = load_saved(name).policy.head.space
    width = log_std_init(recipe, space)
    auto = {"rollout.num_steps": recipe.steps_per_env, "policy.log_std_init": width}
    by_rule = override(resolved(recipe), auto)
    said, came_to = (json.loads(json.dumps(flatten(each))) for each in (recipe, by_rule))
    if made_with.get("learner.num_minibatches") == "auto":  # of 64 samples, for any action
        of_64 = recipe.rollout.num_envs * recipe.steps_per_env // rules.MINIBATCH_SIZE
        is_wide = num_continuous(space) >= rules.MANY
        made_with["learner.num_minibatches"] = of_64 if is_wide else "auto"
    for key, value in made_with.items():  # a newer setting did not exist for the results
        was_number = said[key] == "auto" != value  # before there was a rule, which says the same
        assert (came_to if was_number else said)[key] == value, key


@every_agent
def test_results_have_at_least_five_seeds_and_ship_the_median_one(name: str) -> None:
    results = results_of(name)
    seeds = [row["seed"] for row in results["seeds"]]
    means = sorted(row["mean"] for row in results["seeds"])
    assert len(set(seeds)) == len(seeds) >= 5
    assert shipped_row(results)["mean"] == means[(len(means) - 1) // 2]


@every_agent
def test_the_policy_is_small_and_fits_its_environment(name: str) -> None:
    saved = load_saved(name)
    size = saved.path.stat().st_size
    assert size < LARGEST_POLICY
    kwargs = saved.environment["kwargs"]
    made = rlpg.make_envs(saved.environment["id"], 1, seed=0, kwargs=kwargs)
    try:
        check_spaces(saved.policy, made.envs)
    finally:
        made.envs.close()


@every_agent
def test_a_few_episodes_do_about_what_the_results_say(name: str) -> None:
    row = shipped_row(results_of(name))
    evaluation = evaluate_saved(load_saved(name), episodes=EPISODES, seed=1)
    # Two samples of one law: their means differ by a few standard errors. A policy that hardly
    # ever fails may do so here for the first time: hence also 5 % of the return.
    error = row["std"] * math.sqrt(1 / EPISODES + 1 / 100)
    assert abs(evaluation.mean - row["mean"]) < 4 * error + 0.05 * abs(row["mean"])


@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.spec])
def test_the_arguments_of_a_shipped_recipe_are_not_for_an_environment_object(
    make: Callable[[str], Any], tmp_path: Path
) -> None:
    """`rlpg.train(gymnasium.make("Ant-v5"))` was refused for arguments that nobody had given."""
    recipe = load_recipe(shipped_folder("Ant-v5-ppo") / "recipe.toml")
    assert recipe.environment.kwargs
    quick = {
        "rollout.num_envs": 2, "rollout.num_steps": 32, "evaluation.episodes": 1,
        "evaluation.stochastic": False, "evaluation.final_episodes": 1,
        "environment.max_episode_steps": 20,
    }  # fmt: skip
    run = rlpg.train(
        make("Ant-v5"), total_steps=64, run_dir=tmp_path / "run", overrides=quick, quiet=True
    )
    assert load_recipe(run.path / "recipe.toml").environment.kwargs == {}
    assert run.policy.observations.space.shape == gymnasium.make("Ant-v5").observation_space.shape


MOVING = "rlpg.gradients.baselines:MovingAverage"
STAND_INS = {"discrete": "CartPole-v1", "continuous": "Pendulum-v1"}  # made in no time


@every_agent
@pytest.mark.parametrize("change", [
    {"learner.baseline": "none"}, {"learner.baseline": "time_step"}, {"learner.baseline": MOVING},
    {"policy.shared_torso": True},
], ids=["no baseline", "time step", "own baseline", "shared torso"])  # fmt: skip
def test_an_option_was_refused_for_what_only_the_shipped_recipe_said(
    name: str, change: dict[str, Any]
) -> None:
    """LunarLander's recipes say `gae_lambda`, many say `num_value_epochs`; nobody had typed it."""
    recipe = load_recipe(shipped_folder(name) / "recipe.toml")
    if recipe.agent == "trpo" and "policy.shared_torso" in change:
        return  # it has no use for one, with any recipe
    is_continuous = isinstance(load_saved(name).policy.head.space, gymnasium.spaces.Box)
    env = STAND_INS["continuous" if is_continuous else "discrete"]
    stand_in = {"environment.id": env, "environment.kwargs": {}, "policy.images": "auto"}
    changed, parts = override(recipe, change | stand_in), UserParts(import_modules=True)
    assert changed.learner.gae_lambda in (recipe.learner.gae_lambda, "auto")
    with assembled(env, resolved(changed, parts), parts, Hooks(), quiet=True):
        pass
    with pytest.raises(RlpgError, match="gae_lambda"):
        override(recipe, {"learner.baseline": "none", "learner.gae_lambda": 0.5})  # it was typed


def test_a_run_that_goes_on_keeps_what_its_recipe_says_beside_its_own_baseline() -> None:
    recipe = override(Recipe.of("ppo"), {"learner.baseline": MOVING, "learner.gae_lambda": 1.0})
    assert override(recipe, {"learner.baseline": MOVING}) == recipe

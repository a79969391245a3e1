"""Warnings of a run in trouble: each once, with the setting to try, and none of a healthy run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

import rlpg
from rlpg.engine.evaluator import Evaluation
from rlpg.engine.trouble import ENTRIES, Trouble
from rlpg.errors import RlpgWarning
from rlpg.runs.recipe import Recipe, override


def warned(
    values: dict[str, list[float]], *, agent: str = "ppo", is_discrete: bool = True,
    start: float = 0.0, numbers: int = 1, returns: Sequence[float] = (), **settings: Any,
) -> list[str]:  # fmt: skip
    """What is said during a run of 1,000 steps that goes through the values from `start` on, and
    through episodes with these returns, each entry of the log with every `len(values)`-th."""
    told: list[str] = []
    changes = {n if "." in n else f"learner.{n}": value for n, value in settings.items()}
    recipe = override(Recipe.of(agent), {"total_steps": 1000, **changes})
    head: Any = SimpleNamespace(is_discrete=is_discrete, action_shape=(numbers,))
    trouble = Trouble(recipe, head, told.append)
    length = len(next(iter(values.values())))
    for k in range(length):
        step = round(1000 * (start + (1 - start) * (k + 1) / length))
        trouble.episodes(returns[k::length])
        trouble(step, {f"train/{tag}": row[k] for tag, row in values.items()})
    return told


def test_a_healthy_run_is_left_alone() -> None:
    n = 100
    assert (
        warned(
            {
                "explained_variance": [0.0, 0.0] + [0.6] * (n - 2),
                "approx_kl": [0.01] * n,
                "clip_fraction": [0.2] * n,
                "entropy": [0.7 - 0.005 * k for k in range(n)],
            },
            target_kl=0.01,
        )
        == []
    )


def test_a_value_network_that_explains_nothing() -> None:
    (told,) = warned({"explained_variance": [-0.2] * 200}, value_learning_rate=0.001)
    assert told == (
        "step 250: the value network explains 0% of the returns' variance after 25% of the budget; "
        "try a higher learner.value_learning_rate (it is 0.001) or more learner.num_value_epochs"
    )
    # Too early, too few entries, or a baseline that is not learned so: nothing is said.
    assert warned({"explained_variance": [-0.2] * (ENTRIES - 1)}) == []
    assert (
        warned({"explained_variance": [-0.2] * 40}, agent="reinforce", baseline="moving_average")
        == []
    )
    values = [-0.2] * 2400 + [0.9] * 7600
    assert len(warned({"explained_variance": values})) == 0  # the first 24 % of the budget


@pytest.mark.parametrize(
    ("likely", "sampled", "step", "num_warnings"),
    [
        ([0.0] * 10, [0.8, 0.9] * 5, 950, 1),
        ([0.0] * 10, [0.8, 0.9] * 5, 899, 0),  # they may well become good
        ([0.0] * 5 + [0.9] * 5, [0.8, 0.9] * 5, 1000, 0),  # no surer than three standard errors
        ([0.7] * 10, [0.8, 0.9] * 5, 1000, 0),  # worse, but most of what was learned is there
        ([0.9] * 10, [0.8, 0.9] * 5, 1000, 0),
        ([0.0] * 10, [0.0, 0.1] * 5, 1000, 0),  # nothing was learned that could be lost
        (None, [0.8, 0.9] * 5, 1000, 0),
        ([0.0] * 10, None, 1000, 0),
    ],
)
def test_a_run_whose_most_likely_actions_lose_what_it_learned_ended_without_a_word(
    likely: list[float] | None, sampled: list[float] | None, step: int, num_warnings: int
) -> None:
    """Sampled, it found the goal of a maze of pictures in four of five episodes: it "reached 0"."""
    told = list[str]()
    head: Any = SimpleNamespace(is_discrete=True, action_shape=(1,))
    trouble = Trouble(override(Recipe.of("ppo"), {"total_steps": 1000}), head, told.append)
    trouble.episodes([0.0, 0.1] * 25)
    trouble.episodes([0.8] * 50)
    given = {"eval": likely, "eval_stochastic": sampled}
    evaluations = {
        name: Evaluation(np.array(returns), np.ones(len(returns), int), name == "eval")
        for name, returns in given.items()
        if returns
    }
    for _ in range(2):  # said once
        trouble.evaluated(step, evaluations)
    assert len(told) == num_warnings
    if told:
        assert told[0].startswith(
            "step 950: the most likely actions return 0.00, sampled ones 0.85"
        )


class Alternating(gymnasium.Env[np.ndarray, np.int64]):
    """One step of reward for the side that the last reward was not for, and nothing to see it by;
    four other actions end the episode."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(6)

    def reset(self, **given: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**given)
        self._wanted = self._steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        is_right = bool(action == self._wanted)
        self._wanted ^= is_right
        self._steps += 1
        return np.ones(1, np.float32), float(is_right), action > 1, self._steps == 30, {}


def test_a_few_short_episodes_at_the_start_say_nothing_of_what_was_learned() -> None:
    """Those that are over after 96 steps are the short ones."""
    told = list[str]()
    head: Any = SimpleNamespace(is_discrete=True, action_shape=(1,))
    trouble = Trouble(override(Recipe.of("ppo"), {"total_steps": 96}), head, told.append)
    trouble.episodes([10.0, 11.0] * 5)
    trouble.evaluated(
        96,
        {
            "eval": Evaluation(np.full(10, 9.0), np.full(10, 9), True),
            "eval_stochastic": Evaluation(np.full(10, 30.0), np.full(10, 30), False),
        },
    )
    assert not told


def test_a_run_says_that_its_most_likely_actions_are_not_its_good_ones(tmp_path: Path) -> None:
    settings = {"rollout.num_steps": 32, "learner.learning_rate": 3e-3}
    with pytest.warns(RlpgWarning, match=r"likely actions return [01]\.00, sampled ones 1") as told:
        rlpg.train(Alternating, "ppo", total_steps=6000, run_dir=tmp_path, overrides=settings)
    assert len(told) == 1


def test_a_verdict_came_after_102_percent_of_the_budget() -> None:
    """The last rollout may go beyond it."""
    recipe, told = override(Recipe.of("ppo"), {"total_steps": 1000}), list[str]()
    head: Any = SimpleNamespace(is_discrete=True, action_shape=(1,))
    trouble = Trouble(recipe, head, told.append)
    for _ in range(ENTRIES):
        trouble(1024, {"train/explained_variance": -0.2})
    assert "after 100% of the budget" in told[0]


@pytest.mark.parametrize(
    ("returns", "num_warnings"),
    [
        ([500.0] * 200, 0),  # CartPole, solved
        ([500.0, 500.0, 500.0, 450.0, 490.0] * 40, 0),
        ([20.0] * 5 + [500.0] * 195, 0),  # what came before the last entries does not count
        ([-200.0] * 200, 0),  # MountainCar before the goal was ever reached
        ([0.0] * 200, 0),  # a reward that is never found
        ([0.0, 1.0] * 100, 1),
        ([500.0, 100.0] * 100, 1),
        ([-1200.0, -800.0] * 100, 1),
        ([20.0, 10.0] * 30 + [60.0, 30.0] * 70, 0),  # it learns all the same
        ([20.0, 10.0] * 30 + [21.0, 12.0] * 70, 1),
        ([7.0], 1),  # one episode tells nothing
        ([], 1),
    ],
)
def test_a_value_network_was_blamed_where_returns_hardly_vary(
    returns: list[float], num_warnings: int
) -> None:
    """A run of `make train` that had solved CartPole was told to learn its values faster."""
    explained = [0.9] * 60 + [0.03] * 140
    assert len(warned({"explained_variance": explained}, returns=returns)) == num_warnings


@pytest.mark.parametrize(
    ("agent", "settings", "kl"),
    [
        ("ppo", {"target_kl": 0.01}, 0.05),
        ("ppo", {"desired_kl": 0.02}, 0.07),
        ("npg", {"max_kl": 0.01}, 0.04),
    ],
)
def test_updates_that_go_far_beyond_their_target(
    agent: str, settings: dict[str, Any], kl: float
) -> None:
    values = {"approx_kl": [kl] * 50}
    (told,) = warned(values, agent=agent, **settings)
    ((name, target),) = settings.items()
    assert f"a KL divergence of {kl:g}, learner.{name} is {target:g}; try a lower" in told
    assert warned({"approx_kl": [2 * target] * 50}, agent=agent, **settings) == []
    assert warned({"approx_kl": [9.0] * 50}, agent="a2c") == []  # which has no target


@pytest.mark.parametrize("agent", ["ppo", "a2c", "npg", "trpo", "pathwise"])
def test_npg_was_told_to_lower_a_learning_rate_that_it_refuses(agent: str) -> None:
    recipe = Recipe.of(agent)
    told = warned({"approx_kl": [9.0] * 50}, agent=agent)
    told += warned({"entropy": [0.7] + [0.001] * 99}, agent=agent)
    assert len(told) == (2 if agent in ("npg", "trpo") else 1)
    for key in re.findall(r"learner\.(\w+)", " ".join(told)):
        assert key in recipe.learner.names()


def test_a_shared_torso_was_told_of_a_value_network_of_its_own() -> None:
    (told,) = warned({"explained_variance": [0.0] * 200}, **{"policy.shared_torso": True})
    assert told.endswith("; try a higher learner.value_coef (it is 0.5)")


def test_ratios_that_are_mostly_clipped() -> None:
    (told,) = warned({"clip_fraction": [0.7] * 50}, num_epochs=30)
    assert "70% of the probability ratios" in told
    assert "fewer learner.num_epochs (it is 30)" in told
    assert warned({"clip_fraction": [0.6] * 50}) == []


def test_a_policy_that_chooses_no_more() -> None:
    values = [0.7] + [0.001] * 99
    (told,) = warned({"entropy": values}, entropy_coef=0.003)
    assert "entropy has collapsed from 0.70 to 0.00" in told
    assert "a higher learner.entropy_coef (it is 0.003)" in told
    assert warned({"entropy": [0.7] + [0.001] * 99}, start=0.5) == []  # late: it has learned


def test_deviations_of_actions_that_grow_or_vanish() -> None:
    rising = [2 * (1.0 + math.log(1 + 0.1 * k)) for k in range(100)]  # two numbers per action
    (told,) = warned({"entropy": rising}, is_discrete=False, numbers=2)
    assert "the standard deviation of the actions has grown 3." in told
    falling = [1.0] + [1.0 - math.log(21)] * 99
    (told,) = warned({"entropy": falling}, is_discrete=False)
    assert "collapsed from 1.00 to -2.04" in told
    assert warned({"entropy": [1.0] + [1.0 - math.log(19)] * 99}, is_discrete=False) == []


def test_figures_that_are_no_numbers_say_nothing() -> None:
    assert warned({"explained_variance": [math.nan] * 99, "entropy": [math.nan] * 99}) == []

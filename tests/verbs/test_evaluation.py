"""Evaluation: the right episodes, honest figures, nothing changed by looking."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

import rlpg
from rlpg.engine.components import seed_sequence
from rlpg.engine.evaluator import Evaluation, Evaluator
from rlpg.engine.loading import load_saved
from rlpg.errors import EnvironmentFault, FileError, SpaceError, UsageError
from rlpg.policies import Policy, StandardPolicy
from rlpg.rollouts import derived_seed, make_envs
from rlpg.runs.recipe import Recipe, override
from rlpg.verbs.evaluation import evaluate, evaluate_saved

SHORT, LONG = 1, 40


class ShortOrLong(gymnasium.Env[np.ndarray, int]):
    """Pays 1 per step; the parity of an episode's seed says whether it has 1 step or 40."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.closed = scale, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = length_of(seed)
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return self._obs(), self.scale, self.left == 0, False, {}

    def _obs(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def close(self) -> None:
        self.closed = True


def length_of(seed: int | None) -> int:
    return SHORT if seed is None or seed % 2 else LONG


class Endless(ShortOrLong):
    def step(self, action: Any) -> Any:
        return self._obs(), -1.0, False, False, {}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    gymnasium.register("test/ShortOrLong-v0", ShortOrLong, max_episode_steps=200)
    gymnasium.register("test/Endless-v0", Endless)
    yield
    for name in ("test/ShortOrLong-v0", "test/Endless-v0"):
        del gymnasium.registry[name]


def policy_for(env: str) -> Policy:
    made = gymnasium.make(env)
    return StandardPolicy(
        made.observation_space, made.action_space, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture
def policy() -> Policy:
    return policy_for("test/ShortOrLong-v0")


def same(one: Evaluation, other: Evaluation) -> bool:
    return bool(
        np.array_equal(one.returns, other.returns) and np.array_equal(one.lengths, other.lengths)
    )


# ------------------------------------------------------------------------------ which episodes


@pytest.mark.parametrize(("episodes", "num_envs"), [(200, 20), (50, 7), (3, 64), (5, 1)])
def test_every_copy_gives_its_first_episodes(policy: Policy, episodes: int, num_envs: int) -> None:
    evaluation = evaluate(policy, "test/ShortOrLong-v0", episodes, seed=5, num_envs=num_envs)
    run, copies = np.random.SeedSequence(5), min(episodes, num_envs)
    quota = [episodes // copies + (n < episodes % copies) for n in range(copies)]
    expected = [length_of(derived_seed(run, n, k)) for n in range(copies) for k in range(quota[n])]
    assert evaluation.lengths.tolist() == expected
    assert evaluation.returns.tolist() == expected


def first_to_finish(seed: int, episodes: int, copies: int) -> list[int]:
    """What not to do: the lengths of whichever episodes end first."""
    run, ends = np.random.SeedSequence(seed), []
    for n in range(copies):
        at = 0
        for k in range(episodes):
            at += (length := length_of(derived_seed(run, n, k)))
            ends.append((at, length))
    return [length for _, length in sorted(ends)[:episodes]]


def test_short_episodes_are_not_favored(policy: Policy) -> None:
    # Half the episodes have 1 step, half 40: mean 20.5, deviation 19.5; 16 x 40 episodes.
    mean, four_deviations = 20.5, 4 * 19.5 / np.sqrt(16 * 40)
    fair = [
        evaluate(policy, "test/ShortOrLong-v0", 40, seed, num_envs=20).mean for seed in range(16)
    ]
    assert abs(np.mean(fair) - mean) < four_deviations
    favored = [first_to_finish(seed, 40, 20) for seed in range(16)]
    assert np.mean(favored) < mean - four_deviations, "this test would have noticed"


def test_a_cap_ends_what_has_no_end_and_is_said() -> None:
    evaluation = evaluate(policy_for("test/Endless-v0"), "test/Endless-v0", 3, episode_cap=25)
    assert evaluation.lengths.tolist() == [25, 25, 25]
    assert evaluation.returns.tolist() == [-25.0] * 3
    assert "capped at 25 steps per episode" in evaluation.environments


def test_an_endless_vector_environment_is_an_error_not_a_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlpg.engine.evaluator.MOST_STEPS", 200)
    envs = SyncVectorEnv([Endless, Endless])
    with pytest.raises(EnvironmentFault, match=r"2 have not after .* time limit"):
        evaluate(policy_for("test/Endless-v0"), envs, 2)


# ------------------------------------------------------------------------------------- figures


def test_the_figures_are_those_of_the_table() -> None:
    returns, lengths = np.array([1.0, 2.0, 6.0]), np.array([3, 9, 4])
    evaluation = Evaluation(returns, lengths, deterministic=False)
    summary = evaluation.summary()
    assert (summary["mean"], summary["median"], summary["median_length"]) == (3.0, 2.0, 4.0)
    assert (summary["min"], summary["max"], summary["episodes"]) == (1.0, 6.0, 3)
    assert summary["std"] == pytest.approx(np.sqrt((4 + 1 + 9) / 2))
    assert evaluation.table() == [
        {"return": 1.0, "length": 3},
        {"return": 2.0, "length": 9},
        {"return": 6.0, "length": 4},
    ]
    assert "3 episodes" in str(evaluation)
    assert "sampled actions" in str(evaluation)


def test_one_episode_has_no_deviation() -> None:
    evaluation = Evaluation(np.array([7.0]), np.array([1]), deterministic=True)
    assert evaluation.short == "return 7.00 ± 0.00 over 1 episode"
    assert (evaluation.mean, evaluation.std, evaluation.ci) == (7.0, 0.0, (7.0, 7.0))


def test_the_interval_covers_the_true_mean_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlpg.engine.evaluator.RESAMPLES", 1000)
    # 300 samples of 60 exponential returns with mean 1. A nominal 95 % percentile interval of such
    # skewed data covers a little less; 0.91 +- 4 sqrt(.09 * .91 / 300) is a wide net around that.
    rng = np.random.default_rng(3)
    lengths = np.ones(60, dtype=int)
    covered = 0
    for _ in range(300):
        low, high = Evaluation(rng.exponential(size=60), lengths, deterministic=True).ci
        covered += low <= 1.0 <= high
    assert 0.88 < covered / 300 < 0.99


def test_the_interval_of_many_episodes_takes_little_memory() -> None:
    returns = np.random.default_rng(0).normal(size=200_000)  # 10 000 resamples of it: 16 GB
    low, high = Evaluation(returns, np.ones(200_000, int), deterministic=True).ci
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(200_000), rel=0.15)


# ------------------------------------------------------------------------- repeatable, harmless


@pytest.mark.parametrize("deterministic", [True, False])
def test_same_seed_same_episodes_other_seed_others(policy: Policy, deterministic: bool) -> None:
    def play(seed: int) -> Evaluation:
        return evaluate(policy, "CartPole-v1", 12, seed, deterministic=deterministic)

    policy = policy_for("CartPole-v1")
    assert same(play(3), play(3))
    assert not same(play(3), play(4))


def test_a_vector_environment_is_reseeded_by_every_evaluation() -> None:
    policy = policy_for("CartPole-v1")
    for envs in (
        gymnasium.make_vec("CartPole-v1", 3),
        SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 3),
        make_envs("CartPole-v1", 3, seed=9, backend="sync").envs,
    ):
        first = evaluate(policy, envs, 6, seed=1, deterministic=False)
        evaluate(policy, envs, 6, seed=2, deterministic=False)
        assert same(first, evaluate(policy, envs, 6, seed=1, deterministic=False))
        envs.close()


def test_an_evaluation_changes_neither_policy_nor_global_random_states() -> None:
    policy = policy_for("CartPole-v1")
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    evaluate(policy, "CartPole-v1", 4, deterministic=False)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_sampling_and_the_most_likely_action_differ() -> None:
    policy = policy_for("CartPole-v1")
    sampled = evaluate(policy, "CartPole-v1", 20, deterministic=False)
    assert not same(sampled, evaluate(policy, "CartPole-v1", 20))
    assert not sampled.deterministic


# ------------------------------------------------------------------------------ what is accepted


def test_an_environment_object_is_played_and_left_open(policy: Policy) -> None:
    env = ShortOrLong()
    evaluation = evaluate(policy, env, 10, seed=5)
    assert len(evaluation.returns) == 10
    assert not env.closed


def test_an_object_with_an_id_gives_the_same_as_its_id() -> None:
    policy = policy_for("CartPole-v1")
    by_id = evaluate(policy, "CartPole-v1", 5, seed=2, backend="sync")
    assert same(by_id, evaluate(policy, gymnasium.make("CartPole-v1"), 5, seed=2))


def test_kwargs_reach_the_environment(policy: Policy) -> None:
    evaluation = evaluate(policy, "test/ShortOrLong-v0", 6, env_kwargs={"scale": 0.5})
    assert evaluation.returns.tolist() == (0.5 * evaluation.lengths).tolist()


def test_another_environment_is_refused_with_the_difference() -> None:
    with pytest.raises(SpaceError, match=r"observation space: .*\(4,\).* has .*\(6,\)"):
        evaluate(policy_for("CartPole-v1"), "Acrobot-v1", 2)
    with pytest.raises(SpaceError, match=r"action space: .*Discrete\(3\).* has Box"):
        evaluate(policy_for("MountainCar-v0"), "MountainCarContinuous-v0", 2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"episodes": 0}, "episodes: expected an integer >= 1, got 0"),
        ({"episodes": 2.5}, "episodes: expected an integer >= 1, got 2.5"),
        ({"episodes": "some"}, "episodes: expected an integer >= 1, got 'some'"),
        ({"threads": 0}, "threads: expected an integer >= 1, got 0"),
        ({"num_envs": 0}, "num_envs: expected an integer >= 1 or none, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_counts_that_mean_nothing(policy: Policy, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        evaluate(policy, "test/ShortOrLong-v0", **options)


def test_public_name() -> None:
    assert rlpg.evaluate is evaluate


# ------------------------------------------------------------- the environment of a saved policy


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a map of 8 x 8 without slipping, in episodes of at most 6 steps."""
    path = tmp_path_factory.mktemp("runs") / "lake"
    rlpg.train(
        "FrozenLake-v1",
        total_steps=64,
        run_dir=path,
        recipe="default",
        overrides={
            "environment.kwargs": {"map_name": "8x8", "is_slippery": False},
            "environment.max_episode_steps": 6,
            "rollout.num_envs": 2,
            "policy.hidden": (4,),
            "evaluation.final_episodes": 2,
        },
    )
    return path


@pytest.mark.parametrize("env", [None, "FrozenLake-v1", "FrozenLake", "gymnasium:FrozenLake-v1"])
def test_naming_the_same_environment_dropped_its_arguments_and_limit(
    env: str | None, lake: Path
) -> None:
    """On another map the policy does not even fit; on the default one it would have."""
    found = evaluate_saved(load_saved(lake), env=env, episodes=3)
    assert found.lengths.max() <= 6
    assert found.environments.startswith("FrozenLake-v1: 3 environments, sync")
    assert "at most 6 steps per episode" in found.environments
    assert "without" not in found.environments


def test_another_environment_is_played_without_them_and_it_is_said(lake: Path) -> None:
    gymnasium.register(
        "test/Lake-v0", "gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv",
        kwargs={"map_name": "8x8"}, max_episode_steps=30,
    )  # fmt: skip
    try:
        found = evaluate_saved(load_saved(lake), env="test/Lake-v0", episodes=3)
    finally:
        del gymnasium.registry["test/Lake-v0"]
    assert found.environments.startswith("test/Lake-v0: 3 environments, ")
    assert "not FrozenLake-v1, which it was trained on, so without its arguments" in (
        found.environments
    )
    assert found.environments.endswith("so without its limit of 6 steps")


def test_the_user_s_arguments_win(lake: Path) -> None:
    found = evaluate_saved(load_saved(lake), env_kwargs={"is_slippery": True}, episodes=3)
    assert found.lengths.max() <= 6
    with pytest.raises(SpaceError):
        evaluate_saved(load_saved(lake), env_kwargs={"map_name": "4x4"}, episodes=3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"desc": ["S" * 400] * 400}, "at most 4096 characters"),
        ({"desc": "/dev/zero"}, "a word that is no path"),
        ({"render_mode": "human"}, "others open a window"),
    ],
)
def test_arguments_from_a_file_cost_memory_or_opened_a_path_or_window(
    kwargs: dict[str, Any], message: str, lake: Path
) -> None:
    saved = load_saved(lake)
    forged = replace(saved, environment={**saved.environment, "kwargs": kwargs})
    for env in (None, "FrozenLake-v1"):
        with pytest.raises(FileError, match=message):
            evaluate_saved(forged, env=env, episodes=1)


# ---------------------------------------------------------------------- evaluations of a run


@pytest.fixture
def evaluator() -> Iterator[Evaluator]:
    recipe = override(Recipe(), {"evaluation.episodes": 20, "evaluation.final_episodes": 30})
    with closing(Evaluator(ShortOrLong, recipe)) as made:
        yield made


@pytest.fixture
def drawing_policy() -> StandardPolicy:
    return StandardPolicy(
        ShortOrLong.observation_space, ShortOrLong.action_space,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_eval_takes_the_most_likely_actions_and_eval_stochastic_draws(
    evaluator: Evaluator, drawing_policy: StandardPolicy
) -> None:
    found = evaluator(100, drawing_policy)
    assert {name: one.deterministic for name, one in found.items()} == {
        "eval": True,
        "eval_stochastic": False,
    }
    assert [len(one.returns) for one in found.values()] == [20, 20]
    final = evaluator.final(drawing_policy, 1000, [])
    assert final is not None
    assert final.deterministic
    assert len(final.returns) == 30


def test_every_step_has_episodes_of_its_own_and_both_kinds_play_the_same(
    evaluator: Evaluator, drawing_policy: StandardPolicy
) -> None:
    """The parity of its seed is the length of an episode, so lengths tell the seeds apart."""
    at = {step: evaluator(step, drawing_policy) for step in (100, 200)}
    final = evaluator.final(drawing_policy, 1000, [])
    assert final is not None
    for found in at.values():
        assert found["eval"].lengths.tolist() == found["eval_stochastic"].lengths.tolist()
    seen = {tuple(found["eval"].lengths) for found in at.values()}
    assert len(seen) == 2
    again = evaluator(100, drawing_policy)
    assert again["eval"].lengths.tolist() == at[100]["eval"].lengths.tolist()


def test_the_final_evaluation_has_the_stream_of_that_name(
    evaluator: Evaluator, drawing_policy: StandardPolicy
) -> None:
    evaluator(100, drawing_policy)
    final = evaluator.final(drawing_policy, 1000, [])
    stream = seed_sequence(0, "final evaluation")
    alone = evaluate(drawing_policy, ShortOrLong, 30, stream, num_envs=10)
    assert final is not None
    assert final.lengths.tolist() == alone.lengths.tolist()


@pytest.mark.parametrize(
    ("lengths", "step", "is_worth", "episodes"),
    [
        ([], 0, True, 100),
        ([[500] * 10], 4_999, False, 10),
        ([[500] * 10], 5_000, True, 10),
        ([[10] * 40, [100] * 40], 4_399, False, 21),
        ([[10] * 40, [100] * 40], 4_400, True, 22),
        ([[1] * 10], 1_000_000, True, 100),
    ],
)
def test_evaluations_that_nobody_asked_for_cost_no_more_steps_than_training(
    lengths: list[list[int]], step: int, is_worth: bool, episodes: int,
    drawing_policy: StandardPolicy,
) -> None:  # fmt: skip
    before = [np.array(row) for row in lengths]
    with closing(Evaluator(ShortOrLong, Recipe())) as by_rule:
        assert by_rule.is_worth(step, before) == is_worth
        final = by_rule.final(drawing_policy, step, before)
        assert final is not None
        assert len(final.returns) == episodes
    said = override(Recipe(), {"evaluation.every": 100, "evaluation.final_episodes": 7})
    with closing(Evaluator(ShortOrLong, said)) as as_said:
        assert as_said.is_worth(step, before)
        final = as_said.final(drawing_policy, step, before)
        assert final is not None
        assert len(final.returns) == 7


def test_long_episodes_cost_a_run_no_more_evaluation_than_training(tmp_path: Path) -> None:
    """5 million steps of evaluation around 200,000 of training were seen."""
    changes = {"environment.max_episode_steps": 2000, "log.tensorboard": False}
    run = rlpg.train(
        "MountainCar-v0", "reinforce", recipe="default", total_steps=20_000, overrides=changes,
        run_dir=tmp_path / "run", quiet=True,
    )  # fmt: skip
    played = sum(
        int(np.load(run.path / f"{name}.npz")["ep_lengths"].sum())
        for name in ("evaluations", "evaluations_stochastic")
    )
    assert 0 < played <= 20_000 + 2 * 10 * 2000  # and one evaluation
    assert run.evaluation is not None
    assert len(run.evaluation.returns) == 10

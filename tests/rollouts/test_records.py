"""What a run's files say of an environment object: all that makes it again, or no id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import VectorEnv

import rlpg
from rlpg.engine.loading import load_saved
from rlpg.errors import EnvironmentSetupError, FileError, UsageError
from rlpg.rollouts import environment_name, make_envs, record_of
from rlpg.runs.recipe import load_recipe
from rlpg.verbs.diagnosis import diagnose
from rlpg.verbs.evaluation import environment_of, evaluate_saved

SMALL: dict[str, Any] = {
    "agent": "reinforce",
    "rollout.num_envs": 2,
    "rollout.num_steps": 16,
    "policy.hidden": (8,),
    "evaluation.episodes": 2,
    "evaluation.every": 64,
    "evaluation.stochastic": False,
    "evaluation.final_episodes": 3,
}


class Shifted(gymnasium.RewardWrapper[Any, Any]):
    """Of the user's own: nothing records how it was made."""

    def reward(self, reward: Any) -> float:
        return float(reward) + 100.0


class ShiftedVector(gymnasium.vector.VectorRewardWrapper):
    def reward(self, reward: Any) -> Any:
        return reward + 100.0


def lake(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make("FrozenLake-v1", **kwargs)


# makes an object -> its kwargs, time limit and wrappers in a recipe
RECORDED: dict[str, tuple[Callable[[], Any], dict[str, Any], int | None, dict[str, Any]]] = {
    "bare": (lake, {}, None, {}),
    "kwargs": (lambda: lake(is_slippery=False), {"is_slippery": False}, None, {}),
    "a default, said": (lambda: lake(map_name="4x4"), {}, None, {}),
    "a list": (lambda: lake(desc=["SG", "HF"]), {"desc": ["SG", "HF"]}, None, {}),
    "a limit": (lambda: lake(max_episode_steps=7), {}, 7, {}),
    "a time limit around": (lambda: wrappers.TimeLimit(lake(), 7), {}, 7, {}),
    "a spec": (lambda: gymnasium.spec("FrozenLake-v1"), {}, None, {}),
    "a spec with kwargs": (
        lambda: replace(gymnasium.spec("FrozenLake-v1"), kwargs={"is_slippery": False}),
        {"is_slippery": False}, None, {},
    ),
    "a wrapper": (
        lambda: wrappers.FlattenObservation(lake()), {}, None, {"FlattenObservation": {}},
    ),
    "wrappers and kwargs": (
        lambda: wrappers.RepeatAction(
            wrappers.FlattenObservation(lake(is_slippery=False)), num_repeats=2
        ),
        {"is_slippery": False}, None,
        {"FlattenObservation": {}, "RepeatAction": {"num_repeats": 2}},
    ),
    "a time limit between": (
        lambda: wrappers.FlattenObservation(wrappers.TimeLimit(lake(), 7)), {}, 7,
        {"FlattenObservation": {}},
    ),
    "its own vector version": (
        lambda: gymnasium.make_vec("CartPole-v1", 2, max_episode_steps=9), {}, 9, {},
    ),
    "a vector": (
        lambda: gymnasium.make_vec(
            "FrozenLake-v1", 2, vectorization_mode="sync", is_slippery=False
        ),
        {"is_slippery": False}, None, {},
    ),
}  # fmt: skip

NOT_RECORDED: dict[str, tuple[Callable[[], Any], str]] = {
    "a wrapper of one's own": (lambda: Shifted(lake()), "Shifted(FrozenLake-v1)"),
    "one's own below": (
        lambda: wrappers.FlattenObservation(Shifted(lake())), "FlattenObservation(FrozenLake-v1)",
    ),
    "a function": (
        lambda: wrappers.TransformReward(lake(), lambda r: r), "TransformReward(FrozenLake-v1)",
    ),
    "an array": (
        lambda: wrappers.ClipReward(lake(), min_reward=np.zeros(())), "ClipReward(FrozenLake-v1)",
    ),
    "a film": (
        lambda: wrappers.RenderCollection(lake(render_mode="rgb_array")),
        "RenderCollection(FrozenLake-v1)",
    ),
    "one twice": (
        lambda: wrappers.RepeatAction(wrappers.RepeatAction(lake(), 2), 3),
        "RepeatAction(FrozenLake-v1)",
    ),
    "a vector wrapper": (
        lambda: ShiftedVector(gymnasium.make_vec("CartPole-v1", 2)), "ShiftedVector(CartPole-v1)",
    ),
    "another entry point": (
        lambda: replace(gymnasium.spec("CartPole-v1"), entry_point="os:system"),
        "EnvSpec(CartPole-v1)",
    ),
}  # fmt: skip


def closed(env: Any) -> None:
    if isinstance(env, gymnasium.Env | VectorEnv):
        env.close()


@pytest.mark.parametrize("name", RECORDED)
def test_what_an_object_is_stands_in_its_record(name: str) -> None:
    make, kwargs, limit, added = RECORDED[name]
    record = record_of(env := make())
    closed(env)
    assert record is not None
    assert (record.kwargs, record.max_episode_steps, record.wrappers) == (kwargs, limit, added)
    assert environment_name(env) == record.id


@pytest.mark.parametrize("name", NOT_RECORDED)
def test_what_no_record_makes_again_is_not_called_by_the_bare_id(name: str) -> None:
    make, expected = NOT_RECORDED[name]
    env = make()
    assert record_of(env) is None
    assert environment_name(env) == expected
    closed(env)


def test_an_array_of_numpy_s_scalars_is_data() -> None:
    env = wrappers.RescaleAction(gymnasium.make("Pendulum-v1"), np.float32(-1), np.float32(1))
    record = record_of(env)
    env.close()
    assert record is not None
    assert record.wrappers == {"RescaleAction": {"min_action": -1.0, "max_action": 1.0}}


@pytest.mark.parametrize("name", RECORDED)
def test_a_run_on_an_object_is_evaluated_and_resumed_on_the_same(name: str, tmp_path: Path) -> None:
    make, kwargs, limit, added = RECORDED[name]
    env = make()
    run = rlpg.train(
        env, total_steps=64, run_dir=tmp_path / "run", recipe="default", overrides=SMALL, quiet=True
    )
    closed(env)
    told = load_recipe(run.path / "recipe.toml").environment
    assert (told.kwargs, told.max_episode_steps, told.wrappers) == (kwargs, limit, added)
    saved = load_saved(run.path)
    again, options, _ = environment_of(saved, None, None)
    made = make_envs(again, 1, seed=0, **options).envs
    assert made.single_observation_space == run.policy.observations.space
    made.close()
    if isinstance(env, VectorEnv):
        return  # it is not evaluated in training
    played = evaluate_saved(saved, episodes=5)
    env = make()
    direct = rlpg.evaluate(run.policy, env, 5, num_envs=5)
    closed(env)
    assert np.array_equal(played.returns, direct.returns)
    assert np.array_equal(played.lengths, direct.lengths)
    more = rlpg.resume(run.path, total_steps=128, quiet=True)
    assert more.policy.observations.space == run.policy.observations.space
    record = record_of(env)
    assert record is not None
    assert load_recipe(run.path / "recipe.toml").environment == told


def test_evaluate_played_the_bare_environment_of_a_wrapper_object(tmp_path: Path) -> None:
    def env() -> gymnasium.Env[Any, Any]:
        return Shifted(gymnasium.make("CartPole-v1"))

    run = rlpg.train(env(), total_steps=64, run_dir=tmp_path / "run", overrides=SMALL, quiet=True)
    assert load_recipe(run.path / "recipe.toml").environment.id == "Shifted(CartPole-v1)"
    assert load_recipe(run.path / "recipe.toml").learner.num_value_epochs == 4, "the shipped one"
    saved = load_saved(run.path)
    for use in (lambda: evaluate_saved(saved), lambda: rlpg.resume(run.path, quiet=True)):
        with pytest.raises(FileError, match=r"class Shifted\(CartPole-v1\), which no id makes"):
            use()
    bare = evaluate_saved(saved, env="CartPole-v1", episodes=2)
    assert "not Shifted(CartPole-v1), which it was trained on" in bare.environments
    with pytest.raises(UsageError, match=r"environment.id: expected CartPole-v1"):
        rlpg.resume(run.path, env="CartPole-v1", quiet=True)
    more = rlpg.resume(run.path, env=env(), total_steps=128, quiet=True)
    assert rlpg.evaluate(more.policy, env(), 2).mean > 100.0


def test_evaluate_and_diagnose_played_the_id_that_a_class_is_called_like(tmp_path: Path) -> None:
    class CartPole(CartPoleEnv):
        def step(self, action: Any) -> Any:
            obs, _, *rest = super().step(action)
            return obs, -7.0, *rest

    run = rlpg.train(CartPole, total_steps=64, run_dir=tmp_path, overrides=SMALL, quiet=True)
    saved = load_saved(run.path)
    for use in (
        lambda: evaluate_saved(saved, episodes=2),
        lambda: diagnose(run.path, episodes=4),
        lambda: rlpg.resume(run.path, quiet=True),
    ):
        with pytest.raises(FileError, match="class CartPole, which no id makes again; pass it"):
            use()
    more = rlpg.resume(run.path, env=CartPole, total_steps=96, quiet=True)
    assert rlpg.evaluate(more.policy, CartPole, 2).mean < 0.0


def test_an_object_and_arguments_that_contradict_it(tmp_path: Path) -> None:
    env = lake(is_slippery=False)
    for setting in ("kwargs", "wrappers"):
        with pytest.raises(UsageError, match=rf"environment.{setting}: expected none besides"):
            rlpg.train(
                env, run_dir=tmp_path / "run",
                overrides={f"environment.{setting}": {"kwargs": {"is_slippery": True},
                           "wrappers": {"FlattenObservation": {}}}[setting]},
            )  # fmt: skip
    assert not (tmp_path / "run").exists()
    env.close()


def test_wrappers_by_name(tmp_path: Path) -> None:
    around = {"environment.wrappers": {"FrameStackObservation": {"stack_size": 3}}}
    run = rlpg.train(
        "CartPole-v1", total_steps=64, run_dir=tmp_path / "run", overrides=SMALL | around,
        quiet=True,
    )  # fmt: skip
    assert run.policy.observations.space.shape == (3, 4)
    assert "in FrameStackObservation" in evaluate_saved(load_saved(run.path)).environments
    assert diagnose(run.path, episodes=4).episodes == 4, "in the same wrappers"
    unknown: list[dict[str, Any]] = [
        {"RecordVideo": {}}, {"os:system": {}}, {"FlattenObservation": {"depth": 1}},
    ]  # fmt: skip
    for wrong in unknown:
        with pytest.raises(EnvironmentSetupError, match=r"environment.wrappers: |env: expected"):
            rlpg.train("CartPole-v1", overrides={"environment.wrappers": wrong}, quiet=True)


@pytest.mark.parametrize(
    "kwargs", [{"shape": [10**9, 10**9]}, {"shape": "/dev/zero"}, {"a": [0] * 5000}], ids=str
)
def test_a_file_s_wrappers_are_judged_like_its_arguments(
    kwargs: dict[str, Any], tmp_path: Path
) -> None:
    around: dict[str, Any] = {"environment.wrappers": {"FlattenObservation": {}}}
    run = rlpg.train(
        "CartPole-v1", total_steps=64, run_dir=tmp_path / "run", overrides=SMALL | around,
        quiet=True,
    )  # fmt: skip
    saved = load_saved(run.path)
    saved.environment["wrappers"] = {"ReshapeObservation": kwargs}
    with pytest.raises(FileError, match=r"environment.wrappers.ReshapeObservation.*: expected .* "):
        evaluate_saved(saved)

"""The rules behind `auto`: what they say, and that a run is trained with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.distributions import Categorical

import rlpg
from rlpg.learners import rules
from rlpg.learners.batch import Batch
from rlpg.learners.settings import AGENTS
from rlpg.policies.spaces import num_continuous
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
    assert rules.log_std_init(num_dims, plain=True) == (0.0 if num_dims < 6 else expected)


def test_wide_actions_have_larger_minibatches() -> None:
    for num_samples, wide in ((2048, 6), (2020, 6), (1024, 7), (64, 7)):
        sizes = [rules.minibatch_size(dims, num_samples) for dims in (0, 1, wide - 1, wide, 100)]
        assert sizes == [64] * 3 + [256] * 2
    assert rules.num_minibatches("auto", 2048, num_action_dims=7) == 8
    assert rules.num_minibatches("auto", 100, num_action_dims=7) == 1
    assert rules.num_minibatches("auto", 16, 128, 7) == 4
    assert rules.num_minibatches("auto", 64, 32, 6) == 8  # 2048 samples in 64 sequences
    assert rules.num_minibatches(32, 2048, num_action_dims=7) == 32


@pytest.mark.parametrize(
    ("dims", "length", "size"), [(5, 512, 64), (6, 512, 256), (6, 128, 64), (7, 128, 256)]
)
def test_the_minibatches_of_ppo_follow_the_rule(dims: int, length: int, size: int) -> None:
    class Bandit(gymnasium.Env[Any, Any]):
        observation_space = spaces.Box(-1.0, 1.0, (3,))
        action_space = spaces.Box(-1.0, 1.0, (dims,))

        def reset(self, **options: Any) -> Any:
            super().reset(**options)
            return np.ones(3, np.float32), {}

        def step(self, action: Any) -> Any:
            return np.ones(3, np.float32), -float(np.square(action).mean()), True, False, {}

    class Watched(rlpg.PPO):
        sizes: ClassVar[set[int]] = set()

        def surrogate(self, batch: Batch, log_prob: torch.Tensor) -> torch.Tensor:
            self.sizes.add(len(batch))
            return super().surrogate(batch, log_prob)

    envs = SyncVectorEnv([Bandit] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    spaces_of = envs.single_observation_space, envs.single_action_space
    policy = rlpg.StandardPolicy(*spaces_of, generator=torch.Generator().manual_seed(0))
    Watched(policy).update(rlpg.Collector(envs, policy, 0).steps(length))
    assert Watched.sizes == {size}


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


@pytest.mark.parametrize(
    ("total_steps", "num_envs", "expected"),
    [
        (1, 1, 64),
        (20_000, 16, 64),
        (300_000, 16, 64),
        (1_000_000, 16, 128),
        (1_000_100, 16, 128),
        (3_000_000, 16, 256),
        (10_000_000, 16, 512),
        (1_000_000, 4, 512),
        (1_000_000, 1, 2048),
        (100_000_000, 1, 2048),
        (1_000_000, 512, 64),
    ],
)
def test_rollouts_grow_with_the_run_and_are_shared_by_the_environments(
    total_steps: int, num_envs: int, expected: int
) -> None:
    assert rules.num_steps(total_steps, num_envs) == expected
    assert rules.num_steps(total_steps, num_envs, has_memory=True) == 64


def a_vector_environment() -> Any:
    makers = [lambda: gymnasium.make("CartPole-v1")] * 3
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


class Alone(gymnasium.Wrapper[Any, Any, Any, Any]):
    """No copies can be made of it."""


QUICK = {"learner.num_value_epochs": 1, "evaluation.final_episodes": 1, "log.every": 1}


def logged_steps(path: Path) -> list[int]:
    lines = (path / "progress.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.parametrize("agent", ["ppo", "npg", "trpo"])
@pytest.mark.parametrize(
    ("make", "num_envs", "expected"),
    [
        (lambda: "CartPole-v1", 16, 64),
        (a_vector_environment, 3, 64),
        (lambda: Alone(gymnasium.make("CartPole-v1")), 1, 128),
    ],
)
def test_the_steps_of_a_rollout_follow_from_the_environments_that_there_are(
    agent: str, make: Any, num_envs: int, expected: int, tmp_path: Path
) -> None:
    run = rlpg.train(
        make(), agent, recipe="default", total_steps=3_000, run_dir=tmp_path / "run", quiet=True,
        overrides=QUICK, on_log=lambda *_: True,
    )  # fmt: skip
    rollout = load_recipe(run.path / "recipe.toml").rollout
    assert (rollout.num_envs, rollout.num_steps) == (num_envs, expected)
    assert logged_steps(run.path) == [num_envs * expected]


class Counting(rlpg.Policy):
    """Remembers how many steps it has made, and takes no notice of it."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__(observation_space, action_space)
        self.logits = torch.nn.Linear(self.observations.num_features, action_space.n)

    def initial_carry(self, num_envs: int) -> torch.Tensor:
        return torch.zeros(num_envs, 1)

    def forward(self, obs: Any, carry: Any = None, episode_start: Any = None) -> Any:
        return Categorical(logits=self.logits(self.features(obs))), carry + len(obs)


@pytest.mark.parametrize("own", [{}, {"policy": Counting}])
def test_sequences_of_one_environment_with_memory_stay_short(
    own: dict[str, Any], tmp_path: Path
) -> None:
    memory = {} if own else {"policy.memory": "gru"}
    run = rlpg.train(
        "CartPole-v1", "ppo", recipe="default", total_steps=3_000, run_dir=tmp_path / "run",
        overrides=QUICK | memory | {"rollout.num_envs": 1}, on_log=lambda *_: True, quiet=True,
        **own,
    )  # fmt: skip
    assert load_recipe(run.path / "recipe.toml").rollout.num_steps == 64
    assert logged_steps(run.path) == [64]


def test_a_run_that_goes_on_for_longer_keeps_its_rollouts(tmp_path: Path) -> None:
    run = rlpg.train(
        "CartPole-v1", "ppo", recipe="default", total_steps=3_000, run_dir=tmp_path / "run",
        overrides=QUICK, on_log=lambda *_: True, quiet=True,
    )  # fmt: skip
    rlpg.resume(run.path, total_steps=10_000_000, quiet=True, on_log=lambda *_: True)
    assert load_recipe(run.path / "recipe.toml").rollout.num_steps == 64
    assert logged_steps(run.path) == [1024, 2048]


@pytest.mark.parametrize("agent", AGENTS)
def test_every_setting_that_can_be_auto_has_a_reason(agent: str) -> None:
    autos = {key for key, value in flatten(Recipe.of(agent)).items() if value == "auto"}
    assert autos
    assert autos <= set(rules.REASONS)


class Wide(gymnasium.Env[Any, Any]):
    """60 actions."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (60,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), -float(np.square(action).mean()), True, False, {}


@pytest.mark.parametrize(
    ("env", "agent", "said", "expected"),
    [
        ("Pendulum-v1", "ppo", {}, 0.5),
        ("Pendulum-v1", "reinforce", {}, 0.0),
        (Wide, "reinforce", {}, -1.0),
        (Wide, "a2c", {}, -1.0),
        ("Pendulum-v1", "ppo", {"policy.log_std_init": -1.0}, -1.0),
    ],
)
def test_a_run_begins_with_the_width_of_the_rule_and_its_recipe_says_so(
    env: Any, agent: str, said: dict[str, Any], expected: float, tmp_path: Path
) -> None:
    small = {"rollout.num_envs": 2, "rollout.num_steps": 8, "evaluation.final_episodes": 1}
    run = rlpg.train(
        env, agent, recipe="default", total_steps=16, run_dir=tmp_path / "run", quiet=True,
        overrides={**small, **said, "learner.num_value_epochs": 1},
    )  # fmt: skip
    assert load_recipe(run.path / "recipe.toml").policy.log_std_init == expected
    assert run.policy.describe()["head"]["log_std_init"] == expected

"""k ranks with N / k environments each make the update of one process with N."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))
from made import BASELINES, SPACE, draw_rollout, make_policy
from ranks import columns_of, on_ranks

from rlpg import PPO, Learner, NaturalGradient, Reinforce
from rlpg.distributed import num_ranks, rank
from rlpg.rollouts import Rollout

NUM_ENVS, ROLLOUTS = 12, 2  # the second shows what the first has taught
CLASSES = {"reinforce": Reinforce, "a2c": Reinforce, "ppo": PPO, "npg": NaturalGradient}
CLASSES["trpo"] = NaturalGradient
OPTIONS: dict[str, dict[str, Any]] = {
    "trpo": {"line_search": True},
    "ppo": {"num_epochs": 2, "num_minibatches": 4, "learning_rate": 1e-3},
}
GRID: list[dict[str, Any]] = [
    {"agent": agent, "baseline": baseline, "memory": memory, "normalize": normalize}
    for agent in CLASSES
    for baseline in BASELINES
    for memory in (None, "gru")
    for normalize in (True, False)
]
EXACT = ("gradient/norm", "train/value_loss", "train/policy_loss", "train/learning_rate",
         "train/num_epochs", "train/line_search_steps")  # fmt: skip
CASES = [case for k, case in enumerate(GRID) if k % 4 == (k // 4) % 4]  # each agent and baseline
REST = [case for case in GRID if case not in CASES]
# What decides or weighs, one at a time.
CASES += [
    {"agent": "ppo", "baseline": "value", "memory": memory, "normalize": True, **options}
    for memory in (None, "lstm")
    for options in (
        {"target_kl": 1e-5},
        {"desired_kl": 1e-4},
        {"num_minibatches": 1},
        {"num_minibatches": NUM_ENVS},  # a rank has no environment in most of them
        {"normalize_advantages_over": "batch"},
        {"recompute_advantages": True},
        {"value_clip_range": 0.1},
        {"num_minibatches": "auto"},
    )
]
CASES += [
    {"agent": agent, "baseline": "value", "memory": None, "normalize": True, **options}
    for agent in ("reinforce", "trpo")
    for options in (
        {"average": "episodes"},
        {"truncated_return": "drop", "gae_lambda": None},
        {"gamma_weight": True},
        {"num_value_epochs": 3, "num_value_minibatches": 5},
    )
]
CASES.append(
    {"agent": "ppo", "baseline": "value", "memory": None, "normalize": True, "shared_torso": True}
)
# More samples than go through a network at once. (Adam would divide the rounding of gradients that
# are nearly 0 by nearly 0.)
CASES.append(
    {"agent": "trpo", "baseline": "linear", "memory": None, "normalize": True, "num_steps": 700}
)


def name(case: dict[str, Any]) -> str:
    return "-".join(f"{value}" for value in case.values())


@cache
def whole_rollout(memory: str | None, seed: int, num_steps: int) -> Rollout:
    """Of all environments; drawn once, because drawing takes as long as an update."""
    policy = make_policy(memory=memory, memory_size=4)
    return draw_rollout(policy, seed, num_envs=NUM_ENVS, num_steps=num_steps)


def updated(case: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The learner's state after some updates on this rank's columns of the same rollouts."""
    options = dict(case)
    agent, baseline = options.pop("agent"), options.pop("baseline")
    policy = make_policy(
        None, SPACE, memory=options.pop("memory"), memory_size=4,
        normalize_observations=options.pop("normalize"),
        shared_torso=options.get("shared_torso", False),
    )  # fmt: skip
    num_steps = options.pop("num_steps", 9)
    settings: dict[str, Any] = {"num_value_epochs": 2, "num_value_minibatches": 3}
    if options.pop("shared_torso", False):
        settings = {}
    settings |= OPTIONS.get(agent, {}) | options
    learner: Learner = CLASSES[agent](policy, baseline, **settings)
    metrics: dict[str, float] = {}
    start = learner.optimizer.flat()
    for seed in range(ROLLOUTS):
        whole = whole_rollout(case["memory"], seed, num_steps)
        metrics = learner.update(columns_of(whole, rank(), num_ranks()), progress=seed / ROLLOUTS)
    found = {"moved": np.array(float((learner.optimizer.flat() - start).abs().max()))}
    for key, value in learner.policy.state_dict().items():
        found[f"policy.{key}"] = value.double().numpy()
    for part in ("optimizer", "baseline"):
        found |= dict(flat(getattr(learner, part).state_dict(), part))
    if learner.reward_scale:
        found |= dict(flat(learner.reward_scale.state_dict(), "reward_scale"))
    found["generator"] = learner.generator.get_state().numpy()
    found["adapted"] = np.array(learner.state_dict().get("adapted", 1.0))
    return found | {tag: np.array(metrics[tag]) for tag in EXACT if tag in metrics}


def flat(tree: Any, key: str) -> list[tuple[str, np.ndarray[Any, Any]]]:
    if isinstance(tree, dict):
        return [leaf for name in tree for leaf in flat(tree[name], f"{key}.{name}")]
    if isinstance(tree, list):
        return [leaf for k, part in enumerate(tree) for leaf in flat(part, f"{key}.{k}")]
    return [(key, np.asarray(tree, dtype=np.float64))]


def all_updated(cases: list[dict[str, Any]]) -> list[Any]:
    found = []
    for case in cases:
        try:
            found.append(updated(case))
        except Exception as error:
            raise RuntimeError(f"{name(case)}: {error}") from error
    return found


@pytest.fixture(scope="module")
def of_two_ranks() -> list[list[Any]]:
    return on_ranks(2, all_updated, CASES)


@cache
def updated_alone(number: int) -> dict[str, np.ndarray[Any, Any]]:
    return updated(CASES[number])


def assert_like_one_process(alone: dict[str, Any], ranks: list[Any]) -> None:
    for found in ranks:
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            np.testing.assert_array_equal(found[key], ranks[0][key], err_msg=key)
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
    assert alone["moved"] > 1e-4


@pytest.mark.parametrize("number", range(len(CASES)), ids=[name(case) for case in CASES])
def test_two_ranks_make_the_update_of_one_process(
    number: int, of_two_ranks: list[list[Any]]
) -> None:
    assert_like_one_process(updated_alone(number), [found[number] for found in of_two_ranks])


def test_three_ranks_make_the_update_of_one_process() -> None:
    some = range(0, len(CASES), 6)
    found = on_ranks(3, all_updated, [CASES[number] for number in some])
    for number, *ranks in zip(some, *found, strict=True):
        assert_like_one_process(updated_alone(number), ranks)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ranks_make_the_update_of_one_process_with_all_choices() -> None:
    for number in (2, 4):
        found = on_ranks(number, all_updated, REST, timeout=1200)
        for case, *ranks in zip(REST, *found, strict=True):
            assert_like_one_process(updated(case), ranks)

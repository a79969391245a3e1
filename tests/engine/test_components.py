"""What follows from the settings and the environment together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlpg.engine.components import STREAMS, generator_from, make_learner, resolved, seed_sequence
from rlpg.learners import Reinforce
from rlpg.learners.rules import DISCRETE_ENTROPY_COEF
from rlpg.learners.values import ValueNetwork
from rlpg.policies import Policy, StandardPolicy
from rlpg.policies.references import UserParts
from rlpg.runs.recipe import Recipe, override


def policy_for(action_space: spaces.Space) -> Policy:
    return StandardPolicy(
        spaces.Box(-1, 1, (3,)), action_space, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize(
    ("action_space", "expected"),
    [
        (spaces.Discrete(3), DISCRETE_ENTROPY_COEF),
        (spaces.MultiBinary(3), DISCRETE_ENTROPY_COEF),
        (spaces.Box(-1, 1, (2,)), 0.0),
        (spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,)))), 0.0),
    ],
)
def test_the_entropy_bonus_suits_the_kind_of_action_unless_it_is_set(
    action_space: spaces.Space, expected: float
) -> None:
    policy = policy_for(action_space)
    assert Reinforce(policy).entropy_coef == expected
    assert Reinforce(policy, entropy_coef=0.3).entropy_coef == 0.3
    assert Reinforce(policy, entropy_coef=0.0).entropy_coef == 0.0


def test_every_stream_of_a_run_and_every_branch_of_one_is_its_own() -> None:
    keys = [(), (0,), (1,), (1, 0)]
    streams = [
        seed_sequence(seed, name, *key)
        for seed, name, key in itertools.product((0, 1), STREAMS, keys)
    ]
    states = {tuple(stream.generate_state(4)) for stream in streams}
    assert len(states) == len(streams) == 2 * len(STREAMS) * len(keys)
    drawn = {int(torch.randint(2**62, (), generator=generator_from(s))) for s in streams}
    assert len(drawn) == len(streams)


def test_a_stream_is_a_function_of_its_name_and_branch() -> None:
    one, again = (generator_from(seed_sequence(3, "actions", 7)) for _ in range(2))
    assert torch.equal(torch.rand(5, generator=one), torch.rand(5, generator=again))
    # Asking for a seed does not move the sequence: whoever asks next gets the same.
    stream = seed_sequence(3, "policy")
    assert np.array_equal(stream.generate_state(2), stream.generate_state(2))


@pytest.mark.parametrize(
    ("changes", "episodes"),
    [
        ({"learner.baseline": "none"}, 1),
        ({"learner.baseline": "none", "rollout.episodes_per_env": 5}, 5),
        ({"learner.baseline": "none", "learner.truncated_return": "terminal"}, None),
        ({"learner.baseline": "value"}, None),
    ],
)
def test_whole_episodes_where_nobody_knows_what_a_cut_one_is_worth(
    changes: dict[str, object], episodes: int | None
) -> None:
    assert resolved(override(Recipe(), changes)).rollout.episodes_per_env == episodes


def test_a_learner_gets_the_width_of_the_policy_and_the_schedules_of_the_caller() -> None:
    recipe = override(Recipe(), {"policy.hidden": (7, 5), "learner.baseline": "value"})
    parts = UserParts(schedules={"learning_rate": lambda progress: 0.25 * progress})
    policy = policy_for(spaces.Discrete(2))
    learner = make_learner(policy, recipe, parts)
    assert isinstance(learner.baseline, ValueNetwork)
    assert [layer.out_features for layer in learner.baseline.network.mlp.linears] == [7, 5, 1]
    learner.progress = 0.5
    assert learner.scheduled("learning_rate", 1.0) == 0.125
    told = make_learner(policy, override(recipe, {"learner.value_hidden": (3,)}))
    assert [layer.out_features for layer in told.baseline.network.mlp.linears] == [3, 1]

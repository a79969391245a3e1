"""What follows from the settings and the environment together."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces

from rlpg.learners import Reinforce
from rlpg.learners.settings import DISCRETE_ENTROPY_COEF
from rlpg.policies import Policy, StandardPolicy


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

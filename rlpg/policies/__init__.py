"""Policies: from an observation to a distribution over actions."""

from rlpg.policies.actions import make_head
from rlpg.policies.distributions import IntegerBernoulli, Product, SquashedNormal
from rlpg.policies.heads import Head
from rlpg.policies.networks import MLP, Network
from rlpg.policies.normalizer import Normalizer
from rlpg.policies.observations import Observations
from rlpg.policies.policy import Policy
from rlpg.policies.spaces import SUPPORTED, space_from_data, space_to_data

__all__ = [
    "MLP",
    "SUPPORTED",
    "Head",
    "IntegerBernoulli",
    "Network",
    "Normalizer",
    "Observations",
    "Policy",
    "Product",
    "SquashedNormal",
    "make_head",
    "space_from_data",
    "space_to_data",
]

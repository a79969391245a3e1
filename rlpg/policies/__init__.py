"""Policies: from an observation to a distribution over actions."""

from rlpg.policies.actions import make_head
from rlpg.policies.description import make_own_policy, policy_from
from rlpg.policies.distributions import IntegerBernoulli, Product, SquashedNormal
from rlpg.policies.heads import Head
from rlpg.policies.networks import MLP, Carry, Network, map_carry, restarted
from rlpg.policies.normalizer import Normalizer
from rlpg.policies.observations import Observations
from rlpg.policies.policy import Policy
from rlpg.policies.spaces import space_from_data, space_to_data
from rlpg.policies.standard import StandardPolicy

__all__ = [
    "MLP", "Carry", "Head", "IntegerBernoulli", "Network", "Normalizer", "Observations", "Policy",
    "Product", "SquashedNormal", "StandardPolicy", "make_head", "make_own_policy", "map_carry",
    "policy_from", "restarted", "space_from_data", "space_to_data",
]  # fmt: skip

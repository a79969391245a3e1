"""Policies from what files say about them; the weights are for `load_state_dict` to set."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from rlpg.errors import UsageError
from rlpg.policies.networks import global_generator_from
from rlpg.policies.observations import Observations
from rlpg.policies.policy import FORMAT, Policy
from rlpg.policies.references import Reference, UserParts
from rlpg.policies.spaces import Space, space_from_data
from rlpg.policies.standard import StandardPolicy


def policy_from(description: object, parts: UserParts | None = None) -> Policy:
    """The policy of this description, whose weights are for `load_state_dict` to set.

    Args:
        description: as `describe` returned it.
        parts: the user's own policy or network, where the description names one.

    Raises:
        UsageError (SpaceError): the description is not one that `describe` could have made,
            or names a part that was not given.
    """
    parts = parts or UserParts()
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        got = description.get("format") if isinstance(description, dict) else description
        raise UsageError(
            f"policy description: expected format {FORMAT}, got {got!r:.60}; "
            "it needs another version of rlpg"
        )
    if "policy" not in description:
        return _standard_policy(description, parts)
    _require(description, _SHAPE, "policy description")
    observations = Observations.from_description(description["observations"])
    reference = Reference(description["policy"], description["kwargs"])
    return make_own_policy(
        parts.find("policy", reference),
        reference,
        observations.space,
        space_from_data(description["action_space"]),
        info_mask=observations.info_mask,
        generator=torch.Generator().manual_seed(0),
    )


def make_own_policy(
    factory: Any,
    reference: Reference,
    observation_space: Space,
    action_space: Space,
    *,
    info_mask: int = 0,
    generator: torch.Generator,
) -> Policy:
    """A user's policy: `factory(observation_space, action_space)`, its weights from a generator.

    `factory` also gets `info_mask=` where the environment gives action masks in `info`.

    Raises:
        UsageError: it made something else than a `Policy`.
    """
    options = {"info_mask": info_mask} if info_mask else {}
    with global_generator_from(generator):
        policy = factory(observation_space, action_space, **options)
    if not isinstance(policy, Policy):
        raise UsageError(
            f"policy: expected {reference.name} to make an rlpg.Policy, got {policy!r:.80}"
        )
    policy._reference = reference  # type: ignore[assignment]  # plain data, no module
    return policy


def _standard_policy(description: dict[str, Any], parts: UserParts) -> StandardPolicy:
    shares = {"shared_torso": bool} if "shared_torso" in description else {}
    _require(description, _STANDARD_SHAPE | shares, "policy description")
    network = description["network"]
    hidden = network["hidden"]
    if len(hidden) > 64 or not all(type(size) is int for size in hidden):
        raise UsageError(f"hidden: expected a few layer sizes, got {str(hidden)[:60]}")
    factory = None
    if network["factory"] is not None:
        reference = Reference(network["factory"], network["kwargs"])
        factory = parts.find("network", reference)
    observations = Observations.from_description(description["observations"])
    policy = StandardPolicy(
        observations.space,
        space_from_data(description["action_space"]),
        generator=None,
        hidden=hidden,
        activation=network["activation"],
        network=factory,
        memory=network["memory"],
        memory_size=network["memory_size"],
        critic_only=description["critic_only"],
        shared_torso=description.get("shared_torso", False),
        normalize_observations=description["normalize_observations"],
        observation_clip=description["observation_clip"],
        images=description["observations"].get("images", "auto"),
        info_mask=observations.info_mask,
        **description["head"],
    )
    policy._description = copy.deepcopy(description)
    return policy


_SHAPE: dict[str, Any] = {
    "format": int,
    "policy": str,
    "kwargs": dict,
    "observations": dict,
    "action_space": dict,
}
_STANDARD_SHAPE: dict[str, Any] = {
    "format": int,
    "observations": dict,
    "action_space": dict,
    "network": {
        "hidden": list,
        "activation": str,
        "factory": (str, type(None)),
        "kwargs": dict,
        "memory": (str, type(None)),
        "memory_size": int,
    },
    "head": {
        "gaussian": str,
        "std": str,
        "log_std_init": float,
        "log_std_floor": float,
        "bernoulli": bool,
    },
    "critic_only": list,
    "normalize_observations": bool,
    "observation_clip": float,
}


def _require(value: object, shape: Any, name: str) -> None:
    """UsageError unless the keys and the types of the values are those of the shape."""
    if not isinstance(shape, Mapping):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if type(value) not in kinds:
            raise UsageError(f"{name}: expected {kinds[0].__name__}, got {str(value)[:60]}")
        return
    if not isinstance(value, dict) or set(value) != set(shape):
        got = sorted(map(str, value)) if isinstance(value, dict) else str(value)[:60]
        raise UsageError(f"{name}: expected {', '.join(shape)}, got {got}")
    for key, part in shape.items():
        _require(value[key], part, f"{name}.{key}")

"""Policies from what files say about them; the weights are for `load_state_dict` to set."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import msgspec
import torch

from rlpg.errors import UsageError
from rlpg.policies.networks import global_generator_from
from rlpg.policies.observations import Observations
from rlpg.policies.policy import FORMAT, Policy
from rlpg.policies.references import Reference, UserParts
from rlpg.policies.spaces import Space, as_written, space_from_data, without_text
from rlpg.policies.standard import StandardPolicy


def policy_from(description: object, parts: UserParts | None = None) -> Policy:
    """The policy that `describe` described, with the user's parts that the description names.

    Raises:
        UsageError (SpaceError): `describe` cannot have made it, or it names a part not given.
    """
    parts = parts or UserParts()
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        got = description.get("format") if isinstance(description, dict) else description
        raise UsageError(
            f"policy description: expected format {FORMAT}, got {got!r:.60}; "
            "it needs another version of rlpg"
        )
    kind = _Own if "policy" in description else _Standard
    data = as_written(description, kind, "policy description")
    observations = Observations.from_description(data.observations)
    action_space = space_from_data(data.action_space)
    if isinstance(data, _Own):
        reference = Reference(data.policy, data.kwargs)
        return make_own_policy(
            parts.find("policy", reference),
            reference,
            observations.space,
            action_space,
            info_mask=observations.info_mask,
            generator=torch.Generator().manual_seed(0),
        )
    network = msgspec.structs.asdict(data.network)
    name, kwargs = network.pop("factory"), network.pop("kwargs")
    policy = StandardPolicy(
        observations.space,
        action_space,
        generator=None,
        network=None if name is None else parts.find("network", Reference(name, kwargs)),
        critic_only=data.critic_only,
        shared_torso=data.shared_torso,
        normalize_observations=data.normalize_observations,
        observation_clip=data.observation_clip,
        images=observations.images_setting,
        info_mask=observations.info_mask,
        **network,
        **msgspec.structs.asdict(data.head),
    )
    policy._description = copy.deepcopy(description)
    return policy


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
        UsageError: it made something else than a `Policy`, or one for other spaces.
    """
    options = {"info_mask": info_mask} if info_mask else {}
    with global_generator_from(generator):
        policy = factory(observation_space, action_space, **options)
    if not isinstance(policy, Policy):
        raise UsageError(
            f"policy: expected {reference.name} to make an rlpg.Policy, got {policy!r:.80}"
        )
    asked = without_text(observation_space), action_space
    own = policy.observations.space, policy.head.space
    for kind, space, other in zip(("observation", "action"), asked, own, strict=True):
        if space != other:
            what = f"expected {reference.name} to make one for the {kind} space {space}"
            raise UsageError(f"policy: {' '.join(f'{what}, got one for {other}'.split())}")
    policy._reference = reference  # type: ignore[assignment]  # plain data, no module
    return policy


class _Network(msgspec.Struct, forbid_unknown_fields=True):
    hidden: Annotated[list[int], msgspec.Meta(max_length=64)]
    activation: str
    factory: str | None
    kwargs: dict[str, Any]
    memory: str | None
    memory_size: int


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    gaussian: str
    std: str
    log_std_init: float
    log_std_floor: float
    bernoulli: bool


class _Standard(msgspec.Struct, forbid_unknown_fields=True):
    """What `StandardPolicy.describe` returns."""

    format: int
    observations: Any
    action_space: Any
    network: _Network
    head: _Head
    critic_only: list[str]
    normalize_observations: bool
    observation_clip: float
    shared_torso: bool = False


class _Own(msgspec.Struct, forbid_unknown_fields=True):
    """What `Policy.describe` returns."""

    format: int
    policy: str
    kwargs: dict[str, Any]
    observations: Any
    action_space: Any

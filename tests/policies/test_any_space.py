"""Whatever the spaces: it packs, it can be saved, and what the policy does is allowed."""

import json
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from rlpg.policies import (
    Observations,
    StandardPolicy,
    make_head,
    policy_from,
    space_from_data,
    space_to_data,
)

SHAPES = st.lists(st.integers(1, 3), min_size=0, max_size=3).map(tuple)
BOUNDS = st.sampled_from([(-1, 1), (0, 1), (-np.inf, np.inf), (0, np.inf), (-3, 100), (2, 2)])
FLOATS = st.sampled_from([np.float32, np.float64, np.float16])
INTEGERS = st.sampled_from([np.int8, np.int64, np.int32])


@st.composite
def boxes(draw) -> spaces.Box:
    low, high = draw(BOUNDS)
    return spaces.Box(low, high, draw(SHAPES), draw(st.one_of(FLOATS, INTEGERS)))


@st.composite
def images(draw) -> spaces.Box:
    height, width = draw(st.integers(6, 9)), draw(st.integers(6, 9))
    shapes = [(height, width), (height, width, 3), (3, height, width), (height, 2)]
    return spaces.Box(0, 255, draw(st.sampled_from(shapes)), np.uint8)


@st.composite
def multi_discretes(draw) -> spaces.MultiDiscrete:
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple))
    numbers = st.lists(
        st.integers(1, 4), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))
    )
    nvec, start = (np.array(draw(numbers)).reshape(shape) for _ in range(2))
    return spaces.MultiDiscrete(nvec, start=start - 2)


DISCRETES = st.builds(
    lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-3, 3)
)
BITS = st.builds(spaces.MultiBinary, st.sampled_from([1, 4, (2, 2)]))
ACTION_LEAVES = st.one_of(boxes(), multi_discretes(), DISCRETES, BITS)
OBSERVATION_LEAVES = st.one_of(ACTION_LEAVES, images())


def nested(leaf: st.SearchStrategy) -> st.SearchStrategy:
    keys = st.sampled_from(["a", "b", "camera", "mask"])
    return st.recursive(
        leaf,
        lambda part: st.one_of(
            st.dictionaries(keys, part, min_size=1, max_size=3).map(spaces.Dict),
            st.lists(part, min_size=1, max_size=3).map(spaces.Tuple),
        ),
        max_leaves=4,
    )


def sampled(space: spaces.Space, seed: int) -> Any:
    space.seed(seed)
    with warnings.catch_warnings():  # gymnasium's float16 samples may round to inf
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            return space.sample()
        except ValueError:  # it adds 1 to the largest int64, and draws from an empty interval
            reject()


def rows(space: spaces.Space, batch: Any) -> list[Any]:
    """The members of a batch, with scalars as arrays where gymnasium asks for them."""

    def fitted(part: spaces.Space, value: Any) -> Any:
        if isinstance(part, spaces.Dict):
            return {key: fitted(part[key], value[key]) for key in part}
        if isinstance(part, spaces.Tuple):
            return tuple(fitted(p, v) for p, v in zip(part.spaces, value, strict=True))
        return value if isinstance(part, spaces.Discrete) else np.asarray(value)

    return [fitted(space, item) for item in iterate(batch_space(space, 3), batch)]


@given(space=nested(OBSERVATION_LEAVES), seed=st.integers(0, 1000))
@settings(max_examples=60)
def test_observations_pack_alike_alone_and_in_a_batch(space, seed):
    observations = Observations(space)
    batch = sampled(batch_space(space, 3), seed)
    packed = observations.pack(batch, 3)
    assert packed.shape == (3, *observations.shape)
    assert packed.dtype == observations.numpy_dtype
    singles = [observations.pack(row) for row in rows(space, batch)]
    np.testing.assert_array_equal(packed, np.stack(singles))
    assert observations.batch_size(batch) == 3
    features = observations.features(torch.from_numpy(packed))
    assert features.shape == (3, observations.num_features)
    assert features.dtype == torch.float32
    assert observations.normalized.shape == (observations.num_features,)
    one = observations.features(torch.from_numpy(singles[0]))
    assert torch.equal(one, features[0])


@given(space=nested(OBSERVATION_LEAVES))
@settings(max_examples=60)
def test_spaces_survive_json(space):
    data = json.loads(json.dumps(space_to_data(space), allow_nan=False))
    again = space_from_data(data)
    assert again == space
    assert space_to_data(again) == data


@given(space=nested(ACTION_LEAVES), seed=st.integers(0, 1000), is_masked=st.booleans())
@settings(max_examples=60)
def test_actions_are_in_the_space(space, seed, is_masked):
    head = make_head(space)
    generator = torch.Generator().manual_seed(seed)
    outputs = 3 * torch.randn(3, head.num_outputs, generator=generator)
    mask = torch.rand(3, head.num_mask, generator=generator) < 0.5 if is_masked else None
    dist = head(outputs, mask)
    for action in (head.draw(outputs, generator, mask), head.mode(outputs, mask)):
        assert action.shape == (3, *head.action_shape)
        assert action.dtype == head.action_dtype
        assert dist.log_prob(action).shape == (3,)
        assert dist.log_prob(action).isfinite().all()
        env_actions = rows(space, head.to_env(action.numpy()))
        assert all(space.contains(env_action) for env_action in env_actions)
    assert dist.entropy().isfinite().all()


@given(
    observation=nested(OBSERVATION_LEAVES), action=nested(ACTION_LEAVES), seed=st.integers(0, 99)
)
@settings(max_examples=30)
def test_policies_act_within_their_space_after_a_round_trip(observation, action, seed):
    generator = torch.Generator().manual_seed(seed)
    policy = StandardPolicy(observation, action, hidden=(8,), generator=generator)
    restored = policy_from(json.loads(json.dumps(policy.describe())))
    restored.load_state_dict(policy.state_dict())
    obs = sampled(observation, seed)
    policy.seed(seed)
    restored.seed(np.int64(seed))  # was a TypeError of torch
    act = policy.act(obs)
    assert action.contains(act)
    assert space_equal(act, restored.act(obs))
    assert action.contains(policy.act(obs, deterministic=True))


def space_equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(space_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return all(space_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.array_equal(a, b))

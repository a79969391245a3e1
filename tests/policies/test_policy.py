"""Policy: forward, draw, act and what is saved, all telling the same story."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlpg.errors import SpaceError, UsageError
from rlpg.policies import Policy, StandardPolicy, policy_from

BOX = spaces.Box(-np.inf, np.inf, (4,))
DISCRETE = spaces.Discrete(3)
CASES: dict[str, tuple[spaces.Space, spaces.Space, dict[str, Any]]] = {
    "categorical": (BOX, DISCRETE, {}),
    "bernoulli": (BOX, spaces.Discrete(2, start=1), {"bernoulli": True}),
    "gaussian": (BOX, spaces.Box(-2, 2, (2,)), {}),
    "squashed": (BOX, spaces.Box(-2, 2, (2,)), {"gaussian": "squashed", "std": "dependent"}),
    "beta": (BOX, spaces.Box(-2, 2, (2, 2)), {"gaussian": "beta"}),
    "toy text": (spaces.Discrete(16), spaces.Discrete(4), {"hidden": (16,)}),
    "image": (spaces.Box(0, 255, (36, 36, 3), np.uint8), DISCRETE, {"activation": "relu"}),
    "mixed": (
        spaces.Dict({"i": spaces.Box(0, 255, (8, 8), np.uint8), "v": spaces.Box(-1, 1, (2,))}),
        spaces.Dict({"a": spaces.Box(0, 1, (1,)), "b": spaces.MultiDiscrete([2, 3])}),
        {},
    ),
    "masked": (
        spaces.Dict({"action_mask": spaces.MultiBinary(3), "x": spaces.Box(-1, 1, (2,))}),
        DISCRETE,
        {},
    ),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def create(name: str, seed: int = 0) -> Policy:
    observation_space, action_space, options = CASES[name]
    return StandardPolicy(observation_space, action_space, generator=generator(seed), **options)


def packed(policy: Policy, num: int, seed: int = 0) -> torch.Tensor:
    space = policy.observations.space
    space.seed(seed)
    return torch.stack(
        [torch.from_numpy(policy.observations.pack(space.sample())) for _ in range(num)]
    )


@pytest.mark.parametrize("name", CASES)
class TestEveryCase:
    def test_shapes(self, name):
        policy = create(name)
        obs = packed(policy, 6)
        with torch.inference_mode():
            action, carry = policy.draw(obs, None, generator())
        action = action.clone()
        assert carry is None
        assert action.shape == (6, *policy.head.action_shape)
        assert action.dtype == policy.head.action_dtype
        dist, _ = policy(obs)
        assert dist.log_prob(action).shape == (6,)
        time_major = obs.reshape(2, 3, *policy.observations.shape)
        nested, _ = policy(time_major)
        log_prob = nested.log_prob(action.reshape(2, 3, *policy.head.action_shape))
        torch.testing.assert_close(log_prob, dist.log_prob(action).reshape(2, 3))
        assert dist.entropy().shape == (6,)

    def test_a_saved_policy_is_restored_bit_for_bit(self, name):
        policy = create(name)
        obs = packed(policy, 16)
        if policy.normalizer is not None:
            policy.normalizer.update(policy.observations.features(obs))
        description = json.loads(json.dumps(policy.describe(), allow_nan=False))
        restored = policy_from(description)
        restored.load_state_dict({k: v.clone() for k, v in policy.state_dict().items()})
        assert restored.describe() == policy.describe()
        for twin in (restored, copy.deepcopy(policy)):
            action, _ = policy.draw(obs, None, generator())
            again, _ = twin.draw(obs, None, generator())
            assert torch.equal(action, again)
            assert torch.equal(policy(obs)[0].log_prob(action), twin(obs)[0].log_prob(action))
            assert torch.equal(policy.mode(obs)[0], twin.mode(obs)[0])

    def test_act_on_one_observation_and_on_a_batch_agree(self, name):
        policy = create(name)
        space = policy.observations.space
        space.seed(0)
        rows = [space.sample() for _ in range(3)]
        batch = stacked(rows)
        for row, expected in zip(
            rows, unstacked(policy.act(batch, deterministic=True)), strict=True
        ):
            action = policy.act(row, deterministic=True)
            assert policy.head.space.contains(action)
            assert_close(action, expected)
        assert policy.head.space.contains(policy.act(rows[0]))

    def test_features_and_the_distribution_of_them_are_what_forward_uses(self, name):
        policy = create(name)
        obs = packed(policy, 5)
        features = policy.features(obs)
        assert features.shape == (5, policy.observations.num_features)
        outputs, _ = policy.network(features)
        dist = policy.head(outputs, policy.observations.mask(obs))
        action, _ = policy.draw(obs, None, generator())
        assert torch.equal(dist.log_prob(action), policy(obs)[0].log_prob(action))

    def test_every_parameter_gets_a_gradient(self, name):
        policy = create(name)
        obs = packed(policy, 32)
        action, _ = policy.draw(obs, None, generator())
        policy(obs)[0].log_prob(action).sum().backward()
        for key, parameter in policy.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all()
            assert (parameter.grad != 0).any(), key

    def test_the_global_generators_are_not_touched(self, name):
        space = CASES[name][0]
        space.seed(0)
        obs = space.sample()
        before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
        policy = create(name)
        policy.act(obs)
        policy.seed(3)
        policy.act(obs)
        policy_from(policy.describe())
        assert torch.equal(before, torch.get_rng_state())
        assert (numpy_before == np.random.get_state()[1]).all()


def stacked(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {key: stacked([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)


def unstacked(batch: Any) -> list[Any]:
    if isinstance(batch, dict):
        parts = {key: unstacked(value) for key, value in batch.items()}
        return [
            dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)
        ]
    return list(batch)


def assert_close(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    else:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


class TestDraw:
    @pytest.mark.parametrize("name", ["categorical", "masked"])
    def test_draws_follow_forward(self, name):
        from scipy import stats  # takes a second, which collecting tests does not need

        policy = create(name)
        obs = packed(policy, 1, seed=5)
        with torch.no_grad():
            policy.network.mlp.layers[-1].weight.mul_(100)
        probs = policy(obs)[0].probs[0].detach().double().numpy()
        drawn, _ = policy.draw(obs.expand(20_000, -1), None, generator())
        counts = np.bincount(drawn, minlength=3)
        assert (counts[probs == 0] == 0).all()
        possible = probs > 0
        expected = probs[possible] / probs[possible].sum() * 20_000
        assert stats.chisquare(counts[possible], expected).pvalue > 1e-4

    def test_the_generator_alone_decides(self):
        policy = create("gaussian")
        obs = packed(policy, 8)
        first, _ = policy.draw(obs, None, generator(1))
        torch.rand(3, generator=generator(9))
        again, _ = policy.draw(obs, None, generator(1))
        other, _ = policy.draw(obs, None, generator(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_the_first_policy_is_nearly_uniform_or_centered(self):
        for name in ("categorical", "toy text", "image"):
            policy = create(name)
            probs = policy(packed(policy, 50))[0].probs
            np.testing.assert_allclose(probs.detach(), 1 / probs.shape[-1], rtol=0.1)
        policy = create("gaussian")
        assert policy.mode(packed(policy, 50))[0].abs().max() < 0.05


class TestAct:
    def test_one_discrete_action_is_an_integer(self):
        action = create("categorical").act(np.zeros(4, np.float32))
        assert isinstance(action, np.int64)
        assert [10, 20, 30][action]

    def test_seeded_acting_repeats_itself(self):
        policy = create("gaussian")
        obs = np.zeros(4, np.float32)
        runs = []
        for seed in (1, 1, 2):
            policy.seed(seed)
            runs.append([policy.act(obs).tolist() for _ in range(5)])
        assert runs[0] == runs[1] != runs[2]

    def test_unseeded_policies_act_differently(self):
        acts = [create("gaussian").act(np.zeros(4, np.float32)).tolist() for _ in range(2)]
        assert acts[0] != acts[1]

    def test_masks_from_info(self):
        policy = StandardPolicy(BOX, DISCRETE, info_mask=3, generator=generator())
        obs = np.zeros(4, np.float32)
        for deterministic in (False, True):
            mask = np.array([0, 1, 0], np.int8)
            assert policy.act(obs, deterministic, action_mask=mask) == 1
            batch = policy.act(np.stack([obs, obs]), deterministic, action_mask=np.eye(3)[:2])
            assert batch.tolist() == [0, 1]
        with pytest.raises(SpaceError, match="action mask: expected 3 entries"):
            policy.act(obs)

    def test_an_observation_of_another_shape_is_refused(self):
        with pytest.raises(SpaceError, match=r"expected shape \[4\], .* got \[3\]"):
            create("gaussian").act(np.zeros(3))

    def test_it_does_not_change_the_policy(self):
        policy = create("gaussian")
        before = copy.deepcopy(policy.state_dict())
        policy.act(np.full((5, 4), 3.0))
        assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())


class TestNormalization:
    def test_it_is_a_buffer_of_the_policy(self):
        policy = create("gaussian")
        assert policy.normalizer is not None
        obs = 5 + 3 * torch.randn(1000, 4, generator=generator())
        policy.normalizer.update(policy.observations.features(obs))
        assert policy.features(obs).mean().abs() < 1e-5
        assert "normalizer.mean" in policy.state_dict()

    @pytest.mark.parametrize("name", ["toy text", "image"])
    def test_there_is_none_where_nothing_would_be_normalized(self, name):
        assert create(name).normalizer is None

    def test_it_can_be_left_out(self):
        options = {"normalize_observations": False, "generator": generator()}
        assert StandardPolicy(BOX, DISCRETE, **options).normalizer is None

    def test_a_saved_policy_has_the_clip_it_was_made_with(self):
        policy = StandardPolicy(BOX, DISCRETE, observation_clip=2.0, generator=generator())
        restored = policy_from(policy.describe())
        assert restored.normalizer is not None
        obs = torch.randn(100, 4, generator=generator())
        restored.normalizer.update(obs)
        assert restored.features(100 * obs).abs().max() == 2.0


NETWORK = create("categorical").describe()["network"]


class TestRefusals:
    def test_a_mask_of_the_wrong_length(self):
        with pytest.raises(SpaceError, match="action mask: expected 3 entries for Discrete"):
            StandardPolicy(BOX, DISCRETE, info_mask=4, generator=generator())
        with pytest.raises(SpaceError, match="action mask: expected no entries for Box"):
            StandardPolicy(BOX, spaces.Box(-1, 1, (3,)), info_mask=3, generator=generator())

    def test_unsupported_spaces_before_anything_is_built(self):
        with pytest.raises(SpaceError, match=r"observation: expected Box, Discrete, .* got Text"):
            StandardPolicy(spaces.Text(3), DISCRETE, generator=generator())
        with pytest.raises(SpaceError, match=r"action: expected Box, Discrete, .* got Text"):
            StandardPolicy(BOX, spaces.Text(3), generator=generator())
        with pytest.raises(SpaceError, match="finite bounds"):
            StandardPolicy(BOX, BOX, gaussian="beta", generator=generator())

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 1},
            {"format": "2"},
            {"network": {"hidden": [64], "activation": "tanh", "class": "os.system"}},
            {"network": {"hidden": [64], "activation": "tanh"}},
            {"network": NETWORK | {"hidden": [64.0]}},
            {"network": NETWORK | {"hidden": [1] * 1000}},
            {"network": NETWORK | {"hidden": [10**9]}},
            {"network": NETWORK | {"activation": "eval"}},
            {"network": NETWORK | {"activation": None}},
            {"network": NETWORK | {"memory": "rnn"}},
            {"network": NETWORK | {"memory": "gru", "memory_size": 10**9}},
            {"network": NETWORK | {"memory": "gru", "memory_size": 0}},
            {"network": NETWORK | {"memory_size": True}},
            {"network": NETWORK | {"factory": "os:system"}},
            {"network": NETWORK | {"factory": "nonsense"}},
            {"network": NETWORK | {"factory": 3}},
            {"network": NETWORK | {"kwargs": []}},
            {"critic_only": "ab"},
            {"critic_only": ["a"]},
            {"critic_only": [["a"]]},
            {"policy": "os:system"},
            {"policy": 3},
            {"kwargs": {}},
            {"head": {}},
            {"head": {**create("beta").describe()["head"], "gaussian": "x"}},
            {"head": {**create("beta").describe()["head"], "log_std_init": float("nan")}},
            {"observations": {}},
            {"action_space": {"type": "Text"}},
            {"normalize_observations": 1},
            {"observation_clip": "10"},
            {"observation_clip": float("nan")},
            {"unknown": 1},
        ],
        ids=str,
    )
    def test_damaged_descriptions(self, change):
        description = {**create("categorical").describe(), **change}
        with pytest.raises(UsageError, match="expected"):
            policy_from(description)

    def test_descriptions_that_are_no_table(self):
        for description in (None, [], "policy", 3):
            with pytest.raises(UsageError, match="policy description: expected"):
                policy_from(description)

    def test_weights_of_another_shape(self):
        with pytest.raises(RuntimeError, match="size mismatch"):
            create("categorical").load_state_dict(create("bernoulli").state_dict())


def test_a_description_is_a_copy():
    policy = create("categorical")
    policy.describe()["network"]["hidden"].append(3)
    assert policy.describe()["network"]["hidden"] == [64, 64]

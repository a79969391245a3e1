"""Acting in NumPy is acting by torch: the same outputs, the same law, for whatever policy."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.testing import assert_allclose, assert_array_equal

from rlpg.policies import Policy, StandardPolicy
from rlpg.policies.fast_path import ArrayActor
from rlpg.policies.normalizer import Normalizer

VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float32)
ACTIONS: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "categorical": (spaces.Discrete(4, start=2), {}),
    "bernoulli": (spaces.Discrete(2), {"bernoulli": True}),
    "multi-categorical": (spaces.MultiDiscrete([2, 4, 3]), {}),
    "multi-binary": (spaces.MultiBinary((2, 2)), {}),
    "gaussian": (spaces.Box(-1, 1, (2, 3), np.float32), {}),
    "squashed": (spaces.Box(-1, 1, (3,), np.float32), {"gaussian": "squashed"}),
}


def make(space: spaces.Space[Any] = VECTOR, action: str = "categorical", **options: Any) -> Policy:
    """A policy that has seen something and prefers some actions to others."""
    generator = torch.Generator().manual_seed(0)
    action_space, of_head = ACTIONS[action]
    policy = StandardPolicy(space, action_space, generator=generator, **{**of_head, **options})
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    if policy.normalizer is not None:
        policy.normalizer.update(torch.randn(100, 5, generator=generator) * 3 + 1)
    return policy


def observations(num_envs: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 9, (num_envs, 5)).astype(np.float32)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "gelu"])
@pytest.mark.parametrize("num_envs", [1, 7, 300])  # 300: products too large for one BLAS thread
def test_deterministic_actions_are_those_of_mode(
    action: str, activation: str, num_envs: int
) -> None:
    policy = make(action=action, activation=activation)
    act = policy.actor(None, num_envs, 1)
    assert isinstance(act, ArrayActor)
    obs = observations(num_envs)
    with torch.inference_mode():
        expected, _ = Policy.actor(policy, None, num_envs)(obs, None, None)
        got, carry = act(obs, None, None)
    assert carry is None
    assert got.shape == expected.shape
    if policy.head.is_discrete:
        assert_array_equal(got, expected)
    else:
        assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_huge_offset_is_normalized_as_by_torch() -> None:
    """Near 2^24 a float32 mean is off by up to 1, a quarter of a standard deviation here."""
    policy = make(action="gaussian")
    policy.normalizer = Normalizer(policy.observations.normalized)
    steps = torch.randint(-4, 5, (1000, 5), generator=torch.Generator().manual_seed(1))
    seen = (2.0**24 + 2 * steps).float()
    policy.normalizer.update(seen)
    *_, shift = policy.normalizer.affine
    assert float(shift.abs().max()) > 0.01
    act, obs = policy.actor(None, 7, 1), seen[:7].numpy()
    assert isinstance(act, ArrayActor)
    with torch.inference_mode():
        expected, _ = Policy.actor(policy, None, 7)(obs, None, None)
        assert_allclose(act(obs, None, None)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_draw_is_the_mode_of_the_outputs_plus_the_noise(action: str) -> None:
    policy, num_envs = make(action=action), 6
    act = policy.actor(torch.Generator().manual_seed(3), num_envs, 9)
    assert isinstance(act, ArrayActor)
    noise = policy.head.noise((9, num_envs), torch.Generator().manual_seed(3))
    assert noise is not None
    with torch.inference_mode():
        for t in range(9):
            obs = observations(num_envs, t)
            outputs = policy.network(policy.features(torch.from_numpy(obs)))[0] + noise[t]
            expected = policy.head.mode(outputs).numpy()
            assert_allclose(act(obs, None, None)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("num_steps", "calls"), [(1, 5), (130, 130), (3, 300)])
def test_every_step_has_noise_of_its_own(num_steps: int, calls: int) -> None:
    policy = make(action="gaussian")
    act = policy.actor(torch.Generator().manual_seed(3), 2, num_steps)
    assert isinstance(act, ArrayActor)
    obs = observations(2)
    with torch.inference_mode():
        drawn = np.stack([act(obs, None, None)[0] for _ in range(calls)])
    assert len(np.unique(drawn)) == drawn.size


@pytest.mark.parametrize("action", ["categorical", "bernoulli", "multi-categorical"])
def test_noise_has_the_law_of_the_distribution(action: str) -> None:
    """z-test of every probability of every choice, 40 000 draws."""
    policy, draws = make(action=action), 40_000
    act = policy.actor(torch.Generator().manual_seed(5), draws, 1)
    assert isinstance(act, ArrayActor)
    obs = np.repeat(observations(1) / 9, draws, axis=0)
    with torch.inference_mode():
        drawn = act(obs, None, None)[0].reshape(draws, -1)  # [draws, K]
        law, _ = policy(torch.from_numpy(obs[:1]))
        choices = law.base_dist if action == "multi-categorical" else law
        probs = choices.probs.reshape(drawn.shape[1], -1)  # [K, width], or [1, 1] of the coin
    for k, row in enumerate(probs.tolist()):
        for value, prob in enumerate(row if action != "bernoulli" else [1 - row[0], row[0]]):
            if prob > 1e-6:
                z = (np.mean(drawn[:, k] == value) - prob) / np.sqrt(prob * (1 - prob) / draws)
                assert abs(z) < 4, (k, value, prob, z)
            else:
                assert np.mean(drawn[:, k] == value) == 0


@pytest.mark.parametrize(
    ("space", "options"),
    [
        (spaces.Discrete(5), {}),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), {}),
        (spaces.Dict({"a": VECTOR, "action_mask": spaces.MultiBinary(4)}), {}),
        (VECTOR, {"info_mask": 4}),
        (VECTOR, {"action": "gaussian", "std": "dependent"}),
        (VECTOR, {"action": "squashed", "gaussian": "beta"}),
    ],
)
def test_a_policy_that_is_more_than_an_mlp_acts_by_torch(
    space: spaces.Space[Any], options: dict[str, Any]
) -> None:
    options = {"normalize_observations": False, **options}
    policy = make(space, **options)
    assert not isinstance(policy.actor(torch.Generator(), 3, 1), ArrayActor)
    packed = np.stack([policy.observations.pack(space.sample(), mask=m) for m in masks(options)])
    with torch.inference_mode():
        action, _ = policy.actor(torch.Generator().manual_seed(1), 3)(packed, None, None)
        expected, _ = policy.draw(torch.from_numpy(packed), None, torch.Generator().manual_seed(1))
    assert_array_equal(action, expected.numpy())


def masks(options: dict[str, Any]) -> list[Any]:
    return [np.ones(4) if "info_mask" in options else None] * 3


def test_what_is_not_finite_warns_nobody() -> None:
    policy = make()
    act = policy.actor(torch.Generator(), 3)
    with torch.inference_mode():
        drawn, _ = act(np.full((3, 5), np.inf, np.float32), None, None)
    assert set(drawn) <= {0, 1, 2, 3}


def test_an_actor_knows_the_weights_of_its_making() -> None:
    policy = make(action="gaussian")
    obs = observations(2)
    with torch.inference_mode():
        before, _ = policy.actor(None, 2)(obs, None, None)
    with torch.no_grad():
        policy.network.mlp.linears[-1].bias += 1.0
    with torch.inference_mode():
        after, _ = policy.actor(None, 2)(obs, None, None)
    assert_allclose(after, before + 1.0, rtol=1e-5)


@pytest.mark.parametrize("action", ["categorical", "gaussian"])
@pytest.mark.parametrize("noisy", [False, True])
def test_environments_may_be_at_different_steps(action: str, noisy: bool) -> None:
    """Each gets the action that it gets if all take their steps together."""
    policy, num_envs, num_steps = make(action=action), 6, 150  # more than the noise of one block
    generator = torch.Generator() if noisy else None
    obs = [observations(num_envs, seed) for seed in range(num_steps)]

    def actor() -> ArrayActor:
        if generator is not None:
            generator.manual_seed(3)
        made = policy.actor(generator, num_envs, num_steps)
        assert isinstance(made, ArrayActor)
        return made

    with torch.inference_mode():
        together = actor()
        expected = [together(obs[t], None, None)[0] for t in range(num_steps)]
        apart = actor()
        mixed = np.concatenate([obs[149][:2], obs[3][2:5], obs[127][5:]])
        got = apart.at(mixed, [(149, slice(0, 2)), (3, slice(2, 5)), (127, slice(5, 6))])
        assert_array_equal(got[:2], expected[149][:2])
        assert_array_equal(got[2:5], expected[3][2:5])
        assert_array_equal(got[5:], expected[127][5:])

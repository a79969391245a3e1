"""Networks: shapes, initial weights, images of any size."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlpg.errors import UsageError
from rlpg.policies import MLP, Network, Observations, StandardPolicy
from rlpg.policies.networks import CNN


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu", "gelu"])
def test_mlp_is_what_the_modules_of_torch_compute(activation):
    mlp = MLP(3, 2, hidden=(5, 4), activation=activation, generator=generator())
    function = {"silu": torch.nn.SiLU, "gelu": torch.nn.GELU, "elu": torch.nn.ELU}
    module = function.get(
        activation, {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}.get(activation)
    )
    peer = torch.nn.Sequential(mlp.layers[0], module(), mlp.layers[1], module(), mlp.layers[2])
    inputs = torch.randn(7, 6, 3, generator=generator())
    torch.testing.assert_close(mlp(inputs), peer(inputs))


def test_weights_are_orthogonal_with_their_gains_and_biases_zero():
    mlp = MLP(8, 3, hidden=(8,), output_gain=0.01, generator=generator())
    first, last = (layer.weight.detach() for layer in mlp.layers)
    torch.testing.assert_close(first @ first.T, 2.0 * torch.eye(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(last @ last.T, 1e-4 * torch.eye(3), atol=1e-8, rtol=0)
    assert all((layer.bias == 0).all() for layer in mlp.layers)


def test_the_generator_alone_decides_the_weights():
    before = torch.get_rng_state()
    weights = [MLP(4, 2, generator=generator(s)).layers[0].weight for s in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("hidden", [(0,), (-1, 2), (10**9,), (2**14, 2**14)])
def test_impossible_or_enormous_layers_are_refused(hidden):
    with pytest.raises(UsageError, match="hidden: expected"):
        MLP(4, 2, hidden=hidden)


def test_unknown_activations_are_refused_with_the_known():
    with pytest.raises(UsageError, match=r"expected one of tanh, relu, .* got swish"):
        MLP(4, 2, activation="swish")


def test_no_hidden_layer_is_a_linear_map():
    assert len(MLP(4, 2, hidden=(), generator=generator()).layers) == 1


@pytest.mark.parametrize(
    ("shape", "num_layers"),
    [((1, 13, 13), 2), ((3, 16, 17), 2), ((4, 84, 84), 5), ((3, 210, 160), 6)],
)
def test_images_of_any_size_are_halved_until_small(shape, num_layers):
    cnn = CNN(shape, generator=generator())
    assert len(cnn.layers) == num_layers
    assert cnn(torch.zeros(2, *shape)).shape == (2, cnn.num_outputs)
    assert cnn.num_outputs <= 64 * 4 * 5


@pytest.mark.parametrize(
    ("shape", "seen"),
    [((1, 2, 3), 2 * 3), ((1, 5, 6), 3 * 4), ((4, 12, 10), 10 * 8), ((111, 8, 8), 6 * 6)],
)
def test_a_board_is_not_halved_and_its_every_cell_matters(shape, seen):
    cnn = CNN(shape, generator=generator())
    board = torch.randn(1, *shape, generator=generator(), requires_grad=True)
    outputs = cnn(board)
    assert outputs.shape == (1, cnn.num_outputs) == (1, 16 * seen)
    outputs.square().sum().backward()
    assert (board.grad != 0).all()


IMAGES = spaces.Dict(
    {
        "far": spaces.Box(0, 255, (8, 9, 3), np.uint8),
        "near": spaces.Box(0, 255, (3, 7, 7), np.uint8),
        "speed": spaces.Box(-1, 1, (2,)),
    }
)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (4, 3), (0,)])
@pytest.mark.parametrize(
    "space", [IMAGES, spaces.Box(0, 255, (8, 8), np.uint8)], ids=["mix", "one"]
)
def test_images_and_numbers_with_any_batch_shape(space, batch):
    observations = Observations(space)
    network = Network(observations, 3, generator=generator())
    assert network(torch.rand(*batch, observations.num_features))[0].shape == (*batch, 3)


def test_a_batch_of_images_is_its_rows():
    observations = Observations(IMAGES)
    network = Network(observations, 3, hidden=(8,), generator=generator())
    features = torch.rand(6, observations.num_features, generator=generator())
    rows = torch.stack([network(row)[0] for row in features])
    torch.testing.assert_close(network(features)[0], rows)
    torch.testing.assert_close(network(features.reshape(2, 3, -1))[0], rows.reshape(2, 3, 3))


def test_every_input_matters_and_every_parameter_learns():
    observations = Observations(IMAGES)
    network = Network(observations, 1, hidden=(8,), generator=generator())
    features = torch.rand(4, observations.num_features, generator=generator(), requires_grad=True)
    network(features)[0].sum().backward()
    assert features.grad is not None
    for part in (slice(0, 216), slice(216, 363), slice(363, 365)):
        assert (features.grad[:, part] != 0).any()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).any()


def test_output_gain_scales_the_outputs():
    observations = Observations(spaces.Box(-1, 1, (4,)))
    network = Network(observations, 2, output_gain=0.01, generator=generator())
    outputs, _ = network(torch.randn(100, 4, generator=generator()))
    assert outputs.abs().max() < 0.01 * math.sqrt(64)


class Doubling(torch.nn.Linear):
    def forward(self, x):
        x *= 2.0
        return super().forward(x)


@pytest.mark.parametrize("memory", [None, "gru"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_network_that_writes_into_its_input_changed_rollouts_and_environments(shape, memory):
    policy = StandardPolicy(
        spaces.Box(-9, 9, shape), spaces.Discrete(2), generator=generator(), network=Doubling,
        memory=memory,
    )  # fmt: skip
    obs = np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32)
    before, given = obs.copy(), torch.from_numpy(obs)
    for _ in range(2):
        policy.act(obs)
        policy.actor(generator(), 5)(obs, None, None)
        policy.forward(given[None])
        policy.make_critic(generator=generator()).forward(policy.features(given[None]))
    np.testing.assert_array_equal(obs, before)
    outputs, _ = policy.network(torch.ones(1, 1, policy.observations.num_features))
    again, _ = policy.network(torch.ones(1, 1, policy.observations.num_features))
    assert torch.equal(outputs, again)

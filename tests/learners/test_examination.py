"""What the first updates refuse in networks and policies of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

import rlpg
from rlpg.errors import TrainingError, UsageError


class Sub(nn.Module):
    """Two layers with something between them."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(num_inputs, 8), nn.Linear(8, num_outputs)

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(self.between(torch.tanh(self.first(rows))))

    def between(self, x: Tensor) -> Tensor:
        return x


class BatchMean(Sub):
    def between(self, x: Tensor) -> Tensor:
        return x - 3.0 * x.mean(0)


class BatchNormAsFunction(Sub):
    def between(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)


class Attention(Sub):
    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(num_inputs, num_outputs)
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0)

    def between(self, x: Tensor) -> Tensor:
        return self.layer(x)  # [B, F]: one sequence of B


class AttentionInside(Attention):
    def between(self, x: Tensor) -> Tensor:
        return self.layer(x[None])[0]  # [1, B, F]: B sequences of one


class GRUOverRows(Sub):
    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(num_inputs, num_outputs)
        self.layer = nn.GRU(8, 8)

    def between(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Recalls(Sub):
    seen: Tensor | float = 0.0

    def between(self, x: Tensor) -> Tensor:
        x = x + 0.9 * self.seen
        self.seen = x.mean(0).detach()
        return x


class LayersInAList(Sub):
    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(num_inputs, num_outputs)
        self.layers = [nn.Linear(8, 8)]

    def between(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


class NoParameter(Sub):
    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(num_inputs, num_outputs)
        self.gain = torch.ones(8, requires_grad=True)

    def between(self, x: Tensor) -> Tensor:
        return x * self.gain


class FrozenTeacher(LayersInAList):
    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(num_inputs, num_outputs)
        self.layers[0].requires_grad_(False)


class Tied(Sub):
    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(num_inputs, num_outputs)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight

    def between(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class Dropping(Sub):
    def between(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)


class RReLU(Sub):
    def between(self, x: Tensor) -> Tensor:
        return nn.RReLU()(x)


class CountsPasses(Sub):
    """Every pass has another output, by a little, and none of it is chance."""

    passes = 0

    def forward(self, rows: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(rows) + 1e-4 * self.passes


CHANCE = "expected the same output for a sample whenever it is seen"
COUPLED = "expected the same output for a sample whatever is beside it"
UNREGISTERED = r"among its parameters\(\), got one of shape"
PARTS = {
    BatchMean: COUPLED, BatchNormAsFunction: COUPLED, Attention: COUPLED, GRUOverRows: COUPLED,
    LayersInAList: UNREGISTERED, NoParameter: UNREGISTERED, Sub: "",
    Dropping: CHANCE, RReLU: CHANCE,
    AttentionInside: "", FrozenTeacher: "", Tied: "", nn.Linear: "", CountsPasses: "",
}  # fmt: skip


@pytest.fixture
def envs() -> Iterator[Any]:
    made = rlpg.make_envs("CartPole-v1", 4, seed=0).envs
    yield made
    made.close()


@pytest.mark.parametrize("make", PARTS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("memory", [None, "gru"])
def test_the_output_for_a_sample_follows_from_it_and_the_parameters(
    envs: Any, make: Any, memory: Any
) -> None:
    both, generator = (envs.single_observation_space, envs.single_action_space), torch.Generator()
    torch.manual_seed(0)
    plain = rlpg.StandardPolicy(*both, memory=memory, generator=generator)
    own = rlpg.StandardPolicy(*both, memory=memory, network=make, generator=generator)
    for policy, baseline, name in (
        (own, "none", "policy"),
        (plain, rlpg.Value(make(4, 1)), "value network"),
    ):
        learner = rlpg.Reinforce(policy, baseline, entropy_coef=0.0)
        collector = rlpg.Collector(envs, policy, 0)
        message, rollout = f"^{name}: .*{PARTS[make]}", collector.episodes(1)
        state = torch.get_rng_state()
        with pytest.raises(UsageError, match=message) if PARTS[make] else nullcontext():
            learner.update(rollout)
        assert PARTS[make] or torch.equal(state, torch.get_rng_state())


def test_a_tensor_kept_from_an_earlier_pass_is_seen(envs: Any) -> None:
    policy = rlpg.StandardPolicy(envs.single_observation_space, envs.single_action_space,
                                 network=Recalls, generator=torch.Generator())  # fmt: skip
    learner, collector = rlpg.Reinforce(policy, "none"), rlpg.Collector(envs, policy, 0)
    with pytest.raises(UsageError, match=f"policy: {COUPLED}"):
        learner.update(collector.episodes(1))


class ZeroLast(Dropping):
    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__(num_inputs, num_outputs)
        nn.init.zeros_(self.last.weight)


def test_bug_a_last_layer_that_began_at_0_hid_the_dropout_before_it(envs: Any) -> None:
    """The first update found equal outputs, none looked again, and no resumed run was the same."""
    policy = rlpg.StandardPolicy(envs.single_observation_space, envs.single_action_space,
                                 network=ZeroLast, generator=torch.Generator())  # fmt: skip
    learner, collector = rlpg.Reinforce(policy, "none"), rlpg.Collector(envs, policy, 0)
    learner.update(collector.episodes(1))
    with pytest.raises(UsageError, match=r"policy: expected the same output .*F\.dropout"):
        learner.update(collector.episodes(1))


class Listed(rlpg.Policy):
    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__(observation_space, action_space)
        self.layers = [nn.Linear(self.observations.num_features, 8)]
        self.last = nn.Linear(8, action_space.n)

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        hidden = torch.tanh(self.layers[0](self.features(obs)))
        return Categorical(logits=self.last(hidden)), None


def test_bug_layers_in_a_list_were_neither_trained_nor_saved(tmp_path: Path) -> None:
    """A run that ended at 470 loaded as a policy of 9: the layers were drawn anew."""
    with pytest.raises(TrainingError, match=r"nn\.ModuleList"):
        rlpg.train("CartPole-v1", "ppo", run_dir=tmp_path / "run", policy=Listed, quiet=True,
                   total_steps=64, overrides={"rollout.num_envs": 2})  # fmt: skip


def test_a_pathwise_critic_of_ones_own_is_examined() -> None:
    from rlpg.envs.swing_up import SwingUpDynamics

    env = SwingUpDynamics()
    policy = rlpg.StandardPolicy(env.observation_space, env.action_space, gaussian="squashed",
                                 generator=torch.Generator())  # fmt: skip
    num_features = policy.observations.num_features
    torch.manual_seed(0)
    for make, message in ((LayersInAList, UNREGISTERED), (BatchMean, COUPLED)):
        learner = rlpg.Pathwise(policy, rlpg.Value(make(num_features, 1)), gradient="pathwise")
        collector = rlpg.TensorCollector(env, policy, num_envs=4, gradient="pathwise")
        with pytest.raises(UsageError, match=f"value network: .*{message}"):
            learner.update(collector.steps(32))

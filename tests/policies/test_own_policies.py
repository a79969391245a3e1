"""A user's policy and a user's network: what they define is what acts, learns and is saved."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
)  # fmt: skip

from rlpg import PPO, Collector, Policy, Reinforce, Rollout, StandardPolicy, make_head
from rlpg.errors import UsageError
from rlpg.policies import Carry, map_carry, policy_from, restarted
from rlpg.policies.normalizer import Normalizer
from rlpg.policies.references import UserParts

OBS = spaces.Box(-10.0, 10.0, (3,))
NUM_MASK = 4


class Walk(gymnasium.Env[Any, Any]):
    """Numbers that depend on the action; episodes of 1 to 6 steps, ended in both ways."""

    observation_space = OBS

    def __init__(self, index: int, action_space: spaces.Space[Any], masks: bool = False) -> None:
        self.action_space, self.masks = action_space, masks
        self.random = np.random.default_rng(index)

    def answer(self) -> tuple[np.ndarray, dict[str, Any]]:
        info = {}
        if self.masks:
            allowed = self.random.random(NUM_MASK) < 0.5
            allowed[self.random.integers(NUM_MASK)] = True
            info["action_mask"] = allowed.astype(np.int8)
            self.allowed = allowed
        return self.random.normal(size=3).astype(np.float32), info

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.left = int(self.random.integers(1, 7))
        return self.answer()

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        assert not self.masks or self.allowed[int(action)]
        self.left -= 1
        over, is_end = self.left == 0, bool(self.random.integers(2))
        reward = float(np.sum(action)) + float(self.random.normal())
        obs, info = self.answer()
        return obs, reward, over and is_end, over and not is_end, info


@pytest.mark.parametrize("name", ["actor", "features", "head", "mode"])
def test_a_layer_called_like_a_part_of_the_policy_hid_it_or_was_hidden(name: str) -> None:
    class Actor(FeedForward):
        def __init__(self, *spaces: Any) -> None:
            super().__init__(*spaces)
            setattr(self, name, nn.Linear(3, 2))

    with pytest.raises(UsageError, match=rf"^Actor\.{name}: expected another name for a Linear"):
        Actor(OBS, spaces.Box(-1.0, 1.0, (2,)))


def test_a_head_and_a_normalizer_of_ones_own_keep_their_names() -> None:
    policy = FeedForward(OBS, spaces.Box(-1.0, 1.0, (2,)))
    policy.head = make_head(policy.head.space, gaussian="squashed")
    policy.normalizer = Normalizer(policy.observations.normalized)
    assert {"head", "normalizer"} <= dict(policy.named_modules()).keys()


def walks(
    action_space: spaces.Space[Any], *, masks: bool = False, mode: AutoresetMode
) -> SyncVectorEnv:
    makers = [functools.partial(Walk, n, action_space, masks) for n in range(4)]
    return SyncVectorEnv(makers, autoreset_mode=mode)


class FeedForward(Policy):
    """A Normal whose mean is linear in the observation."""

    def __init__(self, observation_space: Any, action_space: Any, *, width: float = 0.5) -> None:
        super().__init__(observation_space, action_space)
        self.linear = nn.Linear(self.observations.num_features, 2)
        self.width = width

    def forward(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Distribution, Carry]:
        mean = self.linear(self.features(obs))  # [..., 2]
        return Independent(Normal(mean, torch.full_like(mean, self.width)), 1), None


class Masked(Policy):
    """A Categorical over what the mask in `info` allows."""

    def __init__(self, observation_space: Any, action_space: Any, *, info_mask: int) -> None:
        super().__init__(observation_space, action_space, info_mask=info_mask)
        self.linear = nn.Linear(self.observations.num_features, info_mask)

    def forward(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Distribution, Carry]:
        mask = self.observations.mask(obs)
        assert mask is not None
        logits = torch.where(mask, self.linear(self.features(obs)), -1e30)
        return Categorical(logits=logits), None


class Decaying(Policy):
    """Memory of its own: a decaying sum of what was seen, `[N, 3]`."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__(observation_space, action_space)
        self.linear = nn.Linear(3, 4)
        self.decay = nn.Parameter(torch.tensor(0.5))

    def initial_carry(self, num_envs: int) -> Carry:
        return torch.zeros(num_envs, 3)

    def remembered(self, before: Carry, seen: Tensor) -> tuple[Tensor, Carry]:
        assert isinstance(before, Tensor)
        after = self.decay * before + seen
        return after, after

    def forward(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Distribution, Carry]:
        seen, shown = self.features(obs), []  # [T, n, 3]
        for t in range(len(seen)):
            if episode_start is not None:
                carry = restarted(carry, episode_start[t])
            output, carry = self.remembered(carry, seen[t])
            shown.append(output)
        return Categorical(logits=self.linear(torch.stack(shown))), carry


class Pair(Decaying):
    """Its carry is a tuple of different shapes: the sum `[N, 3]` and a clock `[N]`."""

    def initial_carry(self, num_envs: int) -> Carry:
        return torch.zeros(num_envs, 3), torch.zeros(num_envs)

    def remembered(self, before: Carry, seen: Tensor) -> tuple[Tensor, Carry]:
        assert isinstance(before, tuple)
        total = self.decay * before[0] + seen
        return total + before[1].unsqueeze(-1), (total, before[1] + 1)


KINDS: dict[str, tuple[type[Policy], spaces.Space[Any], dict[str, Any]]] = {
    "feed-forward": (FeedForward, spaces.Box(-5.0, 5.0, (2,)), {}),
    "masked": (Masked, spaces.Discrete(NUM_MASK), {"info_mask": NUM_MASK}),
    "memory": (Decaying, spaces.Discrete(4), {}),
    "tuple": (Pair, spaces.Discrete(4), {}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_mode = pytest.mark.parametrize("mode", list(AutoresetMode))


def make(kind: str) -> Policy:
    factory, action_space, options = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return factory(OBS, action_space, **options)


def collector_of(kind: str, policy: Policy, mode: AutoresetMode, seed: int = 3) -> Collector:
    envs = walks(KINDS[kind][1], masks=kind == "masked", mode=mode)
    return Collector(envs, policy, seed=seed)


@each_kind
@each_mode
class TestOfEveryKind:
    def test_what_acted_is_what_learns(self, kind: str, mode: AutoresetMode) -> None:
        """The learner's log-probs are the collector's, rollout after rollout."""
        policy = make(kind)
        collector = collector_of(kind, policy, mode)
        learner = PPO(policy, "none", gae_lambda=None, num_minibatches=2)
        for _ in range(3):
            rollout = collector.steps(11)
            assert rollout.log_prob is not None
            assert rollout.log_prob.shape == rollout.reward.shape
            batch = learner.batch(rollout)
            if policy.has_memory:
                keep = batch.weight > 0
                assert torch.equal(keep, rollout.valid)
                got, expected = batch.log_prob[keep], rollout.log_prob[keep]
            else:  # in the order of the groups of environments
                halves = [slice(0, 2), slice(2, 4)]
                parts = [rollout.log_prob[:, n][rollout.valid[:, n]] for n in halves]
                got, expected = batch.log_prob, torch.cat(parts)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
            learner.update(rollout)

    def test_acting_step_by_step_is_the_sequence(self, kind: str, mode: AutoresetMode) -> None:
        """The parameters of each step's distribution, as the collector's calls of `forward` made
        them, are those of one call on the stored rollout."""
        policy = make(kind)
        collector = collector_of(kind, policy, mode)
        drawn_from: list[Tensor] = []
        forward = policy.forward

        def noted(*args: Any) -> Any:
            law, carry = forward(*args)
            drawn_from.append(parameter_of(law))
            return law, carry

        collector.steps(4)  # the next one begins in the middle of episodes
        policy.forward = noted  # type: ignore[method-assign]
        rollout = collector.steps(13)
        policy.forward = forward  # type: ignore[method-assign]
        law, _ = policy(rollout.obs[:-1], rollout.carry, rollout.episode_start[:-1])
        per_step = torch.cat([p.reshape(1, 4, -1) for p in drawn_from[:13]])
        whole = parameter_of(law).reshape(13, 4, -1)
        torch.testing.assert_close(
            per_step[rollout.valid], whole[rollout.valid], rtol=1e-5, atol=1e-6
        )

    def test_all_of_it_learns_and_is_finite(self, kind: str, mode: AutoresetMode) -> None:
        policy = make(kind)
        collector = collector_of(kind, policy, mode)
        learner = Reinforce(policy, "value", value_hidden=(8,))
        before = {name: value.clone() for name, value in policy.named_parameters()}
        for _ in range(3):
            metrics = learner.update(collector.steps(12))
            assert all(map(math.isfinite, metrics.values()))
        for name, value in policy.named_parameters():
            if not name.startswith("head."):  # this policy has a width of its own
                assert not torch.equal(value, before[name]), name


def parameter_of(law: Distribution) -> Tensor:
    return law.base_dist.loc if isinstance(law, Independent) else law.logits


@each_kind
def test_draws_have_the_law_of_forward(kind: str) -> None:
    """Of 20 000 draws in one state each: chi-squared for choices, Kolmogorov-Smirnov for numbers.

    With memory, in the second step, from the carry that the first one left.
    """
    from scipy import stats  # takes a second, which collecting tests does not need

    policy, num = make(kind), 20_000
    obs = torch.tensor([0.5, -1.0, 2.0, 1.0, 0.0, 1.0, 1.0][: 7 if kind == "masked" else 3])
    rows, generator = obs.expand(num, -1), torch.Generator().manual_seed(1)
    carry = None
    with torch.inference_mode():
        if policy.has_memory:
            fresh = torch.ones(num, dtype=torch.bool)
            _, carry = policy.draw(rows, policy.initial_carry(num), generator, fresh)
        drawn, _ = policy.draw(rows, carry, generator)
        if policy.has_memory:
            one = map_carry(lambda part: part[:1], carry)
            law, _ = policy(obs[None, None], one, None)
        else:
            law, _ = policy(obs[None])
    if kind == "feed-forward":
        base = law.base_dist
        for i in range(2):
            exact = stats.norm(float(base.loc[0, i]), float(base.scale[0, i]))
            assert stats.kstest(drawn[:, i].double().numpy(), exact.cdf).pvalue > 1e-4
        return
    probs = law.probs.reshape(4).double().numpy()
    counts = np.bincount(drawn.numpy(), minlength=4)
    assert (counts[probs == 0] == 0).all()
    possible = probs > 0
    expected = probs[possible] / probs[possible].sum() * num
    assert stats.chisquare(counts[possible], expected).pvalue > 1e-4


@each_kind
class TestFiles:
    def test_a_description_makes_it_again(self, kind: str) -> None:
        factory, action_space, options = KINDS[kind]
        policy = make(kind)
        data = json.loads(json.dumps(policy.describe(), allow_nan=False))
        again = policy_from(data, UserParts(policy=factory))
        again.load_state_dict(policy.state_dict())
        assert type(again) is factory
        assert again.describe() == policy.describe()
        assert again.head.space == action_space
        assert again.observations.info_mask == options.get("info_mask", 0)
        obs = torch.randn(5, 3 + options.get("info_mask", 0))
        carry = policy.initial_carry(5)
        for each in (policy, again):
            each.seed(3)
        first, second = (each.mode(obs, carry)[0] for each in (policy, again))
        assert torch.equal(first, second)

    def test_reading_a_file_imports_nothing(self, kind: str) -> None:
        data = make(kind).describe()
        with pytest.raises(
            UsageError, match=r"policy: expected .*:.* to be given, .* pass policy="
        ):
            policy_from(data)

    def test_act_on_one_observation_and_on_a_batch(self, kind: str) -> None:
        policy, options = make(kind), KINDS[kind][2]
        mask = np.eye(4)[1] if options else None
        obs = np.ones(3, np.float32)
        assert policy.head.space.contains(policy.act(obs, action_mask=mask))
        policy.reset()
        masks = np.stack([mask] * 5) if mask is not None else None
        many = policy.act(np.stack([obs] * 5), action_mask=masks)
        assert len(many) == 5


def test_keyword_arguments_are_kept_as_data() -> None:
    factory = functools.partial(FeedForward, width=2.0)
    from rlpg.policies import make_own_policy
    from rlpg.policies.references import reference_to

    generator = torch.Generator().manual_seed(0)
    space = spaces.Box(-5.0, 5.0, (2,))
    policy = make_own_policy(
        factory, reference_to(factory, "policy"), OBS, space, generator=generator
    )
    data = policy.describe()
    assert data["kwargs"] == {"width": 2.0}
    again = policy_from(data, UserParts(policy=FeedForward))
    assert isinstance(again, FeedForward)
    assert again.width == 2.0


class TestWhatASubclassGetsWrong:
    action_space = spaces.Box(-5.0, 5.0, (2,))

    def collect(self, policy: Policy) -> Rollout:
        envs = walks(policy.head.space, mode=AutoresetMode.NEXT_STEP)
        return Collector(envs, policy).steps(3)

    def test_a_carry_without_an_initial_one(self) -> None:
        class Forgets(FeedForward):
            def forward(self, *args: Any) -> Any:
                law, _ = super().forward(*args)
                return law, torch.zeros(4, 1)

        with pytest.raises(UsageError, match=r"Forgets\.forward: .*define initial_carry"):
            self.collect(Forgets(OBS, self.action_space))

    def test_no_carry_at_all(self) -> None:
        class Alone(FeedForward):
            def forward(self, *args: Any) -> Any:
                return super().forward(*args)[0]

        with pytest.raises(UsageError, match=r"Alone\.forward: .*\(distribution, None\) without"):
            self.collect(Alone(OBS, self.action_space))

    @pytest.mark.parametrize("place", ["initial_carry", "forward"])
    @pytest.mark.parametrize(
        ("change", "got"),
        [
            (lambda x: x[None], r"shape \[1, 4, 1\]"),  # as torch's LSTM has it
            (lambda x: [x], "list"),
            (lambda x: {"h": x}, "dict"),
            (lambda x: (x, x[0, 0]), r"shape \[\]"),
        ],
    )
    def test_a_carry_that_is_not_environment_first_ended_in_an_index_error(
        self, place: str, change: Any, got: str
    ) -> None:
        class Odd(FeedForward):
            def initial_carry(self, num_envs: int) -> Any:
                zeros = torch.zeros(num_envs, 1)
                return change(zeros) if place == "initial_carry" else zeros

            def forward(self, *args: Any) -> Any:
                return super().forward(*args)[0], change(torch.zeros(4, 1))

        with pytest.raises(UsageError, match=rf"Odd\.{place}: expected a carry .*got {got};"):
            self.collect(Odd(OBS, self.action_space))

    def test_an_action_of_another_shape(self) -> None:
        class Wide(FeedForward):
            def forward(self, obs: Tensor, *args: Any) -> Any:
                mean = torch.zeros(*obs.shape[:-1], 3)
                return Independent(Normal(mean, torch.ones_like(mean)), 1), None

        with pytest.raises(
            UsageError, match=r"Wide\.forward: expected .*\[N, \*A\] = \[4, 2\], got \[4, 3\]"
        ):
            self.collect(Wide(OBS, self.action_space))

    def test_one_log_prob_per_dimension(self) -> None:
        class Loose(FeedForward):
            def forward(self, *args: Any) -> Any:
                law, carry = super().forward(*args)
                return law.base_dist, carry

        policy = Loose(OBS, self.action_space)
        with pytest.raises(UsageError, match=r"one log-prob per .*wrap .*Independent"):
            self.collect(policy)
        envs = walks(self.action_space, mode=AutoresetMode.NEXT_STEP)
        rollout = Collector(envs, policy, log_prob=False).steps(3)
        for learner in (Reinforce, PPO):
            with pytest.raises(UsageError, match=r"one log-prob per .*wrap .*Independent"):
                learner(policy, "none", gae_lambda=None).update(rollout)

    def test_the_standard_policy_is_final(self) -> None:
        with pytest.raises(TypeError, match=r"StandardPolicy is final; subclass rlpg\.Policy"):
            type("Mine", (StandardPolicy,), {})

    def test_a_policy_without_forward_cannot_be_made(self) -> None:
        with pytest.raises(TypeError, match="abstract"):
            type("Mine", (Policy,), {})(OBS, self.action_space)

    def test_a_factory_of_something_else(self) -> None:
        from rlpg.policies import make_own_policy
        from rlpg.policies.references import reference_to

        def factory(observation_space: Any, action_space: Any) -> Any:
            return nn.Linear(1, 1)

        with pytest.raises(UsageError, match=r"policy: expected .*factory to make an rlpg\.Policy"):
            make_own_policy(
                factory, reference_to(factory, "policy"), OBS, self.action_space,
                generator=torch.Generator(),
            )  # fmt: skip


# ------------------------------------------------------------------------- a network of one's own


class Torso(nn.Module):
    """A user's network."""

    def __init__(self, num_features: int, num_outputs: int, *, width: int = 7) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_features, width), nn.ReLU(), nn.Linear(width, num_outputs)
        )

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.layers(features)
        return out


NETWORKS: dict[str, Any] = {
    "class": Torso,
    "partial": functools.partial(Torso, width=3),
    "name": f"{__name__}:Torso",
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """importlib mode gives this module a name that is not a package's."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, _this_module()))


def _this_module() -> Any:
    import types

    module = types.ModuleType(__name__)
    vars(module).update(globals())
    return module


@pytest.mark.parametrize("memory", [None, "gru", "lstm"])
@pytest.mark.parametrize("way", NETWORKS)
class TestNetworks:
    def policy(self, way: str, memory: str | None, seed: int = 0) -> StandardPolicy:
        return StandardPolicy(
            OBS,
            spaces.Discrete(4),
            network=NETWORKS[way],
            memory=memory,
            memory_size=5,
            generator=torch.Generator().manual_seed(seed),
        )

    def test_is_that_of_policy_and_critic(self, way: str, memory: str | None) -> None:
        policy = self.policy(way, memory)
        learner = Reinforce(policy, "value")
        width = 3 if way == "partial" else 7
        for network, num_outputs in ((policy.network, 4), (learner.baseline.network, 1)):  # type: ignore[attr-defined]
            own = network.mlp.module
            assert isinstance(own, Torso)
            assert own.layers[0].weight.shape == (width, 3 if memory is None else 5)
            assert own.layers[2].weight.shape == (num_outputs, width)
        envs = walks(spaces.Discrete(4), mode=AutoresetMode.SAME_STEP)
        metrics = learner.update(Collector(envs, policy).steps(8))
        assert math.isfinite(metrics["gradient/norm"])

    def test_its_weights_come_from_the_generator(self, way: str, memory: str | None) -> None:
        before = torch.get_rng_state()
        one, same, other = (self.policy(way, memory, seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(one[name], same[name]) for name in one)
        name = "network.mlp.module.layers.0.weight"
        assert not torch.equal(one[name], other[name])
        assert torch.equal(before, torch.get_rng_state())

    def test_round_trip(self, way: str, memory: str | None) -> None:
        policy = self.policy(way, memory)
        data = json.loads(json.dumps(policy.describe(), allow_nan=False))
        assert data["network"]["factory"].endswith(":Torso")
        assert data["network"]["kwargs"] == ({"width": 3} if way == "partial" else {})
        with pytest.raises(
            UsageError, match=r"network: expected .*:Torso to be given, .* network="
        ):
            policy_from(data)
        again = policy_from(data, UserParts(network=Torso))
        again.load_state_dict(policy.state_dict())
        assert again.describe() == policy.describe()
        obs = torch.randn(6, 3)
        assert torch.equal(policy.mode(obs)[0], again.mode(obs)[0])


class TestNetworksThatAreRefused:
    def policy(self, network: Any) -> StandardPolicy:
        generator = torch.Generator().manual_seed(0)
        return StandardPolicy(OBS, spaces.Discrete(4), network=network, generator=generator)

    def test_a_lambda_is_to_be_given_again(self) -> None:
        def make(num_inputs: int, num_outputs: int) -> nn.Module:
            return nn.Linear(num_inputs, num_outputs)

        policy = self.policy(lambda *sizes: make(*sizes))
        data = json.loads(json.dumps(policy.describe(), allow_nan=False))
        with pytest.raises(UsageError, match="importable"):
            policy_from(data, UserParts(import_modules=True))
        again = policy_from(data, UserParts(network=make))
        again.load_state_dict(policy.state_dict())
        obs = torch.randn(6, 3)
        assert torch.equal(policy.mode(obs)[0], again.mode(obs)[0])

    def test_what_is_no_module(self) -> None:
        def network(num_inputs: int, num_outputs: int) -> Any:
            return 3

        with pytest.raises(UsageError, match=r"network: expected a torch\.nn\.Module, got 3"):
            self.policy(network)

    def test_outputs_of_another_shape(self) -> None:
        def network(num_inputs: int, num_outputs: int) -> nn.Module:
            return nn.Linear(num_inputs, num_outputs + 1)

        policy = self.policy(network)
        with pytest.raises(
            UsageError, match=r"network: expected \[B, num_outputs\] = \[5, 4\], got \[5, 5\]"
        ):
            policy(torch.zeros(5, 3))

    def test_positional_arguments(self) -> None:
        with pytest.raises(UsageError, match="network: expected keyword arguments in the partial"):
            self.policy(functools.partial(Torso, 3))

    @pytest.mark.parametrize("name", ["nowhere_at_all:Torso", "math:Torso", "math:pi", "Torso"])
    def test_a_name_of_nothing(self, name: str) -> None:
        with pytest.raises(UsageError, match="network: expected"):
            self.policy(name)

    def test_arguments_that_are_no_data(self) -> None:
        with pytest.raises(UsageError, match=r"network: width: expected .* as data"):
            self.policy(functools.partial(Torso, width=np.float32(3)))


class Nameless(Policy):
    """Its distribution has neither mode nor mean, as torch's transformed ones."""

    def forward(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Distribution, Carry]:
        normal = Normal(torch.zeros(len(obs), 1), torch.ones(len(obs), 1))
        return Independent(TransformedDistribution(normal, [TanhTransform()]), 1), None


def test_bug_a_distribution_without_mode_and_mean_ended_in_an_error_without_words() -> None:
    policy = Nameless(OBS, spaces.Box(-1.0, 1.0, (1,)))
    assert abs(float(policy.act(np.zeros(3, np.float32))[0])) < 1
    with pytest.raises(UsageError, match=r"Nameless\.forward: .* a mode or a mean, .*define"):
        policy.act(np.zeros(3, np.float32), deterministic=True)


class WithCritic(Policy):
    """Brings a critic, too."""

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: Any, critic: Any = None
    ) -> None:
        super().__init__(observation_space, action_space)
        self.layer, self.critic = nn.Linear(3, int(action_space.n)), critic

    def forward(
        self, obs: Tensor, carry: Carry = None, episode_start: Tensor | None = None
    ) -> tuple[Distribution, Carry]:
        return Categorical(logits=self.layer(self.features(obs))), None

    def make_critic(self, *, hidden: Any = None, generator: torch.Generator) -> Any:
        return self.critic()


@pytest.mark.parametrize("learner", [Reinforce, PPO])
def test_bug_a_critic_that_is_any_module_was_an_attribute_error(learner: Any) -> None:
    """Its first weights come from the learner's generator, not from the global one."""
    firsts = []
    for seed in range(2):
        torch.manual_seed(seed)
        policy = WithCritic(OBS, spaces.Discrete(2), lambda: nn.Linear(3, 1))
        made = learner(policy, generator=torch.Generator().manual_seed(5))
        firsts.append(next(made.baseline.network.parameters()).clone())
        envs = SyncVectorEnv(
            [functools.partial(Walk, n, spaces.Discrete(2)) for n in range(3)],
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        made.update(Collector(envs, policy, seed=0).steps(16))
        assert not torch.equal(firsts[-1], next(made.baseline.network.parameters()))
    assert torch.equal(*firsts)


def test_a_critic_that_is_no_module_is_refused() -> None:
    policy = WithCritic(OBS, spaces.Discrete(2), lambda: "critic")
    with pytest.raises(UsageError, match=r"network: expected a torch\.nn\.Module, got 'critic'"):
        Reinforce(policy)

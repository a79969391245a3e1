"""What never leaves its device is what the ordinary collector collects, bit for bit."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import TransformReward
from rlpg.envs.batched import Batched, TorchVectorEnv
from rlpg.envs.batched_classic import FAMILY, CartPole, Pendulum
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.utils._python_dispatch import TorchDispatchMode

from rlpg.errors import EnvironmentFault, NumericalFault, SpaceError, UsageError
from rlpg.learners import Reinforce
from rlpg.learners.settings import LearnerSettings
from rlpg.learners.values import ValueNetwork, make_baseline
from rlpg.policies import Policy, StandardPolicy
from rlpg.rollouts import Collector, Rollout, make_envs
from rlpg.rollouts.seeds import _MARK
from rlpg.rollouts.tensor_collector import Replayed, TensorCollector

DTYPES = {"float32": torch.float32, "float64": torch.float64}
each_env = pytest.mark.parametrize("name", sorted(FAMILY))


def policy_for(env: Batched, seed: int = 0, **options: Any) -> Policy:
    generator = torch.Generator().manual_seed(seed)
    policy = StandardPolicy(
        env.observation_space, env.action_space, generator=generator, hidden=(16,), **options
    )
    with torch.no_grad():  # not nearly uniform, so that episodes differ
        policy.network.mlp.linears[-1].weight.mul_(100.0)
    return policy


def limited(name: str, max_episode_steps: int) -> Batched:
    env = FAMILY[name]()
    env.max_episode_steps = max_episode_steps
    return env


class Playback:
    """Stands for environment n's generator: plays what the device's stream has for each step."""

    def __init__(self, tape: list[np.ndarray], now: Callable[[], int], n: int) -> None:
        self.tape, self.now, self.n = tape, now, n

    def random(self, size: int) -> np.ndarray:
        uniform = self.tape[self.now()][self.n]
        assert uniform.shape == (size,)
        return uniform


class Played(TorchVectorEnv):
    """The adapter, with the random numbers of a `TensorCollector` instead of its own."""

    def __init__(self, env: Batched, num_envs: int, dtype: str, tape: list[np.ndarray]) -> None:
        super().__init__(env, num_envs, dtype=dtype)
        self.calls = 0
        self.generators = [Playback(tape, lambda: self.calls, n) for n in range(num_envs)]  # type: ignore[misc]

    def step(self, actions: Any) -> Any:
        self.calls += 1  # 0 is the reset
        return super().step(actions)


def acting_in_torch(policy: Policy) -> Policy:
    """A copy that always acts in torch."""
    twin = copy.deepcopy(policy)
    twin.actor = partial(Policy.actor, twin)  # type: ignore[method-assign]
    return twin


def pair(
    name: str, dtype: str, num_envs: int, rollouts: list[int], limit: int, **options: Any
) -> tuple[list[Rollout], list[Rollout]]:
    """The same rollouts from the device's collector and from the ordinary one.

    Whose policy draws in torch, step by step: NumPy's short cut has the law, and not the bits.
    """
    env = limited(name, limit)
    policy = policy_for(env)
    ours = TensorCollector(env, policy, seed=7, num_envs=num_envs, dtype=DTYPES[dtype], **options)
    numbers = torch.Generator()
    numbers.set_state(ours._starts.get_state())
    tape: list[np.ndarray] = []
    for num_steps in (1, *rollouts):  # the reset, then what `uniform_` draws for each rollout
        drawn = torch.empty((num_steps, num_envs, env.num_uniforms), dtype=DTYPES[dtype])
        drawn.uniform_(generator=numbers)
        tape += list(drawn.double().numpy())
    envs = Played(env, num_envs, dtype, tape)
    envs.metadata = {**envs.metadata, _MARK: True}
    theirs = Collector(envs, acting_in_torch(policy), seed=7, **options)
    return [ours.steps(t) for t in rollouts], [theirs.steps(t) for t in rollouts]


def assert_same(got: Rollout, expected: Rollout) -> None:
    for field, value in vars(expected).items():
        mine = getattr(got, field)
        if isinstance(value, Tensor):
            assert mine.dtype == value.dtype, field
            assert not mine.is_inference(), field
            torch.testing.assert_close(mine, value, rtol=0, atol=0, msg=field)
    for field in ("lengths", "env", "step"):
        mine, value = getattr(got.episodes, field), getattr(expected.episodes, field)
        assert mine.dtype == value.dtype
        np.testing.assert_array_equal(mine, value)
    # Summed in the order of time here, pairwise there.
    np.testing.assert_allclose(got.episodes.returns, expected.episodes.returns, rtol=1e-13)


@each_env
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_collector_bit_for_bit(name: str, dtype: str) -> None:
    ends = 0
    for got, expected in zip(*pair(name, dtype, 5, [17, 17, 9, 40], limit=13), strict=True):
        assert_same(got, expected)
        ends += len(expected.episodes)
    assert ends >= 30


def test_equals_the_collector_where_episodes_terminate_and_a_policy_is_deterministic() -> None:
    terminated = 0
    collected = pair("CartPole-v1", "float32", 6, [60, 60], limit=500, deterministic=True)
    for got, expected in zip(*collected, strict=True):
        assert_same(got, expected)
        terminated += int(expected.terminated.sum())
    assert terminated > 6


def test_without_log_prob_there_is_none() -> None:
    (got,), (expected,) = pair("Pendulum-v1", "float64", 2, [4], limit=3, log_prob=False)
    assert got.log_prob is None
    assert_same(got, expected)


def test_actions_and_first_states_have_streams_of_their_own_in_every_run() -> None:
    env = limited("CartPole-v1", 9)
    seeds = (5, *np.random.SeedSequence(5).spawn(2))
    states = [
        TensorCollector(env, policy_for(env), seed, num_envs=1).state_dict() for seed in seeds
    ]
    streams = {state[name].tobytes() for state in states for name in ("generator", "starts")}
    assert len(streams) == 6


def test_equals_a_loop_written_by_hand() -> None:
    """One environment at a time, in Python numbers, as Gymnasium would be used."""
    env, num_envs, num_steps = limited("CartPole-v1", 15), 4, 50
    policy = policy_for(env)
    collector = TensorCollector(env, policy, seed=3, num_envs=num_envs, dtype=torch.float64)
    numbers, actions = torch.Generator(), torch.Generator()
    numbers.set_state(collector._starts.get_state())
    actions.set_state(collector._generator.get_state())
    rollout = collector.steps(num_steps)

    first = torch.rand((num_envs, 4), dtype=torch.float64, generator=numbers)
    starts = torch.rand((num_steps, num_envs, 4), dtype=torch.float64, generator=numbers)
    single: Any = gymnasium.make("CartPole-v1").unwrapped
    single.reset()
    state = [(-0.05 + 0.1 * first[n]).numpy() for n in range(num_envs)]
    clock, earned = [0] * num_envs, [0.0] * num_envs
    episodes, finals = [], []
    for t in range(num_steps):
        obs = torch.from_numpy(np.array(state, dtype=np.float32))
        torch.testing.assert_close(rollout.obs[t], obs, rtol=1e-6, atol=1e-7)
        with torch.inference_mode():
            action, _ = policy.draw(rollout.obs[t], None, actions)
        assert action.tolist() == rollout.action[t].tolist()
        for n in range(num_envs):
            single.state, single.steps_beyond_terminated = state[n], None
            after, reward, terminated, _, _ = single.step(int(action[n]))
            assert rollout.time[t, n] == clock[n]
            assert rollout.reward[t, n] == reward
            clock[n], earned[n], state[n] = clock[n] + 1, earned[n] + reward, single.state
            assert rollout.terminated[t, n] == terminated
            assert rollout.truncated[t, n] == (clock[n] == 15 and not terminated)
            if terminated or clock[n] == 15:
                episodes.append((earned[n], clock[n], n, t))
                finals.append(after)
                clock[n], earned[n], state[n] = 0, 0.0, (-0.05 + 0.1 * starts[t, n]).numpy()
    e = rollout.episodes
    assert list(zip(e.returns, e.lengths, e.env, e.step, strict=True)) == episodes
    assert rollout.final_step.tolist() == e.step.tolist()
    assert rollout.final_env.tolist() == e.env.tolist()
    torch.testing.assert_close(rollout.final_obs, torch.tensor(np.array(finals)))
    assert len(episodes) > num_envs


@each_env
def test_resumes_bit_for_bit(name: str) -> None:
    env = limited(name, 11)
    policy = policy_for(env)
    one, two = (TensorCollector(env, policy, seed=s, num_envs=3) for s in (1, 2))
    one.steps(8)
    saved = one.state_dict()
    two.steps(5)
    two.load_state_dict(saved)
    for _ in range(2):
        got, expected = two.steps(20), one.steps(20)
        assert_same(got, expected)
        np.testing.assert_array_equal(got.episodes.returns, expected.episodes.returns)
    assert (two.env_steps, two.vector_steps) == (one.env_steps, one.vector_steps) == (144, 48)


def test_a_restart_drops_what_was_running() -> None:
    env = limited("Pendulum-v1", 6)
    collector = TensorCollector(env, policy_for(env), num_envs=2)
    assert collector.steps(4).time[-1].tolist() == [3, 3]
    collector.restart()
    assert collector.steps(4).time[0].tolist() == [0, 0]


def test_rollouts_are_the_callers_to_keep() -> None:
    env = limited("Pendulum-v1", 6)
    collector = TensorCollector(env, policy_for(env), num_envs=2)
    first = collector.steps(4)
    kept = {k: v.clone() for k, v in vars(first).items() if isinstance(v, Tensor)}
    collector.steps(4)
    for name, value in kept.items():
        assert torch.equal(getattr(first, name), value), name


class Waits(TorchDispatchMode):
    """Refuses what would make the host wait for a device: its numbers, or shapes made of them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func._overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_)
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if by_mask else []
        name = str(func._overloadpacket)
        assert not masks, f"{name} with a mask"
        assert name.removeprefix("aten.") not in {
            "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique",
        }, f"{name} waits"  # fmt: skip
        return func(*args, **(kwargs or {}))


def test_the_guard_sees_what_waits() -> None:
    x = torch.ones(3)
    for program in (x.sum().item, lambda: x[x > 0], lambda: bool(x.any()), x.nonzero):
        with Waits(), pytest.raises(AssertionError):
            program()


@each_env
@pytest.mark.parametrize("deterministic", [False, True])
def test_no_step_waits_for_the_device(name: str, deterministic: bool) -> None:
    env = limited(name, 3)
    collector = TensorCollector(
        env, policy_for(env), num_envs=4, deterministic=deterministic, log_prob=False
    )
    collector.steps(5)
    assert collector._work is not None
    with Waits(), torch.inference_mode():
        collector._work()


@each_env
@pytest.mark.parametrize("gaussian", ["clipped", "squashed", "beta"])
def test_a_step_elsewhere_mixes_in_nothing_from_the_cpu(
    name: str, gaussian: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device that follows shapes and holds no numbers, as there may be no GPU."""
    env = limited(name, 3)
    policy = policy_for(env, gaussian=gaussian)
    assert policy.normalizer is not None
    policy.normalizer.update(env.observe(env.reset(9, torch.Generator())))
    for room in ("base", "tensor_collector"):
        monkeypatch.setattr(f"rlpg.rollouts.{room}.stream", lambda seed, device: torch.Generator())
    collector = TensorCollector(env, policy.to("meta"), num_envs=4, deterministic=True)
    standing = collector._begin(collector._uniform(1)[0])
    with torch.inference_mode():
        steps = collector._play(2, standing, None)
    assert {value.device.type for value in steps} == {"meta"}
    with pytest.raises(RuntimeError, match="device"):
        _ = steps.reward + torch.zeros(4)  # this is what the test would have seen


def test_the_value_network_is_made_on_the_policys_device() -> None:
    policy = policy_for(CartPole()).to("meta")
    generator = torch.Generator().manual_seed(0)
    baseline = make_baseline("value", policy, LearnerSettings(), generator)
    assert isinstance(baseline, ValueNetwork)
    assert {p.device.type for p in baseline.network.parameters()} == {"meta"}


@pytest.mark.parametrize("gaussian", ["clipped", "squashed", "beta"])
def test_actions_reach_the_environment_as_the_head_says(gaussian: str) -> None:
    env = Pendulum()
    head = policy_for(env, gaussian=gaussian).head
    unit = torch.rand((200, 1), generator=torch.Generator().manual_seed(0))
    unit = unit if gaussian == "beta" else 6 * unit - 3
    got = head.to_env_on(torch.device("cpu"))(unit)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), head.to_env(unit.numpy()), rtol=3e-7)
    assert env.action_space.contains(got[0].numpy())


def test_one_logit_is_as_good_as_two() -> None:
    env = limited("CartPole-v1", 9)
    rollout = TensorCollector(env, policy_for(env, bernoulli=True), num_envs=3).steps(12)
    assert set(rollout.action.unique().tolist()) == {0, 1}


def test_the_learner_takes_its_rollouts_and_learns() -> None:
    env = limited("CartPole-v1", 200)
    policy = policy_for(env)
    learner = Reinforce(policy, "value", learning_rate=0.01)
    collector = TensorCollector(env, policy, num_envs=64, log_prob=False)
    lengths = []
    for _ in range(30):
        rollout = collector.steps(32)
        lengths.append(rollout.episodes.lengths.mean())
        metrics = learner.update(rollout)
        assert np.isfinite(metrics["gradient/norm"])
    assert lengths[-1] > 3 * lengths[0]


def test_a_normalizer_that_begins_to_work_is_recorded_anew() -> None:
    """What was recorded while it was the identity would leave it out for ever."""
    env = limited("CartPole-v1", 20)
    policy = policy_for(env)
    collector = TensorCollector(env, policy, num_envs=4)
    rollout = collector.steps(8)
    before = collector._work
    collector.steps(8)
    assert collector._work is before
    assert policy.normalizer is not None
    policy.normalizer.update(policy.observations.features(rollout.obs))
    collector.steps(8)
    after = collector._work
    assert after is not before
    collector.steps(8)
    assert collector._work is after


class Broken(Pendulum):
    """Its reward or speed becomes infinite beyond some angle."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state, reward, terminated = super().step(state, action)
        bad = torch.arange(len(reward)) == 2
        if self.what == "reward":
            return state, torch.where(bad, torch.inf, reward), terminated
        return torch.where(bad[:, None], torch.nan, state), reward, terminated


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_number_that_is_not_finite_is_named(what: str) -> None:
    env = Broken(what)
    collector = TensorCollector(env, policy_for(env), num_envs=4)
    with pytest.raises(EnvironmentFault, match=f"step 0, environment 2: {what}: .*finite float32"):
        collector.steps(3)


class Undefined(Policy):
    """Divides zero by zero."""

    def __init__(self, env: Batched) -> None:
        super().__init__(env.observation_space, env.action_space)
        self.net = torch.nn.Linear(self.observations.num_features, 1)

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        mean = self.net(self.features(obs))
        normal = Normal(0.0 * mean / (0.0 * mean), torch.ones_like(mean), validate_args=False)
        return Independent(normal, 1, validate_args=False), None


class Deaf(Pendulum):
    """Takes no notice of its actions."""

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().step(state, torch.zeros_like(action))


@pytest.mark.parametrize("env", [Pendulum(), Deaf()], ids=["noticed", "unnoticed"])
def test_bug_the_environment_was_blamed_for_an_action_that_was_nan(env: Batched) -> None:
    collector = TensorCollector(env, Undefined(env), num_envs=4)
    with pytest.raises(NumericalFault, match=r"step 0, environment 0: action: .*nan at \[0\] from"):
        collector.steps(3)


def test_refuses_what_does_not_fit() -> None:
    policy = policy_for(Pendulum())
    with pytest.raises(UsageError, match="expected at least 1, got 0"):
        TensorCollector(Pendulum(), policy, num_envs=0)
    with pytest.raises(UsageError, match="expected observations"):
        TensorCollector(CartPole(), policy, num_envs=1)
    with pytest.raises(UsageError, match="expected Discrete"):
        TensorCollector(CartPole(), StandardPolicy(
            CartPole().observation_space, Pendulum().action_space, generator=torch.Generator()
        ), num_envs=1)  # fmt: skip
    with pytest.raises(UsageError, match="steps: expected at least 1"):
        TensorCollector(Pendulum(), policy, num_envs=1).steps(0)
    several = gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2)] * 2)
    head = StandardPolicy(several, several, generator=torch.Generator()).head
    with pytest.raises(SpaceError, match="expected no Dict and no Tuple"):
        head.to_env_on(torch.device("cpu"))


SPACES = gymnasium.spaces


@pytest.mark.parametrize("space", [
    SPACES.Box(-2, 2, (1,), np.int32), SPACES.Discrete(3), SPACES.MultiDiscrete([3]),
    SPACES.MultiBinary(1),
])  # fmt: skip
@pytest.mark.parametrize("gradient", ["pathwise", "combine"])
def test_bug_actions_that_are_rounded_were_let_pass_until_the_first_update(
    space: Any, gradient: Any
) -> None:
    """Of a Box of integers: the run had its folder by then."""
    env = Pendulum()
    env.action_space = space
    with pytest.raises(UsageError, match=r"expected a float Box .* use the gradient score"):
        TensorCollector(env, policy_for(env), num_envs=4, gradient=gradient)
    assert TensorCollector(env, policy_for(env), num_envs=4, gradient="score").steps(2).window


def test_work_on_the_cpu_is_done_every_time() -> None:
    calls = []
    work = Replayed(lambda: calls.append(1), torch.device("cpu"), [])
    for _ in range(3):
        work()
    assert len(calls) == 3


def test_on_cuda_work_is_recorded_at_the_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls, with a stand-in for the graph: there may be no GPU."""
    calls: list[str] = []

    class Graph:
        def register_generator_state(self, generator: object) -> None:
            calls.append(f"register {generator}")

        def replay(self) -> None:
            calls.append("replay")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: nullcontext(calls.append("record")))
    generators: Any = ["a", "b"]
    collecting = []

    def play() -> None:
        calls.append("work")
        collecting.append(gc.isenabled())

    work = Replayed(play, torch.device("cuda"), generators)
    for _ in range(3):
        work()
    recorded = ["register a", "register b", "record", "work"]
    assert calls == ["work", *recorded, "replay", "replay"]
    # An older graph that is freed while one is recorded spoils it.
    assert collecting == [True, False]
    assert gc.isenabled()


class Eager(Replayed):
    """Never records."""

    def __call__(self) -> Any:
        return self._function()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@each_env
def test_a_graph_does_what_its_steps_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = limited(name, 13)
    policy = policy_for(env).to("cuda")
    recorded, eager = (TensorCollector(env, policy, seed=5, num_envs=8) for _ in range(2))
    for _ in range(4):
        got = recorded.steps(10)
        with monkeypatch.context() as patch:
            patch.setattr("rlpg.rollouts.tensor_collector.Replayed", Eager)
            assert_same(got, eager.steps(10))
    assert recorded._work is not None
    assert recorded._work._graph is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("baseline", ["none", "moving_average", "time_step", "leave_one_out",
                                      "linear", "value"])  # fmt: skip
def test_the_learner_works_on_the_gpu(baseline: str) -> None:
    env = limited("CartPole-v1", 30)
    policy = policy_for(env).to("cuda")
    learner = Reinforce(policy, baseline, entropy_coef=0.01, reward_scaling=True)
    collector = TensorCollector(env, policy, num_envs=64)
    for _ in range(3):
        assert np.isfinite(learner.update(collector.steps(16))["gradient/norm"])


@pytest.mark.parametrize("gradient", ["pathwise", "score", "combine"])
def test_a_window_is_the_rollout_with_its_gradient(gradient: Any) -> None:
    env = limited("Pendulum-v1", 5)
    policy = policy_for(env, gaussian="squashed")
    collector = TensorCollector(env, policy, num_envs=4, gradient=gradient)
    rollout = collector.steps(7)
    window = rollout.window
    assert window is not None
    pairs = [
        (window.reward, rollout.reward),
        (window.last_obs, rollout.obs[-1]),
        (window.final_obs, rollout.final_obs),
    ]
    for with_gradient, without in pairs:
        assert with_gradient.requires_grad == (gradient != "score")
        assert torch.equal(with_gradient.detach(), without)
    assert not any(v.requires_grad for v in vars(rollout).values() if isinstance(v, Tensor))
    assert len(window.tape.events) == 7


class Derived(Pendulum):
    """A pendulum with one more force: the slope of 0.1 cos(angle), by a formula or by autograd."""

    def __init__(self, *, by_autograd: bool) -> None:
        super().__init__()
        self.by_autograd = by_autograd

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope = -0.1 * torch.sin(state)
        if self.by_autograd:
            with torch.enable_grad():
                at = state if state.requires_grad else state.detach().requires_grad_()
                total = (0.1 * torch.cos(at)).sum()
                (slope,) = torch.autograd.grad(total, at, create_graph=state.requires_grad)
        return super().step(state + slope, action)


@pytest.mark.parametrize("gradient", [None, "pathwise", "score"])
def test_bug_an_environment_that_differentiates_ended_in_an_error_of_torch(gradient: Any) -> None:
    found = []
    for by_autograd in (False, True):
        env = Derived(by_autograd=by_autograd)
        policy = policy_for(env)
        collector = TensorCollector(env, policy, 3, num_envs=4, gradient=gradient)
        rollouts = [collector.steps(7), collector.steps(7)]
        parts = [rollout.reward for rollout in rollouts]
        if gradient is None:
            parts.append(collector.episodes(1).reward)
        elif gradient == "pathwise":
            window = rollouts[-1].window
            assert window is not None
            parts += torch.autograd.grad(window.reward.sum(), [*policy.parameters()])
        found.append(parts)
    torch.testing.assert_close(*found)


def test_measuring_memory_changes_nothing() -> None:
    env = limited("Pendulum-v1", 5)
    collector, twin = (
        TensorCollector(env, policy_for(env), seed=4, num_envs=4, gradient="pathwise")
        for _ in range(2)
    )
    collector.require_memory(16)
    assert_same(collector.steps(9), twin.steps(9))
    assert collector.env_steps == twin.env_steps == 36


@pytest.mark.parametrize("per_env", [1, 3])
def test_whole_episodes_are_the_first_of_every_environment(per_env: int) -> None:
    """They are what `steps` gives, up to each environment's quota, and the rest is not valid."""
    env = limited("CartPole-v1", 40)
    policy = policy_for(env)
    whole = TensorCollector(env, policy, seed=3, num_envs=5)
    rollout = whole.episodes(per_env)
    steps = TensorCollector(env, policy, seed=3, num_envs=5).steps(64)
    num_steps = min(64, len(rollout.reward))
    ends = steps.done.long().cumsum(0) - steps.done.long()
    assert torch.equal(rollout.valid[:num_steps], (ends < per_env)[:num_steps])
    keep = rollout.valid[:num_steps]
    assert torch.equal(rollout.obs[:num_steps][keep], steps.obs[:num_steps][keep])
    assert np.bincount(rollout.episodes.env).tolist() == [per_env] * 5
    assert int(rollout.episodes.lengths.sum()) == rollout.num_steps == whole.env_steps
    assert rollout.valid[-1].any()
    assert (whole.episodes(1).time[0] == 0).all()


@pytest.mark.parametrize("num_steps", [1, 63, 64, 65, 128])
def test_whole_episodes_after_steps_begin_with_a_reset(num_steps: int) -> None:
    """What was recorded for 64 steps, as long as a chunk of `episodes`, went on where it stood."""
    env = limited("CartPole-v1", 40)
    collector = TensorCollector(env, policy_for(env), seed=3, num_envs=3)
    for _ in range(2):
        collector.steps(num_steps)
        rollout = collector.episodes(1)
        assert (rollout.time[0] == 0).all()
        assert rollout.episode_start[0].all()
        assert np.bincount(rollout.episodes.env).tolist() == [1] * 3


def test_episodes_that_never_end_are_told() -> None:
    env = limited("Pendulum-v1", 10_000)
    collector = TensorCollector(env, policy_for(env), num_envs=2)
    with pytest.raises(EnvironmentFault, match="expected 1 episodes to end within 100 steps, got"):
        collector.episodes(max_steps=100)
    differentiable = TensorCollector(env, policy_for(env), num_envs=2, gradient="pathwise")
    with pytest.raises(
        UsageError, match=r"expected steps\(num_steps\) where the rollout is to be diff"
    ):
        differentiable.episodes()


def test_takes_the_environments_of_an_id() -> None:
    made = make_envs("rlpg/TorchPendulum-v1", 3, seed=0, max_episode_steps=7).envs
    policy = policy_for(Pendulum())
    rollout = TensorCollector(made, policy).steps(9)
    assert rollout.reward.shape == (9, 3)
    assert rollout.episodes.lengths.tolist() == [7, 7, 7]
    other = make_envs("Pendulum-v1", 3, seed=0).envs
    with pytest.raises(UsageError, match="got PendulumVectorEnv; use it with another agent"):
        TensorCollector(other, policy)
    made.close()


@pytest.mark.parametrize("backend", ["made", "given"])
def test_bug_a_wrapper_of_a_vector_environment_was_left_out(backend: str) -> None:
    """It changed every reward for `Collector`, and none here."""
    made = make_envs("rlpg/TorchPendulum-v1", 2, seed=0).envs
    envs: Any = TransformReward(made, lambda reward: 0 * reward)
    if backend == "given":
        envs = make_envs(envs, 2, seed=0).envs
    with pytest.raises(UsageError, match="native and without wrappers, got TorchClassicVectorEnv"):
        TensorCollector(envs, policy_for(Pendulum()))
    envs.close()


def test_a_state_of_other_environments_does_not_fit() -> None:
    env = Pendulum()
    collector = TensorCollector(env, policy_for(env), num_envs=3)
    collector.steps(1)
    state = collector.state_dict()
    with pytest.raises(ValueError, match=r"state: expected \[2, 2\], got \[3, 2\]"):
        TensorCollector(env, policy_for(env), num_envs=2).load_state_dict(state)


@pytest.mark.parametrize("gradient", ["pathwise", "score", "combine"])
def test_bug_a_window_was_drawn_where_deterministic_actions_were_asked_for(gradient: Any) -> None:
    env = Pendulum()
    with pytest.raises(UsageError, match=f"deterministic: expected False with .* {gradient}"):
        TensorCollector(env, policy_for(env), gradient=gradient, deterministic=True)


@pytest.mark.parametrize("gradient", [None, "pathwise"])
def test_bug_loading_a_state_drew_from_the_global_generator(gradient: Any) -> None:
    env = Pendulum()
    collector = TensorCollector(env, policy_for(env), num_envs=3, gradient=gradient)
    before = torch.random.get_rng_state()
    collector.steps(2)
    collector.load_state_dict(collector.state_dict())
    collector.steps(2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("envs", ["rlpg/TorchPendulum-v1", gymnasium.make("Pendulum-v1"), Pendulum])
def test_bug_what_is_no_environment_of_tensors_was_an_attribute_error(envs: Any) -> None:
    with pytest.raises(UsageError, match="environment: expected one that can be differentiated"):
        TensorCollector(envs, policy_for(Pendulum()))


class Misshapen(Pendulum):
    """One part of what it returns has another shape, or another type."""

    def __init__(self, what: str, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.what, self.change = what, change

    def changed(self, what: str, value: Tensor) -> Any:
        return self.change(value) if what == self.what else value

    def start(self, uniform: Tensor) -> Any:
        return self.changed("start: expected state", super().start(uniform))

    def observe(self, state: Tensor) -> Any:
        return self.changed("observe: expected observation", super().observe(state))

    def step(self, state: Tensor, action: Tensor) -> Any:
        names = ("state", "reward", "terminated")
        found = zip(names, super().step(state, action), strict=True)
        return tuple(self.changed(f"step: expected {name}", value) for name, value in found)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize(
    ("what", "change", "got"),
    [
        ("start: expected state", lambda x: torch.cat([x, x]), "got"),
        ("observe: expected observation", lambda x: x[..., :2], "got"),
        ("step: expected state", lambda x: x[..., :1], "got"),
        ("step: expected reward", lambda x: x.unsqueeze(-1), "got"),
        ("step: expected reward", lambda x: x.mean(), r"got \[\]"),
        ("step: expected reward", lambda _: 1.0, "got float"),
        ("step: expected terminated", lambda x: x.float(), "got .* of torch.float32"),
        ("step: expected terminated", lambda x: x.unsqueeze(-1), "got"),
        ("step: expected terminated", lambda _: False, "got bool"),
    ],
)
def test_bug_shapes_of_ones_own_environment_were_stretched_or_not_named(
    what: str, change: Callable[[Tensor], Any], got: str, num_envs: int
) -> None:
    """A reward for all environments was called a mistake of the policy's distribution."""
    env = Misshapen(what, change)
    collector = TensorCollector(env, policy_for(Pendulum()), num_envs=num_envs)
    with pytest.raises(EnvironmentFault, match=rf"environment\.{what} \[{num_envs}.*, {got}"):
        collector.steps(3)


class Overwriting(Pendulum):
    """Writes into the state that one of its functions is given."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        after, reward, terminated = super().step(state, action)
        return (state.copy_(after) if self.function == "step" else after), reward, terminated

    def observe(self, state: Tensor) -> Tensor:
        shown = super().observe(state)
        if self.function == "observe":
            state.mul_(0.5)
        return shown


@pytest.mark.parametrize("function", ["step", "observe", "neither"])
@pytest.mark.parametrize("gradient", [None, "score"])
def test_bug_a_step_that_wrote_into_its_state_changed_the_observations_before_it(
    function: str, gradient: Any
) -> None:
    """Where observe() shows a view of the state, the rollout had what came after each action."""
    env = Overwriting(function)
    collector = TensorCollector(env, policy_for(Pendulum()), num_envs=2, gradient=gradient)
    message = rf"environment\.{function}: .* got it overwritten; return a new tensor"
    fails = function != "neither"
    with pytest.raises(EnvironmentFault, match=message) if fails else nullcontext():
        collector.steps(3)

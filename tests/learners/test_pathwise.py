"""The gradient of a window: by finite differences, in closed form, cut where an episode ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlpg.envs.batched import Batched
from rlpg.envs.batched_classic import CartPoleContinuous, Pendulum
from rlpg.envs.hedging import HedgingDynamics
from rlpg.envs.lqr import LinearQuadratic, LQRDynamics
from rlpg.envs.swing_up import SwingUpDynamics
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.utils._python_dispatch import TorchDispatchMode

import rlpg
from rlpg.cli import main
from rlpg.errors import RlpgError, UsageError
from rlpg.rollouts import Rollout

PLAIN: dict[str, Any] = {"reward_scaling": False, "value_hidden": (8,), "max_grad_norm": None}
KINDS = ("pathwise", "score", "combine")


def learner_for(env: Batched, gradient: str = "pathwise", **options: Any) -> rlpg.Pathwise:
    policy = rlpg.StandardPolicy(
        env.observation_space, env.action_space, generator=torch.Generator().manual_seed(0),
        hidden=(8,), log_std_init=-0.7, gaussian=options.pop("gaussian", "squashed"),
    )  # fmt: skip
    with torch.no_grad():  # not nearly constant
        policy.network.mlp.linears[-1].weight.mul_(50.0)
    return rlpg.Pathwise(policy, gradient=gradient, **PLAIN | options)


def objective_of(learner: rlpg.Pathwise, rollout: Rollout) -> Tensor:
    return learner.objective(learner.batch(rollout))[0]


class Paid(Pendulum):
    """A pendulum whose rewards are in another unit."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state, reward, terminated = super().step(state, action)
        return state, reward * self.unit, terminated


@pytest.mark.parametrize("factor", [2.0**-13, 2.0**13])
@pytest.mark.parametrize("gradient", KINDS)
def test_the_unit_of_rewards_changes_nothing(gradient: str, factor: float) -> None:
    """From the first update on; powers of two, so that the bits are the same."""
    found = []
    for unit in (1.0, factor):
        env = Paid(unit)
        learner = learner_for(env, gradient, reward_scaling=True)
        collector = rlpg.TensorCollector(
            env,
            learner.policy,
            num_envs=6,
            gradient=gradient,  # type: ignore[arg-type]
        )
        for _ in range(3):
            learner.update(collector.steps(8))
        found.append(torch.cat([p.detach().flatten() for p in learner.policy.parameters()]))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("env_class", [Pendulum, CartPoleContinuous])
@pytest.mark.parametrize("limit", [5, 100])
def test_the_gradient_is_that_of_finite_differences(env_class: Any, limit: int) -> None:
    """Where episodes are cut inside the window, and where the window cuts them."""
    env = env_class()
    env.max_episode_steps = limit
    learner = learner_for(env, gamma=0.9)
    collector = rlpg.TensorCollector(env, learner.policy, num_envs=6, gradient="pathwise")
    saved = collector.state_dict()
    gradient = learner.optimizer.gradient(objective_of(learner, collector.steps(8)))
    start = learner.optimizer.flat()
    for seed in range(3):
        way = torch.randn(len(start), generator=torch.Generator().manual_seed(seed))
        way /= way.norm()
        found = []
        for step in (1e-2, -1e-2):
            learner.optimizer.move_to(start + step * way)
            collector.load_state_dict(saved)
            found.append(float(objective_of(learner, collector.steps(8)).detach()))
        slope = (found[0] - found[1]) / 2e-2
        assert float(gradient @ way) == pytest.approx(slope, rel=2e-2, abs=2e-4)


class Linear(rlpg.Policy):
    """`u = gain x + std eps`, on the one-dimensional LQR."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__(observation_space, action_space)
        self.gain = nn.Parameter(torch.tensor([-0.6]))
        self.std = nn.Parameter(torch.tensor([0.4]))

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        mean = self.gain * obs
        return Independent(Normal(mean, self.std.expand_as(mean)), 1), None


@pytest.mark.parametrize("gradient", KINDS)
def test_the_gradient_is_the_closed_form_of_lqr(gradient: str) -> None:
    """Whole episodes of 5 steps; the mean of 100 windows of 64 environments."""
    env = LQRDynamics()
    policy = Linear(env.observation_space, env.action_space)
    ours = (policy.gain, policy.std)
    learner = rlpg.Pathwise(policy, gradient=gradient, gamma=1.0, gae_lambda=1.0, **PLAIN)
    collector = rlpg.TensorCollector(env, policy, seed=2, num_envs=64, gradient=learner.gradient)
    found = torch.stack(
        [
            torch.cat(torch.autograd.grad(objective_of(learner, collector.steps(5)), ours))
            for _ in range(100)
        ]
    )
    problem = LinearQuadratic.scalar()
    by_gain, by_std = problem.policy_gradient(
        torch.tensor([[-0.6]]).double(), torch.tensor([0.4]).double()
    )
    exact = torch.cat([by_gain[0], by_std]) / 5  # per step
    z = (found.mean(0) - exact) / (found.std(0) / 10)
    assert (z.abs() < 4).all(), (found.mean(0), exact)
    assert abs(found.mean(0)[0] / exact[0] - 1) < 0.2  # and so precise that this says something


class Tilted(CartPoleContinuous):
    """Some of its poles fall soon."""

    def start(self, uniform: Tensor) -> Tensor:
        return 4 * super().start(uniform)


@pytest.mark.parametrize("gradient", KINDS)
def test_a_window_ends_with_the_value_of_the_true_state(
    gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a loop over lanes and steps: cut episodes, ended ones, and those that go on."""
    env = Tilted()
    env.max_episode_steps = 11
    learner = learner_for(env, gradient, gamma=0.8, gaussian="clipped")
    monkeypatch.setattr(type(learner.baseline), "value", lambda self, obs: 3 + obs.sum(-1))
    collector = rlpg.TensorCollector(
        env, learner.policy, seed=1, num_envs=30, gradient=learner.gradient
    )
    collector.steps(6)
    rollout = collector.steps(16)
    assert rollout.terminated.any() and rollout.truncated.any()  # noqa: PT018
    finals = {
        (int(t), int(n)): obs
        for t, n, obs in zip(rollout.final_step, rollout.final_env, rollout.final_obs, strict=True)
    }
    total = 0.0
    for n in range(30):
        weight = 1.0
        for t in range(16):
            total += weight * float(rollout.reward[t, n])
            weight *= 0.8
            if rollout.done[t, n]:
                if rollout.truncated[t, n]:
                    total += weight * float(3 + finals[t, n].sum())
                weight = 1.0
        if not rollout.done[15, n]:
            total += weight * float(3 + rollout.obs[16, n].sum())
    assert float(objective_of(learner, rollout).detach()) == pytest.approx(
        total / 30 / 16, rel=1e-5
    )


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_lambda_zero_is_not_taken_for_none(gae_lambda: float) -> None:
    """The score of each action is paid with its GAE, discounted from where the window or the
    episode began. A lambda of 0 was taken for 1."""
    env = Tilted()
    env.max_episode_steps = 11
    learner = learner_for(env, "score", gamma=0.8, gae_lambda=gae_lambda, gaussian="clipped")
    collector = rlpg.TensorCollector(env, learner.policy, seed=1, num_envs=30, gradient="score")
    rollout = collector.steps(16)
    assert rollout.terminated.any() and rollout.truncated.any()  # noqa: PT018
    value, successor = learner.baseline.predict(rollout)
    after = torch.where(rollout.terminated, 0.0, 0.8 * successor)
    delta, advantage = rollout.reward + after - value, torch.zeros(17, 30)
    weight = torch.ones(17, 30)
    for t in range(16):
        weight[t + 1] = torch.where(rollout.done[t], 1.0, 0.8 * weight[t])
        row = 15 - t
        further = torch.where(rollout.done[row], 0.0, 0.8 * gae_lambda * advantage[row + 1])
        advantage[row] = delta[row] + further
    law = learner.policy(rollout.obs[:-1])[0]
    mean = (weight[:-1] * advantage[:-1] * law.log_prob(rollout.action)).mean()
    expected = learner.optimizer.gradient(mean)
    found = learner.optimizer.gradient(objective_of(learner, rollout))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("gradient", KINDS)
def test_after_an_estimate_there_was_no_update(gradient: str) -> None:
    """As in the loop of docs/learners.md: the window had its terms already."""
    found = []
    for is_asked in (False, True):
        env = Pendulum()
        learner = learner_for(env, gradient)
        collector = rlpg.TensorCollector(env, learner.policy, num_envs=6, gradient=learner.gradient)
        for _ in range(2):
            rollout = collector.steps(8)
            if is_asked:
                assert learner.estimate(rollout).isfinite()
            learner.update(rollout)
        found.append(learner.optimizer.flat())
    assert torch.equal(found[0], found[1])


class Scheduled(rlpg.Policy):
    """The mean of the action of call t is parameter t; what is seen does not matter."""

    def __init__(self, observation_space: Any, action_space: Any, num_steps: int) -> None:
        super().__init__(observation_space, action_space)
        self.means, self.calls = nn.Parameter(torch.zeros(num_steps)), 0

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        mean = self.means[self.calls % len(self.means)].expand(len(obs), 1)
        self.calls += 1
        return Independent(Normal(mean, torch.full_like(mean, 0.1)), 1), None


def test_no_gradient_crosses_the_end_of_an_episode() -> None:
    env = Pendulum()
    env.max_episode_steps = 3
    policy = Scheduled(env.observation_space, env.action_space, 6)
    collector = rlpg.TensorCollector(env, policy, num_envs=4, gradient="pathwise", log_prob=False)
    window = collector.steps(6).window
    assert window is not None
    slopes = torch.stack(
        [
            torch.autograd.grad(reward.sum(), policy.means, retain_graph=True)[0]
            for reward in window.reward
        ]
    )  # [reward's step, action's step]
    same_episode = torch.arange(6)[:, None] // 3 == torch.arange(6) // 3
    expected = same_episode & (torch.arange(6)[:, None] >= torch.arange(6))
    assert ((slopes != 0) == expected).all(), slopes


@pytest.mark.parametrize("gradient", KINDS)
def test_trains_and_resumes_to_the_same_bits(gradient: str, tmp_path: Path) -> None:
    overrides = {
        "policy.hidden": (8,), "rollout.num_envs": 4, "rollout.num_steps": 8,
        "learner.gradient": gradient, "environment.max_episode_steps": 20,
        "evaluation.episodes": 2, "evaluation.num_envs": 2, "evaluation.final_episodes": 2,
        "evaluation.every": 128, "evaluation.stochastic": False,
        "log.every": 64, "checkpoint.every": 64, "log.tensorboard": False,
    }  # fmt: skip

    def train(name: str, **more: Any) -> rlpg.Run:
        return rlpg.train(
            "rlpg/TorchPendulum-v1", "pathwise", seed=3, total_steps=320, quiet=True,
            run_dir=tmp_path / name, overrides=overrides, recipe="default", **more,
        )  # fmt: skip

    whole = train("whole")
    first = whole.policy.state_dict()
    train("stopped", on_log=lambda step, metrics: step >= 128)
    resumed = rlpg.resume(tmp_path / "stopped", quiet=True)
    for name, value in resumed.policy.state_dict().items():
        assert torch.equal(value, first[name]), name
    assert resumed.evaluation is not None and whole.evaluation is not None  # noqa: PT018
    np.testing.assert_array_equal(resumed.evaluation.returns, whole.evaluation.returns)
    log_std = first["head.raw_log_std"]
    assert not torch.equal(log_std, torch.full_like(log_std, float(log_std.mean()) + 1))


def test_the_target_follows_the_value_network() -> None:
    env = Pendulum()
    learner = learner_for(env, target_decay=0.75)
    value = learner.baseline
    before = [p.clone() for p in value._used.network.parameters()]
    collector = rlpg.TensorCollector(env, learner.policy, num_envs=4, gradient="pathwise")
    learner.update(collector.steps(8))
    for old, target, learned in zip(
        before, value._used.network.parameters(), value._learned.network.parameters(), strict=True
    ):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * learned)
        assert not torch.equal(old, learned)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["CartPole-v1"], "expected one that can be differentiated .* got CartPole-v1; use it wi"),
        (["rlpg/TorchCartPole-v1", "--policy.gaussian", "clipped"],
         "expected a float Box for the gradient pathwise, got Discrete.* use the gradient score"),
        (["rlpg/TorchPendulum-v1", "--rollout.num-steps", "250_000"],
         "rollout.num_steps: expected at most [0-9]+, got 250000: a step of 64 environments"),
        (["rlpg/TorchPendulum-v1", "--learner.baseline", "linear"], "baseline: expected value"),
        (["rlpg/TorchPendulum-v1", "--rollout.episodes-per-env", "1"],
         "episodes_per_env: expected none for the agent pathwise"),
        (["rlpg/TorchPendulum-v1", "--policy.memory", "gru"],
         r"expected one without memory \(policy\.memory none\)"),
        (["rlpg/TorchPendulum-v1", "--learner.gradient", "combine", "--rollout.num-envs", "3"],
         r"rollout\.num_envs: expected at least 4 .* got 3"),
        # "expected rlpg/TorchPendulum-v1, got rlpg/TorchPendulum-v1" was no answer.
        (["rlpg/TorchPendulum-v1", "--environment.backend", "sync"], "native and without wrappers"),
        # A setting that nobody had typed was named: num_value_epochs.
        (["rlpg/TorchPendulum-v1", "--policy.shared-torso", "true"],
         "shared_torso: expected false for Pathwise"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_sentence(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlpg.rollouts.tensor_collector.memory_of", lambda device: 10**9)
    folder = tmp_path / "run"
    assert main(["train", *words, "--agent", "pathwise", "--run-dir", str(folder)]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    with pytest.raises(RlpgError, match=sentence):
        raise RlpgError(error)
    assert not folder.exists()


def test_a_rollout_without_a_window_is_refused() -> None:
    env = Pendulum()
    learner = learner_for(env)
    rollout = rlpg.TensorCollector(env, learner.policy, num_envs=2).steps(4)
    with pytest.raises(UsageError, match=r"collect with TensorCollector\(\.\.\., gradient='pathw"):
        learner.update(rollout)


class CountWaits(TorchDispatchMode):
    """Counts what would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func._overloadpacket).removeprefix("aten.")
        self.count += name in {"_local_scalar_dense", "nonzero", "masked_select", "equal"}
        return func(*args, **(kwargs or {}))


def test_an_update_waits_for_the_device_as_often_however_long_the_window_is() -> None:
    env = Pendulum()
    counts = []
    for num_steps in (4, 12):
        learner = learner_for(env)
        collector = rlpg.TensorCollector(
            env, learner.policy, num_envs=6, gradient="pathwise", log_prob=False
        )
        learner.update(collector.steps(num_steps))
        with CountWaits() as waits:
            learner.update(collector.steps(num_steps))
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0
    with CountWaits() as waits:
        learner.surrogate(learner.batch(collector.steps(4)), torch.zeros(()))
    assert 0 < waits.count < counts[0]


@pytest.mark.parametrize(
    "env", [Pendulum(), SwingUpDynamics(True), HedgingDynamics(cost=0.1), LQRDynamics()],
    ids=["pendulum", "swing-up", "hedging", "lqr"],
)  # fmt: skip
def test_a_window_elsewhere_mixes_in_nothing_from_the_cpu(
    env: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device that follows shapes and holds no numbers, as there may be no GPU."""
    for room in ("base", "tensor_collector"):
        monkeypatch.setattr(f"rlpg.rollouts.{room}.stream", lambda seed, device: torch.Generator())
    learner = learner_for(env, gaussian="clipped")
    collector = rlpg.TensorCollector(
        env, learner.policy.to("meta"), num_envs=4, gradient="pathwise"
    )
    tape = rlpg.Tape("pathwise")
    steps = collector._play(3, collector._begin(collector._uniform(1)[0]), tape)
    assert {value.device.type for value in steps} == {"meta"}
    assert steps.reward.requires_grad
    assert len(tape.events) == 3

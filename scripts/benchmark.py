"""Speed as ratios: each thing and its peer in the same run, alternating, medians.

    python scripts/benchmark.py                 # everything that is installed
    python scripts/benchmark.py collect tape    # some of it
    python scripts/benchmark.py --json speed.json
    python scripts/benchmark.py --write         # everything, into README.md and docs/speed.md

The peers are the limits (the bare environment, the bare network, the same formula written by hand)
and, where it is installed (`pip install ".[bench]"`), Stable-Baselines3. A ratio is worth more
than a number of seconds: machines are noisy, and both sides of a ratio share the noise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from compare_with_sb3 import recipe_of
from torch.distributions import Normal
from training_seeds import played

import rlpg
import rlpg.errors
from rlpg.engine.components import find_recipe, make_learner, make_policy, seed_sequence
from rlpg.gradients import returns
from rlpg.gradients.tape import Tape
from rlpg.policies import StandardPolicy
from rlpg.policies.references import UserParts
from rlpg.rollouts import Collector, make_envs
from rlpg.runs.recipe import Recipe, override
from rlpg.runs.run import versions

ROOT = Path(__file__).resolve().parents[1]
IN_README = (  # against another library, on the same task
    "train / Stable-Baselines3 A2C, 64 environments",
    "solve / Stable-Baselines3 PPO, tuned",
    "evaluate / Stable-Baselines3, 1 environment",
    "evaluate / Stable-Baselines3, 8 environments",
)
BEGIN, END = "<!-- speed: written by scripts/benchmark.py -->", "<!-- end of speed -->"
SECONDS = 0.4  # of one measurement
TRAINING_STEPS = 1_000_000  # of a run whose speed is measured
SEEDS, LOOK_EVERY = 10, 2048  # of `solve`


@dataclass(frozen=True)
class Row:
    """One comparison; `ratio` is ours over the peer's, in the unit named."""

    name: str
    ours: float
    peer: float
    unit: str
    target: str

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.ours / self.peer


def alternate(*programs: Callable[[], float], repeats: int = 5) -> list[float]:
    """The median of what each program returns, run in turns."""
    found: list[list[float]] = [[] for _ in programs]
    for _ in range(repeats):
        for values, program in zip(found, programs, strict=True):
            values.append(program())
    return [statistics.median(values) for values in found]


def seconds_per_call(program: Callable[[], object]) -> Callable[[], float]:
    """Mean time of a call, over as many as fit into `SECONDS`."""

    def measure() -> float:
        calls, began = 0, time.perf_counter()
        while (now := time.perf_counter()) - began < SECONDS or calls == 0:
            program()
            calls += 1
        return (now - began) / calls

    program()  # warm
    return measure


def parts(env: str, num_envs: int, backend: str = "auto", **changes: Any) -> Any:
    """Environments, policy and learner of the default recipe."""
    recipe = override(Recipe(), {"environment.id": env, "rollout.num_envs": num_envs, **changes})
    envs, _ = make_envs(env, num_envs, seed=0, backend=backend)
    policy = make_policy(envs, recipe)
    return envs, policy, make_learner(policy, recipe)


def collect() -> Iterator[Row]:
    """Collection against stepping the same vector environment with actions drawn beforehand."""
    cases = [
        ("CartPole-v1", 64, "auto", ">= 0.35"),
        ("CartPole-v1", 512, "auto", ">= 0.35"),
        ("LunarLander-v3", 8, "sync", ">= 0.85"),
        ("HalfCheetah-v5", 8, "sync", ">= 0.85"),
        ("Acrobot-v1", 64, "envpool", ">= 0.5"),
    ]
    for env, num_envs, backend, target in cases:
        try:
            envs, policy, _ = parts(env, num_envs, backend)
        except rlpg.errors.EnvironmentSetupError as error:
            print(f"not measured: {error}")
            continue
        with closing(envs):
            collector = Collector(envs, policy, 0, log_prob=False)
            num_steps = 128
            drawn = collector.steps(num_steps).action.numpy()
            actions = [policy.head.to_env(drawn[t]) for t in range(num_steps)]

            def raw(envs: Any = envs, actions: Any = actions) -> None:
                for action in actions:
                    envs.step(action)

            ours, peer = alternate(
                seconds_per_call(partial(collector.steps, num_steps)), seconds_per_call(raw)
            )
        rate = num_steps * num_envs
        name = f"collect / raw step: {env}, {num_envs} {backend}"
        yield Row(name, rate / ours, rate / peer, "steps/s", target)


def pool() -> Iterator[Row]:
    """Collection with worker processes against one process, and against what others have.

    *Two processes* know nothing of each other and have half of the environments each: what two
    cores can do. What else runs on the machine makes the pool look slow, so that is told.
    """
    num_envs, num_steps = 32, 64
    for env in ("HalfCheetah-v5", "BipedalWalker-v3", "LunarLander-v3"):
        try:
            envs, policy, _ = parts(env, num_envs, "sync")
        except rlpg.errors.EnvironmentSetupError as error:
            print(f"not measured: {error}")
            continue
        with ExitStack() as stack:
            workers, _ = make_envs(env, num_envs, seed=0, backend="async")
            theirs = gymnasium.make_vec(env, num_envs, vectorization_mode="async")
            for made in (envs, workers, theirs):
                stack.enter_context(closing(made))
            ways: list[Callable[[], object]] = [
                partial(Collector(made, policy, log_prob=False).steps, num_steps)
                for made in (workers, envs, theirs)
            ]
            ways.append(stack.enter_context(two_processes(env, num_envs, num_steps)))
            if find_spec("stable_baselines3"):
                ways.append(stack.enter_context(subproc_vec_env(env, num_envs, num_steps, policy)))
            print(f"other programs use {others():.1f} cores")
            seconds = alternate(*map(seconds_per_call, ways), repeats=7)
        rate, *rates = (num_envs * num_steps / value for value in seconds)
        yield Row(f"collect, async / sync: {env}, {num_envs}", rate, rates[0], "steps/s", ">= 1.6")
        yield Row("- async / Gymnasium AsyncVectorEnv", rate, rates[1], "steps/s", ">= 3")
        yield Row("- two processes / sync", rates[2], rates[0], "steps/s", "")
        for peer in rates[3:]:
            name = "- async / Stable-Baselines3 SubprocVecEnv"
            yield Row(name, rate, peer, "steps/s", ">= 3")


def messages() -> Iterator[Row]:
    """What a step of all environments costs beside them: CPU time, environments that do nothing.

    The main process acts and asks each worker; the times of the workers are added up.
    """
    for num_workers, num_envs in ((1, 32), (8, 32), (8, 256)):
        envs, _ = make_envs(Nothing, num_envs, seed=0, backend="async", num_workers=num_workers)
        pool: Any = envs
        spaces = envs.single_observation_space, envs.single_action_space
        policy = StandardPolicy(*spaces, hidden=(64, 64), generator=torch.Generator())
        collector = Collector(envs, policy, log_prob=False)
        pids = [process.pid for process in pool.processes]
        found = []
        with closing(envs):
            for _ in range(40):
                main, workers = time.process_time(), cpu_seconds(pids)
                collector.steps(64)
                found.append((time.process_time() - main, cpu_seconds(pids) - workers))
        main, workers = (1e6 / 64 * min(values) for values in zip(*found, strict=True))
        name = f"a step, {num_envs} environments in {num_workers} workers: main / workers"
        yield Row(name, main, workers, "us", "")


class Nothing(gymnasium.Env[Any, Any]):
    """Does nothing; the sizes are those of HalfCheetah."""

    observation_space = gymnasium.spaces.Box(-1, 1, (17,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (6,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.obs = np.zeros(17)
        return self.obs, {}

    def step(self, action: Any) -> Any:
        return self.obs, 0.0, False, False, {}


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of processes so far (Linux only)."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def others() -> float:
    """Cores that are busy while this process sleeps (Linux only)."""

    def busy() -> float:
        user_nice_system = Path("/proc/stat").read_text().split()[1:4]
        return sum(map(int, user_nice_system)) / os.sysconf("SC_CLK_TCK")

    began = busy()
    time.sleep(1)
    return busy() - began


@contextmanager
def two_processes(env: str, num_envs: int, num_steps: int) -> Iterator[Callable[[], object]]:
    """What makes two processes collect from half of the environments each."""
    pairs = [multiprocessing.Pipe() for _ in range(2)]
    processes = [
        multiprocessing.Process(
            target=collect_when_told, args=(env, num_envs // 2, num_steps, theirs), daemon=True
        )
        for _, theirs in pairs
    ]
    for process in processes:
        process.start()

    def tell() -> None:
        for ours, _ in pairs:
            ours.send(True)
        for ours, _ in pairs:
            ours.recv()

    yield tell
    for ours, _ in pairs:
        ours.send(False)
    for process in processes:
        process.join()


def collect_when_told(env: str, num_envs: int, num_steps: int, channel: Any) -> None:
    """Runs in a process of its own."""
    torch.set_num_threads(1)
    envs, policy, _ = parts(env, num_envs, "sync")
    collector = Collector(envs, policy, log_prob=False)
    while channel.recv():
        collector.steps(num_steps)
        channel.send(True)


@contextmanager
def subproc_vec_env(
    env: str, num_envs: int, num_steps: int, policy: Any
) -> Iterator[Callable[[], object]]:
    """What steps Stable-Baselines3's worker processes with our policy."""
    from stable_baselines3.common.vec_env import SubprocVecEnv

    envs = SubprocVecEnv([partial(gymnasium.make, env) for _ in range(num_envs)])
    obs = envs.reset()

    def steps() -> None:
        nonlocal obs
        for _ in range(num_steps):
            obs, *_ = envs.step(policy.act(obs))

    yield steps
    envs.close()


def update() -> Iterator[Row]:
    """The learner's update against forward, backward and Adam of the same networks and batch."""
    envs, policy, learner = parts(
        "CartPole-v1", 64, **{"learner.num_value_epochs": 1, "learner.num_value_minibatches": 1}
    )
    collector = Collector(envs, policy, 0, log_prob=False)
    rollout = collector.steps(128)
    networks = [policy.network, learner.baseline.network]
    adam = torch.optim.Adam([p for net in networks for p in net.parameters()], fused=True)
    features = policy.features(rollout.obs[:-1]).reshape(-1, policy.observations.num_features)

    def bare() -> None:
        adam.zero_grad()
        sum(net(features)[0].square().mean() for net in networks).backward()
        adam.step()

    # Without a step: a policy that is taught one rollout a thousand times has probabilities of
    # 1e-40, on which processors are slow.
    idle = partial(learner.update, rollout, lr_scale=0.0)
    ours, peer = alternate(seconds_per_call(idle), seconds_per_call(bare))
    yield Row("update / bare networks, 128 x 64", ours, peer, "s", "<= 1.3")


def compiled() -> Iterator[Row]:
    """`--compile`: the update with compiled networks, and what compiling costs."""
    import torch._inductor.config

    both, first = [], 0.0
    for is_compiled in (False, True):
        envs, policy, learner = parts("CartPole-v1", 64)
        rollout = Collector(envs, policy, 0, log_prob=False).steps(128)
        if is_compiled:
            torch._inductor.config.force_disable_caches = True
            learner.compile()
            began = time.perf_counter()
            learner.update(rollout, lr_scale=0.0)
            first = time.perf_counter() - began
        both.append(seconds_per_call(partial(learner.update, rollout, lr_scale=0.0)))
    plain, quick = alternate(*both)
    yield Row(f"update, compiled in {first:.0f} s / plain", quick, plain, "s", "")


def gae() -> Iterator[Row]:
    """Returns and GAE against the iteration they are part of."""
    for num_steps in (128, 2048):
        envs, policy, learner = parts("CartPole-v1", 64)
        collector = Collector(envs, policy, 0, log_prob=False)
        rollout = collector.steps(num_steps)
        flags = {
            "terminated": rollout.terminated,
            "truncated": rollout.truncated,
            "valid": rollout.valid,
        }
        value = torch.zeros_like(rollout.reward)

        def advantages(rollout: Any = rollout, flags: Any = flags, value: Any = value) -> None:
            returns.gae(
                rollout.reward, value, successor_value=value, **flags, gamma=0.99, gae_lambda=0.95
            )

        def iteration(
            collector: Any = collector, learner: Any = learner, t: int = num_steps
        ) -> None:
            learner.update(collector.steps(t))

        ours, peer = alternate(seconds_per_call(advantages), seconds_per_call(iteration))
        yield Row(f"GAE / iteration, {num_steps} x 64", ours, peer, "s", "< 0.03")


def tape() -> Iterator[Row]:
    """The surrogate of 1000 nodes x 1000 lanes against the same by hand, and its memory."""

    def program(nodes: int, lanes: int = 1000) -> None:
        mean = torch.zeros((), requires_grad=True)
        made = Tape(how="score")
        x = torch.zeros(lanes)
        for _ in range(nodes):
            x = made.sample(Normal((0.5 * x + mean), torch.ones(lanes)))
            made.add(-(x**2), discount=0.99)
        made.surrogate().backward()

    def by_hand(nodes: int, lanes: int = 1000) -> None:
        mean = torch.zeros((), requires_grad=True)
        x = torch.zeros(lanes)
        log_probs, terms = [], []
        for _ in range(nodes):
            dist = Normal((0.5 * x + mean), torch.ones(lanes))
            x = dist.sample()
            log_probs.append(dist.log_prob(x))
            terms.append(-(x**2))
        to_go, total = torch.zeros(lanes), torch.zeros(())
        for t in reversed(range(nodes)):
            to_go = terms[t] + 0.99 * to_go
            total = total + (0.99**t * to_go * log_probs[t]).mean()
        total.backward()

    with torch.random.fork_rng():
        ours, peer = alternate(
            seconds_per_call(lambda: program(1000)), seconds_per_call(lambda: by_hand(1000))
        )
        yield Row("tape / by hand, 1000 nodes x 1000 lanes", ours, peer, "s", "<= 1.5")
        ours, peer = alternate(
            seconds_per_call(lambda: program(200, 32)), seconds_per_call(lambda: by_hand(200, 32))
        )
        yield Row("tape / by hand, 200 nodes x 32 lanes", ours, peer, "s", "<= 1.6")
        ours, peer = alternate(
            seconds_per_call(lambda: program(2000)), seconds_per_call(lambda: program(1000))
        )
    yield Row("tape, 2000 / 1000 nodes", ours, peer, "s", "about 2")


def train() -> Iterator[Row]:
    """Environment steps per second of whole training runs."""

    def ours() -> float:
        return TRAINING_STEPS / training_seconds(TRAINING_STEPS)

    peers: list[tuple[str, Callable[[], float], str]] = []
    if find_spec("stable_baselines3"):
        peers = [
            ("Stable-Baselines3 A2C, 64 environments", sb3("A2C", 64, 30_000), ">= 8"),
            ("Stable-Baselines3 PPO, 8 environments", sb3("PPO", 8, 16_384), ">= 40"),
        ]
    rates = alternate(ours, *(peer for _, peer, _ in peers))
    yield Row("train CartPole-v1, 64 environments / 150,000", rates[0], 150e3, "steps/s", ">= 1")
    for (name, _, target), rate in zip(peers, rates[1:], strict=True):
        yield Row(f"train / {name}", rates[0], rate, "steps/s", target)


def ppo() -> Iterator[Row]:
    """PPO with Stable-Baselines3's defaults: one environment, 2048 steps, minibatches of 64.

    The limit of its update is forward, backward and Adam of the same networks and minibatches; the
    peer of collecting and learning is Stable-Baselines3, which evaluates and saves as little.
    """
    for env in ("HalfCheetah-v5", "CartPole-v1"):
        try:
            envs, policy, learner = parts(env, 1, agent="ppo")
        except rlpg.errors.EnvironmentSetupError as error:
            print(f"not measured: {error}")
            continue
        with closing(envs):
            collector = Collector(envs, policy, 0, log_prob=False)
            rollout = collector.steps(2048)
            networks = [policy.network, learner.baseline.network]
            adam = torch.optim.Adam([p for net in networks for p in net.parameters()], fused=True)
            features = policy.features(rollout.obs[:-1]).flatten(0, 1)  # [2048, F]

            def bare(networks: Any = networks, adam: Any = adam, features: Any = features) -> None:
                for _ in range(10):
                    for index in torch.randperm(2048).split(64):
                        adam.zero_grad()
                        sum(net(features[index])[0].square().mean() for net in networks).backward()
                        adam.step()

            idle = partial(learner.update, rollout, lr_scale=0.0)
            ours, peer = alternate(seconds_per_call(idle), seconds_per_call(bare))
            yield Row(f"ppo update / bare networks: {env}", ours, peer, "s", "<= 1.6")
            if find_spec("stable_baselines3"):
                from stable_baselines3 import PPO

                model = PPO("MlpPolicy", env, device="cpu")
                ours, peer = alternate(
                    seconds_per_call(lambda c=collector, le=learner: le.update(c.steps(2048))),  # type: ignore[misc]
                    seconds_per_call(partial(model.learn, 2048, reset_num_timesteps=False)),
                )
                name = f"ppo / Stable-Baselines3 PPO, 1 environment: {env}"
                yield Row(name, 2048 / ours, 2048 / peer, "steps/s", ">= 4")


def training_seconds(total_steps: int, num_envs: int = 64, num_steps: int = 128) -> float:
    """Time of a run of `rlpg.train` on CartPole, one optimizer step per network and update."""
    settings = {
        "rollout.num_envs": num_envs,
        "rollout.num_steps": num_steps,
        "learner.num_value_epochs": 1,
        "learner.num_value_minibatches": 1,
        "evaluation.every": 10**9,
        "evaluation.episodes": 1,
        "evaluation.final_episodes": 1,
        "checkpoint.every": 10**9,
    }
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        rlpg.train(
            "CartPole-v1",
            "reinforce",
            recipe="default",
            total_steps=total_steps,
            run_dir=Path(folder) / "run",
            overrides=settings,
            quiet=True,
        )
        return time.perf_counter() - began


def sb3(algorithm: str, num_envs: int, total_steps: int) -> Callable[[], float]:
    """Training speed of Stable-Baselines3 with its defaults."""
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env

    def run() -> float:
        model = getattr(stable_baselines3, algorithm)(
            "MlpPolicy", make_vec_env("CartPole-v1", num_envs), device="cpu"
        )
        began = time.perf_counter()
        model.learn(total_steps)
        return model.num_timesteps / (time.perf_counter() - began)

    return run


def solve() -> Iterator[Row]:
    """Seconds of collecting and learning until 100 evaluation episodes have a mean of 475.

    Both are looked at every 2 048 steps, with the clock stopped, on the same environments.
    """
    peers = [solved_by_sb3] if find_spec("stable_baselines3") else []
    found: list[list[float]] = [[] for _ in (solved_by_us, *peers)]
    for seed in range(SEEDS):
        for values, program in zip(found, (solved_by_us, *peers), strict=True):
            values.append(program(seed))
    seconds = [statistics.median(values) for values in found]
    yield Row("solve CartPole-v1 / 0.8 s", seconds[0], 0.8, "s", "<= 1")
    if peers:
        yield Row("solve / Stable-Baselines3 PPO, tuned", *seconds, "s", "<= 0.125")


def solved_by_us(seed: int) -> float:
    """With the recipe of the agent that we ship."""
    clock = Clock()
    recipe = override(find_recipe("CartPole-v1", "reinforce", None, UserParts()), {"seed": seed})
    envs, _ = make_envs(
        "CartPole-v1", recipe.rollout.num_envs, seed=seed_sequence(seed, "environments")
    )
    policy = make_policy(envs, recipe)
    learner = make_learner(policy, recipe)
    collector = Collector(envs, policy, seed_sequence(seed, "actions"), log_prob=False)
    due = LOOK_EVERY
    while collector.env_steps < recipe.total_steps:
        learner.update(
            collector.steps(recipe.steps_per_env),
            lr_scale=1.0 - collector.env_steps / recipe.total_steps,
        )
        if collector.env_steps >= due:
            due += LOOK_EVERY
            with clock.stopped():
                if mean_return(partial(policy.act, deterministic=True)) >= 475:
                    break
    return clock.seconds()


def solved_by_sb3(seed: int) -> float:
    """With the hyperparameters that rl-baselines3-zoo tuned for CartPole-v1 (ppo.yml)."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    clock = Clock()

    class Look(BaseCallback):  # type: ignore[misc]  # has no types
        due, is_good = LOOK_EVERY, False

        def _on_step(self) -> bool:
            return not self.is_good

        def _on_rollout_start(self) -> None:
            if self.num_timesteps >= self.due:
                self.due += LOOK_EVERY
                with clock.stopped():
                    act = partial(self.model.predict, deterministic=True)
                    self.is_good = mean_return(lambda obs: act(obs)[0]) >= 475

    recipe = recipe_of("CartPole-v1")
    total_steps, num_envs = recipe.pop("n_timesteps"), recipe.pop("n_envs")
    envs = make_vec_env("CartPole-v1", num_envs, seed=seed)
    model = PPO("MlpPolicy", envs, seed=seed, device="cpu", **recipe)
    model.learn(total_steps, callback=Look())
    return clock.seconds()


class Clock:
    """Runs from when it is made, but for the blocks in which it is stopped."""

    def __init__(self) -> None:
        self._began, self._paused = time.perf_counter(), 0.0

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """For what does not count."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def seconds(self) -> float:
        """What counts so far."""
        return time.perf_counter() - self._began - self._paused


def mean_return(act: Callable[[Any], Any]) -> float:
    """Of the first episode of each of 100 CartPoles."""
    return float(played("CartPole-v1", act, seed=1).mean())


def evaluate() -> Iterator[Row]:
    """100 episodes of the shipped agent, 500 steps each."""
    policy = rlpg.load("CartPole-v1-reinforce")
    ours = seconds_per_call(lambda: rlpg.evaluate(policy, "CartPole-v1", episodes=100))
    if not find_spec("stable_baselines3"):
        yield Row("evaluate 100 episodes / 1 s", ours(), 1.0, "s", "")
        return
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    class Theirs:
        """Their loop around our policy, which acts as fast as theirs."""

        def predict(self, obs: Any, **options: Any) -> tuple[Any, None]:
            return policy.act(obs, deterministic=True), None

    for num_envs in (1, 8):
        peer = seconds_per_call(
            lambda n=num_envs: evaluate_policy(  # type: ignore[misc]
                Theirs(), make_vec_env("CartPole-v1", n), n_eval_episodes=100, warn=False
            )
        )
        seconds = alternate(ours, peer, repeats=3)
        name = f"evaluate / Stable-Baselines3, {num_envs} environment{'s' * (num_envs > 1)}"
        yield Row(name, seconds[0], seconds[1], "s", "<= 0.1")


def memory() -> Iterator[Row]:
    """Growth over a million steps, and the peak against what cannot be avoided (Linux only)."""
    program = """
import resource
from pathlib import Path
import rlpg
from rlpg.engine.metrics import MetricsAccumulator
def now():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
seen, before = {}, MetricsAccumulator.take
def take(self):
    seen[self._collector.env_steps] = now()
    return before(self)
MetricsAccumulator.take = take
settings = {
    "rollout.num_envs": 64, "rollout.num_steps": 128,
    "evaluation.every": 50_000, "checkpoint.every": 50_000,
}
rlpg.train("CartPole-v1", "reinforce", recipe="default", total_steps=1_500_000, run_dir="run",
           overrides=settings, quiet=True)
first = min(step for step in seen if step >= 500_000)
print(seen[max(seen)] - seen[first])
"""
    # Not ru_maxrss: a process inherits that of the one that started it.
    peak = """
import torch
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024)
"""
    with tempfile.TemporaryDirectory() as folder:
        grown, most = map(float, _output(program + peak, folder).split())
        least = float(_output(peak, folder))
    buffers = 129 * 64 * 4 * 4 + 128 * 64 * (8 + 8 + 2)  # bytes: obs; action, reward, flags
    yield Row("memory: growth from 0.5 M to 1.5 M steps / 10 MB", grown, 10, "MB", "< 1")
    yield Row(
        "memory: peak / import torch + buffers", most, least + buffers / 2**20, "MB", "<= 1.3"
    )


def _output(program: str, folder: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=folder
    ).stdout


def scale() -> Iterator[Row]:
    """Cost over work: training steps per second by length of run and by number of environments."""
    lengths = [100_000, 1_000_000, 10_000_000]
    rates = {n: n / training_seconds(n) for n in (100_000, *lengths)}  # the first warms up
    for n in lengths[1:]:
        yield Row(
            f"train {n:,} steps / {lengths[0]:,}", rates[n], rates[lengths[0]], "steps/s", ">= 0.9"
        )
    best = 0.0
    for num_envs in (1, 4, 16, 64, 256, 1024):
        # 8192 samples per update, whatever the number of environments.
        num_steps = 8192 // num_envs
        total = 8192 * (4 if num_envs < 16 else 40)
        rate = statistics.median(
            total / training_seconds(total, num_envs, num_steps) for _ in range(3)
        )
        best = max(best, rate)
        yield Row(f"train, {num_envs} environments / best so far", rate, best, "steps/s", ">= 0.9")


def start() -> Iterator[Row]:
    """Start-up, against what cannot be avoided: starting Python and importing torch."""

    def command(*words: str) -> Callable[[], float]:
        def measure() -> float:
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, *words], check=True, capture_output=True, cwd=folder
                )
                return time.perf_counter() - began

        return measure

    program = "import sys; from rlpg.cli import main; sys.exit(main(sys.argv[1:]))"
    shown, python = alternate(command("-c", program, "--help"), command("-c", "pass"))
    yield Row("rlpg --help / python", shown, python, "s", "<= 0.5 s")
    short = ["--total-steps", "512", "--evaluation.final-episodes", "1", "--evaluation.episodes"]
    trained, imported = alternate(
        command("-c", program, "train", "CartPole-v1", *short, "1"), command("-c", "import torch")
    )
    yield Row("rlpg train to its first update / import torch", trained, imported, "s", "<= 3 s")


def ranks() -> Iterator[Row]:
    """One training in two processes that torchrun starts, against one; 64 environments for each.

    Start-up is taken off: it is the time of so many steps more that counts. Episodes end after
    500 steps, so that the evaluation of one at the end is short.
    """
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "rlpg"]
    quiet = ["--quiet", "--log.tensorboard=false", "--evaluation.every=1_000_000_000",
             "--checkpoint.every=1_000_000_000", "--evaluation.final-episodes=1",
             "--environment.max-episode-steps=500"]  # fmt: skip

    def seconds(words: list[str], total_steps: int, *more: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                *words,
                "train",
                *quiet,
                *more,
                f"--total-steps={total_steps}",
            ]
            began = time.perf_counter()
            subprocess.run(
                command, check=True, capture_output=True, cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            return time.perf_counter() - began

    def rate(words: list[str], steps: int, num_envs: int, *more: str) -> float:
        more = (*more, f"--rollout.num-envs={num_envs}")
        return steps / (seconds(words, 6 * steps // 5, *more) - seconds(words, steps // 5, *more))

    for env, steps, target, backend in (
        ("BipedalWalker-v3", 100_000, ">= 1.7", "sync"),
        ("CartPole-v1", 2_000_000, ">= 1.6", "native"),
    ):
        words = [env, "--recipe=default", "--agent=reinforce", f"--environment.backend={backend}"]
        two, one = alternate(
            partial(rate, torchrun, steps, 128, *words),
            partial(rate, ["-m", "rlpg"], steps, 64, *words),
            repeats=3,
        )
        yield Row(f"two ranks / one process: {env}", two, one, "steps/s", target)


BENCHMARKS = {
    f.__name__: f
    for f in (
        collect, pool, ranks, messages, update, ppo, compiled, gae, tape, train, solve, evaluate,
        memory, scale, start,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which; all by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--write", action="store_true", help="write the tables in the documents")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"expected some of {', '.join(BENCHMARKS)}, got {', '.join(unknown)}")
    torch.set_num_threads(1)
    print(f"one torch thread, {platform.machine()}, {os.cpu_count()} cores; {versions()}\n")
    print(f"{'what':58}{'ours':>12}{'peer':>12}{'unit':>9}{'ratio':>8}  target")
    rows = []
    for name in arguments.names or BENCHMARKS:
        for row in BENCHMARKS[name]():
            rows.append(row)
            print(
                f"{row.name:58}{row.ours:12.4g}{row.peer:12.4g}{row.unit:>9}{row.ratio:8.2f}  "
                f"{row.target}",
                flush=True,
            )
    if arguments.json:
        content = {"versions": versions(), "rows": [{**asdict(r), "ratio": r.ratio} for r in rows]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.write:
        headlines = [row for row in rows if row.name in IN_README]
        if len(headlines) == len(IN_README):  # else the other library is not installed
            fill(ROOT / "README.md", headlines)
        fill(ROOT / "docs" / "speed.md", rows)


def fill(document: Path, rows: list[Row]) -> None:
    """Puts the table between the marks that the document has for it."""
    text = document.read_text()
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    lines = [
        f"{date.today():%B %Y}, {os.cpu_count()} cores of {processor()}, one torch thread; "
        + ", ".join(f"{name} {versions()[name]}" for name in ("python", "torch", "numpy"))
        + ".",
        "",
        "| what / against what | rlpg | the other | ratio | to reach |",
        "|---|---:|---:|---:|---|",
    ]
    for row in rows:
        ours, peer = (
            f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in (row.ours, row.peer)
        )
        unit = row.unit
        lines.append(
            f"| {row.name} | {ours} {unit} | {peer} {unit} | {row.ratio:.2g} | {row.target} |"
        )
    document.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + after)


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()

"""Parts that users bring: each trains, saves, resumes to the same bits, loads and evaluates."""

from __future__ import annotations

import functools
import importlib
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal, Uniform

import rlpg
from rlpg import cli
from rlpg.errors import (
    MissingPartError,
    NumericalFault,
    RlpgError,
    RlpgWarning,
    TrainingError,
    UsageError,
)
from rlpg.runs.recipe import load_recipe
from rlpg.runs.run import open_run

SMALL = {
    "rollout.num_envs": 3,
    "rollout.num_steps": 32,
    "evaluation.episodes": 2,
    "evaluation.every": 192,
    "evaluation.num_envs": 2,
    "evaluation.final_episodes": 3,
    "environment.max_episode_steps": 40,
    "log.every": 96,
    "checkpoint.every": 192,
}
TOTAL = 576

CODE = """
import torch, rlpg
from torch import nn

class Torso(nn.Sequential):
    def __init__(self, num_features, num_outputs, width=5):
        super().__init__(
            nn.Linear(num_features, width), nn.ReLU(), nn.Linear(width, num_outputs)
        )

class Constant(rlpg.Baseline):
    def __call__(self, samples, returns):
        return torch.full_like(returns, 5.0)

def half(progress):
    return 0.5 * progress

class Half:
    def __call__(self, progress):
        return half(progress)
"""


class Torso(nn.Module):
    """A network whose construction draws from torch's global generator, as any would."""

    def __init__(self, num_features: int, num_outputs: int, width: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(num_features, width), nn.Linear(width, num_outputs)
        self.unused = nn.Parameter(torch.ones(3))  # its gradient counts 0

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(features)))
        return out


class Own(rlpg.Policy):
    """Feed-forward, and nothing but `forward`."""

    def __init__(self, observation_space: Any, action_space: Any, scale: float = 1.0) -> None:
        super().__init__(observation_space, action_space)
        self.net, self.scale = nn.Linear(4, 2), scale

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        return Categorical(logits=self.scale * self.net(self.features(obs))), carry


class Advance(rlpg.Learner):
    """A learner with a setting and a state of its own."""

    @dataclass(frozen=True)
    class Settings(rlpg.LearnerSettings):
        exponent: float = 1.0
        """of the advantage's size"""

    seen: int = 0

    def surrogate(self, batch: rlpg.Batch, log_prob: Tensor) -> Tensor:
        size = batch.advantage.abs() ** self.settings.exponent  # type: ignore[attr-defined]
        return batch.mean(batch.advantage.sign() * size * log_prob)

    def improve(self, batch: rlpg.Batch, lr_scale: float) -> dict[str, float]:
        self.seen += len(batch)
        return super().improve(batch, lr_scale) | {"train/seen": float(self.seen)}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.seen = state["seen"]


class Further(Advance):
    """Another learner of the same settings."""


class Mean(rlpg.Baseline):
    """The mean of all returns of the past, as state."""

    def __init__(self) -> None:
        self.value = 0.0

    def __call__(self, samples: Any, returns: Tensor) -> Tensor:
        return torch.full_like(returns, self.value)

    def update(
        self, samples: Any, returns: Tensor, weight: Tensor, lr_scale: float = 1.0
    ) -> dict[str, float]:
        self.value = float((returns * weight).sum() / weight.sum().clamp(min=1))
        return {"train/own_mean": self.value}

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]


PARTS: dict[str, Any] = {
    "network": lambda: {"network": functools.partial(Torso, width=4)},
    "network with memory": lambda: {"network": Torso, "overrides": {"policy.memory": "gru"}},
    "policy": lambda: {"policy": functools.partial(Own, scale=2.0)},
    "learner": lambda: {"agent": Advance, "overrides": {"learner.exponent": 0.5}},
    "baseline": lambda: {"baseline": Mean()},
    "schedule": lambda: {"schedules": {"learning_rate": lambda progress: (1 - progress) ** 2}},
    "all": lambda: {"network": Torso, "agent": Advance, "baseline": Mean()},
}
every_part = pytest.mark.parametrize("name", PARTS)


def train(path: Path, name: str, total_steps: int = TOTAL, **more: Any) -> rlpg.Run:
    parts = PARTS[name]()
    overrides = SMALL | parts.pop("overrides", {})
    return rlpg.train(
        "CartPole-v1", run_dir=path, seed=3, total_steps=total_steps, recipe="default",
        overrides=overrides, quiet=True, **({"agent": "reinforce"} | parts | more),
    )  # fmt: skip


def again(name: str) -> dict[str, Any]:
    """What resume wants of the parts: arguments are in the run's files."""
    parts = PARTS[name]()
    parts.pop("overrides", None)
    return {
        key: part.func if isinstance(part, functools.partial) else part
        for key, part in parts.items()
    }


def weights(policy: rlpg.Policy) -> list[bytes]:
    return [value.numpy().tobytes() for value in policy.state_dict().values()]


@every_part
def test_a_part_of_ones_own_resumes_to_the_same_bits(tmp_path: Path, name: str) -> None:
    whole = train(tmp_path / "whole", name)
    steps = []

    def stop(step: int, metrics: dict[str, float]) -> bool:
        steps.append(step)
        return step >= 200

    stopped = train(tmp_path / "stopped", name, on_log=stop)
    assert steps[-1] < TOTAL
    resumed = rlpg.resume(stopped.path, quiet=True, **again(name))
    assert weights(resumed.policy) == weights(whole.policy)
    assert whole.evaluation is not None
    assert resumed.evaluation is not None
    np.testing.assert_array_equal(resumed.evaluation.returns, whole.evaluation.returns)


@every_part
def test_a_part_of_ones_own_loads_and_evaluates(tmp_path: Path, name: str) -> None:
    run = train(tmp_path / "run", name, total_steps=96)
    parts = {key: part for key, part in again(name).items() if key in ("network", "policy")}
    policy = rlpg.load(run.path, **parts)
    assert weights(policy) == weights(run.policy)
    options = {"max_episode_steps": 40, "episodes": 3, "seed": 5}
    mine, loaded = (rlpg.evaluate(p, "CartPole-v1", **options) for p in (run.policy, policy))
    np.testing.assert_array_equal(mine.returns, loaded.returns)
    if parts:
        with pytest.raises(MissingPartError, match="reading a file imports nothing"):
            rlpg.load(run.path)


WORDS = {
    "network": r"network: expected .*:Torso to be given, .*; pass network=, or",
    "policy": r"policy: expected .*:Own to be given, .*; pass policy=, or",
    "learner": r"agent: expected .*:Advance to be given, .*; pass agent=, or",
    "baseline": r"baseline: expected .*:Mean to be given, .*; pass baseline=, or",
    "schedule": r'rate_schedule: expected .*:function to be given, .*; pass schedules={"learning_r',
}


@pytest.mark.parametrize("name", WORDS)
def test_resume_asks_for_the_part_that_it_lacks(tmp_path: Path, name: str) -> None:
    run = train(tmp_path / "run", name, total_steps=96)
    with pytest.raises(RlpgError, match=WORDS[name]):
        rlpg.resume(run.path, total_steps=192, quiet=True)


def test_what_is_drawn_to_make_a_network_is_the_runs_own(tmp_path: Path) -> None:
    """The weights follow from the seed, and torch's global generator is left where it was."""
    torch.manual_seed(1)
    first = train(tmp_path / "a", "network", total_steps=96)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    torch.manual_seed(2)
    assert weights(train(tmp_path / "b", "network", total_steps=96).policy) == weights(first.policy)


def test_on_log_sees_every_entry_and_true_ends_the_run(tmp_path: Path) -> None:
    entries: list[tuple[int, dict[str, float]]] = []

    def on_log(step: int, metrics: dict[str, float]) -> bool:
        entries.append((step, metrics))
        return len(entries) == 2

    run = train(tmp_path / "run", "schedule", on_log=on_log)
    assert [step for step, _ in entries] == [96, 192]
    assert all("train/policy_loss" in metrics for _, metrics in entries)
    assert run.evaluation is not None, "a run that was told to stop is a finished one"
    assert (run.path / "evaluation.json").exists()


def test_a_resumed_run_gave_its_callback_no_evaluation_until_the_next(tmp_path: Path) -> None:
    """A callback that asks for `eval/mean_reward` raised KeyError, or went by a default."""

    def on_log(into: dict[int, dict[str, float]], last: int) -> Any:
        return lambda step, metrics: into.update({step: metrics}) or step >= last

    def train(name: str, last: int) -> rlpg.Run:
        return rlpg.train(
            "CartPole-v1", agent="reinforce", seed=3, total_steps=TOTAL, run_dir=tmp_path / name,
            overrides=SMALL | {"evaluation.every": 192}, on_log=on_log(seen[name], last),
            quiet=True,
        )  # fmt: skip

    seen: dict[str, dict[int, dict[str, float]]] = {"whole": {}, "parts": {}}
    train("whole", TOTAL)
    rlpg.resume(train("parts", 288).path, quiet=True, on_log=on_log(seen["parts"], TOTAL))
    assert "eval/mean_reward" in seen["parts"][384]

    def told(metrics: dict[str, float]) -> dict[str, str]:
        return {tag: repr(value) for tag, value in metrics.items() if not tag.startswith("time/")}

    assert len(seen["whole"]) > 4
    assert {step: told(metrics) for step, metrics in seen["whole"].items()} == {
        step: told(metrics) for step, metrics in seen["parts"].items()
    }


@pytest.mark.parametrize("value", [None, False, 1, "yes"])
def test_only_true_ends_a_run(tmp_path: Path, value: Any) -> None:
    steps = []
    train(tmp_path / "run", "schedule", on_log=lambda step, _: steps.append(step) or value)
    assert steps[-1] >= TOTAL


@pytest.mark.parametrize(("threshold", "stops"), [(1.0, True), (1e9, False)])
def test_stop_at_return(tmp_path: Path, threshold: float, stops: bool) -> None:
    steps: list[int] = []
    train(
        tmp_path / "run", "schedule", stop_at_return=threshold,
        on_log=lambda step, _: steps.append(step) and None,
    )  # fmt: skip
    assert (steps[-1] < TOTAL) == stops


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_own_parts.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_own_parts"
    sys.modules.pop("my_own_parts", None)


def test_the_command_line_trains_resumes_and_evaluates_with_parts(module: str) -> None:
    small = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    words = [
        "train", "CartPole-v1", "--recipe", "default", "--total-steps", "192", "--run-dir", "run",
        "--policy.network", f"{module}:Torso", "--policy.network-kwargs.width", "7", *small,
        "--learner.baseline", f"{module}:Constant", "--quiet",
    ]  # fmt: skip
    assert cli.main(words) == 0
    assert cli.main(["evaluate", "run", "--episodes", "2"]) == 2
    assert cli.main(["resume", "run", "--total-steps", "384", "--quiet"]) == 2
    assert cli.main(["evaluate", "run", "--episodes", "2", "--import"]) == 0
    assert cli.main(["resume", "run", "--total-steps", "384", "--quiet", "--import"]) == 0
    policy = rlpg.load("run", import_modules=True)
    assert policy.network.mlp.module[0].out_features == 7  # type: ignore[union-attr, index]


def test_the_commands_to_go_on_with_left_out_import(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        "CartPole-v1",
        "--total-steps",
        "96",
        "--run-dir",
        "run",
        "--recipe",
        "default",
    ]
    assert cli.main([*words, "--policy.network", f"{module}:Torso"]) == 0
    assert "rlpg evaluate run --episodes 100 --import" in "".join(capsys.readouterr())
    assert open_run(Path("run")).to_resume() == "rlpg resume run --import"


def test_a_schedule_was_forgotten_by_resume_and_refused_from_the_command_line(
    tmp_path: Path, module: str
) -> None:
    """A resumed run went on with the constant rate of its recipe, and said nothing."""
    words = ["--learner.learning-rate-schedule", f"{module}:half", "--quiet"]
    assert cli.main(["train", "CartPole-v1", "--total-steps", "192", "--recipe", "default",
                     "--run-dir", "typed", *words]) == 0  # fmt: skip
    half = importlib.import_module(module).half
    given = rlpg.train("CartPole-v1", total_steps=192, recipe="default", run_dir="given",
                       schedules={"learning_rate": half}, quiet=True)  # fmt: skip
    assert weights(given.policy) == weights(rlpg.load("typed"))
    assert cli.main(["resume", "typed", "--total-steps", "1536", "--quiet"]) == 2
    assert cli.main(["resume", "typed", "--total-steps", "1536", "--quiet", "--import"]) == 0
    again = rlpg.resume("given", total_steps=1536, schedules={"learning_rate": half}, quiet=True)
    assert weights(again.policy) == weights(rlpg.load("typed"))
    assert cli.main(["diagnose", "given", "--episodes", "4"]) == 0  # where nothing learns


def test_a_schedule_that_is_an_object_was_imported_as_its_class(module: str) -> None:
    """Its first call, with the progress, was then that of the constructor."""
    made = importlib.import_module(module).Half()
    given = {"schedules": {"learning_rate": made}, "quiet": True, "overrides": SMALL}
    short = {"total_steps": 96, "recipe": "default"}
    rlpg.train("CartPole-v1", "reinforce", run_dir="a", **short, **given)
    assert cli.main(["resume", "a", "--import", "--total-steps", "192", "--quiet"]) == 0
    words = ["--learner.learning-rate-schedule", f"{module}:Half", "--quiet", "--recipe", "default"]
    small = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    assert cli.main(["train", "CartPole-v1", "--agent", "reinforce", "--total-steps", "192",
                     "--run-dir", "b", *words, *small]) == 0  # fmt: skip
    assert weights(rlpg.load("a")) == weights(rlpg.load("b"))


class Given(rlpg.Baseline):
    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def __call__(self, samples: Any, returns: Tensor) -> Tensor:
        return torch.full_like(returns, self.value)


def scaled(progress: float, rate: float = 1.0) -> float:
    return rate * (1.0 - progress)


class Scaled:
    def __init__(self, rate: float = 1.0) -> None:
        self.rate = rate

    def down(self, progress: float) -> float:
        return scaled(progress, self.rate)


@pytest.mark.parametrize("made", [
    {"baseline": Given(3.0)},
    {"baseline": functools.partial(Given, value=3.0)},
    {"schedules": {"learning_rate": functools.partial(scaled, rate=0.5)}},
    {"schedules": {"learning_rate": Scaled(0.5).down}},
], ids=["object", "partial", "schedule", "method"])  # fmt: skip
def test_a_baseline_with_arguments_was_imported_without_them(tmp_path: Path, made: Any) -> None:
    """A resumed run went on with the default arguments, and said nothing."""
    rlpg.train("CartPole-v1", "reinforce", total_steps=96, run_dir=tmp_path, recipe="default",
               overrides=SMALL, quiet=True, **made)  # fmt: skip
    message = (
        r"expected the object .*:(Given|scaled|Scaled\.down)\(\.\.\.\) to be given, because its"
    )
    with pytest.raises(MissingPartError, match=message):
        rlpg.resume(tmp_path, total_steps=192, import_modules=True, quiet=True)
    if "baseline" in made:
        with pytest.raises(
            UsageError, match=r"learner.baseline was .*:Given\(\.\.\.\), is .*:Given;"
        ):
            rlpg.resume(tmp_path, baseline=Given, exact=True, quiet=True)
    rlpg.resume(tmp_path, total_steps=192, quiet=True, **made)


class Locking(Given):
    def __init__(self, lock: Any) -> None:
        super().__init__(1.0)
        self.lock = lock


def test_bug_a_baseline_made_of_what_cannot_be_copied_crashed(tmp_path: Path) -> None:
    """What makes a baseline was copied with its arguments, though only the baseline learns."""
    made = functools.partial(Locking, threading.Lock())
    rlpg.train("CartPole-v1", "reinforce", total_steps=96, run_dir=tmp_path, recipe="default",
               overrides=SMALL, quiet=True, baseline=made)  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "plain"
    rlpg.train("CartPole-v1", "reinforce", total_steps=96, run_dir=path, recipe="default",
               overrides=SMALL, quiet=True)  # fmt: skip
    return path


@pytest.mark.parametrize(("given", "said"), [
    ({"network": Torso}, "network: expected none, as is written there, got .*Torso"),
    ({"policy": Own}, "policy: expected none, as"),
    ({"agent": Advance}, "agent: expected reinforce, as"),
    ({"agent": "ppo"}, "agent: expected reinforce, as is written there, got 'ppo'"),
    ({"baseline": Given(3.0)}, "baseline: expected value, as"),
    ({"baseline": "linear"}, "baseline: expected value, as"),
    ({"schedules": {"learning_rate": scaled}}, "learning_rate_schedule: expected linear, as"),
], ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "")  # fmt: skip
def test_resume_and_load_ignored_a_part_that_the_run_has_not(
    plain: Path, given: Any, said: str
) -> None:
    """The run went on without it, and said nothing; only the schedule was used, and not told."""
    with pytest.raises(UsageError, match=said):
        rlpg.resume(plain, total_steps=192, quiet=True, **given)
    if set(given) <= {"network", "policy"}:
        with pytest.raises(UsageError, match=said):
            rlpg.load(plain, **given)
    rlpg.resume(plain, agent="reinforce", baseline="value", quiet=True)  # what it has


@pytest.mark.parametrize(("given", "key", "other"), [
    ({"baseline": Given(3.0)}, "learner.baseline", "linear"),
    ({"network": Torso}, "policy.network", "torch.nn:Linear"),
    ({"schedules": {"learning_rate": scaled}}, "learner.learning_rate_schedule", "constant"),
], ids=["baseline", "network", "schedule"])  # fmt: skip
def test_a_setting_won_silently_over_the_part_that_was_given(
    tmp_path: Path, given: Any, key: str, other: str
) -> None:
    how: dict[str, Any] = {"total_steps": 96, "run_dir": tmp_path / "run", "recipe": "default",
                           "quiet": True}  # fmt: skip
    with pytest.raises(UsageError, match=f"overrides: {key}: expected none beside .*:.*, got"):
        rlpg.train("CartPole-v1", "reinforce", overrides=SMALL | {key: other}, **how, **given)
    assert not (tmp_path / "run").exists()
    rlpg.train("CartPole-v1", "reinforce", overrides=SMALL, **how, **given)


def test_a_run_that_went_on_with_another_learner_was_named_after_the_first(tmp_path: Path) -> None:
    how: dict[str, Any] = {"run_dir": tmp_path, "recipe": "default", "overrides": SMALL}
    rlpg.train("CartPole-v1", Advance, total_steps=96, quiet=True, **how)
    with pytest.raises(UsageError, match=r"agent was .*:Advance, is .*:Further"):
        rlpg.resume(tmp_path, agent=Further, total_steps=192, exact=True, quiet=True)
    with pytest.warns(RlpgWarning, match=r"agent was .*:Advance, is .*:Further"):
        rlpg.resume(tmp_path, agent=Further, total_steps=192)
    assert ":Further" in (tmp_path / "recipe.toml").read_text()
    rlpg.resume(tmp_path, agent=Further, total_steps=288, exact=True, quiet=True)


@pytest.mark.parametrize(
    "network", [Own, functools.partial(Own, scale=2.0)], ids=["class", "partial"]
)
def test_a_policy_as_network_was_answered_with_a_wrapper_for_the_environment(
    tmp_path: Path, network: Any
) -> None:
    message = r"network: expected what makes a torch.nn.Module, got the policy .*:Own; pass policy="
    with pytest.raises(UsageError, match=message):
        rlpg.train("CartPole-v1", network=network, run_dir=tmp_path / "run", quiet=True)


class Renamed(Own):
    pass


def test_a_policy_that_resume_got_with_other_arguments_was_saved_with_the_old(
    tmp_path: Path,
) -> None:
    """It acted with the new argument; `load` made it with the old one, and nothing told it."""
    run = train(tmp_path, "policy", total_steps=96)
    renamed = functools.partial(Renamed, scale=3.0)
    message = (
        r"bits may differ: policy\.factory was .*:Own, is .*:Renamed.*policy\.kwargs was .*2.0"
    )
    with pytest.raises(UsageError, match=message):
        rlpg.resume(run.path, total_steps=192, policy=renamed, exact=True, quiet=True)
    with pytest.warns(rlpg.errors.RlpgWarning, match=r"policy\.(factory|kwargs) was"):
        rlpg.resume(run.path, total_steps=192, policy=renamed, quiet=True)
    policy = rlpg.load(run.path, policy=Renamed)
    assert isinstance(policy, Own)
    assert policy.scale == 3.0
    assert rlpg.resume(run.path, total_steps=288, import_modules=True, quiet=True)


def test_train_ignored_a_network_beside_a_policy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="network: expected none with policy"):
        rlpg.train("CartPole-v1", network=Torso, policy=Own, run_dir=tmp_path, quiet=True)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = (", r"got SyntaxError: '\(' was never closed \(broken.py, line 1\)"),
        ("\n1 / 0", r"got ZeroDivisionError: division by zero \(.*broken.py, line 2\)"),
        ("import sys\nsys.exit(3)", r"got SystemExit: 3 \(.*broken.py, line 2\)"),
        ("import no_such_module", "got ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "got AttributeError: module 'broken' has no attribute 'Part'"),
    ],
)
@pytest.mark.parametrize("part", ["agent", "network", "policy", "baseline"])
def test_a_module_that_raised_ended_in_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, code: str, said: str
) -> None:
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    message = f"^{part}: expected broken:Part to be importable, {said}"
    with pytest.raises(UsageError, match=message):
        rlpg.train("CartPole-v1", run_dir=tmp_path / "run", import_modules=True, quiet=True,
                   **{part: "broken:Part"})  # type: ignore[arg-type]  # fmt: skip
    sys.modules.pop("broken", None)


class Raises(rlpg.Reinforce):
    def __init__(self, *arguments: Any, **settings: Any) -> None:
        raise ZeroDivisionError("in the constructor")


def test_a_learner_that_cannot_be_made_ended_in_a_traceback(tmp_path: Path) -> None:
    message = "agent: expected .*:Raises to make one, got ZeroDivisionError: in the constructor"
    with pytest.raises(UsageError, match=message):
        rlpg.train("CartPole-v1", agent=Raises, run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


class WithoutCritic(rlpg.Policy):
    def forward(self, obs: Any, carry: Any = None, episode_start: Any = None) -> Any:
        raise NotImplementedError

    def make_critic(self, **options: Any) -> Any:
        raise ZeroDivisionError("in the critic")


def test_a_critic_that_cannot_be_made_ended_in_a_traceback(tmp_path: Path) -> None:
    message = "critic: expected .*:WithoutCritic to make one, got ZeroDivisionError: in the critic"
    with pytest.raises(UsageError, match=message):
        rlpg.train("CartPole-v1", policy=WithoutCritic, run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def surrogate(answer: Any) -> type[rlpg.Learner]:
    """A learner with that surrogate."""
    return type("Mine", (rlpg.Learner,), {"surrogate": lambda self, *args: answer(*args)})


class Returns(rlpg.Baseline):
    """Returns what no baseline should."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, samples: Any, returns: Tensor) -> Any:
        return self.answer


class Divides(rlpg.Baseline):
    """By the zeros that it finds."""

    def __call__(self, samples: Any, returns: Tensor) -> Tensor:
        return returns / 0.0


class Learns(rlpg.Baseline):
    """Says of its learning what it is given."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, samples: Any, returns: Tensor) -> Tensor:
        return torch.zeros_like(returns)

    def update(self, samples: Any, returns: Any, weight: Any, lr_scale: float = 1.0) -> Any:
        return self.answer


def shares_numbers(num_inputs: int, num_outputs: int) -> nn.Module:
    """A layer whose bias is one number for all outputs."""
    layer = nn.Linear(num_inputs, num_outputs)
    layer.bias = nn.Parameter(torch.zeros(1).expand(num_outputs))
    return layer


def with_setting(kind: Any, value: Any) -> type[rlpg.Learner]:
    """A learner with a setting `own` of that kind."""
    body = {"__annotations__": {"own": kind}, "own": value, "__module__": __name__}
    table = dataclass(frozen=True)(type("Table", (rlpg.LearnerSettings,), body))
    return type("Mine", (rlpg.Reinforce,), {"Settings": table})


EPISODES = {"overrides": SMALL | {"rollout.episodes_per_env": 1}}


class Logits(Own):
    """Its `forward` forgets the distribution."""

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        distribution, carry = super().forward(obs, carry, episode_start)
        return distribution.logits, carry


class Rounds(Own):
    """Draws numbers where choices are asked for; they were cut off to integers."""

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        distribution, carry = super().forward(obs, carry, episode_start)
        return Normal(distribution.logits[..., 0], 1.0), carry


def improve(answer: Any) -> type[rlpg.Learner]:
    """A learner whose `improve` returns that."""
    return type("Mine", (rlpg.Reinforce,), {"improve": lambda self, *args: answer})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"network": "Torso"}, "network: expected module:Name, got 'Torso'"),
        ({"network": "no_such_module:Torso"}, "expected no_such_module:Torso to be importable"),
        ({"network": 3}, "network: expected a class, a function or module:Name, got 3"),
        ({"network": nn.Linear(4, 2)}, "network: expected what makes one .* got Linear"),
        ({"network": lambda *_: 3}, "network: expected a torch.nn.Module, got 3"),
        ({"network": lambda i, o: nn.Linear(i, o + 1)}, r"expected \[B, num_outputs\]"),
        ({"policy": lambda *_: 3}, "policy: expected .* to make an rlpg.Policy, got 3"),
        ({"agent": nn.Linear}, "to be a subclass of rlpg.Learner"),
        ({"agent": "pop"}, "agent: expected one of reinforce"),
        ({"baseline": "median"}, "learner.baseline: expected one of none"),
        ({"agent": rlpg.Learner}, "expected rlpg.learners.learner:Learner to define surrogate"),
        ({"agent": surrogate(lambda b, p: p)}, r"Mine.surrogate: expected a scalar, got shape \["),
        ({"agent": surrogate(lambda b, p: None)}, "surrogate: expected a scalar, got NoneType"),
        ({"agent": surrogate(lambda b, p: b.mean(p.detach()))}, "depends on the policy, got a c"),
        ({"agent": improve(None)}, "Mine.improve: expected metrics by tag, got NoneType"),
        ({"agent": improve({"x": torch.ones(3)})}, r"x: expected one number, got shape \[3\]"),
        ({"agent": improve({"x": "y"})}, "x: expected one number, got str"),
        ({"baseline": Learns(None), **EPISODES}, "Learns.update: expected metrics by tag, got No"),
        ({"baseline": Learns({"x": "y"}), **EPISODES}, "x: expected one number, got str"),
        ({"baseline": Learns({"x": torch.ones(3)}), **EPISODES}, r"x: expected one .* got shape"),
        (
            {"network": shares_numbers},
            r"policy: .* every entry of network.mlp.module.bias, got one",
        ),
        ({"policy": Rounds}, r"Rounds.forward: expected a distribution of integers for Discrete"),
        ({"agent": with_setting(set, frozenset({1}))}, "recipe: expected numbers, strings, lists"),
        ({"agent": with_setting(list, None)}, "learner.own: expected a list, each entry anything"),
        ({"agent": with_setting(bytes, None)}, "learner.own: expected bytes, got None"),
        ({"baseline": Returns(None), **EPISODES}, r"baseline: expected shape .* got NoneType"),
        ({"baseline": Returns(0.0), **EPISODES}, r"baseline: expected shape .* got float"),
        ({"baseline": Divides(), **EPISODES}, "baseline: expected finite numbers, got NaN or inf"),
        ({"policy": Logits}, r"Logits.forward: expected a distribution, got a tensor of shape \["),
        ({"schedules": {"gama": lambda p: p}}, "gama"),
        ({"schedules": lambda p: p}, "{'learning_rate': function}, got"),
        ({"schedules": {"learning_rate": lambda p: -1}}, "schedules: .* >= 0 for learning_rate at"),
        ({"schedules": {"entropy_coef": lambda p: math.nan}}, "for entropy_coef at .* got nan"),
        ({"on_log": 5}, "on_log: expected a function of step and metrics, got 5"),
        ({"stop_at_return": "475"}, "stop_at_return: expected a number that is finite or none"),
        ({"loggers": 5}, "loggers: expected a list of rlpg.Logger, got 5"),
        ({"loggers": [print]}, "loggers: expected objects of rlpg.Logger"),
    ],
)
def test_parts_that_are_none_are_refused_in_a_sentence(
    tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    run = tmp_path / "run"
    with pytest.raises((UsageError, TrainingError), match=message) as caught:
        rlpg.train("CartPole-v1", run_dir=run, total_steps=96, quiet=True, recipe="default",
                   **({"agent": "reinforce", "overrides": SMALL} | parts))  # fmt: skip
    has_begun = isinstance(caught.value, TrainingError)
    assert run.exists() == (run / "error.log").exists() == has_begun


def test_a_part_that_failed_in_the_middle_of_a_run_was_a_usage_error_without_a_log(
    tmp_path: Path,
) -> None:
    run, falls = tmp_path / "run", lambda progress: 0.1 - progress
    with pytest.raises(TrainingError, match=r"schedules: .* >= 0 for learning_rate") as caught:
        rlpg.train("CartPole-v1", agent="reinforce", run_dir=run, total_steps=960, quiet=True,
                   overrides=SMALL, schedules={"learning_rate": falls})  # fmt: skip
    assert caught.value.__notes__ == [f"what was saved until then is in {run}, see error.log there"]
    assert "UsageError: schedules" in (run / "error.log").read_text()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"on_log": lambda step, metrics: metrics["none"]}, "^on_log raised KeyError: 'none'"),
        ({"on_log": lambda: True}, "^on_log raised TypeError: "),
        (
            {"schedules": {"learning_rate": lambda p: 1 / 0}},
            "^schedules: learning_rate raised Zero",
        ),
        ({"schedules": {"entropy_coef": lambda p: None}}, "^schedules: entropy_coef raised TypeEr"),
    ],
)
def test_a_function_that_raised_was_not_named(
    tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        rlpg.train("CartPole-v1", agent="reinforce", run_dir=tmp_path / "run", total_steps=96,
                   overrides=SMALL, quiet=True, **parts)  # fmt: skip


def test_a_learner_with_its_own_update_ended_in_a_type_error_of_the_loop() -> None:
    with pytest.raises(UsageError, match=r"^Mine.update: expected it not to be overridden; define"):
        type("Mine", (rlpg.Reinforce,), {"update": lambda self, rollout, progress: None})


@pytest.mark.parametrize(
    ("baseline", "episodes"),
    [(Mean(), 1), ("moving_average", 1), ("value", None), (rlpg.Value(nn.Linear(4, 1)), None)],
)
def test_a_baseline_that_predicts_no_values_collects_whole_episodes(
    tmp_path: Path, baseline: Any, episodes: int | None
) -> None:
    """With one of one's own, cut episodes were counted as ended: a bias that nobody asked for."""
    run = rlpg.train("CartPole-v1", "reinforce", run_dir=tmp_path / "run", total_steps=96,
                     baseline=baseline, recipe="default", overrides=SMALL, quiet=True)  # fmt: skip
    assert load_recipe(run.path / "recipe.toml").rollout.episodes_per_env == episodes


def noisy(layer: nn.Module) -> Any:
    """What makes a network with that layer."""
    return lambda num_inputs, num_outputs: nn.Sequential(
        nn.Linear(num_inputs, 8), layer, nn.Linear(8, num_outputs)
    )


def test_a_run_with_dropout_had_other_bits_each_time_and_drew_from_torch(tmp_path: Path) -> None:
    """Its evaluations were noisy, too, and changed the training that they should only watch."""
    with pytest.raises(UsageError, match=r"policy: .* dropout in network.mlp.module.1 \(Dropout\)"):
        rlpg.train("CartPole-v1", run_dir=tmp_path / "run", network=noisy(nn.Dropout(0.1)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm1d(8), "batch normalization in"),
        (nn.AlphaDropout(0.1), "dropout in"),
        (nn.TransformerEncoderLayer(8, 2, 8), "dropout in"),
        (nn.Dropout(0.0), ""),
        (nn.LayerNorm(8), ""),
        (nn.BatchNorm1d(8).eval(), ""),
        (nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0), ""),
    ],
)
def test_a_layer_that_is_noisy_is_refused_in_policy_and_value_network(
    layer: nn.Module, message: str
) -> None:
    space = gymnasium.spaces.Box(-1.0, 1.0, (3,)), gymnasium.spaces.Discrete(2)
    generator = torch.Generator().manual_seed(0)
    plain = rlpg.StandardPolicy(*space, generator=generator)
    own = rlpg.StandardPolicy(*space, network=noisy(layer), generator=generator)
    for policy, baseline in ((own, "none"), (plain, rlpg.Value(noisy(layer)(3, 1)))):
        with pytest.raises(UsageError, match=message) if message else nullcontext():
            rlpg.Reinforce(policy, baseline)


class Dropping(nn.Linear):
    """Drops some of its outputs, as no layer of it says."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(inputs), 0.5)


@pytest.mark.parametrize("agent", ["ppo", "reinforce", "trpo"])
def test_bug_a_functional_dropout_passed_and_a_resumed_run_had_other_bits(
    tmp_path: Path, agent: str
) -> None:
    with pytest.raises(TrainingError, match=r"policy: expected the same output .*F\.dropout"):
        rlpg.train("CartPole-v1", agent, run_dir=tmp_path / "run", network=Dropping, quiet=True,
                   recipe="default", total_steps=96, overrides=SMALL)  # fmt: skip


def test_bug_a_lazy_layer_ended_in_a_traceback_of_torch(tmp_path: Path) -> None:
    def lazy(num_inputs: int, num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, num_outputs))

    for agent, baseline in (("ppo", "value"), ("reinforce", "none")):
        with pytest.raises(UsageError, match=r"expected parameters that have a shape, got .*0\.w"):
            rlpg.train("CartPole-v1", agent, run_dir=tmp_path / "run", network=lazy,
                       baseline=baseline, quiet=True)  # fmt: skip
    assert not (tmp_path / "run").exists()


class Even(rlpg.Policy):
    """Draws from a distribution in which nothing is likelier than the rest: torch's mode is NaN."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__(observation_space, action_space)
        self.net = nn.Linear(self.observations.num_features, 1)

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        high = nn.functional.softplus(self.net(self.features(obs)))  # [..., 1]
        if isinstance(self.head.space, gymnasium.spaces.MultiBinary):
            even = Bernoulli(logits=0.0 * high.expand(*high.shape[:-1], 3))
            return Independent(even, 1), None
        return Independent(Uniform(-high - 1.0, high + 1.0), 1), None


def test_bug_a_uniform_policy_was_evaluated_with_nan_and_the_environment_blamed(
    tmp_path: Path,
) -> None:
    run = rlpg.train("Pendulum-v1", "reinforce", policy=Even, run_dir=tmp_path / "run",
                     total_steps=96, overrides=SMALL, quiet=True)  # fmt: skip
    assert run.evaluation is not None
    obs = np.zeros((2, 3), np.float32)
    np.testing.assert_array_equal(run.policy.act(obs, deterministic=True), np.zeros((2, 1)))


def test_where_torch_has_no_mode_the_mean_is_the_deterministic_action() -> None:
    box, bits = gymnasium.spaces.Box(-1.0, 1.0, (4,)), gymnasium.spaces.MultiBinary(3)
    obs = torch.zeros(2, 4)
    assert Even(box, bits)(obs)[0].mode.isnan().all()
    assert torch.equal(Even(box, bits).mode(obs)[0], torch.full((2, 3), 0.5))
    one = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    assert torch.equal(Even(box, one).mode(obs)[0], torch.zeros(2, 1))


class Undefined(rlpg.Policy):
    """Divides zero by zero."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__(observation_space, action_space)
        self.net = nn.Linear(self.observations.num_features, 1)

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        mean = self.net(self.features(obs))
        normal = Normal(0.0 * mean / (0.0 * mean), torch.ones_like(mean), validate_args=False)
        return Independent(normal, 1, validate_args=False), None


def test_bug_the_environment_was_blamed_for_an_action_that_was_nan(tmp_path: Path) -> None:
    with pytest.raises(NumericalFault, match=r"step 0, environment 0: action: .*nan at \[0\] from"):
        rlpg.train("Pendulum-v1", "ppo", policy=Undefined, run_dir=tmp_path / "run",
                   total_steps=96, overrides=SMALL, quiet=True)  # fmt: skip


def test_an_action_that_is_nan_in_an_evaluation_was_told_as_one_of_the_training() -> None:
    space = gymnasium.make("Pendulum-v1")
    policy = Undefined(space.observation_space, space.action_space)
    with pytest.raises(NumericalFault, match=r"^evaluation: step 0, environment 0: action: .*nan"):
        rlpg.evaluate(policy, "Pendulum-v1", episodes=1)


def gently() -> gymnasium.Env[Any, Any]:
    """Pendulum with a torque of at most 1."""
    bounds = np.full(1, -1.0, np.float32), np.full(1, 1.0, np.float32)
    return gymnasium.wrappers.RescaleAction(gymnasium.make("Pendulum-v1"), *bounds)


@pytest.mark.parametrize(
    ("env", "made_for", "kind"),
    [
        ("Pendulum-v1", "MountainCarContinuous-v0", "observation"),
        ("CartPole-v1", "MountainCar-v0", "observation"),
        (gently, "Pendulum-v1", "action"),
    ],
)
def test_bug_a_policy_for_other_spaces_acted_beyond_those_of_the_environment(
    tmp_path: Path, env: Any, made_for: str, kind: str
) -> None:
    """Of a box of the same shape and other bounds nobody noticed; of other observations the
    environment was said to be at fault."""
    with gymnasium.make(made_for) as other:
        spaces = other.observation_space, other.action_space

    def learned(observation_space: Any, action_space: Any) -> rlpg.Policy:
        return rlpg.StandardPolicy(*spaces, generator=torch.Generator().manual_seed(0))

    with pytest.raises(UsageError, match=rf"policy: .* make one for the {kind} space Box"):
        rlpg.train(env, "ppo", policy=learned, run_dir=tmp_path / "run", total_steps=96, quiet=True)
    assert not (tmp_path / "run").exists()

"""An environment that fails in a run: traceback and last checkpoint are kept, and it goes on.

Every kind of fault at every moment is in tests/rollouts/test_environment_faults.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

import rlpg
from rlpg import cli
from rlpg.engine.components import seed_sequence
from rlpg.errors import EnvironmentFault, FileError
from rlpg.rollouts import derived_seed
from rlpg.runs.store import newest_checkpoint

sys.path.append(str(Path(__file__).parent / "rollouts"))
from faulty_envs import Fragile
from misbehaving import children

SMALL: dict[str, Any] = {
    "agent": "reinforce",
    "total_steps": 256,
    "rollout.num_envs": 2,
    "rollout.num_steps": 16,
    "policy.hidden": (4,),
    "checkpoint.every": 64,
    "evaluation.every": 64,
    "evaluation.episodes": 1,
    "evaluation.stochastic": False,
    "evaluation.final_episodes": 2,
    "environment.timeout": 1.0,
}
BAD = derived_seed(seed_sequence(0, "environments"), 1, 0)  # the first seed of environment 1


@pytest.fixture(autouse=True)
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Fragile-v0 is broken; the working folder is empty."""
    gymnasium.register("test/Fragile-v0", Fragile, kwargs={"bad": BAD})
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "broken"
    path.touch()
    yield path
    del gymnasium.registry["test/Fragile-v0"]


def train(fault: str, backend: str, at: int = 40, **overrides: Any) -> rlpg.Run:
    kwargs: dict[str, Any] = {"broken": str(Path("broken").absolute()), "fault": fault, "at": at}
    settings = {"environment.backend": backend, "environment.kwargs": kwargs}
    return rlpg.train(
        "test/Fragile-v0", run_dir="run", recipe="default", overrides=SMALL | settings | overrides
    )


def held() -> tuple[int, int]:
    """Open file descriptors, and mappings of memory that is shared with workers."""
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")), maps.count("/memfd:rlpg")


FAULTS = [
    ("sync", "raise", "raised ValueError: the motor is on fire"),
    ("sync", "exit", "raised SystemExit: 3"),
    ("sync", "interrupt", "raised KeyboardInterrupt"),
    ("sync", "nan", "expected finite float32 numbers, got nan"),
    ("sync", "hang", "no answer within 1 s; it hangs"),
    ("async", "raise", "raised ValueError: the motor is on fire"),
    ("async", "exit", "raised SystemExit: 3"),
    ("async", "nan", "expected finite float32 numbers, got nan"),
    ("async", "kill", "its worker died of SIGKILL"),
    ("async", "hang", "no answer within 1 s; it hangs"),
]


@pytest.fixture(scope="module")
def _workers_before() -> None:
    """What a process keeps from its first workers on."""
    rlpg.evaluate(rlpg.load("CartPole-v1-reinforce"), "CartPole-v1", 1, backend="async")


@pytest.mark.usefixtures("_workers_before")
@pytest.mark.parametrize(("backend", "fault", "said"), FAULTS)
def test_a_fault_in_a_run(backend: str, fault: str, said: str, broken: Path) -> None:
    before = held()
    began = time.monotonic()
    with pytest.raises(EnvironmentFault) as caught:
        train(fault, backend)
    assert time.monotonic() - began < 100
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("step 39"), "the first step is step 0"
    assert "environment 1" in message
    assert said in message
    assert children() == []
    assert held() == before
    log = Path("run/error.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert said in " ".join(log.split())
    if fault in ("raise", "exit", "interrupt") or (backend, fault) == ("sync", "hang"):
        assert "in fail_if_due" in log, "where in the environment it happened"
    checkpoint, skipped = newest_checkpoint(Path("run/checkpoints"))
    assert checkpoint is not None
    assert (checkpoint.step, skipped) == (64, [])
    assert rlpg.load("run").act(np.zeros(2, np.float32)) in (0, 1)
    broken.unlink()
    with pytest.raises(FileError, match=r"kwargs.broken: expected a word that is no path"):
        rlpg.resume("run")
    assert rlpg.resume("run", env_kwargs={"broken": str(broken)}).evaluation is not None
    assert newest_checkpoint(Path("run/checkpoints"))[0].step == 256  # type: ignore[union-attr]


def test_a_fault_in_an_evaluation_was_told_as_one_of_the_training(broken: Path) -> None:
    """`step 3: environment 0, ...` is a step of the training, after which 32 others had come."""
    bad = derived_seed(seed_sequence(0, "evaluation", 64), 0, 0)
    gymnasium.registry["test/Fragile-v0"].kwargs["bad"] = bad
    with pytest.raises(
        EnvironmentFault, match=rf"^evaluation: step 2: .* \(seed {bad}\): step\(\)"
    ):
        train("raise", "sync", at=3)
    assert "in fail_if_due" in Path("run/error.log").read_text()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_fault_in_the_first_reset_has_its_traceback_kept(backend: str, broken: Path) -> None:
    with pytest.raises(
        EnvironmentFault, match=r"^reset before step 0: environment 1, episode 0 .*on fire"
    ):
        train("raise", backend, at=0)
    assert "in fail_if_due" in Path("run/error.log").read_text()
    broken.unlink()
    rlpg.resume("run", env_kwargs={"broken": str(broken)})
    assert newest_checkpoint(Path("run/checkpoints"))[0].step == 256  # type: ignore[union-attr]


def test_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "test/Fragile-v0", "--recipe", "default", "--quiet", "--run-dir", "run"]
    for key, value in SMALL.items():
        words += [f"--{key.replace('_', '-')}", "4" if isinstance(value, tuple) else str(value)]
    kwargs = ["--environment.kwargs.broken", str(Path("broken").absolute())]
    assert cli.main([*words, *kwargs, "--environment.backend", "async"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("rlpg: step 39: environment 1, episode ")
    assert err.endswith("what was saved until then is in run, see error.log there\n")


def test_out_of_bounds_is_one_line_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    kwargs = {"broken": str(Path("broken").absolute()), "fault": "out of bounds"}
    run = rlpg.train(
        "test/Fragile-v0",
        run_dir="run",
        recipe="default",
        overrides=SMALL | {"environment.kwargs": kwargs},
        quiet=False,
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if "bounds" in line]
    assert len(lines) == 1
    assert lines[0].startswith("step 39, environment 1: observation: expected -1 to 1, got 1.5")
    assert newest_checkpoint(run.path / "checkpoints")[0].step == 256  # type: ignore[union-attr]
    rows = [json.loads(row) for row in (run.path / "progress.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 256


class Given(VectorEnv[Any, Any, Any]):
    """Three environments of a user's own; what `step` gives back is changed once."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, change: Any, at: int = 40) -> None:
        self.num_envs = 3
        self.single_observation_space = spaces.Box(-1, 1, (2,), np.float64)
        self.single_action_space = spaces.Discrete(2)
        self.change, self.at, self.steps = change, at, 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        right = (np.zeros((3, 2)), {})
        return self.change(right) if self.at == 0 else right

    def step(self, actions: Any) -> Any:
        self.steps += 1
        over = np.full(3, self.steps % 7 == 0)
        info = {"final_obs": np.zeros((3, 2)), "_final_obs": over} if over.any() else {}
        right = (np.zeros((3, 2)), np.ones(3), over, np.zeros(3, bool), info)
        return self.change(right) if self.steps == self.at else right


def with_number(place: int, at: tuple[int, ...], value: float) -> Any:
    def change(right: tuple[Any, ...]) -> tuple[Any, ...]:
        right[place][at] = value
        return right

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda right: None, "step 39: TypeError: cannot unpack non-iterable NoneType object"),
        (lambda right: right[:4], "step 39: ValueError: not enough values to unpack"),
        (lambda right: (None, *right[1:]), r"step 39: observation: expected .*shape \[3, 2\]"),
        (lambda right: (right[0][:2], *right[1:]), r"shape \[3, 2\], got \[2, 2\]"),
        (lambda right: (right[0].astype(str), *right[1:]), "expected real numbers, got str"),
        (lambda right: (right[0], right[1][:2], *right[2:]), r"reward: expected 3 numbers"),
        (lambda right: (*right[:2], right[2] * 1, *right[3:]), "terminated: expected 3 booleans"),
        (with_number(0, (2, 1), 1e39), "step 39, environment 2: observation: .*inf at"),
        (with_number(1, (2,), np.nan), "step 39, environment 2: reward: .*nan"),
    ],
)
def test_a_given_vector_environment_that_answers_nonsense(change: Any, said: str) -> None:
    with pytest.raises(EnvironmentFault, match=said) as caught:
        rlpg.train(Given(change), run_dir="run", recipe="default", overrides=SMALL)
    assert "\n" not in str(caught.value)
    assert "Traceback" in Path("run/error.log").read_text()
    assert newest_checkpoint(Path("run/checkpoints"))[0].step == 96  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [1e39, np.inf, np.nan])
def test_a_number_that_no_float32_holds_in_a_reset_was_called_step_minus_1(value: float) -> None:
    given = Given(with_number(0, (2, 1), value), at=0)
    with pytest.raises(
        EnvironmentFault, match=r"^reset before step 0, environment 2: observation: "
    ):
        rlpg.train(given, run_dir="run", recipe="default", overrides=SMALL)

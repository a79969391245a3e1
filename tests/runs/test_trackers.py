"""Trackers: what they are told, by modules that only note it, and by those that are installed."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlpg.cli import main
from rlpg.errors import UsageError
from rlpg.runs.trackers import TRACKERS, TrackerLogger

SHORT = ["--total-steps", "64", "--rollout.num-envs", "2", "--rollout.num-steps", "16"]
SHORT += ["--evaluation.final-episodes", "2", "--evaluation.episodes", "2", "--quiet"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls of every tracker, none of which does anything."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def call(name: str) -> Any:
        def noted(*arguments: Any, **options: Any) -> Any:
            calls.append((name, arguments, options))
            known = options.get("id") or options.get("run_id") or f"run {len(calls)}"
            return SimpleNamespace(
                id=known, name=options.get("name"), info=SimpleNamespace(run_id=known)
            )

        return noted

    names = ("init", "log", "finish", "set_experiment", "start_run", "log_params", "log_metrics",
             "end_run")  # fmt: skip
    for kind in TRACKERS:
        module = SimpleNamespace(**{name: call(name) for name in names}, __spec__=object())
        monkeypatch.setitem(sys.modules, kind, module)  # type: ignore[arg-type]
    return calls


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_wandb_and_trackio_are_told_the_same(kind: str, told: list[Any]) -> None:
    tracker = TrackerLogger(kind, "a run", {"agent": "ppo"})
    assert told == []  # nothing begins before there is something to log
    tracker.log(5, {"a": 1.0, "b": math.nan, "c": 2})
    tracker.log(9, {"a": 3.0})
    tracker.close()
    assert told == [
        ("init", (), {"project": "rlpg", "name": "a run", "config": {"agent": "ppo"}}),
        ("log", ({"a": 1.0, "c": 2.0},), {"step": 5}),
        ("log", ({"a": 3.0},), {"step": 9}),
        ("finish", (), {}),
    ]


def test_mlflow_has_words_of_its_own(told: list[Any]) -> None:
    tracker = TrackerLogger("mlflow", "a run", {"agent": "ppo"}, project="mine")
    tracker.log(5, {"a": 1.0})
    tracker.close()
    assert told == [
        ("set_experiment", ("mine",), {}),
        ("start_run", (), {"run_id": None, "run_name": "a run"}),
        ("log_params", ({"agent": "ppo"},), {}),
        ("log_metrics", ({"a": 1.0},), {"step": 5}),
        ("end_run", (), {}),
    ]


def test_a_run_that_logged_nothing_begins_nothing(told: list[Any]) -> None:
    TrackerLogger("wandb", "a run", {}).close()
    assert told == []
    with pytest.raises(UsageError, match="track: expected one of wandb, mlflow, trackio, got x"):
        TrackerLogger("x", "a run", {})


def test_the_command_tracks_each_seed(
    told: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "CartPole-v1", "--agent", "a2c", *SHORT, "--seeds", "3", "4", "--jobs", "1"]
    assert main([*words, "--track", "wandb"]) == 0
    names = [options["name"] for name, _, options in told if name == "init"]
    assert names == ["CartPole-v1 a2c seed 3", "CartPole-v1 a2c seed 4"]
    assert told[0][2]["config"]["rollout.num_envs"] == 2
    assert any("eval/mean_reward" in call[1][0] for call in told if call[0] == "log")
    assert [call[0] for call in told].count("finish") == 2


def test_a_tracker_that_is_not_installed_is_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert main(["train", "CartPole-v1", *SHORT, "--track", "mlflow"]) == 2
    assert "--track: expected mlflow to be installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::rlpg.errors.RlpgWarning")
def test_a_tracker_that_does_not_answer_is_asked_once(
    told: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It was asked with every entry of the log, and may take a minute to say no."""
    asked = []

    def init(**options: Any) -> None:
        asked.append(options)
        raise ConnectionError("no network")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    words = ["train", "CartPole-v1", "--agent", "a2c", *SHORT, "--track", "wandb"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 1
    assert len(asked) == 1
    assert "missing: logger TrackerLogger (step " in capsys.readouterr().err
    assert "finish" not in [name for name, _, _ in told]


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_resumed_run_began_another_run_of_its_tracker(
    kind: str, told: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: the second time from the file that the first one has left."""
    monkeypatch.chdir(tmp_path)
    words = ["train", "CartPole-v1", "--agent", "a2c", *SHORT, "--run-dir", "run"]
    assert main([*words, "--track", kind]) == 0
    for total in ("128", "192"):
        assert main(["resume", "run", "--quiet", "--track", kind, "--total-steps", total]) == 0
    begun = [options for name, _, options in told if name in ("init", "start_run")]
    first = next(k for k, call in enumerate(told, 1) if call[0] in ("init", "start_run"))
    expected = {
        "wandb": {"id": f"run {first}", "resume": "allow"},
        "mlflow": {"run_id": f"run {first}", "run_name": None},
        "trackio": {"name": "CartPole-v1 a2c seed 0", "resume": "allow"},
    }[kind]
    assert len(begun) == 3
    assert "resume" not in begun[0]
    for options in begun[1:]:
        assert options.items() >= expected.items()
    assert [name for name, _, _ in told].count("log_params") == (kind == "mlflow")
    steps = [options["step"] for name, _, options in told if name in ("log", "log_metrics")]
    assert steps == sorted(steps)
    assert steps[-1] == 192


@pytest.mark.filterwarnings("ignore")  # of the packages' own
@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_the_real_one_keeps_a_run_on_this_machine(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(kind)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = TrackerLogger(kind, "a run", {"agent": "ppo", "learner.gamma": 0.9})
    tracker.log(1, {"train/entropy": 0.5})
    tracker.log(2, {"train/entropy": 0.25})
    tracker.close()
    pattern = (
        "wandb/offline-run-*/*.wandb" if kind == "wandb" else "mlruns/*/*/metrics/train/entropy"
    )
    (file,) = tmp_path.glob(pattern)
    assert file.stat().st_size > 0

"""What a verb tells the library: everything that was typed, and nothing else."""

from __future__ import annotations

import errno
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlpg.cli import main
from rlpg.engine.evaluator import Evaluation
from rlpg.errors import (
    EnvironmentFault,
    EstimatorError,
    FileError,
    NumericalFault,
    SaveError,
    TrainingError,
    UsageError,
)

FOUND = Evaluation(np.array([1.0, 2.0]), np.array([3, 4]), deterministic=True)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """The calls of the library, which do nothing; one dictionary of arguments each."""
    calls: list[dict[str, Any]] = []

    def run_recipe(env: str, recipe: Any, run_dir: Any, **options: Any) -> Any:
        calls.append({"env": env, "recipe": recipe, "run_dir": run_dir, **options})
        return SimpleNamespace(path=Path(f"run-{recipe.seed}"), evaluation=FOUND)

    def resume(path: Path, **options: Any) -> Any:
        calls.append({"path": path, **options})
        return SimpleNamespace(path=path, evaluation=FOUND)

    def load_saved(source: Any, which: str, parts: Any) -> Any:
        calls.append({"source": source, "which": which})
        return SimpleNamespace(environment={"id": "CartPole-v1"}, policy=torch.nn.Identity())

    def evaluate_saved(saved: Any, **options: Any) -> Evaluation:
        calls.append(options)
        return FOUND

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlpg.verbs.training.run_recipe", run_recipe)
    monkeypatch.setattr("rlpg.verbs.training.resume", resume)
    monkeypatch.setattr("rlpg.engine.loading.load_saved", load_saved)
    monkeypatch.setattr("rlpg.verbs.evaluation.evaluate_saved", evaluate_saved)
    return calls


def test_train_has_a_seed_and_a_folder_for_each_run(told: list[dict[str, Any]]) -> None:
    words = "--seeds 3 5 --jobs 1 --run-dir here --quiet --stop-at-return 7.5 --total-steps 100"
    assert main(["train", "CartPole-v1", *words.split()]) == 0
    assert [call["recipe"].seed for call in told] == [3, 5]
    assert [call["run_dir"] for call in told] == [Path("here/3"), Path("here/5")]
    for call in told:
        assert call["env"] == "CartPole-v1"
        assert call["recipe"].total_steps == 100
        assert call["hooks"].stop_at_return == 7.5
        assert call["quiet"] is True


def test_train_of_one_seed_is_kept_where_it_was_told(told: list[dict[str, Any]]) -> None:
    assert main(["train", "CartPole-v1", "--run-dir", "here"]) == 0
    (call,) = told
    assert call["run_dir"] == Path("here")
    assert call["hooks"].stop_at_return is None
    assert call["quiet"] is False


def test_resume_passes_on_all_that_was_typed(told: list[dict[str, Any]]) -> None:
    words = "run --exact --total-steps 9 --stop-at-return 7.5 --quiet --env CartPole-v1 --import"
    assert main(["resume", *words.split(), "--device", "auto"]) == 0
    assert told == [
        {"path": Path("run"), "env": "CartPole-v1", "env_kwargs": {}, "total_steps": 9,
         "device": "auto", "exact": True, "stop_at_return": 7.5, "import_modules": True,
         "quiet": True, "loggers": []}
    ]  # fmt: skip
    assert main(["resume", "run"]) == 0
    assert told[1] == {
        "path": Path("run"), "env": None, "env_kwargs": {}, "total_steps": None, "device": None,
        "exact": False, "stop_at_return": None, "import_modules": False, "quiet": False,
        "loggers": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "which", "deterministic"),
    [("", "last", True), ("--best", "best", True), ("--stochastic", "last", False)],
)
def test_evaluate_plays_the_policy_and_the_actions_asked_for(
    words: str, which: str, deterministic: bool, told: list[dict[str, Any]]
) -> None:
    typed = f"{words} --episodes 6 --seed 8 --num-envs 2"
    assert main(["evaluate", "run", *typed.split()]) == 0
    assert told == [
        {"source": Path("run"), "which": which},
        {"env": None, "env_kwargs": {}, "episodes": 6, "seed": 8, "deterministic": deterministic,
         "num_envs": 2},
    ]  # fmt: skip


@pytest.mark.parametrize("words", ["evaluate run --json a.json", "diagnose run --plot a.png"])
def test_a_full_disk_took_the_figures_of_all_episodes_with_it(
    words: str, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The file was written first, and nothing was printed where it could not be."""

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    found = SimpleNamespace(as_dict=dict, __str__=lambda self: "figures")
    monkeypatch.setattr("rlpg.runs.files.write", full)
    monkeypatch.setattr("rlpg.verbs.diagnosis.diagnose", lambda *args, **options: found)
    monkeypatch.setattr("rlpg.verbs.diagnosis.plot", full)
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert "return 1.50" in out or str(found) in out
    assert err.splitlines()[-1] == "rlpg: No space left on device; choose another place"


# ---- several seeds, of which some fail


def failing(monkeypatch: pytest.MonkeyPatch, errors: dict[int, Exception]) -> list[int]:
    """Runs that fail at some seeds; the seeds that were tried."""
    tried: list[int] = []

    def run_recipe(env: str, recipe: Any, run_dir: Path, **options: Any) -> Any:
        tried.append(recipe.seed)
        if recipe.seed in errors:
            raise errors[recipe.seed]
        return SimpleNamespace(path=Path(f"run-{recipe.seed}"), evaluation=FOUND)

    monkeypatch.setattr("rlpg.verbs.training.run_recipe", run_recipe)
    return tried


SAVED_IN_PART = SimpleNamespace(path=Path("run-0"), evaluation=FOUND)


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize(
    "error",
    [
        SaveError("the disk is full", SAVED_IN_PART),
        TrainingError("it raised"),
        EnvironmentFault("it hangs"),
        NumericalFault("NaN"),
        EstimatorError("cannot be right"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_save_error_of_one_seed_stopped_the_others(
    error: Exception,
    first: int,
    told: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tried = failing(monkeypatch, {first: copy(error)})
    assert main(["train", "CartPole-v1", "--seeds", "0", "1", "2", "--jobs", "1"]) == 1
    assert tried == [0, 1, 2]
    out, err = capsys.readouterr()
    assert err == f"rlpg: seed {first}: {error}\nrlpg: 1 of 3 seeds failed: {first}\n"
    trained = 3 if isinstance(error, SaveError) else 2
    assert out.count("seed ") == trained
    assert f"{trained} seeds: median return 1.50" in out


def test_a_failing_seed_alone_is_told_as_it_is(
    told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, {3: TrainingError("it raised")})
    assert main(["train", "CartPole-v1", "--seed", "3"]) == 1
    assert capsys.readouterr() == ("", "rlpg: it raised\n")


@pytest.mark.parametrize("error", [UsageError("taken"), FileError("taken")], ids=type)
def test_what_is_refused_at_the_first_seed_is_refused_for_all(
    error: Exception, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = failing(monkeypatch, {0: copy(error), 1: copy(error)})
    assert main(["train", "CartPole-v1", "--seeds", "0", "1", "2", "--jobs", "1"]) == 2
    assert tried == [0]
    assert main(["train", "CartPole-v1", "--seeds", "2", "1", "3", "--jobs", "1"]) == 1, (
        "a folder may be taken"
    )
    assert tried == [0, 2, 1, 3]


@pytest.mark.parametrize(
    "error",
    [SaveError("interrupted, and the disk is full"), KeyboardInterrupt(), SystemExit(143)],
    ids=type,
)
def test_what_stops_a_seed_by_a_signal_stops_all(
    error: Any, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = failing(monkeypatch, {1: error})
    code = main(["train", "CartPole-v1", "--seeds", "0", "1", "2", "--jobs", "1"])
    assert code == {SaveError: 1, KeyboardInterrupt: 130, SystemExit: 143}[type(error)]
    assert tried == [0, 1]

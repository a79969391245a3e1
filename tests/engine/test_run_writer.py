"""A disk that is full for a while, or to the end, during a real training."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.append(str(Path(__file__).parents[1] / "runs"))
from faulty import FaultyOs

import rlpg
from rlpg.engine import run_writer
from rlpg.engine.evaluator import Evaluation
from rlpg.engine.metrics import Every
from rlpg.errors import FileError, NumericalFault, RlpgWarning, SaveError
from rlpg.learners import Reinforce
from rlpg.policies import StandardPolicy
from rlpg.runs import files
from rlpg.runs.recipe import Recipe, override
from rlpg.runs.run import create_run
from rlpg.runs.store import load_policy, newest_checkpoint

SETTINGS: dict[str, Any] = {
    "agent": "reinforce",
    "rollout.num_envs": 4,
    "rollout.num_steps": 16,
    "evaluation.every": 128,
    "evaluation.episodes": 2,
    "evaluation.final_episodes": 2,
    "checkpoint.every": 64,
    "log.every": 64,
    "environment.max_episode_steps": 40,
}
UPDATES = 30


class Disk:
    """Stands in for `os`; while `is_full`, a write gets half through and folders cannot be made."""

    is_full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _refuse(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, descriptor: int, data: bytes) -> int:
        if self.is_full:
            os.write(descriptor, data[: len(data) // 2])
        self._refuse()
        return os.write(descriptor, data)

    def mkdir(self, path: Path) -> None:
        self._refuse()
        os.mkdir(path)


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[range], None]:
    """Lets the disk be full during the updates of these numbers."""
    disk, update = Disk(), Reinforce.update
    monkeypatch.setattr(files, "os", disk)

    def during(updates: range) -> None:
        def counted(self: Reinforce, rollout: Any, **options: Any) -> Any:
            disk.is_full = self.num_updates in updates
            return update(self, rollout, **options)

        monkeypatch.setattr(Reinforce, "update", counted)

    return during


def train(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[rlpg.Run, list[str]]:
    """The run, and what was said about it."""
    run = rlpg.train(
        "CartPole-v1", seed=3, total_steps=64 * UPDATES, run_dir=path, recipe="default",
        overrides=SETTINGS, quiet=False,
    )  # fmt: skip
    told = capsys.readouterr().err.splitlines()
    return run, [line.strip() for line in told if "cannot be" in line]


def weights(run: rlpg.Run) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in run.policy.state_dict().items()}


def test_a_disk_that_is_full_for_a_while_costs_no_bit_and_is_said_once(
    tmp_path: Path, full_at: Callable[[range], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each failing checkpoint was told, and a best policy found meanwhile was lost."""
    whole, told = train(tmp_path / "whole", capsys)
    assert told == []
    best_at = load_policy(whole.path / "best_policy")[0]["training"]["steps"] // 64
    assert best_at < UPDATES - 5
    full_at(range(best_at - 3, best_at + 4))  # the best policy is found while the disk is full
    run, told = train(tmp_path / "run", capsys)
    assert weights(run) == weights(whole)
    about = [line.split(": ")[0].rsplit("/", 1)[-1].split(".")[0] for line in told]
    assert {"checkpoints", "policy", "progress", "events"} <= set(about)
    assert len(set(about)) == len(about), told
    lines = [(each.path / "progress.jsonl").read_text().count("\n") for each in (run, whole)]
    assert lines[0] == lines[1]
    found, skipped = newest_checkpoint(run.path / "checkpoints")
    assert found is not None
    assert skipped == []
    assert found.step == 64 * UPDATES
    assert load_policy(run.path / "policy")[0]["training"]["steps"] == 64 * UPDATES
    best = [load_policy(each.path / "best_policy") for each in (run, whole)]
    assert best[0][0]["training"] == best[1][0]["training"]
    assert not [path for path in run.path.rglob("*") if path.name.startswith(".tmp-")]


def test_a_disk_that_stays_full_leaves_the_older_checkpoints_and_is_an_error_at_the_end(
    tmp_path: Path, full_at: Callable[[range], None]
) -> None:
    """The run returned as if everything had been saved; with --quiet nothing was said at all."""
    full_at(range(8, 10**6))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(SaveError) as caught:
            rlpg.train(
                "CartPole-v1", seed=3, total_steps=64 * UPDATES, run_dir=tmp_path / "run",
                recipe="default", overrides=SETTINGS, quiet=True,
            )  # fmt: skip
    assert {warning.category for warning in told} == {RlpgWarning}
    assert any("checkpoints: cannot be written now" in str(warning.message) for warning in told)
    missing = str(caught.value)
    assert missing.startswith(f"{tmp_path / 'run'}: expected everything to be saved, missing: ")
    for name in ("checkpoints (No space left", "policy (No space left", "progress.js",
                 "monitor.csv", "events.out", "evaluations.npz", "evaluation.json"):  # fmt: skip
        assert name in missing, missing
    run = caught.value.run
    assert run.evaluation is not None
    assert run.policy.act(np.zeros(4, np.float32)) in (0, 1)
    found, skipped = newest_checkpoint(run.path / "checkpoints")
    assert found is not None
    assert skipped == []
    assert found.step == 64 * 8  # the ninth update is the first that finds the disk full
    rlpg.load(run.path)


# ---- each file, and each operation -------------------------------------------------------------

TINY = SETTINGS | {"policy.hidden": (4,), "evaluation.num_envs": 2}
PLACES = {
    "policy": "/policy/", "best_policy": "/best_policy/", "checkpoints": "/checkpoints/",
    "evaluation.json": "evaluation.json", "evaluations.npz": "evaluations.npz",
    "evaluations_stochastic.npz": "_stochastic.npz", "progress.jsonl": "progress.jsonl",
    "monitor.csv": "monitor.csv", "events.out.tfevents": "events.out",
}  # fmt: skip


def train_tiny(path: Path, **options: Any) -> rlpg.Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RlpgWarning)
        return rlpg.train(
            "CartPole-v1", seed=3, total_steps=512, run_dir=path, recipe="default",
            overrides=TINY, **options,
        )  # fmt: skip


def contents(run: Path) -> dict[str, Any]:
    """What must be on disk after a run, without what measures time."""
    saved, skipped = newest_checkpoint(run / "checkpoints")
    assert saved is not None
    assert skipped == []
    rows = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "checkpoint": saved.step,
        "monitor": [
            row.split(",")[:2] for row in (run / "monitor.csv").read_text().splitlines()[1:]
        ],
        "progress": [{k: v for k, v in row.items() if k[:5] != "time/"} for row in rows],
        "evaluation": (run / "evaluation.json").read_text(),
    }
    for name in ("policy", "best_policy"):
        description, arrays = load_policy(run / name)
        weights = {key: value.tobytes() for key, value in arrays.items()}
        found[name] = description["training"], weights
    for name in ("evaluations", "evaluations_stochastic"):
        with np.load(run / f"{name}.npz", allow_pickle=False) as file:
            found[name] = {key: file[key].tolist() for key in file.files}
    events = EventAccumulator(str(run))
    events.Reload()
    found["events"] = [(e.step, e.value) for e in events.Scalars("train/policy_loss")]
    return found


class OneFull(Disk):
    """A disk that has no room for the files whose path has this in it."""

    def __init__(self, part: str) -> None:
        self.part, self.is_full, self.refusals = part, True, 0
        self._descriptors: set[int] = set()

    def open(self, path: Path, *arguments: Any) -> int:
        descriptor = os.open(path, *arguments)
        self._descriptors.discard(descriptor)
        if self.part in str(path):
            self._descriptors.add(descriptor)
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        if descriptor in self._descriptors and self.is_full:
            self.refusals += 1
            return super().write(descriptor, data)
        return os.write(descriptor, data)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return contents(train_tiny(tmp_path_factory.mktemp("whole") / "run").path)


@pytest.mark.parametrize("name", PLACES)
def test_what_the_disk_refuses_is_an_error_that_names_it_and_all_else_is_saved(
    name: str, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = OneFull(PLACES[name])
    monkeypatch.setattr(files, "os", disk)
    with pytest.raises(SaveError, match=f"missing: {name}") as caught:
        train_tiny(tmp_path / "run")
    assert disk.refusals > 0
    assert str(caught.value).count("No space left") == 1, caught.value
    assert weights(caught.value.run) == whole["policy"][1]
    monkeypatch.undo()
    if name in ("policy", "best_policy", "checkpoints", "evaluation.json", "evaluations.npz",
                "evaluations_stochastic.npz", "events.out.tfevents"):  # fmt: skip
        return  # then `contents` has nothing to read there
    found = contents(tmp_path / "run")
    key = name.partition(".")[0]
    assert found.pop(key) != whole[key]
    assert found == {k: v for k, v in whole.items() if k != key}


@pytest.mark.parametrize("name", ["best_policy", "evaluations.npz", "progress.jsonl"])
def test_what_waits_is_tried_once_more_at_the_very_end(
    name: str, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, finish = OneFull(PLACES[name]), run_writer.RunWriter.finish
    monkeypatch.setattr(files, "os", disk)

    def finish_and_make_room(*arguments: Any) -> None:
        finish(*arguments)
        disk.is_full = False

    monkeypatch.setattr(run_writer.RunWriter, "finish", finish_and_make_room)
    run = train_tiny(tmp_path / "run")
    assert disk.refusals > 0
    assert contents(run.path) == whole


def test_a_fault_at_any_operation_of_a_run_is_made_good_or_told(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operation fails once. A run that returns has everything on disk."""
    counter = FaultyOs()
    with monkeypatch.context() as patched:
        patched.setattr(files, "os", counter)
        train_tiny(tmp_path / "count")
    outcomes: dict[str, int] = {"whole": 0, "told": 0, "refused": 0}
    for k in range(3, counter.operations, max(counter.operations // 20, 1)):
        run = tmp_path / "run"
        with monkeypatch.context() as patched:
            patched.setattr(files, "os", FaultyOs("ENOSPC", k))
            try:
                train_tiny(run)
                outcome = "whole"
            except SaveError:
                outcome = "told"
            except (OSError, FileError):
                outcome = "refused"
        outcomes[outcome] += 1
        if outcome == "whole":
            assert contents(run) == whole, k
        if run.exists():
            shutil.rmtree(run)
    assert outcomes["whole"] > 10, outcomes
    assert outcomes["refused"] < 4, outcomes


# ---- the run's folder --------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["removed", "moved", "replaced", "copied"])
def test_a_folder_that_is_no_longer_the_runs_is_told_and_nothing_is_written_there(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose folder was deleted ended as if everything were there."""
    run, update = tmp_path / "run", Reinforce.update

    def interfering(self: Reinforce, rollout: Any, **options: Any) -> Any:
        if self.num_updates == 4:
            run.rename(tmp_path / "elsewhere")
            if what == "removed":
                shutil.rmtree(tmp_path / "elsewhere")
            if what == "copied":  # with a run.lock that says this process
                shutil.copytree(tmp_path / "elsewhere", run)
                shutil.copytree(run, tmp_path / "copy")
            if what == "replaced":
                run.mkdir()
                (run / "progress.jsonl").write_text("another run's\n")
        return update(self, rollout, **options)

    monkeypatch.setattr(Reinforce, "update", interfering)
    with pytest.raises(SaveError, match=r"policy \(.*removed, moved or replaced") as caught:
        train_tiny(run)
    assert caught.value.run.evaluation is not None
    assert "progress.jsonl" in str(caught.value)
    if what == "replaced":
        assert [path.name for path in run.iterdir()] == ["progress.jsonl"]
        assert (run / "progress.jsonl").read_text() == "another run's\n"
    elif what == "copied":
        now, then = (sorted(folder.rglob("*.*")) for folder in (run, tmp_path / "copy"))
        assert [p.stat().st_size for p in now] == [p.stat().st_size for p in then]
    else:
        assert not run.exists()
    monkeypatch.undo()
    if what == "moved":
        assert rlpg.resume(tmp_path / "elsewhere").evaluation is not None


def test_what_is_missing_is_a_note_of_the_error_that_stopped_the_run(
    tmp_path: Path, full_at: Callable[[range], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    full_at(range(4, 10**6))
    update = Reinforce.update

    def failing(self: Reinforce, rollout: Any, **options: Any) -> Any:
        if self.num_updates == 6:
            raise NumericalFault("gradient of policy: expected finite numbers")
        return update(self, rollout, **options)

    monkeypatch.setattr(Reinforce, "update", failing)
    with pytest.raises(NumericalFault) as caught:
        train_tiny(tmp_path / "run")
    assert any("checkpoints (No space left" in n for n in caught.value.__notes__)


# ---- loggers -----------------------------------------------------------------------------------


class Tracker(rlpg.Logger):
    def __init__(self, failing: str = "") -> None:
        self.entries: list[tuple[int, dict[str, float]]] = []
        self.closed = 0
        self.began: list[Path] = []
        self.flushed: list[int] = []  # how many entries it had
        self._failing = failing

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 192 and self._failing == "log":
            raise ConnectionError("the tracker does not answer")
        self.entries.append((step, dict(metrics)))
        metrics.clear()  # type: ignore[attr-defined]  # the next logger's are its own

    def begin(self, folder: Path) -> None:
        self.began.append(folder)
        if self._failing == "begin":
            raise ConnectionError("no tracker there")

    def flush(self) -> None:
        self.flushed.append(len(self.entries))

    def close(self) -> None:
        self.closed += 1
        if self._failing == "close":
            raise ConnectionError("the tracker is gone")


def test_a_logger_of_ones_own_gets_what_progress_has(whole: dict[str, Any], tmp_path: Path) -> None:
    one, two = Tracker(), Tracker()
    run = train_tiny(tmp_path / "run", loggers=[one, two])
    assert one.entries == two.entries
    rows = [json.loads(line) for line in (run.path / "progress.jsonl").read_text().splitlines()]
    assert [{"step": step, **metrics} for step, metrics in one.entries] == rows
    assert (one.closed, two.closed) == (1, 1)
    assert one.began == two.began == [run.path]
    # 512 steps, of which each 64 are an entry and a checkpoint; once more at the end
    assert one.flushed == [*range(1, 9), 8]
    assert contents(run.path) == whole


def test_a_resumed_run_goes_on_with_the_loggers(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", loggers=[first := Tracker()])
    rlpg.resume(tmp_path / "run", total_steps=640, loggers=[second := Tracker()])
    assert first.entries[-1][0] < second.entries[0][0]
    assert second.entries[-1][0] == 640


@pytest.mark.parametrize("failing", ["begin", "log", "close"])
def test_a_logger_that_fails_is_an_error_with_its_name_and_costs_nothing(
    failing: str, whole: dict[str, Any], tmp_path: Path
) -> None:
    """In `begin` it failed at `step -1`."""
    bad, good = Tracker(failing), Tracker()
    with pytest.raises(SaveError, match=r"missing: logger Tracker \(step \d+: Connecti") as caught:
        train_tiny(tmp_path / "run", loggers=[bad, good])
    assert len(bad.entries) == len(good.entries) - (failing == "log")  # it was asked again
    assert (bad.closed, good.closed) == (1, 1)
    assert contents(caught.value.run.path) == whole


# ---- when a checkpoint is due --------------------------------------------------------------------


def test_a_checkpoint_is_due_after_a_minute_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one came after a twentieth of the run, which may be hours."""
    now = 0.0
    monkeypatch.setattr("rlpg.engine.metrics.monotonic", lambda: now)
    due = Every(100, 1000, 0, seconds=60.0)
    times = {10: 0.0, 20: 59.0, 30: 60.0, 40: 61.0, 100: 119.0, 110: 178.0, 120: 179.0, 1000: 180.0}
    seen = []
    for step, now in times.items():  # noqa: B007 (read by the clock)
        seen += [step] if due(step) else []
    assert seen == [30, 100, 120, 1000]


def test_checkpoints_by_the_clock_change_no_bit(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlpg.verbs.training.CHECKPOINT_SECONDS", 0.0)
    steps = []
    save = run_writer.save_checkpoint
    monkeypatch.setattr(
        run_writer, "save_checkpoint", lambda *a, **k: steps.append(a[1]) or save(*a, **k)
    )
    run = rlpg.train(
        "CartPole-v1", seed=3, total_steps=512, run_dir=tmp_path / "run", recipe="default",
        overrides=TINY | {"checkpoint.every": 10**6},
    )  # fmt: skip
    assert steps == list(range(64, 513, 64))
    assert contents(run.path) == whole


# ------------------------------------------------------------------------------------ the best


def test_the_best_checkpoint_outlives_later_ones(tmp_path: Path) -> None:
    recipe = override(Recipe(), {"checkpoint.keep_last": 1, "log.tensorboard": False})
    policy = StandardPolicy(
        spaces.Box(-1, 1, (2,)), spaces.Discrete(2), generator=torch.Generator().manual_seed(0)
    )
    folder = create_run(recipe, {}, path=tmp_path / "run")
    with folder.held(), run_writer.RunWriter(folder, recipe, pytest.fail) as writer:
        for step, mean in ((100, 5.0), (200, 9.0), (300, 9.0), (400, 7.0)):
            found = Evaluation(np.array([mean]), np.array([1]), deterministic=True)
            writer.evaluated(step, policy, {"eval": found})
            writer.checkpoint(step, {}, policy)
    steps = sorted(int(path.stem[-9:]) for path in folder.checkpoints.iterdir())
    assert steps == [200, 400]  # the first of the best, and the last
    assert load_policy(folder.best_policy)[0]["training"]["steps"] == 200
    assert load_policy(folder.policy)[0]["training"]["steps"] == 400

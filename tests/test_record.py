"""A disk that is full for a while, or to the end, during a real training."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlpg
from rlpg.learners import Reinforce
from rlpg.runs import files
from rlpg.runs.store import load_policy, newest_checkpoint

SETTINGS = {
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
    return run, [line.strip() for line in told if "not saved" in line or "cannot be" in line
                 or "nothing was saved" in line]  # fmt: skip


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


def test_a_disk_that_stays_full_leaves_the_older_checkpoints_and_says_what_is_missing(
    tmp_path: Path, full_at: Callable[[range], None], capsys: pytest.CaptureFixture[str]
) -> None:
    full_at(range(8, 10**6))
    run, told = train(tmp_path / "run", capsys)
    assert run.evaluation is not None
    found, skipped = newest_checkpoint(run.path / "checkpoints")
    assert found is not None
    assert skipped == []
    assert found.step == 64 * 8  # the ninth update is the first that finds the disk full
    missing = [line for line in told if "nothing was saved there from step 576 on" in line]
    assert any("/checkpoints: " in line for line in missing), told
    assert any("/policy: " in line for line in missing), told
    rlpg.load(run.path)

"""One training in several processes that torchrun starts: what is on disk, signals, deaths."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import rlpg
from rlpg.cli import main
from rlpg.distributed import OF_TORCHRUN
from rlpg.engine.assembly import Components
from rlpg.engine.restore import require_same
from rlpg.engine.stopping import StopSignals
from rlpg.errors import RlpgWarning
from rlpg.runs.store import Checkpoint, newest_checkpoint
from rlpg.verbs.training import decided

HERE = Path(__file__).parent
SMALL = [
    "--recipe=default", "--rollout.num-envs=4", "--rollout.num-steps=16", "--log.every=128",
    "--evaluation.every=256", "--evaluation.episodes=2", "--evaluation.final-episodes=2",
    "--checkpoint.every=64", "--environment.max-episode-steps=40", "--quiet",
]  # fmt: skip


@contextmanager
def torchrun(ranks: int, *words: object, restarts: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """`torchrun --nproc-per-node RANKS -m rlpg WORDS`, in a process group of its own."""
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
        "-m", "rlpg", *map(str, words),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield process
    finally:
        workers = children(process.pid)
        process.kill()
        for worker in filter(has_rank, workers):  # they hold the pipes
            os.kill(worker, signal.SIGKILL)
        process.communicate()


def run(ranks: int, *words: object, restarts: int = 0) -> subprocess.CompletedProcess[bytes]:
    with torchrun(ranks, *words, restarts=restarts) as process:
        out, errors = process.communicate(timeout=250)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


@pytest.fixture(scope="module")
def run_joined() -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs commands in two processes that are joined as by torchrun: their exit codes and what
    they said. Only the first one costs seconds, those of an import of torch."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "joining.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
    )  # fmt: skip

    def run_one(*words: object) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([2, str(Path.cwd()), list(map(str, words))]) + "\n")
        process.stdin.flush()
        told: dict[str, Any] = json.loads(process.stdout.readline())
        return told

    try:
        yield run_one
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
        except OSError:  # it has ended
            continue
    return found


def environment(process: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def has_rank(process: int, rank: str | None = None) -> bool:
    told = environment(process).get("RANK")
    return told is not None and rank in (None, told)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def newest(run: Path) -> Checkpoint:
    saved, skipped = newest_checkpoint(run / "checkpoints")
    assert saved is not None
    assert skipped == []
    return saved


def step_of(run: Path) -> int:
    """The step of the newest checkpoint of a run that goes on, and removes old ones meanwhile."""
    saved, _ = newest_checkpoint(run / "checkpoints")
    return -1 if saved is None else saved.step


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]


def test_two_processes_train_one_policy_that_others_continue_to_the_same_bits(
    run_joined: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Global settings, one writer, every environment's episodes; stopped and resumed by two, then
    by one process without torchrun, then by two again. torchrun itself starts the run that is not
    stopped.
    """

    def joined(*words: object) -> str:
        told = run_joined(*words)
        assert told["codes"] == [0, 0], told
        assert told["out"].count("saved in") == 1
        return str(told["errors"])

    path = tmp_path / "cut"
    words = ["train", "CartPole-v1", "--agent=ppo", *SMALL, "--policy.memory=gru"]
    whole = run(2, *words, "--total-steps=512", "--run-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count(b"saved in") == 1
    joined(*words, "--total-steps=256", "--run-dir", path)
    saved = newest(path)
    assert saved.step == 256
    assert [len(state["ended"]) for state in saved.state["collector"]["ranks"]] == [2, 2]
    # 4 environments x 16 steps = 64 steps each iteration
    assert [row["step"] for row in rows(path) if "train/entropy" in row] == [128, 256]
    lengths = np.loadtxt(path / "monitor.csv", delimiter=",", skiprows=2, usecols=1)
    assert 0 < lengths.sum() <= 256

    errors = joined("resume", path, "--total-steps=512", "--quiet")
    assert "number of processes" not in errors
    for part in ("learner", "collector"):
        require_same(newest(tmp_path / "whole").state[part], newest(path).state[part], part)

    with pytest.warns(RlpgWarning, match="in another number of processes: 2 saved, 1 now"):
        rlpg.resume(path, total_steps=768, quiet=True)
    assert newest(path).step == 768
    errors = joined("resume", path, "--total-steps=1024", "--quiet")
    assert errors.count("in another number of processes: 1 saved, 2 now") == 1
    assert newest(path).step == 1024
    steps = [row["step"] for row in rows(path)]
    assert steps == sorted(steps)
    assert (path / "evaluation.json").exists()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_signal_to_torchrun_saves(number: signal.Signals, tmp_path: Path) -> None:
    words = ["train", "CartPole-v1", *SMALL, "--total-steps=1_000_000_000"]
    with torchrun(2, *words, "--run-dir", tmp_path / "run") as process:
        wait_for(lambda: list(tmp_path.glob("run/checkpoints/step-*")), "no checkpoint")
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    assert b"Error" not in errors.replace(b"SignalException", b""), errors
    saved = newest(tmp_path / "run")
    assert saved.step % 64 == 0
    steps = [row["step"] for row in rows(tmp_path / "run")]
    assert not steps or max(steps) <= saved.step


@pytest.mark.parametrize(
    "kills", [1, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
def test_a_rank_that_is_killed_again_and_again_costs_no_more_than_what_was_not_saved(
    kills: int, tmp_path: Path
) -> None:
    """SIGKILL of a random rank at random moments; torchrun starts all of them again, as often as it
    may, and then ends all of them."""
    random = np.random.default_rng(4)
    path = tmp_path / "run"
    words = ["train", "CartPole-v1", *SMALL, "--total-steps=1_000_000_000", "--run-dir", path]
    with torchrun(2, *words, restarts=kills) as process:
        before = -1
        for attempt in range(kills + 1):
            wait_for(lambda: step_of(path) > before + 256, f"no progress in attempt {attempt}")  # noqa: B023 (used at once)
            before = step_of(path)
            time.sleep(random.uniform(0, 0.5))
            victim, workers = str(random.integers(2)), children(process.pid)
            os.kill(next(w for w in workers if has_rank(w, victim)), signal.SIGKILL)
        process.communicate(timeout=100)
        assert process.returncode == 1
        assert not any(map(has_rank, workers))
    assert newest(path).step >= before
    steps = [row["step"] for row in rows(path)]
    assert steps == sorted(set(steps))


def test_ranks_whose_torchrun_was_killed_save_and_end(tmp_path: Path) -> None:
    words = ["train", "CartPole-v1", *SMALL, "--total-steps=1_000_000_000"]
    with torchrun(2, *words, "--run-dir", tmp_path / "run") as process:
        wait_for(lambda: list(tmp_path.glob("run/checkpoints/step-*")), "no checkpoint")
        workers = [w for w in children(process.pid) if has_rank(w)]
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: not any(map(has_rank, workers)), "orphans")
    assert newest(tmp_path / "run").step > 0


@pytest.mark.parametrize(("rank", "told"), [(0, ["bits may differ"]), (1, [])])
def test_what_all_ranks_know_was_said_by_each_of_them(
    rank: int, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes on what is resumed, and a run in trouble; a rank's own environments are its own."""
    said: list[str] = []
    monkeypatch.setattr("rlpg.engine.assembly.rank", lambda: rank)
    components: Any = SimpleNamespace(display=SimpleNamespace(warn=said.append))
    Components.warn(components, "bits may differ")
    assert said == told


def test_a_signal_that_came_while_the_ranks_decided_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop = StopSignals()

    def meanwhile(values: torch.Tensor) -> torch.Tensor:
        stop.received = signal.SIGTERM
        return values

    monkeypatch.setattr("rlpg.verbs.training.is_alone", lambda: False)
    monkeypatch.setattr("rlpg.verbs.training.rank", lambda: 0)
    monkeypatch.setattr("rlpg.verbs.training.max_over_ranks", meanwhile)
    assert decided(False, True, stop) == (False, True), "the other ranks do not know of it"
    assert stop.received is signal.SIGTERM
    assert decided(False, False, stop) == (True, False)


def test_what_several_processes_cannot_do_is_refused(
    run_joined: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = run_joined("train", "CartPole-v1", *SMALL, "--rollout.num-envs=3")
    assert told["codes"] == [2, 2]
    assert "rlpg: rollout.num_envs: expected a multiple of the 2 processes" in told["errors"]
    assert list(tmp_path.iterdir()) == []


def test_what_torchrun_says_in_the_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the processes are joined, so this one stands for all of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    assert main(["train", "CartPole-v1", *SMALL]) == 2
    assert "run_dir: expected a folder, in which processes that torch" in capsys.readouterr().err
    for name in OF_TORCHRUN:
        monkeypatch.setenv(name, "2")
    assert main(["train", "CartPole-v1", *SMALL, "--seeds", "0", "1"]) == 2
    assert "seeds: expected one seed for the processes of torchrun" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

"""Trains a run that is killed again and again; a program, for `test_kills.py`.

Importing torch takes seconds, the moments of interest take milliseconds. So one process imports
everything and trains nothing; each life of the run is a child that it forks, which calls the
command line's `main` and is killed with SIGKILL. To the kernel, the lock and the disk the child is
a process like any other. Nothing has used torch before a fork, so no thread or lock is inherited.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rlpg.cli import main
from rlpg.errors import RlpgError
from rlpg.runs.files import TEMPORARY
from rlpg.runs.store import load_policy, newest_checkpoint

SMALL = [
    "--recipe=default",
    "--seeds=3",
    "--total-steps=3000",
    "--rollout.num-envs=4",
    "--rollout.num_steps=16",
    "--evaluation.every=300",
    "--evaluation.episodes=2",
    "--evaluation.final-episodes=3",
    "--checkpoint.every=64",
    "--log.every=100",
    "--environment.max-episode-steps=40",
]
LIVES = 10  # in how many lives a run would be done that is killed in the middle of each


def life(folder: Path, seconds: float) -> int:
    """One process that trains the run, killed after so many seconds; its exit status.

    Args:
        seconds: from its first instruction on; infinity: it may end by itself.
    """
    words = ["resume", str(folder)]
    if not folder.exists():
        words = ["train", "CartPole-v1", f"--run-dir={folder}", *SMALL]
    child = os.fork()
    if child == 0:
        os._exit(silent(words))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(min(0.002, max(deadline - time.monotonic(), 0)))
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def silent(words: Sequence[str]) -> int:
    """The exit code of a command whose results nobody reads."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    return main([*words, "--quiet"])


def import_what_a_life_imports(folder: Path) -> None:
    """Some of it is imported late, such as `torch._dynamo`; a first life tells all of it."""
    reader, writer = os.pipe()
    before = set(sys.modules)
    child = os.fork()
    if child == 0:
        os.close(reader)
        silent(["train", "CartPole-v1", f"--run-dir={folder}", *SMALL, "--total-steps=300"])
        with os.fdopen(writer, "w") as pipe:
            json.dump(sorted(set(sys.modules) - before), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        names = json.load(pipe)
    os.waitpid(child, 0)
    for name in names:
        with suppress(ImportError):  # made by other modules while they are imported
            importlib.import_module(name)


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(TEMPORARY)]


def whole_files(folder: Path) -> int:
    """The step of the newest checkpoint, -1 before the first; AssertionError if a file is torn."""
    saved, skipped = newest_checkpoint(folder / "checkpoints")
    assert not skipped, skipped
    for name in ("policy", "best_policy"):
        if (folder / name / "policy.safetensors").exists():
            load_policy(folder / name)
    return -1 if saved is None else saved.step


def kill_often(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Kill the run that many times at random moments of its life, then let it end.

    A run that ends between two kills stays as `folder-<n>`, and another one begins.

    Returns:
        what was done: seconds of an uninterrupted run, runs, kills that left a temporary, and the
        steps of the newest checkpoint after each kill.
    """
    import_what_a_life_imports(folder.with_name("first"))
    began = time.monotonic()
    status = life(folder.with_name("whole"), float("inf"))
    duration = time.monotonic() - began
    assert status == 0, f"the uninterrupted run ended with {status}"

    moments = random.Random(seed)
    steps: list[int] = []
    finished = torn = 0
    last = -1
    while len(steps) < kills:
        status = life(folder, moments.uniform(0, 2 * duration / LIVES))
        if status == 0:
            folder.rename(folder.with_name(f"cut-{finished}"))
            finished, last = finished + 1, -1
            continue
        assert status == signal.SIGKILL, f"a life ended with status {status}"
        torn += bool(temporaries(folder.parent))
        step = whole_files(folder)
        assert step >= last, f"a checkpoint was lost: {last} was there, then {step}"
        steps.append(step)
        last = step
    assert life(folder, float("inf")) == 0
    assert not temporaries(folder.parent), temporaries(folder.parent)
    folder.rename(folder.with_name(f"cut-{finished}"))
    return {
        "seconds": round(duration, 2),
        "runs": finished + 1,
        "kills": len(steps),
        "torn": torn,
        "steps": steps,
    }


def program(words: Sequence[str]) -> None:
    folder, kills, seed = Path(words[0]), int(words[1]), int(words[2])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        print(json.dumps(kill_often(folder / "cut", kills, seed)))
    except RlpgError as error:
        raise SystemExit(f"after a kill: {error}") from error


if __name__ == "__main__":
    program(sys.argv[1:])

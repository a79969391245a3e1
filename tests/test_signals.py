"""SIGTERM, SIGINT and SIGHUP to a real training: saved within ten seconds, or ended at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlpg.runs.store import newest_checkpoint

COMMAND = [sys.executable, "-c", "import sys; from rlpg.cli import main; sys.exit(main())"]
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
EVENTS = "events.out.tfevents.*"  # there once the loop is about to begin


@contextmanager
def training(path: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A training that would go on for ever, in a process group of its own."""
    words = ["train", "CartPole-v1", "--total-steps=1_000_000_000", "--quiet", *options]
    process = subprocess.Popen(
        [*COMMAND, *words, f"--run-dir={path}"],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(path: Path, pattern: str) -> None:
    deadline = time.monotonic() + 250
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} did not appear"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("backend", "number", "code"),
    [("native", signal.SIGINT, 130), *(("async", *case) for case in SIGNALS)],
)
def test_a_signal_to_the_whole_group_saves(
    backend: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """A terminal sends Ctrl-C, and SIGHUP as it closes, to the workers too; `timeout`, systemd and
    schedulers send SIGTERM so.

    A closed terminal, and SIGTERM with workers, ended a run with nothing saved: "its worker died".
    """
    options = [f"--environment.backend={backend}", "--rollout.num-envs=2", "--checkpoint.every=64"]
    with training(
        tmp_path / "run", *options, "--evaluation.every=1_000_000", "--evaluation.num-envs=1"
    ) as process:
        wait_for(tmp_path / "run", "checkpoints/step-*")
        began = time.monotonic()
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=250)
        seconds = time.monotonic() - began
    assert process.returncode == code, errors
    assert seconds < 100, f"{seconds:.1f} s"
    assert b"Traceback" not in errors
    saved, skipped = newest_checkpoint(tmp_path / "run/checkpoints")
    assert saved is not None
    assert skipped == []
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]
)
def test_a_second_signal_ends_it_at_once(
    first: signal.Signals, second: signal.Signals, tmp_path: Path
) -> None:
    """In an iteration of a minute and more, which the first signal lets end."""
    long = ["--rollout.num-envs=1", "--rollout.num_steps=1_000_000"]
    with training(tmp_path / "run", *long) as process:
        wait_for(tmp_path / "run", EVENTS)
        time.sleep(1)  # into the first iteration
        process.send_signal(first)
        time.sleep(1)
        assert process.poll() is None  # it waits for the end of the iteration
        began = time.monotonic()
        process.send_signal(second)
        _, errors = process.communicate(timeout=250)
        assert time.monotonic() - began < 100
    assert process.returncode in ((130,) if second is signal.SIGINT else (143, -signal.SIGTERM))
    assert b"Traceback" not in errors
    assert newest_checkpoint(tmp_path / "run/checkpoints") == (None, [])  # it ended before saving


@pytest.mark.parametrize(
    ("backend", "number", "code"),
    [("native", signal.SIGINT, 130), *(("sync", *case) for case in SIGNALS)],
)
def test_bug_a_signal_waited_for_the_end_of_the_last_evaluation(
    backend: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """Which may take longer than the training; and after SIGTERM nothing was said at all."""
    options = [
        f"--environment.backend={backend}",
        "--rollout.num-envs=2",
        "--evaluation.num-envs=1",
    ]
    last = ["--total-steps=256", "--evaluation.final-episodes=50_000"]
    with training(tmp_path / "run", *options, *last) as process:
        wait_for(tmp_path / "run", "checkpoints/step-*")
        time.sleep(1)  # into the last evaluation
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=250)
    assert process.returncode == code, errors
    said = "interrupted" if code == 130 else f"ended by {number.name}"
    goes_on = f"`rlpg resume {tmp_path / 'run'}` goes on"
    assert errors.decode() == f"rlpg: {said}; {goes_on}\n"
    assert not (tmp_path / "run/evaluation.json").exists()  # it was broken off
    saved, skipped = newest_checkpoint(tmp_path / "run/checkpoints")
    assert saved is not None
    assert skipped == []


def test_a_run_under_nohup_goes_on(tmp_path: Path) -> None:
    """What the user has had ignored stays ignored."""
    program = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    program += "from rlpg.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "train", "CartPole-v1", "--total-steps=1_000_000_000"]
    process = subprocess.Popen([*command, "--quiet", f"--run-dir={tmp_path / 'run'}"])
    try:
        wait_for(tmp_path / "run", EVENTS)
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_the_tests_pass_in_a_background_job(tmp_path: Path) -> None:
    """A shell's background job ignores SIGINT: six tests that send it failed there. SIGHUP is
    ignored under nohup: a test that sends it failed."""
    ignoring = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    ignoring += "signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    ignoring += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    seen = "import signal; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler; "
    seen += "assert signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN"
    (tmp_path / "test_seen.py").write_text(f"def test_seen():\n    {seen}\n")
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    command = [sys.executable, "-c", ignoring, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

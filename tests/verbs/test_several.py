"""Several seeds at once: the bits of one by one, and each run stands alone when others fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlpg
from rlpg.cli import main
from rlpg.engine.restore import require_same
from rlpg.errors import SeedsError, TrainingError, UsageError
from rlpg.runs.store import newest_checkpoint

SMALL = {
    "rollout.num_envs": 2,
    "rollout.num_steps": 16,
    "evaluation.every": 64,
    "evaluation.episodes": 2,
    "evaluation.final_episodes": 2,
    "checkpoint.every": 64,
}
ONCE_FATAL = """
import os, signal
from gymnasium.envs.classic_control import CartPoleEnv

def make():
    try:
        os.close(os.open({flag!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return CartPoleEnv()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def assert_same_bits(run: Path, other: Path) -> None:
    for name in ("recipe.toml", "policy/policy.safetensors", "evaluation.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes()
    checkpoints = [newest_checkpoint(path / "checkpoints")[0] for path in (run, other)]
    for part in ("learner", "collector", "best"):
        ours, theirs = (found.state[part] for found in checkpoints if found is not None)
        require_same(ours, theirs, part)


def test_seeds_at_once_have_the_bits_of_one_after_the_other(tmp_path: Path) -> None:
    runs = {}
    for jobs in (2, 1):
        runs[jobs] = rlpg.train_seeds(
            "CartPole-v1", "a2c", seeds=[3, 1], jobs=jobs, total_steps=320, recipe="default",
            overrides=SMALL, run_dir=tmp_path / str(jobs), quiet=True,
        )  # fmt: skip
        assert [run.path for run in runs[jobs]] == [tmp_path / f"{jobs}/{seed}" for seed in (3, 1)]
    for several, alone in zip(runs[2], runs[1], strict=True):
        assert_same_bits(several.path, alone.path)
        assert several.evaluation is not None
        assert alone.evaluation is not None
        assert several.evaluation.mean == alone.evaluation.mean
        theirs = alone.policy.state_dict()
        for name, tensor in several.policy.state_dict().items():
            assert tensor.equal(theirs[name])


def test_a_second_seed_went_on_with_the_baseline_of_the_first(tmp_path: Path) -> None:
    """With `jobs=1`, the mean that the first seed had learned was where the second began; and of
    two calls of `train`, where the second call began."""
    how: dict[str, Any] = {"total_steps": 320, "recipe": "default", "overrides": SMALL,
                           "quiet": True}  # fmt: skip
    baseline = rlpg.MovingAverage()
    rlpg.train_seeds("CartPole-v1", "reinforce", seeds=[3, 1], jobs=1, run_dir=tmp_path,
                     baseline=baseline, **how)  # fmt: skip
    rlpg.train("CartPole-v1", "reinforce", seed=1, run_dir=tmp_path / "alone",
               baseline=rlpg.MovingAverage(), **how)  # fmt: skip
    assert_same_bits(tmp_path / "1", tmp_path / "alone")
    for name in ("first", "second"):
        rlpg.train("CartPole-v1", "reinforce", seed=1, run_dir=tmp_path / name,
                   baseline=baseline, **how)  # fmt: skip
        assert_same_bits(tmp_path / name, tmp_path / "alone")
    with pytest.raises(UsageError, match=r"overrides: learner.baseline: expected none beside"):
        rlpg.train_seeds("CartPole-v1", "reinforce", seeds=[1], baseline=baseline,
                         **how | {"overrides": {"learner.baseline": "linear"}})  # fmt: skip


def test_seeds_that_fail_do_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process is killed while it makes its environment, one finds its folder taken."""
    (tmp_path / "fatal_once.py").write_text(ONCE_FATAL.format(flag=str(tmp_path / "flag")))
    monkeypatch.syspath_prepend(tmp_path)
    from fatal_once import make  # type: ignore[import-not-found]  # written above

    (tmp_path / "runs/2").mkdir(parents=True)
    (tmp_path / "runs/2/mine.txt").touch()
    with pytest.raises(SeedsError) as failed:
        rlpg.train_seeds(
            make, seeds=[0, 1, 2], jobs=2, total_steps=64, recipe="default",
            overrides=SMALL, run_dir=tmp_path / "runs", quiet=True,
        )  # fmt: skip
    error = failed.value
    assert str(error).startswith("2 of 3 seeds failed: seed ")
    assert len(error.runs) == 1
    killed, taken = (error.errors[seed] for seed in sorted(error.errors, key=lambda s: s == 2))
    assert isinstance(killed, TrainingError)
    assert str(killed) == "its process died of SIGKILL"
    assert isinstance(taken, UsageError)
    assert "expected a folder that is new or empty" in str(taken)
    for seed, run in error.runs.items():
        assert (tmp_path / f"runs/{seed}/evaluation.json").exists()
        assert run.evaluation is not None


@pytest.mark.parametrize(("jobs", "failing"), [("2", []), ("1", [1])])
def test_the_last_lines_were_progress_and_named_no_seed_that_failed(
    jobs: str, failing: list[int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a seed that was done or had failed long before, after its result."""
    for seed in failing:
        (tmp_path / f"runs/{seed}/mine").mkdir(parents=True)
    words = ["train", "CartPole-v1", "--agent=a2c", "--total-steps=320", "--recipe=default"]
    words += [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    words += ["--seeds", "0", "1", "--jobs", jobs, "--run-dir", str(tmp_path / "runs"), "-v"]
    file = tmp_path / "told"
    with file.open("w") as told, redirect_stdout(told), redirect_stderr(told):
        assert main(words) == (1 if failing else 0)
    lines = file.read_text().splitlines()
    results = [k for k, line in enumerate(lines) if "seed 0: return" in line]
    progress = [k for k, line in enumerate(lines) if "/320 steps" in line and "seed 0" in line]
    assert len(results) == 1
    assert progress
    assert results[0] > progress[-1]
    assert ("rlpg: 1 of 2 seeds failed: 1" in lines) == bool(failing)
    assert "time: env " in "".join(lines), "-v was not passed on"


def test_verbose_was_not_passed_on_to_several_seeds(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor to other processes, for which see the test above."""
    words = ["train", "CartPole-v1", "--agent=a2c", "--total-steps=320", "--recipe=default"]
    words += [f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items()]
    words += ["--seeds", "0", "1", "--jobs", "1", "--run-dir", str(tmp_path / "runs")]
    for flags, is_told in ((["-v"], True), ([], False)):
        assert main([*words, *flags]) == 0
        told = capfd.readouterr().err
        assert ("time: env " in told) == is_told
        assert ("entropy" in told) == is_told
        shutil.rmtree(tmp_path / "runs")


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_wrong_with_all_seeds_is_said_once(jobs: int, tmp_path: Path) -> None:
    with pytest.raises(rlpg.RlpgError, match=r"^env: expected a registered id, got") as refused:
        rlpg.train_seeds("CartPole-v77", seeds=[0, 1], jobs=jobs, run_dir=tmp_path, quiet=True)
    assert not isinstance(refused.value, SeedsError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": [0, 1], "jobs": 0}, "jobs: expected an integer >= 1 or none, got 0"),
        ({"seeds": []}, r"seeds: expected seeds, each once, got \[\]"),
        ({"seeds": [1, 1]}, r"seeds: expected seeds, each once, got \[1, 1\]"),
        ({"seeds": (seed for seed in [2, 2])}, r"seeds: expected seeds, each once, got \[2, 2\]"),
        ({"seeds": np.zeros(2, int)}, r"seeds: expected seeds, each once, got \[0, 0\]"),
        ({"seeds": 3}, "seeds: expected a list, each entry an integer >= 0, got 3"),
        ({"seeds": None}, "seeds: expected a list, each entry an integer >= 0, got None"),
        ({"seeds": "01"}, r"seeds: expected a list, .*, got \['0', '1'\]"),
    ],
)
def test_seeds_and_jobs_that_cannot_be_used(options: dict[str, object], words: str) -> None:
    """An array, a generator and a number ended in errors of Python and NumPy."""
    with pytest.raises(UsageError, match=f"^{words}"):
        rlpg.train_seeds("CartPole-v1", quiet=True, **options)  # type: ignore[arg-type]


def test_a_part_that_another_process_cannot_import_is_refused_before_anything_is_done(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=r"^jobs: expected parts that another process can"):
        rlpg.train_seeds(
            "CartPole-v1", seeds=[0, 1], jobs=2, run_dir=tmp_path, quiet=True,
            schedules={"learning_rate": lambda progress: 1.0},
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_a_notebook_ended_each_seed_in_a_traceback(tmp_path: Path) -> None:
    """What `python -c` defines can be pickled, and not imported, as in a notebook."""
    lines = (
        "import rlpg",
        "from torch import nn",
        "class Torso(nn.Linear): pass",
        "rlpg.train_seeds('CartPole-v1', seeds=[0, 1], jobs=2, network=Torso, run_dir='runs')",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert last.startswith("rlpg.errors.UsageError: jobs: expected parts that another process can")
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_program_on_standard_input_was_told_to_have_a_main_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process died of FileNotFoundError: '.../<stdin>'."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(UsageError, match=r"expected 1 for .* in no file, got 2 for <stdin>"):
        rlpg.train_seeds("CartPole-v1", seeds=[0, 1], jobs=2, run_dir=tmp_path, quiet=True)
    assert list(tmp_path.iterdir()) == []


# ---- signals

COMMAND = [sys.executable, "-c", "import sys; from rlpg.cli import main; sys.exit(main())"]


@contextmanager
def training(folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Two trainings that would go on for ever."""
    words = ["train", "CartPole-v1", "--total-steps=1_000_000_000", "--quiet", "--seeds", "0", "1"]
    process = subprocess.Popen(
        [*COMMAND, *words, "--jobs=2", f"--run-dir={folder}", "--checkpoint.every=64",
         "--evaluation.every=1_000_000", "--rollout.num-envs=2", *options],
        stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        for path in folder.glob("*/run.lock"):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def both_saved(folder: Path) -> bool:
    return all(list(folder.glob(f"{seed}/checkpoints/step-*")) for seed in (0, 1))


def writers(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("*/run.lock")]


def has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_all_seeds(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """A terminal sends it to the group; the training processes are told by the parent alone."""
    with training(tmp_path) as process:
        wait_for(lambda: both_saved(tmp_path), "no checkpoints")
        processes = writers(tmp_path)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert b"Traceback" not in errors
    assert all(map(has_ended, processes))
    for seed in (0, 1):
        saved, skipped = newest_checkpoint(tmp_path / f"{seed}/checkpoints")
        assert saved is not None
        assert skipped == []
        curve = (tmp_path / f"{seed}/progress.jsonl").read_text().splitlines()
        assert f'"step":{saved.step}' not in "".join(curve[:-1]).replace(" ", "")


def test_seeds_whose_parent_was_killed_save_and_end(tmp_path: Path) -> None:
    with training(tmp_path) as process:
        wait_for(lambda: both_saved(tmp_path), "no checkpoints")
        processes = writers(tmp_path)
        assert len(processes) == 2
        process.kill()
        process.wait()
        wait_for(lambda: all(map(has_ended, processes)), "orphans")
    assert both_saved(tmp_path)


def test_a_second_signal_ends_all_seeds_at_once(tmp_path: Path) -> None:
    """In an iteration of a minute and more, which the first signal lets end."""
    with training(tmp_path, "--rollout.num-envs=1", "--rollout.num-steps=1_000_000") as process:
        wait_for(lambda: len(list(tmp_path.glob("*/events.out*"))) == 2, "no runs")
        processes = writers(tmp_path)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None  # it waits for the end of the iterations
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"Traceback" not in errors
        assert all(map(has_ended, processes))

"""A real training that is killed at random moments, by SIGKILL, until it is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.append(str(Path(__file__).parent))
from killing import temporaries
from test_resume import assert_same, progress

HERE = Path(__file__).parent


def curve(run: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/policy_loss")]


MANY = int(os.environ.get("KILLS", "300"))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [10, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_ends_with_the_bits_of_one_that_was_not(
    kills: int, tmp_path: Path
) -> None:
    """`killing.py` forks each life from a process that has imported everything; see there."""
    command = [sys.executable, str(HERE / "killing.py"), str(tmp_path / "runs"), str(kills), "5"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["kills"] == kills
    assert len(set(told["steps"])) > kills / 6, told  # they were spread over the run
    print({**told, "steps": len(set(told["steps"]))})

    whole = tmp_path / "runs/whole"
    expected = curve(whole)
    runs = sorted(tmp_path.glob("runs/cut*"))
    assert len(runs) == told["runs"]
    for run in runs:
        assert_same(whole, run)
        assert curve(run) == expected
        steps = [row["step"] for row in progress(run)]
        assert steps == sorted(set(steps))
        assert not temporaries(run)

"""The loggers that every run has, by themselves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlpg
from rlpg.runs import logger


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_logger_says_how_to_log() -> None:
    with pytest.raises(TypeError, match="abstract"):
        rlpg.Logger()  # type: ignore[abstract]


def test_a_json_logger_writes_a_line_per_step_and_cuts_what_is_beyond_its_size(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    log = rlpg.JSONLLogger(path, 12)
    log.log(3, {"a": 1.5, "b": 2, "c": math.nan, "d": -math.inf})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 1}, {"step": 3, "a": 1.5, "b": 2, "c": None, "d": None}]


def test_a_clock_that_was_set_back_hides_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads event files by name, and the name was the time: it dropped all points of
    the session that seemed to come before the one it went on from."""
    for start, now in ((0, 2_000_000_000), (3, 1_000_000_000), (6, 1_000_000_000)):
        monkeypatch.setattr("rlpg.runs.logger.time.time", lambda now=now: float(now))
        log = rlpg.TensorBoardLogger(tmp_path, start)
        for step in range(start, start + 5):  # the last two are those of a session that was killed
            log.log(step, {"loss": step})
        log.close()
    assert points(tmp_path, "loss") == [(step, step) for step in range(11)]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"events.out.tfevents.{2_000_000_000 + k}.rlpg" for k in range(3)]


def test_event_files_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    for name in ("events.out.tfevents.17", "events.out.tfevents.x.y", "events.out.tfevents"):
        (tmp_path / name).write_text("theirs")
    rlpg.TensorBoardLogger(tmp_path).close()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_log_that_waits_says_why_until_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    refused = [True]

    def check() -> None:
        if refused[0]:
            raise OSError(28, "No space left on device")

    file = logger.GrowingFile(tmp_path / "log", 0, check=check, warn=told.append)
    file.write(b"one\n")
    assert file.failure == "No space left on device"
    assert len(told) == 1
    refused[0] = False
    file.write(b"two\n")
    assert file.failure == ""
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    monkeypatch.setattr(logger, "WAITING", 2)
    refused[0] = True
    file.write(b"three\n")
    refused[0] = False
    file.write(b"four\n")
    assert file.failure == "No space left on device"  # an entry was dropped for ever
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nfour\n"

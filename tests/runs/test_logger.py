"""The loggers that every run has, by themselves."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

import rlpg
from rlpg.runs import dashboard, logger
from rlpg.runs.saver import Saver


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


def test_a_path_given_as_text_ended_in_an_attribute_error(tmp_path: Path) -> None:
    for log in (rlpg.JSONLLogger(f"{tmp_path}/a"), rlpg.TensorBoardLogger(str(tmp_path))):
        log.log(1, {"loss": 2.0})
        log.close()
    assert json.loads((tmp_path / "a").read_text()) == {"step": 1, "loss": 2.0}
    assert points(tmp_path, "loss") == [(1, 2.0)]


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


def test_a_log_that_waits_says_why_until_it_is_written(tmp_path: Path) -> None:
    told: list[str] = []
    refused = [True]

    def check() -> None:
        if refused[0]:
            raise OSError(28, "No space left on device")

    saver = Saver(told.append, check)
    file = logger.GrowingFile(tmp_path / "log", 0, saver)
    file.write(b"one\n")
    assert saver.missing == {"log": "No space left on device"}
    assert len(told) == 1
    refused[0] = False
    file.write(b"two\n")
    assert saver.missing == {}
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


@pytest.mark.parametrize("left", [b"one\ntw", b"", None])
def test_curves_that_became_shorter_were_not_missed(left: bytes | None, tmp_path: Path) -> None:
    told: list[str] = []
    if left is not None:
        (tmp_path / "log").write_bytes(left)
    file = logger.GrowingFile(tmp_path / "log", 8, Saver(told.append))
    file.write(b"new\n")
    kept = b"one\n" if left else b""
    assert (tmp_path / "log").read_bytes() == kept + b"new\n"
    assert told == [
        f"{tmp_path / 'log'}: lost {8 - len(kept)} bytes that had been written; training goes on"
    ]


def summaries(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Every summary value of the event files in the folder, with its step, by tag."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for path in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    return found


def test_a_resumed_run_keeps_its_texts_where_they_were(tmp_path: Path) -> None:
    """They were written again at each resume, at its step."""
    for start in (0, 100):
        rlpg.TensorBoardLogger(tmp_path, start, texts={"recipe": "x"}, settings={"a": 1}).close()
    found = summaries(tmp_path)
    assert {tag: [step for step, _ in values] for tag, values in found.items()} == {
        "recipe/text_summary": [0],
        "custom_scalars__config__": [0],
        "_hparams_/session_start_info": [0],
    }


def test_the_cards_of_custom_scalars_begin_with_the_return(tmp_path: Path) -> None:
    rlpg.TensorBoardLogger(tmp_path).close()
    ((_, value),) = summaries(tmp_path)["custom_scalars__config__"]
    layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
    titles = [category.title for category in layout.category]
    assert titles == ["Learning", "Gradient", "Policy", "Time"]
    first = layout.category[0].chart[0]
    assert first.title == "return"
    assert any(re.match(pattern, "rollout/ep_rew_mean") for pattern in first.multiline.tag)
    assert any(re.match(pattern, "eval/mean_reward") for pattern in first.multiline.tag)


def test_settings_are_hyperparameters(tmp_path: Path) -> None:
    settings = {"agent": "ppo", "rate": 0.5, "flag": True, "hidden": (64, 32), "kl": None, "n": 3}
    rlpg.TensorBoardLogger(tmp_path, settings=settings).close()
    ((_, value),) = summaries(tmp_path)["_hparams_/session_start_info"]
    content = value.metadata.plugin_data.content
    session = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    found = {key: getattr(v, v.WhichOneof("kind")) for key, v in session.hparams.items()}
    assert found == {
        "agent": "ppo", "rate": 0.5, "flag": True, "hidden": "64,32", "kl": "none", "n": 3,
    }  # fmt: skip


def test_the_first_value_of_a_tag_describes_it(tmp_path: Path) -> None:
    log = rlpg.TensorBoardLogger(tmp_path)
    for step in (1, 2):
        log.log(step, {"train/entropy": 0.5, "rollout/reward_run": 1.0, "own": 2.0})
    log.close()
    found = summaries(tmp_path)
    texts = {tag: [v.metadata.summary_description for _, v in found[tag]] for tag in found}
    assert texts["train/entropy"] == [dashboard.DESCRIPTIONS["train/entropy"], ""]
    assert "info" in texts["rollout/reward_run"][0]
    assert texts["own"] == ["", ""]


def test_histograms_hold_all_values(tmp_path: Path) -> None:
    log = rlpg.TensorBoardLogger(tmp_path)
    values = np.random.default_rng(0).normal(size=(50, 2))
    log.histograms(7, {"a": values, "same": np.ones(3), "none": np.ones(0)})
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Histograms("a")
    assert event.step == 7
    assert sum(event.histogram_value.bucket) == event.histogram_value.num == 100
    assert event.histogram_value.max == values.max()
    assert events.Histograms("same")[0].histogram_value.sum == 3
    assert events.Tags()["histograms"] == ["a", "same"]

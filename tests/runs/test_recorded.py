"""What a file may say about an environment, and what only the user may."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rlpg.errors import FileError, UsageError
from rlpg.runs.recorded import checked_record, usable_kwargs


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"map_name": "8x8", "is_slippery": False, "success_rate": 0.9},
        {"desc": ["SFFF", "FHFH", "FFFH", "HFFG"]},
        {"gravity": -11.0, "frame_skip": 4},
        {"render_mode": "rgb_array"},
        {"obs_type": "ram", "options": [1, 2.5, True]},
        {"text": ""},
    ],
)
def test_plain_arguments_are_used(kwargs: dict[str, Any]) -> None:
    assert usable_kwargs(kwargs, "run") == kwargs


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/dev/zero", "a word that is no path"),
        ("../robot.xml", "a word that is no path"),
        ("robot.xml", "a word that is no path"),
        ("~root", "a word that is no path"),
        ("C:robot", "a word that is no path"),
        ("a\\b", "a word that is no path"),
        ("$HOME", "a word that is no path"),
        ("a\0b", "a word that is no path"),
        (["fine", "not/fine"], "a word that is no path"),
        ("F" * 180_000, "at most 4096 characters"),
        (["F" * 600] * 300, "at most 4096 characters"),
        ([0] * 5000, "at most 4096 characters and 4096 entries"),
        (10**9, "integers of at most 10000"),
        (-(10**9), "integers of at most 10000"),
        (float("inf"), "finite numbers"),
    ],
    ids=lambda value: f"{value!r:.20}",
)
def test_what_a_file_may_not_choose_the_user_may(value: Any, expected: str) -> None:
    with pytest.raises(FileError, match=expected) as caught:
        usable_kwargs({"it": value}, "run")
    assert "\n" not in str(caught.value)
    assert "run: environment.kwargs.it: expected" in str(caught.value)
    assert usable_kwargs({"it": value, "b": 2}, "run", {"it": value}) == {"it": value, "b": 2}


def test_a_fifo_in_the_working_folder_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert usable_kwargs({"xml_file": "fifo"}, "run") == {"xml_file": "fifo"}
    os.mkfifo("fifo")
    with pytest.raises(FileError, match="a word that is no path"):
        usable_kwargs({"xml_file": "fifo"}, "run")
    Path("link").symlink_to("nowhere")
    with pytest.raises(FileError, match="a word that is no path"):
        usable_kwargs({"xml_file": "link"}, "run")


@pytest.mark.parametrize("mode", ["human", "window", 3])
def test_a_file_opened_a_window(mode: Any) -> None:
    with pytest.raises(FileError, match=r"render_mode: expected one of rgb_array, .* a window"):
        usable_kwargs({"render_mode": mode}, "run")
    assert usable_kwargs({"render_mode": mode}, "run", {"render_mode": "human"}) == {
        "render_mode": "human"
    }


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "environment: expected a table, got None"),
        ([], "environment: expected a table"),
        ({}, "environment.id: expected an id, got None"),
        ({"id": 3}, "environment.id: expected a string, got 3"),
        ({"id": "A-v0", "kwargs": [1]}, "environment.kwargs: expected a table, each value"),
        ({"id": "A-v0", "kwargs": "text"}, "environment.kwargs: expected a table, each value"),
        ({"id": "A-v0", "kwargs": {"a": {"b": 1}}}, "environment.kwargs: expected a table, each"),
        ({"id": "A-v0", "wrappers": {"A": 1}}, "environment.wrappers: expected a table of tables"),
        ({"id": "A-v0", "max_episode_steps": "9"}, "max_episode_steps: expected an integer >= 1"),
        ({"id": "A-v0", "max_episode_steps": 0}, "max_episode_steps: expected an integer >= 1"),
        ({"id": "A-v0", "max_episode_steps": True}, "max_episode_steps: expected an integer >= 1"),
        ({"id": "A-v0", "episode_cap": 1.5}, "episode_cap: expected an integer >= 1"),
    ],
)
def test_a_record_of_other_types_was_a_raw_traceback(record: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        checked_record(record)


def test_a_record_as_it_is_written() -> None:
    record = {"id": "A-v0", "kwargs": {}, "max_episode_steps": None, "episode_cap": 7}
    assert checked_record(record) == record | {"wrappers": {}}
    del record["episode_cap"]
    assert checked_record(record) == record | {"wrappers": {}, "episode_cap": 1000}

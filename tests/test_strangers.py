"""Policies, checkpoints, recipes and runs of strangers: refused in one way, and nothing runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What came of each case of `strangers.py`, all opened by one process."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("strangers.py")),
         str(tmp_path_factory.mktemp("strangers"))],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: Results = json.loads(done.stdout)
    return found


def test_there_are_cases_of_every_kind(results: Results) -> None:
    kinds = [name.partition(":")[0] for name in results]
    assert {kind: kinds.count(kind) >= 6 for kind in ("policy", "checkpoint", "recipe", "run")} == {
        "policy": True, "checkpoint": True, "recipe": True, "run": True,
    }  # fmt: skip
    assert len(results) >= 200


def test_every_case_ends_in_one_line_that_names_the_file_and_the_reason(results: Results) -> None:
    for name, result in results.items():
        if result["harmless"]:
            assert result["kind"] == "nothing", (name, result)
            continue
        assert result["kind"] == "FileError", (name, result)
        path, _, reason = result["message"].partition(": ")
        assert result["folder"] in path, (name, result)
        assert 10 < len(reason) < 600, (name, result)
        assert "\n" not in reason, (name, result)


def test_no_case_sets_the_canary_free(results: Results) -> None:
    assert [name for name, result in results.items() if result["canary"]] == []


def test_no_case_takes_500_megabytes(results: Results) -> None:
    worst = max(results, key=lambda name: results[name]["mb"])
    print(f"most memory: {results[worst]['mb']} MB, {worst}")
    assert results[worst]["mb"] < 500

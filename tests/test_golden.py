"""What any released version kept on disk loads, acts and goes on as it did then."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlpg
from rlpg.errors import FileError, RlpgWarning
from rlpg.runs.recipe import flatten, load_recipe
from rlpg.runs.store import (
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    save_policy,
)
from rlpg.runs.trees import VERSION

sys.path.append(str(Path(__file__).parent / "golden"))
from make import HERE as GOLDEN
from make import NAME, RUNS, digests

KEPT = sorted(path for path in GOLDEN.iterdir() if path.is_dir() and path.name[0] != "_")
every_run = pytest.mark.parametrize(
    "golden", [kept / name for kept in KEPT for name in RUNS], ids=lambda path: path.name
)


def expected_of(golden: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((golden.parent / "expected.json").read_text())[golden.name]
    return found


def test_the_formats_of_this_version_are_kept() -> None:
    """A new format number wants a new folder: `python tests/golden/make.py`."""
    assert (GOLDEN / NAME).is_dir()


@every_run
def test_files_are_small(golden: Path) -> None:
    assert max(path.stat().st_size for path in golden.rglob("*")) < 30_000


@every_run
def test_a_recipe_of_then_says_the_same(golden: Path) -> None:
    recipe = json.loads(json.dumps(flatten(load_recipe(golden / "recipe.toml"))))
    then = expected_of(golden)["recipe"]
    assert {key: recipe[key] for key in then} == then


@every_run
def test_a_policy_of_then_acts_as_it_did(golden: Path) -> None:
    expected = expected_of(golden)
    obs = np.array(expected["observations"], np.float32)
    for source in (golden, golden / "policy", golden / "policy" / "policy.safetensors"):
        actions = rlpg.load(source).act(obs, deterministic=True)
        np.testing.assert_allclose(actions, expected["actions"], rtol=1e-4, atol=1e-5)
    evaluation = rlpg.evaluate(rlpg.load(golden), RUNS[golden.name][0], episodes=2)
    assert np.isfinite(evaluation.mean)


@every_run
def test_a_checkpoint_of_then_holds_what_it_held(golden: Path) -> None:
    expected = expected_of(golden)
    saved, skipped = newest_checkpoint(golden / "checkpoints")
    assert saved is not None
    assert skipped == []
    assert saved.step == expected["step"]
    assert digests(saved.state) == expected["state"]


@every_run
def test_a_run_of_then_goes_on(golden: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(golden, tmp_path / "run"))
    before = (run / "progress.jsonl").read_text()
    with warnings.catch_warnings():  # that versions and processor are others now
        warnings.simplefilter("ignore", RlpgWarning)
        resumed = rlpg.resume(run, total_steps=320)
    assert resumed.evaluation is not None
    assert (run / "progress.jsonl").read_text().startswith(before)
    saved, _ = newest_checkpoint(run / "checkpoints")
    assert saved is not None
    assert saved.step >= 320


@pytest.mark.parametrize("version", [1, 3, 1000])
def test_formats_of_other_versions_say_which_rlpg_reads_them(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlpg.runs.trees.VERSION", version)
    path = save_checkpoint(tmp_path, 100, {}, versions={})
    save_policy(tmp_path, {}, {})
    monkeypatch.undo()
    for file, load in ((path, load_checkpoint), (tmp_path / "policy.safetensors", rlpg.load)):
        with pytest.raises(FileError) as caught:
            load(file)
        message = str(caught.value)
        assert message.startswith(f"{file}: expected format version {VERSION}, got {version}; ")
        assert "with the rlpg that wrote it" in message


def test_a_checkpoint_of_the_first_format_is_told_of_and_not_removed(tmp_path: Path) -> None:
    """It was a folder; a run that has no other one must not seem to have none at all."""
    (tmp_path / "step-000000100").mkdir()
    found, skipped = newest_checkpoint(tmp_path)
    assert found is None
    assert len(skipped) == 1
    assert "step-000000100: expected a regular file" in skipped[0]
    for step in (200, 300):
        save_checkpoint(tmp_path, step, {}, versions={}, keep_last=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000100", "step-000000300.safetensors",
    ]  # fmt: skip

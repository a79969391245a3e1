"""What any released version kept on disk loads, acts and goes on as it did then."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlpg
from rlpg.errors import FileError
from rlpg.runs import checkpoint, policy_files
from rlpg.runs.encoding import seal, unseal
from rlpg.runs.recipe import flatten, load_recipe

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
    for source in (golden, golden / "policy"):
        actions = rlpg.load(source).act(obs, deterministic=True)
        np.testing.assert_allclose(actions, expected["actions"], rtol=1e-4, atol=1e-5)
    evaluation = rlpg.evaluate(rlpg.load(golden), RUNS[golden.name][0], episodes=2)
    assert np.isfinite(evaluation.mean)


@every_run
def test_a_checkpoint_of_then_holds_what_it_held(golden: Path) -> None:
    expected = expected_of(golden)
    saved, skipped = checkpoint.newest(golden / "checkpoints")
    assert saved is not None
    assert skipped == []
    assert saved.step == expected["step"]
    assert digests(saved.state) == expected["state"]


@every_run
def test_a_run_of_then_goes_on(golden: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(golden, tmp_path / "run"))
    before = (run / "progress.jsonl").read_text()
    resumed = rlpg.resume(run, total_steps=320)
    assert resumed.evaluation is not None
    assert (run / "progress.jsonl").read_text().startswith(before)
    saved, _ = checkpoint.newest(run / "checkpoints")
    assert saved is not None
    assert saved.step >= 320


@pytest.mark.parametrize("version", [0, 2, 1000])
def test_formats_of_other_versions_say_which_rlpg_reads_them(version: int, tmp_path: Path) -> None:
    run = Path(shutil.copytree(GOLDEN / NAME / "discrete", tmp_path / "run"))
    saved, _ = checkpoint.newest(run / "checkpoints")
    assert saved is not None
    for path, own, load in (
        (run / "policy/policy.json", policy_files.VERSION, lambda: rlpg.load(run / "policy")),
        (
            saved.path / "manifest.json",
            checkpoint.VERSION,
            lambda: checkpoint.load(saved.path),
        ),
    ):
        content = unseal(path.read_bytes(), path)
        path.write_bytes(seal({**content, "version": version}))
        with pytest.raises(FileError) as caught:
            load()
        message = str(caught.value)
        assert message.startswith(f"{path}: expected format version {own}, got {version}; ")
        assert "with the rlpg that wrote it" in message

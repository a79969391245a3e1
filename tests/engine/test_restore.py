"""A checkpoint whose hashes are right and whose state is not that of the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlpg
from rlpg.engine.run_writer import versions_now
from rlpg.errors import EnvironmentFault, FileError
from rlpg.rollouts import Collector
from rlpg.runs.recipe import Recipe
from rlpg.runs.store import newest_checkpoint, save_checkpoint
from rlpg.verbs.diagnosis import diagnose

SMALL: dict[str, Any] = {
    "agent": "reinforce",
    "rollout.num_envs": 2,
    "rollout.num_steps": 16,
    "policy.hidden": (4,),
    "evaluation.episodes": 1,
    "evaluation.final_episodes": 1,
}
State = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CartPole-v1, 96 steps; no test changes its folder."""
    path = tmp_path_factory.mktemp("restore") / "run"
    return rlpg.train(
        "CartPole-v1", total_steps=96, run_dir=path, recipe="default", overrides=SMALL
    ).path


def changed(run: Path, copy: Path, change: Callable[[State], object]) -> Path:
    """A copy of the run with one checkpoint, whose state is changed and whose hashes are right."""
    shutil.copytree(run, copy)
    found, _ = newest_checkpoint(copy / "checkpoints")
    assert found is not None
    change(found.state)
    shutil.rmtree(copy / "checkpoints")
    save_checkpoint(copy / "checkpoints", found.step, found.state, versions=versions_now(Recipe()))
    return copy


def set_to(*keys: str, value: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value(state[keys[-1]]) if callable(value) else value

    return change


def test_an_unchanged_state_goes_on(run: Path, tmp_path: Path) -> None:
    assert rlpg.resume(changed(run, tmp_path / "copy", lambda state: None), total_steps=160)


WEIGHT = ("learner", "policy", "network.mlp.layers.0.weight")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("learner"), "learner"),
        (lambda state: state.pop("metrics"), "metrics"),
        (set_to(*WEIGHT, value=lambda w: w.astype(np.float64)), "layers.0.weight"),
        (set_to(*WEIGHT, value=lambda w: w[:1]), "layers.0.weight"),
        (set_to(*WEIGHT, value=lambda w: w * np.nan), "layers.0.weight: expected finite"),
        (set_to("learner", "more", value=1), "learner.more: expected 'nothing', got 1"),
        (set_to("learner", "optimizer", value={}), "count"),
        (set_to("learner", "large", value=np.zeros(2**24)), "expected a state of"),
        (set_to("collector", "obs", value=lambda obs: obs[:1]), "obs: expected"),
        (set_to("collector", "starts", value=lambda starts: starts[:1]), "starts: expected"),
        (set_to("collector", "carry", value=np.zeros((16, 64), np.float32)), "carry: expected"),
        (set_to("collector", "generator", value=np.zeros(3, np.uint8)), "RNG"),
        (set_to("collector", "env_steps", value=7), "env_steps: expected"),
        (set_to("curves", "step", value=10**20), "curves.step: expected at most"),
        (set_to("curves", "progress", value=-1), "curves: expected places >= 0"),
        (set_to("best", value=("a", "b")), "could not convert string to float"),
    ],
)
def test_a_state_that_is_not_of_this_run_is_refused_and_not_bent_to_fit(
    change: Callable[[State], object], named: str, run: Path, tmp_path: Path
) -> None:
    """It was cast, repeated or ignored, or ended as a TrainingError in the first update."""
    forged = changed(run, tmp_path / "copy", change)
    with pytest.raises(FileError, match="expected the state of this run, got one that does") as got:
        rlpg.resume(forged, total_steps=160)
    assert str(got.value).startswith(str(forged / "checkpoints"))
    assert named in str(got.value)


def test_an_environment_that_dies_while_it_is_replayed_is_no_fault_of_the_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: Any) -> str:
        raise EnvironmentFault("environment 0: its worker died")

    monkeypatch.setattr(Collector, "load_state_dict", dying)
    with pytest.raises(EnvironmentFault, match="its worker died"):
        rlpg.resume(changed(run, tmp_path / "copy", lambda state: None), total_steps=160)


def test_a_run_with_another_network_in_its_recipe_says_so(run: Path, tmp_path: Path) -> None:
    forged = changed(run, tmp_path / "copy", lambda state: None)
    text = (forged / "recipe.toml").read_text()
    changed_text = text.replace("hidden = [\n    4,", "hidden = [\n    8,")
    assert changed_text != text
    (forged / "recipe.toml").write_text(changed_text)
    with pytest.raises(FileError, match="expected the state of this run"):
        rlpg.resume(forged, total_steps=160)
    with pytest.raises(FileError, match="expected the state of this run"):
        diagnose(forged, episodes=4)

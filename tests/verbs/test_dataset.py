"""Episodes as a Minari dataset."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

import rlpg
from rlpg.cli import main
from rlpg.engine.loading import load_saved
from rlpg.errors import UsageError
from rlpg.verbs.dataset import _by_part, write_dataset
from rlpg.verbs.video import made_for_pictures


@pytest.mark.filterwarnings("ignore")  # of the packages' own
def test_the_dataset_has_the_episodes_that_were_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    found = tmp_path / "found.json"
    words = ["export-dataset", "CartPole-v1-reinforce", "--name", "cartpole/own-v0"]
    assert main([*words, "--episodes", "3", "--json", str(found)]) == 0
    dataset = minari.load_dataset("cartpole/own-v0")
    assert dataset.total_episodes == 3
    played = [(episode.rewards.sum(), len(episode.actions)) for episode in dataset]
    table = json.loads(found.read_text())["table"]
    assert played == [(row["return"], row["length"]) for row in table]
    assert dataset.spec.env_spec.id == "CartPole-v1"
    capsys.readouterr()
    assert main([*words, "--episodes", "3"]) == 2
    assert "which exists; raise its version" in capsys.readouterr().err
    assert main([*words[:2], "--name", "a b c"]) == 2
    assert "expected one like cartpole/ppo-v0" in capsys.readouterr().err


class Pictures(gymnasium.Env[Any, Any]):
    """Noise, two steps of it; `seen` has what was shown, by episode."""

    seen: ClassVar[list[list[Any]]] = []

    def __init__(self, *, channels: int = 3, has_name: bool = False) -> None:
        picture = gymnasium.spaces.Box(0, 255, (36, 40, channels), np.uint8)
        self.picture, self.has_name = picture, has_name
        named = gymnasium.spaces.Dict({"picture": picture})
        self.observation_space = named if has_name else picture
        self.action_space = gymnasium.spaces.Discrete(2)

    def shown(self) -> Any:
        noise = self.np_random.integers(0, 256, self.picture.shape, np.uint8)
        self.seen[-1].append(noise)
        return {"picture": noise} if self.has_name else noise

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.seen.append([])
        return self.shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.shown(), 0.0, self.steps == 2, False, {}


@pytest.mark.filterwarnings("ignore")  # of the packages' own
@pytest.mark.parametrize("has_name", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_bug_pictures_were_kept_as_jpeg(
    channels: int, has_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most bytes were others than those that the policy saw, or, of one channel, a traceback."""
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    gymnasium.register("rlpg-test/Pictures-v0", entry_point=f"{__name__}:Pictures")
    try:
        run = rlpg.train(
            "rlpg-test/Pictures-v0", "a2c", total_steps=4, run_dir=tmp_path / "run", quiet=True,
            overrides={"rollout.num_envs": 1, "rollout.num_steps": 4, "environment.backend": "sync",
                       "evaluation.final_episodes": 1,
                       "environment.kwargs": {"channels": channels, "has_name": has_name}},
        )  # fmt: skip
        write_dataset(load_saved(run.path), "pictures/own-v0", episodes=1)
    finally:
        del gymnasium.registry["rlpg-test/Pictures-v0"]
    observations = minari.load_dataset("pictures/own-v0")[0].observations
    kept = observations["picture"] if has_name else observations
    assert kept.shape == (3, 36, 40, channels)
    assert any(np.array_equal(kept, shown) for shown in Pictures.seen)


def test_an_environment_that_takes_no_render_mode_could_not_be_kept() -> None:
    class Plain(CartPoleEnv):
        def __init__(self) -> None:
            super().__init__()

    gymnasium.register("rlpg-test/Plain-v0", entry_point=Plain)
    try:
        saved = load_saved("CartPole-v1-reinforce")
        with made_for_pictures(saved, None, "rlpg-test/Plain-v0", None) as (env, _):
            assert env.spec is not None
            assert env.spec.kwargs == {}
        pytest.importorskip("minari")
        with pytest.raises(UsageError, match="expected text as its entry_point"):
            write_dataset(saved, "cartpole/plain-v0", env="rlpg-test/Plain-v0", episodes=1)
    finally:
        del gymnasium.registry["rlpg-test/Plain-v0"]


def test_a_missing_extra_is_found_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    assert main(["export-dataset", "no-such-agent"]) == 2
    assert 'pip install ".[minari]"' in capsys.readouterr().err


def test_observations_of_parts_are_kept_by_part() -> None:
    entries = [{"a": 1, "b": (2, 3)}, {"a": 4, "b": (5, 6)}]
    assert _by_part(entries) == {"a": [1, 4], "b": ([2, 5], [3, 6])}

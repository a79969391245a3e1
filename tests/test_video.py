"""Films: every state of one episode, a file that is whole or absent, one line where not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import rlpg
from rlpg import cli
from rlpg.video import Filmed

FAST = ["--total-steps", "64", "--rollout.num-envs", "4", "--evaluation.final-episodes", "2"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def trained(env: str) -> None:
    words = ["train", env, *FAST, "--recipe", "default", "--run-dir", "run", "--quiet"]
    assert cli.main([*words, "--environment.episode-cap", "30"]) == 0


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1"])
def test_a_film_of_an_episode(env: str, capsys: pytest.CaptureFixture[str]) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("pygame")
    trained(env)
    capsys.readouterr()
    assert cli.main(["evaluate", "run", "--episodes", "2", "--video"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("filmed episode.mp4: ")
    steps = int(said.split(": ")[1].split()[0])
    frames, _ = ffmpeg.count_frames_and_secs("episode.mp4")
    assert frames == steps + 1, "the first state and one after every step"
    assert not [path for path in Path().iterdir() if path.name.startswith(".tmp")]


class Colored(gymnasium.Env[Any, Any]):
    """Its picture shows the step: red 0, 1, 2 ... in each episode of 3 steps."""

    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return 0, 1.0, self.t == 3, False, {}

    def render(self) -> Any:
        return np.full((4, 6, 3), self.t, dtype=np.uint8)


def test_every_state_of_the_first_whole_episode_is_shown() -> None:
    seen: list[int] = []
    env = Filmed(Colored(), lambda frame: seen.append(int(frame[0, 0, 0])))
    env.reset()
    env.reset()  # looking for action masks resets once more
    for _ in range(3):
        env.step(0)
    env.reset()
    env.step(0)
    assert seen == [0, 1, 2, 3]


def test_a_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame")
    trained("CartPole-v1")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    capsys.readouterr()
    assert cli.main(["evaluate", "run", "--episodes", "2", "--video", "film.mp4"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("rlpg: --video: expected imageio_ffmpeg to be installed")
    assert err[-1].endswith('run `pip install ".[video]"` in the checkout of rlpg')
    assert not Path("film.mp4").exists()


def test_an_environment_without_pictures_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imageio_ffmpeg")
    trained("rlpg/Replenishment-v0")
    capsys.readouterr()
    assert cli.main(["evaluate", "run", "--episodes", "2", "--video"]) == 2
    said = "rlpg: video: expected an environment with pictures, rlpg/Replenishment-v0 has none\n"
    assert capsys.readouterr().err.endswith(said)
    assert not Path("episode.mp4").exists()


def test_the_policy_is_not_changed_by_filming() -> None:
    pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("pygame")
    trained("CartPole-v1")
    before = Path("run/policy/policy.safetensors").read_bytes()
    assert cli.main(["evaluate", "run", "--episodes", "2", "--video", "--stochastic"]) == 0
    assert Path("run/policy/policy.safetensors").read_bytes() == before
    assert rlpg.load("run").act(np.zeros(4, np.float32)) in (0, 1)

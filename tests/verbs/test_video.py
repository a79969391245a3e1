"""Films: every state of one episode, a file that is whole or absent, one line where not."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import rlpg
from rlpg import cli
from rlpg.errors import EnvironmentSetupError, UsageError
from rlpg.rollouts.ids import quietly
from rlpg.verbs.video import Filmed, filming

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


@pytest.mark.filterwarnings("ignore:unclosed file", "ignore:Exception ignored in")  # of its pipe
@pytest.mark.parametrize("number", [5, 2000])  # ffmpeg fails at its end, or on its way
def test_a_full_disk_put_half_a_film_in_the_place_of_a_good_one_or_blamed_the_environment(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "filmed episode.mp4", exit code 0, and no player could open it."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    small = Path("small_disk").absolute()
    small.write_text(f'#!/bin/sh\nulimit -f 1\nexec {ffmpeg.get_ffmpeg_exe()} "$@"\n')
    small.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(small))
    pictures = np.random.default_rng(0).integers(0, 256, (number, 64, 64, 3), dtype=np.uint8)
    path = Path("a.mp4").absolute()
    path.write_text("an older film")

    def filmed() -> None:
        with filming(path, 30) as show:
            for picture in pictures:
                show(picture)

    with pytest.raises(UsageError, match=r"^video: expected .*a\.mp4 to be written, got an error"):
        filmed()
    gc.collect()  # a pipe that imageio leaves open where ffmpeg has ended by itself: in this test
    assert path.read_text() == "an older film"
    assert sorted(entry.name for entry in Path().iterdir()) == ["a.mp4", "small_disk"]


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


@pytest.mark.parametrize(
    ("second", "got"),
    [
        (np.zeros((4, 6, 1)), r"\[4, 6, 3\] .* got \[4, 6, 1\]"),  # was filmed as noise
        (np.zeros((5, 6, 3)), r"\[4, 6, 3\] .* got \[5, 6, 3\]"),
        (np.zeros((4, 6)), r"\[4, 6, 3\] .* got \[4, 6\]"),
        (None, r"\[4, 6, 3\] .* got NoneType"),
    ],
)
def test_a_film_was_noise_where_pictures_had_other_shapes(second: Any, got: str) -> None:
    pictures = iter([np.zeros((3, 4, 6), np.uint8).transpose(1, 2, 0), second])
    env = Colored()
    env.render = lambda: next(pictures)  # type: ignore[method-assign]
    seen: list[Any] = []
    film = Filmed(env, seen.append)
    film.reset()
    with pytest.raises(EnvironmentSetupError, match=f"expected pictures {got}"):
        film.step(0)
    assert seen[0].flags.c_contiguous  # a transposed picture ended in an OSError of the encoder


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


def test_step_and_return_are_in_the_picture() -> None:
    pytest.importorskip("pygame")
    seen: list[np.ndarray] = []

    class Large(Colored):
        def render(self) -> Any:
            return np.zeros((200, 300, 3), dtype=np.uint8)

    env = Filmed(Large(), seen.append)
    env.reset()
    for _ in range(3):
        env.step(0)
    corners = [frame[:30, :150] for frame in seen]
    assert all(corner.max() == 255 for corner in corners)  # white letters
    assert all((a != b).any() for a, b in itertools.pairwise(corners))  # other numbers
    assert all(frame[40:].max() == 0 for frame in seen)


def test_filming_without_a_display_printed_an_error(tmp_path: Path) -> None:
    """SDL looked for a display and a sound card, and said that XDG_RUNTIME_DIR is not set."""
    pytest.importorskip("pygame")
    pytest.importorskip("imageio_ffmpeg")
    trained("CartPole-v1")  # its episodes are short
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "SDL_VIDEODRIVER", "SDL_AUDIODRIVER")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    words = ["evaluate", "run", "--episodes", "1", "--video"]
    done = subprocess.run(
        [sys.executable, "-m", "rlpg", *words],
        check=True, capture_output=True, text=True, cwd=tmp_path, env=env,
    )  # fmt: skip
    assert done.stderr == "CartPole-v1: 1 environment, native (its own vector version)\n"


def test_watching_needs_a_display(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert cli.main(["watch", "CartPole-v1-reinforce"]) == 2
    assert "watch: expected a display, got none; `rlpg evaluate" in capsys.readouterr().err


def test_watching_plays_in_a_window(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SDL's dummy driver opens a window that nobody sees."""
    pytest.importorskip("pygame")
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")
    trained("CartPole-v1")
    capsys.readouterr()
    assert cli.main(["watch", "run", "--episodes", "1", "--json", "found.json"]) == 0
    assert capsys.readouterr().out.startswith("CartPole-v1: return ")
    assert json.loads(Path("found.json").read_text())["episodes"] == 1


def test_mujocos_remark_about_gymnasiums_models_is_left_out(
    capfd: pytest.CaptureFixture[str],
) -> None:
    mujoco = pytest.importorskip("mujoco")
    if not hasattr(mujoco, "get_mju_user_warning"):
        pytest.skip("this MuJoCo cannot hand its warnings over")

    class Spec:
        entry_point = "gymnasium.envs.mujoco:HalfCheetahEnv"

    made = Colored()

    def make(spec: Any) -> Any:
        mujoco.MjModel.from_xml_string('<mujoco><compiler settotalmass="1"/></mujoco>')
        mujoco.get_mju_user_warning()("inertia is too small")
        return made

    before = mujoco.get_mju_user_warning()
    assert quietly(make, Spec()) is made
    assert mujoco.get_mju_user_warning() is before
    assert capfd.readouterr().err == "WARNING: inertia is too small\n"

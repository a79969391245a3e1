"""Curves that are read back: of our runs, and of files as Stable-Baselines3 writes them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rlpg.errors import FileError, UsageError
from rlpg.runs.curves import Curves
from rlpg.runs.history import EVALUATED, TRAINED, find_histories, read_history

RECIPE = 'agent = "ppo"\nseed = 3\n[environment]\nid = "CartPole-v1"\n[learner]\ngamma = 0.9\n'


def ours(path: Path, rows: list[dict[str, object]], recipe: str = RECIPE) -> Path:
    path.mkdir(parents=True)
    (path / "recipe.toml").write_text(recipe)
    (path / "progress.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_run_of_ours_has_every_tag_and_a_clock(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"step": 100, "time/fps": 50.0, "a": 1.0},
        {"step": 200, "time/fps": 25.0, "a": None, EVALUATED: 7.0},
        {"step": 250, EVALUATED: 8.0},
    ]
    path = ours(tmp_path / "run", rows)
    with (path / "progress.jsonl").open("a") as file:
        file.write('{"step": 300, "a"')  # a line that is being written
    history = read_history(path)
    assert (history.env, history.agent) == ("CartPole-v1", "ppo")
    assert history.settings["learner.gamma"] == 0.9
    assert [values.tolist() for values in history.curves["a"]] == [[100], [1.0]]
    assert [values.tolist() for values in history.curves[EVALUATED]] == [[200, 250], [7.0, 8.0]]
    # 100 steps at 50 a second, then 100 at 25 a second
    assert [values.tolist() for values in history.clock] == [[0, 100, 200], [0.0, 2.0, 6.0]]


def test_what_curves_write_is_read_as_a_run_of_stable_baselines3(tmp_path: Path) -> None:
    """They have its file formats; its own files are read in test_plotting where it is installed."""
    folder = tmp_path / "sac" / "Pendulum-v1_12"
    folder.mkdir(parents=True)
    curves = Curves(folder, env_id="Pendulum-v1", tensorboard=False)
    curves.episodes([1.0, 2.0, 6.0], [10, 20, 5])
    curves.evaluation(10, [1.0, 3.0], [5, 5])
    curves.evaluation(30, [2.0, 6.0], [5, 5])
    curves.close()
    history = read_history(folder)
    assert (history.env, history.agent) == ("Pendulum-v1", "sac")
    assert [values.tolist() for values in history.curves[EVALUATED]] == [[10, 30], [2.0, 4.0]]
    assert [values.tolist() for values in history.curves[TRAINED]] == [
        [10, 30, 35],
        [1.0, 1.5, 3.0],
    ]
    (folder / "monitor.csv").unlink()  # without it the folder names the environment
    assert read_history(folder).env == "Pendulum-v1"


def test_several_monitors_are_one_run_in_the_order_of_time(tmp_path: Path) -> None:
    header = '#{"t_start": 0, "env_id": "E-v0"}\nr,l,t\n'
    (tmp_path / "0.monitor.csv").write_text(header + "1.0,10,0.5\n3.0,10,2.5\n")
    (tmp_path / "1.monitor.csv").write_text(header + "2.0,30,1.5\n")
    history = read_history(tmp_path)
    assert [values.tolist() for values in history.curves[TRAINED]] == [
        [10, 40, 50],
        [1.0, 1.5, 2.0],
    ]
    assert [values.tolist() for values in history.clock] == [[0, 10, 40, 50], [0, 0.5, 1.5, 2.5]]


def test_the_training_return_is_the_mean_of_the_last_hundred_episodes(tmp_path: Path) -> None:
    rows = "".join(f"{k}.0,1,{k}\n" for k in range(150))
    (tmp_path / "monitor.csv").write_text(f'#{{"env_id": "E-v0"}}\nr,l,t\n{rows}')
    steps, values = read_history(tmp_path).curves[TRAINED]
    assert steps[-1] == 150
    assert values[149] == pytest.approx(sum(range(50, 150)) / 100)
    assert values[9] == pytest.approx(4.5)  # 0 ... 9


def test_runs_are_found_below_a_folder_but_not_through_links(tmp_path: Path) -> None:
    for name in ("b/1", "a/2", "a/1"):
        ours(tmp_path / name, [{"step": 1, "a": 1}])
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = [history.path.relative_to(tmp_path) for history in find_histories(tmp_path)]
    assert found == [Path("a/1"), Path("a/2"), Path("b/1")]
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert len(find_histories(tmp_path / "link")) == 2  # which the user names himself


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a run or a folder with runs.*got neither"):
        find_histories(tmp_path)
    with pytest.raises(UsageError, match="got nothing there"):
        find_histories(tmp_path / "x")


@pytest.mark.parametrize("content", [b"", b"{}\n", b"[1]\n", b'{"step": "x"}\n', b"\xff\n", b"{\n"])
def test_damaged_curves_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = ours(tmp_path / "run", [])
    (path / "progress.jsonl").write_bytes(content)
    if content:
        with pytest.raises(FileError, match=r"run: expected the curves of a run, got damaged"):
            read_history(path)
    else:
        assert read_history(path).curves == {}  # it has only begun
    other = tmp_path / "other"
    other.mkdir()
    (other / "evaluations.npz").write_bytes(content)
    with pytest.raises(FileError, match=r"other: expected the curves of a run, got damaged"):
        read_history(other)


def test_an_archive_may_not_unpack_to_more_than_a_file_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlpg.runs.history.LARGEST", 100_000)
    with zipfile.ZipFile(tmp_path / "evaluations.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.npy", bytes(1_000_000))
    assert (tmp_path / "evaluations.npz").stat().st_size < 100_000
    with pytest.raises(FileError, match="unpacks to more than"):
        read_history(tmp_path)


def test_an_archive_with_python_objects_is_refused(tmp_path: Path) -> None:
    objects = np.array([{}], dtype=object)
    np.savez(tmp_path / "evaluations.npz", timesteps=objects, results=objects)
    with pytest.raises(FileError, match="damaged"):
        read_history(tmp_path)

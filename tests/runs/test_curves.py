import csv
import errno
import json
import math
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlpg.engine.restore import MISFITS
from rlpg.runs import files
from rlpg.runs.curves import Curves
from rlpg.runs.saver import Saver


def progress(folder):
    return [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]


def curve(folder, tag):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def monitor(folder):
    """As stable_baselines3.common.monitor.load_results reads it, without pandas."""
    with (folder / "monitor.csv").open() as file:
        first = file.readline()
        assert first[0] == "#"
        header = json.loads(first[1:])
        assert set(header) == {"t_start", "env_id"}
        rows = list(csv.DictReader(file))
    assert all(set(row) == {"r", "l", "t"} for row in rows)
    return header, [(float(row["r"]), int(row["l"]), float(row["t"])) for row in rows]


def evaluations(folder, name="evaluations"):
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def test_curves_reach_their_readers(tmp_path):
    curves = Curves(tmp_path, env_id="CartPole-v1")
    for step in (10, 20, 30):
        curves.log(step, {"rollout/ep_rew_mean": np.float32(step / 4), "time/updates": step})
        curves.log(step, {"eval/mean_reward": -step})
    curves.episodes(np.array([1.5, -2.0]), np.array([3, 4]))
    curves.episodes([], [])
    curves.evaluation(10, [1.0, 2.0], [5, 6])
    curves.evaluation(20, np.array([3.0, 4.0]), np.array([7, 8]))
    curves.evaluation(20, [0.0] * 3, [1] * 3, name="evaluations_stochastic")
    curves.close()

    assert progress(tmp_path) == [
        {"step": s, "rollout/ep_rew_mean": s / 4, "time/updates": s, "eval/mean_reward": -s}
        for s in (10, 20, 30)
    ]
    assert curve(tmp_path, "rollout/ep_rew_mean") == [(10, 2.5), (20, 5.0), (30, 7.5)]
    assert curve(tmp_path, "eval/mean_reward") == [(10, -10), (20, -20), (30, -30)]
    header, rows = monitor(tmp_path)
    assert header["env_id"] == "CartPole-v1"
    assert [row[:2] for row in rows] == [(1.5, 3), (-2.0, 4)]
    assert all(0 <= row[2] < 60 for row in rows)
    read = evaluations(tmp_path)
    assert read.keys() == {"timesteps", "results", "ep_lengths"}
    assert read["timesteps"].tolist() == [10, 20]
    assert read["results"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert read["ep_lengths"].tolist() == [[5, 6], [7, 8]]
    assert evaluations(tmp_path, "evaluations_stochastic")["results"].shape == (1, 3)


def test_what_json_does_not_know_is_null(tmp_path):
    curves = Curves(tmp_path)
    curves.log(1, {"a": math.nan, "b": math.inf, "c": 1.0, "../../x": 2})
    curves.close()
    assert progress(tmp_path) == [{"step": 1, "a": None, "b": None, "c": 1.0, "../../x": 2}]
    assert math.isnan(curve(tmp_path, "a")[0][1])
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}


def test_misuse_is_an_error(tmp_path):
    curves = Curves(tmp_path, tensorboard=False)
    curves.log(5, {"a": 1})
    with pytest.raises(ValueError, match="step: expected at least 5, the last one, got 4"):
        curves.log(4, {"a": 1})
    curves.evaluation(5, [1.0], [1])
    with pytest.raises(ValueError, match="must match exactly"):
        curves.evaluation(6, [1.0, 2.0], [1, 2])


def test_a_resumed_run_has_one_curve_without_gaps_or_double_points(tmp_path):
    def train(curves, steps):
        for step in steps:
            curves.log(step, {"loss": step})
            curves.episodes([step], [1])
            curves.evaluation(step, [step], [1])

    whole, parted = tmp_path / "whole", tmp_path / "parted"
    whole.mkdir()
    parted.mkdir()
    curves = Curves(whole)
    train(curves, range(10))
    curves.close()

    curves = Curves(parted)
    train(curves, range(4))
    state = curves.state_dict()
    for until in (9, 6):  # killed twice after the same checkpoint
        train(curves, range(4, until))
        curves.flush()
        curves = Curves(parted, state=state)
    train(curves, range(4, 10))
    curves.close()

    assert (parted / "progress.jsonl").read_bytes() == (whole / "progress.jsonl").read_bytes()
    assert curve(parted, "loss") == curve(whole, "loss") == [(s, s) for s in range(10)]
    assert [row[:2] for row in monitor(parted)[1]] == [row[:2] for row in monitor(whole)[1]]
    for key, array in evaluations(whole).items():
        assert np.array_equal(array, evaluations(parted)[key])


def test_resuming_cuts_the_curves_even_if_nothing_is_added(tmp_path):
    curves = Curves(tmp_path)
    curves.log(1, {"a": 1})
    curves.evaluation(1, [1.0], [1])
    state = curves.state_dict()
    curves.log(2, {"a": 2})
    curves.evaluation(2, [1.0], [1])
    curves.close()
    Curves(tmp_path, state=state)
    assert progress(tmp_path) == [{"step": 1, "a": 1}]
    assert evaluations(tmp_path)["timesteps"].tolist() == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"step": "1"},
        {"step": -2},
        {"progress": -1},
        {"monitor": -1},
        {"t_start": math.nan},
        {"progress": None},
        {"evaluations": {"../../canary": {}}},
        {"evaluations": {"evaluations": {"timesteps": "x"}}},
        {"evaluations": []},
    ],
)
def test_a_state_from_a_stranger(tmp_path, change):
    state = Curves(tmp_path).state_dict()
    with pytest.raises(MISFITS):  # of which `fitting` makes a FileError
        Curves(tmp_path, state=state | change)


class FullDisk:
    """Stands in for `os`: writing fails half-way while it is full."""

    def __init__(self):
        self.full = False

    def __getattr__(self, name):
        return getattr(os, name)

    def write(self, descriptor, data):
        if self.full:
            os.write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(descriptor, data)


def test_a_full_disk_is_said_once_and_nothing_is_lost(tmp_path, monkeypatch):
    disk, said = FullDisk(), []
    monkeypatch.setattr(files, "os", disk)
    curves = Curves(tmp_path, saver=Saver(said.append))
    for step in range(12):
        disk.full = 3 <= step < 6 or step == 8
        curves.log(step, {"loss": step})
        curves.episodes([step], [1])
        curves.evaluation(step, [step], [1])
        curves.flush()
        evaluations(tmp_path)
    curves.close()
    assert [entry["step"] for entry in progress(tmp_path)] == list(range(12))
    assert curve(tmp_path, "loss") == [(s, s) for s in range(12)]
    assert [row[0] for row in monitor(tmp_path)[1]] == list(range(12))
    assert evaluations(tmp_path)["timesteps"].tolist() == list(range(12))
    names = {line.split(": ")[0].rsplit("/", 1)[1][:12] for line in said}
    assert names == {"progress.jso", "monitor.csv", "evaluations.", "events.out.t"}
    assert len(said) == 4
    assert all("No space left on device" in line and "training goes on" in line for line in said)


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_losing_tensorboard_never_ends_training(tmp_path, monkeypatch, when):
    def broken(*_):
        raise RuntimeError("protobuf is upset")

    said = []
    module = "tensorboard.summary.writer.record_writer"
    if when == "at the start":
        monkeypatch.setitem(sys.modules, module, SimpleNamespace())
    curves = Curves(tmp_path, saver=(saver := Saver(said.append)))
    if when == "later":
        monkeypatch.setattr(f"{module}.RecordWriter.write", broken)
    for step in range(5):
        curves.log(step, {"a": step})
    curves.close()
    assert len(progress(tmp_path)) == 5
    assert len(said) == 1
    assert said[0].startswith("logger TensorBoardLogger: step ")
    assert said[0].endswith("training goes on")
    assert list(saver.missing) == ["logger TensorBoardLogger"]


def test_no_thread_and_no_torch(tmp_path):
    before = threading.active_count()
    Curves(tmp_path).log(1, {"a": 1})
    assert threading.active_count() == before
    code = "import sys, pathlib; from rlpg.runs.curves import Curves; "
    code += "Curves(pathlib.Path(sys.argv[1])).close(); "
    code += "assert not {'torch', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)

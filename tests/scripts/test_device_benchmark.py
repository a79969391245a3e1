"""The device benchmark runs on the CPU, and both sides of its table do the same work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import device_benchmark
import pytest
import torch
from device_benchmark import NUM_STEPS, learner_and_policy, main, numpy_programs, tensor_programs

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_a_call_is_so_many_steps_on_both_sides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = {"tensor": 0, "NumPy": 0}
    env, twin = device_benchmark.FAMILY[name], device_benchmark.FAMILY[name].numpy_version
    step, array_step = env.step, twin.step

    def tensor_counted(self: object, state: torch.Tensor, action: torch.Tensor) -> object:
        counted["tensor"] += len(state)
        return step(self, state, action)

    def numpy_counted(self: object, actions: object) -> object:
        counted["NumPy"] += len(actions)  # type: ignore[arg-type]
        return array_step(self, actions)

    monkeypatch.setattr(env, "step", tensor_counted)
    monkeypatch.setattr(twin, "step", numpy_counted)
    tensors, arrays = tensor_programs(name, 6, CPU), numpy_programs(name, 6)
    assert tensors.keys() == arrays.keys()
    for n, kind in enumerate(tensors, start=1):
        tensors[kind]()
        arrays[kind]()
        assert counted == {"tensor": 6 * NUM_STEPS * n, "NumPy": 6 * NUM_STEPS * n}


def test_both_sides_have_the_same_network() -> None:
    (_, one), (_, other) = (learner_and_policy("CartPole-v1", CPU) for _ in range(2))
    for key, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


def test_prints_a_table_and_writes_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, threads = tmp_path / "device.json", torch.get_num_threads()
    short = "--environments 3 5 --repeats 1 --seconds 0.001 --device cpu --json"
    monkeypatch.setattr(sys, "argv", ["device_benchmark", *short.split(), str(path)])
    try:
        main()
    finally:
        torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert "no GPU is used" in shown
    assert shown.count("\n| ") == 3
    report = json.loads(path.read_text())
    assert report["device"] == "cpu"
    assert [row["environments"] for row in report["rows"]] == [3, 5]
    for row in report["rows"]:
        assert len(row) == 7
        assert min(row.values()) > 0

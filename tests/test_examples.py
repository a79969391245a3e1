"""Every program of examples/ runs from beginning to end, shortened."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = {
    "resume_and_plot": "2048",
    "fifty_samples": "60",
    "three_ways": "5",
    "price_sensitivity": "200_000",
}
# In the last line that a program prints.
EXPECTED = {
    "train_and_evaluate": r"mean return \d+\.\d of 100 episodes",
    "own_network": r"\d+ parameters",
    "own_learner": r"over \d+ episodes",
    "own_baseline": r"over \d+ episodes",
    "own_environment": r"over \d+ episodes",
    "three_ways": r"100 lanes; bias against score",
    "fifty_samples": r"^50 -\d",
    "price_sensitivity": r"closed form:  delta 0.5977, vega 27.3587",
    "memory": r"gru .* over 100 episodes",
    "resume_and_plot": r"drawn to curves.png",
    "deploy": r"^(\[[01 ]+\]) \1$",
}


def run(code: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program; in this process, which has imported torch already."""
    module = ModuleType("__main__")  # its classes are looked up by their module's name
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(compile(code, name, "exec"), vars(module))


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_an_example_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    needed = {"resume_and_plot": "matplotlib", "deploy": "onnxruntime"}
    if name in needed:
        pytest.importorskip(needed[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", SHORT.get(name, "300"))
    run((EXAMPLES / f"{name}.py").read_text(), name, monkeypatch)
    assert re.search(EXPECTED[name], capsys.readouterr().out.splitlines()[-1])


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "1024")  # PPO takes 2,048 at a time, and resuming doubles them
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells)
    run("\n".join(code), "notebook", monkeypatch)
    assert len(list(tmp_path.glob("runs/CartPole-v1/*/0/progress.jsonl"))) == 2


def test_the_list_of_examples_is_complete() -> None:
    listed = re.findall(r"\]\((.+?)\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(p.name for p in EXAMPLES.iterdir() if p.suffix != ".md")

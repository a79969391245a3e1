"""What tyro makes of our types: defaults as they are typed, choices, docstrings, completion."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from rlpg import cli
from rlpg.cli.help import choices, completion, docstrings, metavar, print_help
from rlpg.cli.train import Train
from rlpg.learners.settings import AGENTS, NaturalSettings
from rlpg.settings import Count, Fraction, Layers, Schedule, as_text, one_of


@pytest.mark.parametrize(
    ("kind", "words", "values"),
    [
        (bool, "true|false", ("true", "false")),
        (Count, "N", None),
        (Count | None, "N|none", None),
        (Fraction, "X", None),
        (Layers, "N,N", None),
        (str, "TEXT", None),
        (Path, "FILE", None),
        (Literal["a", "b"], "a|b", ("a", "b")),
        (Literal["a"] | None, "a|none", ("a", "none")),
        (Literal["auto"] | bool, "auto|true|false", ("auto", "true", "false")),
        (Literal["auto"] | Fraction | None, "auto|X|none", None),
        (Schedule, "constant|linear|cooldown|module:function", ("constant", "linear", "cooldown")),
        (Annotated[str, one_of(or_own="Name")] | None, "module:Name|none", None),
    ],
)
def test_what_stands_for_a_value(kind: Any, words: str, values: tuple[str, ...] | None) -> None:
    assert metavar(kind) == words
    assert choices(kind) == values


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), (True, "true"), ((64, 64), "64,64"), (0.1, "0.1"), ("a", "a")],
)
def test_values_are_shown_as_they_are_typed(value: object, text: str) -> None:
    assert as_text(value) == text


def test_docstrings_are_those_of_the_class_and_the_ones_above_it() -> None:
    texts = docstrings(NaturalSettings)
    assert texts["max_kl"].startswith("length of a step")
    assert texts["gamma"] == "discount per step"
    assert docstrings(Train)["import_modules"].startswith("import the modules")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_verbs_options_and_choices(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*cli.VERBS, "learner.learning-rate", "squashed", "run-dir", "exact"):
        assert word in script
    assert "--settings" not in script
    program = shutil.which(shell)
    if program is not None:
        path = tmp_path / "completion"
        path.write_text(script)
        subprocess.run([program, "-n", str(path)], check=True, capture_output=True)


def test_completion_and_help_wanted_extras_that_were_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime", "optuna", "minari", "h5py", "matplotlib",
                   "imageio_ffmpeg", "wandb", "mlflow", "trackio"):  # fmt: skip
        monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["completion", "bash"]) == 0
    for verb in cli.VERBS:
        assert cli.main([verb, "--help"]) == 0
    assert "usage: rlpg completion" in capsys.readouterr().out


def completed(begun: str, folder: Path) -> set[str]:
    """What bash offers after `rlpg train`."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    (folder / "rlpg").write_text(completion({"train": Train}, "bash"))
    line = (
        f"source {folder / 'rlpg'}; COMP_WORDS=(rlpg train {begun}); COMP_CWORD=2; "
        f"$(complete -p rlpg | sed 's/.*-F \\([^ ]*\\).*/\\1/') rlpg {begun} train; "
        "echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_bash_completes_what_was_begun(tmp_path: Path) -> None:
    assert {"--learner.gamma", "--learner.gamma-weight"} <= completed("--learner.gam", tmp_path)


def test_settings_of_every_agent_but_reinforce_were_not_completed(tmp_path: Path) -> None:
    settings = {name for agent in AGENTS.values() for name in agent.settings.names()}
    assert {"clip_range", "max_kl", "gradient", "learning_rate"} <= settings
    assert completed("--learner.", tmp_path) == {
        f"--learner.{name.replace('_', '-')}" for name in settings
    }


def test_values_that_tyro_offers_are_not_the_only_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """tyro would refuse them in a box of five lines."""
    assert cli.main(["train", "CartPole-v1", "--policy.gaussian", "broad"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "rlpg: policy.gaussian: expected one of beta, clipped, squashed, got 'broad'"
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize("columns", ["1", "5"])
def test_the_help_never_ended_in_a_window_of_a_few_columns(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It took a gigabyte of memory every two minutes."""
    monkeypatch.setenv("COLUMNS", columns)
    print_help("train", Train())
    assert "usage" in capsys.readouterr().out.lower()

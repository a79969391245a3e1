"""The program from its first import on: what it loads, and what stops it."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from rlpg import cli

PROGRAM = [sys.executable, "-m", "rlpg"]


def rlpg_program(*words: str, **options: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words], check=False, capture_output=True, text=True, timeout=300, **options
    )  # type: ignore[call-overload]  # cwd and env


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["train", "--agent", "ppo", "--help"]]
)
def test_help_imports_neither_torch_nor_gymnasium(words: list[str]) -> None:
    """The program; a library user has Gymnasium's environments registered by `import rlpg`."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['/somewhere/bin/rlpg', *{words!r}]\n"
        "try: runpy.run_module('rlpg', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*sorted({'torch', 'gymnasium', 'tensorboard', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == ""


def test_a_library_user_finds_the_environments_registered() -> None:
    code = "import rlpg, gymnasium; gymnasium.spec('rlpg/Catch-v0')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_program_and_its_workers_find_them_too(tmp_path: Path) -> None:
    words = ["--total-steps", "64", "--rollout.num-envs", "2", "--rollout.num-steps", "8"]
    words += ["--evaluation.final-episodes", "2", "--evaluation.episodes", "2", "--quiet"]
    done = rlpg_program("train", "rlpg/Chain-v0", *words, "--backend", "async", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("package", ["gymnasium", "torch", "msgspec", "tyro"])
def test_an_interrupt_while_importing_was_a_traceback(package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text("raise KeyboardInterrupt\n")
    words = ["train", "CartPole-v1", *(["--help"] if package == "tyro" else [])]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = {['rlpg', *words]}\n"
        "from rlpg.cli import main\nsys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "rlpg: interrupted\n")


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    line = f"{sys.executable} -m rlpg agents | true"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_rlpg_is_rlpg() -> None:
    done = rlpg_program("trian")
    assert done.returncode == 2
    assert done.stderr.startswith("rlpg: trian: expected a verb")
    assert done.stderr.rstrip().endswith("did you mean train?")


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        (["evaluate", "nowhere", "--video"], "imageio_ffmpeg", "video"),
        (["diagnose", "nowhere", "--plot", "a.png"], "matplotlib", "plot"),
    ],
)
def test_a_missing_extra_is_found_before_the_work(
    words: list[str],
    module: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was found after the episodes had been played; here nothing looks for the run yet."""
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"rlpg: {words[2]}: expected {module} to be installed; run `pip install")
    assert f'".[{extra}]"` in the checkout of rlpg' in err
    assert "nowhere" not in err


def test_a_program_looked_through_its_imports_for_garbage() -> None:
    """A quarter of the CPU time of a short command; what it makes later is looked through."""
    code = (
        "import gc, sys; sys.argv = ['rlpg', 'evaluate', 'CartPole-v1-reinforce', '--episodes=1']\n"
        "from rlpg.cli import main; looked = []\n"
        "gc.callbacks.append(lambda phase, told: looked.append('torch' in sys.modules))\n"
        "from rlpg.cli.policies import Evaluate\n"
        "run = Evaluate.run\n"
        "def seen(self):\n"
        "    print(any(looked), gc.get_freeze_count() > 100_000, gc.isenabled())\n"
        "    return run(self)\n"
        "Evaluate.run = seen\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "False True True"


def test_who_calls_the_command_line_from_python_keeps_its_garbage_collection(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = gc.get_freeze_count()
    assert cli.main(["agents"]) == 0
    assert (gc.get_freeze_count(), gc.isenabled()) == (before, True)

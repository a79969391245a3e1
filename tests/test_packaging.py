"""What a user installs: the wheel, looked into, installed elsewhere, run and type-checked."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--quiet", "--wheel-dir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked as pip would."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--no-compile"]
    target = ["--target", str(folder), str(wheel)]
    subprocess.run([*command, *target], check=True, capture_output=True)
    return folder


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_make_lowest_installs_the_lowest_versions_that_are_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    installed = dict(line.split("==") for line in lines if not line.startswith("#"))
    promised = dict(line.split(">=") for line in project["dependencies"])
    assert (
        installed.pop("torch")
        == dict(
            line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]
        )["torch"]
    )
    del promised["torch"]
    assert promised.items() <= installed.items()


def test_the_wheel_puts_only_rlpg_into_site_packages(wheel: Path) -> None:
    top = {name.partition("/")[0] for name in names(wheel)}
    assert {name for name in top if not name.endswith(".dist-info")} == {"rlpg"}


def test_the_wheel_holds_every_source_file_recipe_and_trained_policy(wheel: Path) -> None:
    inside = set(names(wheel))
    expected = {"rlpg/py.typed"}
    for folder in ("rlpg", "envs", "agents"):
        target = "rlpg" if folder == "rlpg" else f"rlpg/{folder}"
        for pattern in ("*.py", "*.toml", "*.json", "*.safetensors"):
            expected |= {
                f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
                for path in (ROOT / folder).rglob(pattern)
            }
    assert expected <= inside


def test_the_installed_command_trains_outside_the_checkout(site: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    program = "import rlpg, sys; from rlpg.cli import main; print(rlpg.__file__); sys.exit(main())"
    arguments = [
        "train",
        "CartPole-v1",
        "--total-steps",
        "2_000",
        "--evaluation.final-episodes",
        "3",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))  # not the checkout
    assert (tmp_path / "runs/CartPole-v1/reinforce/0/policy/policy.safetensors").exists()
    made = subprocess.run(
        [sys.executable, "-c", 'import gymnasium; gymnasium.make("rlpg:rlpg/Chain-v0")'],
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert made.returncode == 0


@pytest.mark.timeout(600)
def test_the_installed_wheel_passes_mypy_strict(site: Path, tmp_path: Path) -> None:
    """The cache is the checkout's: without one, the types of torch take most of the time."""
    cache = ROOT / ".mypy_cache"
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *config, "-p", "rlpg"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout

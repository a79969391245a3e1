"""Who may import whom: the walls of the house, read from the source without running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each room, and what it may import. `stdlib` is understood; a name covers everything below it.
NUMERIC = {"torch", "numpy"}
MAY_IMPORT = {
    "rlpg.errors": set(),
    "rlpg.settings": {"msgspec", "rlpg.errors"},
    "rlpg.policies.references": {"rlpg.errors"},
    "rlpg.distributed": {"torch", "rlpg.errors"},
    "rlpg.verbs.scores": {"numpy"},
    "rlpg.verbs.plotting": {
        "numpy",
        "matplotlib",
        "rlpg.errors",
        "rlpg.verbs.scores",
        "rlpg.runs.history",
    },
    "rlpg.gradients": NUMERIC | {"rlpg.errors", "rlpg.gradients", "rlpg.distributed", "matplotlib"},
    "rlpg.policies": NUMERIC
    | {"gymnasium", "msgspec", "rlpg.errors", "rlpg.gradients", "rlpg.policies"}
    | {"rlpg.distributed"},
    "rlpg.rollouts": NUMERIC
    | {"gymnasium", "envpool", "mujoco", "rlpg.errors", "rlpg.gradients", "rlpg.policies"}
    | {"rlpg.rollouts", "rlpg.registration"},
    "rlpg.learners.rules": set(),
    "rlpg.learners.settings": {"msgspec", "rlpg.errors", "rlpg.settings"},
    "rlpg.learners": NUMERIC
    | {"rlpg.errors", "rlpg.gradients", "rlpg.policies", "rlpg.learners"}
    | {"rlpg.rollouts.rollout", "rlpg.settings", "rlpg.distributed"},
    "rlpg.runs": {"numpy", "tensorboard", "safetensors", "msgspec", "tomli_w"}
    | {"rlpg.errors", "rlpg.settings", "rlpg.runs"}
    | {"rlpg.learners.rules", "rlpg.learners.settings"},
    "rlpg.checks": NUMERIC
    | {"gymnasium", "rlpg.errors", "rlpg.policies", "rlpg.rollouts", "rlpg.checks"},
    "rlpg.envs": NUMERIC | {"gymnasium", "rlpg.envs"},
}
# What is not in the table above may import what lies below it, and any library it needs.
MAY_NOT_IMPORT = {
    "rlpg.engine": {"rlpg.verbs", "rlpg.checks", "rlpg.cli"},
    "rlpg.verbs": {"rlpg.cli"},
}
HEAVY = {"torch", "gymnasium", "tensorboard", "rich", "safetensors"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("rlpg", *parts) if parts[0] in ("envs", "agents") else parts
    return ".".join(parts).removesuffix(".__init__")


def sources() -> list[Path]:
    return sorted([*(ROOT / "rlpg").rglob("*.py"), *(ROOT / "envs").rglob("*.py")])


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file names in an import, at whatever depth; relative imports are resolved."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module_name(path).split(".")
            above = package[: len(package) - node.level] if node.level else []
            yield ".".join([*above, *filter(None, [node.module])]), node.lineno


def covers(allowed: str, name: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    room = next((room for room in MAY_IMPORT if covers(room, module_name(path))), None)
    for name, line in imports(path):
        assert not covers("rlpg.envs", name) or room == "rlpg.envs", (
            f"{path}:{line}: the library never imports its environments"
        )
        for above, forbidden in MAY_NOT_IMPORT.items():
            assert not covers(above, module_name(path)) or not any(
                covers(other, name) for other in forbidden
            ), f"{path}:{line}: {above} may not import {name}"
        if room is None or name.partition(".")[0] in sys.stdlib_module_names:
            continue
        assert any(covers(allowed, name) for allowed in MAY_IMPORT[room]), (
            f"{path}:{line}: {room} may not import {name}"
        )


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_no_file_is_longer_than_450_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 450


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("from rlpg.cli import main; main(['train', '--help'])", {"torch", "tensorboard", "rich"}),
        ("import rlpg", {"torch", "tensorboard", "rlpg.envs"}),
        ("import rlpg.runs.recipe", {"torch", "tensorboard", "safetensors"}),
        ("import rlpg.learners.settings", {"torch"}),
        # Workers import both: what makes an environment is in the second.
        ("import rlpg.rollouts.worker", {"torch", "tensorboard", "rich", "safetensors"}),
        ("import rlpg.rollouts.environments", {"torch", "tensorboard", "rich", "safetensors"}),
    ],
)
def test_nothing_heavy_is_imported_before_its_use(statement: str, forbidden: set[str]) -> None:
    code = f"import sys; {statement}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not forbidden & set(loaded)


def test_the_top_holds_what_every_room_needs_and_nothing_else() -> None:
    top = {path.stem for path in (ROOT / "rlpg").glob("*.py")}
    assert top == {"__init__", "__main__", "distributed", "errors", "registration", "settings"}


def test_two_helpers_of_one_name_hid_each_other_from_the_tests() -> None:
    helpers = [
        path.name
        for path in (ROOT / "tests").rglob("*.py")
        if not path.name.startswith(("test_", "conftest"))
    ]
    assert len(set(helpers)) == len(helpers), "the first that is imported stands for the other"


def test_public_names_are_there() -> None:
    import rlpg

    for name in rlpg.__all__:
        assert getattr(rlpg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rlpg.nothing


def test_importing_the_training_module_does_not_replace_the_train_function() -> None:
    import rlpg
    import rlpg.verbs.training

    assert callable(rlpg.train)
    assert callable(rlpg.evaluate)
    assert callable(rlpg.load)

"""The mutants themselves take half an hour; here is what the script makes of one."""

from __future__ import annotations

from pathlib import Path

import mutants
import pytest
from mutants import Mutant


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A library of one line, and a test that reads it."""
    (tmp_path / "rlpg").mkdir()
    (tmp_path / "rlpg" / "thing.py").write_text("a = 1\nb = 1\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_thing.py").write_text(
        "from pathlib import Path\n"
        "def test_a():\n"
        "    assert 'a = 1' in Path('rlpg/thing.py').read_text()\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    return tmp_path


@pytest.mark.parametrize(
    ("old", "tests", "result"),
    [
        ("a = 1", "test_thing.py", "killed"),
        ("b = 1", "test_thing.py", "survived"),
        ("= 1", "test_thing.py", "does not apply"),  # it is there twice
        ("c = 1", "test_thing.py", "does not apply"),
        ("a = 1", "test_thing.py::test_b", "no such test"),
    ],
)
def test_what_becomes_of_a_mutant(old: str, tests: str, result: str, tree: Path) -> None:
    mutant = Mutant("wrong", "thing.py", old, "d = 2", tests)
    assert mutants.tried(mutant, tree, tree / "log") == result
    assert (tree / "rlpg" / "thing.py").read_text() == "a = 1\nb = 1\n"


def test_a_file_that_is_gone_is_no_mutant(tree: Path) -> None:
    mutant = Mutant("wrong", "other.py", "a = 1", "a = 2", "test_thing.py")
    assert mutants.tried(mutant, tree, tree / "log") == "does not apply"


def test_the_unbroken_tree_must_pass(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mutant = Mutant("wrong", "thing.py", "a = 1", "a = 2", "test_thing.py")
    (tree / "rlpg" / "thing.py").write_text("a = 2\n")
    assert not mutants.unbroken([mutant], tree, tree / "log")
    assert "the tests fail without any mutant" in capsys.readouterr().out


def test_every_mutant_changes_a_file_and_names_tests_that_are_there() -> None:
    listed = mutants.listed()
    assert len(listed) >= 100
    assert len({(mutant.file, mutant.name) for mutant in listed}) == len(listed)
    for mutant in listed:
        text = (mutants.ROOT / "rlpg" / mutant.file).read_text()
        assert text.count(mutant.old) == 1, f"{mutant.file}: {mutant.name}: does not apply"
        assert mutant.old != mutant.new
        assert mutant.tests
        for name in mutant.tests.split():
            path, *_ = name.split("::")
            assert (mutants.ROOT / "tests" / path).exists(), mutant

"""The exceptions: what the docs and the command line say about each."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from rlpg import cli, errors
from rlpg.engine.components import made_by_own_part

DOCS = Path(__file__).parent.parent / "docs" / "errors.md"
ERRORS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, errors.RlpgError)
]


def test_the_docs_have_the_tree_of_exceptions() -> None:
    lines = (errors.__doc__ or "").splitlines()
    tree = [line for line in lines if line.startswith("    ")]
    assert len(tree) > len(ERRORS)
    assert [line for line in DOCS.read_text().splitlines() if line in tree] == tree


def test_rlpg_errors_was_no_attribute_before_somebody_imported_it() -> None:
    program = "import rlpg, sys; assert rlpg.errors.UsageError; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@pytest.mark.parametrize("kind", ERRORS)
def test_every_exception_is_in_the_tree_with_its_exit_code(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stated(kind: type[Exception]) -> str:
        """The exit code on its line, else on the line of its base."""
        line = re.search(rf"{kind.__name__}\b.*", errors.__doc__ or "")
        assert line is not None, kind
        code = re.search(r"exit code (\d)", line[0])
        if code is None:
            base = kind.__base__
            assert base is not None
            return stated(base)
        return code[1]

    def fail(words: list[str], *, is_program: bool) -> int:
        raise kind("it failed")

    monkeypatch.setattr(cli, "run", fail)
    code = cli.main(["agents"])
    assert capsys.readouterr().err == "rlpg: it failed\n"
    assert code == (1 if kind is errors.RlpgError else int(stated(kind)))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (12.345, "12.35"), (-0.5, "-0.50"), (1e-4, "0.0001"), (-0.04321, "-0.0432"),
     (2.5e-9, "2.5e-09"), (float("nan"), "nan"), (float("inf"), "inf")],
)  # fmt: skip
def test_a_number_that_has_no_two_decimals_is_told_in_digits(value: float, text: str) -> None:
    """Rewards of 1e-4 were learned and shown as `return 0.00 +- 0.00`."""
    assert errors.decimals(value) == text


def wordless() -> None:
    raise AssertionError


def made() -> None:
    with made_by_own_part("network", "own:Net"):
        wordless()


@pytest.mark.parametrize("called", [partial(errors.call, "on_log", wordless), made])
def test_bug_a_part_of_ones_own_whose_assertion_fails_was_told_with_no_word_on_where(
    called: Callable[[], object],
) -> None:
    with pytest.raises(errors.RlpgError, match=r"AssertionError \(.*test_errors.py, line \d+\)"):
        called()

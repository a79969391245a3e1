"""The site that `make docs` builds: without a warning, and with every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import rlpg

ROOT = Path(__file__).parent.parent


def test_the_documentation_is_built_without_a_warning(tmp_path: Path) -> None:
    """Sphinx warns of a page in no table of contents, a dead link, and a docstring it misreads."""
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    # Of the theme's own pages, which take a third of the time, nothing is said.
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-D", "html_theme=basic"]
    command += [str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "Monte-Carlo estimate of the objective" in (tmp_path / "api.html").read_text()


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs/api.md").read_text()
    named = set(re.findall(r"^\.\. auto\w+:: rlpg\.(\w+)$", page, flags=re.MULTILINE))
    assert named == set(rlpg.__all__) - {"RlpgError"} | {"errors"}

"""docs/estimators.md has a row for everything that can be chosen, which says when to choose it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args

import pytest

import rlpg
from rlpg.gradients import baselines, controls, draws
from rlpg.gradients.tape import How

PAGE = Path(__file__).parents[2] / "docs" / "estimators.md"
BASELINES = [
    name for name in rlpg.__all__ if isinstance(getattr(baselines, name, None), type)
    and name != "Baseline"
]  # fmt: skip
CONTROLS = [kind.__name__ for kind in controls.Control.__subclasses__()]
DRAWS = [
    name for name, _ in inspect.getmembers(draws, inspect.isfunction)
    if not name.startswith("_")
]  # fmt: skip
REST = [
    "tape.resample(", "tape.per_lane(", "depends_on=", "gae_lambda=", "exact_ivw=", "order=2",
    "likelihood_ratio`", "clipped_likelihood_ratio", "importance_weighted_bound", "expectation",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", [*(f'"{how}"' for how in get_args(How)), *BASELINES, *CONTROLS, *DRAWS, *REST]
)
def test_every_choice_has_a_row_that_says_when(name: str) -> None:
    table = [line.split("|")[1:-1] for line in PAGE.read_text().splitlines() if line[:2] == "| "]
    rows = [cells for cells in table if name in cells[0]]
    assert rows
    assert all(len(cells[-1].split()) > 2 for cells in rows)


def test_the_lists_are_not_empty() -> None:
    assert {"LeaveOneOut", "Value"} <= {*BASELINES}
    assert {"KnownMean", "DeltaMethod", "Relax"} == {*CONTROLS}
    assert {"antithetic", "sobol"} == {*DRAWS}

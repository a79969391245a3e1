"""Learning through a model: a run, who is judged, and what the page says of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from learning_through_a_model import (
    PAGE,
    REPORT,
    TASKS,
    combine_table,
    hedging_table,
    of_seller,
    page,
    train,
)
from training_seeds import SEEDS


def run(figure: str, value: float, reached: int | None) -> dict[str, Any]:
    return {figure: value, "reached": reached, "steps": 500_000, "cpu_seconds": 15.0}


@pytest.mark.parametrize("agent", ["combine", "ppo"])
def test_a_run_says_what_it_took(agent: str) -> None:
    found = train(TASKS["hedging"], agent, 3, share=0.01)
    assert found["steps"] == (7_680 if agent == "combine" else 15_360)
    assert found["reached"] is None  # nobody hedges after two updates
    assert [steps for steps, _ in found["curve"]] == [found["steps"] / 2, found["steps"]]
    assert 1.05 < found["std over theory"] < 10


def test_who_hedges_by_a_formula() -> None:
    """With costs Leland beats the delta, and the delta whoever does not hedge at all."""
    task = TASKS["cvar"]
    names = ("no hedge", "Black-Scholes", "Leland")
    cvar = [of_seller(task, who, 2_000)["cvar"] for who in names]
    assert cvar == sorted(cvar)
    assert of_seller(task, "no hedge", 2_000)["std"] == pytest.approx(4.2, rel=0.15)


def test_the_tables_say_who_met_the_mark_and_when() -> None:
    """A run that does not reach the mark counts as the slowest, not as none."""
    figure = "std over theory"
    report = {
        "references": {"hedging": {"Black-Scholes": {figure: 0.96}}},
        "runs": {
            **{f"hedging/pathwise/{s}": run(figure, 1 + s / 40, 100_000 + s) for s in range(5)},
            **{f"hedging/score/{s}": run(figure, 1.2, 10 if s < 2 else None) for s in range(5)},
            **{f"hedging/combine/{s}": run(figure, 1.0, 119_000) for s in range(5)},
        },
    }
    table = "\n".join(hedging_table(report, "hedging"))
    assert "| Black-Scholes | 0.960 |" in table
    assert (
        "| pathwise, gradient `pathwise` | 1.050 (1.000 to 1.100) | 2 of 5 | 100 k | 500 k | 15 s |"
        in table
    )
    assert "| 1.200 (1.200 to 1.200) | 0 of 5 | not reached |" in table
    row = combine_table(report)[-1]
    assert row.endswith("| 100 k | not reached | 119 k | 1.19 |")


def test_the_page_is_that_of_the_report() -> None:
    report = json.loads(REPORT.read_text())
    assert PAGE.read_text() == page(report)
    assert {int(key.rsplit("/", 1)[1]) for key in report["runs"]} <= set(SEEDS)  # none was tuned on

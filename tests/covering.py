"""Few combinations of many choices: every two values of two choices meet in one of them.

Most mistakes that a combination shows are shown by two of its values (Kuhn, Wallace and Gallo 2004,
"Software fault interactions"), so the normal tests take these; the others are slow tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

Choice = tuple[Any, ...]


def covering(*choices: Sequence[Any]) -> list[Choice]:
    """Combinations in which all pairs of values meet, by always taking the one with most new."""

    def pairs(combination: Choice) -> set[Any]:
        return set(itertools.combinations(enumerate(combination), 2))

    every = list(itertools.product(*choices))
    left = set().union(*map(pairs, every))
    taken = []
    while left:
        best = max(every, key=lambda combination: len(pairs(combination) & left))
        left -= pairs(best)
        taken.append(best)
    return taken


def grid(*choices: Sequence[Any]) -> list[Any]:
    """All combinations for `parametrize`; those beyond `covering` are slow."""
    normal = covering(*choices)
    return [
        pytest.param(*combination, marks=() if combination in normal else pytest.mark.slow)
        for combination in itertools.product(*choices)
    ]

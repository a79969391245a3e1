"""Our environments pass Gymnasium's own checker without a warning."""

from __future__ import annotations

import re
import warnings

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

import rlpg

OWN = ["Bandit-v0", "Catch-v0", "Chain-v0", "Replenishment-v0", "UnitCommitment-v0"]


@pytest.mark.parametrize("name", OWN)
def test_passes_gymnasiums_checker(name: str) -> None:
    assert rlpg.__version__  # importing rlpg is what registers them
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(f"rlpg/{name}").unwrapped)


def test_lqr_passes_but_for_its_unbounded_spaces() -> None:
    """Bounds would mean clipping, and clipping would spoil the closed forms."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gymnasium.make("rlpg/LQR-v0").unwrapped)
    unbounded = re.compile("infinity|symmetric and normalized")
    assert [str(w.message) for w in caught if not unbounded.search(str(w.message))] == []

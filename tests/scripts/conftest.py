"""The scripts are imported by name, as they are when they are run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


@pytest.fixture
def train_all_here() -> Callable[..., None]:
    """What `training_seeds.train_all` does, in this process, where a test can watch it."""
    from training_seeds import Job, train_one

    def train_all(
        jobs: Mapping[Job, Sequence[int]], work: Path, processes: int, done: Callable[[Job], Any]
    ) -> None:
        for job, seeds in jobs.items():
            for seed in seeds:
                train_one(job, seed, work)
            done(job)

    return train_all

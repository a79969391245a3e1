"""The soak itself takes hours; here it takes seconds, and its judgment is put to the test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import soak
from soak import Sample


def samples(count: int = 100, growth: float = 0.0) -> list[Sample]:
    """One a minute, 10,000 steps each, growing by so many MB per 100,000 steps after warm-up."""
    return [
        Sample(minutes=k, steps=10_000 * k, cpu=50.0 * k, descriptors=5, threads=1, children=2,
               shm=3, memory=300 + growth * k / 10 - (10 if k < 5 else 0))
        for k in range(count)
    ]  # fmt: skip


def test_what_is_constant_is_praised() -> None:
    assert soak.complaints(samples()) == []
    assert soak.complaints(samples(growth=0.9)) == []
    assert soak.slope(samples(growth=0.5)[20:]) == pytest.approx(0.5)


def test_memory_that_grows_is_found() -> None:
    (complaint,) = soak.complaints(samples(growth=1.5))
    assert complaint == "memory grows by 1.500 MB per 100,000 steps"


@pytest.mark.parametrize("name", soak.COUNTS)
def test_a_count_that_grows_is_found(name: str) -> None:
    grown = [
        replace(sample, **{name: getattr(sample, name) + int(sample.minutes > 80)})
        for sample in samples()
    ]
    (complaint,) = soak.complaints(grown)
    assert complaint.startswith(f"{name}: ")
    burst = samples()
    burst[50] = replace(burst[50], **{name: 100})
    assert soak.complaints(burst) != []


def test_too_short_is_no_proof() -> None:
    assert soak.complaints(samples(8))[0].startswith("too short")


def test_a_real_training_is_watched_ended_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first iteration on, of 2,048 steps."""
    sooner = [word.replace("log.every=10_000", "log.every=2_000") for word in soak.RUN]
    assert sooner != soak.RUN
    monkeypatch.setattr(soak, "RUN", sooner)
    seen, unclean = soak.soak(
        "native", tmp_path / "run", minutes=0.01, every=0.1, patience=100, more_steps=2_000
    )
    assert unclean == ""
    assert seen[-1].steps >= 1_000
    assert 100 < seen[-1].memory < 2000
    assert {sample.children for sample in seen} == {0}
    assert "| minutes | steps |" in soak.table(seen, 3)

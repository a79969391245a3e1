"""What was found: one line per check, for eyes and for machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from rlpg.errors import counted

Status = Literal["ok", "warning", "fault", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    `ok`; `warning`: training works, but see the text; `fault`: the environment is wrong; `skipped`:
    the check made no sense after what another one found, or does not apply.
    """

    check: str
    status: Status
    text: str  # one sentence: what was found, where, and what to do

    def __str__(self) -> str:
        return f"{self.status:8} {self.check:16} {self.text}"


@dataclass(frozen=True)
class Report:
    """All findings about one environment, in the order of the checks.

    Attributes:
        env: its name.
        seed: of the episodes and the actions.
        findings: at least one per check.
        lengths: `[E]` steps of the episodes that were played.
        step_microseconds: median time of one step of one copy; NaN where none returned.
        repeats: whether episodes repeat to the bit, which is what an exact resume needs.
    """

    env: str
    seed: int
    findings: tuple[Finding, ...]
    lengths: tuple[int, ...]
    step_microseconds: float
    repeats: bool

    @property
    def passed(self) -> bool:
        """No fault; there may be warnings."""
        return not self.having("fault")

    def having(self, *statuses: Status) -> list[Finding]:
        return [finding for finding in self.findings if finding.status in statuses]

    def length_summary(self) -> dict[str, float] | None:
        """Shortest, median and longest episode in steps; None without any."""
        if not self.lengths:
            return None
        low, middle, high = np.percentile(self.lengths, [0, 50, 100])
        return {"min": float(low), "median": float(middle), "max": float(high)}

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        known = not np.isnan(self.step_microseconds)
        return {
            "env": self.env,
            "seed": self.seed,
            "passed": self.passed,
            "exact_resume": self.repeats,
            "steps": sum(self.lengths),
            "episodes": len(self.lengths),
            "lengths": self.length_summary(),
            "step_microseconds": self.step_microseconds if known else None,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def __str__(self) -> str:
        steps, episodes = counted(sum(self.lengths), "step"), counted(len(self.lengths), "episode")
        head = f"{self.env}: {steps} with random actions in {episodes}, seed {self.seed}"
        resume = "continues to the same bits" if self.repeats else "goes on with new episodes"
        tail = ", ".join(
            counted(len(self.having(status)), status) for status in ("fault", "warning")
        )
        lines = [head, *map(str, self.findings), f"{tail}; a resumed run {resume}"]
        return "\n".join(lines)


def listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def brief(value: object) -> str:
    """A value in one short line."""
    if isinstance(value, float | np.floating):
        return f"{float(value):.9g}"
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."

"""What a person sees while a run goes on: a live line on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 5.0


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03`."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Display:
    """Progress of one run: steps, return, steps per second, time left, and where the time goes.

    A terminal that goes away never stops a run: a failed write silences the display.

    Args:
        title: what is being trained.
        total_steps: environment steps of the whole run.
        notes: lines to print when it starts; empty ones are left out.
        quiet: print nothing at all.
    """

    def __init__(
        self, title: str, total_steps: int, *, notes: tuple[str, ...] = (), quiet: bool = False
    ) -> None:
        self._title, self._total, self.notes = title, total_steps, notes
        self.done_steps = 0  # before this display, by an earlier session of the run
        self._silent = quiet
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal and not quiet
        self._start = time.perf_counter()
        self._last_line = -float("inf")
        self._unsaid = ""  # the newest state, if no line has shown it yet
        self._progress: Progress | None = None

    def __enter__(self) -> Display:
        self._start = time.perf_counter()
        for note in filter(None, self.notes):
            self.line(note)
        if self._live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(24),
                TextColumn("{task.fields[at]}"),
            )
            self._progress = Progress(*columns, console=self._console, refresh_per_second=4)
            self._task = self._progress.add_task(self._title, total=self._total, at="")
            self._progress.start()
        return self

    def update(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the state of the run at environment step `step`.

        Args:
            figures: by TensorBoard tag; the ones it knows are shown.
        """
        if self._silent:
            return
        if self._progress is not None:
            self._progress.update(self._task, completed=step, at=self._describe(step, figures))
            return
        self._unsaid = f"{self._title}  {self._describe(step, figures)}"
        if time.perf_counter() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._say_last()

    def _say_last(self) -> None:
        if self._unsaid:
            self._last_line = time.perf_counter()
            self.line(self._unsaid)
            self._unsaid = ""

    def line(self, text: str) -> None:
        """Print one line above the progress."""
        if self._silent:
            return
        try:
            self._console.print(text, markup=False)
        except OSError:
            self._silent = True

    def _describe(self, step: int, figures: Mapping[str, float]) -> str:
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        rate = (step - self.done_steps) / elapsed
        parts = [f"{step:,}/{self._total:,} steps"]
        if "rollout/ep_rew_mean" in figures:
            parts.append(f"return {figures['rollout/ep_rew_mean']:.1f}")
        if "eval/mean_reward" in figures:
            parts.append(f"evaluated {figures['eval/mean_reward']:.1f}")
        parts.append(f"{rate:,.0f} steps/s")
        if rate > 0:
            parts.append(f"{duration(max(self._total - step, 0) / rate)} left")
        shares = [
            f"{name} {100 * figures[f'time/{name}_share']:.0f} %"
            for name in ("env", "policy", "learn")
            if f"time/{name}_share" in figures
        ]
        if shares:
            parts.append("time: " + ", ".join(shares))
        return "  ".join(parts)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._say_last()

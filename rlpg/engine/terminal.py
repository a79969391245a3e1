"""What a person sees while a run goes on: a live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO, cast

from rlpg.errors import RlpgWarning

_state = random.getstate()  # which rich moves while it is imported
try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.text import Text
finally:
    random.setstate(_state)

SECONDS_BETWEEN_LINES = 30.0
TABLE_COLUMNS = 2  # of metrics, 39 characters each


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03`."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def described(
    step: int, total: int, rate: float, metrics: Mapping[str, float], *, verbose: bool
) -> tuple[str, str, str]:
    """How much time is left at so many steps per second, the state of a run, and, where it is
    verbose, its metrics of learning as lines."""
    left = f"{duration(max(total - step, 0) / rate)} left" if rate > 0 else ""
    whole = f"{total:,}"
    parts = [f"{step:>{len(whole)},}/{whole} steps"]
    if "rollout/ep_rew_mean" in metrics:
        parts.append(f"return {metrics['rollout/ep_rew_mean']:.1f}")
    if "eval/mean_reward" in metrics:
        parts.append(f"evaluated {metrics['eval/mean_reward']:.1f}")
    parts.append(f"{rate:,.0f} steps/s")
    if not verbose:
        return left, "  ".join(parts), ""
    shares = [
        f"{name} {100 * metrics[f'time/{name}_share']:.0f} %"
        for name in ("env", "policy", "learn")
        if f"time/{name}_share" in metrics
    ]
    parts += ["time: " + ", ".join(shares)] if shares else []
    cells = [
        f"{tag.partition('/')[2]:>28} {value:10.4g}"
        for tag, value in metrics.items()
        if tag.startswith(("train/", "gradient/"))
    ]
    table = (f"{'' if k % TABLE_COLUMNS else chr(10)}{cell}" for k, cell in enumerate(cells))
    return left, "  ".join(parts), "".join(table)


class Forgiving:
    """A stream that may go away: what cannot be written is lost, and nothing stops for it.

    A process without an error stream has None there. The thread that redraws the bar writes to it
    too, where no one could catch an error.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Always the length of the text."""
        with suppress(OSError, ValueError, AttributeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """If it still can."""
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Screen:
    """Lines on the error stream; nothing where it is quiet."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self._silent, self._verbose = quiet, verbose
        self._console = Console(file=cast(TextIO, Forgiving(sys.stderr)), highlight=False)
        self._is_live = self._console.is_terminal and not quiet

    def line(self, text: str) -> None:
        """Print one line above the progress."""
        if not self._silent:
            self._console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line that the user should see; `RlpgWarning` where nothing is printed."""
        if self._silent:
            warnings.warn(text, RlpgWarning, stacklevel=2)
        self.line(text)


class Display(_Screen):
    """Progress of one run: steps, return, steps per second and time left.

    Args:
        title: what is being trained.
        total_steps: environment steps of the whole run.
        notes: lines to print when it starts; empty ones are left out.
        quiet: print nothing at all; a warning is a Python warning then.
        verbose: show where the time goes, and every metric of learning.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        *,
        notes: tuple[str, ...] = (),
        quiet: bool = False,
        verbose: bool = False,
    ) -> None:
        super().__init__(quiet=quiet, verbose=verbose)
        self._title, self._total, self.notes = title, total_steps, notes
        self.done_steps = 0  # before this display, by an earlier session of the run
        self._start = time.perf_counter()
        self._last_line = -float("inf")
        self._unsaid = ""  # the newest state, if no line has shown it yet
        self._state = ""
        self._live: Live | None = None

    def __enter__(self) -> Display:
        self._start = time.perf_counter()
        for note in filter(None, self.notes):
            self.line(note)
        if self._is_live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(24),
                TextColumn("{task.fields[at]}"),
            )
            self._bar = Progress(*columns)
            self._task = self._bar.add_task(self._title, total=self._total, at="")
            # The metrics have lines of their own: they wrap where the window is narrow.
            self._live = Live(
                get_renderable=lambda: Group(self._bar, Text(self._state)),
                console=self._console,
                refresh_per_second=4,
            )
            self._live.start()
        return self

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the state of the run at environment step `step`.

        Args:
            metrics: by TensorBoard tag; the ones it knows are shown.
        """
        rate = (step - self.done_steps) / max(time.perf_counter() - self._start, 1e-9)
        left, state, learning = described(step, self._total, rate, metrics, verbose=self._verbose)
        if self._live is not None:
            self._state = state + learning
            self._bar.update(self._task, completed=step, at=left)
            return
        self._unsaid = f"{self._title}  {state}  {left}{learning}"
        if time.perf_counter() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._say_last()

    def _say_last(self) -> None:
        if self._unsaid:
            self._last_line = time.perf_counter()
            self.line(self._unsaid)
            self._unsaid = ""

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._say_last()


class Displays(_Screen):
    """Progress of several runs at once: a line each, by name; see `Display`."""

    def __init__(
        self, names: Sequence[str], total_steps: int, *, quiet: bool, verbose: bool = False
    ) -> None:
        super().__init__(quiet=quiet, verbose=verbose)
        self._total = total_steps
        columns = TextColumn("{task.description}"), BarColumn(12), TextColumn("{task.fields[at]}")
        self._bars = Progress(*columns, console=self._console, disable=not self._is_live)
        self._tasks = {name: self._bars.add_task(name, total=total_steps, at="") for name in names}
        self._began: dict[str, float] = {}
        self._last_line = dict.fromkeys(names, -float("inf"))

    def __enter__(self) -> Displays:
        self._bars.start()
        return self

    def begin(self, name: str) -> None:
        """The run has begun."""
        self._began[name] = time.perf_counter()

    def update(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Show the state of one run; see `Display.update`."""
        now = time.perf_counter()
        rate = step / (now - self._began[name])
        left, state, learning = described(step, self._total, rate, metrics, verbose=self._verbose)
        self._bars.update(self._tasks[name], completed=step, at=f"{left}  {state}")
        is_told = learning or not self._is_live  # a bar has no room for the metrics of learning
        if is_told and now - self._last_line[name] >= SECONDS_BETWEEN_LINES:
            self._last_line[name] = now
            self.line(f"{name}  {state}  {left}{learning}")

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

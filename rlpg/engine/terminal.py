"""What a person sees while a run goes on: a live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import random
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO, cast

from rlpg.errors import RlpgWarning, decimals

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
) -> tuple[str, str]:
    """How much time is left at so many steps per second, and the state of a run; where it is
    verbose, with its metrics of learning in more lines."""
    left = f"{duration(max(total - step, 0) / rate)} left" if rate > 0 else ""
    whole = f"{total:,}"
    parts = [f"{step:>{len(whole)},}/{whole} steps"]
    if "rollout/ep_rew_mean" in metrics:
        parts.append(f"return {decimals(metrics['rollout/ep_rew_mean'], 1)}")
    if "eval/mean_reward" in metrics:
        parts.append(f"evaluated {decimals(metrics['eval/mean_reward'], 1)}")
    parts.append(f"{rate:,.0f} steps/s")
    if not verbose:
        return left, "  ".join(parts)
    shares = [
        f"{name} {100 * metrics[f'time/{name}_share']:.0f} %"
        for name in ("env", "policy", "learn")
        if f"time/{name}_share" in metrics
    ]
    parts += ["time: " + ", ".join(shares)] if shares else []
    cells = [
        f" {tag.partition('/')[2]:>27} {value:10.4g}"
        for tag, value in metrics.items()
        if tag.startswith(("train/", "gradient/"))
    ]
    table = (f"{'' if k % TABLE_COLUMNS else chr(10)}{cell}" for k, cell in enumerate(cells))
    return left, "  ".join(parts) + "".join(table)


class Forgiving:
    """A stream that may go away: what cannot be written is lost, and nothing stops for it.

    A process without an error stream has None there. The thread that redraws the bar writes to it
    too, where no one could catch an error.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError, AttributeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()

    def isatty(self) -> bool:
        with suppress(ValueError, AttributeError):
            return bool(self._stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Display:
    """Progress of one run or several: steps, return, steps per second and time left.

    Args:
        titles: what is being trained; of several runs, a title for each.
        notes: lines to print when it starts; empty ones are left out.
        quiet: print nothing at all; a warning is a Python warning then.
    """

    def __init__(
        self,
        *titles: str,
        total_steps: int,
        notes: tuple[str, ...] = (),
        quiet: bool = False,
        verbose: bool = False,
    ) -> None:
        self._total, self.notes = total_steps, notes
        self._silent, self._verbose = quiet, verbose
        self._stream = Forgiving(sys.stderr)
        self._console = Console(file=cast(TextIO, self._stream), highlight=False)
        self._began = dict.fromkeys(titles, (time.perf_counter(), 0))
        self._last_line = dict.fromkeys(titles, -math.inf)
        self._unsaid: dict[str, str] = {}  # the newest states, if no line has shown them yet
        self._states: dict[str, str] = {}
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[left]}")
        )
        self._tasks = {
            name: self._bars.add_task(name, total=total_steps, left="") for name in titles
        }
        self._live: Live | None = None

    def __enter__(self) -> Display:
        for note in filter(None, self.notes):
            self.line(note)
        # FORCE_COLOR alone makes no terminal: a log would hold every frame.
        is_live = self._console.is_terminal and self._stream.isatty()
        if is_live and not self._console.is_dumb_terminal and not self._silent:
            # The metrics have lines of their own: they wrap where the window is narrow.
            self._live = Live(
                get_renderable=lambda: Group(self._bars, *map(Text, self._states.values())),
                console=self._console,
                refresh_per_second=4,
            )
            self._live.start()
        return self

    def begin(self, done_steps: int, title: str = "") -> None:
        """A run begins to count its steps, after those of an earlier session."""
        self._began[title or next(iter(self._began))] = time.perf_counter(), done_steps

    def update(self, step: int, metrics: Mapping[str, float], title: str = "") -> None:
        """Show the state of a run, with the metrics it knows; `title` says which one of several."""
        title = title or next(iter(self._began))
        now = time.perf_counter()
        began, done_steps = self._began[title]
        rate = (step - done_steps) / max(now - began, 1e-9)
        left, state = described(step, self._total, rate, metrics, verbose=self._verbose)
        if self._live is not None:
            self._states[title] = f"{title}  {state}" if len(self._began) > 1 else state
            self._bars.update(self._tasks[title], completed=step, left=left)
            return
        text, _, learning = state.partition("\n")
        self._unsaid[title] = f"{title}  {text}  {left}" + (f"\n{learning}" if learning else "")
        if now - self._last_line[title] >= SECONDS_BETWEEN_LINES:
            self._last_line[title] = now
            self.line(self._unsaid.pop(title))

    def end(self, title: str) -> None:
        """Print the newest state of a run, if no line has shown it."""
        if text := self._unsaid.pop(title, ""):
            self.line(text)

    def line(self, text: str) -> None:
        """Print one line above the progress."""
        if not self._silent:
            self._console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line that the user should see; `RlpgWarning` where nothing is printed."""
        if self._silent:
            warnings.warn(text, RlpgWarning, stacklevel=2)
        self.line(text)

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        for title in list(self._unsaid):
            self.end(title)

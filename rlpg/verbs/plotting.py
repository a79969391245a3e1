"""Curves of runs: seeds as an interquartile mean with an interval, drawn to a file or as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rlpg.errors import UsageError, counted, decimals, readable
from rlpg.runs.history import EVALUATED, TRAINED, Curve, History, find_histories
from rlpg.verbs.scores import (
    Array,
    interquartile_mean,
    interval,
    performance_profile,
    probability_of_improvement,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["curves", "profiles", "improvement"]
Axis = Literal["steps", "time"]

POINTS = 200  # of a curve whose runs were measured at different places
WIDTH, HEIGHT, MARKERS = 64, 12, "*o+x#%@&"  # of curves as text
NOT_COMPARED = ("seed", "total_steps", "checkpoint.", "log.", "threads", "compile")


@dataclass(frozen=True)
class Group:
    """The runs of one agent on one environment, measured at the same places."""

    env: str
    label: str
    x: Array  # [P], steps or seconds
    runs: Array  # [R, P]

    @cached_property
    def center(self) -> Array:
        """Interquartile mean over the runs, [P]."""
        return interquartile_mean(self.runs)

    @cached_property
    def interval(self) -> Array:
        """95 % bootstrap interval of `center`, [2, P]; of no width for a single run."""
        if len(self.runs) == 1:
            return np.stack([self.center, self.center])
        return interval([self.runs], interquartile_mean)

    @property
    def final(self) -> Array:
        """The last point of each run, [R]."""
        return np.asarray(self.runs[:, -1])


@dataclass(frozen=True)
class Comparison:
    """Groups that can be drawn together, and what one should know about them."""

    groups: tuple[Group, ...]
    metric: str
    axis: Axis
    notes: tuple[str, ...]

    @property
    def envs(self) -> list[str]:
        return list(dict.fromkeys(group.env for group in self.groups))

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(group.label for group in self.groups))

    def on(self, env: str) -> list[Group]:
        return [group for group in self.groups if group.env == env]


def compare(
    paths: Sequence[Path], *, metric: str | None = None, axis: Axis = "steps", by: str = "agent"
) -> Comparison:
    """Read the runs in folders and group them by environment and agent.

    Args:
        paths: runs of ours or of Stable-Baselines3, or folders with runs in them.
        metric: a tag of `progress.jsonl`. None: the mean return of the evaluations if every run has
            evaluations, else that of the training episodes.
        axis: environment steps, or seconds of training (evaluating and saving left out).
        by: what tells groups of one environment apart: `agent`, a setting (`learner.gamma`), or
            `folder`, the path that was given.

    Raises:
        UsageError: no runs, a metric that a run does not have, runs without a common place.
        FileError: a file is damaged.
    """
    found = [(path, history) for path in paths for history in find_histories(path)]
    left_out = [history for _, history in found if not _is_drawn(history, metric)]
    named = [(path, history) for path, history in found if _is_drawn(history, metric)] or found
    histories = [history for _, history in named]
    if by not in ("agent", "folder") and not any(by in history.settings for history in histories):
        raise UsageError(f"by: expected agent, folder or a setting in recipe.toml, got {by}")
    metric = metric or _default(histories)
    members: dict[tuple[str, str], dict[Path, History]] = {}
    for path, history in named:
        label = readable(str(path) if by == "folder" else history.agent)
        if by not in ("agent", "folder"):
            label += f", {by} = {history.settings.get(by, 'unknown')}"
        members.setdefault((history.env, label), {}).setdefault(history.path.resolve(), history)
    groups, notes = [], [f"{run.path}: left out, as it has nothing to draw yet" for run in left_out]
    for (env, label), by_place in members.items():
        same = [*by_place.values()]
        groups.append(_group(env, label, same, metric, axis))
        notes += [f"{label} on {env}: {note}" for note in _notes(same, groups[-1], axis)]
    return Comparison(tuple(groups), metric, axis, tuple(notes))


def _is_drawn(history: History, metric: str | None) -> bool:
    """Whether there is something to draw: not where a run has only begun, or failed at once."""
    return bool(history.curves) if metric else not {EVALUATED, TRAINED}.isdisjoint(history.curves)


def _default(histories: Sequence[History]) -> str:
    for tag in (EVALUATED, TRAINED):
        if all(tag in history.curves for history in histories):
            return tag
    lacking = next(h for h in histories if EVALUATED not in h.curves)
    raise UsageError(
        f"{lacking.path}: expected evaluations or episodes that ended in every run; try --metric"
    )


def _group(env: str, label: str, same: list[History], metric: str, axis: Axis) -> Group:
    curves = [_curve(history, metric, axis) for history in same]
    x = curves[0][0]
    if not all(np.array_equal(x, other) for other, _ in curves):
        low, late = max((x[0], str(run.path)) for (x, _), run in zip(curves, same, strict=True))
        high, early = min((x[-1], str(run.path)) for (x, _), run in zip(curves, same, strict=True))
        if low > high:
            raise UsageError(
                f"{label} on {env}: expected runs with {axis} in common, got {late}, which begins "
                f"at {low:g}, and {early}, which ends at {high:g}; leave one out, or name each "
                "folder with --by folder"
            )
        x = np.linspace(low, high, POINTS)
    return Group(env, label, x, np.stack([np.interp(x, at, values) for at, values in curves]))


def _curve(history: History, metric: str, axis: Axis) -> Curve:
    if metric not in history.curves:
        raise UsageError(
            f"{history.path}: expected the metric {metric}, got {', '.join(history.curves)}"
        )
    steps, values = history.curves[metric]
    if axis == "steps":
        return steps, values
    if len(history.clock[0]) < 2:
        raise UsageError(f"{history.path}: expected times, got none; use --x steps")
    return np.interp(steps, *history.clock), values


def _notes(same: list[History], group: Group, axis: Axis) -> list[str]:
    """What the reader of a curve should know: it ends early, or its runs were told differently."""
    notes = []
    curves = [curve for run in same for curve in (run.clock, *run.curves.values())]
    last = max(steps[-1] for steps, _ in curves if len(steps))
    if axis == "steps" and len(same) > 1 and group.x[-1] < 0.9 * last:
        notes.append(f"drawn to step {group.x[-1]:,.0f}, where its shortest curve ends")
    keys = {key for history in same for key in history.settings}
    differing = sorted(
        key
        for key in keys
        if not key.startswith(NOT_COMPARED)
        and len({str(history.settings.get(key)) for history in same}) > 1
    )
    if differing:
        notes.append(f"runs differ in {', '.join(differing)}; --by {differing[0]} draws them apart")
    seeds = [history.settings["seed"] for history in same if "seed" in history.settings]
    if not differing and len(set(seeds)) < len(seeds):
        notes.append("two runs have the same seed: the interval takes them as independent")
    return notes


def improvements(compared: Comparison) -> list[tuple[str, str, float, tuple[float, float]]]:
    """For each pair of agents P(a run of the first is better than one of the second), interval;
    UsageError where no pair has an environment in common."""
    runs = {(group.env, group.label): group.final for group in compared.groups}
    found = []
    for k, first in enumerate(compared.labels):
        for second in compared.labels[k + 1 :]:
            envs = [env for env in compared.envs if {(env, first), (env, second)} <= runs.keys()]
            if envs:
                strata = [runs[env, label] for label in (first, second) for env in envs]
                low, high = interval(strata, probability_of_improvement)
                found.append((first, second, probability_of_improvement(*strata), (low, high)))
    if not found:
        raise UsageError(
            "--kind: expected two agents on the same environment to compare, got "
            f"{', '.join(f'{g.label} on {g.env}' for g in compared.groups)}; give runs of another"
        )
    return found


# ---- as text ---------------------------------------------------------------------------------


def table(compared: Comparison) -> str:
    """Each group's last point: interquartile mean, interval, and how many runs."""
    width = max(len(group.label) for group in compared.groups)
    lines = []
    for env in compared.envs:
        lines.append(f"{env}: {compared.metric} at the last point, interquartile mean [95 %]")
        for mark, group in zip(cycle(MARKERS), compared.on(env), strict=False):
            low, high, middle = map(decimals, (*group.interval[:, -1], group.center[-1]))
            between = f"[{low}, {high}]" if len(group.runs) > 1 else "no interval"
            runs = counted(len(group.runs), "run")
            at = _place(group.x[-1], compared.axis)
            lines.append(f"  {mark} {group.label:{width}}  {middle:>10} {between}, {runs}, {at}")
    return "\n".join(lines)


def chart(compared: Comparison) -> str:
    """The curves as text, one picture for each environment."""
    return "\n\n".join(_chart(env, compared.on(env), compared.axis) for env in compared.envs)


def improvement_table(compared: Comparison) -> str:
    """Each pair of agents, and how probable it is that the first is better."""
    return "\n".join(
        f"P({first} > {second}) = {value:.2f} [{low:.2f}, {high:.2f}]"
        for first, second, value, (low, high) in improvements(compared)
    )


def _chart(env: str, groups: list[Group], axis: Axis) -> str:
    low = min(group.center.min() for group in groups)
    high = max(group.center.max() for group in groups)
    start, end = min(group.x[0] for group in groups), max(group.x[-1] for group in groups)
    cells = [[" "] * WIDTH for _ in range(HEIGHT)]
    for mark, group in zip(cycle(MARKERS), groups, strict=False):
        columns = np.rint((group.x - start) / max(end - start, 1e-9) * (WIDTH - 1)).astype(int)
        across = np.arange(columns[0], columns[-1] + 1)
        values = np.interp(across, columns, group.center)
        shares = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
        rows = np.rint(shares * (HEIGHT - 1)).astype(int)
        for column, row in zip(across, rows, strict=True):
            cells[HEIGHT - 1 - row][column] = mark
    names = [f"{high:.4g}", *[""] * (HEIGHT - 2), f"{low:.4g}"]
    if high == low:  # one line, in the middle
        names = [f"{high:.4g}" if mark.strip() else "" for mark in map("".join, cells)]
    lines = [f"{name:>10} |{''.join(row)}" for name, row in zip(names, cells, strict=True)]
    foot = f"{_place(start, axis)}{_place(end, axis):>{WIDTH - len(_place(start, axis))}}"
    return "\n".join([f"{'':12}{env}", *lines, f"{'':11}+{'-' * WIDTH}", f"{'':12}{foot}"])


def _place(x: float, axis: Axis) -> str:
    return f"{x:,.0f} steps" if axis == "steps" else f"{x:,.1f} s"


# ---- as a picture ----------------------------------------------------------------------------


def draw(compared: Comparison, path: Path, kind: Kind = "curves") -> None:
    """Draw to a file: a grid with a picture for each environment, one color for each agent.

    Args:
        path: its ending says the format: png, svg or pdf.
        kind: `curves`; `profiles`: the share of runs whose last point is above a score;
            `improvement`: for each pair of agents the probability that the first is better.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}):  # a folder may have a $ in its name
        if kind == "improvement":
            height = 1 + 0.5 * len(improvements(compared))
            figure = Figure(layout="constrained", figsize=(7, height))
            _draw_improvements(figure.subplots(), compared)
        else:
            columns = min(len(compared.envs), 3)
            rows = -(-len(compared.envs) // columns)
            figure = Figure(layout="constrained", figsize=(4.5 * columns, 3.2 * rows + 0.4))
            places = figure.subplots(rows, columns, squeeze=False).ravel()
            for env, axes in zip(compared.envs, places, strict=False):
                (_draw_curves if kind == "curves" else _draw_profiles)(axes, compared, env)
                axes.set(title=env)
            for axes in places[len(compared.envs) :]:
                axes.set_axis_off()
            _legend(figure, places)
        ending = path.suffix[1:].lower()
        figure.savefig(path, format=ending, dpi=150, bbox_inches="tight")  # with the whole legend


def _draw_curves(axes: Axes, compared: Comparison, env: str) -> None:
    from matplotlib.ticker import EngFormatter

    for group in compared.on(env):
        _draw_line(axes, compared, group, group.x, group.center, group.interval)
    axes.set_xlabel("environment steps" if compared.axis == "steps" else "training time (s)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k
    axes.set_ylabel(compared.metric)


def _draw_profiles(axes: Axes, compared: Comparison, env: str) -> None:
    scores = np.concatenate([group.final for group in compared.on(env)])
    margin = 0.05 * float(np.ptp(scores)) or 1.0
    at = np.linspace(scores.min() - margin, scores.max() + margin, POINTS)
    for group in compared.on(env):
        band = interval([group.final], lambda runs: performance_profile(runs, at))
        share = performance_profile(group.final, at)
        _draw_line(axes, compared, group, at, share, band, step="post")
    axes.set(xlabel=f"{compared.metric} τ", ylabel="share of runs above τ")
    axes.locator_params(axis="x", nbins=4)  # -1325.75 is long


def _draw_line(
    axes: Axes, compared: Comparison, group: Group, x: Array, y: Array, band: Array,
    *, step: Literal["post"] | None = None,
) -> None:  # fmt: skip
    """What a group has at `x`, and the interval `band` [2, P] around it."""
    color = f"C{compared.labels.index(group.label) % 10}"
    drawstyle = "default" if step is None else f"steps-{step}"
    label = f"{group.label} ({len(group.runs)})"
    label = f" {label}" if label.startswith("_") else label  # else no legend has it
    if x[0] == x[-1]:  # a line of no length would not be seen
        at = slice(0, 1)
        axes.errorbar(x[at], y[at], abs(band - y)[:, at], color=color, label=label, fmt="o")
        return
    axes.plot(x, y, color=color, label=label, drawstyle=drawstyle)
    axes.fill_between(x, band[0], band[1], step=step, color=color, alpha=0.2, lw=0)


def _draw_improvements(axes: Axes, compared: Comparison) -> None:
    pairs = improvements(compared)[::-1]
    for k, (_, _, value, (low, high)) in enumerate(pairs):
        axes.barh(k, high - low, left=low, height=0.5, alpha=0.4, color="C0")
        axes.plot([value, value], [k - 0.25, k + 0.25], color="C0")
    axes.set_yticks(range(len(pairs)), [f"{first} over {second}" for first, second, *_ in pairs])
    axes.axvline(0.5, color="gray", lw=0.8, ls="--")
    axes.set(xlim=(-0.01, 1.01), xlabel="probability that a run of the first is better")


def _legend(figure: Figure, places: Any) -> None:
    """One for all pictures; the number of runs is in it, so labels may differ between pictures."""
    named: dict[str, Any] = {}
    for axes in places:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    room = 12 * figure.get_figwidth()  # letters in a row
    columns = max(1, min(4, int(room / (max(map(len, named)) + 6))))
    figure.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=columns, frameon=False
    )

"""The curves of runs on disk: of ours, and of Stable-Baselines3's.

A run of ours is a folder with `recipe.toml` and `progress.jsonl`. One of Stable-Baselines3 has
`evaluations.npz` (of its EvalCallback) or `*monitor.csv` (of its Monitor); its environment is that
of `monitor.csv`, or else the folder's name without the number that its zoo adds
(`ppo/CartPole-v1_1`), and its agent is the name of the folder above.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from rlpg.errors import FileError, UsageError
from rlpg.runs import files, toml
from rlpg.runs.recipe import LARGEST_FILE

LARGEST = 256 << 20  # bytes of a file of curves, also unpacked
EPISODES = 100  # that the curve of the training return is the mean of
EVALUATED, TRAINED = "eval/mean_reward", "rollout/ep_rew_mean"

Curve = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]  # steps [K], values [K]


@dataclass(frozen=True)
class History:
    """What a run on disk tells about its training."""

    path: Path
    env: str
    agent: str
    curves: Mapping[str, Curve]  # by tag
    clock: Curve  # seconds of training at environment steps
    settings: Mapping[str, Any] = field(default_factory=dict)  # by dotted key, as in the recipe


def find_histories(path: Path) -> list[History]:
    """The runs in a folder and below, in the order of their names; UsageError where there are
    none, FileError where a file of one is damaged."""
    found = [read_history(folder) for folder in _runs(path)]
    if not found:
        raise UsageError(
            f"{path}: expected a run or a folder with runs in it, got "
            f"{'neither' if files.exists(path) else 'nothing there'}; `rlpg train ENV` keeps its "
            "runs in runs/"
        )
    return found


def read_history(path: Path) -> History:
    """The curves of the run in a folder; FileError where a file is damaged."""
    try:
        return _ours(path) if _is_ours(path) else _theirs(path)
    except (ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile, EOFError) as error:
        reason = " ".join(str(error).split())
        raise FileError(
            f"{path}: expected the curves of a run, got damaged ones: {reason}"
        ) from None


def _runs(path: Path) -> Iterator[Path]:
    if _is_ours(path) or _files_of_theirs(path):
        yield path
        return
    for below in files.entries(path):
        if files.is_folder(below):  # no link: it may lead back
            yield from _runs(below)


def _is_ours(path: Path) -> bool:
    return files.exists(path / "recipe.toml") and files.exists(path / "progress.jsonl")


def _files_of_theirs(path: Path) -> list[Path]:
    ends = ("monitor.csv", "evaluations.npz")
    return [file for file in files.entries(path) if file.name.endswith(ends)]


def _ours(path: Path) -> History:
    text = files.read(path / "recipe.toml", limit=LARGEST_FILE).decode()
    settings: dict[str, Any] = {}
    for name, value in toml.tables(text).items():
        table = value.items() if isinstance(value, dict) else ()
        settings |= {f"{name}.{key}": entry for key, entry in table} or {name: value}
    points: dict[str, list[tuple[int, float]]] = {}
    seconds, clock = 0.0, [(0, 0.0)]
    lines = bytes(files.read(path / "progress.jsonl", limit=LARGEST)).splitlines(keepends=True)
    for line in lines:
        if not line.endswith(b"\n"):  # it is being written
            break
        entry = json.loads(line)
        step = int(entry.pop("step"))
        if fps := entry.get("time/fps"):
            seconds += (step - clock[-1][0]) / fps
            clock.append((step, seconds))
        for tag, value in entry.items():
            if value is not None:
                points.setdefault(tag, []).append((step, float(value)))
    curves = {tag: _curve(pairs) for tag, pairs in points.items()}
    env, agent = str(settings["environment.id"]), str(settings["agent"])
    return History(path, env, agent, curves, _curve(clock), settings)


def _theirs(path: Path) -> History:
    curves, clock = {}, _curve([(0, 0.0)])
    whole = path.absolute()
    env = re.sub(r"_\d+$", "", whole.name)
    rows: list[tuple[float, int, float]] = []  # seconds, length, return
    for file in _files_of_theirs(path):
        if file.suffix == ".npz":
            arrays = _arrays(file)
            means = np.asarray(arrays["results"], np.float64).mean(axis=1)
            points = zip(arrays["timesteps"].tolist(), means.tolist(), strict=True)
            curves[EVALUATED] = _curve(points)
            continue
        header, _, *lines = files.read(file, limit=LARGEST).decode().splitlines()
        env = str(json.loads(header.removeprefix("#")).get("env_id") or env)
        for line in lines:
            value, length, at, *_ = line.split(",")
            rows.append((float(at), int(length), float(value)))
    if rows:
        rows.sort(key=itemgetter(0))
        seconds, lengths, returns = map(np.array, zip(*rows, strict=True))
        steps = lengths.astype(np.int64).cumsum()
        clock = np.insert(steps, 0, 0), np.insert(seconds, 0, 0.0)
        sums = np.insert(returns.cumsum(), 0, 0.0)
        window = np.minimum(np.arange(1, len(returns) + 1), EPISODES)
        curves[TRAINED] = steps, (sums[1:] - sums[np.arange(1, len(sums)) - window]) / window
    return History(path, env, whole.parent.name or "agent", curves, clock)


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an npz file, which may not unpack to more than a file may have."""
    data = io.BytesIO(files.read(path, limit=LARGEST))
    with zipfile.ZipFile(data) as archive:
        if sum(info.file_size for info in archive.infolist()) > LARGEST:
            raise ValueError(f"{path.name} unpacks to more than {LARGEST} bytes")
        return {
            name: np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")))
            for name in ("timesteps", "results")
        }


def _curve(points: Iterable[tuple[int, float]]) -> Curve:
    pairs = [(step, value) for step, value in points if math.isfinite(value)]
    return np.array([s for s, _ in pairs], np.int64), np.array([v for _, v in pairs], np.float64)

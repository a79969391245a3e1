"""Train for hours and watch what must not grow: memory, file descriptors, threads, processes.

    python scripts/soak.py --minutes 120

Half of the time on the native CartPole-v1, half on worker processes, with checkpoints, evaluations
and TensorBoard. Every few seconds /proc is asked how much memory the run and its workers hold, how
many descriptors, threads, children and entries of /dev/shm there are. At the end SIGTERM has to
end the run within 10 seconds with nothing left behind, and `rlpg resume` has to go on from there.

Exit code 1 if memory grew by 1 MB or more per 100,000 steps, if a count changed, or if the end was
not clean.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

CLI = [sys.executable, "-c", "import sys; from rlpg.cli import main; sys.exit(main())"]
RUN = [
    "--recipe=default",
    "--evaluation.every=50_000",
    "--evaluation.final-episodes=10",
    "--checkpoint.every=50_000",
    "--log.every=10_000",
    "--total-steps=100_000_000_000",
    "--learner.learning-rate-schedule=constant",
    "--rollout.num-steps=128",  # so large a budget would ask for more, and make few iterations
]
BACKENDS = {
    "native": ["--rollout.num-envs=16"],
    "async": ["--rollout.num-envs=4", "--evaluation.num-envs=2"],
}
WARM_UP = 0.2  # of the time: allocators fill their caches, the first episodes grow
LARGEST_SLOPE = 1.0  # MB per 100,000 steps
MOMENTARY = 4  # more descriptors than usual while a file is being written
SHM, PROC = Path("/dev/shm"), Path("/proc")


@dataclass(frozen=True)
class Sample:
    """What is seen at one moment."""

    minutes: float
    steps: int
    cpu: float  # seconds the training process has worked
    memory: float  # MB, resident, workers included; pages that they share count for each
    descriptors: int  # of the training process
    threads: int  # of the training process
    children: int  # processes below it
    shm: int  # entries of /dev/shm that they have mapped or opened, removed ones included


COUNTS = ("descriptors", "threads", "children", "shm")


def below(pid: int) -> Iterator[int]:
    """The process and all its descendants."""
    yield pid
    for task in (PROC / str(pid) / "task").iterdir():
        for child in (task / "children").read_text().split():
            yield from below(int(child))


def resident(pid: int) -> float:
    """MB of memory."""
    pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def worked(pid: int) -> float:
    """Seconds of CPU time; a busy machine gives a run fewer of them per minute."""
    times = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def last_step(folder: Path) -> int:
    """Environment steps in the log."""
    with (
        suppress(OSError, ValueError, IndexError, KeyError),
        (folder / "progress.jsonl").open("rb") as file,
    ):
        file.seek(-min(file.seek(0, os.SEEK_END), 8192), os.SEEK_END)
        return int(json.loads(file.read().splitlines()[-1])["step"])
    return 0


def look(pid: int, folder: Path, began: float) -> Sample:
    processes = list(below(pid))
    return Sample(
        minutes=(time.monotonic() - began) / 60,
        steps=last_step(folder),
        cpu=worked(pid),
        memory=sum(map(resident, processes)),
        descriptors=len(os.listdir(PROC / str(pid) / "fd")),
        threads=len(os.listdir(PROC / str(pid) / "task")),
        children=len(processes) - 1,
        shm=len(shared_memory(processes)),
    )


def shared_memory(processes: Sequence[int]) -> set[str]:
    """Names in /dev/shm in use by these processes; those of others are none of our business."""
    names = set()
    for pid in processes:
        folder = PROC / str(pid)
        lines = (folder / "maps").read_text().splitlines()
        places = [line.split(maxsplit=5)[-1] for line in lines]
        for entry in os.listdir(folder / "fd"):
            with suppress(OSError):  # closed since it was listed
                places.append(os.readlink(folder / "fd" / entry))
        names |= {place for place in places if place.startswith(f"{SHM}/")}
    return names


def slope(samples: Sequence[Sample]) -> float:
    """MB per 100,000 steps, by least squares."""
    steps = np.array([sample.steps for sample in samples]) / 1e5
    memory = np.array([sample.memory for sample in samples])
    return float(np.polyfit(steps, memory, 1)[0])


def complaints(samples: Sequence[Sample]) -> list[str]:
    """What grew after the warm-up."""
    kept = [sample for sample in samples if sample.minutes >= WARM_UP * samples[-1].minutes]
    if len(kept) < 10 or kept[-1].steps < kept[0].steps + 1e5:
        return ["too short: fewer than ten samples, or fewer than 100,000 steps, after warm-up"]
    found = []
    if slope(kept) >= LARGEST_SLOPE:
        found.append(f"memory grows by {slope(kept):.3f} MB per 100,000 steps")
    third = len(kept) // 3
    for name in COUNTS:
        values = [getattr(sample, name) for sample in kept]
        usual, late = statistics.median(values[:third]), statistics.median(values[-third:])
        if late != usual or max(values) > usual + MOMENTARY:
            found.append(f"{name}: {usual:g} at first, {late:g} at the end, at most {max(values)}")
    return found


def soak(
    backend: str,
    folder: Path,
    minutes: float,
    every: float,
    patience: float = 10.0,
    more_steps: int = 100_000,
) -> tuple[list[Sample], str]:
    """Train for some minutes, from the first entry of its log on, and end with SIGTERM.

    Args:
        patience: seconds that it may take to end.
        more_steps: from the last entry of the log on, that the resumed run goes on for.

    Returns:
        the samples, and what was not clean about the end, "" if nothing.
    """
    words = ["train", "CartPole-v1", *RUN, *BACKENDS[backend], f"--environment.backend={backend}"]
    errors = folder.with_suffix(".stderr")
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*CLI, *words, f"--run-dir={folder}", "--quiet"], stderr=stderr, stdout=stderr
        )
    samples: list[Sample] = []
    began = time.monotonic()
    try:
        while time.monotonic() < began + 60 * minutes and process.poll() is None:
            time.sleep(every)
            began = began if samples else time.monotonic()
            with suppress(OSError):  # a process below it ended while it was looked at
                sample = look(process.pid, folder, began)
                samples += [sample] if sample.steps else []
        processes = list(below(process.pid)) if process.poll() is None else []
        shared = shared_memory(processes)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        code = process.wait(max(patience, 60))
    finally:
        process.kill()
        process.wait()
    seconds = time.monotonic() - asked
    if code != 143 or seconds > patience:
        return samples, f"exit code {code} after {seconds:.1f} s: {errors.read_text()[-500:]}"
    time.sleep(1)
    alive = [pid for pid in processes if (PROC / str(pid)).exists()]
    left = sorted(name for name in shared if Path(name).exists())
    if alive or left:
        return samples, f"left behind: processes {alive}, shared memory {left}"
    total = last_step(folder) + more_steps
    more = [*CLI, "resume", str(folder), f"--total-steps={total}", "--quiet"]
    resumed = subprocess.run(more, capture_output=True, text=True)
    return samples, "" if resumed.returncode == 0 else f"resume: {resumed.stderr[-500:]}"


def table(samples: Sequence[Sample], rows: int) -> str:
    """Some of the samples, evenly spaced, as Markdown."""
    names = [field.name for field in fields(Sample)]
    lines = [f"| {' | '.join(names)} |", "|" + "---:|" * len(names)]
    places = sorted({round(k * (len(samples) - 1) / max(rows - 1, 1)) for k in range(rows)})
    for sample in (samples[place] for place in places):
        minutes, steps, cpu, memory, *counts = astuple(sample)
        cells = [f"{minutes:.1f}", f"{steps:,}", f"{cpu:.0f}", f"{memory:.1f}", *map(str, counts)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=120, help="in all (120)")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples (5)")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--rows", type=int, default=6, help="of each table (6)")
    arguments = parser.parse_args()
    if not (PROC / "self/task").exists():
        raise SystemExit("soak: expected Linux with /proc")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it has started ends with it
    failed = False
    home = Path(tempfile.mkdtemp(prefix="rlpg-soak-"))
    try:
        for backend in arguments.backends:
            share = arguments.minutes / len(arguments.backends)
            samples, unclean = soak(backend, home / backend, share, arguments.every)
            found = complaints(samples) if samples else ["no sample: the run did not begin"]
            found += [unclean] if unclean else []
            print(f"\n{backend}: {share:g} minutes, {len(samples)} samples")
            if samples:
                after = [s for s in samples if s.minutes >= WARM_UP * samples[-1].minutes]
                print(table(samples, arguments.rows))
                print(f"memory after warm-up: {slope(after):+.4f} MB per 100,000 steps")
                half = after[len(after) // 2]
                for begin, end in ((after[0], half), (half, after[-1])):
                    speed = (end.steps - begin.steps) / max(end.cpu - begin.cpu, 1e-9)
                    print(f"until minute {end.minutes:.1f}: {speed:,.0f} steps per CPU second")
                for name in COUNTS:
                    values = [getattr(sample, name) for sample in after]
                    usual = statistics.median(values)
                    print(f"{name}: {usual:g} (from {min(values)} to {max(values)})")
            print("; ".join(found) or "nothing grew; SIGTERM ended it cleanly; it resumes")
            failed |= bool(found)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

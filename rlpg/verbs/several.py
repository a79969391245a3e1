"""Several seeds of one training, each in a process of its own: the bits are those of one by one.

A process is in a group of its own, so that Ctrl-C reaches this one alone; it tells the others, and
each saves. A process whose parent has died saves and ends, too.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rlpg.distributed import is_started_by_torchrun
from rlpg.engine import imports
from rlpg.engine.assembly import Hooks
from rlpg.engine.components import find_recipe, settings_of
from rlpg.engine.evaluator import Evaluation
from rlpg.engine.loading import load
from rlpg.engine.stopping import SIGNALS, StopSignals
from rlpg.engine.terminal import Display
from rlpg.errors import (
    FileError,
    RlpgError,
    RlpgWarning,
    SaveError,
    SeedsError,
    TrainingError,
    UsageError,
    tell_warnings,
    words,
)
from rlpg.gradients.baselines import Baseline
from rlpg.learners import Learner
from rlpg.policies.references import Part, UserParts
from rlpg.rollouts import EnvSource
from rlpg.rollouts.processes import usable_cores
from rlpg.runs import files
from rlpg.runs.recipe import Recipe, flatten, override
from rlpg.runs.trackers import TrackerLogger
from rlpg.settings import Count, Natural, validated
from rlpg.verbs import training
from rlpg.verbs.training import Run, Schedules, is_quiet, own_parts

PATIENCE = 5.0  # seconds that a process has to end after a second signal


@dataclass(frozen=True)
class Finished:
    """A run that is done, as its process tells."""

    path: Path
    evaluation: Evaluation | None


@dataclass(frozen=True)
class Training:
    """What runs with different seeds have in common."""

    env: EnvSource
    recipe: Recipe
    parts: UserParts = field(default_factory=UserParts)
    run_dirs: Mapping[int, Path] = field(default_factory=dict)  # by seed
    stop_at_return: float | None = None
    track: str | None = None  # a tracker that gets the metrics, too
    verbose: bool = False

    def run(self, seed: int, hooks: Hooks | None = None, *, quiet: bool) -> Finished:
        recipe = override(self.recipe, {"seed": seed})
        title = f"{recipe.environment.id} {recipe.agent} seed {seed}"
        hooks = replace(
            hooks or Hooks(),
            stop_at_return=self.stop_at_return,
            loggers=[TrackerLogger(self.track, title, flatten(recipe))] if self.track else [],
            verbose=self.verbose,
        )
        run = training.run_recipe(
            self.env, recipe, self.run_dirs.get(seed), parts=self.parts, hooks=hooks,
            quiet=quiet,
        )  # fmt: skip
        return Finished(run.path, run.evaluation)


def train_seeds(
    env: EnvSource,
    agent: str | type[Learner] | None = None,
    *,
    seeds: Sequence[int],
    jobs: int | None = None,
    total_steps: int | None = None,
    run_dir: str | Path | None = None,
    recipe: str | Path | Recipe | None = None,
    overrides: Mapping[str, object] | None = None,
    network: Part | None = None,
    policy: Part | None = None,
    baseline: Part | Baseline | None = None,
    schedules: Schedules | None = None,
    stop_at_return: float | None = None,
    import_modules: bool = False,
    quiet: bool | None = None,
) -> list[Run]:
    """Train once with each seed, several at the same time; the runs in the order of the seeds.

    A run has the same bits as `train` with its seed. A run that fails does not stop the others.
    Each process imports what it is given: a class or function must be in a module, and a script
    that calls this needs `if __name__ == "__main__":`.

    Every other argument is one of `train`.

    Args:
        seeds: of the runs, all different.
        jobs: how many runs go on at the same time, a process each; 1: one after the other in this
            process. None: as many as there are cores.
        run_dir: holds a folder `<seed>` for each run; None: `runs/<env>/<agent>/<seed>`.

    Raises:
        SeedsError: some runs failed; it holds the others.
        UsageError: what was asked for cannot be done, with any seed.
    """
    listed = list(seeds) if isinstance(seeds, Iterable) else seeds  # an array, a generator
    seeds = validated("seeds", listed, list[Natural])
    name, parts = own_parts(agent, network, policy, baseline, schedules, import_modules)
    changes = ({} if total_steps is None else {"total_steps": total_steps}) | dict(overrides or {})
    base = override(find_recipe(env, name, recipe, parts), settings_of(parts, changes))
    folders = {} if run_dir is None else {seed: Path(run_dir) / str(seed) for seed in seeds}
    common = Training(env, base, parts, folders, stop_at_return)
    finished, errors = run_seeds(common, seeds, jobs=jobs, quiet=is_quiet(quiet))
    runs = {}
    for seed, done in finished.items():
        own = load(done.path, network=network, policy=policy, import_modules=import_modules)
        runs[seed] = Run(done.path, own, done.evaluation)
    if errors:
        told = [
            "; ".join((f"seed {seed}: {error}", *getattr(error, "__notes__", ())))
            for seed, error in sorted(errors.items())
        ]
        failed = f"{len(errors)} of {len(seeds)} seeds failed: {'; '.join(told)}"
        raise SeedsError(failed, runs, errors)
    return [runs[seed] for seed in seeds]


def run_seeds(
    common: Training,
    seeds: Sequence[int],
    *,
    jobs: int | None,
    quiet: bool,
    name: str = "seed",
    done: Callable[[int, Finished], None] = lambda seed, finished: None,
    failed: Callable[[int, RlpgError], None] = lambda seed, error: None,
) -> tuple[dict[int, Finished], dict[int, RlpgError]]:
    """Train with each seed: the runs that are done, in the order of the seeds, and the errors.

    `name` is what a seed is called; `done` and `failed` are told at once. What the first run says
    that all others would say, too, is raised, and so are signals, after all runs were saved.
    """
    jobs = validated("jobs", jobs, Count | None)
    if is_started_by_torchrun():
        raise UsageError("seeds: expected one seed for the processes of torchrun, got several")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds: expected seeds, each once, got {list(seeds)}")
    jobs = min(jobs or max(1, usable_cores() // common.recipe.threads), len(seeds))
    several = _Several(common, seeds, name, done, failed)
    if jobs == 1:
        several.one_by_one(quiet=quiet)
    else:
        several.at_once(jobs, quiet=quiet)
    finished = {seed: several.finished[seed] for seed in seeds if seed in several.finished}
    return finished, several.errors


@dataclass
class _Several:
    """The runs of `run_seeds`."""

    common: Training
    seeds: Sequence[int]
    name: str
    tell_done: Callable[[int, Finished], None]
    tell_failed: Callable[[int, RlpgError], None]
    finished: dict[int, Finished] = field(default_factory=dict)
    errors: dict[int, RlpgError] = field(default_factory=dict)

    def _done(self, seed: int, finished: Finished) -> None:
        self.finished[seed] = finished
        self.tell_done(seed, finished)

    def _failed(self, seed: int, error: RlpgError) -> None:
        """Go on with the others, unless it is what the first run says, and all others would."""
        if isinstance(error, UsageError | FileError) and not (self.finished or self.errors):
            raise error
        self.errors[seed] = error
        self.tell_failed(seed, error)
        if isinstance(error, SaveError) and error.run is not None:
            self._done(seed, Finished(error.run.path, error.run.evaluation))

    def one_by_one(self, *, quiet: bool) -> None:
        hooks = Hooks() if quiet else Hooks(say=partial(print, file=sys.stderr))
        for seed in self.seeds:
            try:
                self._done(seed, self.common.run(seed, hooks, quiet=quiet))
            except RlpgError as error:
                if isinstance(error, SaveError) and error.run is None:  # stopped by a signal
                    raise
                self._failed(seed, error)

    def at_once(self, jobs: int, *, quiet: bool) -> None:
        """In processes, so many at a time."""
        main = sys.modules["__main__"]
        program = None if main.__spec__ else getattr(main, "__file__", None)
        if program and not files.exists(Path(program)):  # each process would look for it
            raise UsageError(
                f"jobs: expected 1 for a program in no file, got {jobs} for {program}; save it"
            )
        with _importable():
            whole = pickle.dumps(self.common)
        waiting = list(self.seeds)
        running: dict[int, tuple[Any, Connection]] = {}
        total, verbose = self.common.recipe.total_steps, self.common.verbose
        titles = [f"{self.name} {seed}" for seed in self.seeds]
        display = Display(*titles, total_steps=total, quiet=quiet, verbose=verbose)
        told = False
        with display, StopSignals() as stop:
            try:
                while running or (waiting and stop.received is None):
                    while waiting and len(running) < jobs and stop.received is None:
                        seed = waiting.pop(0)
                        running[seed] = _started(whole, seed)
                    if stop.received is not None and not told:
                        told = True
                        _tell(running.values(), stop.received)
                    ready = wait([pipe for _, pipe in running.values()], 0.2)
                    for seed, (process, pipe) in list(running.items()):
                        if pipe in ready and self._heard(seed, process, pipe, display):
                            del running[seed]
            except BaseException:  # a second signal: at once
                _end(running.values(), PATIENCE)
                raise
        stop.raise_if_received()

    def _heard(self, seed: int, process: Any, pipe: Connection, display: Display) -> bool:
        """Take one message of a process; whether it was the last."""
        title = f"{self.name} {seed}"
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            process.join()
            message = "failed", TrainingError(f"its process {_obituary(process.exitcode)}")
        is_last = message[0] in ("done", "stopped", "failed")
        if is_last:
            process.join()
            display.end(title)
        match message:
            case ("began", step):
                display.begin(step, title)
            case ("log", step, metrics):
                display.update(step, metrics, title)
            case ("line", text):
                display.line(f"{title}: {text}")
            case ("warning", text):
                display.warn(f"{title}: {text}")
            case ("done", finished):
                self._done(seed, finished)
            case ("stopped", notes):
                display.line("; ".join((f"{title}: stopped", *notes)))
            case ("failed", error):
                self._failed(seed, error)
        return is_last


@contextmanager
def _importable() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the parts' own __reduce__ raises
        raise UsageError(
            f"jobs: expected parts that another process can import, got one that it cannot "
            f"({error}); define them in a module, or set jobs to 1"
        ) from error


def _started(whole: bytes, seed: int) -> tuple[Any, Connection]:
    """A process that trains with a seed, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    work = (__name__, _process.__name__, whole, seed, theirs)
    process = context.Process(target=imports.call, args=work, name=f"seed {seed}")
    # A signal that comes while the process imports torch must neither end it nor be lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return process, ours


def _tell(running: Iterable[tuple[Any, Connection]], number: int) -> None:
    for _, pipe in running:
        with suppress(OSError):  # it has ended
            pipe.send(number)


def _end(running: Iterable[tuple[Any, Connection]], patience: float) -> None:
    """Tell the processes once more to stop, and end those that do not."""
    _tell(running, signal.SIGINT)
    _tell(running, signal.SIGTERM)
    wait([process.sentinel for process, _ in running], patience)
    for process, pipe in running:
        process.join(0.1)
        process.kill()
        process.join()
        pipe.close()


def _obituary(code: int) -> str:
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return (
        f"ended with exit code {code} before it began; a script that trains several seeds needs "
        'if __name__ == "__main__": around it'
    )


# ---- in the process of one seed


def _process(whole: bytes, seed: int, pipe: Connection) -> None:
    def say(*message: object) -> None:
        with suppress(OSError):  # the parent has died
            pipe.send(message)

    with suppress(OSError):
        os.setpgid(0, 0)  # the terminal's signals are for the parent
    threading.Thread(target=_obey, args=(pipe,), daemon=True).start()
    tell_warnings(partial(say, "warning"))
    warnings.simplefilter("always", RlpgWarning)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        with _importable():  # not so what a notebook defines
            common: Training = pickle.loads(whole)
        hooks = Hooks(partial(say, "log"), say=partial(say, "line"), began=partial(say, "began"))
        say("done", common.run(seed, hooks, quiet=True))
    except (KeyboardInterrupt, SystemExit) as stop:
        say("stopped", getattr(stop, "__notes__", ()))
    except RlpgError as error:
        if isinstance(error, SaveError) and error.run is not None:
            error.run = Finished(error.run.path, error.run.evaluation)
        say("failed", error)
    except Exception as error:
        traceback.print_exc()
        say("failed", TrainingError(words(error)))


def _obey(pipe: Connection) -> None:
    """Take the parent's signals; its death is one."""
    while True:
        try:
            number = pipe.recv()
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        os.kill(os.getpid(), number)

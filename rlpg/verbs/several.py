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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from rlpg.distributed import is_started_by_torchrun
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
)
from rlpg.gradients.baselines import Baseline
from rlpg.learners import Learner
from rlpg.policies.references import Part, UserParts
from rlpg.rollouts import EnvSource
from rlpg.rollouts.processes import usable_cores
from rlpg.runs.logger import Logger
from rlpg.runs.recipe import Recipe, override
from rlpg.verbs.training import Run, Schedules, is_quiet, own_parts

PATIENCE = 5.0  # seconds that a process has to end after a second signal


@dataclass(frozen=True)
class Finished:
    """A run that is done, as its process tells."""

    path: Path
    evaluation: Evaluation | None


class Work(Protocol):
    """What processes do, each with another seed or number."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def stop_at_return(self) -> float | None: ...
    def run(self, seed: int, hooks: Hooks, *, quiet: bool) -> Finished: ...


@dataclass(frozen=True)
class Training:
    """What the processes have in common."""

    env: EnvSource
    recipe: Recipe
    run_dir: Path | None = None  # holds a folder for each seed
    parts: UserParts = field(default_factory=UserParts)
    stop_at_return: float | None = None
    trackers: Callable[[int], Sequence[Logger]] | None = None  # loggers of a seed, besides

    def run(self, seed: int, hooks: Hooks, *, quiet: bool) -> Finished:
        """Train with one seed, here."""
        from rlpg.verbs import training

        if self.trackers is not None:
            hooks = replace(hooks, loggers=self.trackers(seed))
        run_dir = None if self.run_dir is None else self.run_dir / str(seed)
        recipe = override(self.recipe, {"seed": seed})
        run = training.run_recipe(
            self.env, recipe, run_dir, parts=self.parts, hooks=hooks, quiet=quiet
        )
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
    name, parts = own_parts(agent, network, policy, baseline, schedules, import_modules)
    changes = settings_of(parts) | ({} if total_steps is None else {"total_steps": total_steps})
    base = override(find_recipe(env, name or None, recipe, parts), changes | dict(overrides or {}))
    folder = None if run_dir is None else Path(run_dir)
    training = Training(env, base, folder, parts, stop_at_return)
    finished, errors = run_seeds(training, seeds, jobs=jobs, quiet=is_quiet(quiet))
    runs = {}
    for seed, done in finished.items():
        own = load(done.path, network=network, policy=policy, import_modules=import_modules)
        runs[seed] = Run(done.path, own, done.evaluation)
    if errors:
        told = "; ".join(
            "; ".join((f"seed {seed}: {error}", *getattr(error, "__notes__", ())))
            for seed, error in sorted(errors.items())
        )
        raise SeedsError(f"{len(errors)} of {len(seeds)} seeds failed: {told}", runs, errors)
    return [runs[seed] for seed in seeds]


def run_seeds(
    training: Work,
    seeds: Sequence[int],
    *,
    jobs: int | None,
    quiet: bool,
    verbose: bool = False,
    name: str = "seed",
    done: Callable[[int, Finished], None] = lambda seed, finished: None,
    failed: Callable[[int, RlpgError], None] = lambda seed, error: None,
) -> tuple[dict[int, Finished], dict[int, RlpgError]]:
    """Train with each seed: the runs that are done, in the order of the seeds, and the errors.

    Args:
        jobs: as for `train_seeds`.
        verbose: show where the time goes, and the metrics of learning.
        name: what a seed is called.
        done, failed: are told at once when a run is done, or has failed.

    Raises:
        UsageError, FileError: seeds or jobs cannot be used, something cannot be given to a process,
            or what was asked for cannot be done.
        KeyboardInterrupt, SystemExit: a signal; all runs were saved.
    """
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise UsageError(f"jobs: expected an integer of at least 1, got {jobs!r:.40}")
    if is_started_by_torchrun():
        raise UsageError("seeds: expected one seed for the processes of torchrun, got several")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds: expected different seeds, got {list(seeds)}")
    if jobs is None:
        jobs = max(1, usable_cores() // training.recipe.threads)
    several = _Several(training, seeds, name, done, failed)
    if min(jobs, len(seeds)) == 1:
        several.one_by_one(quiet=quiet, verbose=verbose)
    else:
        several.at_once(min(jobs, len(seeds)), quiet=quiet, verbose=verbose)
    return {seed: several.finished[seed] for seed in seeds if seed in several.finished}, (
        several.errors
    )


class _Several:
    """The runs of `run_seeds`."""

    def __init__(
        self,
        training: Work,
        seeds: Sequence[int],
        name: str,
        done: Callable[[int, Finished], None],
        failed: Callable[[int, RlpgError], None],
    ) -> None:
        self._training, self._seeds, self._name = training, seeds, name
        self._tell_done, self._tell_failed = done, failed
        self.finished: dict[int, Finished] = {}
        self.errors: dict[int, RlpgError] = {}

    def one_by_one(self, *, quiet: bool, verbose: bool) -> None:
        """Here, one after the other."""
        for seed in self._seeds:
            try:
                say = None if quiet else partial(print, file=sys.stderr)
                hooks = Hooks(
                    stop_at_return=self._training.stop_at_return, verbose=verbose, say=say
                )
                self._done(seed, self._training.run(seed, hooks, quiet=quiet))
            except RlpgError as error:
                is_stopped = isinstance(error, SaveError) and error.run is None  # by a signal
                if is_stopped or self._is_refused(error):
                    raise
                self._failed(seed, error)
                if isinstance(error, SaveError):
                    self._done(seed, Finished(error.run.path, error.run.evaluation))

    def _is_refused(self, error: RlpgError) -> bool:
        """Whether it is what the first run says, and would be that of all others."""
        is_first = not (self.finished or self.errors)
        return is_first and isinstance(error, UsageError | FileError)

    def at_once(self, jobs: int, *, quiet: bool, verbose: bool) -> None:
        """In processes, so many at a time."""
        context = multiprocessing.get_context("spawn")
        whole = _pickled(self._training)
        waiting = list(self._seeds)
        running: dict[int, tuple[Any, Connection]] = {}
        titles = {seed: f"{self._name} {seed}" for seed in self._seeds}
        total = self._training.recipe.total_steps
        display = Display(*titles.values(), total_steps=total, quiet=quiet, verbose=verbose)
        told = False
        with display, StopSignals() as stop:
            try:
                while running or (waiting and stop.received is None):
                    while waiting and len(running) < jobs and stop.received is None:
                        seed = waiting.pop(0)
                        running[seed] = _started(context, whole, seed)
                    if stop.received is not None and not told:
                        told = True
                        _tell((pipe for _, pipe in running.values()), stop.received)
                    pipes = {pipe: seed for seed, (_, pipe) in running.items()}
                    for pipe in wait(list(pipes), 0.2):
                        seed = pipes[pipe]  # type: ignore[index]  # it is one of those
                        if self._heard(seed, *running[seed], display, titles[seed]):
                            del running[seed]
            except BaseException:  # a second signal: at once
                _end(list(running.values()), PATIENCE)
                raise
        stop.raise_if_received()

    def _heard(
        self, seed: int, process: Any, pipe: Connection, display: Display, title: str
    ) -> bool:
        """Take one message of a process; whether it was the last."""
        try:
            kind, *rest = pipe.recv()
        except (EOFError, OSError):
            process.join()
            died = TrainingError(f"its process {_obituary(process.exitcode)}")
            self._failed(seed, died)
            return True
        if kind == "began":
            display.begin(title)
            return False
        if kind == "log":
            step, metrics = rest
            display.update(step, metrics, title)
            return False
        if kind == "line":
            display.line(f"{title}: {rest[0]}")
            return False
        if kind == "warning":
            display.warn(f"{title}: {rest[0]}")
            return False
        process.join()
        if kind == "done":
            self._done(seed, rest[0])
        elif kind == "stopped":
            display.line("; ".join((f"{title}: stopped", *rest[0])))
        else:
            error: RlpgError = rest[0](rest[1])
            for note in rest[2]:
                error.add_note(note)
            if self._is_refused(error):
                raise error
            self._failed(seed, error)
            if rest[3] is not None:
                self._done(seed, rest[3])
        return True

    def _done(self, seed: int, finished: Finished) -> None:
        self.finished[seed] = finished
        self._tell_done(seed, finished)

    def _failed(self, seed: int, error: RlpgError) -> None:
        self.errors[seed] = error
        self._tell_failed(seed, error)


def _pickled(training: Work) -> bytes:
    try:
        whole = pickle.dumps(training)
    except Exception as error:  # whatever the parts' own __reduce__ raises
        raise UsageError(
            f"jobs: expected parts that another process can import, got one that it cannot "
            f"({error}); define them in a module, or set jobs to 1"
        ) from error
    return whole


def _started(context: Any, whole: bytes, seed: int) -> tuple[Any, Connection]:
    """A process that trains with a seed, and the pipe to it."""
    ours, theirs = context.Pipe()
    process = context.Process(target=_process, args=(whole, seed, theirs), name=f"seed {seed}")
    # A signal that comes while the process imports torch must neither end it nor be lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return process, ours


def _tell(pipes: Iterator[Connection], number: int) -> None:
    for pipe in pipes:
        with suppress(OSError):  # it has ended
            pipe.send(number)


def _end(running: Sequence[tuple[Any, Connection]], patience: float) -> None:
    """Tell the processes once more to stop, and end those that do not."""
    _tell((pipe for _, pipe in running), signal.SIGINT)
    _tell((pipe for _, pipe in running), signal.SIGTERM)
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
    with suppress(OSError):
        os.setpgid(0, 0)  # the terminal's signals are for the parent
    threading.Thread(target=_obey, args=(pipe,), daemon=True).start()
    say: Callable[..., None] = lambda *message: _send(pipe, message)  # noqa: E731
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        training: Work = pickle.loads(whole)
        hooks = Hooks(
            on_log=lambda step, metrics: say("log", step, metrics),
            stop_at_return=training.stop_at_return,
            say=lambda text: say("line", text),
        )
        with _warnings_told(say):
            say("began")
            say("done", training.run(seed, hooks, quiet=True))
    except (KeyboardInterrupt, SystemExit) as stop:
        say("stopped", list(getattr(stop, "__notes__", ())))
    except RlpgError as error:
        run = getattr(error, "run", None)  # of a SaveError
        done = Finished(run.path, run.evaluation) if run is not None else None
        say("failed", type(error), str(error), list(getattr(error, "__notes__", ())), done)
    except Exception as error:
        traceback.print_exc()
        say("failed", TrainingError, f"{type(error).__name__}: {error}", [], None)


def _obey(pipe: Connection) -> None:
    """Take the parent's signals; its death is one."""
    while True:
        try:
            number = pipe.recv()
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)
            return
        os.kill(os.getpid(), number)


def _send(pipe: Connection, message: tuple[Any, ...]) -> None:
    with suppress(OSError):  # the parent has died
        pipe.send(message)


@contextmanager
def _warnings_told(say: Callable[..., None]) -> Iterator[None]:
    """Send what a user should know to the parent."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any) -> None:
        if issubclass(category, RlpgWarning):
            say("warning", str(message))
        else:
            usual(message, category, *where)

    with warnings.catch_warnings():
        warnings.simplefilter("always", RlpgWarning)
        warnings.showwarning = show  # type: ignore[assignment]  # what it does not need, it passes on
        yield

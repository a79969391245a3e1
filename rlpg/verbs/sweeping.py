"""A sweep: trials of other settings, chosen by Optuna, whose study is a file that processes share.

Each trial trains once per seed and counts as the mean of the evaluations after training. A trial
that falls behind the others is pruned at one of its evaluations. A trial whose process has died is
taken up by another process, from its checkpoints.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpg.engine.assembly import Hooks
from rlpg.errors import EstimatorError, FileError, SaveError, TrainingError, UsageError, decimals
from rlpg.runs import files
from rlpg.runs.logger import Logger
from rlpg.runs.recipe import LARGEST_FILE, Recipe, dumps, override
from rlpg.verbs import training
from rlpg.verbs.several import Finished, Training
from rlpg.verbs.spaces import Range, Space

NAME = "rlpg"  # of the study in its file
STARTUP_TRIALS = 10  # at random, before the sampler learns from them
ABOUT = "rlpg"  # attribute of the study that says what is swept


@dataclass(frozen=True, kw_only=True)
class Sweep(Training):
    """What all processes of a sweep have in common; `recipe` is what the trials do not change."""

    folder: Path  # holds `study.journal`, `trials/<number>/<seed>/`, `best.toml`, `importances.png`
    space: Space
    trials: int  # of all processes
    seeds: tuple[int, ...] = (0, 1, 2)  # of every trial

    def study(self) -> Any:
        """The study in the folder, made if there is none; UsageError where it is another sweep's,
        or cannot be locked, FileError where the file is not a study."""
        files.make_folder(self.folder)
        path = files.here() / self.folder / "study.journal"
        about = {
            "recipe": dumps(override(self.recipe, {"seed": 0})),
            "seeds": list(self.seeds),
            "space": {key: kind.as_data() for key, kind in self.space.items()},
        }
        with _quiet() as optuna:
            backend = optuna.storages.journal.JournalFileBackend(str(path), _Whole(path))
            try:
                study = optuna.create_study(
                    storage=optuna.storages.JournalStorage(backend),
                    study_name=NAME,
                    direction="maximize",
                    load_if_exists=True,
                    sampler=optuna.samplers.TPESampler(
                        n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True
                    ),
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS // 2),
                )
                with self._alone():
                    known = study.user_attrs.get(ABOUT)
                    if known is None and not study.trials:
                        study.set_user_attr(ABOUT, about)
                        known = about
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise FileError(f"{path}: expected the file of a study, got another") from error
        if known != about:
            raise UsageError(
                f"{path}: expected a study of the same environment, agent, settings, space and "
                "seeds, got one of others; choose another --sweep-dir"
            )
        return study

    def _alone(self) -> AbstractContextManager[object]:
        """Wait until no other process is here."""
        return files.lock(self.folder / "study.lock", wait=True)

    def run(self, seed: int, hooks: Hooks | None = None, *, quiet: bool) -> Finished:
        """Take trials until there are enough; `seed` numbers the processes of this machine."""
        study, hooks = self.study(), hooks or Hooks()
        while True:
            with ExitStack() as held:
                trial = self._take(study, held)
                if trial is None:
                    return Finished(self.folder, None)
                outcome = self._try(study, trial, hooks)
            hooks.say(f"trial {trial.number}: {outcome}")

    def _take(self, study: Any, held: ExitStack) -> Any:
        """A trial whose process has died, or a new one; what says that it is taken is held."""
        with _quiet() as optuna, self._alone():
            trials = study.get_trials(deepcopy=False)
            for found in trials:
                if found.state == optuna.trial.TrialState.RUNNING:
                    with suppress(UsageError):  # its process is alive
                        self._hold(found.number, held)
                        return optuna.trial.Trial(study, found._trial_id)
            if len(trials) >= self.trials:
                return None
            trial = study.ask()
            self._hold(trial.number, held)
            return trial

    def _hold(self, number: int, held: ExitStack) -> None:
        files.make_folder(self._trial_folder(number))  # who asked for the trial may have died then
        held.enter_context(files.lock(self._trial_folder(number) / "trial.lock"))

    def _trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"

    def _try(self, study: Any, trial: Any, hooks: Hooks) -> str:
        """One trial, to its end; what came of it."""
        with _quiet() as optuna:
            state = optuna.trial.TrialState
            chosen = {key: _suggested(trial, key, kind) for key, kind in self.space.items()}
        means: list[float] = []
        for seed in self.seeds:
            watch = Watch(trial, means, hooks)
            try:
                recipe = override(self.recipe, chosen)
                mean = self._train(trial.number, recipe, seed, watch)
            except (TrainingError, EstimatorError, UsageError) as error:
                if isinstance(error, SaveError) and error.run is None:  # stopped by a signal
                    raise
                self._tell(study, trial, state=state.FAIL)
                if isinstance(error, UsageError) and trial.number == 0:
                    raise
                return f"failed with seed {seed}: {error}"
            if watch.is_behind:
                self._tell(study, trial, state=state.PRUNED)
                return f"pruned with seed {seed}"
            means.append(mean)
        value = sum(means) / len(means)
        self._tell(study, trial, values=value)
        with self._alone():
            best = study.best_trial
            text = dumps(override(self.recipe, best.params))
            files.write(self.folder / "best.toml", text.encode())
        return f"{decimals(value)} (best {decimals(best.value)}, of trial {best.number})"

    def _tell(self, study: Any, trial: Any, **what: Any) -> None:
        with _quiet():
            study.tell(trial, **what)

    def _train(self, number: int, recipe: Recipe, seed: int, watch: Watch) -> float:
        """The mean return of one seed of a trial; where it has begun, it goes on."""
        folder = self._trial_folder(number) / str(seed)
        mean = None
        with suppress(FileError, ValueError, TypeError, KeyError):  # missing or damaged: it goes on
            done = json.loads(files.read(folder / "evaluation.json", limit=LARGEST_FILE))
            mean = float(done["mean"])
        if mean is not None:  # it was done when its process died
            watch.catch_up()
            return mean
        hooks = Hooks(watch.on_log, [watch], self.stop_at_return, began=watch.hooks.began)
        run = training.run_recipe(
            self.env, override(recipe, {"seed": seed}), folder, parts=self.parts, hooks=hooks,
            goes_on=True,
        )  # fmt: skip
        if run.evaluation is None:
            raise UsageError("env: expected one of which Gymnasium can make others, got one")
        return run.evaluation.mean

    def draw(self, study: Any) -> Path | None:
        """The picture of how much each setting matters; None without two finished trials of
        different returns."""
        with _quiet() as optuna:
            done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
            if len({trial.value for trial in done}) < 2:
                return None
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 0.6 + 0.35 * len(found)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(list(found)[::-1], list(found.values())[::-1])
        axes.set_xlabel(f"importance for reaching the best tenth of {len(done)} trials")
        path = self.folder / "importances.png"
        figure.savefig(path, dpi=120)
        return path


class _Whole:
    """The journal's lock, as Optuna takes it to write: what another process left half-written (it
    was killed, or the disk was full) is cut off first, or no line behind it could be read."""

    def __init__(self, path: Path) -> None:
        self._path, self._held = path, ExitStack()

    def acquire(self) -> bool:
        self._held.enter_context(files.lock(self._path.with_name("journal.lock"), wait=True))
        files.append(self._path, b"", position=sys.maxsize)  # cuts behind the last whole line
        return True

    def release(self) -> None:
        self._held.close()


class Watch(Logger):
    """A logger that reports evaluations to Optuna, and ends a run that is behind."""

    def __init__(self, trial: Any, before: list[float], hooks: Hooks) -> None:
        """`before`: what the trial's seeds before this one have reached; `hooks` hear the log."""
        self._trial, self._before, self.hooks = trial, before, hooks
        self.is_behind = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report the mean of the seeds before and of this one as it is now."""
        if "eval/mean_reward" not in metrics:
            return
        so_far = [*self._before, metrics["eval/mean_reward"]]
        with _quiet():
            self._trial.report(sum(so_far) / len(so_far), len(self._before) * 10**12 + step)
        self.catch_up()

    def catch_up(self) -> None:
        """See whether the trial is behind by what was reported so far."""
        with _quiet():
            self.is_behind = self.is_behind or self._trial.should_prune()

    def on_log(self, step: int, metrics: dict[str, float]) -> bool:
        """Whether to end the run."""
        if self.hooks.on_log is not None:
            self.hooks.on_log(step, metrics)
        return self.is_behind


def _suggested(trial: Any, key: str, kind: Range) -> Any:
    if kind.choices:
        return trial.suggest_categorical(key, list(kind.choices))
    if isinstance(kind.low, int) and isinstance(kind.high, int):
        return trial.suggest_int(key, kind.low, kind.high, log=kind.log)
    return trial.suggest_float(key, kind.low, kind.high, log=kind.log)


@contextmanager
def _quiet() -> Iterator[Any]:
    """Optuna, which says nothing but errors: the rest is about how it is used here."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield optuna

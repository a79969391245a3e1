"""What a run leaves on disk while it goes on: curves, checkpoints, the last and the best policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlpg.engine.device import device_of
from rlpg.engine.evaluator import Evaluation
from rlpg.engine.restore import to_arrays
from rlpg.policies import Policy
from rlpg.rollouts import Episodes
from rlpg.runs import files
from rlpg.runs.curves import Curves
from rlpg.runs.logger import Logger
from rlpg.runs.recipe import Recipe, dumps, flatten
from rlpg.runs.recorded import RECORDED
from rlpg.runs.run import RunFolder, versions
from rlpg.runs.saver import Saver
from rlpg.runs.store import Checkpoint, save_checkpoint, save_policy
from rlpg.runs.trees import to_json


class RunWriter:
    """The writing side of one run, whose lock is held. What the disk refuses is said once, and
    training goes on; what is missing at the end, `missing` says. The curves are cut at `saved`, the
    checkpoint that the run continues from; ValueError, LookupError where its state does not fit."""

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        warn: Callable[[str], None],
        saved: Checkpoint | None = None,
        loggers: Sequence[Logger] = (),
    ) -> None:
        self.folder, self.recipe = folder, recipe
        self.latest: dict[str, float] = {}  # each tag's last value
        # Mean return and step of the best evaluation.
        self.best: tuple[float, int] | None = None
        if saved is not None:
            best = saved.state["best"]
            self.best = None if best is None else (float(best[0]), int(best[1]))
            if saved.state["curves"]["step"] > saved.step:
                raise ValueError(f"curves.step: expected at most {saved.step}, got more")
        self._save = Saver(warn, folder.check)
        # Policies that the disk has refused: a best one may stay the best to the end.
        self._waiting: dict[Path, tuple[dict[str, Any], Any]] = {}
        self._versions = versions_now(recipe)
        self._curves = Curves(
            folder.place,
            env_id=recipe.environment.id,
            tensorboard=recipe.log.tensorboard,
            loggers=loggers,
            settings=_hyperparameters(recipe),
            texts={"recipe": dumps(recipe), "versions": to_json(self._versions).decode()},
            state=None if saved is None else saved.state["curves"],
            saver=self._save,
        )
        for lengths in self.evaluation_lengths():  # one array holds them all
            if len(lengths) != recipe.evaluation.episodes:
                raise ValueError(
                    f"evaluation.episodes: expected {len(lengths)}, as in the evaluations so far, "
                    f"got {recipe.evaluation.episodes}"
                )
        for file, rows in {} if saved is None else saved.state["curves"]["evaluations"].items():
            name = file.replace("evaluations", "eval")
            self.latest |= _means(name, rows["results"][-1], rows["ep_lengths"][-1])

    def episodes(self, episodes: Episodes) -> None:
        self._curves.episodes(episodes.returns, episodes.lengths)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.latest |= metrics
        self._curves.log(step, metrics)

    def histograms(self, step: int, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self._curves.histograms(step, values)

    def evaluated(self, step: int, policy: Policy, evaluations: Mapping[str, Evaluation]) -> None:
        """Evaluations during training, by name; the one called `eval` decides which is the best."""
        for name, evaluation in evaluations.items():
            file = name.replace("eval", "evaluations")
            self.log(step, _means(name, evaluation.returns, evaluation.lengths))
            self._curves.evaluation(step, evaluation.returns, evaluation.lengths, name=file)
        mean = evaluations["eval"].mean if "eval" in evaluations else None
        if mean is not None and (self.best is None or mean > self.best[0]):
            self.best = (mean, step)
            self.save_policy(self.folder.best_policy, step, policy, evaluations["eval"])

    def evaluation_lengths(self) -> list[np.ndarray[Any, Any]]:
        """Lengths of all episodes of each evaluation so far, `[episodes]` each."""
        return self._curves.evaluation_lengths()

    def checkpoint(self, step: int, state: Mapping[str, Any], policy: Policy) -> None:
        """A point to continue from, and the policy at that point."""
        own = {"best": self.best, "curves": self._curves.state_dict(), "recipe": told(self.recipe)}
        whole = to_arrays({**state, **own})
        save = partial(
            save_checkpoint,
            self.folder.checkpoints,
            step,
            whole,
            versions=self._versions,
            keep_last=self.recipe.checkpoint.keep_last,
            keep=() if self.best is None else (self.best[1],),
        )
        self._save(self.folder.checkpoints, save)
        self.save_policy(self.folder.policy, step, policy, None)

    def save_policy(
        self, folder: Path, step: int, policy: Policy, evaluation: Evaluation | None
    ) -> None:
        """The policy with all that is needed to use it elsewhere, and what waits for the disk."""
        environment = self.recipe.environment.values()
        description = {
            "policy": policy.describe(),
            "environment": {name: environment[name] for name in RECORDED},
            "training": {
                "agent": self.recipe.agent,
                "seed": self.recipe.seed,
                "steps": step,
                "evaluation": evaluation.summary() if evaluation else None,
            },
            "versions": self._versions,
        }
        self._waiting[folder] = (description, to_arrays(policy.state_dict()))
        self._save_waiting()

    def _save_waiting(self) -> None:
        for folder, (description, weights) in list(self._waiting.items()):
            if self._save(folder, partial(save_policy, folder, description, weights)):
                del self._waiting[folder]

    def finish(self, step: int, policy: Policy, evaluation: Evaluation | None) -> None:
        """The last policy and how good it is."""
        self.save_policy(self.folder.policy, step, policy, evaluation)
        if evaluation is not None:
            path = self.folder.place / "evaluation.json"
            content = to_json({**evaluation.summary(), "table": evaluation.table()})
            self._save(path, partial(files.write, path, content))

    def missing(self) -> str:
        """In one line what of the run is not on disk, and why; "" where nothing is missing."""
        return ", ".join(f"{name} ({reason})" for name, reason in self._save.missing.items())

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self._save_waiting()
        finally:
            self._curves.close()  # the curves are complete on disk, however the run ends
        if error is not None and (missing := self.missing()):
            error.add_note(f"not saved: {missing}")


class NoWriter(RunWriter):
    """What the ranks have that are not the first: nothing is written."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.latest: dict[str, float] = {}

    def _nothing(self, *arguments: object, **named: object) -> None: ...

    episodes = log = histograms = evaluated = checkpoint = finish = __exit__ = _nothing

    def evaluation_lengths(self) -> list[np.ndarray[Any, Any]]:
        return []

    def missing(self) -> str:
        return ""


def _means(
    name: str, returns: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]
) -> dict[str, float]:
    """What the curves say of an evaluation."""
    found = {"reward": returns.mean(), "ep_length": lengths.mean()}
    return {f"{name}/mean_{what}": float(mean) for what, mean in found.items()}


def _hyperparameters(recipe: Recipe) -> dict[str, Any]:
    """The settings that one compares runs by."""
    tables = ("environment.id", "policy.", "rollout.", "learner.")
    names = ("agent", "seed", "total_steps")
    return {
        key: value
        for key, value in flatten(recipe).items()
        if (key in names or key.startswith(tables)) and not isinstance(value, Mapping)
    }


def told(recipe: Recipe) -> dict[str, str]:
    """The settings that the bits of a run depend on, but for those that `resume` may change; the
    order of a table and the kind of a list, which a file does not keep, make no difference."""
    tables = ("agent", "seed", "environment.", "policy.", "rollout.", "learner.")
    free = ("environment.backend", "environment.num_workers", "environment.timeout")
    return {
        key: value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        for key, value in flatten(recipe).items()
        if key.startswith(tables) and key not in free
    }


def versions_now(recipe: Recipe) -> dict[str, str]:
    """All that the bits of a run depend on, besides its recipe."""
    capability = torch.backends.cpu.get_cpu_capability()
    found = {"torch threads": torch.get_num_threads(), "cpu capability": capability}
    device = device_of(recipe.device)
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return versions(found | gpu)


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One line for each version or setting that is no longer what it was."""
    names = sorted({*then, *now} - {"platform"})
    return [
        f"bits may differ: {name} was {then.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in names
        if then.get(name) != now.get(name)
    ]

"""What a run leaves on disk while it goes on: curves, checkpoints, the last and the best policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rlpg.evaluation import Evaluation
from rlpg.policies import Policy
from rlpg.restore import to_arrays
from rlpg.rollouts import Episodes
from rlpg.runs import files
from rlpg.runs.recipe import Recipe, dumps
from rlpg.runs.run import RunFolder, versions
from rlpg.runs.store import Checkpoint, save_checkpoint, save_policy
from rlpg.runs.trees import to_json
from rlpg.runs.writers import Writers

Figures = Mapping[str, float]


class Record:
    """The writing side of one run. What the disk refuses is said once; training goes on.

    Args:
        folder: the run's, whose lock is held.
        recipe: resolved.
        warn: is told what cannot be written.
        saved: the checkpoint the run continues from; the curves are cut there.

    Raises:
        FileError, ValueError, LookupError: the checkpoint's state is not that of a run's writer.
    """

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        warn: Callable[[str], None],
        saved: Checkpoint | None = None,
    ) -> None:
        self.folder, self.recipe = folder, recipe
        self.latest: dict[str, float] = {}  # every tag's last figure
        # Mean return and step of the best evaluation.
        self.best: tuple[float, int] | None = None
        if saved is not None:
            match saved.state["best"]:
                case None | (float(), int()) as best:
                    self.best = best
                case other:
                    raise ValueError(f"best: expected a mean return and a step, got {other!r:.80}")
            if saved.state["curves"]["step"] > saved.step:
                raise ValueError(f"curves.step: expected at most {saved.step}, got more")
        self._warn = warn
        # Policies that the disk has refused: a best one may stay the best to the end.
        self._waiting: dict[Path, tuple[int, dict[str, Any], Any]] = {}
        self._told: set[Path] = set()  # of these it was said that they cannot be saved
        self._failing: dict[Path, int] = {}  # what could not be saved, and since which step
        self._versions = versions_now()
        self._curves = Writers(
            folder.path,
            env_id=recipe.environment.id,
            tensorboard=recipe.log.tensorboard,
            texts={"recipe": dumps(recipe), "versions": to_json(self._versions).decode()},
            state=None if saved is None else saved.state["curves"],
            warn=warn,
        )

    def episodes(self, episodes: Episodes) -> None:
        """Training episodes that ended."""
        self._curves.episodes(episodes.returns, episodes.lengths)

    def scalars(self, step: int, figures: Figures) -> None:
        """Points of the curves at an environment step."""
        self.latest |= figures
        self._curves.scalars(step, figures)

    def evaluated(self, step: int, policy: Policy, evaluations: Mapping[str, Evaluation]) -> None:
        """Evaluations during training, by name; the one called `eval` decides which is the best."""
        for name, evaluation in evaluations.items():
            lengths = {f"{name}/mean_ep_length": float(evaluation.lengths.mean())}
            self.scalars(step, {f"{name}/mean_reward": evaluation.mean, **lengths})
            file = "evaluations" if name == "eval" else f"evaluations_{name.removeprefix('eval_')}"
            self._curves.evaluation(step, evaluation.returns, evaluation.lengths, name=file)
        mean = evaluations["eval"].mean if "eval" in evaluations else None
        if mean is not None and (self.best is None or mean > self.best[0]):
            self.best = (mean, step)
            self.save_policy(self.folder.best_policy, step, policy, evaluations["eval"])

    def checkpoint(self, step: int, state: Mapping[str, Any], policy: Policy) -> None:
        """A point to continue from, and the policy at that point."""
        whole = {**state, "best": self.best, "curves": self._curves.state_dict()}
        try:
            save_checkpoint(
                self.folder.checkpoints,
                step,
                to_arrays(whole),
                versions=self._versions,
                keep_last=self.recipe.checkpoint.keep_last,
                keep=() if self.best is None else (self.best[1],),
            )
        except OSError as error:
            self._refused(self.folder.checkpoints, step, error)
        else:
            self._failing.pop(self.folder.checkpoints, None)
        self.save_policy(self.folder.policy, step, policy, None)

    def save_policy(
        self, folder: Path, step: int, policy: Policy, evaluation: Evaluation | None
    ) -> None:
        """The policy with all that is needed to use it elsewhere, and what waits for the disk."""
        settings = self.recipe.environment
        description = {
            "policy": policy.describe(),
            "environment": {
                "id": settings.id,
                "kwargs": settings.kwargs,
                "max_episode_steps": settings.max_episode_steps,
                "episode_cap": settings.episode_cap,
            },
            "training": {
                "agent": self.recipe.agent,
                "seed": self.recipe.seed,
                "steps": step,
                "evaluation": evaluation.summary() if evaluation else None,
            },
            "versions": self._versions,
        }
        self._waiting[folder] = (step, description, to_arrays(policy.state_dict()))
        for place, (since, *content) in list(self._waiting.items()):
            try:
                save_policy(place, *content)
            except OSError as error:
                self._refused(place, since, error)
            else:
                self._failing.pop(place, None)
                del self._waiting[place]

    def _refused(self, what: Path, step: int, error: OSError) -> None:
        """Say so once, not at every attempt; what is still missing at the end is said then."""
        if what not in self._told:
            self._told.add(what)
            self._warn(f"{what}: not saved at step {step} ({error.strerror}); training goes on")
        self._failing.setdefault(what, step)

    def finish(self, step: int, policy: Policy, evaluation: Evaluation | None) -> None:
        """The last policy and how good it is."""
        self.save_policy(self.folder.policy, step, policy, evaluation)
        if evaluation is not None:
            content = {**evaluation.summary(), "table": evaluation.table()}
            try:
                files.write(self.folder.path / "evaluation.json", to_json(content))
            except OSError as error:
                self._warn(f"evaluation.json: not saved ({error})")

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *error: object) -> None:
        for what, step in self._failing.items():
            self._warn(f"{what}: nothing was saved there from step {step} on")
        self._curves.close()  # the curves are complete on disk, however the run ends


def versions_now() -> dict[str, str]:
    """All that the bits of a run depend on, besides its recipe."""
    capability = torch.backends.cpu.get_cpu_capability()
    return versions({"torch threads": torch.get_num_threads(), "cpu capability": capability})


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One line for each version that is no longer what it was."""
    names = sorted({*then, *now} - {"platform"})
    return [
        f"bits may differ: {name} was {then.get(name, 'absent')}, is {now.get(name, 'absent')}"
        for name in names
        if then.get(name) != now.get(name)
    ]

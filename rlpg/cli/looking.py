"""The verbs that look at something: plot, diagnose, check-env."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from rlpg.cli.verb import (
    EnvironmentId,
    File,
    Number,
    Playing,
    RunFolder,
    Telling,
    Verb,
    WithEnvironment,
    check_file,
)
from rlpg.errors import UsageError
from rlpg.runs.recipe import Device
from rlpg.settings import Natural

FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True, kw_only=True)
class Plot(Verb):
    """Draw the curves of runs, several seeds as one.

    Runs of the same environment and agent become one curve: the interquartile mean over its seeds,
    with a 95 % bootstrap interval (Agarwal et al. 2021). Environments become a grid. Without
    --output the curves are drawn as text. Runs of Stable-Baselines3 are read too: folders with
    evaluations.npz or monitor.csv.

    examples:
      rlpg plot runs/CartPole-v1
      rlpg plot runs --output curves.png --x time
      rlpg plot runs --kind improvement
      rlpg plot runs/Hopper-v5 --metric train/entropy --by learner.entropy_coef
    """

    positional: ClassVar[str] = "runs"
    bare: ClassVar[Mapping[str, str]] = {"output": "curves.png"}

    runs: Annotated[tuple[Path, ...], Meta(title="RUN|FOLDER...")] = ()
    """runs, and folders with runs in them"""
    output: File | None = None
    """draw to this file, png, svg or pdf; without FILE to curves.png"""
    metric: Annotated[str, Meta(title="TAG")] | None = None
    """what is drawn (none: eval/mean_reward, or rollout/ep_rew_mean where runs lack evaluations)"""
    x: Literal["steps", "time"] = "steps"
    """over environment steps, or over seconds of training"""
    kind: Literal["curves", "profiles", "improvement"] = "curves"
    """curves; profiles: the share of runs above each score; improvement: the probability that one
    agent's run is better than another's"""
    by: Annotated[str, Meta(title="agent|folder|SETTING")] = "agent"
    """what tells curves of one environment apart"""

    def check(self) -> None:
        if self.output is not None and self.output.suffix.lower()[1:] not in FORMATS:
            raise UsageError(
                f"--output: expected a file that ends in .{', .'.join(FORMATS)}, got {self.output}"
            )
        check_file("--output", self.output, "matplotlib", "plot")

    def run(self) -> int:
        from rlpg.verbs import plotting

        compared = plotting.compare(self.runs, metric=self.metric, axis=self.x, by=self.by)
        for note in compared.notes:
            print(f"note: {note}", file=sys.stderr)
        if self.kind == "improvement":
            print(plotting.improvement_table(compared))
        else:
            if self.output is None:
                print(plotting.chart(compared), end="\n\n")
            print(plotting.table(compared))
        if self.output is not None:
            plotting.draw(compared, self.output, self.kind)
            print(f"drawn to {self.output}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Diagnose(Playing):
    """Measure a run's gradient: which baseline, which batch size.

    It measures the policy gradient at the run's newest checkpoint, by every baseline: noise, bias,
    and the batch size at which signal and noise are equally strong.

    example: rlpg diagnose runs/CartPole-v1/reinforce/0 --plot gradient.png
    """

    positional: ClassVar[str] = "run_path"
    work: ClassVar[str] = "rlpg.verbs.diagnosis"

    run_path: RunFolder = Path()
    """the run's folder"""
    episodes: Number = 256
    """number of episodes to measure with"""
    device: Device = "cpu"
    """where the networks are"""
    plot: File | None = None
    """draw the table to this file"""

    def check(self) -> None:
        super().check()
        check_file("--plot", self.plot, "matplotlib", "plot")

    def run(self) -> int:
        from rlpg.policies.references import UserParts
        from rlpg.verbs import diagnosis

        found = diagnosis.diagnose(
            self.run_path, env=self.env, env_kwargs=self.kwargs, episodes=self.episodes,
            seed=self.seed, device=self.device,
            parts=UserParts(import_modules=self.import_modules),
        )  # fmt: skip
        try:
            if self.plot is not None:
                diagnosis.plot(found, self.plot)
        finally:
            self.tell(found.as_dict(), found)
        return 0


@dataclass(frozen=True, kw_only=True)
class CheckEnv(WithEnvironment, Telling):
    """Find what is wrong with an environment before training on it.

    It plays the environment with random actions, looks at every call, plays episodes again, and
    asks Gymnasium's checker. The exit code is 1 if there is a fault; a warning is no fault.
    --environment.kwargs.NAME VALUE sets a keyword argument of the environment.

    examples:
      rlpg check-env CartPole-v1
      rlpg check-env my_package.tasks:Crane-v0 --environment.kwargs.load 3 --json crane.json
    """

    positional: ClassVar[str] = "env"
    work: ClassVar[str] = "rlpg.checks.checking"

    env: EnvironmentId = ""
    """a Gymnasium id, or module:Id-v0"""
    steps: Number = 1000
    """play at least so many steps"""
    episodes: Number = 3
    """and at least so many episodes"""
    seed: Natural = 0
    """seed of the episodes and the actions"""

    def run(self) -> int:
        from rlpg.checks.checking import check_env
        from rlpg.runs.files import staying

        with staying():
            found = check_env(
                self.env, env_kwargs=self.kwargs, steps=self.steps, episodes=self.episodes,
                seed=self.seed,
            )  # fmt: skip
        self.tell(found.as_dict(), found)
        return 0 if found.passed else 1

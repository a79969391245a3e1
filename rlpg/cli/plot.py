"""`rlpg plot RUN|FOLDER...`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from rlpg.cli.verb import File, Verb, check_extra, check_folder
from rlpg.errors import UsageError

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
    bare: ClassVar[Mapping[str, str]] = MappingProxyType({"output": "curves.png"})

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
        check_folder("--output", self.output)
        if self.output is not None:
            if self.output.suffix.lower()[1:] not in FORMATS:
                raise UsageError(
                    f"--output: expected a file that ends in .{', .'.join(FORMATS)}, got "
                    f"{self.output}"
                )
            check_extra("--output", "matplotlib", "plot")

    def run(self) -> int:
        """Draw, and print what the curves end at."""
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

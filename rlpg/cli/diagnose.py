"""`rlpg diagnose RUN`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rlpg.cli.verb import File, Number, Playing, RunFolder, check_extra, check_folder


@dataclass(frozen=True, kw_only=True)
class Diagnose(Playing):
    """Measure a run's gradient: which baseline, which batch size.

    It measures the policy gradient at the run's newest checkpoint, by every baseline: noise, bias,
    and the batch size at which signal and noise are equally strong.

    example: rlpg diagnose runs/CartPole-v1/reinforce/0 --plot gradient.png
    """

    positional: ClassVar[str] = "run_path"

    run_path: RunFolder = Path()
    """the run's folder"""
    episodes: Number = 256
    """number of episodes to measure with"""
    plot: File | None = None
    """draw the table to this file"""

    def check(self) -> None:
        super().check()
        check_folder("--plot", self.plot)
        if self.plot is not None:
            check_extra("--plot", "matplotlib", "plot")

    def run(self) -> int:
        """Print the table; write and draw it on request."""
        from rlpg.policies.references import UserParts
        from rlpg.verbs import diagnosis

        found = diagnosis.diagnose(
            self.run_path,
            env=self.env,
            env_kwargs=self.kwargs,
            episodes=self.episodes,
            seed=self.seed,
            parts=UserParts(import_modules=self.import_modules),
        )
        self.write(found.as_dict())
        if self.plot is not None:
            diagnosis.plot(found, self.plot)
        print(found)
        return 0

"""`rlpg evaluate RUN|AGENT`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar

from msgspec import Meta

from rlpg.cli.verb import File, Playing, check_extra, check_folder
from rlpg.settings import Size


@dataclass(frozen=True, kw_only=True)
class Evaluate(Playing):
    """Evaluate a saved policy.

    It plays whole episodes, each a function of --seed, and prints the mean return.

    examples:
      rlpg evaluate runs/CartPole-v1/reinforce/0 --episodes 100
      rlpg evaluate CartPole-v1-reinforce --stochastic --json result.json
    """

    positional: ClassVar[str] = "source"
    bare: ClassVar[Mapping[str, str]] = MappingProxyType({"video": "episode.mp4"})

    source: Annotated[str, Meta(title="RUN|AGENT")] = ""
    """a run, a policy folder, or the name of a shipped agent"""
    stochastic: bool = False
    """sample actions instead of the most likely category, or the center of a Gaussian"""
    best: bool = False
    """a run's best policy instead of its last"""
    num_envs: Size | None = None
    """copies side by side (none: as many as episodes, at most 64)"""
    video: File | None = None
    """film one episode more; without FILE as episode.mp4"""

    def check(self) -> None:
        super().check()
        check_folder("--video", self.video)
        if self.video is not None:
            check_extra("--video", "imageio_ffmpeg", "video")

    def run(self) -> int:
        """Evaluate and print one line."""
        from rlpg.verbs.evaluation import evaluate_saved

        saved = self.load(self.source, is_best=self.best)
        evaluation = evaluate_saved(
            saved,
            env=self.env,
            env_kwargs=self.kwargs,
            episodes=self.episodes,
            seed=self.seed,
            deterministic=not self.stochastic,
            num_envs=self.num_envs,
        )
        name = self.env or saved.environment["id"]
        print(evaluation.environments, file=sys.stderr)
        summary = {"env": name, "seed": self.seed, **evaluation.summary()}
        self.write({**summary, "table": evaluation.table()})
        print(f"{name}: {evaluation}")
        if self.video is not None:
            from rlpg.verbs.video import film

            played = film(
                saved,
                self.video,
                env=self.env,
                env_kwargs=self.kwargs,
                seed=self.seed,
                deterministic=not self.stochastic,
            )
            print(f"filmed {self.video}: {played.lengths[0]} steps, return {played.mean:.2f}")
        return 0

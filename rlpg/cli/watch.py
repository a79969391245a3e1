"""`rlpg watch RUN|AGENT`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from rlpg.cli.verb import Number, Playing


@dataclass(frozen=True, kw_only=True)
class Watch(Playing):
    """Watch a saved policy play, in a window.

    Without a display `rlpg evaluate RUN --video` films an episode instead.

    example: rlpg watch runs/CartPole-v1/reinforce/0 --episodes 3
    """

    positional: ClassVar[str] = "source"

    source: Annotated[str, Meta(title="RUN|AGENT")] = ""
    """a run, a policy folder, or the name of a shipped agent"""
    episodes: Number = 1
    """number of episodes"""
    stochastic: bool = False
    """sample actions instead of the most likely category, or the center of a Gaussian"""
    best: bool = False
    """a run's best policy instead of its last"""

    def run(self) -> int:
        """Play, and print one line."""
        from rlpg.verbs.video import watch

        saved = self.load(self.source, is_best=self.best)
        played = watch(
            saved,
            env=self.env,
            env_kwargs=self.kwargs,
            episodes=self.episodes,
            seed=self.seed,
            deterministic=not self.stochastic,
        )
        self.write({**played.summary(), "table": played.table()})
        print(f"{self.env or saved.environment['id']}: {played}")
        return 0

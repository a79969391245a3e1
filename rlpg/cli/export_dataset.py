"""`rlpg export-dataset RUN|AGENT --name NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from rlpg.cli.verb import Playing, check_extra


@dataclass(frozen=True, kw_only=True)
class ExportDataset(Playing):
    """Keep episodes of a saved policy as a Minari dataset.

    example: rlpg export-dataset runs/CartPole-v1/ppo/0 --name cartpole/ppo-v0 --episodes 50
    """

    positional: ClassVar[str] = "source"

    source: Annotated[str, Meta(title="RUN|AGENT")] = ""
    """a run, a policy folder, or the name of a shipped agent"""
    name: Annotated[str, Meta(title="NAME")] = "rlpg/episodes-v0"
    """of the dataset; the folder is Minari's own, MINARI_DATASETS_PATH"""
    deterministic: bool = False
    """take the most likely category, or the center of a Gaussian, instead of sampling"""
    best: bool = False
    """a run's best policy instead of its last"""

    def run(self) -> int:
        """Play, keep, and print one line."""
        check_extra("export-dataset", "minari", "minari")
        check_extra("export-dataset", "h5py", "minari")
        from rlpg.verbs.dataset import write_dataset

        saved = self.load(self.source, is_best=self.best)
        played = write_dataset(
            saved,
            self.name,
            env=self.env,
            env_kwargs=self.kwargs,
            episodes=self.episodes,
            seed=self.seed,
            deterministic=self.deterministic,
        )
        self.write({**played.summary(), "table": played.table()})
        print(f"{self.name}: {played.short}, {int(played.lengths.sum())} steps")
        return 0

"""`rlpg card RUN|AGENT --output DIR`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from rlpg.cli.streams import quoted, report
from rlpg.cli.verb import Folder, Importing, check_extra


@dataclass(frozen=True, kw_only=True)
class Card(Importing):
    """Write a folder that can be uploaded to the Hugging Face Hub.

    It has the policy, the recipe, and a README.md with front matter and results.

    example: rlpg card runs/CartPole-v1/ppo/0 --output CartPole-v1-ppo --video
    """

    positional: ClassVar[str] = "source"

    source: Annotated[str, Meta(title="RUN|AGENT")] = ""
    """a run, a policy folder, or the name of a shipped agent"""
    output: Folder = Path("card")
    """the folder, new or empty"""
    best: bool = False
    """a run's best policy instead of its last"""
    video: bool = False
    """film an episode, too"""

    def check(self) -> None:
        if self.video:
            check_extra("--video", "imageio_ffmpeg", "video")

    def run(self) -> int:
        """Write the folder."""
        from rlpg.verbs.card import write_card

        saved = self.load(self.source, is_best=self.best)
        write_card(saved, self.output, has_video=self.video)
        report(f"written to {quoted(self.output)}")
        return 0

"""The verbs for saved policies: agents, evaluate, watch, card, export, export-dataset."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from rlpg.cli.streams import quoted, report
from rlpg.cli.verb import (
    STDOUT,
    File,
    Folder,
    Importing,
    Number,
    Playing,
    Verb,
    check_extra,
    check_file,
)
from rlpg.errors import decimals
from rlpg.runs.recipe import Device
from rlpg.settings import Size

if TYPE_CHECKING:
    from rlpg.engine.evaluator import Evaluation
    from rlpg.engine.loading import Saved


@dataclass(frozen=True, kw_only=True)
class Agents(Verb):
    """List the trained agents that come with the library, and what they reach.

    example: rlpg evaluate CartPole-v1-reinforce
    """

    def run(self) -> int:
        from rlpg.engine.shipped import shipped_results

        for name, results in shipped_results():
            print(f"{name:42} {results}")
        return 0


@dataclass(frozen=True, kw_only=True)
class OfPolicy(Importing):
    """A verb for a saved policy."""

    positional: ClassVar[str] = "source"
    work: ClassVar[str] = "rlpg.engine.loading"

    source: Annotated[Path, Meta(title="RUN|AGENT")] = Path()
    """a run, a policy folder, or the name of a shipped agent"""
    best: bool = False
    """a run's best policy instead of its last"""

    def load(self) -> Saved:
        from rlpg.engine.loading import load_saved
        from rlpg.policies.references import UserParts

        parts = UserParts(import_modules=self.import_modules)
        return load_saved(self.source, "best" if self.best else "last", parts)


@dataclass(frozen=True, kw_only=True)
class PlayingPolicy(Playing, OfPolicy):
    """A verb that plays episodes with a saved policy."""

    def how(self, *, deterministic: bool) -> dict[str, Any]:
        """What to play on, and how."""
        return {
            "env": self.env, "env_kwargs": self.kwargs, "seed": self.seed,
            "deterministic": deterministic,
        }  # fmt: skip

    def tell_played(self, played: Evaluation, words: str, **more: object) -> None:
        """In words the figures; as JSON the episodes, too."""
        self.tell({**more, **played.summary(), "table": played.table()}, words)


@dataclass(frozen=True, kw_only=True)
class Evaluate(PlayingPolicy):
    """Evaluate a saved policy.

    It plays whole episodes, each a function of --seed, and prints the mean return.

    examples:
      rlpg evaluate runs/CartPole-v1/reinforce/0 --episodes 100
      rlpg evaluate CartPole-v1-reinforce --stochastic --json result.json
    """

    bare: ClassVar[Mapping[str, str]] = {**Playing.bare, "video": "episode.mp4"}
    work: ClassVar[str] = "rlpg.verbs.evaluation"

    stochastic: bool = False
    """sample actions instead of the most likely category, or the center of a Gaussian"""
    num_envs: Size | None = None
    """copies side by side (none: as many as episodes, at most 64)"""
    device: Device = "cpu"
    """where the policy is"""
    video: File | None = None
    """film one episode more; without FILE as episode.mp4"""

    def check(self) -> None:
        super().check()
        check_file("--video", self.video, "imageio_ffmpeg", "video")

    def run(self) -> int:
        from rlpg.engine.device import device_of
        from rlpg.verbs.evaluation import evaluate_saved

        saved = self.load()
        saved.policy.to(device_of(self.device))
        how = self.how(deterministic=not self.stochastic)
        found = evaluate_saved(saved, episodes=self.episodes, num_envs=self.num_envs, **how)
        name = self.env or saved.environment["id"]
        print(found.environments, file=sys.stderr)
        self.tell_played(found, f"{name}: {found}", env=name, seed=self.seed)
        if self.video is not None:
            from rlpg.verbs.video import film

            played = film(saved, self.video, **how)
            told = f"filmed {self.video}: {played.lengths[0]} steps, return {decimals(played.mean)}"
            print(told, file=sys.stderr if self.json == STDOUT else sys.stdout)
        return 0


@dataclass(frozen=True, kw_only=True)
class Watch(PlayingPolicy):
    """Watch a saved policy play, in a window.

    Without a display `rlpg evaluate RUN --video` films an episode instead.

    example: rlpg watch runs/CartPole-v1/reinforce/0 --episodes 3
    """

    episodes: Number = 1
    """number of episodes"""
    stochastic: bool = False
    """sample actions instead of the most likely category, or the center of a Gaussian"""

    def run(self) -> int:
        from rlpg.verbs.video import watch

        saved, how = self.load(), self.how(deterministic=not self.stochastic)
        played = watch(saved, episodes=self.episodes, **how)
        self.tell_played(played, f"{self.env or saved.environment['id']}: {played}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Card(OfPolicy):
    """Write a folder that can be uploaded to the Hugging Face Hub.

    It has the policy, the recipe, and a README.md with front matter and results.

    example: rlpg card runs/CartPole-v1/ppo/0 --output CartPole-v1-ppo --video
    """

    output: Folder = Path("card")
    """the folder, new or empty"""
    video: bool = False
    """film an episode, too"""

    def check(self) -> None:
        if self.video:
            check_extra("--video", "imageio_ffmpeg", "video")

    def run(self) -> int:
        from rlpg.verbs.card import write_card

        write_card(self.load(), self.output, has_video=self.video)
        report(f"written to {quoted(self.output)}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Export(OfPolicy):
    """Write a policy as an ONNX file that acts without rlpg.

    Normalizer, network, memory and the way to the environment's action are in one graph, which is
    compared with the policy before it is written.

    examples:
      rlpg export runs/CartPole-v1/reinforce/0 --onnx policy.onnx
      rlpg export CartPole-v1-reinforce --stochastic
    """

    onnx: File = Path("policy.onnx")
    """the file"""
    stochastic: bool = False
    """the file samples actions, from uniform random numbers that it is given"""

    def check(self) -> None:
        check_file("--onnx", self.onnx)

    def run(self) -> int:
        for module in ("onnx", "onnxscript", "onnxruntime"):
            check_extra("--onnx", module, "onnx")
        from rlpg.verbs.export import Acting, to_onnx

        policy, deterministic = self.load().policy, not self.stochastic
        difference = to_onnx(policy, self.onnx, deterministic=deterministic)
        acting = Acting(policy, deterministic=deterministic)
        print(f"inputs {', '.join(acting.input_names)}; outputs {', '.join(acting.output_names)}")
        print(f"exported to {self.onnx}: differs from the policy by at most {difference:.1e}")
        return 0


@dataclass(frozen=True, kw_only=True)
class ExportDataset(PlayingPolicy):
    """Keep episodes of a saved policy as a Minari dataset.

    example: rlpg export-dataset runs/CartPole-v1/ppo/0 --name cartpole/ppo-v0 --episodes 50
    """

    name: Annotated[str, Meta(title="NAME")] = "rlpg/episodes-v0"
    """of the dataset; the folder is Minari's own, MINARI_DATASETS_PATH"""
    deterministic: bool = False
    """take the most likely category, or the center of a Gaussian, instead of sampling"""

    def run(self) -> int:
        check_extra("export-dataset", "minari", "minari")
        check_extra("export-dataset", "h5py", "minari")
        from rlpg.verbs.dataset import write_dataset

        how = self.how(deterministic=self.deterministic)
        played = write_dataset(self.load(), self.name, episodes=self.episodes, **how)
        told = f"{self.name}: {played.short}, {int(played.lengths.sum())} steps"
        self.tell_played(played, told)
        return 0

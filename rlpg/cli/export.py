"""`rlpg export RUN|AGENT`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from rlpg.cli.verb import File, Importing, check_extra, check_folder


@dataclass(frozen=True, kw_only=True)
class Export(Importing):
    """Write a policy as an ONNX file that acts without rlpg.

    Normalizer, network, memory and the way to the environment's action are in one graph, which is
    compared with the policy before it is written.

    examples:
      rlpg export runs/CartPole-v1/reinforce/0 --onnx policy.onnx
      rlpg export CartPole-v1-reinforce --stochastic
    """

    positional: ClassVar[str] = "source"

    source: Annotated[str, Meta(title="RUN|AGENT")] = ""
    """a run, a policy folder, or the name of a shipped agent"""
    onnx: File = Path("policy.onnx")
    """the file"""
    stochastic: bool = False
    """the file samples actions, from uniform random numbers that it is given"""
    best: bool = False
    """a run's best policy instead of its last"""

    def check(self) -> None:
        check_folder("--onnx", self.onnx)

    def run(self) -> int:
        """Export, and say what goes in and comes out."""
        for module in ("onnx", "onnxscript", "onnxruntime"):
            check_extra("--onnx", module, "onnx")
        from rlpg.verbs.export import Acting, to_onnx

        saved = self.load(self.source, is_best=self.best)
        difference = to_onnx(saved.policy, self.onnx, deterministic=not self.stochastic)
        acting = Acting(saved.policy, deterministic=not self.stochastic)
        print(f"inputs {', '.join(acting.input_names)}; outputs {', '.join(acting.output_names)}")
        print(f"exported to {self.onnx}: differs from the policy by at most {difference:.1e}")
        return 0

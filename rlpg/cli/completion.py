"""`rlpg completion SHELL`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlpg.cli.verb import Verb


@dataclass(frozen=True, kw_only=True)
class Completion(Verb):
    """Print what a shell needs to complete verbs and options.

    examples:
      rlpg completion bash > ~/.local/share/bash-completion/completions/rlpg
      rlpg completion zsh > ~/.zfunc/_rlpg
      rlpg completion fish > ~/.config/fish/completions/rlpg.fish
    """

    positional: ClassVar[str] = "shell"

    shell: Literal["bash", "zsh", "fish"] = "bash"
    """the shell"""

    def run(self) -> int:
        from rlpg.cli import VERBS, verb_class
        from rlpg.cli.help import completion

        print(completion({name: verb_class(name) for name in VERBS}, self.shell))
        return 0

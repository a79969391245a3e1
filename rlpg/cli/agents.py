"""`rlpg agents`."""

from __future__ import annotations

from dataclasses import dataclass

from rlpg.cli.verb import Verb


@dataclass(frozen=True, kw_only=True)
class Agents(Verb):
    """List the trained agents that come with the library, and what they reach.

    example: rlpg evaluate CartPole-v1-reinforce
    """

    def run(self) -> int:
        """One line per shipped agent."""
        from rlpg.engine.shipped import shipped_results

        for name, results in shipped_results():
            print(f"{name:42} {results}")
        return 0

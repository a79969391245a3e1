"""`rlpg train ENV`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Annotated, ClassVar

from msgspec import Meta

from rlpg.cli.streams import report
from rlpg.cli.verb import Environment, Folder, Verb
from rlpg.cli.words import Given
from rlpg.errors import UsageError
from rlpg.learners.settings import AGENTS, LearnerSettings
from rlpg.runs.recipe import Recipe, override
from rlpg.settings import Natural


@dataclass(frozen=True, kw_only=True)
class Train(Verb):
    """Train an agent.

    Settings come from the defaults of the agent, the recipe (shipped for some environments, or
    --recipe), and the options, in this order. The values shown are those that would be used.

    examples:
      rlpg train CartPole-v1
      rlpg train LunarLander-v3 --seeds 0 1 2 --total-steps 1_000_000
      rlpg train FrozenLake-v1 --environment.kwargs.is_slippery false --learner.gamma 0.9
    """

    positional: ClassVar[str] = "env"
    aliases: ClassVar[Mapping[str, str]] = MappingProxyType({"backend": "environment.backend"})
    free: ClassVar[tuple[str, ...]] = ("environment.kwargs", "policy.kwargs", "policy.network_kwargs")

    env: Environment = ""
    """a Gymnasium id, or module:Id-v0"""
    recipe: Annotated[str, Meta(title="FILE")] | None = None
    """a TOML recipe; `default`: the defaults of the agent, not even the shipped recipe"""
    seeds: tuple[Natural, ...] | None = None
    """train once with each of these seeds"""
    run_dir: Folder | None = None
    """where the run is kept (none: runs/ENV/AGENT/SEED)"""
    quiet: bool = False
    """print the result only"""
    settings: Recipe = field(default_factory=Recipe)
    """the settings of the run"""

    @classmethod
    def prepared(cls, given: Given) -> Train:
        """With the recipe that would be used, before the options."""
        env, agent = given.options.get("env") or "", given.options.get("agent")
        if given.options.get("seed") is not None and "seeds" in given.options:
            raise UsageError("--seeds: expected either --seed or --seeds, got both")
        resolve = None
        if given.is_help:
            from rlpg.runs.shipped import recipe_for
        base = _recipe(env, agent, given)
        changes = dict(given.entries)
        for key in ("environment.id", *cls.free):
            changes |= {key: text} if (text := given.options.get(key)) is not None else {}
        return cls(settings=override(base, changes))

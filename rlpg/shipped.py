"""The agents that come with the library, and the recipe that a run begins with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from statistics import median

from rlpg.learners.settings import AGENTS
from rlpg.runs.recipe import Recipe, Resolve, load_recipe, override
from rlpg.runs.run import safe_name
from rlpg.settings import kinds, validated

DEFAULT_AGENT = "reinforce"


def recipe_for(
    env_id: str, agent: str | None, recipe: str | Path | Recipe | None, resolve: Resolve | None
) -> Recipe:
    """The recipe before overrides, with the environment's id and the agent's name in it.

    Args:
        agent: a name of `AGENTS`, or `module:Class`. None: the recipe's.
        recipe: one, or its file. None: the one shipped for this environment, or the defaults.
            `"default"`: the defaults.
        resolve: the settings of a learner of one's own.
    """
    if agent is not None:
        agent = str(validated("agent", agent, kinds(Recipe)["agent"]))
    settings = resolve(agent) if resolve and agent and agent not in AGENTS else None
    if isinstance(recipe, Recipe):
        base = recipe if agent is None else override(recipe, {"agent": agent}, settings)
    elif recipe is None or recipe == "default":
        shipped = None if recipe else shipped_recipe(env_id, agent or DEFAULT_AGENT)
        base = shipped or Recipe.of(agent or DEFAULT_AGENT, settings)
    else:
        base = load_recipe(recipe, agent=agent, resolve=resolve)
    return override(base, {"environment.id": env_id})


def shipped_folder(name: str) -> Path:
    """Where the shipped agent of that name lies."""
    return Path(str(resources.files("rlpg.agents"))) / name


def shipped_agents() -> list[str]:
    """Names of the agents that come with the library: `<environment>-<learner>`."""
    return sorted(path.parent.name for path in shipped_folder("").glob("*/recipe.toml"))


def shipped_recipe(env_id: str, agent: str) -> Recipe | None:
    """The recipe that comes with the library for this environment and learner, if there is one."""
    bare = env_id.rpartition("(")[2].rstrip(")")  # of an object like Wrapper(id)
    name = f"{safe_name(bare.rpartition(':')[2])}-{agent}"
    return load_recipe(shipped_folder(name) / "recipe.toml") if name in shipped_agents() else None


def latest_shipped(env_id: str, agent: str) -> str:
    """The id with the version of the shipped agent, where it has none; nothing is imported."""
    start = safe_name(env_id.rpartition(":")[2])
    pattern = re.compile(rf"{re.escape(start)}(-v\d+)-{re.escape(agent)}")
    versions = [found[1] for name in shipped_agents() if (found := pattern.fullmatch(name))]
    return env_id + (versions[-1] if versions else "")


def shipped_results() -> Iterator[tuple[str, str]]:
    """Name of each shipped agent and one line about what it reaches."""
    for name in shipped_agents():
        path = shipped_folder(name) / "results.json"
        if not path.exists():
            yield name, "no results"
            continue
        results = json.loads(path.read_text())
        means = [row["mean"] for row in results["seeds"]]
        yield (
            name,
            f"median {median(means):.1f} of {len(means)} seeds ({min(means):.1f} to "
            f"{max(means):.1f}), {results['total_steps']:,} steps; target {results['target']:g} "
            f"reached by {results['target_reached']}",
        )

"""The agents that come with the library, and the recipe that a run begins with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rlpg.learners.settings import AGENTS
from rlpg.runs.recipe import Recipe, Resolve, load_recipe, override
from rlpg.runs.run import safe_name
from rlpg.settings import kinds, validated

AUTO = "auto"  # instead of an agent's name: the one for the environment
DEFAULT_AGENT = "ppo"  # where none is shipped for the environment


def recipe_for(
    env_id: str, agent: str | None, recipe: str | Path | Recipe | None, resolve: Resolve | None
) -> Recipe:
    """The recipe before overrides, with the environment's id and the agent's name in it.

    Args:
        agent: a name of `AGENTS`, or `module:Class`. None and `"auto"`: the recipe's, or
            `agent_for` the environment.
        recipe: one, or its file. None: the one shipped for this environment and agent, or the
            defaults. `"default"`: the defaults.
        resolve: the settings of a learner of one's own.
    """
    if agent == AUTO:
        agent = None
    if agent is None and recipe is None:
        agent = agent_for(env_id)
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


def agent_for(env_id: str) -> str:
    """The agent that is shipped for an environment, else `DEFAULT_AGENT`.

    Of several the one with the highest mean return over the seeds (a median does not show that one
    of twenty fails), of equals that which took less time.
    """
    start = f"{_folder_name(env_id)}-"
    shipped = [name for name in shipped_agents() if name.removeprefix(start) in AGENTS]

    def rank(name: str) -> tuple[float, ...]:
        seeds = (results_of(name) or {"seeds": []})["seeds"]
        if not seeds:
            return (-math.inf,)
        return fmean(row["mean"] for row in seeds), -median(row["wall_seconds"] for row in seeds)

    return max(shipped, key=rank, default=DEFAULT_AGENT).removeprefix(start)


def _folder_name(env_id: str) -> str:
    """What the folders of an environment's agents begin with, also of an object `Wrapper(id)`."""
    return safe_name(env_id.rpartition("(")[2].rstrip(")").rpartition(":")[2])


def results_of(name: str) -> dict[str, Any] | None:
    """What `results.json` says of a shipped agent, if it is there."""
    path = shipped_folder(name) / "results.json"
    return json.loads(path.read_text()) if path.exists() else None


def shipped_folder(name: str) -> Path:
    return Path(str(resources.files("rlpg.agents"))) / name


def shipped_agents() -> list[str]:
    """Names of the agents that come with the library: `<environment>-<learner>`."""
    return sorted(path.parent.name for path in shipped_folder("").glob("*/recipe.toml"))


def shipped_recipe(env_id: str, agent: str) -> Recipe | None:
    """The recipe that comes with the library for this environment and learner, if there is one."""
    name = f"{_folder_name(env_id)}-{agent}"
    return load_recipe(shipped_folder(name) / "recipe.toml") if name in shipped_agents() else None


def latest_shipped(env_id: str) -> str:
    """The id with the version of a shipped agent, where it has none; nothing is imported."""
    start = _folder_name(env_id)
    pattern = re.compile(rf"{re.escape(start)}-v(\d+)-\w+")
    versions = [int(found[1]) for name in shipped_agents() if (found := pattern.fullmatch(name))]
    return f"{env_id}-v{max(versions)}" if versions else env_id


def shipped_results() -> Iterator[tuple[str, str]]:
    """Name of each shipped agent and one line about what it reaches."""
    for name in shipped_agents():
        results = results_of(name)
        if results is None:
            yield name, "no results"
            continue
        means = [row["mean"] for row in results["seeds"]]
        words = f"median {median(means):.1f} of {len(means)} seeds ({min(means):.1f} to "
        words += f"{max(means):.1f}), {results['total_steps']:,} steps; target "
        yield name, f"{words}{results['target']:g} reached by {results['target_reached']}"

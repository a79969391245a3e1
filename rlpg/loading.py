"""Policies from disk: of a run, a folder, or a shipped agent. Reads data, runs nothing in it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from rlpg.errors import FileError, RlpgError, UsageError
from rlpg.policies import Policy
from rlpg.runs.policy_files import load_policy
from rlpg.runs.recipe import Recipe, load_recipe
from rlpg.runs.recorded import checked_record
from rlpg.runs.run import find_policy, safe_name


@dataclass(frozen=True)
class Saved:
    """A policy and what is known about it."""

    policy: Policy
    path: Path
    environment: dict[str, Any]  # id, kwargs, max_episode_steps, episode_cap
    training: dict[str, Any]  # agent, seed, steps, and how well it did


def load(source: str | Path, which: Literal["best", "last"] = "last") -> Policy:
    """The policy of a run, of a policy folder, or of a shipped agent.

    Args:
        source: a run, a folder with `policy.json`, or a name that `rlpg agents` lists.
        which: of a run's policies: the last one, or the one that was best in its evaluations.

    Raises:
        UsageError: there is nothing by that name.
        FileError: the file is damaged or not a policy; it names the file and the reason.
    """
    return load_saved(source, which).policy


def load_saved(source: str | Path, which: Literal["best", "last"] = "last") -> Saved:
    """`load`, with the environment and the training that the policy comes from."""
    path = locate(source, which)
    record, arrays = load_policy(path)
    try:
        policy = Policy.from_description(record["policy"])
        for name, tensor in policy.state_dict().items():
            if name in arrays and torch.from_numpy(arrays[name]).dtype != tensor.dtype:
                raise UsageError(f"{name}: expected {tensor.dtype}, got {arrays[name].dtype}")
        policy.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        environment, training = checked_record(record["environment"]), dict(record["training"])
    except (RlpgError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path}: expected a policy, got one that does not fit: {reason}") from None
    return Saved(policy.requires_grad_(False).eval(), path, environment, training)


def locate(source: str | Path, which: Literal["best", "last"] = "last") -> Path:
    """The folder that holds the policy `source` names; see `load`."""
    path, names = Path(source), shipped_agents()
    if path.exists():
        return find_policy(path, which)
    if str(source) in names:
        return shipped_folder(str(source)) / "policy"
    close = difflib.get_close_matches(str(source), names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`rlpg agents` lists what is shipped"
    raise UsageError(
        f"{source}: expected a run, a policy folder or a shipped agent, got none of these; {hint}"
    )


def environment_to_make(recorded: str, given: str | None, path: Path) -> str:
    """The environment id a file recorded, or the one the caller gives instead.

    Raises:
        FileError: a file may name an environment, but not a module to import.
    """
    if given is None and ":" in recorded:
        raise FileError(
            f"{path}: it was trained on {recorded}, and a file may not choose modules to import; "
            f"name it yourself: --env {recorded}"
        )
    return recorded if given is None else given


def shipped_folder(name: str) -> Path:
    """Where the shipped agent of that name lies."""
    return Path(str(resources.files("rlpg.agents"))) / name


def shipped_agents() -> list[str]:
    """Names of the agents that come with the library: `<environment>-<learner>`."""
    return sorted(path.parent.name for path in shipped_folder("").glob("*/recipe.toml"))


def shipped_recipe(env_id: str, agent: str) -> Recipe | None:
    """The recipe that comes with the library for this environment and learner, if there is one."""
    name = f"{safe_name(env_id.rpartition(':')[2])}-{agent}"
    return load_recipe(shipped_folder(name) / "recipe.toml") if name in shipped_agents() else None


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

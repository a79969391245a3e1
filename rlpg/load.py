"""Policies from disk: of a run, a folder, or a shipped agent. Reads data, runs nothing in it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from rlpg.errors import FileError, RlpgError, UsageError
from rlpg.policies import Policy
from rlpg.runs.policy_files import load_policy


@dataclass(frozen=True)
class Saved:
    """A policy and what is known about it."""

    policy: Policy
    path: Path
    environment: dict[str, Any]  # id, kwargs, max_episode_steps, episode_cap
    training: dict[str, Any]  # agent, seed, steps, and how well it did


def load(source: str | Path) -> Policy:
    """The policy of a run, of a policy folder, or of a shipped agent.

    Args:
        source: a run (its last policy), a folder with `policy.json`, or a name that `rlpg agents`
            lists.

    Raises:
        UsageError: there is nothing by that name.
        FileError: the file is damaged or not a policy; it names the file and the reason.
    """
    return load_saved(source).policy


def load_saved(source: str | Path) -> Saved:
    """`load`, with the environment and the training that the policy comes from."""
    path = find_policy(source)
    record, arrays = load_policy(path)
    try:
        policy = Policy.from_description(record["policy"])
        policy.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        environment, training = dict(record["environment"]), dict(record["training"])
        if not isinstance(environment.get("id"), str):
            raise UsageError(f"environment: expected an id, got {environment}")
    except (RlpgError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path}: expected a policy, got one that does not fit: {reason}") from None
    return Saved(policy.requires_grad_(False).eval(), path, environment, training)


def find_policy(source: str | Path) -> Path:
    """The folder that holds `policy.json`."""
    path = Path(source)
    for folder in (path, path / "policy"):
        if (folder / "policy.json").exists():
            return folder
    names = shipped_agents()
    if str(source) in names:
        return shipped_folder(str(source)) / "policy"
    if path.exists():
        raise UsageError(f"{source}: expected a run or a policy folder, got no policy.json in it")
    close = difflib.get_close_matches(str(source), names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`rlpg agents` lists what is shipped"
    raise UsageError(f"{source}: expected a run, a policy folder or a shipped agent; {hint}")


def shipped_folder(name: str) -> Path:
    """Where the shipped agent of that name lies."""
    return Path(str(resources.files("rlpg.agents"))) / name


def shipped_agents() -> list[str]:
    """Names of the agents that come with the library: `<environment>-<learner>`."""
    return sorted(path.parent.name for path in shipped_folder("").glob("*/recipe.toml"))

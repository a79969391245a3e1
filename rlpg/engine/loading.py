"""Policies from disk: of a run, a folder, or a shipped agent. Reads data, runs nothing in it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import gymnasium
import torch

from rlpg.engine.device import usual_modes
from rlpg.engine.shipped import shipped_agents, shipped_folder
from rlpg.errors import FileError, MissingPartError, RlpgError, UsageError
from rlpg.policies import Policy, policy_from
from rlpg.policies.references import NO_PARTS, Part, UserParts, require_used
from rlpg.runs.recorded import checked_record
from rlpg.runs.run import Which, find_policy
from rlpg.runs.store import POLICY_FILE, load_policy


@dataclass(frozen=True)
class Saved:
    """A policy and what is known about it."""

    policy: Policy
    path: Path
    environment: dict[str, Any]  # id, kwargs, wrappers, max_episode_steps, episode_cap
    training: dict[str, Any]  # agent, seed, steps, and how well it did


def load(
    source: str | PathLike[str],
    which: Which = "last",
    *,
    network: Part | None = None,
    policy: Part | None = None,
    import_modules: bool = False,
) -> Policy:
    """The policy of a run, of a policy folder, or of a shipped agent, frozen and in eval mode.

    Args:
        source: a run, a policy's folder or its file (`policy.safetensors`), or a name that
            `rlpg agents` lists.
        which: of a run's policies: the last one, or the one that was best in its evaluations.
        network, policy: the part of your own that it was trained with; see `rlpg.train`. Where it
            has none of its own, one is refused.
        import_modules: whether a part that the file only names may be imported.

    Raises:
        UsageError: there is nothing by that name, or `which` is neither.
        FileError: the file is damaged or not a policy; it names the file and the reason.
    """
    parts = UserParts(network=network, policy=policy, import_modules=import_modules)
    return load_saved(source, which, parts).policy


def load_saved(
    source: str | PathLike[str], which: Which = "last", parts: UserParts = NO_PARTS
) -> Saved:
    """`load`, with the environment and the training that the policy comes from."""
    path = locate(source, which)
    record, arrays = load_policy(path)
    try:
        with usual_modes():
            policy = policy_from(record["policy"], parts)
        for name, tensor in policy.state_dict().items():
            if name in arrays and torch.from_numpy(arrays[name]).dtype != tensor.dtype:
                raise UsageError(f"{name}: expected {tensor.dtype}, got {arrays[name].dtype}")
        policy.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        environment, training = checked_record(record["environment"]), dict(record["training"])
    except MissingPartError as error:
        raise MissingPartError(f"{path}: {error}") from None
    except (RlpgError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path}: expected a policy, got one that does not fit: {reason}") from None
    own = {"policy": record["policy"].get("policy")}
    own["network"] = record["policy"].get("network", {}).get("factory")
    require_used({"network": parts.network, "policy": parts.policy}, own, path)
    return Saved(policy.requires_grad_(False).eval(), path, environment, training)


def locate(source: str | PathLike[str], which: Which = "last") -> Path:
    """The file of the policy that `source` names; see `load`."""
    if which not in get_args(Which):
        raise UsageError(f"which: expected {' or '.join(get_args(Which))}, got {which!r:.40}")
    path, names = Path(source), shipped_agents()
    if path.exists():
        return find_policy(path, which)
    if str(source) in names:
        return shipped_folder(str(source)) / "policy" / POLICY_FILE
    close = difflib.get_close_matches(str(source), names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`rlpg agents` lists what is shipped"
    raise UsageError(
        f"{source}: expected a run, a policy folder or a shipped agent, got none of these; {hint}"
    )


def is_object(recorded: str) -> bool:
    """Whether a file's name of an environment is that of an object, a class or a function.

    A full id has a version. A class called `CartPole` is not the latest version of that id.
    """
    return "(" in recorded or (recorded.isidentifier() and recorded not in gymnasium.registry)


def environment_to_make(recorded: str, given: str | None, path: Path) -> str:
    """The environment id a file recorded, or the one the caller gives instead; FileError where the
    file's is none, names a module to import, or is an object that no id makes again."""
    if not (given or recorded):
        raise FileError(
            f"{path}: expected files that name the environment, got none that does; restore the "
            "file, or name the environment yourself: --env ID (env= in Python)"
        )
    if given is None and is_object(recorded):
        raise FileError(
            f"{path}: it was trained on the environment object or class {recorded}, which no id "
            "makes again; pass it (env= in Python), or choose another environment: --env ID"
        )
    if given is None and ":" in recorded:
        raise FileError(
            f"{path}: it was trained on {recorded}, and a file may not choose modules to import; "
            f"name it yourself: --env {recorded} (env= in Python)"
        )
    return recorded if given is None else given

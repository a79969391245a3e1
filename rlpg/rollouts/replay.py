"""Where environments stand, as data, and how others are brought to the same point. No pickle.

Environments with a `state_dict` give it. Environments that `make_envs` put in a `SyncVectorEnv` or
in workers are replayed: each is reset with the seed of its running episode and takes the
actions it took; the last observation and the sum of the rewards must come out the same to the bit.
All others, and those that do not repeat themselves, can only begin anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from gymnasium.vector import VectorEnv

from rlpg.errors import RlpgError
from rlpg.rollouts.seeds import is_seeded_by_episode


@runtime_checkable
class Resumable(Protocol):
    """A vector environment that can say where it stands, in plain values and numpy arrays."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def snapshot(envs: VectorEnv[Any, Any, Any]) -> dict[str, Any] | None:
    """Where the environments stand: plain values and arrays; None where nobody can tell."""
    base: Any = envs.unwrapped
    if isinstance(base, Resumable):
        return {"state": base.state_dict()}
    if is_seeded_by_episode(envs):
        return {"episodes": list(base.call("episode_state"))}
    return None


def restore(envs: VectorEnv[Any, Any, Any], state: Mapping[str, Any] | None) -> str:
    """Bring environments, made as those were, to where `snapshot` was taken; "", or why that
    cannot be."""
    base: Any = envs.unwrapped
    if state is None:
        return "these environments cannot be brought back to where they were"
    try:
        if "state" in state and isinstance(base, Resumable):
            base.load_state_dict(state["state"])
        elif "episodes" in state and is_seeded_by_episode(envs):
            if len(state["episodes"]) != envs.num_envs:
                return f"expected {envs.num_envs} environments, got {len(state['episodes'])}"
            base.set_attr("saved", state["episodes"])
            return next(filter(None, base.call("replay_saved")), "")
        else:
            return "the environments are of another kind than before"
    except (RlpgError, KeyError, TypeError, ValueError) as error:
        if base.closed:  # its workers are gone, and with them what could go on
            raise
        return str(error)
    return ""

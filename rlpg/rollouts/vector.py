"""What Gymnasium's vector environments leave to convention: autoreset modes, masks, last words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from rlpg.errors import EnvironmentFault, EnvironmentSetupError, words
from rlpg.rollouts.validation import flat_mask

if TYPE_CHECKING:  # workers import this module, and need no torch
    from rlpg.policies.observations import Observations


def autoreset_mode(envs: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """How the environments start over after an episode, from their metadata.

    Raises:
        EnvironmentSetupError: the metadata does not say.
    """
    mode = envs.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise EnvironmentSetupError(
            f"autoreset_mode: expected a gymnasium.vector.AutoresetMode in the metadata of {envs}, "
            f'got {mode!r}; set envs.metadata["autoreset_mode"] to the mode its step() follows'
        ) from None


def probe_action_mask(envs: VectorEnv[Any, Any, Any]) -> int:
    """Length of the `info["action_mask"]` that a reset gives per environment, 0 without one."""
    try:
        _, info = envs.reset()
    except Exception as error:
        raise EnvironmentFault(f"reset before step 0: {words(error)}") from error
    return batched_mask(info, envs.num_envs).shape[1] if "action_mask" in info else 0


def batched_mask(
    info: Mapping[str, Any], num_envs: int, maskless: np.ndarray | None = None
) -> np.ndarray:
    """`[N, M]` bool from `info["action_mask"]`, the parts of a composite action side by side.

    It is an array `[N, ...]`, an array of N objects, or a tuple of arrays `[N, ...]`, one per part.
    Every environment must have given one, but those in `maskless` `[N]`.
    """
    masks = info.get("action_mask")
    given = np.asarray(info.get("_action_mask", np.full(num_envs, masks is not None)))  # [N]
    missing = ~given if maskless is None else ~(given | maskless)
    if masks is None or missing.any():
        raise EnvironmentFault(
            f'info["action_mask"]: expected one from every environment, got none from '
            f"{np.flatnonzero(missing).tolist()}; put it in the info of every reset and step"
        )
    if isinstance(masks, tuple):
        masks = np.concatenate([np.reshape(part, (num_envs, -1)) for part in masks], axis=1)
    elif masks.dtype == object:
        rows = [flat_mask(mask) for mask in masks[given]]
        masks = np.ones((num_envs, len(rows[0])), dtype=bool)
        masks[given] = rows
    allowed: np.ndarray = np.reshape(masks, (num_envs, -1)) != 0
    return allowed


def final_observations(
    info: Mapping[str, Any], rows: np.ndarray, observations: Observations
) -> np.ndarray:
    """`[K, *O]`: the last observations of the K environments that a SAME_STEP step has reset.

    `info["final_obs"]` holds N single observations, or a batch of N; `rows` `[K]` are wanted.
    """
    last: Any = info.get("final_obs")
    one_by_one = isinstance(last, np.ndarray) and last.dtype == object
    if last is None or (one_by_one and any(one is None for one in last[rows])):
        raise EnvironmentFault(
            f'info["final_obs"]: expected the last observations of environments {rows.tolist()}, '
            "got none; a SAME_STEP environment must give them in the step that resets"
        )
    num_masks = observations.info_mask
    mask = np.ones(num_masks) if num_masks else None  # nothing is chosen any more: any will do
    if one_by_one:
        return np.array([observations.pack(one, None, mask) for one in last[rows]])
    num_envs = len(info["_final_obs"])
    masks = None if mask is None else np.tile(mask, (num_envs, 1))
    return np.array(observations.pack(last, num_envs, masks)[rows])


def remembers_ends(envs: VectorEnv[Any, Any, Any]) -> bool:
    """Whether a reset due at the next step happens even if `reset()` comes first.

    The workers of AsyncVectorEnv clear their mark of a due reset only with shared memory.
    """
    base = envs.unwrapped
    return (
        isinstance(base, AsyncVectorEnv)
        and not base.shared_memory
        and base.autoreset_mode is AutoresetMode.NEXT_STEP
    )

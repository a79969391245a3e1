"""Episodes of a saved policy as a Minari dataset."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import gymnasium

from rlpg.engine.evaluator import Evaluation
from rlpg.engine.loading import Saved
from rlpg.errors import UsageError
from rlpg.verbs.evaluation import evaluate
from rlpg.verbs.video import made_for_pictures


class Recording(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps every whole episode: observations (one more than actions), actions, rewards, ends."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.episodes: list[list[list[Any]]] = []
        self._rows: list[list[Any]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._rows = [[copy.deepcopy(obs)], [], [], [], []]
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        obs, reward, terminated, truncated, _ = result
        entries = obs, action, float(reward), bool(terminated), bool(truncated)
        for row, entry in zip(self._rows, entries, strict=True):
            row.append(copy.deepcopy(entry))
        if terminated or truncated:
            self.episodes.append(self._rows)
        return result


def write_dataset(
    saved: Saved,
    name: str,
    *,
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    episodes: int = 100,
    seed: int = 0,
    deterministic: bool = False,
) -> Evaluation:
    """Play whole episodes and keep them where Minari keeps its datasets (`MINARI_DATASETS_PATH`).

    Args:
        name: of the dataset, as Minari has it: `cartpole/ppo-v0`.
        env, env_kwargs, episodes, seed, deterministic: see `evaluate_saved`.

    Raises:
        UsageError: the name is taken, or no name of a dataset; or the environment's entry point
            is no text.
    """
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(name)
    except ValueError as error:
        raise UsageError(
            f"name: expected one like cartpole/ppo-v0, got {name!r:.80} ({error})"
        ) from None
    if name in minari.list_local_datasets():
        raise UsageError(f"name: expected a new one, got {name}, which exists; raise its version")
    with made_for_pictures(saved, None, env, env_kwargs) as (original, cap):
        try:
            original.spec.to_json()  # type: ignore[union-attr]  # `gymnasium.make` sets it
        except ValueError as error:
            raise UsageError(
                f"env: expected text as its entry_point (module:Class), for Minari, got: {error}"
            ) from None
        recording = Recording(original)
        played = evaluate(
            saved.policy, recording, episodes, seed, deterministic=deterministic, episode_cap=cap
        )
        buffers = [
            EpisodeBuffer(k, None, None, _by_part(obs), _by_part(actions), *rest)
            for k, (obs, actions, *rest) in enumerate(recording.episodes[:episodes])
        ]
        agent = str(saved.training["agent"])
        minari.create_dataset_from_buffers(
            name, buffers, original, eval_env=original, algorithm_name=agent,
            jpeg_encoding=False,  # it changes pictures, and refuses those of one channel
        )  # fmt: skip
    return played


def _by_part(entries: list[Any]) -> Any:
    """A list of dicts or tuples as a dict or tuple of lists, in whatever depth."""
    if isinstance(entries[0], dict):
        return {key: _by_part([entry[key] for entry in entries]) for key in entries[0]}
    if isinstance(entries[0], tuple):
        return tuple(_by_part(list(part)) for part in zip(*entries, strict=True))
    return entries

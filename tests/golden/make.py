"""Writes `tests/golden/<format>/`: finished runs as this version of rlpg keeps them.

    python tests/golden/make.py

Once a version is released, its folder is never made again: what was written then must load for
ever. A new folder comes when the format's version changes; its name is that of the format.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import rlpg
from rlpg.runs.recipe import flatten, load_recipe
from rlpg.runs.store import newest_checkpoint
from rlpg.runs.trees import VERSION

HERE = Path(__file__).parent
NAME = f"format-{VERSION}"
SETTINGS = {
    "policy.hidden": (4,),
    "rollout.num_envs": 2,
    "rollout.num_steps": 16,
    "evaluation.every": 64,
    "evaluation.episodes": 2,
    "evaluation.num_envs": 2,
    "evaluation.final_episodes": 2,
    "checkpoint.keep_last": 1,
    "environment.max_episode_steps": 30,
}
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "discrete": ("CartPole-v1", "reinforce", {}),
    "continuous": (
        "Pendulum-v1", "ppo", {"environment.backend": "sync", "policy.gaussian": "squashed"},
    ),
}  # fmt: skip


def digests(tree: Any) -> Any:
    """A state as plain JSON: its arrays as dtype, shape and sha256, the rest as text."""
    if isinstance(tree, dict):
        return {str(key): digests(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [digests(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return f"{tree.dtype} {list(tree.shape)} {hashlib.sha256(tree.tobytes()).hexdigest()[:16]}"
    return repr(tree)


def make(folder: Path) -> None:
    """One folder with every run in it, and what has to come out of them."""
    shutil.rmtree(folder, ignore_errors=True)
    platform.platform = lambda *_: "Linux"  # which machine made them is nobody's business
    expected: dict[str, Any] = {}
    for name, (env, agent, settings) in RUNS.items():
        run = rlpg.train(
            env, agent, seed=7, total_steps=192, run_dir=folder / name, recipe="default",
            overrides=SETTINGS | settings,
        )  # fmt: skip
        (run.path / "run.lock").unlink()
        saved, _ = newest_checkpoint(run.path / "checkpoints")
        assert saved is not None
        space = run.policy.observations.space
        obs = np.random.default_rng(0).uniform(-0.5, 0.5, (16, *space.shape)).astype(np.float32)
        expected[name] = {
            "recipe": flatten(load_recipe(run.path / "recipe.toml")),
            "step": saved.step,
            "state": digests(saved.state),
            "observations": obs.tolist(),
            "actions": run.policy.act(obs, deterministic=True).tolist(),
        }
    (folder / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")


if __name__ == "__main__":
    make(HERE / NAME)

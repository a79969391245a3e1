"""A model card: a folder with a policy, what it reaches, and how it was trained."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from rlpg.engine.loading import Saved
from rlpg.errors import UsageError, decimals
from rlpg.runs import files
from rlpg.runs.recipe import LARGEST_FILE
from rlpg.runs.run import to_import
from rlpg.runs.store import LARGEST, POLICY, POLICY_FILE

TEMPLATE = Path(__file__).with_suffix(".md")


def write_card(saved: Saved, folder: Path, *, has_video: bool) -> None:
    """Publish a folder with `README.md`, the policy, and the run's recipe where there is one;
    UsageError where the folder is taken, or nothing says how good the policy is."""
    found = saved.training.get("evaluation")
    if not isinstance(found, dict):
        raise UsageError(
            f"{saved.path}: expected a policy with an evaluation, got none; try the --best one"
        )
    contents = {POLICY_FILE: bytes(files.read(saved.path, limit=2 * LARGEST[POLICY]))}
    recipe = saved.path.parent.parent / "recipe.toml"
    if files.exists(recipe):
        contents["recipe.toml"] = bytes(files.read(recipe, limit=LARGEST_FILE))
    if has_video:
        from rlpg.verbs.video import film

        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "replay.mp4"
            film(saved, path)
            contents[path.name] = path.read_bytes()
    contents["README.md"] = _card(saved, found, contents).encode()
    if files.exists(folder) and not (files.is_folder(folder) and not files.entries(folder)):
        raise UsageError(f"{folder}: expected a folder that is new or empty, got one in use")
    files.make_folder(folder)
    for name, data in contents.items():
        files.write(folder / name, data)


def _card(saved: Saved, found: dict[str, Any], contents: dict[str, bytes]) -> str:
    env, agent = str(saved.environment["id"]), str(saved.training["agent"])
    recipe = contents.get("recipe.toml", b"").decode()
    described = saved.policy.describe()
    own = described.get("policy") or described.get("network", {}).get("factory")
    card = TEMPLATE.read_text(encoding="utf-8").format(
        agent=agent,
        env=env,
        agent_yaml=json.dumps(agent),  # JSON is YAML
        env_yaml=json.dumps(env),
        episodes=found["episodes"],
        mean=decimals(found["mean"]),
        std=decimals(found["std"]),
        low=decimals(found["ci"][0]),
        high=decimals(found["ci"][1]),
        training=saved.training,
        how="deterministic actions" if found["deterministic"] else "sampled actions",
        film="\n`replay.mp4` shows an episode.\n" if "replay.mp4" in contents else "",
        file=POLICY_FILE,
        needs=f"\nThis imports `{own}`, which is not in this folder.\n" if own else "",
        given=", import_modules=True" if own else "",
        more=to_import(own),
    )
    return card + (f"\n## Recipe\n\n```toml\n{recipe}```\n" if recipe else "")

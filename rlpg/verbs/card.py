"""A model card: a folder with a policy, what it reaches, and how it was trained."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from rlpg.engine.loading import Saved
from rlpg.errors import UsageError
from rlpg.runs import files
from rlpg.runs.recipe import LARGEST_FILE
from rlpg.runs.store import LARGEST, POLICY, POLICY_FILE

CARD = """\
---
library_name: rlpg
tags:
- reinforcement-learning
- deep-reinforcement-learning
- {agent}
- {env}
model-index:
- name: {agent}
  results:
  - task:
      type: reinforcement-learning
      name: reinforcement-learning
    dataset:
      type: {env}
      name: {env}
    metrics:
    - type: mean_reward
      name: mean_reward
      value: {value}
      verified: false
---

# {title}

A policy of rlpg for `{plain_env}`, trained with `{plain_agent}`: {steps:,} environment steps, seed
{seed}.

| | |
|---|---|
| mean return | {mean:.2f} ± {std:.2f} |
| 95 % interval of the mean | {low:.2f} to {high:.2f} |
| episodes | {episodes}, {how} |
{film}
## Use it

```python
import rlpg

policy = rlpg.load("{file}")
action = policy.act(observation, deterministic=True)
```

    rlpg evaluate {file}
{recipe}"""


def write_card(saved: Saved, folder: Path, *, has_video: bool = False) -> None:
    """Publish a folder with `README.md`, the policy, and the run's recipe where there is one.

    Args:
        saved: a policy from disk, which must have been evaluated at the end of its training.
        folder: new or empty.
        has_video: film an episode, too (`replay.mp4`).

    Raises:
        UsageError: the folder is taken, or nothing says how good the policy is.
    """
    found = saved.training.get("evaluation")
    if not isinstance(found, dict):
        raise UsageError(
            f"{saved.path}: expected a policy with an evaluation, got none; a run writes it at its "
            "end, or give its best policy: --best"
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
    low, high = found["ci"]
    recipe = contents.get("recipe.toml", b"").decode()
    return CARD.format(
        agent=json.dumps(agent),  # JSON is YAML
        env=json.dumps(env),
        value=json.dumps(f"{found['mean']:.2f} +/- {found['std']:.2f}"),
        title=f"{agent} on {env}",
        plain_env=env,
        plain_agent=agent,
        steps=saved.training["steps"],
        seed=saved.training["seed"],
        mean=found["mean"],
        std=found["std"],
        low=low,
        high=high,
        episodes=found["episodes"],
        how="deterministic actions" if found["deterministic"] else "sampled actions",
        film="\n`replay.mp4` shows an episode.\n" if "replay.mp4" in contents else "",
        file=POLICY_FILE,
        recipe=f"\n## Recipe\n\n```toml\n{recipe}```\n" if recipe else "",
    )

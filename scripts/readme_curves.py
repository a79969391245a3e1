"""The learning curves of the README: docs/pictures/curves.png.

    python scripts/readme_curves.py        # some minutes of one core; --seeds 0 1 2

Every agent with its own defaults, no recipe of an environment.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image

from rlpg import cli

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "curves.png"
STEPS = {"CartPole-v1": 40_000, "Acrobot-v1": 40_000}
AGENTS = ("reinforce", "ppo", "trpo")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of 40,000")
    parser.add_argument("--output", type=Path, default=PICTURE)
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for env, steps in STEPS.items():
            steps = typed.steps or steps
            for agent in AGENTS:
                command = ["train", env, "--agent", agent, "--recipe", "default", "--quiet"]
                command += ["--run-dir", f"{folder}/{env}/{agent}", "--total-steps", str(steps)]
                command += ["--evaluation.every", str(steps // 20), "--evaluation.episodes", "10"]
                command += ["--evaluation.final-episodes", "10"]
                command += ["--seeds", *map(str, typed.seeds)]
                if code := cli.main(command):
                    return code
        code = cli.main(["plot", folder, "--output", str(typed.output)])
    if code == 0:
        Image.open(typed.output).quantize(128).save(typed.output, optimize=True)  # a third as large
    return code


if __name__ == "__main__":
    sys.exit(main())

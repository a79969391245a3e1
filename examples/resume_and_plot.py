"""Train two agents, go on with one of them, draw both. Needs the extra `plot`."""

import os

import rlpg
from rlpg.cli import main

steps = int(os.environ.get("STEPS", "20_000"))
for agent in ("reinforce", "ppo"):
    run = rlpg.train("CartPole-v1", agent=agent, seed=0, total_steps=steps)
run = rlpg.resume(run.path, total_steps=2 * steps)  # to the bits of a run of 2 * steps
print(run.path, run.evaluation)
main(["plot", "runs/CartPole-v1", "--output", "curves.png"])

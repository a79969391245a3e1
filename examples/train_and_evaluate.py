"""Train an agent, load it again, evaluate it."""

import os

import rlpg

run = rlpg.train("CartPole-v1", total_steps=int(os.environ.get("STEPS", "100_000")), seed=0)
policy = rlpg.load(run.path)
result = rlpg.evaluate(policy, "CartPole-v1", episodes=100, seed=1)
print(f"{run.path}: mean return {result.mean:.1f} of {len(result.returns)} episodes")

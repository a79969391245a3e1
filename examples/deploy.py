"""Use a trained policy in a program of your own; then the same without rlpg, through ONNX.

The second half needs `pip install ".[onnx]"`.
"""

import os
from pathlib import Path

import gymnasium
import numpy as np
import onnxruntime

import rlpg
from rlpg.verbs.export import to_onnx

run = rlpg.train("CartPole-v1", total_steps=int(os.environ.get("STEPS", "50_000")), seed=0)
policy = rlpg.load(run.path / "policy")  # the folder is all that a policy needs: copy it anywhere

env = gymnasium.make("CartPole-v1")
obs, info = env.reset(seed=1)
policy.reset()  # an episode starts: a policy with memory forgets
total, done = 0.0, False
while not done:
    obs, reward, terminated, truncated, info = env.step(policy.act(obs, deterministic=True))
    total, done = total + reward, terminated or truncated
print(f"return {total}")

many = np.stack([env.reset()[0] for _ in range(8)])  # [B, 4]
actions = policy.act(many, deterministic=True)  # [B]
actions, state = policy.predict(many, deterministic=True)  # as Stable-Baselines3's scripts call it

to_onnx(policy, Path("policy.onnx"))  # or: rlpg export RUN --onnx policy.onnx
session = onnxruntime.InferenceSession("policy.onnx", providers=["CPUExecutionProvider"])
(same,) = session.run(None, {"observation": many})
print(actions, same)

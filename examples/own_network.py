"""A network of your own, for the policy and the value network."""

import os

from torch import nn

import rlpg


class Residual(nn.Module):
    """Maps [B, num_features] to [B, num_outputs]."""

    def __init__(self, num_features, num_outputs, *, width=64):
        super().__init__()
        self.first = nn.Linear(num_features, width)
        self.block = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width))
        self.last = nn.Linear(width, num_outputs)

    def forward(self, features):
        hidden = self.first(features)
        return self.last(hidden + self.block(hidden))


if __name__ == "__main__":
    steps = int(os.environ.get("STEPS", "50_000"))
    run = rlpg.train("CartPole-v1", agent="ppo", network=Residual, total_steps=steps, seed=0)
    print(run.evaluation)
    policy = rlpg.load(run.path, network=Residual)  # a file names the network and never imports it
    print(sum(p.numel() for p in policy.parameters()), "parameters")

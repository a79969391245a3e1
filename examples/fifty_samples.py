"""Fifty samples go through a network; fifty new ones are drawn from the mean and deviation of its
outputs; and so on. The loss at the end is differentiated through all of it."""

import os

import torch
from torch.distributions import Normal

import rlpg

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
adam = torch.optim.Adam(network.parameters(), lr=0.01)


def run(tape):
    x = tape.sample(Normal(torch.zeros(50), 1.0))  # a lane is a particle
    for _ in range(3):
        x = tape.resample(network(x[:, None])[:, 0])  # particles meet in mean and deviation only
    tape.add(-((network(x[:, None])[:, 0] - 2.0) ** 2))


for update in range(int(os.environ.get("STEPS", "300"))):
    tape = rlpg.Tape(how="pathwise")  # or "score", which needs no derivative of the network
    run(tape)
    objective = tape.surrogate()  # its value estimates the objective, its gradient is the estimate
    adam.zero_grad()
    (-objective).backward()
    adam.step()
    if update % 50 == 0:
        print(update, float(objective.detach()))

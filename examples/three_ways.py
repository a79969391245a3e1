"""One expectation, differentiated in three ways: a walk whose samples feed its next step."""

import os

import torch
from torch.distributions import Normal

import rlpg

push = torch.tensor(0.3, requires_grad=True)


def walk(tape, num_lanes):
    x = torch.zeros(num_lanes)
    for _ in range(10):
        x = tape.sample(Normal(0.9 * x + push, 0.3))
        tape.add(-((x - 1.0) ** 2))  # one number per lane, to be maximized


repeats = int(os.environ.get("STEPS", "200"))
for how in ("score", "pathwise", "combine"):
    push.grad = None
    tape = rlpg.Tape(how=how)
    walk(tape, 1000)
    tape.surrogate().backward()
    print(how, float(push.grad))

# All three estimate the same number; they differ in variance, and so in the samples they need.
print(rlpg.compare(walk, push, ["score", "pathwise", "combine"], num_lanes=100, repeats=repeats))

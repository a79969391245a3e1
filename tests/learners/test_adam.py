"""Our Adam takes torch's steps."""

import subprocess
import sys

import pytest
import torch
from rlpg.learners.adam import Adam, flat_gradient


def parameters() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in [(3, 4), (5,), (), (2, 1, 2)]]


def test_takes_the_steps_of_torch() -> None:
    ours, theirs = parameters(), [p.requires_grad_() for p in parameters()]
    adam, reference = Adam(ours), torch.optim.Adam(theirs, lr=1.0)
    generator = torch.Generator().manual_seed(1)
    for t in range(300):
        learning_rate = 0.1 / (1 + t)  # a schedule, and gradients over ten orders of magnitude
        size = 10.0 ** float(torch.randint(-6, 4, (), generator=generator))
        grads = [size * torch.randn(p.shape, generator=generator) for p in ours]
        adam.step(torch.cat([grad.reshape(-1) for grad in grads]), learning_rate)
        for p, grad in zip(theirs, grads, strict=True):
            p.grad = grad
        reference.param_groups[0]["lr"] = learning_rate
        reference.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


def test_goes_on_from_its_state_with_the_same_bits() -> None:
    straight, stopped = parameters(), parameters()
    first, again = Adam(straight), Adam(stopped)
    generator = torch.Generator().manual_seed(2)
    size = sum(p.numel() for p in straight)
    for t in range(10):
        if t == 5:
            state = again.state_dict()
            again.step(torch.ones(size), 0.0)  # what happens after it does not reach the state
            again = Adam(stopped)
            again.load_state_dict(state)
        gradient = torch.randn(size, generator=generator)
        first.step(gradient, 0.1)
        again.step(gradient, 0.1)
    for a, b in zip(straight, stopped, strict=True):
        assert torch.equal(a, b)


def test_flat_gradient_lays_the_parts_end_to_end() -> None:
    a, b = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    gradient = flat_gradient((a * torch.tensor([[5.0, 7.0]])).sum() + b**2, [a, b])
    assert gradient.tolist() == pytest.approx([5.0, 7.0, 6.0])


def test_an_update_does_not_load_torchs_compiler() -> None:
    """It would cost every start of `rlpg train` a second, and 77 MB."""
    program = """
import sys, torch, rlpg, gymnasium as gym
from rlpg.rollouts import Collector, make_envs
envs, _ = make_envs("CartPole-v1", 2, seed=0)
policy = rlpg.StandardPolicy(
    envs.single_observation_space, envs.single_action_space,
    generator=torch.Generator().manual_seed(0),
)
learner = rlpg.Reinforce(policy)
learner.update(Collector(envs, policy).steps(8))
sys.exit("torch._dynamo" in sys.modules or "sympy" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)

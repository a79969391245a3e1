"""One flat Adam takes torch's steps, upward; a gradient that is not finite moves nothing."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rlpg.engine.restore import to_arrays
from rlpg.errors import NumericalFault, UsageError
from rlpg.learners.optimizer import Optimizer

sys.path.append(str(Path(__file__).parents[1]))
from elsewhere import PLACE, elsewhere

SHAPES: list[tuple[int, ...]] = [(3, 4), (5,), (), (2, 1, 2)]
SIZE = 22


def named() -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [(f"p{k}", nn.Parameter(value)) for k, value in enumerate(values)]


def flat(parameters: list[tuple[str, nn.Parameter]]) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for _, p in parameters])


class TestStep:
    def test_takes_the_steps_of_torch_in_the_other_direction(self) -> None:
        ours, theirs = named(), [p for _, p in named()]
        optimizer = Optimizer(ours, learning_rate=0.1)
        reference = torch.optim.Adam(theirs, lr=1.0)
        generator = torch.Generator().manual_seed(1)
        for t in range(300):
            lr_scale = 1 / (1 + t)  # a schedule, and gradients over ten orders of magnitude
            size = 10.0 ** float(torch.randint(-6, 4, (), generator=generator))
            gradient = size * torch.randn(SIZE, generator=generator)
            norm = optimizer.step(gradient, lr_scale)
            assert norm == pytest.approx(float(gradient.norm()), rel=1e-5)
            parts = gradient.split([p.numel() for p in theirs])
            for p, part in zip(theirs, parts, strict=True):
                p.grad = -part.reshape(p.shape)
            reference.param_groups[0]["lr"] = 0.1 * lr_scale
            reference.step()
            for (_, a), b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    def test_goes_on_from_its_state_with_the_same_bits(self) -> None:
        straight, stopped = named(), named()
        first, again = (Optimizer(each, learning_rate=0.1) for each in (straight, stopped))
        generator = torch.Generator().manual_seed(2)
        for t in range(10):
            if t == 5:
                state = again.state_dict()
                again.step(torch.ones(SIZE), 0.0)  # what happens later does not reach the state
                again = Optimizer(stopped, learning_rate=0.1)
                again.load_state_dict(state)
            gradient = torch.randn(SIZE, generator=generator)
            first.step(gradient)
            again.step(gradient)
        assert torch.equal(flat(straight), flat(stopped))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e36])
    def test_a_gradient_that_is_not_finite_moves_nothing(self, bad: float) -> None:
        parameters = named()
        optimizer = Optimizer(parameters, learning_rate=0.1)
        optimizer.step(torch.ones(SIZE))
        before, state = flat(parameters), optimizer.state_dict()
        gradient = torch.ones(SIZE)
        gradient[13] = bad  # of the second parameter
        with pytest.raises(
            NumericalFault, match=r"policy: expected a finite gradient.* in p1 after"
        ):
            optimizer.step(gradient)
        assert torch.equal(flat(parameters), before)
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(state[k]))
                   for k, v in optimizer.state_dict().items())  # fmt: skip

    @pytest.mark.parametrize("max_grad_norm", [None, 1.0])
    @pytest.mark.parametrize("bad", [math.nan, -math.inf, 1e36])
    def test_elsewhere_steps_are_the_same_and_read_tells_of_the_lost_one(
        self, bad: float, max_grad_norm: float | None
    ) -> None:
        here = named()
        on_cpu = Optimizer(here, learning_rate=0.1, max_grad_norm=max_grad_norm)
        sizes, generator = (0.0, 0.01, 30.0), torch.Generator().manual_seed(3)
        gradients = [size * torch.randn(SIZE, generator=generator) for size in sizes]
        with elsewhere() as mode:
            there = [(name, nn.Parameter(p.detach().to(PLACE))) for name, p in named()]
            optimizer = Optimizer(there, learning_rate=0.1, max_grad_norm=max_grad_norm)
            lost = gradients[1].clone()
            lost[13] = bad
            is_lost = max_grad_norm is None or not math.isfinite(bad)  # else it is shortened
            mode.waits.clear()
            for gradient in (gradients[0], lost, *gradients[1:]):
                norm = optimizer.step(gradient.to(PLACE), 0.5)
            assert mode.waits.total() == 0
            if is_lost:
                with pytest.raises(NumericalFault, match="in one of its parameters after 3 steps"):
                    optimizer.read({})
            else:
                on_cpu.step(gradients[0], 0.5)
                on_cpu.step(lost, 0.5)
            for gradient in gradients if is_lost else gradients[1:]:
                expected = on_cpu.step(gradient, 0.5)
            mode.waits.clear()
            assert optimizer.read({"a": norm, "b": 2.0}) == {"a": expected, "b": 2.0}
            assert mode.waits.total() == 1
            states = on_cpu.state_dict(), to_arrays(optimizer.state_dict())
            for name, value in states[0].items():
                torch.testing.assert_close(torch.as_tensor(states[1][name]), torch.as_tensor(value))
            for (_, theirs), (_, ours) in zip(here, there, strict=True):
                torch.testing.assert_close(ours.detach().cpu(), theirs.detach())

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_the_clip_hides_nothing(self, bad: float) -> None:
        optimizer = Optimizer(named(), learning_rate=0.1, max_grad_norm=1.0)
        gradient = torch.ones(SIZE)
        gradient[0] = bad
        with pytest.raises(NumericalFault):
            optimizer.step(gradient)

    def test_the_clip_shortens_what_is_huge(self) -> None:
        parameters = named()
        optimizer = Optimizer(parameters, learning_rate=0.1, max_grad_norm=1.0)
        assert optimizer.step(torch.full((SIZE,), 1e30)) > 1e30
        mean = optimizer.state_dict()["mean"]
        torch.testing.assert_close(mean, torch.full((SIZE,), 0.1 / math.sqrt(SIZE)))
        assert optimizer.step(torch.full((SIZE,), 0.01)) == pytest.approx(0.01 * math.sqrt(SIZE))
        expected = 0.9 * mean + 0.1 * 0.01  # shorter than 1: as it is
        torch.testing.assert_close(optimizer.state_dict()["mean"], expected)


class TestGradient:
    def test_lays_the_parts_end_to_end(self) -> None:
        a, b = nn.Parameter(torch.tensor([[1.0, 2.0]])), nn.Parameter(torch.tensor(3.0))
        optimizer = Optimizer([("a", a), ("b", b)], learning_rate=1.0)
        objective = (a * torch.tensor([[5.0, 7.0]])).sum() + b**2
        assert optimizer.gradient(objective).tolist() == pytest.approx([5.0, 7.0, 6.0])

    def test_unused_parameters_count_0(self) -> None:
        a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
        optimizer = Optimizer([("a", a), ("b", b)], learning_rate=1.0)
        assert optimizer.gradient((b**2).sum()).tolist() == [0.0, 0.0, 2.0, 2.0, 2.0]

    def test_can_be_differentiated_again(self) -> None:
        a = nn.Parameter(torch.tensor([2.0]))
        optimizer = Optimizer([("a", a)], learning_rate=1.0)
        gradient = optimizer.own_gradient((a**3).sum(), create_graph=True)
        assert torch.autograd.grad(gradient.sum(), a)[0].item() == pytest.approx(12.0)
        assert not optimizer.gradient((a**3).sum()).requires_grad


class TestFlat:
    def test_moves_the_parameters_themselves(self) -> None:
        parameters = named()
        optimizer = Optimizer(parameters, learning_rate=1.0)
        values = torch.arange(float(SIZE))
        optimizer.move_to(values)
        assert torch.equal(flat(parameters), values)
        copied = optimizer.flat()
        copied += 1
        assert torch.equal(optimizer.flat(), values)

    def test_two_optimizers_of_the_same_parameters_both_move_them(self) -> None:
        # Each made views of a vector of its own; the first one then moved a vector nobody sees.
        parameters = named()
        first, second = (Optimizer(parameters, learning_rate=1.0) for _ in range(2))
        start = flat(parameters)
        for k, optimizer in enumerate((first, second, first)):
            optimizer.move_to(start + k + 1)
            assert torch.equal(flat(parameters), start + k + 1)
        before = flat(parameters)
        second.step(torch.ones(SIZE))
        torch.testing.assert_close(flat(parameters), before + 1)

    def test_a_module_with_flat_parameters_can_be_copied_and_saved(self) -> None:
        network = nn.Linear(3, 2)
        optimizer = Optimizer(network.named_parameters(), learning_rate=1.0)
        twin = copy.deepcopy(network)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        optimizer.step(torch.ones(8))
        for name, value in twin.state_dict().items():
            assert torch.equal(value, state[name])
            assert not torch.equal(network.state_dict()[name], state[name])
        network.load_state_dict(state)
        assert torch.equal(optimizer.flat(), flat(list(twin.named_parameters())))


class TestRefusals:
    def test_nothing_to_optimize(self) -> None:
        frozen = nn.Linear(2, 1).requires_grad_(False)
        with pytest.raises(UsageError, match=r"policy: expected parameters .*rlpg\.load is frozen"):
            Optimizer(frozen.named_parameters(), learning_rate=1.0)

    def test_parameters_of_two_dtypes(self) -> None:
        pair = nn.ParameterList([torch.zeros(1), torch.zeros(1, dtype=torch.float64)])
        with pytest.raises(
            UsageError, match=r"all in float64, on one device, got torch\.float32 on"
        ):
            Optimizer(pair.named_parameters(), learning_rate=1.0)

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16])
    def test_parameters_without_real_numbers_of_enough_digits_ended_in_a_torch_error(
        self, dtype: torch.dtype
    ) -> None:
        with pytest.raises(UsageError, match=f"policy: expected .* in float32, .*got {dtype}"):
            Optimizer([("p", nn.Parameter(torch.zeros(2, dtype=dtype)))], learning_rate=1.0)

    @pytest.mark.parametrize("place", [torch.device("cpu"), PLACE])
    def test_bug_a_gradient_of_another_size_was_read_beyond_its_end(
        self, place: torch.device
    ) -> None:
        with elsewhere():
            module = nn.Linear(2, 1).to(place)
            optimizer = Optimizer(module.named_parameters(), learning_rate=1.0)
            for wrong in (torch.ones(2), torch.ones(4), torch.ones(3, dtype=torch.float64)):
                with pytest.raises(UsageError, match=r"policy: expected a gradient \[P\] = \[3\]"):
                    optimizer.step(wrong.to(place))


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
collector = Collector(envs, policy)
for make in (rlpg.Reinforce, rlpg.PPO, rlpg.NaturalGradient):
    make(policy).update(collector.steps(16))
sys.exit("torch._dynamo" in sys.modules or "sympy" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)

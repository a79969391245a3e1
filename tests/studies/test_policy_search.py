"""The cart-pole's physics, the learned model's particles, and that policy search swings it up."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

STUDIES = str(Path(__file__).parents[2] / "studies")


@pytest.fixture(scope="module")
def search() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDIES)
        yield importlib.import_module("policy_search")


def energy(search: ModuleType, state: Tensor) -> Tensor:
    """Cart, and a uniform rod about its center, half a length from the hinge."""
    _, angle, velocity, spin = state.unbind(1)
    half, pole = search.LENGTH / 2, search.POLE
    across, up = velocity + half * spin * angle.cos(), -half * spin * angle.sin()
    turning = pole * search.LENGTH**2 / 12 * spin**2
    moving = search.CART * velocity**2 + pole * (across**2 + up**2) + turning
    return 0.5 * moving + pole * search.GRAVITY * half * angle.cos()


def test_without_friction_and_force_energy_and_momentum_stay(
    search: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "FRICTION", 0.0)
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    after = state
    for _ in range(5):
        after = search.simulate(after, torch.zeros(50, dtype=torch.float64), substeps=20)
    torch.testing.assert_close(energy(search, after), energy(search, state), rtol=1e-6, atol=1e-6)

    def momentum(s: Tensor) -> Tensor:
        swinging = search.POLE * search.LENGTH / 2 * s[:, 3] * s[:, 1].cos()
        return (search.CART + search.POLE) * s[:, 2] + swinging

    torch.testing.assert_close(momentum(after), momentum(state), rtol=1e-6, atol=1e-6)


def test_the_upright_pole_falls_at_the_rate_of_the_linear_theory(search: ModuleType) -> None:
    state = torch.zeros(4, dtype=torch.float64)
    force = torch.zeros(1, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(lambda s: search.swing(s[None], force)[0], state)
    # 6 g (M + m) / (l (4 (M + m) - 3 m)) with M = m = l = 0.5
    assert float(slope[3, 1]) == pytest.approx(6 * search.GRAVITY / (0.5 * 2.5))


def test_one_step_of_integration_is_close_to_many(search: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([1.0, 2.0, 2.0, 5.0], dtype=torch.float64)
    state = torch.randn(200, 4, generator=generator, dtype=torch.float64) * scale
    force = 20 * torch.rand(200, generator=generator, dtype=torch.float64) - 10
    one, many = search.simulate(state, force), search.simulate(state, force, substeps=50)
    assert float((one - many).abs().median()) < 1e-3


def test_every_particle_keeps_its_member_and_the_gradient_reaches_the_state(
    search: ModuleType,
) -> None:
    model = search.Ensemble(torch.Generator().manual_seed(2))
    state = torch.randn(1, 4, generator=torch.Generator().manual_seed(3)).expand(15, 4)
    state = state.clone().requires_grad_()
    mean, deviation = model(state, torch.ones(15))
    groups = mean.reshape(5, 3, 4)
    assert torch.allclose(groups, groups[:, :1].expand(5, 3, 4))  # alike within a member
    assert float(groups.detach()[:, 0].std(0).min()) > 1e-3  # and not between members
    assert bool((deviation > 0).all())
    (slope,) = torch.autograd.grad(mean[7].sum(), state)
    assert bool(slope[7].any())
    assert not bool(slope[:7].any())


def test_the_model_learns_a_system_and_its_noise(search: ModuleType) -> None:
    generator = torch.Generator().manual_seed(4)
    state = torch.randn(600, 4, generator=generator)
    force = 20 * torch.rand(600, generator=generator) - 10
    change = torch.stack([0.1 * state[:, 2], 0.02 * force, state[:, 1].sin(), -state[:, 0]], dim=1)
    noise = 0.05 * torch.randn(600, 4, generator=generator)
    model = search.Ensemble(generator)
    model.fit(state[:500], force[:500], (state + change + noise)[:500], 200)
    with torch.no_grad():
        mean, deviation = model(state[500:], force[500:])
    error = (mean - (state + change)[500:]).square().mean(0).sqrt()
    assert bool((error < 0.1 * change.std(0) + 0.03).all())
    assert 0.02 < float(deviation.median()) < 0.08  # 0.05, and what overfitting takes off


def test_reward_is_the_saturating_cost_of_the_tip(search: ModuleType) -> None:
    state = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, math.pi, 0.0, 0.0], [0.3, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(search.tip_distance(state), torch.tensor([0.0, 1.0, 0.3]))
    expected = [0.0, math.exp(-2) - 1, math.exp(-0.18) - 1]
    torch.testing.assert_close(search.reward(state), torch.tensor(expected))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pathwise", "combine"])
def test_the_pole_is_swung_up_and_balanced(search: ModuleType, how: str) -> None:
    assert search.known(how, 0, 300)["balanced"] > 0.95

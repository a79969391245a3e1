"""The tensor environments: Gymnasium's numbers, and gradients that are those of the return."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from rlpg.envs.batched import Batched, TorchVectorEnv
from rlpg.envs.batched_classic import (
    FAMILY,
    Acrobot,
    CartPole,
    CartPoleContinuous,
    MountainCar,
    MountainCarContinuous,
    Pendulum,
)
from torch import Tensor
from torch.distributions import Normal

import rlpg
from rlpg.gradients.tape import Tape
from rlpg.rollouts import make_envs

PI = math.pi
GYMNASIUM = sorted(set(FAMILY) - {"CartPoleContinuous-v0"})
each_env = pytest.mark.parametrize("name", sorted(FAMILY))
# Largest absolute value of each component to test; beyond what bounds and ends allow.
REACH = {
    "Acrobot-v1": (PI, PI, 4 * PI, 9 * PI),
    "CartPole-v1": (2.5, 3.0, 0.25, 4.0),
    "CartPoleContinuous-v0": (2.5, 3.0, 0.25, 4.0),
    "MountainCar-v0": (1.2, 0.07),
    "MountainCarContinuous-v0": (1.2, 0.07),
    "Pendulum-v1": (30.0, 8.0),
}
EDGES = {  # positions or angles where something happens
    "Acrobot-v1": (PI, -PI, 0.0),
    "CartPole-v1": (2.4, -2.4),
    "MountainCar-v0": (-1.2, 0.6, 0.5, 0.43),
    "MountainCarContinuous-v0": (-1.2, 0.6, 0.45, 0.38),
    "Pendulum-v1": (PI, -PI, 3 * PI, 0.0),
}


def states(name: str) -> st.SearchStrategy[list[float]]:
    parts = [st.one_of(st.floats(-r, r), st.sampled_from([-r, 0.0, r])) for r in REACH[name]]
    parts[0] |= st.sampled_from(EDGES[name])
    if name.startswith("MountainCar"):
        parts[0] = st.floats(-1.2, 0.6) | st.sampled_from(EDGES[name])
    return st.tuples(*parts).map(list)


def actions(name: str) -> st.SearchStrategy[Any]:
    space = FAMILY[name]().action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return st.integers(0, int(space.n) - 1)
    high = float(space.high[0])
    return st.floats(-1.5 * high, 1.5 * high) | st.sampled_from([-high, 0.0, high])


def random_batch(name: str, num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """States and actions in float64, well inside; the actions of discrete spaces as numbers."""
    generator = torch.Generator().manual_seed(seed)
    reach = torch.tensor(REACH[name], dtype=torch.float64) * 0.6
    state = (2 * torch.rand((num, len(reach)), generator=generator).double() - 1) * reach
    env = FAMILY[name]()
    if isinstance(env.action_space, gymnasium.spaces.Discrete):
        top = int(env.action_space.n) - 1
        return state, top * torch.rand(num, generator=generator).double()
    high = float(env.action_space.high[0])
    return state, high * (1.8 * torch.rand((num, 1), generator=generator).double() - 0.9)


def turn(angle: Any) -> Any:
    """The angle nearest to 0 that is the same direction."""
    return (angle + PI) % (2 * PI) - PI


# ------------------------------------------------------------------------- Gymnasium's numbers


@pytest.mark.parametrize("name", GYMNASIUM)
@settings(max_examples=60)
@given(data=st.data())
def test_a_step_is_gymnasiums_to_rounding(name: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(states(name), actions(name)), min_size=1, max_size=6))
    env, is_discrete = FAMILY[name](), name in ("Acrobot-v1", "CartPole-v1", "MountainCar-v0")
    state = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    action = torch.tensor([row[1] for row in rows], dtype=None if is_discrete else torch.float64)
    after, reward, terminated = env.step(state, action if is_discrete else action[:, None])
    assert after.dtype == reward.dtype == torch.float64
    assert terminated.dtype == torch.bool
    theirs: Any = gymnasium.make(name).unwrapped
    for n, (begin, chosen) in enumerate(rows):
        theirs.reset()
        theirs.state = np.array(begin)
        given_action = chosen if is_discrete else np.array([chosen])
        obs, paid, is_over, _, _ = theirs.step(given_action)
        got, expected = after[n].numpy(), np.array(theirs.state)
        if name == "MountainCarContinuous-v0":  # it rounds its state to float32
            np.testing.assert_array_max_ulp(got.astype(np.float32), expected, maxulp=1)
        else:
            difference = got - expected
            if name == "Acrobot-v1":  # π and -π are one angle
                difference[:2] = turn(difference[:2])
            bound = 1e-12 * np.maximum(1.0, np.abs(expected))
            assert (np.abs(difference) <= bound).all(), (begin, chosen, got, expected)
        np.testing.assert_allclose(float(reward[n]), float(paid), rtol=1e-12, atol=1e-12)
        height = -math.cos(got[0]) - math.cos(got[0] + got[1 % len(got)]) - 1.0
        if name != "Acrobot-v1" or abs(height) > 1e-12:
            assert bool(terminated[n]) == is_over
        seen = env.observe(after[n]).float().numpy()
        np.testing.assert_allclose(seen, obs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", GYMNASIUM)
def test_the_same_seeds_meet_gymnasiums_episodes(name: str) -> None:
    def make() -> Any:
        return gymnasium.make(name, max_episode_steps=25)

    theirs = SyncVectorEnv([make] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    ours = TorchVectorEnv(FAMILY[name](), 4, max_episode_steps=25)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.single_action_space == theirs.single_action_space
    seeds = [3, 1, 4, 1]
    first = ours.reset(seed=seeds)[0]
    np.testing.assert_array_equal(first, theirs.reset(seed=seeds)[0])
    assert first.dtype == np.float32
    ours.action_space.seed(0)
    for _ in range(80):
        action = ours.action_space.sample()
        *got, info = ours.step(action)
        *expected, expected_info = theirs.step(action)
        for mine, reference in zip(got, expected, strict=True):
            assert mine.dtype == reference.dtype
            np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-4)
        assert ("final_obs" in info) == ("final_obs" in expected_info)
        if "final_obs" in info:
            np.testing.assert_array_equal(info["_final_obs"], expected_info["_final_obs"])
            for n in np.flatnonzero(info["_final_obs"]):
                last, reference = info["final_obs"][n], expected_info["final_obs"][n]
                np.testing.assert_allclose(last, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GYMNASIUM)
def test_limits_are_gymnasiums(name: str) -> None:
    assert FAMILY[name]().max_episode_steps == gymnasium.spec(name).max_episode_steps


def test_takes_the_arguments_gymnasium_takes() -> None:
    state, action = random_batch("Pendulum-v1", 1)
    theirs: Any = gymnasium.make("Pendulum-v1", g=9.81).unwrapped
    theirs.state = state[0].numpy()
    theirs.step(action[0].numpy())
    np.testing.assert_allclose(Pendulum(9.81).step(state, action)[0][0], theirs.state, rtol=1e-12)
    for env in (MountainCar(0.02), MountainCarContinuous(0.02)):
        at_goal = torch.tensor([[0.55, 0.01], [0.55, 0.05]], dtype=torch.float64)
        _, _, arrived = env.step(at_goal, torch.ones(2, *env.action_space.shape or ()))
        assert arrived.tolist() == [False, True]


def test_the_continuous_cartpole_is_the_cartpole_with_another_reward() -> None:
    state = random_batch("CartPole-v1", 50)[0] * 2
    push = torch.tensor([0, 1]).repeat(25)
    expected, _, fallen = CartPole().step(state, push)
    env = CartPoleContinuous()
    after, reward, terminated = env.step(state, (2.0 * push - 1.0)[:, None] * 1.5)  # clipped
    assert torch.equal(after, expected)
    assert torch.equal(terminated, fallen)
    assert 0 < int(fallen.sum()) < 50
    aside, tilt = after[:, 0] / 2.4, after[:, 2] / math.radians(12)
    torch.testing.assert_close(reward, 1 - aside**2 / 2 - tilt**2 / 2)
    assert env.action_space.contains(np.array([-0.3], dtype=np.float32))
    half = env.step(torch.zeros(1, 4), torch.tensor([[0.5]]))[0]
    # Upright and at rest, F/M = 5/1.1 = push; angle'' = -push / (0.5 (4/3 - 0.1/1.1)).
    spin = -(5 / 1.1) / (0.5 * (4 / 3 - 0.1 / 1.1))
    assert float(half[0, 3]) == pytest.approx(0.02 * spin, rel=1e-6)


# -------------------------------------------------------------------- functions of tensors only


@each_env
def test_a_batch_is_its_parts_and_of_any_shape(name: str) -> None:
    env = FAMILY[name]()
    state, action = random_batch(name, 12)
    before = state.clone(), action.clone()
    flat = (*env.step(state, action), env.observe(state))
    deep = env.step(state.unflatten(0, (3, 4)), action.unflatten(0, (3, 4)))
    deep = (*deep, env.observe(state.unflatten(0, (3, 4))))
    for whole, folded in zip(flat, deep, strict=True):
        assert torch.equal(whole.unflatten(0, (3, 4)), folded)
    for n in range(12):
        alone = (*env.step(state[n], action[n]), env.observe(state[n]))
        for whole, part in zip(flat, alone, strict=True):
            torch.testing.assert_close(whole[n], part, rtol=1e-13, atol=1e-13)
    assert torch.equal(state, before[0])
    assert torch.equal(action, before[1])


@each_env
def test_float32_stays_float32_and_close(name: str) -> None:
    env = FAMILY[name]()
    state, action = random_batch(name, 50)
    narrow = env.step(state.float(), action.float())
    wide = env.step(state.float().double(), action.float())
    for mine, reference in zip(narrow, wide, strict=True):
        assert mine.dtype in (torch.float32, torch.bool)
        difference = mine.double() - reference.double()
        if name == "Acrobot-v1" and difference.dim() == 2:
            difference[:, :2] = turn(difference[:, :2])
        assert float(difference.abs().max()) < 2e-4
    start = env.reset(20, torch.Generator().manual_seed(0))
    assert start.dtype == torch.float32
    assert env.observe(start).shape == (20, *env.observation_space.shape)
    assert env.reset(2, torch.Generator(), torch.float64).dtype == torch.float64


@each_env
def test_compiles_without_a_break(name: str) -> None:
    """A break is where Python would have to look at a number."""
    env = FAMILY[name]()
    state, action = random_batch(name, 5)
    compiled = torch.compile(env.step, fullgraph=True, backend="eager")
    for mine, reference in zip(compiled(state, action), env.step(state, action), strict=True):
        assert torch.equal(mine, reference)


# --------------------------------------------------------------------------------- gradients


@each_env
def test_the_gradient_of_a_step_is_right(name: str) -> None:
    env = FAMILY[name]()
    state, action = random_batch(name, 8, seed=1)
    state[:, 1:] *= 0.5  # no speed near its bound
    inputs = (state.requires_grad_(), action.requires_grad_())
    assert torch.autograd.gradcheck(lambda s, a: env.step(s, a)[0], inputs, atol=1e-6)
    assert torch.autograd.gradcheck(env.observe, (state,))
    reward = env.step(*inputs)[1]
    if reward.requires_grad:
        assert torch.autograd.gradcheck(lambda s, a: env.step(s, a)[1], inputs, atol=1e-6)
    has_gradient = {"CartPoleContinuous-v0", "Pendulum-v1", "MountainCarContinuous-v0"}
    assert reward.requires_grad == (name in has_gradient)


def slope(env: Batched, state: list[float], action: list[float]) -> tuple[Tensor, Tensor]:
    """Of the sum of the next state: by the state, by the action."""
    begin = torch.tensor([state], dtype=torch.float64, requires_grad=True)
    push = torch.tensor([action], dtype=torch.float64, requires_grad=True)
    by_state, by_action = torch.autograd.grad(env.step(begin, push)[0].sum(), (begin, push))
    return by_state[0], by_action[0]


def test_what_saturates_passes_no_gradient() -> None:
    assert slope(Pendulum(), [0.1, 0.0], [1.9])[1] != 0
    assert slope(Pendulum(), [0.1, 0.0], [2.0])[1] != 0  # on the bound: as inside
    assert slope(Pendulum(), [0.1, 0.0], [2.1])[1] == 0
    # At the largest speed the next state is (angle + 8 dt, 8): only the angle passes.
    by_state, by_action = slope(Pendulum(), [1.5, 8.0], [2.0])
    assert by_state.tolist() == [1.0, 0.0]
    assert by_action == 0
    wall, _ = slope(MountainCarContinuous(), [-1.19, -0.05], [0.0])
    assert wall.tolist() == [0.0, 0.0]
    free, _ = slope(MountainCarContinuous(), [-1.0, -0.05], [0.0])
    assert free[0] != 0


def test_an_angle_wraps_by_whole_turns_with_slope_one() -> None:
    state = torch.tensor([[3.1, 0.0, 4.0, 0.0]], dtype=torch.float64, requires_grad=True)
    after = Acrobot().step(state, torch.ones(1))[0]
    assert -PI < after[0, 0].item() < -2.0  # over the top
    (wrapped,) = torch.autograd.grad(after[0, 0], state)
    begin = (state - torch.tensor([0.3, 0.0, 0.0, 0.0])).detach().requires_grad_()
    (plain,) = torch.autograd.grad(Acrobot().step(begin, torch.ones(1))[0][0, 0], begin)
    assert float(wrapped[0, 0]) == pytest.approx(float(plain[0, 0]), rel=0.2)


def expected_return(
    env: Batched, gain: Tensor, noise: Tensor, start: Tensor, num_steps: int
) -> Tensor:
    """The mean return of `action = obs . gain + 0.3 noise` over the lanes."""
    state, total = start, torch.zeros(len(start), dtype=start.dtype)
    for t in range(num_steps):
        action = env.observe(state) @ gain + 0.3 * noise[t]
        state, reward, _ = env.step(state, action[:, None])
        total = total + reward
    return total.mean()


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPoleContinuous-v0"])
def test_the_gradient_of_a_return_is_that_of_finite_differences(name: str) -> None:
    env, generator = FAMILY[name](), torch.Generator().manual_seed(2)
    start = env.reset(20, generator, torch.float64)
    noise = torch.randn((12, 20), generator=generator, dtype=torch.float64)
    size = len(env.observe(start[0]))
    gain = torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(expected_return(env, gain, noise, start, 12), gain)
    assert exact.abs().min() > 1e-4
    for k in range(size):
        h = torch.zeros(size, dtype=torch.float64)
        h[k] = 1e-6
        high, low = (
            expected_return(env, (gain + sign * h).detach(), noise, start, 12) for sign in (1, -1)
        )
        assert float(high - low) / 2e-6 == pytest.approx(float(exact[k]), rel=1e-5)


def test_pathwise_and_score_function_agree() -> None:
    """z-tests of the mean gradient over 60 repeats of 200 equal pendulums and 4 steps."""
    env = Pendulum()
    gain = torch.tensor([0.2, -0.5, 0.3], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)

    def gradients(how: Any) -> Tensor:
        found = []
        for _ in range(60):
            state = env.start(torch.full((200, 2), 0.6, dtype=torch.float64))
            tape = Tape(how, baseline=rlpg.LeaveOneOut() if how == "score" else None)
            for _ in range(4):
                mean = env.observe(state) @ gain
                action = tape.sample(Normal(mean, log_std.exp()))
                state, reward, _ = env.step(state, action[:, None])
                tape.add(reward)
            parts = torch.autograd.grad(tape.surrogate(), (gain, log_std))
            found.append(torch.cat([parts[0], parts[1][None]]))
        return torch.stack(found)  # [60, 4]

    with torch.random.fork_rng():
        torch.manual_seed(11)
        path, score = gradients("pathwise"), gradients("score")
    error = ((path.var(0) + score.var(0)) / 60).sqrt()
    z = (path.mean(0) - score.mean(0)) / error
    assert z.abs().max() < 4, z
    assert (path.mean(0).abs() / error).max() > 10  # a gradient that is there, and seen
    assert (path.var(0) < score.var(0)).all()


# ------------------------------------------------------------------------ Gymnasium's view


@each_env
def test_resumes_exactly_from_its_state(name: str) -> None:
    for dtype in ("float32", "float64"):
        envs, twin = (TorchVectorEnv(FAMILY[name](), 3, 7, dtype=dtype) for _ in range(2))
        envs.reset(seed=[5, 1, 9])
        envs.action_space.seed(1)
        for _ in range(10):
            envs.step(envs.action_space.sample())
        saved = envs.state_dict()
        saved["generators"] = json.loads(json.dumps(saved["generators"]))
        twin.load_state_dict(saved)
        for _ in range(20):
            action = envs.action_space.sample()
            for mine, reference in zip(twin.step(action)[:4], envs.step(action)[:4], strict=True):
                np.testing.assert_array_equal(mine, reference)


@each_env
def test_an_environment_does_not_depend_on_the_others(name: str) -> None:
    many, one = (TorchVectorEnv(FAMILY[name](), n, max_episode_steps=9) for n in (37, 1))
    seeds = list(range(11, 48))
    obs, _ = many.reset(seed=seeds)
    alone, _ = one.reset(seed=seeds[30:31])
    np.testing.assert_array_equal(alone[0], obs[30])
    many.action_space.seed(0)
    for _ in range(30):
        action = many.action_space.sample()
        obs = many.step(action)[0]
        np.testing.assert_array_equal(one.step(action[30:31])[0][0], obs[30])


def test_refuses_an_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="expected one of float32, float64, got 'half'"):
        TorchVectorEnv(Pendulum(), dtype="half")


@each_env
def test_the_ids_take_limit_dtype_and_device(name: str) -> None:
    made, text = make_envs(
        f"rlpg/Torch{name}",
        2,
        seed=0,
        max_episode_steps=6,
        kwargs={"dtype": "float32", "device": "cpu"},
    )
    base = made.unwrapped
    assert isinstance(base, TorchVectorEnv)
    assert "native" in text
    assert type(base.dynamics) is FAMILY[name]
    made.reset()
    made.action_space.seed(0)
    ends = [made.step(made.action_space.sample())[3].tolist() for _ in range(12)]
    assert ends == [[False] * 2] * 5 + [[True] * 2] + [[False] * 2] * 5 + [[True] * 2]
    registered = gymnasium.spec(f"rlpg/Torch{name}").max_episode_steps
    assert registered == FAMILY[name]().max_episode_steps


def test_a_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    small = {
        "environment.kwargs": {"dtype": "float32"},
        "environment.max_episode_steps": 50,
        "rollout.num_envs": 4,
        "rollout.num_steps": 16,
        "learner.learning_rate_schedule": "constant",
        "evaluation.every": 512,
        "evaluation.episodes": 2,
        "evaluation.final_episodes": 2,
    }

    def train(path: str, total_steps: int) -> rlpg.Run:
        return rlpg.train(
            "rlpg/TorchPendulum-v1",
            total_steps=total_steps,
            run_dir=tmp_path / path,
            overrides=small,
        )

    whole = train("whole", 512)
    part = rlpg.resume(train("part", 256).path, total_steps=512, exact=True)
    for key, value in whole.policy.state_dict().items():
        assert torch.equal(part.policy.state_dict()[key], value), key
    assert whole.evaluation is not None


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "torch_environments.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names: dict[str, Any] = {"__name__": "page"}
        exec(compile(block, "torch_environments.md", "exec"), names)
    printed = [float(line) for line in capsys.readouterr().out.split()]
    assert printed[1] > printed[0]  # the return before and after

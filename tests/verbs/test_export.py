"""A policy as a module and as a file: it acts like the policy, for every head and memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import rlpg
from rlpg.cli import main
from rlpg.errors import UsageError
from rlpg.verbs.export import Acting, exported, to_onnx

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
BOX = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32))
BOUNDS = np.geomspace(1e-2, 1e6, 20).astype(np.float32)
WIDE = spaces.Box(-BOUNDS, 2 * BOUNDS)
ALL = spaces.Dict(
    a=spaces.Discrete(3, start=2), b=BOX, c=spaces.MultiDiscrete([2, 4], start=[1, 0]),
    d=spaces.MultiBinary(3), e=spaces.Box(-3, 4, (2,), np.int32),
)  # fmt: skip
IMAGE = spaces.Dict({"a": spaces.Discrete(3, start=2), "b": spaces.Box(0, 255, (9, 9), np.uint8)})
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "discrete": (VECTOR, spaces.Discrete(4, start=5), {}),
    "one logit": (VECTOR, spaces.Discrete(2), {"bernoulli": True}),
    "multi-discrete": (VECTOR, spaces.MultiDiscrete([2, 4], start=[1, 0]), {}),
    "multi-binary": (VECTOR, spaces.MultiBinary(3), {}),
    "clipped": (VECTOR, BOX, {}),
    "squashed": (VECTOR, BOX, {"gaussian": "squashed", "std": "dependent"}),
    "beta": (VECTOR, BOX, {"gaussian": "beta"}),
    "wide": (VECTOR, WIDE, {"gaussian": "beta"}),  # of which float32 tells no 1e-5
    "integers": (VECTOR, spaces.Box(-3, 4, (2,), np.int32), {}),
    "nested": (VECTOR, ALL, {}),
    "masked": (VECTOR, spaces.Discrete(3), {"info_mask": 3}),
    "image, one logit": (IMAGE, spaces.Discrete(2), {"bernoulli": True}),
    "gru": (VECTOR, spaces.Discrete(3), {"memory": "gru", "memory_size": 5}),
    "gru, masked": (VECTOR, spaces.Discrete(3),
                    {"info_mask": 3, "memory": "gru", "memory_size": 5}),
    "lstm, squashed": (VECTOR, BOX, {"gaussian": "squashed", "std": "dependent",
                                     "memory": "lstm", "memory_size": 5}),
}  # fmt: skip


def policy_of(case: str) -> rlpg.StandardPolicy:
    """With weights that matter, and a normalizer that has seen something."""
    observation_space, action_space, options = CASES[case]
    generator = torch.Generator().manual_seed(1)
    policy = rlpg.StandardPolicy(
        observation_space, action_space, generator=generator, hidden=(8,), **options
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    if policy.normalizer is not None:
        seen = 3 + 2 * torch.randn(50, policy.observations.num_features, generator=generator)
        policy.normalizer.update(seen)
    return policy


@pytest.fixture(scope="module")
def _onnx_functions() -> Iterator[None]:
    """torch.onnx reads the source of its 500 functions anew for each file, a third of its time."""
    pytest.importorskip("onnx")
    from torch.onnx._internal.exporter import _registration

    functions = cache(_registration.onnxscript_apis.get_torchlib_ops)
    with pytest.MonkeyPatch.context() as patch:
        apis = SimpleNamespace(get_torchlib_ops=functions)
        patch.setattr(_registration, "onnxscript_apis", apis)
        yield


def flat(action: Any) -> list[np.ndarray]:
    return [
        np.asarray(part) for part in (action.values() if isinstance(action, dict) else [action])
    ]


@pytest.mark.parametrize("case", CASES)
def test_the_module_acts_like_the_policy(case: str) -> None:
    policy = policy_of(case)
    acting = Acting(policy)
    observation, *rest = acting.examples(16, seed=3)
    carry = None if not rest else tuple(rest[1:]) if len(rest) > 2 else rest[1]
    starts = rest[0] if rest else None
    expected, after = policy.mode(observation, carry, starts)
    found = acting(observation, *rest)
    wanted = flat(policy.head.to_env(expected.numpy()))
    for part, want in zip(found, wanted, strict=False):
        assert np.allclose(part.numpy(), want, atol=1e-6)
    left = found[len(wanted) :]
    states = after if isinstance(after, tuple) else () if after is None else (after,)
    for part, state in zip(left, states, strict=True):
        assert torch.allclose(part, state)


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (spaces.Box(-1, 1, (3,), np.float64), torch.float32),
        (spaces.Box(-9, 9, (3,), np.int64), torch.float32),
        (spaces.Box(0, 1, (3,), np.bool_), torch.float32),
        (spaces.Box(0, 255, (3,), np.uint8), torch.uint8),
        (spaces.MultiBinary(3), torch.float32),
        (spaces.MultiDiscrete([2, 3], start=[1, 0]), torch.int64),
        (spaces.Tuple([spaces.Discrete(3), VECTOR]), torch.float32),
    ],
)
def test_observations_come_in_the_dtypes_of_the_page(
    space: spaces.Space[Any], dtype: torch.dtype
) -> None:
    policy = rlpg.StandardPolicy(space, BOX, generator=torch.Generator())
    assert Acting(policy).examples(2)[0].dtype == dtype


FILES = {  # outputs; each file takes seconds to make, so one has many heads
    "nested": ["action['a']", "action['b']", "action['c']", "action['d']", "action['e']"],
    "beta": ["action"],
    "wide": ["action"],
    "image, one logit": ["action"],
    "gru, masked": ["action", "next_carry_0"],
    "lstm, squashed": ["action", "next_carry_0", "next_carry_1"],
}


@pytest.mark.usefixtures("_onnx_functions")
@pytest.mark.parametrize("case", FILES)
def test_the_file_acts_like_the_policy(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "policy.onnx"
    # Both kinds are compared for many heads, otherwise the sampling one, where there is one.
    for deterministic in {case in ("beta", "wide"), case in ("beta", "wide", "nested")}:
        assert to_onnx(policy_of(case), path, deterministic=deterministic) <= 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_outputs()] == FILES[case]


def test_samples_have_the_law_of_the_policy() -> None:
    """Uniform numbers in, actions out: frequencies of choices, moments of Normals."""
    rows = 20_000
    for case in ("discrete", "one logit", "multi-binary", "clipped", "squashed"):
        policy = policy_of(case)
        acting = Acting(policy, deterministic=False)
        observation = acting.examples(1)[0].expand(rows, -1)
        uniform = torch.rand(rows, acting.num_uniform, generator=torch.Generator().manual_seed(0))
        (found,) = acting(observation, uniform)
        drawn, _ = policy.draw(observation, None, torch.Generator().manual_seed(1))
        wanted = torch.from_numpy(np.asarray(policy.head.to_env(drawn.numpy())))
        for moment in (1, 2):
            mine, theirs = found.double() ** moment, wanted.double() ** moment
            error = (mine.var(0) + theirs.var(0)).div(rows).sqrt() + 1e-9
            assert (((mine.mean(0) - theirs.mean(0)) / error).abs() < 4).all(), case


class Own(rlpg.Policy):
    """A policy of one's own, with a branch on values where `branches`."""

    def __init__(self, observation_space: Any, action_space: Any, branches: bool = False) -> None:
        super().__init__(observation_space, action_space)
        self.layer, self.branches = nn.Linear(3, 2), branches

    def forward(self, obs: Tensor, carry: Any = None, episode_start: Any = None) -> Any:
        mean = self.layer(self.features(obs))
        if self.branches and mean.sum() > 0:
            mean = -mean
        return Independent(Normal(mean, torch.ones_like(mean)), 1), None


def test_a_policy_of_ones_own_is_exported() -> None:
    acting = Acting(Own(VECTOR, BOX))
    inputs = acting.examples(7)
    (found,) = exported(acting).module()(*inputs)
    assert torch.allclose(found, acting(*inputs)[0])
    assert found.shape == (7, 2)  # traced with another number of rows
    with pytest.raises(UsageError, match="expected the standard policy to sample from, got Own"):
        Acting(Own(VECTOR, BOX), deterministic=False)


@pytest.mark.parametrize(
    ("space", "options"), [(IMAGE, {}), (VECTOR, {"memory": "gru", "memory_size": 5})]
)
@pytest.mark.usefixtures("_onnx_functions")
def test_a_policy_with_a_network_of_ones_own_could_not_be_exported(
    space: spaces.Space[Any], options: dict[str, Any], tmp_path: Path
) -> None:
    """How many rows there are was a constant of the program."""
    generator = torch.Generator().manual_seed(1)
    policy = rlpg.StandardPolicy(space, BOX, network=nn.Linear, generator=generator, **options)
    assert to_onnx(policy, tmp_path / "policy.onnx") < 1e-5
    acting = Acting(policy)
    inputs = acting.examples(7)
    for found, expected in zip(exported(acting).module()(*inputs), acting(*inputs), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_what_cannot_be_traced_or_sampled_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"expected a policy that torch\.export can trace") as told:
        exported(Acting(Own(VECTOR, BOX, branches=True)))
    assert "\n" not in str(told.value)
    with pytest.raises(UsageError, match="BetaHead; export the deterministic actions"):
        Acting(policy_of("beta"), deterministic=False)


def test_the_command_writes_a_file_that_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "CartPole-v1-reinforce"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("inputs observation; outputs action\nexported to policy.onnx: differs")
    session = onnxruntime.InferenceSession("policy.onnx", providers=["CPUExecutionProvider"])
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    steps, is_over = 0, False
    while not is_over:
        (action,) = session.run(None, {"observation": obs[None]})
        obs, _, terminated, truncated, _ = env.step(action[0])
        steps, is_over = steps + 1, terminated or truncated
    env.close()
    assert steps == 500


def test_a_missing_extra_is_found_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", "no-such-agent"]) == 2
    assert 'pip install ".[onnx]"' in capsys.readouterr().err

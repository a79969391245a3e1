"""What an environment gives back: what fits passes as it is, the rest is refused by name."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from rlpg.errors import EnvironmentFault
from rlpg.policies import StandardPolicy
from rlpg.rollouts import Collector, make_envs
from rlpg.rollouts.validation import (
    Validator,
    flag_misfit,
    info_misfit,
    not_finite,
    observation_misfit,
    reward_misfit,
)

BOX = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (2, 2), np.uint8)
CATEGORIES = spaces.MultiDiscrete([2, 3], start=[0, 5])
NESTED = spaces.Dict({"a": BOX, "b": spaces.Tuple([spaces.Discrete(3, start=2), IMAGE])})
ZERO = np.zeros(3, np.float32)


def nested(a: Any = ZERO, place: Any = 2, image: Any = ((0, 1), (2, 3))) -> dict[str, Any]:
    return {"a": a, "b": (place, np.array(image, np.uint8) if isinstance(image, tuple) else image)}


@pytest.mark.parametrize(
    ("space", "obs"),
    [
        (BOX, ZERO),
        (BOX, np.array([0.5, np.nan, np.inf], np.float32)),  # its step is the collector's to name
        (IMAGE, np.zeros((2, 2), np.uint8)),
        (spaces.Discrete(3, start=2), 4),
        (spaces.Discrete(3, start=2), np.int64(2)),
        (spaces.MultiBinary(2), np.array([0, 1], np.int8)),
        (CATEGORIES, np.array([1, 7])),
        (spaces.Text(3), "abc"),
    ],
    ids=str,
)
def test_what_fits_is_passed_on_without_a_copy(space: Any, obs: Any) -> None:
    assert Validator(space).observation(obs) is obs


@pytest.mark.parametrize(
    ("space", "obs"),
    [
        (BOX, [0.5, -0.25, 1.0]),
        (BOX, np.array([0.5, -0.25, 1.0])),
        (BOX, np.array([1, 0, -1])),
        (BOX, np.array([True, False, True])),
        (spaces.MultiBinary(2), [0, 1]),
        (spaces.Box(-5, 5, (2,), np.int16), np.array([3, -4])),
        (spaces.Discrete(3), np.array(2, np.int32)),
    ],
    ids=str,
)
def test_numbers_of_another_type_that_fit_are_cast(space: Any, obs: Any) -> None:
    fitted = Validator(space).observation(obs)
    assert fitted.dtype == space.dtype
    assert fitted.tolist() == np.asarray(obs).tolist()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint16", "int32", "uint64", "int64"])
@pytest.mark.parametrize("given", [[0, 1], *(np.array([0, 1], kind) for kind in ("b", "B", "q"))])
def test_integers_that_fit_are_cast_whatever_their_sign(dtype: str, given: Any) -> None:
    """A list of pixels, or NumPy's int64 of them, was refused as no uint8."""
    fitted = Validator(spaces.Box(0, 1, (2,), np.dtype(dtype).type)).observation(given)
    assert np.array_equal(fitted, np.array([0, 1], dtype))


def test_nested_observations_pass_part_by_part() -> None:
    given = nested(a=[0.0, 0.5, 1.0])
    fitted = Validator(NESTED).observation(given)
    assert fitted["a"].dtype == np.float32
    assert fitted["b"][0] == 2
    assert fitted["b"][1] is given["b"][1]


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (BOX, np.zeros(1, np.float32), r"float32 of shape \(3,\), got float32 of shape \(1,\)"),
        (BOX, np.zeros((1, 3), np.float32), r"got float32 of shape \(1, 3\)"),
        (BOX, np.array([0, -1e39, 0]), r"that float32 can hold, got -1e\+39 at \[1\]"),
        (BOX, None, "got None"),
        (BOX, {}, r"got dict \{\}"),
        (IMAGE, np.zeros((2, 2)), r"uint8 of shape \(2, 2\), got float64"),
        (IMAGE, np.full((2, 2), 300), r"that uint8 can hold, got 300 at \[0, 0\]"),
        (IMAGE, [[0, 1], [2, -3]], r"that uint8 can hold, got -3 at \[1, 1\]"),
        (spaces.Box(0, 1, (2,), bool), np.array([1, 2]), r"that bool can hold, got 2 at \[1\]"),
        (IMAGE, np.full((2, 2), 300, np.uint16), r"that uint8 can hold, got 300 at \[0, 0\]"),
        (spaces.Discrete(3), 3, "values from 0 to 2, got int 3"),
        (spaces.Discrete(3, start=2), np.int64(1), "values from 2 to 4, got int64 "),
        (spaces.Discrete(3), 1.0, "int64 of shape .*, got float 1.0"),
        (spaces.Discrete(3), "1", "got str '1'"),
        (spaces.MultiBinary(2), [0, 2], r"values from 0 to 1, got list \[0, 2\]"),
        (CATEGORIES, np.array([1, 8]), r"values from \[0 5\] to \[1 7\], got int64 .*\[1, 8\]"),
        (NESTED, nested(a=np.zeros(1, np.float32)), r"observation\['a'\]: expected float32"),
        (NESTED, nested(place=5), r"observation\['b'\]\[0\]: expected values from 2 to 4"),
        (NESTED, nested(image=np.zeros((2, 3), np.uint8)), r"observation\['b'\]\[1\]: expected"),
        (NESTED, {"a": ZERO}, "observation: expected a dict with a, b, got dict"),
        (NESTED, {"a": ZERO, "b": (2,)}, r"observation\['b'\]: expected a tuple of 2, got tuple"),
        (NESTED, ZERO, "observation: expected a dict with a, b, got float32"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(space: Any, obs: Any, message: str) -> None:
    with pytest.raises(EnvironmentFault, match=message) as caught:
        Validator(space).observation(obs)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("correct the environment or its observation_space")


@pytest.mark.parametrize("reward", [1, 1.5, np.float32(2), np.int64(3), True, np.array(1.0)])
@pytest.mark.parametrize("flag", [True, np.bool_(False), 0, np.array(True)])
def test_numbers_and_flags_of_every_kind_pass(reward: Any, flag: Any) -> None:
    Validator(BOX).outcome(reward, flag, flag, {})


def test_a_reward_may_be_a_tensor() -> None:
    Validator(BOX).outcome(torch.tensor(1.0), False, False, {})


# ------------------------------------------------------- what Gymnasium does to such an answer


class Showing(gymnasium.Env[Any, Any]):
    """Shows this and that: at the second step of its first episode, and otherwise."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: Any, right: Any, wrong: Any) -> None:
        self.observation_space, self.right, self.wrong, self.steps = space, right, wrong, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.right, {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.wrong if self.steps == 2 else self.right, 1.0, False, False, {}


def collecting(envs: Any) -> Collector:
    generator = torch.Generator().manual_seed(0)
    spaces_of = envs.single_observation_space, envs.single_action_space
    return Collector(envs, StandardPolicy(*spaces_of, hidden=(4,), generator=generator))


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_part_of_shape_1_was_broadcast_by_the_shared_memory(backend: str) -> None:
    gymnasium.register(
        "test/Showing-v0",
        lambda: Showing(NESTED, nested(), nested(a=np.ones(1, np.float32))),
    )
    envs, _ = make_envs("test/Showing-v0", 2, seed=0, backend=backend, num_workers=1)
    try:
        with pytest.raises(
            EnvironmentFault, match=r"step 1: environment 0, .* observation\['a'\]: .*\(1,\)"
        ):
            collecting(envs).steps(4)
    finally:
        envs.close()
        del gymnasium.registry["test/Showing-v0"]


def test_a_category_of_a_given_environment_had_no_index() -> None:
    space = spaces.Discrete(3)
    given = SyncVectorEnv([lambda: Showing(space, 0, 0), lambda: Showing(space, 0, 7)])
    envs, _ = make_envs(given, seed=0)
    with pytest.raises(EnvironmentFault, match=r"^step 1: .*from 0 to 2, got 7 at \[1\]"):
        collecting(envs).steps(4)
    given.close()


# ----------------------------------------------------------------- what check-env says besides


@pytest.mark.parametrize(
    ("space", "obs", "kind", "text"),
    [
        (BOX, ZERO, None, ""),
        (BOX, np.array([0.5, np.nan, 1], np.float32), None, ""),
        (BOX, np.zeros(3), "converted", "observation: expected dtype float32, got float64"),
        (BOX, [0.0, 0.0, 0.0], "converted", r"expected a numpy array, got list \[0.0"),
        (BOX, np.array([0, 2, 0], np.float32), "bounds", r"\[1\]: expected -1 to 1, got 2"),
        (BOX, np.zeros(2, np.float32), "refused", r"float32 of shape \(3,\)"),
        (spaces.Discrete(3), True, None, ""),
        (spaces.Discrete(3), 3, "refused", "values from 0 to 2, got int 3"),
        (NESTED, nested(), None, ""),
        (NESTED, {**nested(), "c": 1}, "converted", "a dict with a, b and nothing else, got dict"),
        (NESTED, {**nested(), "b": [*nested()["b"]]}, "converted", "expected a tuple of 2"),
        (NESTED, nested(a=np.full(3, 9, np.float32)), "bounds", r"a.\]\[0\]: expected"),
        (spaces.Text(3), "abcd", "refused", "observation: expected one of Text"),
    ],
    ids=str,
)  # fmt: skip
def test_misfits_of_an_observation(space: Any, obs: Any, kind: str | None, text: str) -> None:
    misfit = observation_misfit(space, obs)
    assert (misfit and misfit.kind) == kind
    assert misfit is None or re.search(text, misfit.text), misfit.text


@pytest.mark.parametrize(
    ("value", "reward", "flag", "info"),
    [
        (1.0, None, "refused", "refused"),
        (1, None, "converted", "refused"),
        (True, "converted", None, "refused"),
        (np.bool_(True), "converted", None, "refused"),
        (np.array(1.0), "converted", "refused", "refused"),
        (np.ones(1), "refused", "refused", "refused"),
        (None, "refused", "refused", "refused"),
        ({}, "refused", "refused", None),
        (MappingProxyType({}), "refused", "refused", "converted"),
    ],
    ids=str,
)
def test_misfits_of_an_outcome(value: Any, reward: Any, flag: Any, info: Any) -> None:
    kinds = [
        misfit and misfit.kind
        for misfit in (reward_misfit(value), flag_misfit("terminated", value), info_misfit(value))
    ]
    assert kinds == [reward, flag, info]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array([0, 1e39]), r"it\[1\]: expected a finite float32, got 1e\+39"),
        ({"a": (0, np.float32(np.nan))}, r"it\['a'\]\[1\]: expected a finite float32, got nan"),
        (float("-inf"), "it: expected a finite float32, got -inf"),
        (np.array([2**62]), "^$"),
        ("text", "^$"),
        (None, "^$"),
    ],
    ids=str,
)
def test_numbers_that_are_not_finite(value: Any, text: str) -> None:
    assert re.search(text, not_finite(value, "it"))

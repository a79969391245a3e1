"""Environments that answer wrongly, or in an unusual way; without torch, for worker processes."""

from __future__ import annotations

import copy
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from misbehaving import misbehave

LENGTH = 5  # steps of an episode

OBSERVATIONS: dict[str, tuple[Any, str]] = {
    "nan": (np.array([0, np.nan, 0], np.float32), r"expected finite float32 .*got nan at \[1\]"),
    "inf": (np.array([0, 0, -np.inf], np.float32), r"expected finite float32 .*got -inf at \[2\]"),
    "1e39": (np.array([0, 1e39, 0]), r"that float32 can hold, got 1e\+39 at \[1\]"),
    "shape (1,)": (np.zeros(1, np.float32), r"shape \(3,\), got float32 of shape \(1,\)"),
    "shape ()": (0.5, r"shape \(3,\), got float 0.5"),
    "objects": (np.array([0, None, 0]), r"float32 of shape \(3,\), got object of shape \(3,\)"),
    "complex": (np.zeros(3, complex), r"float32 of shape \(3,\), got complex128 of shape \(3,\)"),
    "numbers as strings": (np.array(["1", "2", "3"]), r"float32 of shape \(3,\), got <U1 of"),
    "string": ("abc", r"float32 of shape \(3,\), got str 'abc'"),
    "none": (None, r"float32 of shape \(3,\), got None"),
    "ragged": ([[1.0], [2.0, 3.0]], r"float32 of shape \(3,\), got list "),
}
OUTCOMES: dict[str, tuple[dict[int, Any], str]] = {
    "reward nan": ({1: np.nan}, r"reward: expected a finite float32, got nan"),
    "reward inf": ({1: np.inf}, r"reward: expected a finite float32, got inf"),
    "reward 1e39": ({1: 1e39}, r"reward: expected a finite float32, got 1e\+39"),
    "reward none": ({1: None}, r"reward: expected a number, got None"),
    "reward string": ({1: "1.5"}, r"reward: expected a number, got str '1.5'"),
    "reward array": ({1: np.ones(1)}, r"reward: expected a number, got float64 of shape \(1,\)"),
    "terminated none": ({2: None}, r"terminated: expected True or False, got None"),
    "truncated string": ({3: "no"}, r"truncated: expected True or False, got str 'no'"),
    "info none": ({4: None}, r"info: expected a dict, got None"),
}


class Faulty(gymnasium.Env[Any, Any]):
    """Episodes of five steps; the copy whose first seed is `bad` does `fault` at `moment`."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fault: str = "", moment: str = "", bad: int = -1) -> None:
        self.fault, self.moment, self.bad = fault, moment, bad
        self.is_bad = False
        self.episodes = self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.is_bad |= self.episodes == 0 and seed == self.bad
        self.episodes += 1
        self.left = LENGTH
        due = {1: "reset", 2: "next reset"}.get(self.episodes)
        return self.answer(due, [np.zeros(3, np.float32), {}], outcome=False)

    def step(self, action: Any) -> Any:
        due = {0: "first step", 7: "later"}.get(self.steps)
        self.steps += 1
        self.left -= 1
        obs = np.full(3, 0.5, np.float32)
        return self.answer(due, [obs, 1.0, self.left == 0, False, {}], outcome=True)

    def answer(self, due: str | None, right: list[Any], *, outcome: bool) -> tuple[Any, ...]:
        if not self.is_bad or due != self.moment:
            return tuple(right)
        if self.fault in OBSERVATIONS:
            return (OBSERVATIONS[self.fault][0], *right[1:])
        if outcome and self.fault in OUTCOMES:
            for place, value in OUTCOMES[self.fault][0].items():
                right[place] = value
        misbehave(self.fault)
        return tuple(right)


class Odd(gymnasium.Env[Any, Any]):
    """Counts its steps, in a way that is unusual but allowed."""

    observation_space = spaces.Box(0, 1000, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, odd: str = "", length: int = 5) -> None:
        self.odd, self.length = odd, length
        self.total = 0
        self.buffer = np.zeros(3, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.left = self.length
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        if self.left == 0:
            raise RuntimeError("stepped after the end")
        self.total += 1
        self.left -= 1
        if self.odd == "slow" and self.total == 3:
            time.sleep(0.5)
        if self.odd == "each step slow":
            time.sleep(0.1)
        over = self.left == 0
        return self.seen(), float(self.total), over, over and self.odd == "both", {}

    def seen(self) -> Any:
        self.buffer[:] = self.total, self.left, 0
        if self.odd == "buffer":
            return self.buffer
        return {"float64": self.buffer.astype(float), "list": self.buffer.tolist()}.get(
            self.odd, self.buffer.astype(np.int64) if self.odd == "integers" else self.buffer.copy()
        )


SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (2, 3), np.float32),
    "float64": spaces.Box(-1, 1, (2,), np.float64),
    "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "number": spaces.Box(-1, 1, (), np.float32),
    "discrete": spaces.Discrete(5, start=-1),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,), np.float32)}),
    "tuple": spaces.Tuple((spaces.MultiBinary(2), spaces.Dict({"c": spaces.Discrete(2)}))),
}


class Sampling(gymnasium.Env[Any, Any]):
    """Observations drawn from a space, for actions of the same space; episodes of 1 to 6 steps.

    The reward is a number made of the action and its types, so that nothing in it can be lost.
    """

    def __init__(self, space: str, infos: bool = True) -> None:
        self.observation_space = copy.deepcopy(SPACES[space])
        self.action_space = copy.deepcopy(SPACES[space])
        self.infos = infos
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.left = int(self.np_random.integers(1, 7))
        info = {"action_mask": np.ones(3, np.int8), "begun": True} if self.infos else {}
        return self.observation_space.sample(), info

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.left -= 1
        reward = float(zlib.crc32(described(action).encode()))
        info: dict[str, Any] = {}
        if self.infos:
            info = {"action_mask": np.arange(3, dtype=np.int8), "steps": self.steps, "half": 0.5}
            if self.steps % 3 == 0:
                info |= {"word": "three", "nested": {"x": np.float32(self.steps)}}
        return self.observation_space.sample(), reward, self.left == 0, self.left % 5 == 4, info


def described(value: Any) -> str:
    """A value with all its types."""
    if isinstance(value, dict):
        return str({key: described(part) for key, part in sorted(value.items())})
    if isinstance(value, tuple):
        return str(tuple(described(part) for part in value))
    dtype = getattr(value, "dtype", None)
    return f"{type(value).__name__} {dtype} {np.shape(value)} {np.asarray(value).tolist()}"


class Fragile(gymnasium.Env[Any, Any]):
    """While the file `broken` exists, the copy whose first seed is `bad` fails at step `at`."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, broken: str, fault: str = "raise", at: int = 40, bad: int = -1) -> None:
        self.broken, self.fault, self.at, self.bad = Path(broken), fault, at, bad
        self.is_bad, self.resets, self.steps = False, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.is_bad |= self.resets == 0 and seed == self.bad
        self.resets += 1
        self.left = 7
        self.fail_if_due(0)
        return self.np_random.random(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.left -= 1
        obs = self.np_random.random(2, np.float32)
        if self.fail_if_due(self.steps):
            obs[1] = {"nan": np.nan, "out of bounds": 1.5}[self.fault]
        return obs, float(action), self.left == 0, False, {}

    def fail_if_due(self, at: int) -> bool:
        if not self.is_bad or at != self.at or not self.broken.exists():
            return False
        match self.fault:
            case "raise":
                raise ValueError("the motor\nis on fire")
            case "exit":
                sys.exit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(280)
        return True


class Composite(gymnasium.Env[Any, Any]):
    """Dict actions of a tuple and a box; the observation is a function of them all."""

    observation_space = spaces.Dict({"x": spaces.Box(-9, 9, (2,), np.float64)})
    action_space = spaces.Dict(
        {"a": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2))), "b": spaces.Box(-1, 1)}
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 2)
        return {"x": self.x}, {}

    def step(self, action: Any) -> Any:
        (choice, bits), push = action["a"], action["b"]
        self.x = np.clip(self.x * 0.9 + 0.1 * choice + 0.01 * bits + 0.2 * push, -9, 9)
        return {"x": self.x}, float(push[0]), bool(self.x[0] > 1.2), False, {}


class Unrepeatable(Composite):
    """No two resets are alike, in whatever process; a lethal one ends its process."""

    def __init__(self, lethal: bool = False) -> None:
        self.lethal = lethal

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        _, info = super().reset(seed=seed)
        if self.lethal:
            os._exit(7)
        self.x = self.x + np.frombuffer(os.urandom(2), np.uint8) / 255
        return {"x": self.x}, info


class Acting(gymnasium.Env[Any, Any]):
    """Does `what` in its step number 3."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, what: Callable[[], None] | None = None, closing: Any = None) -> None:
        self.what, self.closing, self.steps = what, closing, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.what is not None and self.steps == 3:
            self.what()
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def close(self) -> None:
        if self.closing is not None:
            self.closing()

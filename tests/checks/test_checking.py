"""`check-env` finds what is wrong, says it in the right line, and leaves healthy ones in peace."""

from __future__ import annotations

import json
import random
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlpg
from rlpg import cli
from rlpg.errors import EnvironmentSetupError, UsageError

Result = tuple[Any, Any, Any, Any, Any]
STEPS = 120  # enough for ten episodes of Walk


class Walk(gymnasium.Env[Any, Any]):
    """A healthy environment: a random walk that ends after 12 steps."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    length = 12

    def __init__(self) -> None:
        self.observation_space: Any = spaces.Box(-100.0, 100.0, (3,), np.float32)
        self.action_space: Any = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        self.x = self.np_random.normal(size=3)
        return self.obs(), self.info()

    def step(self, action: Any) -> Result:
        self.t += 1
        self.x = self.x + np.sum(action) - 1 + 0.1 * self.np_random.normal(size=3)
        return self.obs(), self.reward(), self.t >= self.length, False, self.info()

    def obs(self) -> Any:
        return self.x.astype(np.float32)

    def reward(self) -> Any:
        return float(self.x[0])

    def info(self) -> Any:
        return {}


class RaisesInReset(Walk):
    def reset(self, **_: Any) -> Any:
        raise RuntimeError("no simulator\nhere")


class RaisesLater(Walk):
    def step(self, action: Any) -> Result:
        if self.t == 7:
            raise RuntimeError("the arm is stuck")
        return super().step(action)


class Leaves(Walk):
    def step(self, action: Any) -> Result:
        sys.exit(3)


class FourResults(Walk):
    def step(self, action: Any) -> Any:
        return super().step(action)[:4]


class WithoutSeed(Walk):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset(seed=0)


class WrongShape(Walk):
    def obs(self) -> Any:
        return self.x[:1].astype(np.float32)


class WrongDtype(Walk):
    def obs(self) -> Any:
        return self.x


class AList(Walk):
    def obs(self) -> Any:
        return [float(x) for x in self.x]


class Ragged(Walk):
    def obs(self) -> Any:
        return [[1.0], [1.0, 2.0]]


class Nothing(Walk):
    def obs(self) -> Any:
        return None


class OutOfBounds(Walk):
    def obs(self) -> Any:
        return np.float32([0, 150 if self.t == 9 else 0, *self.x[:1]])


class NoCategory(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Discrete(12)

    def obs(self) -> Any:
        return self.t  # 12 at the end


class WrongKeys(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(x=spaces.Discrete(3), y=spaces.Discrete(3))

    def obs(self) -> Any:
        return {"x": 1}


class WrongPart(Walk):
    def __init__(self) -> None:
        super().__init__()
        box = self.observation_space
        self.observation_space = spaces.Tuple([spaces.Discrete(3), spaces.Dict(a=box)])

    def obs(self) -> Any:
        return (1, {"a": super().obs().astype(np.float16 if self.t == 5 else np.float32)})


class LateNaN(Walk):
    def obs(self) -> Any:
        return np.float32([0, 0, np.nan if self.t == 10 else self.x[0]])


class TooLarge(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def obs(self) -> Any:
        return self.x * (1e40 if self.t == 11 else 1.0)


class InfiniteReward(Walk):
    def reward(self) -> Any:
        return np.inf if self.t == 8 else 0.5


class RewardArray(Walk):
    def reward(self) -> Any:
        return self.x[:1]


class NoReward(Walk):
    def reward(self) -> Any:
        return None


class RewardGraph(Walk):
    def reward(self) -> Any:
        return torch.tensor(0.5, requires_grad=True) * 2


class ObservationGraph(Walk):
    def obs(self) -> Any:
        return torch.zeros(3, requires_grad=True) * 2


class NumberedEnds(Walk):
    def step(self, action: Any) -> Result:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, int(terminated), truncated, info


class BothEnds(Walk):
    def step(self, action: Any) -> Result:
        obs, reward, done, _, info = super().step(action)
        return obs, reward, done, done, info


class InfoList(Walk):
    def info(self) -> Any:
        return [self.t]


class ChangesActions(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def step(self, action: Any) -> Result:
        action *= 0.5
        return super().step(action)


class ReusesBuffer(Walk):
    def reset(self, **kwargs: Any) -> Any:
        self.buffer = np.zeros(3, np.float32)
        return super().reset(**kwargs)

    def obs(self) -> Any:
        self.buffer[:] = self.x
        return self.buffer


class NeverEnds(Walk):
    length = 10**9


class OwnGenerator(Walk):
    """Draws from a generator that no seed reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng()

    def reward(self) -> Any:
        return float(self.rng.normal())


class SharedSpace(Walk):
    """Samples from a space of the class, which every environment seeds and draws from."""

    shared = spaces.Box(-1.0, 1.0, (3,), np.float32)

    def reset(self, **options: Any) -> Any:
        self.shared.seed(options["seed"])
        return super().reset(**options)

    def obs(self) -> Any:
        return self.shared.sample()


class SharedCounter(Walk):
    """Counts its steps in a list of the class."""

    steps: ClassVar[list[int]] = []

    def reset(self, **options: Any) -> Any:
        self.steps.clear()
        return super().reset(**options)

    def reward(self) -> Any:
        self.steps.append(self.t)
        if len(self.steps) > self.length:
            raise RuntimeError("too many steps")
        return 1.0


class Curriculum(Walk):
    """Every episode is harder than the one before."""

    difficulty = 0

    def reset(self, **kwargs: Any) -> Any:
        self.difficulty += 1
        return super().reset(**kwargs)

    def reward(self) -> Any:
        return float(self.difficulty) if self.t > 3 else 0.0


class ForgetsToRestart(Walk):
    """What is left of an unfinished episode goes on in the next."""

    def reset(self, **kwargs: Any) -> Any:
        t = getattr(self, "t", 0)
        result = super().reset(**kwargs)
        self.t = 0 if t >= self.length else t
        return result


class BrokenByAnotherStep(Walk):
    """A step after the end leaves it broken for good."""

    broken = False

    def reset(self, **kwargs: Any) -> Any:
        if self.broken:
            raise RuntimeError("the socket is gone")
        return super().reset(**kwargs)

    def step(self, action: Any) -> Result:
        self.broken = self.t >= self.length
        return super().step(action)


class Clocked(Walk):
    def obs(self) -> Any:
        return np.float32([time.perf_counter() % 90, 0, 0])


class IgnoresSeed(Walk):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=0)


class GlobalNumpy(Walk):
    def reward(self) -> Any:
        return float(np.random.normal())


class GlobalTorch(Walk):
    def reward(self) -> Any:
        return float(torch.rand(()))


class ReseedsGlobal(Walk):
    """Repeats itself alone, but not beside another copy."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        random.seed(seed)
        return super().reset(seed=seed)

    def reward(self) -> Any:
        return random.random()


class WastesGlobal(Walk):
    def reward(self) -> Any:
        np.random.normal()
        return 1.0


class Masked(Walk):
    """Raises where a forbidden action is taken; the mask is right."""

    def info(self) -> Any:
        allowed = np.array([True, True, True])
        allowed[self.t % 3] = False
        return {"action_mask": allowed}

    def step(self, action: Any) -> Result:
        if not self.info()["action_mask"][action]:
            raise RuntimeError("forbidden")
        return super().step(action)


class MaskedAsserts(Masked):
    """As `Masked`, in the way of many environments."""

    def step(self, action: Any) -> Result:
        assert self.info()["action_mask"][action]
        return Walk.step(self, action)


class NumpyFlags(Walk):
    """Episodes of one step, whose flags are NumPy's."""

    def step(self, action: Any) -> Result:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, np.bool_(True), np.bool_(False), info


class ShortMask(Walk):
    def info(self) -> Any:
        return {"action_mask": np.ones(2, np.int8)}


class MaskNowAndThen(Walk):
    def info(self) -> Any:
        return {"action_mask": np.ones(3, np.int8)} if self.t % 2 == 0 else {}


class NothingAllowed(Walk):
    def info(self) -> Any:
        return {"action_mask": np.full(3, self.t != 4)}


class CloseRaises(Walk):
    def close(self) -> None:
        raise RuntimeError("already gone")


class CloseOnce(Walk):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("already gone")
        self.closed = True


class CloseSleeps(Walk):
    def close(self) -> None:
        time.sleep(60)


class TextSpace(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Text(5)

    def obs(self) -> Any:
        return "abc"


class SequenceSpace(Walk):
    """Gives more and fewer parts from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Sequence(spaces.Box(-100.0, 100.0, (1,), np.float32))

    def obs(self) -> Any:
        return (self.x[:1].astype(np.float32),) * (1 + self.t % 3)


class OneOfSpace(Walk):
    """Gives a number, then a tuple."""

    def __init__(self) -> None:
        super().__init__()
        one = spaces.Tuple([spaces.Discrete(20), spaces.Discrete(20)])
        self.observation_space = spaces.OneOf([spaces.Discrete(20), one])

    def obs(self) -> Any:
        number = np.int64(self.t)
        return (np.int64(1), (number, number)) if self.t % 2 else (np.int64(0), number)


class NoActionSpace(Walk):
    def __init__(self) -> None:
        super().__init__()
        del self.action_space


class SequenceActions(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Sequence(spaces.Discrete(2))


class DefaultSeed(Walk):
    """Only Gymnasium's checker looks at this."""

    def reset(self, *, seed: int | None = 7, options: Any = None) -> Any:
        return super().reset(seed=seed, options=options)


class Warns(Walk):
    def reward(self) -> Any:
        if self.t == 5:
            warnings.warn("the solver did not converge", RuntimeWarning, stacklevel=1)
        return 0.0


class Clock(Walk):
    """A time in seconds among the numbers: float32 shows one in 128 of them."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(
            {"time": spaces.Box(-np.inf, np.inf, (1,), np.float64)}
        )

    def obs(self) -> Any:
        return {"time": np.array([1.7e9 + self.t + 1e-9 * self.x[0]])}


class OneForever(Walk):
    """The second environment of a process cannot be made."""

    made = 0

    def __init__(self) -> None:
        OneForever.made += 1
        if OneForever.made > 1:
            raise RuntimeError("port 7777 is in use")
        super().__init__()


class BrokenVector:
    """A vector version that does not say how it resets."""

    def __new__(cls, num_envs: int = 1, max_episode_steps: int = 1) -> Any:
        envs = gymnasium.vector.SyncVectorEnv([Walk] * num_envs)
        envs.metadata = {}
        return envs


# The environment, its line in the report, and what it says.
BROKEN: list[tuple[type, str, str, str]] = [
    (RaisesInReset, "fault", "reset", "reset of episode 0 .* raised RuntimeError: no simulator"),
    (RaisesLater, "fault", "step",
     r"step 7 of episode 0 \(seed \d+\) raised .* arm is stuck; reset it with that seed"),
    (Leaves, "fault", "step", "step 0 of episode 0 .* raised SystemExit: 3"),
    (FourResults, "fault", "step", "expected to return .*info.*, got a tuple of 4 values"),
    (WithoutSeed, "fault", "reset", "TypeError.*unexpected keyword argument 'seed'"),
    (WrongShape, "fault", "observations",
     r"reset of .*expected float32 of shape \(3,\), got float32 of shape \(1,\)"),
    (WrongDtype, "warning", "observations", "expected dtype float32, got float64"),
    (AList, "warning", "observations", "expected a numpy array, got list "),
    (Ragged, "fault", "observations", r"float32 of shape \(3,\), got list \[\[1.0\]"),
    (Nothing, "fault", "observations", r"expected float32 of shape \(3,\), got None"),
    (OutOfBounds, "warning", "observations",
     r"step 8 of .*observation\[1\]: expected -100 to 100, got 150; correct the bounds"),
    (NoCategory, "fault", "observations", "step 11 of .*values from 0 to 11, got int 12"),
    (WrongKeys, "fault", "observations", "expected a dict with x, y, got dict .*'x'"),
    (WrongPart, "warning", "observations",
     r"step 4 of .*observation\[1\]\['a'\]: expected dtype float32, got float16"),
    (LateNaN, "fault", "numbers", r"step 9 of episode 0 .*observation\[2\]: .*float32, got nan"),
    (TooLarge, "fault", "numbers", r"step 10 of .*observation\[0\]: expected a finite float32"),
    (Clock, "warning", "numbers", r"step 0 of .*observation\['time'\]\[0\]: 1700000000 and, at the "
     "next call, 1700000001 are the same number as float32; policies see float32; subtract"),
    (InfiniteReward, "fault", "numbers", "step 7 of .*reward: expected a finite float32, got inf"),
    (RewardArray, "fault", "rewards", r"expected a number, got float64 of shape \(1,\)"),
    (NoReward, "fault", "rewards", "reward: expected a number, got None"),
    (RewardGraph, "fault", "rewards", r"got Tensor tensor\(1., grad_fn"),
    (ObservationGraph, "fault", "observations", r"expected float32 of shape \(3,\), got Tensor"),
    (NumberedEnds, "warning", "ends", "terminated: expected True or False, got int 0"),
    (BothEnds, "warning", "ends", "all 10 episodes ended both terminated and truncated"),
    (InfoList, "fault", "info", r"expected a dict, got list \[0\]"),
    (ChangesActions, "fault", "actions", "step 0 of .*changed the action that it was given"),
    (ReusesBuffer, "warning", "buffers", "step 0 .*changed the observation that reset of"),
    (NeverEnds, "warning", "episodes",
     "3 of 3 episodes did not end within 200 steps.*environment.episode_cap = 200"),
    (OwnGenerator, "fault", "replay",
     "the reward was .*, then .*, in a new environment .*self.np_random"),
    (Clocked, "fault", "replay", r"reset of episode 0.*observation\[0\] was .*, then"),
    (Curriculum, "fault", "replay",
     "step 3 of episode 0 .*reward was 1, then .*the same environment played it again; let reset"),
    (SharedSpace, "fault", "replay", r"observation\[0\] was .*, then .*, while another environment "
     "was played in between; let each have a state of its own, and change no attribute"),
    (ForgetsToRestart, "fault", "early reset",
     "terminated, truncated were False, False, then True, False, after a reset in the middle"),
    (BrokenByAnotherStep, "fault", "after the end",
     "a step after the end returns, and then reset raised RuntimeError: the socket is gone"),
    (IgnoresSeed, "warning", "seeds", "3 other seeds made the same episode, .*_np_random"),
    (GlobalNumpy, "fault", "global random",
     "step 0 of .*numpy.random.*elsewhere, step 0 of .*reward was .*, then"),
    (GlobalTorch, "fault", "global random", "changed the global generator of torch"),
    (ReseedsGlobal, "fault", "global random", "reset of episode 0 .*generator of random"),
    (WastesGlobal, "warning", "global random", "numpy.random.*this episode did not depend on it"),
    (ShortMask, "fault", "action mask", "expected 3 entries for the action space, got 2"),
    (MaskNowAndThen, "fault", "action mask", "step 0 of .*expected one, got none"),
    (NothingAllowed, "warning", "action mask", "step 3 of .*nothing is allowed"),
    (CloseRaises, "fault", "close", r"close\(\) failed: RuntimeError: already gone"),
    (CloseOnce, "warning", "close", r"close\(\) a second time failed: RuntimeError"),
    (CloseSleeps, "fault", "close", r"close\(\) failed: no answer within 2 s"),
    (TextSpace, "fault", "spaces", "observation: expected Box, Discrete, .*got Text"),
    (SequenceSpace, "fault", "spaces", "observation: expected Box, Discrete, .*got Sequence"),
    (OneOfSpace, "fault", "spaces", "observation: expected Box, Discrete, .*got OneOf"),
    (NoActionSpace, "fault", "spaces", "action_space: .*set it in the constructor"),
    (SequenceActions, "fault", "spaces", "action: expected Box, Discrete, .*got Sequence"),
    (DefaultSeed, "warning", "gymnasium", "default seed argument .*should be `None`"),
    (Warns, "warning", "warnings", "RuntimeWarning: the solver did not converge"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """Walk and its broken relatives under `test/`."""
    before = dict(gymnasium.registry)
    for kind in (Walk, Masked, MaskedAsserts, NumpyFlags, OneForever, *(row[0] for row in BROKEN)):
        gymnasium.register(f"test/{kind.__name__}-v0", kind)
    gymnasium.register("test/Vector-v0", Walk, vector_entry_point=BrokenVector)
    gymnasium.register(
        "test/Limited-v0", Walk, vector_entry_point=lambda num_envs: None, max_episode_steps=5
    )
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


def checked(kind: type, **options: Any) -> rlpg.Report:
    return rlpg.check_env(f"test/{kind.__name__}-v0", steps=STEPS, episode_cap=200, **options)


def bad(report: rlpg.Report) -> list[rlpg.Finding]:
    return [finding for finding in report.findings if finding.status in ("fault", "warning")]


# -------------------------------------------------------------------------------- what is broken


@pytest.mark.parametrize(
    ("kind", "status", "check", "text"), BROKEN, ids=lambda v: getattr(v, "__name__", None)
)
def test_each_fault_is_found_in_its_line_and_in_no_other(
    kind: type, status: str, check: str, text: str
) -> None:
    report = checked(kind)
    assert [(f.status, f.check) for f in bad(report)] == [(status, check)], report
    (finding,) = bad(report)
    assert re.search(text, finding.text), finding.text
    assert "\n" not in finding.text
    assert report.passed == (status == "warning")


def test_the_second_environment_of_a_process() -> None:
    OneForever.made = 0
    report = checked(OneForever)
    assert [f.check for f in bad(report)] == ["replay"]
    assert "a second environment cannot be made" in bad(report)[0].text
    assert "port 7777 is in use" in bad(report)[0].text
    skipped = [f.check for f in report.having("skipped")]
    assert skipped == ["seeds", "copies", "gymnasium", "close"]


def test_an_environment_that_breaks_its_neighbor() -> None:
    report = rlpg.check_env(SharedCounter, steps=STEPS)
    assert [f.check for f in bad(report)] == ["replay", "copies"]
    said = "it returned, then it made another environment raise RuntimeError: too many steps, while"
    assert said in bad(report)[0].text


def test_a_vector_version_that_does_not_say_how_it_resets() -> None:
    report = rlpg.check_env("test/Vector-v0", steps=STEPS)
    assert [(f.status, f.check) for f in bad(report)] == [("fault", "copies")]
    assert "expected a gymnasium.vector.AutoresetMode" in bad(report)[0].text


def test_what_is_registered_as_nondeterministic_is_a_warning() -> None:
    gymnasium.register("test/Declared-v0", OwnGenerator, nondeterministic=True)
    report = rlpg.check_env("test/Declared-v0", steps=STEPS)
    assert [(f.status, f.check) for f in bad(report)] == [("warning", "replay")]
    assert "registered as nondeterministic" in bad(report)[0].text
    assert report.passed
    assert not report.repeats


@pytest.mark.parametrize(
    "kind",
    [
        OwnGenerator,
        SharedSpace,
        Curriculum,
        ForgetsToRestart,
        GlobalNumpy,
        ReseedsGlobal,
        ChangesActions,
    ],
)
def test_what_does_not_repeat_cannot_be_resumed(kind: type) -> None:
    report = checked(kind)
    assert not report.repeats
    assert str(report).splitlines()[-1].endswith("a resumed run goes on with new episodes")


@pytest.mark.parametrize("kind", [WastesGlobal, ReusesBuffer, BothEnds, IgnoresSeed, NeverEnds])
def test_what_repeats_can(kind: type) -> None:
    report = checked(kind)
    assert report.repeats
    assert str(report).endswith("0 faults, 1 warning; a resumed run continues to the same bits")


def test_bug_what_training_takes_was_called_a_fault_and_its_ends_were_not_counted(
    tmp_path: Path,
) -> None:
    report = checked(NumberedEnds)
    assert str(report).endswith("0 faults, 1 warning; a resumed run continues to the same bits")
    assert re.search(r"episodes +10 of 12 to 12 steps.*; 10 terminated, 0 truncated", str(report))
    rlpg.train("test/NumberedEnds-v0", total_steps=64, run_dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("reward", "numbers"), [(np.array(1.0), "ok"), (np.array(np.inf), "fault"), (True, "ok")]
)
def test_a_number_in_another_type_is_a_warning_and_is_looked_at(reward: Any, numbers: str) -> None:
    class Rewards(Walk):
        def step(self, action: Any) -> Result:
            obs, _, *ends = super().step(action)
            return obs, reward, *ends

    found = {f.check: f.status for f in rlpg.check_env(Rewards, steps=STEPS).findings}
    assert (found["rewards"], found["numbers"]) == ("warning", numbers)


def test_several_things_can_be_wrong_at_once() -> None:
    class Careless(LateNaN, InfoList, CloseOnce):
        pass

    gymnasium.register("test/Careless-v0", Careless)
    report = rlpg.check_env("test/Careless-v0", steps=STEPS)
    found = [(f.status, f.check) for f in bad(report)]
    assert found == [("fault", "numbers"), ("fault", "info"), ("warning", "close")]
    assert re.search(r"numbers .*\(and 9 more times\)", str(report)), "once in each episode"


def test_a_nan_in_one_late_episode_is_found() -> None:
    class Rare(Walk):
        episodes = 0

        def reset(self, **kwargs: Any) -> Any:
            self.episodes += kwargs.get("seed") is not None
            return super().reset(**kwargs)

        def reward(self) -> Any:
            return np.nan if self.episodes == 9 and self.t == self.length else 0.0

    gymnasium.register("test/Rare-v0", Rare)
    assert "numbers" not in [f.check for f in bad(rlpg.check_env("test/Rare-v0", steps=90))]
    report = rlpg.check_env("test/Rare-v0", steps=108)
    (finding,) = [f for f in bad(report) if f.check == "numbers"]
    assert finding.text.startswith("step 11 of episode 8 (seed ")


# ----------------------------------------------------------------------------------- the healthy

HEALTHY = [
    "CartPole-v1",
    "Pendulum-v1",
    "LunarLander-v3",
    "Hopper-v5",
    "Blackjack-v1",
    "FrozenLake-v1",
    "Taxi",  # with a mask
    "rlpg/Bandit-v0",
    "rlpg/Catch-v0",
    "rlpg/Chain-v0",
    "rlpg/LQR-v0",
    "rlpg/Replenishment-v0",
    "rlpg/UnitCommitment-v0",
    "test/Walk-v0",
    "test/Masked-v0",
    "test/MaskedAsserts-v0",
    "test/NumpyFlags-v0",
]
NOT_FOR_GYMNASIUM = ("test/Masked-v0", "test/MaskedAsserts-v0", "test/NumpyFlags-v0")


@pytest.mark.parametrize("env_id", HEALTHY)
def test_healthy_environments_have_no_fault_and_no_warning(env_id: str) -> None:
    report = rlpg.check_env(env_id, steps=300, episodes=1)
    skipped = ["gymnasium"] if env_id in NOT_FOR_GYMNASIUM else []
    assert [f.check for f in report.findings if f.status != "ok"] == skipped, report
    assert report.passed
    assert report.repeats
    assert sum(report.lengths) >= 300
    assert 0 < report.step_microseconds < 1e6


def test_bipedal_walker_carries_its_world_from_episode_to_episode() -> None:
    """An episode depends on those before it. The report in the docs shows it."""
    report = rlpg.check_env("BipedalWalker-v3", steps=1, seed=7)
    (fault,) = bad(report)
    assert (fault.status, fault.check) == ("fault", "replay")
    assert not report.repeats
    page = (Path(__file__).parents[2] / "docs/environments.md").read_text()
    shown = page.partition("$ rlpg check-env BipedalWalker-v3")[2].partition("```")[0]
    named = [line[9:25].strip() for line in shown.splitlines()[2:-1]]
    assert named == [finding.check for finding in report.findings]


def test_at_least_so_many_steps_and_so_many_episodes() -> None:
    assert rlpg.check_env("test/Walk-v0", steps=100, episodes=2).lengths == (12,) * 9
    assert rlpg.check_env("test/Walk-v0", steps=10, episodes=4).lengths == (12,) * 4
    assert rlpg.check_env("CartPole-v1").as_dict()["steps"] >= 1000


def test_the_same_seed_makes_the_same_report() -> None:
    def report(seed: int) -> dict[str, Any]:
        content = rlpg.check_env("CartPole-v1", steps=200, seed=seed).as_dict()
        content.pop("step_microseconds")
        content["findings"] = [f for f in content["findings"] if f["check"] != "speed"]
        return content

    assert report(3) == report(3)
    assert report(3)["lengths"] != report(4)["lengths"]


def test_the_vector_version_runs_too() -> None:
    def copies(env_id: str) -> str:
        findings = rlpg.check_env(env_id, steps=50).findings
        return next(f.text for f in findings if f.check == "copies")

    assert re.search("^vector version: .* SAME_STEP autoreset; one by one:", copies("CartPole-v1"))
    assert re.search("^one by one: [^;]*$", copies("test/Walk-v0"))
    assert copies("test/Limited-v0").endswith("does not take all arguments and is not used")


def test_an_environment_object_is_checked_and_left_open() -> None:
    env = CloseOnce()
    report = rlpg.check_env(env, steps=STEPS)
    assert report.env == "CloseOnce"
    assert bad(report) == []
    assert [f.check for f in report.having("skipped")] == ["close"], "no way to make another"
    assert not env.closed
    made = gymnasium.make("test/Curriculum-v0")
    assert [f.check for f in bad(rlpg.check_env(made, steps=STEPS))] == ["replay"]


@pytest.mark.parametrize("factory", [Walk, lambda: Walk()], ids=["class", "function"])
def test_a_class_or_function_is_checked(factory: Any) -> None:
    report = rlpg.check_env(factory, steps=STEPS)
    assert report.env == ("Walk" if factory is Walk else "environment")
    assert [f.check for f in report.findings if f.status != "ok"] == [], report
    assert report.repeats
    with pytest.raises(EnvironmentSetupError, match="unexpected keyword argument"):
        rlpg.check_env(factory, env_kwargs={"a": 1})


def test_the_global_generators_are_left_as_they_were() -> None:
    random.seed(1)
    np.random.seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # type: ignore[index]
        for kind in (Walk, GlobalNumpy, GlobalTorch, ReseedsGlobal):
            checked(kind)
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tobytes() == before[1]  # type: ignore[index]
        assert torch.equal(torch.get_rng_state(), before[2])


def test_interrupting_closes_the_environment() -> None:
    closed = []

    class Interrupted(RaisesLater):
        def step(self, action: Any) -> Result:
            if self.t == 5:
                raise KeyboardInterrupt
            return super().step(action)

        def close(self) -> None:
            closed.append(True)

    gymnasium.register("test/Interrupted-v0", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        rlpg.check_env("test/Interrupted-v0")
    assert closed == [True]
    assert cli.main(["check-env", "test/Interrupted-v0"]) == 130


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"env": "CartPol-v1"}, "did you mean CartPole-v1"),
        ({"env": 3}, r"env: expected an id, a class or function .*, got 3 \(int\)"),
        ({"env": lambda: 3}, "expected environment to make a gymnasium.Env, got int"),
        ({"env": "CartPole-v1", "steps": 0}, "steps: expected at least 1, got 0"),
        ({"env": "CartPole-v1", "episodes": -1}, "episodes: expected at least 1"),
        ({"env": "CartPole-v1", "seed": -1}, "seed: expected 0 to"),
        ({"env": "CartPole-v1", "env_kwargs": {"a": 1}}, "unexpected keyword argument 'a'"),
        ({"env": Walk(), "env_kwargs": {"a": 1}}, "env_kwargs: expected an id"),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        rlpg.check_env(**arguments)


def test_an_environment_without_spaces_ended_in_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gymnasium.register("test/NoSpaces-v0", lambda: type("NoSpaces", (gymnasium.Env,), {})())
    assert cli.main(["check-env", "test/NoSpaces-v0"]) == 1
    assert "observation_space: expected a gymnasium.Space" in capsys.readouterr().out


def test_an_environment_that_cannot_be_built_is_refused() -> None:
    OneForever.made = 1
    with pytest.raises(EnvironmentSetupError, match="port 7777 is in use"):
        rlpg.check_env("test/OneForever-v0")


# ------------------------------------------------------------------------------ the command line


def test_the_command_prints_a_line_per_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-env", "test/Walk-v0", "--steps", "100"]) == 0
    out, err = capsys.readouterr()
    head, *lines, tail = out.splitlines()
    assert head == "test/Walk-v0: 108 steps with random actions in 9 episodes, seed 0"
    assert all(line.startswith("ok       ") for line in lines)
    assert len({line[9:25] for line in lines}) == len(lines)
    assert tail == "0 faults, 0 warnings; a resumed run continues to the same bits"
    assert err == ""


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-env", "test/ReusesBuffer-v0", "--steps", "99"]) == 0, (
        "warnings are allowed"
    )
    assert cli.main(["check-env", "test/LateNaN-v0", "--steps", "99"]) == 1
    assert "\nfault    numbers          step 9 of episode 0" in capsys.readouterr().out
    for text in ("Nowhere-v0", "CartPole-v1 --seed x", "CartPole-v1 --lr 1", "CartPole-v1 word"):
        assert cli.main(["check-env", *text.split()]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("rlpg: ")
        assert err.count("\n") == 1


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check-env", "test/LateNaN-v0", "--steps", "100", "--seed", "5"]
    assert cli.main([*words, "--json", str(tmp_path / "report.json")]) == 1
    content = json.loads((tmp_path / "report.json").read_text())
    assert capsys.readouterr().out.startswith("test/LateNaN-v0: 108 steps")
    assert (content["env"], content["seed"], content["passed"]) == ("test/LateNaN-v0", 5, False)
    assert (content["exact_resume"], content["steps"], content["episodes"]) == (True, 108, 9)
    assert content["lengths"] == {"min": 12, "median": 12, "max": 12}
    (fault,) = [f for f in content["findings"] if f["status"] == "fault"]
    assert fault["check"] == "numbers"
    assert fault["text"].startswith("step 9 of episode 0 (seed ")
    assert cli.main([*words, "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["findings"][1] == content["findings"][1]
    assert cli.main([*words, "--json", str(tmp_path / "none/report.json")]) == 2


def test_nothing_to_measure_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check-env", "test/RaisesInReset-v0", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["step_microseconds"], content["lengths"], content["steps"]) == (None, None, 0)


def test_arguments_of_the_constructor(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check-env", "FrozenLake-v1", "--steps", "50"]
    words += ["--environment.kwargs.is_slippery", "false", "--environment.kwargs.map_name=8x8"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "Discrete(64): 64 features" in out
    assert "all make the same episode: nothing depends on random numbers" in out

"""Every combination of choices: it trains, or refuses in a sentence; killed, it resumes to the same
bits. Small networks and few steps. The normal tests take combinations of each grid in which all
pairs of choices meet, the slow ones the others."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlpg
from rlpg.errors import UsageError
from rlpg.rollouts import Collector

sys.path.append(str(Path(__file__).parent))
from covering import covering, grid

# Runs of a few steps are in the trouble that longer ones are warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*value network explains")
ENVS = ("CartPole-v1", "Pendulum-v1", "MountainCar-v0")
STATISTICAL = ("none", "moving_average", "time_step", "leave_one_out")
BASELINES = (*STATISTICAL, "linear", "value")
BACKENDS = ("sync", "async", "native")
TINY: dict[str, Any] = {
    "agent": "reinforce",
    "policy.hidden": (4,),
    "rollout.num_steps": 16,
    "evaluation.episodes": 1,
    "evaluation.num_envs": 1,
    "evaluation.final_episodes": 1,
    "evaluation.stochastic": False,
    "log.tensorboard": False,
}


def train(path: Path, env: str, total_steps: int, overrides: dict[str, Any]) -> rlpg.Run:
    return rlpg.train(
        env,
        seed=1,
        total_steps=total_steps,
        run_dir=path,
        recipe="default",
        overrides=TINY | overrides,
    )


def trains_or_refuses(path: Path, env: str, total_steps: int, overrides: dict[str, Any]) -> bool:
    """Whether it trains: then to the end, with finite parameters, and it is evaluated."""
    refusal = ""
    try:
        run = train(path, env, total_steps, overrides)
    except UsageError as error:
        refusal = str(error)
    if refusal:
        assert "expected" in refusal
        assert "\n" not in refusal
        return False
    assert all(torch.isfinite(tensor).all() for tensor in run.policy.state_dict().values())
    rows = [json.loads(line) for line in (path / "progress.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] >= total_steps
    assert run.evaluation is not None
    return True


# ------------------------------------------------------------------------------------- it trains


def test_the_normal_tests_have_every_pair_of_choices() -> None:
    choices = ("a", "b", "c"), (1, 2), ("x", "y", "z", "w")
    taken = covering(*choices)
    assert len(taken) == 12  # as many as there are pairs of the two longest
    for i, j in itertools.combinations(range(3), 2):
        pairs = {(combination[i], combination[j]) for combination in taken}
        assert pairs == set(itertools.product(choices[i], choices[j]))
    slow = [case.marks for case in grid(*choices) if case.marks]
    assert len(slow) == 24 - 12


@pytest.mark.parametrize(("env", "num_envs", "baseline"), grid(ENVS, (1, 2, 5), STATISTICAL))
def test_whole_episodes_with_few_environments(
    env: str, num_envs: int, baseline: str, tmp_path: Path
) -> None:
    """Textbook REINFORCE: episodes of up to 200 steps, buffers of 128."""
    overrides = {
        "learner.baseline": baseline,
        "rollout.num_envs": num_envs,
        "environment.max_episode_steps": 200,
    }
    trained = trains_or_refuses(tmp_path / "run", env, 600, overrides)
    assert trained or (baseline, num_envs) == ("leave_one_out", 1)


@pytest.mark.parametrize(
    ("length", "num_envs", "backend"),
    grid((1, 127, 128, 129, 256, 257), (1, 3, 16), ("native", "sync")),
)
def test_episodes_as_long_as_the_buffer(
    length: int, num_envs: int, backend: str, tmp_path: Path
) -> None:
    overrides = {
        "learner.baseline": "none",
        "rollout.num_envs": num_envs,
        "environment.max_episode_steps": length,
        "environment.backend": backend,
    }
    assert trains_or_refuses(tmp_path / "run", "Pendulum-v1", length * num_envs + 1, overrides)


# ------------------------------------------------------------------------------------ it resumes


class Killed(BaseException):
    """Ends a run as a SIGKILL would: nothing more is saved."""


@contextmanager
def killed_after_its_first_checkpoint(path: Path) -> Iterator[None]:
    """Nothing is collected any more once there is a checkpoint."""

    def dying(original: Any) -> Any:
        def collect(self: Collector, *args: Any, **options: Any) -> Any:
            if any((path / "checkpoints").glob("step-*")):
                raise Killed
            return original(self, *args, **options)

        return collect

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(Collector, "steps", dying(Collector.steps))
        patch.setattr(Collector, "episodes", dying(Collector.episodes))
        yield
        pytest.fail("the run had no checkpoint before its end")


def what_stays(path: Path) -> dict[str, Any]:
    """Parameters, log and episodes of a run; what measures time is left out."""
    rows = [json.loads(line) for line in (path / "progress.jsonl").read_text().splitlines()]
    monitor = (path / "monitor.csv").read_text().splitlines()
    return {
        "policy": {k: v.numpy() for k, v in rlpg.load(path).state_dict().items()},
        "best": {k: v.numpy() for k, v in rlpg.load(path, "best").state_dict().items()},
        "progress": [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows],
        "episodes": [line.split(",")[:2] for line in monitor[1:]],
        "evaluation": json.loads((path / "evaluation.json").read_text()),
    }


def resumes_to_the_same_bits(
    path: Path, env: str, total_steps: int, overrides: dict[str, Any]
) -> None:
    whole = overrides
    if overrides["environment.backend"] == "async":  # starts workers, and has the bits of sync
        whole = overrides | {"environment.backend": "sync"}
    train(path / "whole", env, total_steps, whole)
    with killed_after_its_first_checkpoint(path / "cut"):
        train(path / "cut", env, total_steps, overrides)
    rlpg.resume(path / "cut")
    np.testing.assert_equal(what_stays(path / "cut"), what_stays(path / "whole"))


def way_of_collecting(baseline: str, how: str) -> dict[str, Any]:
    if how == "episodes":
        return {"rollout.episodes_per_env": 1}
    # What the cut end of an episode is worth, where the baseline cannot predict it.
    return {"learner.truncated_return": "terminal"} if baseline in STATISTICAL else {}


@pytest.mark.parametrize(
    ("baseline", "backend", "how"), grid(BASELINES, BACKENDS, ("steps", "episodes"))
)
def test_killed_it_resumes_to_the_same_bits(
    baseline: str, backend: str, how: str, tmp_path: Path
) -> None:
    overrides = {
        "learner.baseline": baseline,
        "environment.backend": backend,
        "environment.max_episode_steps": 20,
        "rollout.num_envs": 2,
        "checkpoint.every": 60,
        "evaluation.every": 100,
        "log.every": 40,
        **way_of_collecting(baseline, how),
    }
    resumes_to_the_same_bits(tmp_path, "CartPole-v1", 150, overrides)


# ------------------------------------------------------------------------------- the large grid


@pytest.mark.slow
@pytest.mark.parametrize("how", ["steps", "episodes"])
@pytest.mark.parametrize("backend", ["auto", "sync", "async"])
@pytest.mark.parametrize("num_envs", [1, 2, 3, 16])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("env", [*ENVS, "FrozenLake-v1", "Taxi-v4", "Blackjack-v1"])
def test_the_large_grid(
    env: str, baseline: str, num_envs: int, backend: str, how: str, tmp_path: Path
) -> None:
    overrides = {
        "learner.baseline": baseline,
        "environment.backend": backend,
        "environment.max_episode_steps": 130,
        "rollout.num_envs": num_envs,
        "checkpoint.every": 200,
        **way_of_collecting(baseline, how),
    }
    if trains_or_refuses(tmp_path / "tried", env, 300, overrides):
        resumes_to_the_same_bits(tmp_path, env, 2 * 130 * num_envs + 400, overrides)
    else:
        assert (baseline, num_envs) == ("leave_one_out", 1)

"""Random streams of whole runs: nobody shares one, and nobody touches the global ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlpg
from rlpg.engine.components import STREAMS, seed_sequence
from rlpg.engine.evaluator import play
from rlpg.learners import Reinforce
from rlpg.policies import Policy
from rlpg.rollouts import Collector, make_envs
from rlpg.rollouts.seeds import _KEY, derived_seed

RUNS, ENVIRONMENTS = 100, 64
SMALL: dict[str, Any] = {
    "agent": "reinforce",
    "rollout.num_envs": 2,
    "rollout.num_steps": 16,
    "evaluation.every": 64,
    "evaluation.episodes": 2,
    "evaluation.final_episodes": 2,
}


def test_no_stream_is_shared_between_a_hundred_runs_of_64_environments() -> None:
    """128 bits of each stream: of the environments, and of everything else in a run."""
    words = set()
    for run in range(RUNS):
        environments = seed_sequence(run, "environments")
        streams = [seed_sequence(run, name) for name in STREAMS]
        streams += [seed_sequence(run, "evaluation", step) for step in (1000, 2000)]
        streams += [
            np.random.SeedSequence(
                environments.entropy, spawn_key=(*environments.spawn_key, _KEY, env, 0)
            )
            for env in range(ENVIRONMENTS)
        ]
        words |= {tuple(each.generate_state(4).tolist()) for each in streams}
    assert len(words) == RUNS * (len(STREAMS) + 2 + ENVIRONMENTS)


def test_no_first_episode_is_shared_between_a_hundred_runs_of_64_environments() -> None:
    """Not in training, and not between the training of one run and the evaluation of another."""
    seeds = {
        derived_seed(seed_sequence(run, name), env, 0)
        for run in range(RUNS)
        for name in ("environments", "evaluation")
        for env in range(ENVIRONMENTS)
    }
    assert len(seeds) == 2 * RUNS * ENVIRONMENTS


def test_episode_seeds_fit_what_environments_hand_them_to() -> None:
    """Why they have 31 bits: legacy numpy takes 32, and C programs an int."""
    seed = max(derived_seed(seed_sequence(0, "environments"), env, 0) for env in range(1000))
    assert 2**30 < seed < 2**31
    np.random.RandomState(seed)
    with pytest.raises(ValueError, match="between 0 and"):
        np.random.RandomState(seed << 32)


@pytest.mark.parametrize("backend", ["native", "sync", "async"])
def test_adding_environments_does_not_change_environment_0(backend: Any) -> None:
    """Over more than one episode each."""

    def first(num_envs: int) -> np.ndarray:
        envs, _ = make_envs(
            "CartPole-v1", num_envs, seed=seed_sequence(5, "environments"), backend=backend
        )
        obs, action = [envs.reset()[0][0].copy()], np.ones(num_envs, dtype=np.int64)
        obs += [envs.step(action)[0][0].copy() for _ in range(60)]
        envs.close()
        return np.array(obs)

    np.testing.assert_array_equal(first(1), first(4))


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "LunarLander-v3"])
def test_a_run_whose_global_generators_are_reseeded_wildly_has_the_same_bits(
    env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(name: str) -> dict[str, bytes]:
        run = rlpg.train(
            env, seed=1, total_steps=320, run_dir=tmp_path / name, recipe="default",
            overrides=SMALL | {"environment.max_episode_steps": 30},
        )  # fmt: skip
        return {key: value.numpy().tobytes() for key, value in run.policy.state_dict().items()}

    plain = weights("plain")
    wild = random.Random(0)
    reseeded = []

    def reseed_everything() -> None:
        reseeded.append(seed := wild.getrandbits(32))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def wildly(original: Any) -> Any:
        def called(*args: Any, **options: Any) -> Any:
            reseed_everything()
            return original(*args, **options)

        return called

    for owner, name in ((Reinforce, "update"), (Collector, "steps"), (Policy, "draw")):
        monkeypatch.setattr(owner, name, wildly(getattr(owner, name)))
    monkeypatch.setattr("rlpg.engine.evaluator.play", wildly(play))
    assert weights("wild") == plain
    assert len(reseeded) > 20

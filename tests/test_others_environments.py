"""Environments of other packages, and defaults that meet each other."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlpg
from rlpg.cli import main
from rlpg.errors import EnvironmentFault, FileError, UsageError
from rlpg.gradients.baselines import STATISTICAL
from rlpg.policies import Observations

sys.path.append(str(Path(__file__).parent))
from plugin_envs import INFOS, Informed, Masked, Mission, Parts, Told

TOLD = "plugin_envs:Plugin/Told-v1"
SMALL: dict[str, Any] = {
    "policy.hidden": (4,),
    "rollout.num_envs": 2,
    "rollout.num_steps": 8,
    "environment.backend": "sync",
    "evaluation.episodes": 2,
    "evaluation.every": 32,
    "evaluation.num_envs": 2,
    "evaluation.stochastic": False,
    "evaluation.final_episodes": 2,
}


def small(path: Path, env: Any, agent: str, **overrides: Any) -> rlpg.Run:
    told = SMALL | {name.replace("__", "."): value for name, value in overrides.items()}
    return rlpg.train(
        env, agent, total_steps=32, run_dir=path, recipe="default", overrides=told, quiet=True
    )


# ---- text beside numbers


def test_missions_of_minigrid_are_left_out(tmp_path: Path) -> None:
    """`observation['mission']: expected Box, ..., got MissionSpace`, whatever one did."""
    runs = [
        small(tmp_path / backend, TOLD, "ppo", environment__backend=backend)
        for backend in ("sync", "async")
    ]
    first, second = (torch.cat([w.flatten() for w in r.policy.parameters()]) for r in runs)
    assert torch.equal(first, second)
    policy = rlpg.load(runs[0].path)
    obs = Told().reset(seed=0)[0]
    assert policy.act(obs) in (0, 1)
    assert rlpg.evaluate(policy, TOLD, episodes=2).lengths.tolist() == [3, 3]
    again = rlpg.resume(runs[0].path, env=TOLD, total_steps=64)
    assert again.evaluation is not None
    assert not [f for f in rlpg.check_env(TOLD, steps=50).findings if f.status == "fault"]


NUMBERS = spaces.Box(-1.0, 1.0, (2,), np.float32)
TEXT = spaces.Text(3)


@pytest.mark.parametrize(
    ("space", "without"),
    [
        (spaces.Dict({"t": TEXT, "x": NUMBERS}), "observation['t']"),
        (spaces.Dict({"m": Mission(), "x": NUMBERS, "t": TEXT}), "observation['m'], observation"),
        (spaces.Tuple([NUMBERS, spaces.Dict({"t": TEXT})]), "observation[1]['t']"),
        (spaces.Tuple([NUMBERS, TEXT]), None),  # a Tuple without a part is another one
        (spaces.Dict({"t": TEXT}), None),  # nothing would be left
        (spaces.Dict({"s": spaces.Sequence(NUMBERS), "x": NUMBERS}), None),
    ],
    ids=["text", "two", "in a tuple", "of a tuple", "alone", "sequence"],
)
def test_only_text_that_has_a_name_is_left_out_and_it_is_said(
    space: spaces.Space[Any], without: str | None
) -> None:
    if without is None:
        with pytest.raises(UsageError, match="observation"):
            Observations(space)
        return
    seen = Observations(space)
    assert f"without {without}" in seen.describe_in_words()
    assert seen.num_features == 2
    assert Observations(NUMBERS).without == ""


# ---- ids of modules


def test_wrappers_around_an_id_with_a_module(tmp_path: Path, capsys: Any) -> None:
    """It was refused: environment.id: expected Told-v1, which is trained on, got plugin_envs:..."""
    wrappers = {"FilterObservation": {"filter_keys": ["numbers"]}, "FlattenObservation": {}}
    run = small(tmp_path / "run", TOLD, "ppo", environment__wrappers=wrappers)
    assert run.policy.observations.shape == (2,)
    again = rlpg.resume(run.path, env=TOLD, total_steps=64)
    assert again.policy.observations.shape == (2,)
    assert main(["evaluate", str(run.path), "--env", TOLD, "--episodes", "2"]) == 0
    assert "over 2 episodes" in capsys.readouterr().out


def test_what_is_proposed_next_can_be_typed(tmp_path: Path, capsys: Any) -> None:
    """`rlpg evaluate RUN` was proposed without the --env that a module needs."""
    words = ["--agent", "ppo", "--total-steps", "32", "--rollout.num-steps", "8"]
    assert main(["train", TOLD, *words, "--run-dir", str(tmp_path / "run")]) == 0
    proposed = capsys.readouterr().out.partition("rlpg evaluate ")[2].partition("\n")[0]
    assert proposed.endswith(f"--env {TOLD}")
    assert main(["evaluate", *proposed.split()]) == 0


def test_ids_that_a_package_registers_in_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """MinAtar's could not be named on the command line: importing it registers nothing."""
    gymnasium.registry.pop("Plugin/Told-v1", None)
    assert rlpg.make_envs(TOLD, 1, seed=0).envs.num_envs == 1
    with pytest.raises(UsageError, match=r"did you mean Plugin/Told-v1"):
        rlpg.make_envs("plugin_envs:Plugin/Tolt-v1", 1, seed=0)


# ---- defaults that meet each other


@pytest.mark.parametrize(
    ("agent", "baseline"),
    [
        # The learners' own tests take every pair; here their defaults meet: a2c's are its own.
        pytest.param(agent, baseline, marks=() if agent == "a2c" or turn else pytest.mark.slow)
        for a, agent in enumerate(["reinforce", "a2c", "ppo", "npg", "trpo"])
        for b, baseline in enumerate([*STATISTICAL, "linear", "value"])
        for turn in [(a + b) % 3 == 0]
    ],
)
def test_every_agent_takes_every_baseline(agent: str, baseline: str, tmp_path: Path) -> None:
    """a2c refused four of them for its own gae_lambda of 1, which is the whole return there."""
    run = small(tmp_path / "run", TOLD, agent, learner__baseline=baseline)
    assert run.evaluation is not None


@pytest.mark.parametrize("agent", ["reinforce", "a2c", "ppo", "npg", "trpo"])
def test_every_agent_has_memory_with_a_single_environment(agent: str, tmp_path: Path) -> None:
    """All but ppo refused it: their default of two minibatches is more than one sequence."""
    overrides = {"policy__memory": "gru", "policy__memory_size": 4, "rollout__num_envs": 1}
    assert small(tmp_path / "run", TOLD, agent, **overrides).evaluation is not None
    if agent != "ppo":
        with pytest.raises(UsageError, match="at most the 1 environments"):
            small(tmp_path / "no", TOLD, agent, learner__num_value_minibatches=3, **overrides)


# ---- infos


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize("infos", INFOS)
def test_an_info_may_be_anything(infos: str, backend: str, tmp_path: Path) -> None:
    """Of two environments whose info had other shapes or kinds, a training ended in a traceback:
    could not broadcast input array from shape (3,) into shape (2,)."""
    if backend == "async" and infos not in ("other shapes", "what cannot be pickled"):
        pytest.skip("the same wrapper reads them in workers")
    make = functools.partial(Informed, infos)
    overrides = {"environment__backend": backend, "rollout__num_envs": 3}
    assert small(tmp_path / "run", make, "ppo", **overrides).evaluation is not None


def test_parts_of_the_reward_are_not_cut_to_integers() -> None:
    """The type of the first was that of all: 0.5 after 1 counted as 0."""
    envs = rlpg.make_envs(Parts, 2, seed=0).envs
    space = envs.single_observation_space, envs.single_action_space
    policy = rlpg.StandardPolicy(*space, generator=torch.Generator())
    rollout = rlpg.Collector(envs, policy, 0).steps(6)
    assert rollout.reward_parts == {"reward_a": 0.5}


ONES = np.ones(2)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (
            [ONES, np.ones(3)],
            r"environment 0, .*action_mask.*: expected 2 entries, as before, got 3",
        ),
        ([ONES, "ab"], r"environment 0, .*action_mask.*: expected an array of booleans, got str"),
        ([ONES, None], r"expected one from every environment, got none from \[0, 1\]"),
        ([ONES, [[1], [1, 2]]], r"environment 0, .*expected 2 entries, as before, got 3"),
        ([ONES, [True, False]], None),
        ([torch.ones(2), ONES], None),
        ([None], None),
    ],
    ids=str,
)
def test_masks_that_do_not_fit_are_told_with_their_environment(
    masks: list[Any], words: str | None, tmp_path: Path
) -> None:
    make = functools.partial(Masked, masks)
    if words is None:
        small(tmp_path / "run", make, "ppo")
        return
    with pytest.raises(EnvironmentFault, match=words):
        small(tmp_path / "run", make, "ppo")


# ---- arguments of another kind


def test_arguments_of_another_kind_are_told_before_anything_is_written(tmp_path: Path) -> None:
    """A number for a schedule was ignored; the others ended in a traceback or an AttributeError."""
    (tmp_path / "file").touch()
    schedule: Any = {"learning_rate": 3}
    logger: Any = [3]
    path: Any = str(tmp_path)
    for train, words in (
        ({"schedules": schedule}, "schedules: expected a function of progress for learning_rate"),
        ({"loggers": logger}, "loggers: expected objects of rlpg.Logger, got 3"),
        ({"run_dir": tmp_path / "file" / "run"}, "expected a folder that can be made"),
    ):
        options = {"run_dir": tmp_path / "run"} | train
        with pytest.raises((UsageError, FileError), match=words):
            rlpg.train("CartPole-v1", "ppo", total_steps=32, quiet=True, **options)
        assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match=r"policy: expected an rlpg\.Policy, got '"):
        rlpg.evaluate(path, "CartPole-v1", episodes=1)

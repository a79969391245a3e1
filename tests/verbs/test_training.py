"""Training: the same bits whoever watches, all that stays on disk, every kind of environment."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from types import NoneType
from typing import Any, get_args

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import SyncVectorEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlpg
from rlpg.cli import main
from rlpg.engine.components import find_recipe, resolved, seed_sequence
from rlpg.errors import SpaceError, UsageError
from rlpg.learners.settings import AGENTS
from rlpg.policies import Policy
from rlpg.policies.references import UserParts
from rlpg.rollouts import Collector
from rlpg.runs.dashboard import description
from rlpg.runs.logger import JSONLLogger
from rlpg.runs.recipe import Recipe, flatten, kind_of, load_recipe, override
from rlpg.runs.store import load_policy, newest_checkpoint
from rlpg.verbs import training
from rlpg.verbs.training import Hooks, assembled

SMALL: dict[str, Any] = {
    "agent": "reinforce",
    "rollout.num_envs": 4,
    "rollout.num_steps": 16,
    "evaluation.episodes": 2,
    "evaluation.every": 160,
    "evaluation.final_episodes": 3,
    "policy.hidden": (16,),
    "log.every": 100,
}
TAGS = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "eval/mean_reward",
    "eval/mean_ep_length",
    "eval_stochastic/mean_reward",
    "time/fps",
    "time/env_share",
    "time/policy_share",
    "time/learn_share",
    "train/policy_loss",
    "train/value_loss",
    "train/entropy",
    "train/explained_variance",
    "train/approx_kl",
    "train/learning_rate",
    "gradient/norm",
    "gradient/signal_to_noise",
    "gradient/variance_removed_by_baseline",
}


def train(
    env: Any, path: Path, *, seed: int = 0, steps: int = 320, quiet: bool = True, **settings: Any
) -> rlpg.Run:
    """A short run; `learner__learning_rate=1e-3` sets learner.learning_rate."""
    overrides = SMALL | {key.replace("__", "."): value for key, value in settings.items()}
    return rlpg.train(
        env,
        "reinforce",
        seed=seed,
        total_steps=steps,
        run_dir=path,
        recipe="default",
        overrides=overrides,
        quiet=quiet,
    )


def bits(policy: Policy) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in policy.state_dict().items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> rlpg.Run:
    """CartPole-v1, 320 steps; no test changes its folder."""
    return train("CartPole-v1", tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def progress(plain: rlpg.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (plain.path / "progress.jsonl").read_text().splitlines()]


def test_a_limit_that_is_overridden_with_none_is_none(tmp_path: Path) -> None:
    """`overrides={"learner.max_grad_norm": None}` trained with gradients cut to a norm of 0.5."""
    run = train("CartPole-v1", tmp_path / "run", steps=64, learner__max_grad_norm=None)
    assert load_recipe(run.path / "recipe.toml").learner.max_grad_norm is None


class Recorded(Exception):
    """A recipe instead of a run."""


@pytest.mark.parametrize("agent", AGENTS)
def test_every_setting_that_may_be_none_is_none_where_that_is_overridden(
    agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `train` as by `train_seeds` and by what is typed."""

    def recorded(env: Any, recipe: Recipe, *args: Any, **options: Any) -> Any:
        raise Recorded(recipe)

    def recipe_of(verb: Any, **how: Any) -> Recipe:
        with pytest.raises(Recorded) as caught:
            verb("CartPole-v1", agent, recipe=base, **how)
        found: Recipe = caught.value.args[0]
        return found

    monkeypatch.setattr(training, "run_recipe", recorded)
    plain = Recipe.of(agent)
    said = {"environment.num_workers": 2, "environment.max_episode_steps": 9, "log.every": 7,
            "policy.memory": "gru", "rollout.episodes_per_env": 3, "evaluation.every": 5,
            "checkpoint.every": 6}  # fmt: skip
    said |= {"learner.target_kl": 0.1, "learner.desired_kl": 0.1} if agent == "ppo" else {}
    base = override(plain, said)
    for key in (k for k in flatten(base) if NoneType in get_args(kind_of(base, k))):
        for none in (None, "none"):
            one = recipe_of(rlpg.train, overrides={key: none})
            several = recipe_of(rlpg.train_seeds, overrides={key: none}, seeds=[0], jobs=1)
            assert flatten(one)[key] is None, key
            assert several == one


# ------------------------------------------------------------------------------------- same bits


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluation__every": 10**9},
        {"evaluation__every": 1, "evaluation__episodes": 3, "evaluation__num_envs": 2},
        {"evaluation__stochastic": False},
        {"log__tensorboard": False},
        {"log__every": 1},
        {"checkpoint__every": 1, "checkpoint__keep_last": 1},
        {"quiet": False},
    ],
    ids=str,
)
def test_watching_changes_no_bit(
    plain: rlpg.Run, tmp_path: Path, settings: Mapping[str, Any]
) -> None:
    assert bits(train("CartPole-v1", tmp_path / "run", **settings).policy) == bits(plain.policy)


def test_watching_changes_no_bit_where_actions_are_drawn_from_a_python_environment(
    tmp_path: Path,
) -> None:
    often = train("Pendulum-v1", tmp_path / "a", environment__backend="sync", evaluation__every=1)
    never = train("Pendulum-v1", tmp_path / "b", environment__backend="sync")
    assert bits(often.policy) == bits(never.policy)


def test_same_seed_same_bits_other_seed_others(plain: rlpg.Run, tmp_path: Path) -> None:
    again, other = (train("CartPole-v1", tmp_path / str(n), seed=n) for n in (0, 1))
    assert bits(again.policy) == bits(plain.policy)
    assert bits(other.policy) != bits(plain.policy)
    assert plain.evaluation is not None
    assert again.evaluation is not None
    assert np.array_equal(again.evaluation.returns, plain.evaluation.returns)


def test_a_vector_environment_used_before_trains_to_the_same_bits(tmp_path: Path) -> None:
    envs = gymnasium.make_vec("CartPole-v1", 4)
    runs = [train(envs, tmp_path / str(n)) for n in range(2)]
    assert bits(runs[0].policy) == bits(runs[1].policy)
    envs.reset()  # still open
    envs.close()


def test_global_random_states_are_nobody_s_business(tmp_path: Path) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    run = train("CartPole-v1", tmp_path / "run", steps=100)
    policy = rlpg.load(run.path)
    policy.act(np.zeros(4, np.float32))
    rlpg.evaluate(policy, "CartPole-v1", 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


def test_the_first_run_of_a_process_moves_no_random_state(tmp_path: Path) -> None:
    """Whatever is imported for it may (rich does)."""
    program = """
import random, sys
import numpy as np, torch
def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
before = states()
import rlpg
assert "rich" not in sys.modules
rlpg.train("CartPole-v1", total_steps=64, run_dir="run", overrides={"evaluation.final_episodes": 1})
assert "rich" in sys.modules
assert states() == before
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=300)


def test_training_gives_torch_its_threads_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    train("CartPole-v1", tmp_path / "run", steps=64, threads=2 if before == 1 else 1)
    assert torch.get_num_threads() == before


# ----------------------------------------------------------------------------------- what is kept


AUTO = ("gae_lambda", "truncated_return", "entropy_coef", "value_hidden")


@pytest.mark.parametrize(
    ("env", "settings", "came_to"),
    [
        ("CartPole-v1", {}, (0.95, "bootstrap", 0.02, (16,))),
        ("Pendulum-v1", {"agent": "ppo"}, (0.95, "bootstrap", 0.0, (16,))),
        ("CartPole-v1", {"learner__baseline": "none"}, (None, "terminal", 0.02, (16,))),
        ("CartPole-v1", {"learner__truncated_return": "drop"}, (None, "drop", 0.02, (16,))),
        (
            "CartPole-v1",
            {"agent": "trpo", "learner__gae_lambda": 0.5, "learner__value_hidden": (8,)},
            (0.5, "bootstrap", 0.02, (8,)),
        ),
    ],
    ids=str,
)
def test_recipe_toml_kept_auto_where_it_was_resolved(
    env: str, settings: Mapping[str, Any], came_to: tuple[Any, ...], tmp_path: Path
) -> None:
    run = train(env, tmp_path / "run", **settings)
    kept = load_recipe(run.path / "recipe.toml")
    assert tuple(getattr(kept.learner, name) for name in AUTO) == came_to
    again = rlpg.train(env, recipe=kept, run_dir=tmp_path / "again", quiet=True)
    assert bits(again.policy) == bits(run.policy), "the recipe repeats the run"
    assert load_recipe(again.path / "recipe.toml") == kept


def test_the_folder_holds_what_the_design_promises(plain: rlpg.Run) -> None:
    names = {path.name for path in plain.path.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert names - events == {
        "best_policy", "checkpoints", "evaluation.json", "evaluations.npz",
        "evaluations_stochastic.npz", "monitor.csv", "policy", "progress.jsonl", "recipe.toml",
        "run.lock", "versions.json",
    }  # fmt: skip
    for folder in ("policy", "best_policy"):
        inside = {path.name for path in (plain.path / folder).iterdir()}
        assert inside == {"policy.safetensors"}


def test_the_recipe_is_complete_and_makes_the_same_run(plain: rlpg.Run, tmp_path: Path) -> None:
    recipe = load_recipe(plain.path / "recipe.toml")
    assert recipe.environment.id == "CartPole-v1"
    assert flatten(recipe)["rollout.num_envs"] == 4
    again = rlpg.train("CartPole-v1", recipe=plain.path / "recipe.toml", run_dir=tmp_path / "run")
    assert bits(again.policy) == bits(plain.policy)


def test_progress_has_every_tag_and_steps_that_rise(progress: list[dict[str, Any]]) -> None:
    steps = [entry["step"] for entry in progress]
    assert steps == sorted(set(steps))
    assert steps[-1] == 320
    assert set().union(*progress) >= TAGS
    assert all(np.isfinite(value) for entry in progress for value in entry.values() if value)


def test_tensorboard_reads_the_same_numbers(plain: rlpg.Run, progress: list[Any]) -> None:
    events = EventAccumulator(str(plain.path), size_guidance={"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == set().union(*progress) - {"step"}
    for tag in TAGS:
        points = [(entry["step"], entry[tag]) for entry in progress if tag in entry]
        read = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in read] == [step for step, _ in points]
        expected = [np.nan if value is None else value for _, value in points]
        np.testing.assert_allclose([value for _, value in read], expected, rtol=1e-6)


def test_tensorboard_shows_the_recipe(plain: rlpg.Run) -> None:
    events = EventAccumulator(str(plain.path)).Reload()
    assert set(events.Tags()["tensors"]) == {
        "recipe/text_summary", "versions/text_summary", "custom_scalars__config__",
        "_hparams_/session_start_info",
    }  # fmt: skip
    (event,) = events.Tensors("recipe/text_summary")
    shown = event.tensor_proto.string_val[0].decode()
    assert shown.startswith("    ")  # Markdown shows it as it is
    assert dedent(shown) == (plain.path / "recipe.toml").read_text()


def test_tensorboard_shows_histograms_and_explains_every_tag(plain: rlpg.Run) -> None:
    events = EventAccumulator(str(plain.path), {"histograms": 0}).Reload()
    tags = events.Tags()
    assert tags["histograms"] == ["rollout/actions", "train/advantages", "train/value_errors"]
    steps = [event.step for event in events.Histograms("rollout/actions")]
    assert steps == [event.step for event in events.Scalars("eval/mean_reward")]
    assert all(description(tag) for tag in (*tags["scalars"], *tags["histograms"]))


def test_training_episodes_are_in_the_monitor(plain: rlpg.Run) -> None:
    first, header, *rows = (plain.path / "monitor.csv").read_text().splitlines()
    assert json.loads(first.removeprefix("#"))["env_id"] == "CartPole-v1"
    assert header == "r,l,t"
    table = np.array([[float(cell) for cell in row.split(",")] for row in rows])
    assert np.array_equal(table[:, 0], table[:, 1]), "CartPole-v1 pays 1 per step"
    assert 200 < table[:, 1].sum() <= 320
    assert (np.diff(table[:, 2]) >= 0).all()


def test_evaluations_have_the_shape_of_stable_baselines3(plain: rlpg.Run) -> None:
    for name in ("evaluations", "evaluations_stochastic"):
        table = np.load(plain.path / f"{name}.npz")
        count = len(table["timesteps"])
        assert table["results"].shape == table["ep_lengths"].shape == (count, 2)
        assert (np.diff(table["timesteps"]) > 0).all()
        assert 0 < table["timesteps"][-1] <= 320
        assert np.array_equal(table["results"], table["ep_lengths"])


def test_stable_baselines3_reads_the_run(plain: rlpg.Run) -> None:
    pytest.importorskip("pandas")
    monitor = pytest.importorskip("stable_baselines3.common.monitor")
    frame = monitor.load_results(str(plain.path))
    assert {"r", "l", "t"} <= set(frame.columns)
    assert (frame.r == frame.l).all()


def test_the_best_policy_is_the_best_of_the_evaluations(plain: rlpg.Run) -> None:
    table = np.load(plain.path / "evaluations.npz")
    means = table["results"].mean(axis=1)
    best = load_policy(plain.path / "best_policy")[0]["training"]
    assert best["steps"] == table["timesteps"][means.argmax()], "the first of equals"
    assert best["evaluation"]["mean"] == means.max()
    last = load_policy(plain.path / "policy")[0]["training"]
    assert plain.evaluation is not None
    assert (last["steps"], last["evaluation"]["mean"]) == (320, plain.evaluation.mean)
    assert bits(rlpg.load(plain.path)) == bits(plain.policy)
    assert bits(rlpg.load(plain.path, "best")) == bits(rlpg.load(plain.path / "best_policy"))


def test_the_final_evaluation_is_in_a_file_of_its_own(plain: rlpg.Run) -> None:
    content = json.loads((plain.path / "evaluation.json").read_text())
    assert plain.evaluation is not None
    assert content["mean"] == plain.evaluation.mean
    assert [row["return"] for row in content["table"]] == plain.evaluation.returns.tolist()


def test_the_last_checkpoint_holds_the_last_policy(plain: rlpg.Run) -> None:
    checkpoint, skipped = newest_checkpoint(plain.path / "checkpoints")
    assert checkpoint is not None
    assert (checkpoint.step, skipped) == (320, [])
    saved = checkpoint.state["learner"]["policy"]
    assert {name: value.tobytes() for name, value in saved.items()} == bits(plain.policy)


def test_runs_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [
        rlpg.train("CartPole-v1", seed=seed, total_steps=64, overrides=SMALL).path
        for seed in (0, 0, 1, 0)
    ]
    folder = Path("runs/CartPole-v1/reinforce")
    assert paths == [folder / name for name in ("0", "0-1", "1", "0-2")]


def test_a_folder_in_use_is_refused_and_left_alone(plain: rlpg.Run) -> None:
    before = sorted(path.name for path in plain.path.rglob("*"))
    with pytest.raises(UsageError, match="new or empty, got one in use"):
        train("CartPole-v1", plain.path)
    assert sorted(path.name for path in plain.path.rglob("*")) == before


SWEPT = [
    "--agent=a2c", "--recipe=default", "--total-steps=64", "--num-seeds=2", "--rollout.num-envs=2",
    "--evaluation.episodes=1", "--evaluation.final-episodes=2", "--space=space.toml",
    "--sweep-dir=sweep", "--jobs=1", "--trials=1", "--quiet",
]  # fmt: skip


class Wanderer(CartPoleEnv):
    """Takes the process to another directory, as simulators do that write files where they run."""

    def __init__(self, when: str, to: str, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.when, self.to, self.number = when, to, 0
        if when == "made":
            os.chdir(to)

    def reset(self, **options: Any) -> Any:
        if self.when == "reset":
            os.chdir(self.to)
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self.number += 1
        if self.when == "step" and self.number == 50:
            os.chdir(self.to)
        return super().step(action)


@pytest.mark.parametrize("when", ["made", "reset", "step"])
def test_an_environment_that_changes_the_directory_takes_no_file_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    to = tmp_path / "elsewhere"
    to.mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wanderers.py").write_text(
        "import sys, gymnasium\nfrom tests.verbs.test_training import Wanderer\n"
        f"gymnasium.register('Wanderer-v0', Wanderer, kwargs={{'when': '{when}', 'to': '{to}'}})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    run = rlpg.train(
        "wanderers:Wanderer-v0", total_steps=64, run_dir="run", overrides=SMALL,
        loggers=[JSONLLogger("log.jsonl")],
    )  # fmt: skip
    for words in (
        ["evaluate", "run", "--env", "wanderers:Wanderer-v0", "--episodes", "2"],
        ["diagnose", "run", "--env", "wanderers:Wanderer-v0", "--episodes", "4"],
        ["check-env", "wanderers:Wanderer-v0", "--steps", "30"],
    ):
        assert main([*words, "--json", f"{words[0]}.json"]) == 0
        assert Path.cwd() == tmp_path
        assert json.loads((tmp_path / f"{words[0]}.json").read_text())
    (tmp_path / "space.toml").write_text("[learner.gamma]\nlow = 0.9\nhigh = 0.99\n")
    for words, file in (
        (["evaluate", "run", "--env", "wanderers:Wanderer-v0", "--video"], "episode.mp4"),
        (["sweep", "wanderers:Wanderer-v0", *SWEPT], "sweep/best.toml"),
    ):
        assert main(words) == 0
        assert Path.cwd() == tmp_path
        assert (tmp_path / file).stat().st_size > 0
    rlpg.evaluate(run.policy, "wanderers:Wanderer-v0", episodes=2)
    assert Path.cwd() == tmp_path
    assert (tmp_path / "log.jsonl").read_text() == (tmp_path / "run/progress.jsonl").read_text()
    assert list(to.iterdir()) == []


@pytest.mark.parametrize("when", ["made", "reset", "step"])
@pytest.mark.parametrize("run_dir", [None, "here/run"])
def test_an_environment_that_changes_the_directory_loses_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, run_dir: str | None
) -> None:
    to = tmp_path / "elsewhere"
    to.mkdir()
    where = []

    def make() -> gymnasium.Env[Any, Any]:
        return Wanderer(when, str(to))

    def on_log(*_: Any) -> None:
        where.append(Path.cwd())

    make.__name__ = "Wanderer"
    monkeypatch.chdir(tmp_path)
    run = rlpg.train(
        make, total_steps=320, run_dir=run_dir, overrides={**SMALL, "environment.id": "Wanderer"},
        on_log=on_log,
    )  # fmt: skip
    assert run.path == Path(run_dir or "runs/Wanderer/reinforce/0")
    assert (where[-1], Path.cwd()) == (to, tmp_path), "what follows is where it was before"
    run = rlpg.resume(run.path, env=make, total_steps=640)
    assert Path.cwd() == tmp_path
    assert bits(rlpg.load(run)) == bits(run.policy)
    last, _ = newest_checkpoint(run.path / "checkpoints")
    assert last is not None
    assert last.step == 640
    assert list(to.iterdir()) == []


def test_what_is_refused_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for env, overrides in (
        ("NoSuchThing-v0", {}),
        ("CartPole-v1", {"environment.kwargs": {"nonsense": 1}}),
        ("CartPole-v1", {"environment.id": "Acrobot-v1"}),
        ("CartPole-v1", {"learner.baseline": "none", "learner.truncated_return": "bootstrap"}),
        ("MountainCarContinuous-v0", {"policy.bernoulli": True}),
        ("CartPole-v1", {"learner.num_value_minibatches": 10**6}),
        ("CartPole-v1", {"agent": "ppo", "learner.num_minibatches": 17, "policy.memory": "gru"}),
        (Odd(spaces.Text(3), spaces.Discrete(2)), {}),
    ):
        with pytest.raises(UsageError):
            rlpg.train(env, total_steps=100, overrides=overrides)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------- every kind of env


class Odd(gymnasium.Env[Any, Any]):
    """Episodes of 7 random observations; refuses actions that are not in its space."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.closed = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.left = 7
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.left -= 1
        return self.observation_space.sample(), 1.0, self.left == 0, False, {}

    def close(self) -> None:
        self.closed = True


NESTED = spaces.Dict(
    {
        "a": spaces.Box(-1, 1, (2,)),
        "b": spaces.Tuple([spaces.Discrete(3, start=2), spaces.MultiBinary(2)]),
        "c": spaces.MultiDiscrete([2, 3]),
    }
)


@pytest.mark.parametrize(
    "space",
    [
        NESTED,
        spaces.Tuple([spaces.Discrete(32), spaces.Discrete(11), spaces.Discrete(2)]),
        spaces.Discrete(4, start=3),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary(5),
        spaces.Box(0, 255, (16, 16, 3), np.uint8),
        spaces.Box(-np.inf, np.inf, (2, 2, 2), np.float64),
    ],
    ids=str,
)
def test_every_observation_space(space: Any, tmp_path: Path) -> None:
    run = train(Odd(space, spaces.Discrete(2)), tmp_path / "run", steps=128)
    policy = rlpg.load(run.path)
    assert policy.act(space.sample()) in (0, 1)
    assert run.evaluation is None, "an object without an id cannot be copied"


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict(
            {
                "x": spaces.Discrete(3, start=-1),
                "y": spaces.Tuple(
                    [spaces.Box(-2, 3, (2,)), spaces.MultiDiscrete([[2, 2], [3, 3]])]
                ),
            }
        ),
        spaces.Discrete(4, start=3),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary(5),
        spaces.Box(-1, 2, (3,)),
        spaces.Box(-np.inf, np.inf, (2, 2)),
    ],
    ids=str,
)
def test_every_action_space(space: Any, tmp_path: Path) -> None:
    run = train(Odd(spaces.Box(-1, 1, (2,)), space), tmp_path / "run", steps=128)
    policy = rlpg.load(run.path)
    for deterministic in (True, False):
        assert space.contains(policy.act(np.zeros(2, np.float32), deterministic=deterministic))


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Sequence(spaces.Discrete(2))], ids=str)
def test_other_spaces_are_refused_with_what_is_supported(space: Any, tmp_path: Path) -> None:
    for env in (Odd(space, spaces.Discrete(2)), Odd(spaces.Discrete(2), space)):
        with pytest.raises(SpaceError, match=r"expected Box, Discrete, .* got (Text|Sequence)"):
            train(env, tmp_path / "run")


def test_action_masks_from_first_step_to_saved_policy(tmp_path: Path) -> None:
    run = train("Taxi-v4", tmp_path / "run", steps=256, evaluation__every=256)
    policy = rlpg.load(run.path)
    env = gymnasium.make("Taxi-v4")
    obs, info = env.reset(seed=0)
    mask = info["action_mask"]
    assert 0 < mask.sum() < len(mask)
    for _ in range(20):
        assert mask[policy.act(obs, action_mask=mask)]
    only = np.eye(6, dtype=np.int8)[2]
    assert policy.act(obs, action_mask=only, deterministic=True) == 2
    result = rlpg.evaluate(policy, "Taxi-v4", 2)
    assert len(result.returns) == 2


class Scaled(gymnasium.RewardWrapper[Any, Any]):
    """A wrapper as users write them: Gymnasium cannot make another one."""

    def reward(self, reward: Any) -> float:
        return 2.0 * float(reward)


def test_an_environment_object_with_an_id_is_copied_and_evaluated(tmp_path: Path) -> None:
    env = gymnasium.make("CartPole-v1")
    run = train(env, tmp_path / "run", steps=128)
    assert run.evaluation is not None
    assert load_recipe(run.path / "recipe.toml").environment.id == "CartPole-v1"


def test_an_environment_in_a_user_s_own_wrapper_trains_alone(tmp_path: Path) -> None:
    run = train(Scaled(gymnasium.make("CartPole-v1")), tmp_path / "run", steps=200)
    assert run.evaluation is None
    rows = (run.path / "monitor.csv").read_text().splitlines()[2:]
    for reward, length in (map(float, row.split(",")[:2]) for row in rows):
        assert reward == 2 * length


def test_an_environment_object_is_left_open(tmp_path: Path) -> None:
    env = Odd(spaces.Discrete(3), spaces.Discrete(2))
    train(env, tmp_path / "run", steps=64)
    assert not env.closed


def test_vector_environments_of_every_mode_are_trained_on(tmp_path: Path) -> None:
    for n, mode in enumerate(gymnasium.vector.AutoresetMode):
        envs = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 3, autoreset_mode=mode)
        run = train(envs, tmp_path / str(n), steps=128)
        assert run.evaluation is None
        envs.close()


@pytest.mark.parametrize("env", ["CliffWalking-v1", "Blackjack-v1"])
def test_environments_without_a_time_limit_end(
    env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(env, tmp_path / "run", steps=256, quiet=False, environment__episode_cap=50)
    assert "capped at 50 steps per episode: no time limit is registered" in capsys.readouterr().err
    assert np.load(tmp_path / "run" / "evaluations.npz")["ep_lengths"].max() <= 50


@pytest.fixture
def task_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working directory that registers Seven-v0, as a user's would."""
    (tmp_path / "seven_tasks.py").write_text(
        "import gymnasium\n"
        "class Seven(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(0, 1, (2,))\n"
        "    action_space = gymnasium.spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        self.left = 7\n"
        "        return self.np_random.random(2, dtype='float32'), {}\n"
        "    def step(self, action):\n"
        "        self.left -= 1\n"
        "        obs = self.np_random.random(2, dtype='float32')\n"
        "        return obs, float(action), self.left == 0, False, {}\n"
        "gymnasium.register('Seven-v0', Seven)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "seven_tasks:Seven-v0"
    gymnasium.registry.pop("Seven-v0", None)


def test_an_environment_in_a_module(task_module: str, tmp_path: Path) -> None:
    run = train(task_module, tmp_path / "run", steps=128)
    assert run.evaluation is not None
    assert run.evaluation.lengths.tolist() == [7, 7, 7]
    assert load_recipe(run.path / "recipe.toml").environment.id == task_module
    # A policy needs nothing but its folder, wherever that is.
    shutil.copytree(run.path / "policy", tmp_path / "elsewhere")
    assert rlpg.load(tmp_path / "elsewhere").act(np.zeros(2, np.float32)) in (0, 1)


# ------------------------------------------------------------------------------------- learners


@pytest.mark.parametrize(
    "baseline", ["none", "moving_average", "time_step", "leave_one_out", "linear", "value"]
)
def test_every_baseline_trains(baseline: str, tmp_path: Path) -> None:
    run = train("CartPole-v1", tmp_path / "run", steps=256, learner__baseline=baseline)
    recipe = load_recipe(run.path / "recipe.toml")
    # Without predicted values nobody knows what a cut episode is worth: whole ones are collected.
    whole = None if baseline in ("linear", "value") else 1
    assert recipe.rollout.episodes_per_env == whole
    assert all(torch.isfinite(value).all() for value in run.policy.state_dict().values())


def test_a_recipe_object_is_taken_as_it_is(tmp_path: Path) -> None:
    run = rlpg.train(
        "CartPole-v1", recipe=Recipe(total_steps=64), run_dir=tmp_path / "run", overrides=SMALL
    )
    assert load_recipe(run.path / "recipe.toml").total_steps == 64


# ------------------------------------------------------------------- what the loop makes of it


def entries(run: rlpg.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "progress.jsonl").read_text().splitlines()]


def test_the_linear_schedule_was_not_applied_in_the_loop(tmp_path: Path) -> None:
    settings = {"learner__learning_rate_schedule": "linear", "learner__learning_rate": 0.01}
    run = train("CartPole-v1", tmp_path / "run", log__every=1, **settings)
    rates = {e["step"]: e["train/learning_rate"] for e in entries(run) if "time/fps" in e}
    # An update of 64 steps has the rate of its first one: 0 of 320 steps, then 64, 128, ...
    assert rates == pytest.approx({64 * k: 0.01 * (1 - 64 * (k - 1) / 320) for k in range(1, 6)})


def test_a_schedule_of_ones_own_is_asked_at_every_update(tmp_path: Path) -> None:
    seen: list[float] = []

    def schedule(progress: float) -> float:
        seen.append(progress)
        return 0.5

    run = rlpg.train(
        "CartPole-v1", total_steps=320, run_dir=tmp_path / "run", recipe="default", quiet=True,
        overrides={**SMALL, "log.every": 1}, schedules={"learning_rate": schedule},
    )  # fmt: skip
    assert sorted(set(seen)) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    rates = {e["train/learning_rate"] for e in entries(run) if "time/fps" in e}
    assert rates == {0.5 * load_recipe(run.path / "recipe.toml").learner.learning_rate}


@pytest.mark.parametrize(
    ("answer", "last"),
    [(True, 128), (np.True_, 128), (None, 320), (False, 320), (np.False_, 320), (1, 320)],
)
def test_on_log_ends_the_run_with_true_only(answer: Any, last: int, tmp_path: Path) -> None:
    told: list[int] = []

    def on_log(step: int, metrics: dict[str, float]) -> Any:
        told.append(step)
        assert "train/learning_rate" in metrics
        return answer if step == 128 else None

    run = rlpg.train(
        "CartPole-v1", total_steps=320, run_dir=tmp_path / "run", recipe="default", quiet=True,
        overrides=SMALL | {"log.every": 64, "checkpoint.every": 10**6}, on_log=on_log,
    )  # fmt: skip
    assert told == list(range(64, last + 1, 64))
    assert run.evaluation is not None  # it is finished, not interrupted
    saved, _ = newest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step == last


@pytest.mark.parametrize(("enough", "last"), [(1.0, 64), (1e9, 320)])
def test_a_run_ends_where_an_evaluation_reaches_the_return(
    enough: float, last: int, tmp_path: Path
) -> None:
    """Every episode of CartPole returns at least 8, and none 1e9."""
    run = rlpg.train(
        "CartPole-v1", total_steps=320, run_dir=tmp_path / "run", recipe="default", quiet=True,
        overrides=SMALL | {"evaluation.every": 64}, stop_at_return=enough,
    )  # fmt: skip
    saved, _ = newest_checkpoint(run.path / "checkpoints")
    assert saved is not None
    assert saved.step == last


def test_checkpoints_are_made_when_the_recipe_says(tmp_path: Path) -> None:
    settings = {"checkpoint__every": 128, "checkpoint__keep_last": 9, "evaluation__every": 10**6}
    run = train("CartPole-v1", tmp_path / "run", **settings)
    steps = [int(path.stem.removeprefix("step-")) for path in (run.path / "checkpoints").iterdir()]
    assert sorted(steps) == [128, 256, 320]


def test_a_run_is_evaluated_twenty_times_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    """Blackjack, whose episodes are too short to cost much."""
    settings = {"rollout__num_envs": 1, "rollout__num_steps": 25, "evaluation__every": None}
    settings |= {"evaluation__stochastic": False, "evaluation__episodes": 1}
    run = train("Blackjack-v1", tmp_path / "run", steps=500, **settings)
    evaluated = [entry["step"] for entry in entries(run) if "eval/mean_reward" in entry]
    assert evaluated == list(range(25, 501, 25))


def test_a_finished_policy_is_frozen(plain: rlpg.Run) -> None:
    assert not plain.policy.training
    assert not any(parameter.requires_grad for parameter in plain.policy.parameters())


def test_actions_are_drawn_from_the_stream_of_that_name() -> None:
    recipe = resolved(find_recipe("CartPole-v1", None, "default", UserParts()))
    with assembled("CartPole-v1", recipe, UserParts(), Hooks(), quiet=True) as components:
        mine = components.collector
        stream = seed_sequence(recipe.seed, "actions")
        same = Collector(mine.envs, components.learner.policy, stream)
        assert np.array_equal(mine.state_dict()["generator"], same.state_dict()["generator"])


@pytest.mark.parametrize(
    ("env", "agent", "recipe", "expected"),
    [
        ("CartPole-v1", None, None, "reinforce"),  # shipped
        ("CartPole-v1", "auto", None, "reinforce"),
        ("CartPole-v1", "a2c", None, "a2c"),
        ("CartPole-v1", None, "default", "ppo"),
        ("FrozenLake-v1", None, None, "ppo"),
        ("FrozenLake-v1", "auto", Recipe.of("npg"), "npg"),
        ("FrozenLake-v1", "trpo", Recipe.of("npg"), "trpo"),
    ],
)
def test_without_an_agent_the_shipped_one_is_taken_else_ppo(
    env: str, agent: str | None, recipe: Any, expected: str
) -> None:
    assert find_recipe(env, agent, recipe, UserParts()).agent == expected


def test_bug_an_environment_of_ones_own_under_a_known_id_got_the_recipe_of_the_known_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = EnvSpec("CartPole-v1", entry_point="mine:CartPole")
    monkeypatch.setitem(gymnasium.registry, "CartPole-v1", own)
    assert find_recipe("CartPole-v1", None, None, UserParts()) == override(
        Recipe.of("ppo"), {"environment.id": "CartPole-v1"}
    )


@pytest.mark.parametrize(
    ("entry_point", "expected"),
    [
        ("gymnasium.envs.classic_control.cartpole:CartPoleEnv", "reinforce"),
        ("minatar.gym:BaseEnv", "reinforce"),
        ("gymnasium_of_mine:CartPole", "ppo"),
        (CartPoleEnv, "reinforce"),
        (type("CartPole", (), {"__module__": "mine"}), "ppo"),
        (None, "ppo"),
    ],
)
def test_a_shipped_recipe_is_for_the_environments_of_the_packages_it_was_made_with(
    entry_point: Any, expected: str
) -> None:
    spec = EnvSpec("CartPole-v1", entry_point=entry_point)
    assert find_recipe(spec, None, None, UserParts()).agent == expected


def test_of_several_shipped_agents_the_best_is_taken_of_equals_the_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ship(agent: str, means: list[float], seconds: float) -> None:
        folder = tmp_path / f"Some-v0-{agent}"
        folder.mkdir()
        (folder / "recipe.toml").write_text(f'agent = "{agent}"\n')
        rows = [{"mean": mean, "wall_seconds": seconds} for mean in means]
        (folder / "results.json").write_text(json.dumps({"seeds": rows}))

    monkeypatch.setattr(rlpg.engine.shipped, "shipped_folder", lambda name: tmp_path / name)
    ship("reinforce", [4.0, 4.0, 0.0], 1.0)  # the highest median, and a seed that fails
    ship("a2c", [3.0, 3.0, 3.0], 9.0)
    assert rlpg.engine.shipped.agent_for("Some-v0") == "a2c"
    ship("trpo", [3.0, 3.0, 3.0], 8.0)
    assert rlpg.engine.shipped.agent_for("Some-v0") == "trpo"
    assert rlpg.engine.shipped.agent_for("Other-v0") == rlpg.engine.shipped.DEFAULT_AGENT


def test_bug_a_restarted_training_refused_the_arguments_that_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, told = {"path": "/a/file", "size": 10**6}, dict[str, Any]()
    (tmp_path / "recipe.toml").touch()
    monkeypatch.setattr(training, "restarts", lambda: (1, 3))  # of torchrun
    monkeypatch.setattr(training, "resume_run", lambda *args, **kwargs: told.update(kwargs))
    recipe = override(Recipe.of("a2c"), {"environment.kwargs": given})
    training.run_recipe("CartPole-v1", recipe, tmp_path)
    assert told["env_kwargs"] == given

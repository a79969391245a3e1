"""A run that was stopped, killed or finished goes on to the same bits as if it had not been."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlpg
from rlpg.cli import main
from rlpg.engine.run_writer import told
from rlpg.engine.stopping import StopSignals
from rlpg.errors import FileError, RlpgWarning, UsageError
from rlpg.learners import Reinforce
from rlpg.runs.recipe import Recipe, dumps, load_recipe, loads, override
from rlpg.runs.run import open_run
from rlpg.runs.store import load_policy, newest_checkpoint

SMALL: dict[str, Any] = {
    "agent": "reinforce",
    "rollout.num_envs": 4,
    "rollout.num_steps": 16,
    "evaluation.every": 300,
    "evaluation.episodes": 2,
    "evaluation.final_episodes": 3,
    "checkpoint.every": 200,
    "log.every": 100,
    "environment.max_episode_steps": 40,
}
TOTAL = 1000  # 16 updates of 64 steps


class Killed(BaseException):
    """Ends a run as a SIGKILL would: nothing more is saved."""


def train(path: Path, env: Any = "CartPole-v1", **overrides: Any) -> rlpg.Run:
    return rlpg.train(
        env, seed=3, total_steps=TOTAL, run_dir=path, recipe="default", overrides=SMALL | overrides
    )


@contextmanager
def killed_at(update: int) -> Iterator[None]:
    """The update of that number does not happen; the process does no more."""
    original = Reinforce.update

    def until(self: Reinforce, rollout: Any, **options: Any) -> Any:
        if self.num_updates == update:
            raise Killed
        return original(self, rollout, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reinforce, "update", until)
        with suppress(Killed):
            yield
            pytest.fail(f"the run ended before update {update}")


def progress(path: Path) -> list[dict[str, Any]]:
    lines = (path / "progress.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def monitor(path: Path) -> list[list[str]]:
    return [line.split(",")[:2] for line in (path / "monitor.csv").read_text().splitlines()[1:]]


def assert_same(one: Path, other: Path) -> None:
    """Everything that does not measure time is the same to the bit."""
    for folder in ("policy", "best_policy"):
        ours, theirs = load_policy(one / folder), load_policy(other / folder)
        assert ours[0] == theirs[0]
        assert {k: v.tobytes() for k, v in ours[1].items()} == {
            k: v.tobytes() for k, v in theirs[1].items()
        }
    saved = [newest_checkpoint(path / "checkpoints")[0] for path in (one, other)]
    assert saved[0] is not None
    assert saved[1] is not None
    for part in ("learner", "collector", "metrics", "best"):
        np.testing.assert_equal(saved[0].state[part], saved[1].state[part])
    assert progress(one) == progress(other)
    assert monitor(one) == monitor(other)
    assert (one / "evaluation.json").read_bytes() == (other / "evaluation.json").read_bytes()
    for name in ("evaluations.npz", "evaluations_stochastic.npz"):
        ours, theirs = np.load(one / name), np.load(other / name)
        for key in ("timesteps", "results", "ep_lengths"):
            np.testing.assert_array_equal(ours[key], theirs[key])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without overrides, which the tests compare with and do not change."""
    return train(tmp_path_factory.mktemp("uninterrupted") / "run").path


@pytest.mark.parametrize(
    ("env", "overrides"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"environment.backend": "sync", "learner.baseline": "linear"}),
        ("Pendulum-v1", {"policy.gaussian": "squashed", "learner.entropy_coef": 0.01}),
        ("FrozenLake-v1", {"learner.baseline": "time_step", "learner.truncated_return": "drop"}),
        (
            "CartPole-v1",
            {"learner.baseline": "moving_average", "learner.truncated_return": "terminal"},
        ),
        ("LunarLander-v3", {"learner.learning_rate_schedule": "constant"}),
        ("InvertedPendulum-v5", {"policy.gaussian": "beta"}),
        ("rlpg:rlpg/UnitCommitment-v0", {"policy.normalize_observations": False}),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(
    env: str, overrides: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole" if overrides else uninterrupted, tmp_path / "cut"
    if overrides:
        train(whole, env, **overrides)
    for update in (9, 13):  # mid-episode, after 576 and 832 steps; checkpoints every 200 or so
        with killed_at(update):
            if update == 9:
                train(cut, env, **overrides)
            else:
                rlpg.resume(cut, env=env)
    rlpg.resume(cut, env=env)
    assert_same(whole, cut)


def test_async_environments_resume_to_the_same_bits(tmp_path: Path) -> None:
    overrides = {"environment.backend": "async", "rollout.num_envs": 2, "evaluation.num_envs": 1}
    train(tmp_path / "whole", **overrides | {"environment.backend": "sync"})  # starts no workers
    with killed_at(9):
        train(tmp_path / "cut", **overrides)
    rlpg.resume(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_whole_episode_runs_resume_to_the_same_bits(tmp_path: Path) -> None:
    overrides = {"learner.baseline": "leave_one_out"}
    train(tmp_path / "whole", **overrides)
    with killed_at(7):
        train(tmp_path / "cut", **overrides)
    rlpg.resume(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_run_of_whole_episodes_without_a_vector_version_could_not_be_resumed(
    backend: str, tmp_path: Path
) -> None:
    """Its checkpoints kept the seed of an episode that a reset was going to drop."""
    overrides = {"learner.baseline": "leave_one_out", "environment.backend": backend}
    env, counts = "FrozenLake-v1", {"rollout.num_envs": 2, "evaluation.num_envs": 1}
    without_workers = overrides | {"environment.backend": "sync"}  # and with the same bits
    train(tmp_path / "whole", env, **without_workers, **counts)
    with killed_at(9):
        train(tmp_path / "cut", env, **overrides, **counts)
    rlpg.resume(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    if backend == "sync":  # workers take a second to start
        rlpg.resume(tmp_path / "cut", total_steps=TOTAL + 200)  # one that had finished


def test_a_run_killed_before_its_first_checkpoint_starts_over(
    uninterrupted: Path, tmp_path: Path
) -> None:
    with killed_at(1):
        train(tmp_path / "cut")
    rlpg.resume(tmp_path / "cut")
    assert_same(uninterrupted, tmp_path / "cut")


def test_a_damaged_checkpoint_is_skipped_and_the_one_before_is_taken(
    uninterrupted: Path, tmp_path: Path
) -> None:
    with killed_at(9):
        train(tmp_path / "cut")
    newest = sorted((tmp_path / "cut/checkpoints").iterdir())[-1]
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    with pytest.warns(RlpgWarning, match="skipped .*: expected content with the sha256"):
        rlpg.resume(tmp_path / "cut")
    assert_same(uninterrupted, tmp_path / "cut")


def test_a_finished_run_grows(tmp_path: Path) -> None:
    """A run of 1000 steps and then 500 more is one of 1500: with a constant learning rate."""
    constant = {
        "learner.learning_rate_schedule": "constant",
        "log.every": 64,
        "evaluation.every": 64,
    }
    short = train(tmp_path / "a", **constant)
    first = progress(short.path)
    again = rlpg.resume(short.path, total_steps=1500)
    assert again.path == short.path
    text = (short.path / "recipe.toml").read_text()
    assert text.startswith("# trained to step 1024 with total_steps = 1000, then resumed with")
    rows = progress(short.path)
    assert rows[: len(first)] == first
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 1500


@pytest.mark.parametrize("budget", [1, 900, 1023])
def test_a_budget_below_what_is_done_was_recorded_as_if_it_had_been_the_runs(
    budget: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe then said that a run of 1,024 steps had a budget of 900."""
    run = train(tmp_path / "run")
    before = (run.path / "recipe.toml").read_text()
    with pytest.raises(
        UsageError, match=f"total_steps: expected at least the 1024 steps .* done, got {budget}$"
    ):
        rlpg.resume(run.path, total_steps=budget)
    assert main(["resume", str(run.path), "--total-steps", str(budget), "--quiet"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (run.path / "recipe.toml").read_text() == before
    for same in (TOTAL, 1024):  # its own budget, and exactly what is done
        rlpg.resume(run.path, total_steps=same)
    assert newest_checkpoint(run.path / "checkpoints")[0].step == 1024  # type: ignore[union-attr]


def test_tensorboard_shows_one_curve_without_double_points(tmp_path: Path) -> None:
    with killed_at(11):
        train(tmp_path / "cut")
    rlpg.resume(tmp_path / "cut")
    events = EventAccumulator(str(tmp_path / "cut"))
    events.Reload()
    points = events.Scalars("train/policy_loss")
    steps = [point.step for point in points]
    logged = [r["step"] for r in progress(tmp_path / "cut") if "train/policy_loss" in r]
    assert steps == logged
    assert steps == sorted(set(steps))


def test_another_process_on_the_same_run_is_told_who_holds_it(tmp_path: Path) -> None:
    with killed_at(5):
        train(tmp_path / "run")
    with open_run(tmp_path / "run").held(), pytest.raises(UsageError, match=str(os.getpid())):
        rlpg.resume(tmp_path / "run")


def test_other_versions_are_said_and_exact_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_at(9):
        train(tmp_path / "run")
    monkeypatch.setattr(
        "rlpg.verbs.training.versions_now",
        lambda recipe: {**versions(tmp_path / "run"), "torch": "9.9"},
    )
    with pytest.raises(UsageError, match=r"torch was 2\.[0-9.+a-z]*, is 9\.9"):
        rlpg.resume(tmp_path / "run", exact=True)
    with pytest.warns(RlpgWarning, match=r"bits may differ: torch was 2\.[0-9.+a-z]*, is 9\.9"):
        rlpg.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("setting", "changed", "words"),
    [
        ("gamma = 0.9\n", "gamma = 0.8\n", "learner.gamma was 0.9, is 0.8"),
        ("gamma = 0.9\n", "", "learner.gamma was 0.9, is 0.99"),  # a line is missing
        ("max_episode_steps = 40\n", "max_episode_steps = 30\n", "max_episode_steps was 40, is 30"),
    ],
)
def test_a_changed_recipe_was_not_said_and_exact_went_on(
    setting: str, changed: str, words: str, tmp_path: Path
) -> None:
    with killed_at(9):
        train(tmp_path / "run", **{"learner.gamma": 0.9})
    recipe = tmp_path / "run" / "recipe.toml"
    text = recipe.read_text()
    assert setting in text
    recipe.write_text(text.replace(setting, changed))
    with pytest.raises(UsageError, match=words):
        rlpg.resume(tmp_path / "run", exact=True)
    with pytest.warns(RlpgWarning, match=f"bits may differ: [a-z.]*{words}"):
        rlpg.resume(tmp_path / "run")


@pytest.mark.parametrize("lines", [0, 3])
def test_an_empty_recipe_was_answered_with_how_ids_look(lines: int, tmp_path: Path) -> None:
    """As after a power failure; `env: expected an id like Name-v0, got ''` named no file."""
    with killed_at(9):
        train(tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text("".join(recipe.read_text().splitlines(keepends=True)[:lines]))
    with pytest.raises(FileError, match=r"run: expected files that name the environment, got none"):
        rlpg.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("others", "agent", "baseline", "episodes"),
    [(2, "reinforce", "value", None), (8, "reinforce", "leave_one_out", 1), (3, "a2c", "linear", 1),
     (8, "ppo", "value", None), (2, "ppo", "leave_one_out", 1), (5, "trpo", "time_step", 1)],
)  # fmt: skip
def test_a_run_with_another_number_of_environments_ended_for_its_running_rewards(
    others: int, agent: str, baseline: str, episodes: int | None, tmp_path: Path
) -> None:
    """It begins fresh episodes, and with them the sums that the rewards' scale follows."""
    own: dict[str, Any] = {"agent": agent, "learner.baseline": baseline}
    if episodes:
        own["rollout.episodes_per_env"] = episodes
    run = train(tmp_path / "run", **own)
    folder = open_run(run.path)
    recipe = override(load_recipe(folder.recipe), {"rollout.num_envs": others})
    folder.recipe.write_text(dumps(recipe))
    with pytest.warns(RlpgWarning) as told:
        resumed = rlpg.resume(run, total_steps=TOTAL + 400, quiet=True)
    said = " ".join(str(warning.message) for warning in told)
    assert f"rollout.num_envs was 4, is {others}" in said
    assert "fresh episodes" in said
    saved, _ = newest_checkpoint(resumed.path / "checkpoints")
    assert saved is not None
    assert saved.step >= TOTAL + 400
    assert rlpg.load(resumed).act(np.zeros(4)) in (0, 1)


@pytest.mark.parametrize("agent", ["reinforce", "a2c", "ppo", "npg", "trpo", "pathwise"])
def test_a_recipe_is_the_same_once_it_was_a_file(agent: str) -> None:
    """Arguments in another order: resume said that bits may differ, and `--exact` refused."""
    kwargs = {"where": "a/b", "sizes": [1, 2.5], "at": 40}
    recipe = override(Recipe.of(agent), {"environment.id": "E-v0", "environment.kwargs": kwargs})
    again = loads(dumps(recipe))
    turned = override(again, {"environment.kwargs": dict(reversed(kwargs.items()))})
    assert told(turned) == told(again) == told(recipe)
    assert told(override(again, {"environment.kwargs": {**kwargs, "at": 41}})) != told(recipe)


def test_settings_that_change_no_bit_are_not_said(tmp_path: Path) -> None:
    with killed_at(9):
        train(tmp_path / "run", **{"environment.backend": "sync"})
    recipe = tmp_path / "run" / "recipe.toml"
    changed = (
        recipe.read_text().replace('"sync"', '"async"').replace("every = 100\n", "every = 90\n")
    )
    recipe.write_text(changed)
    rlpg.resume(tmp_path / "run", exact=True)


def test_another_number_of_evaluation_episodes_was_a_raw_error_in_the_next_evaluation(
    tmp_path: Path,
) -> None:
    with killed_at(9):
        train(tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.toml"
    text = recipe.read_text()
    recipe.write_text(text.replace("\nepisodes = 2\n", "\nepisodes = 5\n"))
    with pytest.raises(
        FileError, match="episodes: expected 2, as in the evaluations so far, got 5"
    ):
        rlpg.resume(tmp_path / "run")
    recipe.write_text(text)
    rlpg.resume(tmp_path / "run", exact=True)


def versions(run: Path) -> dict[str, str]:
    saved, _ = newest_checkpoint(run / "checkpoints")
    assert saved is not None
    return saved.versions


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="expected a run's folder"):
        rlpg.resume(tmp_path)


def test_a_file_may_not_choose_modules_to_import(tmp_path: Path) -> None:
    train(tmp_path / "run", "gymnasium:CartPole-v1")
    with pytest.raises(FileError, match="--env gymnasium:CartPole-v1"):
        rlpg.resume(tmp_path / "run")


@pytest.mark.parametrize("reads", range(6))
def test_a_signal_at_any_moment_of_an_iteration_saves_that_iteration(
    reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal between two looks at it once ended the loop without a checkpoint."""
    updates = []
    update = Reinforce.update

    def counted(self: Reinforce, rollout: Any, **options: Any) -> Any:
        updates.append(self)
        return update(self, rollout, **options)

    class Signalled(StopSignals):
        looks = 0

        @property
        def received(self) -> signal.Signals | None:
            self.looks += 1
            return signal.SIGINT if self.looks > reads else None

        @received.setter
        def received(self, value: object) -> None:
            pass

    monkeypatch.setattr(Reinforce, "update", counted)
    monkeypatch.setattr("rlpg.verbs.training.StopSignals", Signalled)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", **{"checkpoint.every": 10**6})
    saved, _ = newest_checkpoint(tmp_path / "run/checkpoints")
    assert saved is not None
    assert saved.state["learner"]["num_updates"] == len(updates) > 0

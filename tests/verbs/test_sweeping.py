"""Sweeps: spaces, the study in its folder, deaths, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlpg import cli
from rlpg.engine.assembly import Hooks, assembled
from rlpg.engine.components import resolved
from rlpg.errors import FileError, RecipeError, RlpgError, SaveError, UsageError
from rlpg.learners.settings import AGENTS
from rlpg.policies.references import UserParts
from rlpg.runs.recipe import Recipe, load_recipe, override
from rlpg.verbs.spaces import Range, checked_space, space_of

optuna = pytest.importorskip("optuna")
sweeping = pytest.importorskip("rlpg.verbs.sweeping")

SPACE = """
[learner.learning_rate]
low = 1e-4
high = 1e-1
log = true

[rollout.num_steps]
choices = [16, 32]
"""
# Trials of a few steps are in the trouble that longer runs are warned of.
pytestmark = pytest.mark.filterwarnings("ignore::rlpg.errors.RlpgWarning")
FAST = [
    "CartPole-v1", "--agent=a2c", "--recipe=default", "--total-steps=640", "--num-seeds=2",
    "--rollout.num-envs=2", "--evaluation.episodes=1", "--evaluation.final-episodes=2",
    "--space=space.toml", "--sweep-dir=sweep", "--quiet",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.toml").write_text(SPACE)


# ---- spaces


@pytest.mark.parametrize("agent", AGENTS)
def test_the_shipped_space_of_an_agent_has_settings_of_it(agent: str) -> None:
    recipe = Recipe.of(agent)
    checked_space(space_of(recipe, None), recipe)
    for key, kind in space_of(recipe, None).items():
        values = [override(recipe, {key: value}) for value in kind.ends]
        assert len(set(map(repr, values))) == len(values), f"{key}: nothing to choose"


BESIDE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no baseline": {"learner.baseline": "none"},
    "linear baseline": {"learner.baseline": "linear"},
    "own baseline": {"learner.baseline": "rlpg.gradients.baselines:MovingAverage"},
    "cut ends": {"learner.baseline": "none", "learner.truncated_return": "terminal"},
    "whole episodes": {"rollout.episodes_per_env": 2},
    "shared torso": {"policy.shared_torso": True},
    "memory": {"policy.memory": "gru"},
    "own network": {"policy.network": "torch.nn:Linear"},
}


@pytest.mark.parametrize("agent", [agent for agent in AGENTS if agent != "pathwise"])
@pytest.mark.parametrize("beside", BESIDE)
def test_bug_a_sweep_tried_settings_that_others_of_the_recipe_refuse(
    agent: str, beside: str
) -> None:
    parts = UserParts(import_modules=True)
    try:
        recipe = override(Recipe.of(agent), {"environment.id": "CartPole-v1", **BESIDE[beside]})
        with assembled("CartPole-v1", resolved(recipe, parts), parts, Hooks(), quiet=True):
            pass
    except RlpgError:
        return  # nothing to sweep
    space = space_of(resolved(recipe, parts), None)
    checked_space(space, recipe)
    for end in (0, -1):
        tried = override(recipe, {key: kind.ends[end] for key, kind in space.items()})
        with assembled("CartPole-v1", resolved(tried, parts), parts, Hooks(), quiet=True):
            pass


def test_a_sweep_tries_nothing_that_does_nothing() -> None:
    whole = override(Recipe.of("ppo"), {"rollout.episodes_per_env": 1})
    own = override(Recipe.of("ppo"), {"policy.network": "torch.nn:Linear"})
    every = set(space_of(Recipe.of("ppo"), None))
    assert every - set(space_of(whole, None)) == {"rollout.num_steps"}
    assert every - set(space_of(own, None)) == {"policy.hidden"}


def test_a_file_is_a_space(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(f"{SPACE}\n[total_steps]\nlow = 100\nhigh = 200\n")
    assert space_of(Recipe.of("a2c"), path) == {
        "learner.learning_rate": Range(1e-4, 1e-1, log=True),
        "rollout.num_steps": Range(choices=(16, 32)),
        "total_steps": Range(100, 200),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a table for each setting to try"),
        ("[learner.gamma]\nlow = 0.9\n", "learner.gamma: expected choices .*, or low < high"),
        ("[learner.gamma]\nlow = 0.9\nhigh = 0.8\n", "learner.gamma: expected choices"),
        ("[learner.gamma]\nlow = 0\nhigh = 0.8\nlog = true\n", "learner.gamma: expected choices"),
        ("[learner.gamma]\nchoices = []\n", "learner.gamma: expected choices"),
        ("[learner.gamma]\nchoices = [0.9]\nlow = 0.1\n", "learner.gamma: expected choices"),
        ("[learner]\ngamma = 0.9\n", "learner: expected choices"),
        # Optuna took them, and all trials were done when its picture ended in a traceback.
        ("[policy.hidden]\nchoices = [[8], [4, 4]]\n", 'expected choices .a list as text: "64,64"'),
        ("[policy.hidden]\nchoices = ['8', [4, 4]]\n", "policy.hidden: expected choices"),
        ("[environment.kwargs]\nchoices = [{}, {a = 1}]\n", "kwargs: expected choices"),
        ("[policy.kwargs.d]\nchoices = [2026-01-01]\n", "kwargs.d: expected choices"),
        ("not toml", "own.toml"),
    ],
)
def test_a_file_that_is_no_space(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(FileError, match=said):
        space_of(Recipe.of("a2c"), path)


@pytest.mark.parametrize(
    ("key", "kind"),
    [("learner.gama", Range(0.1, 0.9)), ("learner.gamma", Range(0.9, 1.1)),
     ("policy.hidden", Range(choices=("wide",)))],
)  # fmt: skip
def test_a_space_of_settings_that_cannot_be(key: str, kind: Range) -> None:
    with pytest.raises(RecipeError, match=key):
        checked_space({key: kind}, Recipe.of("ppo"))


@pytest.mark.parametrize(
    ("key", "kind"),
    [("learner.gamma", float), ("learner.gae_lambda", float), ("learner.entropy_coef", float),
     ("policy.log_std_init", float), ("rollout.num_envs", int), ("learner.num_minibatches", int),
     ("environment.kwargs.size", int)],
)  # fmt: skip
def test_bug_from_0_to_1_tried_0_and_1_and_nothing_between(key: str, kind: type) -> None:
    low = 0 if kind is float else 1
    space = checked_space({key: Range(low, low + 1)}, Recipe.of("ppo"))
    assert [type(end) for end in space[key].ends] == [kind, kind]
    trial = optuna.trial.FixedTrial({key: low + 0.25 if kind is float else low})
    assert sweeping._suggested(trial, key, space[key]) == trial.params[key]


def test_a_learner_of_ones_own_needs_a_space() -> None:
    with pytest.raises(UsageError, match=r"^space: expected a file for the agent"):
        space_of(replace(Recipe.of("ppo"), agent="mine:Learner"), None)


# ---- pruning


class Trial:
    """What Optuna's would do that prunes below a value."""

    def __init__(self) -> None:
        self.reported: list[tuple[float, int]] = []

    def report(self, value: float, step: int) -> None:
        self.reported.append((value, step))

    def should_prune(self) -> bool:
        return self.reported[-1][0] < 5.0


def test_a_trial_is_judged_by_the_mean_of_its_seeds_so_far() -> None:
    trial, told = Trial(), []
    hooks = Hooks(on_log=lambda step, metrics: told.append(step))
    first, second = (sweeping.Watch(trial, before, hooks) for before in ([], [10.0]))
    first.log(100, {"rollout/ep_rew_mean": 1.0})
    assert trial.reported == []
    first.log(100, {"eval/mean_reward": 6.0})
    assert first.on_log(100, {}) is False
    second.log(100, {"eval/mean_reward": 2.0})  # with the seed before: 6
    assert second.on_log(100, {}) is False
    second.log(200, {"eval/mean_reward": -2.0})  # 4
    assert second.on_log(200, {}) is True
    assert [value for value, _ in trial.reported] == [6.0, 6.0, 4.0]
    assert [step for _, step in trial.reported] == sorted({step for _, step in trial.reported})
    assert told == [100, 100, 200]


# ---- the study


def trials(folder: str = "sweep") -> list[Any]:
    backend = optuna.storages.journal.JournalFileBackend(f"{folder}/study.journal")
    storage = optuna.storages.JournalStorage(backend)
    return list(optuna.load_study(study_name=sweeping.NAME, storage=storage).trials)


def test_a_sweep_goes_on_with_more_trials_and_writes_the_best(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["sweep", *FAST, "--jobs=1", "--trials=2"]) == 0
    assert len(trials()) == 2
    assert cli.main(["sweep", *FAST, "--jobs=1", "--trials=4"]) == 0
    found = trials()
    assert [trial.number for trial in found] == [0, 1, 2, 3]
    best = max(found, key=lambda trial: -float("inf") if trial.value is None else trial.value)
    recipe = load_recipe("sweep/best.toml")
    assert recipe.learner.learning_rate == best.params["learner.learning_rate"]
    assert recipe.rollout.num_steps == best.params["rollout.num_steps"]
    means = [
        json.loads(Path(f"sweep/trials/{best.number:04d}/{seed}/evaluation.json").read_text())[
            "mean"
        ]
        for seed in (0, 1)
    ]
    assert best.value == pytest.approx(sum(means) / 2)
    assert Path("sweep/importances.png").read_bytes().startswith(b"\x89PNG")
    assert f"(trial {best.number})\n" in capsys.readouterr().out


def test_every_run_of_a_sweep_tells_the_step_it_begins_at() -> None:
    """All runs of a process counted as one: after some trials, 12 seconds were "2:22 left"."""
    recipe = override(Recipe.of("a2c"), {
        "environment.id": "CartPole-v1", "total_steps": 640, "evaluation.final_episodes": 1
    })  # fmt: skip
    sweep = sweeping.Sweep(
        env="CartPole-v1", recipe=recipe, folder=Path("s"), space={}, trials=1, seeds=(0, 1)
    )
    began: list[int] = []

    def interrupt(step: int, metrics: dict[str, float]) -> None:
        if began == [0, 0] and step >= 320:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sweep.run(0, Hooks(interrupt, began=began.append), quiet=True)
    sweep.run(0, Hooks(began=began.append), quiet=True)
    assert len(began) == 3
    assert began[:2] == [0, 0]
    assert 320 <= began[2] < 640


def test_bug_a_folder_with_a_space_in_its_name_could_not_be_pasted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word for word in FAST if word not in ("--quiet", "--sweep-dir=sweep")]
    assert cli.main(["sweep", *words, "--sweep-dir=my sweep", "--jobs=1", "--trials=1"]) == 0
    out = capsys.readouterr().out
    assert "saved in 'my sweep': best.toml" in out
    assert "next:  rlpg train CartPole-v1 --recipe 'my sweep/best.toml'\n" in out


def test_bug_a_sweep_that_drew_no_importances_did_not_say_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["sweep", *FAST, "--jobs=1", "--trials=1"]) == 0
    assert not Path("sweep/importances.png").exists()
    said = "best.toml; no importances.png, which takes two finished trials of different returns\n"
    assert said in capsys.readouterr().out


def test_a_sweep_that_was_killed_goes_on_with_its_trials() -> None:
    command = [sys.executable, "-m", "rlpg", "sweep", *FAST, "--trials=3", "--jobs=1"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not list(Path().glob("sweep/trials/0000/*/recipe.toml")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert any(trial.state.name == "RUNNING" for trial in trials())
    assert cli.main(["sweep", *FAST, "--trials=3", "--jobs=1"]) == 0
    assert [trial.state.is_finished() for trial in trials()] == [True] * 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"mean": null}', "\0\0\0"])
def test_bug_a_damaged_evaluation_of_a_taken_up_trial_ended_the_sweep_for_good(
    content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sweep", *FAST, "--trials=1", "--jobs=1"]
    with monkeypatch.context() as patch:
        patch.setattr(sweeping.Sweep, "_tell", interrupted)  # both seeds are done
        assert cli.main(command) == 130
    path = Path("sweep/trials/0000/0/evaluation.json")
    before = path.read_text()
    path.write_text(content)
    assert cli.main(command) == 0
    assert [trial.state.name for trial in trials()] == ["COMPLETE"]
    assert path.read_text() == before


def interrupted(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


def test_bug_half_a_line_in_the_journal_made_it_unreadable_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeping.Sweep, "_train", lambda *args: 1.0)
    assert cli.main(["sweep", *FAST, "--trials=2", "--jobs=1"]) == 0
    journal = Path("sweep/study.journal")
    for lost in (1, 20, 2000):  # a power failure, or a disk that was full
        journal.write_bytes(journal.read_bytes()[:-lost])
        assert cli.main(["sweep", *FAST, "--trials=3", "--jobs=1"]) == 0
        assert [trial.value for trial in trials()] == [1.0] * 3


def test_bug_a_trial_that_had_no_folder_yet_ended_every_later_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeping.Sweep, "_train", lambda *args: 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(sweeping.Sweep, "_hold", interrupted)
        assert cli.main(["sweep", *FAST, "--trials=1", "--jobs=1"]) == 130
    assert [trial.state.name for trial in trials()] == ["RUNNING"]
    assert cli.main(["sweep", *FAST, "--trials=1", "--jobs=1"]) == 0
    assert [trial.value for trial in trials()] == [1.0]


def test_bug_a_trial_could_not_go_on_with_arguments_that_only_the_user_may_choose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"path": "/a/file", "size": 10**6}
    recipe = override(Recipe.of("a2c"), {"environment.kwargs": given})
    sweep = sweeping.Sweep(env="CartPole-v1", recipe=recipe, folder=Path(), space={}, trials=1)
    Path("trials/0000/0").mkdir(parents=True)
    Path("trials/0000/0/recipe.toml").touch()
    told: dict[str, Any] = {}

    def resume(*args: object, **kwargs: object) -> Any:
        told.update(kwargs)
        return SimpleNamespace(evaluation=SimpleNamespace(mean=2.0))

    monkeypatch.setattr(sweeping.training, "resume_run", resume)
    assert sweep._train(0, recipe, 0, sweeping.Watch(Trial(), [], Hooks())) == 2.0
    assert told["env_kwargs"] == given


def test_bug_a_seed_that_had_reached_its_return_was_trained_on_by_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [*FAST, "--trials=1", "--jobs=1", "--stop-at-return=1"]
    with monkeypatch.context() as patch:
        patch.setattr(sweeping.Sweep, "_tell", interrupted)
        assert cli.main(["sweep", *words]) == 130
    before = Path("sweep/trials/0000/0/progress.jsonl").read_bytes()
    assert cli.main(["sweep", *words]) == 0
    assert Path("sweep/trials/0000/0/progress.jsonl").read_bytes() == before


def test_bug_a_signal_on_a_full_disk_failed_the_trial_and_began_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train(*args: object) -> Any:
        raise SaveError("expected everything to be saved")  # without a run: it was stopped

    monkeypatch.setattr(sweeping.Sweep, "_train", train)
    assert cli.main(["sweep", *FAST, "--trials=3", "--jobs=1"]) == 1
    assert [trial.state.name for trial in trials()] == ["RUNNING"]


def test_trials_that_fail_are_told_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(sweep: Any, number: int, *rest: object) -> Any:
        if number == 1:
            raise UsageError("it does not fit")
        return float(number)

    monkeypatch.setattr(sweeping.Sweep, "_train", train)
    assert cli.main(["sweep", *FAST, "--trials=3", "--jobs=1"]) == 0
    assert [(t.state.name, t.value) for t in trials()] == [
        ("COMPLETE", 0.0), ("FAIL", None), ("COMPLETE", 2.0),
    ]  # fmt: skip


def test_settings_that_do_not_fit_in_the_first_trial_end_the_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(sweep: Any, number: int, *rest: object) -> Any:
        raise UsageError("it does not fit")

    monkeypatch.setattr(sweeping.Sweep, "_train", train)
    assert cli.main(["sweep", *FAST, "--trials=3", "--jobs=1"]) != 0
    assert "it does not fit" in capsys.readouterr().err
    assert [t.state.name for t in trials()] == ["FAIL"]


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert cli.main(["sweep", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_sweep_took_verbose_and_showed_no_more_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swept: list[Any] = []

    def instead(sweep: Any, *args: Any, **options: Any) -> tuple[dict[int, Any], dict[int, Any]]:
        swept.append(sweep)
        return {}, {}

    monkeypatch.setattr("rlpg.verbs.several.run_seeds", instead)
    assert "expected a trial that was done" in refusal(capsys, *FAST, "--verbose")
    assert [sweep.verbose for sweep in swept] == [True]


def test_what_a_sweep_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--jobs: expected an integer >= 1" in refusal(capsys, *FAST, "--jobs=0")
    assert "env: expected a registered id" in refusal(
        capsys, "CartPole-v77", *FAST[1:], "--jobs=1", "--sweep-dir=none"
    )
    assert not list(Path("none").glob("trials/*/0"))

    monkeypatch.setattr(sweeping.Sweep, "_train", lambda *args: 1.0)
    assert cli.main(["sweep", *FAST, "--trials=1", "--jobs=1"]) == 0
    for other in ("--num-seeds=3", "--learner.gamma=0.5"):
        said = refusal(capsys, *FAST, "--trials=1", "--jobs=1", other)
        assert "study.journal: expected a study of the same environment, agent" in said
    Path("sweep/study.journal").write_text('{"something": "else"}\n')
    assert "expected the file of a study, got another" in refusal(capsys, *FAST, "--jobs=1")

    monkeypatch.setitem(sys.modules, "optuna", None)
    assert 'run `pip install ".[sweep]"`' in refusal(capsys, *FAST)

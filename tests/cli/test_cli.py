"""The command line as a user meets it: exit codes, single lines, what is left on disk."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import rlpg
from rlpg import cli
from rlpg.learners.settings import AGENTS
from rlpg.runs.recipe import Recipe, flatten, load_recipe, override
from rlpg.runs.store import newest_checkpoint
from rlpg.settings import as_text

FAST = [
    "--agent", "reinforce", "--recipe", "default", "--total-steps", "200",
    "--rollout.num-envs", "4", "--rollout.num_steps", "16", "--policy.hidden", "8",
    "--evaluation.episodes", "2", "--evaluation.final-episodes", "3", "--log.every", "64",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def cart_pole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run; no test changes it."""
    path = tmp_path_factory.mktemp("cart") / "run"
    assert cli.main(["train", "CartPole-v1", *FAST, "--run-dir", str(path), "--quiet"]) == 0
    return path


def refusal(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """What a refused command says: one line, and nothing else happened."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert cli.main(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rlpg: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert sorted(Path().rglob("*")) == before, "something was left behind"
    return err


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: rlpg {verb} ")
    assert "example" in text
    assert max(map(len, text.splitlines())) <= 110


def test_the_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h"):
        assert cli.main([word]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 100
        for verb in cli.VERBS:
            assert any(line.startswith(f"    {verb} ") for line in lines)


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The words of a help text, without the box around them."""
    assert cli.main([*words, "--help"]) == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("agent", AGENTS)
def test_the_help_of_train_shows_every_setting_with_its_default(
    agent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(capsys, "train", "--agent", agent)
    for key, value in flatten(Recipe.of(agent)).items():
        if key == "environment.id" or key.endswith("kwargs"):
            assert f"--{key.replace('_', '-')} " not in text
            continue
        after = text.rpartition(f"--{key.replace('_', '-')} ")[2].partition("(default: ")[2]
        assert after.startswith(f"{shlex.quote(as_text(value))})"), key
    assert "clipped|squashed|beta" in text, "choices are listed"
    assert "--environment.kwargs.NAME VALUE" in text


def test_the_help_shows_the_recipe_that_would_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    def default(option: str, *words: str) -> str:
        text = help_of(capsys, "train", *words)
        return text.rpartition(f"{option} ")[2].partition("(default: ")[2].partition(")")[0]

    Path("mine.toml").write_text("agent = 'ppo'\n[learner]\nclip_range = 0.3\n")
    assert default("--total-steps") == "300000"
    for env in ("CartPole-v1", "CartPole", "some_module:CartPole-v1"):
        assert default("--total-steps", env) == "100000", "of the shipped recipe"
    assert default("--total-steps", "CartPole-v1", "--recipe", "default") == "300000"
    assert default("--total-steps", "CartPole-v1", "--agent", "npg") == "300000"
    assert default("--learner.clip-range", "CartPole-v1", "--agent", "ppo") == "0.2"
    assert default("--learner.clip-range", "CartPole-v1", "--recipe", "mine.toml") == "0.3"
    assert default("--agent", "CartPole-v1", "--recipe", "mine.toml") == "ppo"


def test_the_help_does_not_show_what_an_agent_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--learner.clip-range" not in help_of(capsys, "train", "--agent", "a2c")
    text = help_of(capsys, "train", "--agent", "trpo")
    assert "--learner.line-search" in text
    assert "--learner.learning-rate " not in text


OWN_LEARNER = '''
from dataclasses import dataclass
import rlpg
from rlpg.settings import Positive

@dataclass(frozen=True)
class MySettings(rlpg.LearnerSettings):
    """Mine."""
    strength: Positive = 2.0
    """how strong"""

class Mine(rlpg.Reinforce):
    Settings = MySettings
'''


def test_a_learner_of_ones_own_is_in_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own_learner_for_help.py").write_text(OWN_LEARNER)
    monkeypatch.syspath_prepend(".")
    text = help_of(capsys, "train", "--agent", "own_learner_for_help:Mine")
    assert "--learner.strength X how strong (default: 2.0)" in text


def test_help_and_version_import_no_torch() -> None:
    script = (
        "import sys\nfrom rlpg.cli import main\n"
        "for words in (['--help'], ['train', 'CartPole-v1', '--agent', 'ppo', '--help'], "
        "['evaluate', '--help'], ['--version'], ['completion', 'bash']):\n"
        "    assert main(words) == 0\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


# -------------------------------------------------------------------------------------- settings


def another(value: object, key: str) -> str:
    """Some other value of a setting, as typed."""
    words = {
        "agent": "ppo", "environment.backend": "sync", "policy.activation": "relu",
        "policy.gaussian": "squashed", "policy.std": "dependent", "learner.baseline": "linear",
        "learner.truncated_return": "bootstrap", "learner.average": "episodes",
        "learner.learning_rate_schedule": "constant", "learner.entropy_coef_schedule": "linear",
        "policy.network": "nets:Mine", "policy.memory": "gru", "policy.factory": "nets:Policy",
        "policy.images": "false", "learner.value_hidden": "7,5", "policy.critic_only": "a,b",
        "evaluation.final_episodes": "9", "device": "auto",
    }  # fmt: skip
    if key in words:
        return words[key]
    match value:
        case bool():
            return str(not value).lower()
        case tuple():
            return "7,5"
        case int() | None:
            return "9"
        case _:
            return "0.25"


@pytest.mark.parametrize(
    "key", [k for k in flatten(Recipe()) if not k.endswith(("kwargs", "wrappers"))]
)
def test_every_setting_has_an_option(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All fields of a recipe, so that a new one cannot be forgotten."""
    if key == "environment.id":
        return  # that is ENV
    seen: list[Recipe] = []

    def instead(env: str, recipe: Recipe, *_: Any, **__: Any) -> Any:
        seen.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("rlpg.verbs.training.run_recipe", instead)
    text = another(flatten(Recipe())[key], key)
    start = ["train", "CartPole-v1", "--recipe", "default"]
    start += [] if key == "agent" else ["--agent", "reinforce"]
    for words in ([f"--{key.replace('_', '-')}", text], [f"--{key}={text}"]):
        assert cli.main([*start, *words]) == 130
        expected = override(Recipe(), {key: text, "environment.id": "CartPole-v1"})
        assert seen.pop() == expected
    assert flatten(expected)[key] != flatten(Recipe())[key]


def test_keyword_arguments_reach_the_environment() -> None:
    words = ["train", "FrozenLake-v1", *FAST, "--run-dir", "run", "--quiet"]
    words += ["--environment.kwargs.is_slippery", "false", "--environment.kwargs.map_name=8x8"]
    assert cli.main(words) == 0
    recipe = load_recipe("run/recipe.toml")
    assert recipe.environment.kwargs == {"is_slippery": False, "map_name": "8x8"}
    assert rlpg.load("run").observations.space == spaces.Discrete(64)


def test_options_win_over_the_recipe_file() -> None:
    Path("mine.toml").write_text("total_steps = 64\n[learner]\nlearning_rate = 0.5\ngamma = 0.9\n")
    words = [
        "--recipe",
        "mine.toml",
        "--learner.learning_rate",
        "1e-3",
        "--run-dir",
        "run",
        "--quiet",
    ]
    assert cli.main(["train", "CartPole-v1", *words, "--evaluation.final_episodes", "2"]) == 0
    recipe = load_recipe("run/recipe.toml")
    assert (recipe.total_steps, recipe.learner.learning_rate, recipe.learner.gamma) == (
        64,
        1e-3,
        0.9,
    )


@pytest.mark.parametrize(
    "baseline", ["none", "moving_average", "time_step", "leave_one_out", "linear", "value"]
)
def test_every_baseline(baseline: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--learner.baseline", baseline, "--quiet"]
    assert cli.main(["train", "CartPole-v1", *FAST, *words]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("seed 0: return ")
    assert err == ""


# ---------------------------------------------------------------------------------------- output


def test_what_train_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "CartPole-v1", *FAST]) == 0
    out, err = capsys.readouterr()
    first, *lines = err.splitlines()
    assert first == "CartPole-v1: 4 environments, native (its own vector version)"
    assert lines[-1].startswith("CartPole-v1 reinforce seed 0  256/200 steps  return ")
    assert len(lines) == len(set(lines)), "no line twice"
    assert "time:" not in err, "where the time goes is for developers: -v"
    result, saved, evaluate, board = out.splitlines()
    assert result.startswith("seed 0: return ")
    assert "over 3 episodes" in result
    assert saved == "saved in runs/CartPole-v1/reinforce/0"
    assert evaluate == "next:  rlpg evaluate runs/CartPole-v1/reinforce/0 --episodes 100"
    assert board.split() == ["tensorboard", "--logdir", "runs"]
    assert cli.main(evaluate.split("rlpg ")[1].split()) == 0, "the advice works"


def test_verbose_training_says_where_the_time_goes_and_the_losses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", "CartPole-v1", *FAST, "-v", "--run-dir", "a folder"]) == 0
    out, err = capsys.readouterr()
    assert "time: env" in err
    assert "explained_variance" in err
    assert "saved in 'a folder'" in out, "it can be pasted into a shell"


def test_several_seeds_and_numbered_runs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "CartPole-v1", *FAST, "--quiet", "--jobs", "1", "--seeds"]
    assert cli.main([*words, "0", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out[:3]] == ["seed 0", "seed 2", "2 seeds"]
    assert cli.main([*words, "0"]) == 0
    folder = Path("runs/CartPole-v1/reinforce")
    assert sorted(path.name for path in folder.iterdir()) == ["0", "0-1", "2"]
    assert [load_recipe(folder / name / "recipe.toml").seed for name in ("0", "0-1", "2")] == [
        0,
        0,
        2,
    ]


def test_a_folder_for_several_seeds() -> None:
    words = ["train", "CartPole-v1", *FAST, "--quiet", "--jobs=1", "--run-dir", "both"]
    assert cli.main([*words, "--seeds", "0", "1"]) == 0
    assert sorted(path.name for path in Path("both").iterdir()) == ["0", "1"]


def test_an_id_without_version_is_completed() -> None:
    assert cli.main(["train", "CartPole", *FAST, "--quiet"]) == 0
    assert load_recipe("runs/CartPole-v1/reinforce/0/recipe.toml").environment.id == "CartPole-v1"


def test_a_module_of_the_working_folder_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    Path("tasks_of_mine.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Mine-v0', CartPoleEnv, max_episode_steps=30)\n"
    )
    command = [sys.executable, "-c", "import rlpg.cli as c; raise SystemExit(c.main())"]
    words = ["train", "tasks_of_mine:Mine-v0", *FAST, "--quiet", "--run-dir", "run"]
    # As an installed script would: the working folder is not on the path by itself.
    subprocess.run([command[0], "-P", *command[1:], *words], check=True, capture_output=True)
    assert load_recipe("run/recipe.toml").environment.id == "tasks_of_mine:Mine-v0"
    assert "a file may not choose modules to import; name it yourself: --env" in refusal(
        capsys, "evaluate", "run"
    )


def test_a_cap_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--environment.episode-cap", "20", "--run-dir", "run"]
    assert cli.main(["train", "CliffWalking-v1", *FAST, *words]) == 0
    assert "capped at 20 steps per episode: no time limit is registered" in capsys.readouterr().err
    assert cli.main(["evaluate", "run", "--episodes", "2"]) == 0
    out, err = capsys.readouterr()
    assert "capped at 20 steps per episode: no time limit is registered" in err
    assert "median length 20" in out


# -------------------------------------------------------------------------------------- evaluate


def test_evaluate_prints_one_line_and_writes_a_table(
    cart_pole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(cart_pole), "--episodes", "7", "--json", "result.json"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    content = json.loads(Path("result.json").read_text())
    returns = [row["return"] for row in content["table"]]
    assert (len(returns), content["episodes"], content["env"]) == (7, 7, "CartPole-v1")
    assert content["mean"] == pytest.approx(np.mean(returns))
    assert f"return {content['mean']:.2f} ± {content['std']:.2f} over 7 episodes" in out
    cli.main(words)
    assert json.loads(Path("result.json").read_text()) == content, "repeatable"
    cli.main([*words, "--seed", "1"])
    assert json.loads(Path("result.json").read_text())["table"] != content["table"]


@pytest.mark.parametrize("option", ["--json", "--json=-"])
@pytest.mark.parametrize("verb", ["evaluate", "diagnose"])
def test_json_without_a_file_was_printed_by_check_env_only(
    verb: str, option: str, cart_pole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--json -` wrote a file of that name, and `--json` was refused."""
    assert cli.main([verb, str(cart_pole), "--episodes", "7", option]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] >= 7
    assert not Path("-").exists()


def test_best_and_stochastic(cart_pole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(cart_pole), "--episodes", "3", "--best", "--stochastic"]) == 0
    assert "sampled actions" in capsys.readouterr().out


def test_evaluate_refuses_another_environment(
    cart_pole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "evaluate", str(cart_pole), "--env", "Acrobot-v1")
    assert "observation space: the policy expects" in said
    assert "(4,)" in said
    assert "(6,)" in said


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", "expected a verb, one of train, resume"),
        ("trian CartPole-v1", "trian: expected a verb, one of train, resume, sweep, evaluate"),
        ("train", "train: expected ENV, got nothing; see `rlpg train --help`"),
        ("train CartPol-v1", "got 'CartPol-v1'; did you mean CartPole-v1"),
        ("train CartPole-v9", "did you mean CartPole-v1"),
        ("train no_such_module:CartPole-v1", "No module named 'no_such_module'"),
        ("train CartPole-v1 --agent ppx", "agent: expected one of reinforce"),
        ("train CartPole-v1 --learner.lrr 1", "learner.lrr: no such setting; did you mean"),
        ("train CartPole-v1 --lr 1e-3", "did you mean learner.learning_rate"),
        ("train CartPole-v1 --learner.learning-rate fast", "expected a number > 0, got 'fast'"),
        ("train CartPole-v1 --learner.gamma 1.5", "expected a number in [0, 1], got 1.5"),
        ("train CartPole-v1 --learner.gamma", "expected a number in [0, 1], got nothing"),
        ("train CartPole-v1 --total-steps 0", "total_steps: expected an integer >= 1, got 0"),
        ("train CartPole-v1 --rollout.num-envs 1.5", "expected an integer >= 1, got '1.5'"),
        ("train CartPole-v1 --policy.hidden 8,x", "policy.hidden: expected a list"),
        ("train CartPole-v1 --policy.network os:getcwd", "network: expected os:getcwd to make one"),
        ("train CartPole-v1 --policy.factory json:loads", "policy: expected json:loads to"),
        ("train CartPole-v1 --learner.baseline json:loads", "baseline: expected json:loads"),
        ("evaluate CartPole-v1-reinforce --json .", "--json: expected a file, got the folder ."),
        ("check-env CartPole-v1 --json ..", "--json: expected a file, got the folder .."),
        ("train CartPole-v1 --seeds=", "--seeds: expected seeds, each once, got []"),
        ("train CartPole-v1 --seeds 1 1", "--seeds: expected seeds, each once"),
        ("train CartPole-v1 --seeds 1 2 --jobs 0", "--jobs: expected an integer >= 1 or none"),
        ("train CartPole-v1 --seeds -1", "--seeds: expected a list, each entry an integer >= 0"),
        ("train CartPole-v1 --recipe none.toml", "none.toml: expected a readable file"),
        ("train CartPole-v1 --run-dir /proc/none/run", "choose another"),
        ("train CartPole-v1 word", "word: expected an option"),
        ("train CartPole-v1 --environment.id Acrobot-v1", "environment.id: expected CartPole-v1"),
        ("train CartPole-v1 --environment.kwargs.size 3", "unexpected keyword argument 'size'"),
        ("train CartPole-v1 --environment.backend gpu", "environment.backend: expected one of"),
        ("train Pendulum-v1 --policy.bernoulli true", "expected Discrete(2) for bernoulli"),
        ("train CartPole-v1 --learner.baseline none --learner.truncated-return bootstrap",
         "bootstrap needs a baseline that predicts values"),
        ("train test/Graph-v0", "observation: expected Box, Discrete"),
        ("evaluate nowhere", "nowhere: expected a run, a policy folder or a shipped agent"),
        ("evaluate .", "expected a run or a policy"),
        ("evaluate", "evaluate: expected RUN|AGENT, got nothing"),
        ("agents all", "all: expected an option, got a word"),
        ("resume nowhere", "nowhere: expected a run's folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    words: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gymnasium.register("test/Graph-v0", Unsupported)
    try:
        assert named in refusal(capsys, *words.split())
    finally:
        del gymnasium.registry["test/Graph-v0"]


class Unsupported(gymnasium.Env[Any, Any]):
    observation_space = spaces.Graph(spaces.Box(0, 1, (1,)), None)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observation_space.sample(), {}


@pytest.mark.parametrize(
    "words",
    ["--episodes 0", "--num-envs 0", "--seed -1", "--json no/such/folder.json", "--bset", "word"],
)
def test_bad_input_to_evaluate(
    words: str, cart_pole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words.split()[0].lstrip("-").replace("-", "_") in refusal(
        capsys, "evaluate", str(cart_pole), *words.split()
    ).replace("-", "_")


@pytest.mark.parametrize(
    "words",
    [
        "evaluate CartPole-v1-reinforce --json", "check-env CartPole-v1 --json",
        "evaluate CartPole-v1-reinforce --video", "export CartPole-v1-reinforce --onnx",
        "plot . --output", "diagnose CartPole-v1-reinforce --plot",
    ],
)  # fmt: skip
def test_a_device_was_replaced_by_a_file(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json /dev/null`, typed by root, left the machine a regular file of that name."""
    device = Path("device.png")  # a pipe, which is as good, and no loss
    os.mkfifo(device)
    assert "expected a regular file or a new one, got device.png" in refusal(
        capsys, *words.split(), str(device)
    )
    assert device.is_fifo()


@pytest.mark.parametrize("target", ["result.json", "link.json"])
def test_a_link_to_a_file_of_json_was_replaced_by_a_file(target: str, cart_pole: Path) -> None:
    """Such a link is /dev/stdout, where the output goes to a file. One to itself has no file."""
    link = Path("link.json")
    link.symlink_to(target)
    assert cli.main(["evaluate", str(cart_pole), "--episodes", "2", "--json", str(link)]) == 0
    assert link.is_symlink() == (target != "link.json")
    assert json.loads(Path(target).read_text())["episodes"] == 2


@pytest.mark.parametrize(
    ("env", "blocked", "command"),
    [
        ("Hopper-v5", "mujoco", 'pip install ".[mujoco]"'),
        ("LunarLander-v3", "Box2D", 'pip install ".[box2d]"'),
        ("ALE/Pong-v5", "ale_py", 'pip install ".[atari]"'),
        ("MinAtar/Breakout-v1", "minatar", 'pip install ".[minatar]"'),
    ],
)
def test_a_missing_extra_is_named_with_its_command(
    env: str,
    blocked: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == blocked or "box2d" in n]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, blocked, None)
    assert command in refusal(capsys, "train", env)


def test_a_missing_envpool_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    said = refusal(capsys, "train", "CartPole-v1", "--environment.backend", "envpool")
    assert 'pip install ".[envpool]"' in said


# --------------------------------------------------------------------- errors inside a run


class Faulty(gymnasium.Env[Any, Any]):
    """Environment 2 of a training run does something bad at its 40th step."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    made = count()

    def __init__(self, fault: str) -> None:
        self.fault, self.index, self.steps = fault, next(Faulty.made), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.left = 7
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        self.steps += 1
        obs, reward = np.full(2, 0.5, np.float32), 1.0
        if self.index == 2 and self.steps == 40:
            match self.fault:
                case "raise":
                    raise ValueError("the motor\nis on fire")
                case "nan":
                    obs[1] = np.nan
                case "infinite":
                    reward = np.inf
                case "shape":
                    obs = np.zeros(3, np.float32)
                case "exit":
                    raise OSError(5, "broken cable")
                case "interrupt":
                    signal.raise_signal(signal.SIGINT)
        return obs, reward, self.left == 0, False, {}


@pytest.fixture
def faulty() -> Iterator[list[str]]:
    """`rlpg train` on it, with a checkpoint and an evaluation every 64 steps."""
    Faulty.made = count()
    gymnasium.register("test/Faulty-v0", Faulty, max_episode_steps=50)
    often = ["--checkpoint.every", "64", "--evaluation.every", "64", "--run-dir", "run"]
    yield ["train", "test/Faulty-v0", *FAST, *often, "--total-steps", "512", "--quiet"]
    del gymnasium.registry["test/Faulty-v0"]


def kept(path: Path) -> None:
    """What a stopped run must still have: 40 steps of 4 environments are 2 updates of 64."""
    checkpoint, skipped = newest_checkpoint(path / "checkpoints")
    assert checkpoint is not None
    assert (checkpoint.step, skipped) == (128, [])
    assert rlpg.load(path).act(np.zeros(2, np.float32)) in (0, 1)
    lines = [json.loads(line) for line in (path / "progress.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 128
    assert "eval/mean_reward" in lines[-1]
    assert len(np.load(path / "evaluations.npz")["timesteps"]) == 2
    assert (path / "monitor.csv").read_text().count("\n") > 10


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("raise", "step() raised ValueError: the motor is on fire"),
        ("nan", "environment 2"),
        ("infinite", "reward: expected a finite float32, got inf"),
        ("shape", "observation: expected float32 of shape (2,), got float32 of shape (3,)"),
        ("exit", "OSError: [Errno 5] broken cable"),
    ],
)
def test_a_fault_of_the_environment(
    fault: str, named: str, faulty: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*faulty, "--environment.kwargs.fault", fault]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert named in err
    assert "environment 2" in err
    assert "step 39" in err, "the first step is step 0"
    assert "what was saved until then is in run, see error.log there" in err
    assert "Traceback (most recent call last)" in Path("run/error.log").read_text()
    kept(Path("run"))


def test_after_a_fault_a_second_start_works_and_so_does_resuming(faulty: list[str]) -> None:
    faulty += ["--environment.kwargs.fault", "raise"]
    assert cli.main(faulty) == 1
    Faulty.made = count(100)  # repaired: none of the next ones is environment 2
    assert cli.main([*faulty, "--run-dir", "again"]) == 0
    assert cli.main(["resume", "run", "--quiet"]) == 0


def test_a_bug_inside_a_run_is_one_line_too(
    faulty: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("nobody thought of it")

    monkeypatch.setattr("rlpg.engine.evaluator.Evaluator.final", broken)
    assert cli.main([*faulty, "--environment.kwargs.fault", "none"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("rlpg: ZeroDivisionError: nobody thought of it; what was saved")
    assert err.count("\n") == 1
    assert "in broken" in Path("run/error.log").read_text()


def test_an_interrupt_saves_and_says_how_to_go_on(
    faulty: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*faulty, "--environment.kwargs.fault", "interrupt"]) == 130
    err = capsys.readouterr().err
    assert err == "rlpg: interrupted; `rlpg resume run` goes on\n"
    checkpoint, _ = newest_checkpoint(Path("run/checkpoints"))
    assert checkpoint is not None
    assert checkpoint.step == 192, "the iteration it came in was finished and saved"
    assert not Path("run/error.log").exists()
    Faulty.made = count(100)
    assert cli.main(["resume", "run", "--quiet"]) == 0


# ----------------------------------------------------------------------------- streams that fail


def shell(line: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What the shell made of a line in which `"$@"` is rlpg with these words."""
    command = [sys.executable, "-c", "import sys; from rlpg.cli import main; sys.exit(main())"]
    return subprocess.run(
        ["sh", "-c", line, "sh", *command, *words], check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_start_without_output_streams_trained_nothing(closed: str) -> None:
    done = shell(f'"$@" {closed}', "train", "CartPole-v1", *FAST, "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    assert newest_checkpoint(Path("run/checkpoints"))[0] is not None
    assert not Path("run/error.log").exists()


def test_results_that_could_not_be_printed_lost_the_other_seeds() -> None:
    words = ("train", "CartPole-v1", *FAST, "--seeds=1,2", "--jobs=1", "--run-dir=run", "--quiet")
    done = shell('PYTHONUNBUFFERED=1 "$@" > /dev/full', *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("run/1/evaluation.json").exists()
    assert Path("run/2/evaluation.json").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_takes_was_told_by_the_interpreter(unbuffered: str) -> None:
    done = shell(f'PYTHONUNBUFFERED={unbuffered} "$@" > /dev/full', "agents")
    assert done.returncode == 2
    assert done.stderr == "rlpg: No space left on device; choose another place\n"


def test_a_switch_needs_no_value_and_the_backend_no_prefix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Recipe] = []

    def instead(env: Any, recipe: Recipe, *rest: Any, **options: Any) -> Any:
        seen.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("rlpg.verbs.training.run_recipe", instead)
    for words in (["--compile", "--backend", "sync"], ["--compile", "false"]):
        cli.main(["train", "CartPole-v1", *words])
    assert [recipe.compile for recipe in seen] == [True, False]
    assert [recipe.environment.backend for recipe in seen] == ["sync", "auto"]


def test_explain_prints_every_setting_with_its_reason_and_trains_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--total-steps", "2000", "--agent", "ppo", "--rollout.num-envs=2"]
    words += ["--environment.kwargs.g", "9.0"]  # one of the entries of a setting
    assert cli.main(["train", "Pendulum-v1", "--recipe", "default", "--explain", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    why = {line.split()[0]: line for line in lines}
    for key in flatten(Recipe.of("ppo")):
        assert key in why, key
    assert why["rollout.num_envs"].split(maxsplit=2)[1:] == ["2", "given"]
    assert why["environment.kwargs"].endswith("given")
    assert why["policy.kwargs"].endswith("default")
    assert "0.5 " in why["policy.log_std_init"]
    assert "by rule: 0.5 - 0.65 log" in why["policy.log_std_init"]
    assert why["learner.num_minibatches"].split()[1] == "2"  # 2 x 64 samples
    assert why["evaluation.every"].split()[1] == "100"
    assert why["learner.clip_range"].endswith("default of ppo")
    assert not Path("runs").exists()
    assert cli.main(["train", "Pendulum-v1", "--explain"]) == 0
    shown = capsys.readouterr().out
    assert "by rule: the one shipped" in shown
    assert "the recipe shipped for Pendulum-v1" in shown


class SixActions(gymnasium.Env[Any, Any]):
    """The spaces of HalfCheetah-v5, sixteen of which take a second to make."""

    observation_space = spaces.Box(-np.inf, np.inf, (17,))
    action_space = spaces.Box(-1, 1, (6,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(17, np.float32), {}


@pytest.mark.parametrize(
    ("steps", "memory", "own", "of_values"),
    [
        ("1_000_000", "none", "8", "32"),
        ("300_000", "none", "16", "16"),
        ("300_000", "gru", "4", "4"),
    ],
)
def test_explain_prints_as_many_minibatches_as_six_action_dimensions_have(
    steps: str, memory: str, own: str, of_values: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    spec = gymnasium.envs.registration.EnvSpec("test/SixActions-v0", SixActions)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    words = ["--recipe", "default", "--explain", "--total-steps", steps, "--policy.memory", memory]
    assert cli.main(["train", spec.id, *words]) == 0
    lines = (line.split() for line in capsys.readouterr().out.splitlines())
    found = {words[0]: words[1] for words in lines if "minibatches" in words[0]}
    assert found == {
        "learner.num_minibatches": own, "learner.num_value_minibatches": of_values,
    }  # fmt: skip


def test_explain_tells_of_the_environment_and_the_agent_that_a_recipe_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It left out the wrappers, so rules saw another environment, and said the agent was ruled."""
    file = tmp_path / "r.toml"
    wrapped = "[environment.wrappers.TimeAwareObservation]\nnormalize_time = true\n"
    file.write_text(f'agent = "a2c"\nrollout.num_envs = 2\n{wrapped}')
    assert cli.main(["train", "CartPole-v1", "--explain", "--recipe", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "5 numbers" in shown
    why = {line.split()[0]: line for line in shown.splitlines()}
    assert why["agent"].endswith(f"recipe {file}")
    assert why["rollout.num_envs"].endswith(f"recipe {file}")
    assert cli.main(["train", "CartPole-v1", "--explain", "--recipe", "default"]) == 0
    why = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert why["agent"].endswith("recipe default")


def test_a_folder_whose_name_is_no_utf8_ended_runs_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named in Latin-1 once: each run below it lacked TensorBoard's curves, so its exit code was 1;
    as an option it was `--given: expected a table`, or an error of matplotlib."""
    pytest.importorskip("matplotlib")
    name = os.fsdecode(b"J\xfcrgen")
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    words = "CartPole-v1 --agent a2c --recipe default --total-steps 300 --quiet --run-dir"
    assert cli.main(["train", *words.split(), "below"]) == 0
    assert cli.main(["train", *words.split(), name]) == 0
    assert cli.main(["evaluate", name, "--episodes", "2"]) == 0
    assert cli.main(["plot", name, "--by", "folder", "--output", "a.svg"]) == 0
    assert cli.main(["resume", name, "--total-steps", "400", "--quiet"]) == 0
    assert list(Path(name).glob("events.*"))
    assert "rlpg: " not in capsys.readouterr().err

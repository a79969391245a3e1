"""The README and the pages in docs: their code runs, their commands parse, their numbers hold."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import rlpg
from rlpg import cli
from rlpg.cli.parsing import parse
from rlpg.gradients.returns import reward_to_go
from rlpg.rollouts import Episodes, Rollout
from rlpg.runs.recipe import Recipe, flatten

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("python"))
    assert code.count("100_000") == 2
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(code.replace("100_000", "600"), "README.md", "exec"), names)
    assert (tmp_path / "runs/first/policy/policy.safetensors").exists()
    assert names["action"] in (0, 1)


@pytest.mark.parametrize(
    "line", [line for block in blocks("sh") for line in block.splitlines() if "rlpg" in line]
)
def test_the_commands_of_the_readme_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The README's own environments, recipes and extras are not there.
    monkeypatch.setattr("rlpg.components.find_recipe", lambda *_: Recipe())
    for verb in ("evaluate", "diagnose"):
        monkeypatch.setattr(f"rlpg.cli.{verb}.check_extra", lambda *_: None)
    name, *words = shlex.split(line)[1:]
    assert parse(name, cli.verb_class(name), words) is not None


def test_the_files_of_a_run_are_those_of_the_tables(tmp_path: Path) -> None:
    small = {"evaluation.episodes": 2, "evaluation.final_episodes": 2, "rollout.num_envs": 4}
    run = rlpg.train("CartPole-v1", total_steps=200, run_dir=tmp_path / "run", overrides=small)
    for page in (README, (ROOT / "docs/runs.md").read_text()):
        for path in run.path.iterdir():
            name = re.sub(r"\.\d+\.rlpg$", ".", path.name)
            named = f"`{name}" in page or name in ("run.lock", "evaluations_stochastic.npz")
            assert named, f"{name} is not in the table"


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *PAGES):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_settings_named_in_the_documents_exist() -> None:
    known = {*flatten(Recipe()), *(key.rpartition(".")[2] for key in flatten(Recipe()))}
    text = README + "".join(page.read_text() for page in PAGES)
    for key in re.findall(r"--([a-z]+\.[a-z_.-]+)", text):
        section, name = key.replace("-", "_").split(".")[:2]
        assert f"{section}.{name}" in known, key
    table = README.split("## Baselines and options")[1]
    for name in re.findall(r"^\| `([a-z_]+)` \|", table, flags=re.MULTILINE):
        baselines = ["none", "moving_average", "time_step", "leave_one_out", "linear", "value"]
        assert name in known or name in baselines, name


def batch() -> Rollout:
    """The batch of docs/options.md: A is [1, 1, 1] and terminates, B is [4] and is cut off."""
    reward = torch.tensor([[1.0, 4.0], [1.0, 0.0], [1.0, 0.0]])  # [T, N]
    valid = torch.tensor([[True, True], [True, False], [True, False]])
    terminated = torch.tensor([[False, False], [False, False], [True, False]])
    truncated = torch.tensor([[False, True], [False, False], [False, False]])
    none = np.zeros(0, dtype=np.int64)
    return Rollout(
        obs=torch.zeros(4, 2, 1),
        action=torch.zeros(3, 2, dtype=torch.int64),
        log_prob=None,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        time=torch.tensor([[0, 0], [1, 0], [2, 0]]),
        final_obs=torch.zeros(1, 1),
        final_step=torch.tensor([0]),
        final_env=torch.tensor([1]),
        episodes=Episodes(none.astype(np.float64), none, none, none),
    )


def credit(**options: object) -> list[list[float]]:
    """Return-to-go and weight of A0, A1, A2, B0."""
    space = rlpg.make_envs("CartPole-v1", 1, seed=0).envs
    policy = rlpg.StandardPolicy(
        space.single_observation_space, space.single_action_space, generator=torch.Generator()
    )
    learner = rlpg.Reinforce(policy, "none", gamma=0.5, **options)  # type: ignore[arg-type]
    found = learner.credit(batch())
    return [[*part[:, 0].tolist(), part[0, 1].item()] for part in (found.returns, found.weight)]


def test_the_arithmetic_of_the_options() -> None:
    text = (ROOT / "docs/options.md").read_text()
    returns, steps = credit()
    assert returns == [1.75, 1.5, 1.0, 4.0]
    assert "| return-to-go | 1.75 | 1.5 | 1 | 4 |" in text
    assert steps == [0.25] * 4
    assert "| `steps` | 0.25 | 0.25 | 0.25 | 0.25 |" in text
    assert credit(average="episodes")[1] == [0.5] * 4
    assert "| `episodes` | 0.5 | 0.5 | 0.5 | 0.5 |" in text
    weights = [4 * weight for weight in credit(gamma_weight=True)[1]]
    assert weights == [1, 0.5, 0.25, 1]
    assert "`gamma_weight = true` | 1 | 0.5 | 0.25 | 1 |" in text
    assert credit(truncated_return="drop")[1] == [pytest.approx(1 / 3)] * 3 + [0.0]
    rollout, value = batch(), 10.0
    bootstrapped = reward_to_go(
        rollout.reward,
        gamma=0.5,
        bootstrap=torch.full((3, 2), value),
        terminated=rollout.terminated,
        truncated=rollout.truncated,
        valid=rollout.valid,
    )
    assert bootstrapped[0].tolist() == [1.75, 4 + 0.5 * value]

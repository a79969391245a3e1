"""Model cards: front matter that can be read, and a folder that appears whole."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import rlpg
from rlpg.cli import main
from rlpg.runs.store import load_policy, save_policy

OWN_PART = """
import rlpg
from torch import nn
from torch.distributions import Categorical

def net(num_features, num_outputs):
    return nn.Linear(num_features, num_outputs)


class Own(rlpg.Policy):
    def __init__(self, observation_space, action_space):
        super().__init__(observation_space, action_space)
        self.layer = nn.Linear(4, 2)

    def forward(self, obs, carry=None, episode_start=None):
        return Categorical(logits=self.layer(self.features(obs))), None
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_card_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--agent ppo --total-steps 64 --rollout.num-envs 2 --rollout.num-steps 16 --quiet"
    words += " --evaluation.final-episodes 3 --evaluation.episodes 2 --run-dir run --seed 5"
    assert main(["train", "CartPole-v1", "--recipe", "default", *words.split()]) == 0
    assert main(["card", "run"]) == 0
    assert capsys.readouterr().out.endswith("written to card\n")
    names = {path.name for path in Path("card").iterdir()}
    assert names == {"README.md", "policy.safetensors", "recipe.toml"}
    text = Path("card/README.md").read_text()
    front = text.split("---\n")[1]
    found = json.loads(Path("run/evaluation.json").read_text())
    assert f'value: "{found["mean"]:.2f} +/- {found["std"]:.2f}"' in front
    assert re.findall(r'^- (\S+)$', front, re.M) == [
        "reinforcement-learning", "deep-reinforcement-learning", '"ppo"', '"CartPole-v1"',
    ]  # fmt: skip
    assert "| episodes | 3, deterministic actions |" in text
    assert "`ppo`: 64 environment steps, seed\n5." in text
    assert Path("run/recipe.toml").read_text() in text
    observation = [0.0, 0.1, 0.0, 0.1]
    action = rlpg.load("card/policy.safetensors").act(observation, deterministic=True)
    assert action == rlpg.load("run").act(observation, deterministic=True)
    assert main(["card", "run"]) == 2
    assert "card: expected a folder that is new or empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "part",
    ["--policy.factory=own_part:Own", "--policy.network=own_part:net"],
)
def test_bug_the_commands_of_a_card_were_refused_for_a_part_of_ones_own(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own_part.py").write_text(OWN_PART)
    monkeypatch.syspath_prepend(Path.cwd())
    words = "--agent=ppo --total-steps=64 --rollout.num-envs=2 --rollout.num-steps=16 --quiet"
    words += " --evaluation.final-episodes=3 --evaluation.episodes=2 --run-dir=run"
    assert main(["train", "CartPole-v1", "--recipe=default", *words.split(), part]) == 0
    assert main(["card", "run", "--import"]) == 0
    text = Path("card/README.md").read_text()
    name = part.partition("=")[2]
    assert f"## Use it\n\nThis imports `{name}`, which is not in this folder.\n\n```python" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir("card")
    exec(code, {"observation": [0.0, 0.1, 0.0, 0.1]})
    (command,) = re.findall(r"^    rlpg (.*)$", text, re.M)
    assert main([*command.split(), "--episodes=1"]) == 0
    sys.modules.pop("own_part")


def test_front_matter_is_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    assert main(["card", "CartPole-v1-reinforce"]) == 0
    front = yaml.safe_load(Path("card/README.md").read_text().split("---\n")[1])
    assert front["library_name"] == "rlpg"
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"type": "CartPole-v1", "name": "CartPole-v1"}
    assert result["metrics"][0]["type"] == "mean_reward"


def test_a_policy_that_was_not_evaluated_has_no_card(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "--total-steps 64 --rollout.num-envs 2 --rollout.num-steps 16 --quiet --run-dir run"
    assert main(["train", "CartPole-v1", "--agent", "ppo", *words.split()]) == 0
    description, weights = load_policy(Path("run/policy"))
    description["training"]["evaluation"] = None
    save_policy(Path("run/policy"), description, weights)
    assert main(["card", "run"]) == 2
    assert "expected a policy with an evaluation, got none" in capsys.readouterr().err
    assert not Path("card").exists()

"""Loading: a policy folder is enough, a shipped name is enough, and nothing unfit gets through."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import safetensors
import torch

import rlpg
from rlpg.engine import loading, shipped
from rlpg.errors import FileError, RlpgError, UsageError
from rlpg.policies import Policy
from rlpg.runs.store import load_policy, save_policy
from rlpg.verbs.evaluation import evaluate_saved

SMALL: dict[str, Any] = {
    "agent": "reinforce",
    "rollout.num_envs": 4,
    "evaluation.episodes": 2,
    "evaluation.final_episodes": 2,
    "policy.hidden": (8,),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> rlpg.Run:
    """CartPole-v1, a few hundred steps; no test changes its folder."""
    path = tmp_path_factory.mktemp("loading") / "run"
    return rlpg.train(
        "CartPole-v1", total_steps=400, run_dir=path, recipe="default", overrides=SMALL
    )


@pytest.fixture
def folder(run: rlpg.Run, tmp_path: Path) -> Path:
    """A copy of its last policy, somewhere else."""
    return Path(shutil.copytree(run.path / "policy", tmp_path / "copy"))


def bits(policy: Policy) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in policy.state_dict().items()}


@pytest.mark.parametrize("which", ["beST", "", None, 0, "latest"])
def test_a_policy_is_the_best_or_the_last_one(run: rlpg.Run, which: Any) -> None:
    for source in (run.path, "CartPole-v1-reinforce"):
        with pytest.raises(UsageError, match=r"which: expected best or last, got "):
            rlpg.load(source, which)


def observations(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.2, 0.2, (count, 4)).astype(np.float32)


def test_a_policy_folder_is_enough(run: rlpg.Run, folder: Path) -> None:
    policy = rlpg.load(folder)
    assert bits(policy) == bits(run.policy)
    obs = observations(50)
    assert np.array_equal(
        policy.act(obs, deterministic=True), run.policy.act(obs, deterministic=True)
    )


def test_a_run_and_its_policies_are_found(run: rlpg.Run) -> None:
    assert bits(rlpg.load(run.path)) == bits(rlpg.load(run.path / "policy"))
    assert bits(rlpg.load(run.path, "best")) == bits(rlpg.load(run.path / "best_policy"))
    assert bits(rlpg.load(str(run.path))) == bits(run.policy)


def test_what_is_known_about_a_policy(folder: Path) -> None:
    saved = loading.load_saved(folder)
    assert saved.environment == {
        "id": "CartPole-v1", "kwargs": {}, "wrappers": {}, "max_episode_steps": None,
        "episode_cap": 1000,
    }  # fmt: skip
    assert saved.training["agent"] == "reinforce"
    assert saved.training["steps"] >= 400
    assert saved.training["evaluation"]["episodes"] == 2


def test_a_loaded_policy_is_frozen(folder: Path) -> None:
    policy = rlpg.load(folder)
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    before = bits(policy)
    rlpg.evaluate(policy, "CartPole-v1", 3)
    assert bits(policy) == before


def test_acting_on_one_observation_and_on_a_batch(folder: Path) -> None:
    policy, obs = rlpg.load(folder), observations(20)
    batch = policy.act(obs, deterministic=True)
    assert batch.shape == (20,)
    assert [policy.act(row, deterministic=True) for row in obs] == batch.tolist()
    policy.seed(3)
    first = [policy.act(row) for row in obs]
    policy.seed(3)
    assert [policy.act(row) for row in obs] == first
    assert gymnasium.spaces.Discrete(2).contains(policy.act(obs[0]))


def test_loading_imports_neither_learner_nor_environment(folder: Path) -> None:
    script = (
        "import sys, rlpg\n"
        f"rlpg.load({str(folder)!r})\n"
        "loaded = [n for n in sys.modules if n.startswith(('rlpg.learners.re', 'rlpg.rollouts',"
        " 'tensorboard', 'gymnasium.envs.classic_control'))]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------- misfits


def test_every_array_must_be_there_and_have_its_shape(folder: Path) -> None:
    description, arrays = load_policy(folder)
    assert len(arrays) > 4
    for name, array in arrays.items():
        grown = np.zeros(
            (*array.shape, 2) if array.ndim == 0 else (array.shape[0] + 1, *array.shape[1:])
        )
        for changed in (
            {**arrays, name: grown.astype(array.dtype)},
            {key: value for key, value in arrays.items() if key != name},
            {**arrays, f"{name}_more": array},
        ):
            save_policy(folder, description, changed)
            with pytest.raises(FileError, match="expected a policy, got one that does not fit"):
                rlpg.load(folder)
    save_policy(folder, description, arrays)
    rlpg.load(folder)


def test_weights_of_another_dtype_are_not_cast(folder: Path) -> None:
    """float16 weights of a stranger became other float32 weights without a word."""
    description, arrays = load_policy(folder)
    for name, array in arrays.items():
        dtype = np.float16 if array.dtype.kind == "f" else np.int16
        save_policy(folder, description, {**arrays, name: array.astype(dtype)})
        with pytest.raises(FileError, match="expected a policy, got one that does not fit"):
            rlpg.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"policy": None},
        {"policy": {}},
        {"environment": {}},
        {"environment": {"id": 3}},
        {"environment": None},
        {"training": None},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit(change: dict[str, Any], folder: Path) -> None:
    description, arrays = load_policy(folder)
    save_policy(folder, description | change, arrays)
    with pytest.raises(FileError, match="expected a policy, got one that does not fit"):
        rlpg.load(folder)
    del description[next(iter(change))]
    save_policy(folder, description, arrays)
    with pytest.raises(FileError, match="expected a policy, got one that does not fit"):
        rlpg.load(folder)


def test_a_flipped_bit_is_noticed(folder: Path) -> None:
    for name in ("policy.safetensors",):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        with pytest.raises(FileError):
            rlpg.load(folder)
        (folder / name).write_bytes(whole)
    rlpg.load(folder)


def test_a_file_may_not_choose_modules_to_import(folder: Path, tmp_path: Path) -> None:
    description, arrays = load_policy(folder)
    description["environment"]["id"] = "antigravity:CartPole-v1"
    save_policy(folder, description, arrays)
    saved = loading.load_saved(folder)
    with pytest.raises(FileError, match=r"modules to import; .* \(env= in Python\)"):
        evaluate_saved(saved, episodes=1)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("obs", "named"),
    [
        (np.zeros(5, np.float32), r"expected shape \[4\]"),
        (np.zeros((2, 5), np.float32), r"expected shape \[4\]"),
        ("hello", "observation"),
    ],
)
def test_an_observation_that_does_not_fit(obs: Any, named: str, folder: Path) -> None:
    with pytest.raises(RlpgError, match=named):
        rlpg.load(folder).act(obs)


# ------------------------------------------------------------------------------------- names


def test_a_name_that_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="expected a run, a policy folder or a shipped agent"):
        rlpg.load("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="expected a run or a policy"):
        rlpg.load("empty")


def ship(root: Path, name: str, policy: Path) -> None:
    (root / name).mkdir(parents=True)
    (root / name / "recipe.toml").write_text("total_steps = 123\n[learner]\nlearning_rate = 0.5\n")
    shutil.copytree(policy, root / name / "policy")


def test_shipped_agents_are_found_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CartPole-v1-reinforce", "rlpg-Chain-v0-reinforce"):
        ship(tmp_path / "agents", name, folder)
    for module in (loading, shipped):
        monkeypatch.setattr(module, "shipped_folder", lambda name: tmp_path / "agents" / name)
    assert shipped.shipped_agents() == ["CartPole-v1-reinforce", "rlpg-Chain-v0-reinforce"]
    assert bits(rlpg.load("CartPole-v1-reinforce")) == bits(rlpg.load(folder))
    with pytest.raises(UsageError, match="did you mean CartPole-v1-reinforce"):
        rlpg.load("CartPole-v1-reinforced")
    recipe = shipped.shipped_recipe("CartPole-v1", "reinforce")
    assert recipe is not None
    assert (recipe.total_steps, recipe.learner.learning_rate) == (123, 0.5)
    assert shipped.shipped_recipe("rlpg:rlpg/Chain-v0", "reinforce") is not None
    assert shipped.shipped_recipe("Pendulum-v1", "reinforce") is None


def test_the_latest_shipped_version_is_the_highest_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "shipped_folder", lambda name: tmp_path / name)
    for name in ("Crane-v9-ppo", "Crane-v10-ppo", "Crane-v2-a2c", "CraneLift-v11-ppo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").touch()
    assert shipped.latest_shipped("Crane") == "Crane-v10"
    assert shipped.latest_shipped("Crane-v9") == "Crane-v9"
    assert shipped.latest_shipped("Lift") == "Lift"


def test_the_global_random_states_are_left_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    policy = rlpg.load(folder)
    policy.act(observations(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_description_is_plain_json_that_other_programs_find(folder: Path) -> None:
    with safetensors.safe_open(folder / "policy.safetensors", "numpy") as file:
        content = json.loads(file.metadata()["rlpg"])
    assert content["format"] == "rlpg policy"
    described = content["tree"]["description"]
    assert set(described) == {"policy", "environment", "training", "versions"}

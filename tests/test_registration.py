"""`import rlpg` makes our environments known, and loads none of them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import gymnasium
import pytest
from gymnasium.vector import AutoresetMode

from rlpg.registration import NATIVE_VERSIONS, register_environments

IDS = sorted(env_id for env_id in gymnasium.registry if env_id.startswith("rlpg/"))


def test_importing_rlpg_registers_by_string_only() -> None:
    program = (
        "import sys, rlpg, gymnasium;"
        "assert 'rlpg/Chain-v0' in gymnasium.registry;"
        "assert 'torch' not in sys.modules;"
        "assert not [name for name in sys.modules if name.startswith('rlpg.envs')]"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_gymnasium_imports_rlpg_when_it_is_asked_to() -> None:
    program = "import gymnasium; print(gymnasium.make('rlpg:rlpg/Chain-v0').spec.id)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout == "rlpg/Chain-v0\n"


def test_registering_twice_changes_nothing() -> None:
    before = dict(gymnasium.registry)
    register_environments()
    assert gymnasium.registry == before


@pytest.mark.parametrize("env_id", IDS)
def test_every_id_can_be_made_alone_and_as_arrays(env_id: str) -> None:
    kwargs = {"disable_env_checker": True}
    single = gymnasium.make(env_id, **kwargs)
    envs = gymnasium.make_vec(env_id, num_envs=3)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.single_observation_space == single.observation_space
    assert envs.single_action_space == single.action_space
    envs.reset(seed=0)
    envs.action_space.seed(0)
    obs, reward, terminated, truncated, _ = envs.step(envs.action_space.sample())
    assert obs in envs.observation_space
    assert reward.shape == terminated.shape == truncated.shape == (3,)
    envs.close()
    single.close()


@pytest.mark.parametrize("env_id", sorted(NATIVE_VERSIONS))
def test_native_versions_are_where_the_mapping_says(env_id: str) -> None:
    module, name = NATIVE_VERSIONS[env_id].split(":")
    envs = getattr(importlib.import_module(module), name)(2)
    assert envs.max_episode_steps == gymnasium.spec(env_id).max_episode_steps

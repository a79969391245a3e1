"""`make_envs`: what is made, what is said about it, and what is refused in one line."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import SyncVectorEnv

import rlpg
from rlpg.errors import EnvironmentFault, EnvironmentSetupError, UsageError
from rlpg.rollouts import (
    EpisodeSeeds,
    another_like,
    derived_seed,
    full_id,
    make_envs,
    probe_action_mask,
    reseed,
)
from rlpg.rollouts.workers import WorkerEnvs


class Endless(gymnasium.Env[Any, Any]):
    """Never ends; the observation is the seed of the episode."""

    observation_space = spaces.Box(0, 2**31, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.closed = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.obs = np.array([0.0 if seed is None else seed + self.offset])
        return self.obs, {}

    def step(self, action: Any) -> Any:
        return self.obs, 0.0, False, False, {}

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _registered() -> Any:
    gymnasium.register("test/Endless-v0", Endless)
    gymnasium.register("test/Endless-v2", Endless)
    gymnasium.register("test/Short-v0", Endless, max_episode_steps=2)
    yield
    for env_id in ("test/Endless-v0", "test/Endless-v2", "test/Short-v0"):
        del gymnasium.registry[env_id]


def seeds_of(envs: Any, num_episodes: int) -> np.ndarray:
    """`[episodes, N]`: the seeds of the first episodes of `Endless` environments."""
    return np.array([envs.reset()[0][:, 0].copy() for _ in range(num_episodes)]).astype(int)


# ---------------------------------------------------------------------------------- what is made


@pytest.mark.parametrize(
    ("env_id", "backend", "described"),
    [
        ("CartPole-v1", "auto", "CartPole-v1: 2 environments, native"),
        ("CartPole-v1", "sync", "CartPole-v1: 2 environments, sync"),
        ("LunarLander-v3", "auto", "LunarLander-v3: 2 environments, sync"),
        ("FrozenLake-v1", "auto", "FrozenLake-v1: 2 environments, sync"),
        (
            "test/Endless-v2",
            "auto",
            "capped at 1000 steps per episode: no time limit is registered",
        ),
        ("test/Endless-v0", "auto", "there is a newer version, test/Endless-v2"),
        ("test/Endless", "auto", "the latest version of test/Endless"),
    ],
)
def test_the_description_says_what_was_made(env_id: str, backend: str, described: str) -> None:
    envs, description = make_envs(env_id, 2, seed=0, backend=backend)
    assert described in description
    assert "\n" not in description
    assert envs.num_envs == 2
    envs.close()


def test_native_versions_are_seeded_per_environment() -> None:
    few, _ = make_envs("CartPole-v1", 2, seed=0)
    many, _ = make_envs("CartPole-v1", 5, seed=0)
    np.testing.assert_array_equal(few.reset()[0], many.reset()[0][:2])


def test_native_is_refused_where_there_is_none() -> None:
    with pytest.raises(EnvironmentSetupError, match="vector version for 'native', got FrozenLake"):
        make_envs("FrozenLake-v1", 2, seed=0, backend="native")


class Stranger(gymnasium.Env[Any, Any]):
    """What a user has registered under a name that rlpg uses, too."""

    observation_space = spaces.Box(0.0, 1.0, (2,))
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.ones(2, np.float32), -100.0, True, False, {}


@pytest.mark.parametrize(
    "name", sorted(key.removeprefix("rlpg/") for key in gymnasium.registry if "rlpg/" in key)
)
def test_an_environment_that_is_called_like_one_of_ours_is_the_users(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name alone decided: `Chain-v0` of a user's module trained rlpg/Chain-v0."""
    spec = gymnasium.envs.registration.EnvSpec(name, entry_point=Stranger)
    monkeypatch.setitem(gymnasium.registry, name, spec)
    made = make_envs(name, 2, seed=0)
    assert "native" not in made.description
    made.envs.reset()
    assert made.envs.step(made.envs.action_space.sample())[1].tolist() == [-100.0, -100.0]
    made.envs.close()
    with pytest.raises(EnvironmentSetupError, match="vector version for 'native'"):
        make_envs(name, 2, seed=0, backend="native")


def test_one_of_gymnasiums_that_was_replaced_before_is_not_taken_for_it() -> None:
    program = """
import gymnasium
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
gymnasium.registry["CartPole-v1"] = gymnasium.envs.registration.EnvSpec(
    "CartPole-v1", entry_point=FrozenLakeEnv, max_episode_steps=100
)
import rlpg
print(rlpg.make_envs("CartPole-v1", 2, seed=0).description)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sync" in done.stdout


def test_arguments_that_the_native_version_does_not_know_choose_sync() -> None:
    envs, description = make_envs("CartPole-v1", 2, seed=0, kwargs={"render_mode": "rgb_array"})
    assert "sync" in description
    assert envs.render_mode == "rgb_array"


def test_async_environments_have_the_same_seeds() -> None:
    envs, description = make_envs("test/Endless-v2", 2, seed=3, backend="async")
    try:
        assert isinstance(envs.unwrapped, WorkerEnvs)
        assert "async" in description
        sync, _ = make_envs("test/Endless-v2", 2, seed=3)
        np.testing.assert_array_equal(seeds_of(envs, 3), seeds_of(sync, 3))
    finally:
        envs.close()


def length_of_an_episode(envs: Any) -> int:
    envs.reset()
    for step in range(1, 2000):
        _, _, _, truncated, _ = envs.step(np.zeros(envs.num_envs, int))
        if truncated.all():
            return step
    return -1


@pytest.mark.parametrize(
    ("env_id", "options", "length"),
    [
        ("test/Endless-v2", {}, 1000),
        ("test/Endless-v2", {"episode_cap": 7}, 7),
        ("test/Endless-v2", {"episode_cap": None}, -1),
        ("test/Endless-v2", {"max_episode_steps": 5}, 5),
        ("test/Short-v0", {}, 2),
        ("test/Short-v0", {"episode_cap": 1}, 2),
        ("test/Short-v0", {"max_episode_steps": 4}, 4),
    ],
)
def test_time_limits(env_id: str, options: dict[str, Any], length: int) -> None:
    assert length_of_an_episode(make_envs(env_id, 2, seed=0, **options).envs) == length


def test_a_time_limit_reaches_native_and_envpool_environments() -> None:
    envs, description = make_envs("CartPole-v1", 2, seed=0, max_episode_steps=3)
    assert "at most 3 steps per episode" in description
    assert length_of_an_episode(envs) == 3
    pytest.importorskip("envpool")
    envs, description = make_envs("Blackjack-v1", 2, seed=0, backend="envpool")
    assert "capped at 1000 steps" in description


def test_an_environment_object_without_an_id_stays_alone() -> None:
    env = Endless()
    envs, description = make_envs(env, 4, seed=0, episode_cap=6)
    assert envs.num_envs == 1
    assert "1 environment" in description
    assert "not 4: it has no registered id" in description
    assert "capped at 6 steps" in description
    assert length_of_an_episode(envs) == 6
    envs.close()
    assert not env.closed, "who made an environment closes it"


def test_an_environment_object_with_an_id_is_copied() -> None:
    env = gymnasium.make("test/Short-v0", offset=10, disable_env_checker=True)
    envs, description = make_envs(env, 3, seed=0)
    assert envs.num_envs == 3
    assert "not 3" not in description
    np.testing.assert_array_equal(
        seeds_of(envs, 1)[0],
        [derived_seed(np.random.SeedSequence(0), n, 0) + 10 for n in range(3)],
    )
    assert length_of_an_episode(envs) == 2


def test_a_vector_environment_is_used_as_it_is() -> None:
    given = SyncVectorEnv([Endless, Endless])
    envs, description = make_envs(given, 16, seed=0)
    assert envs.unwrapped is given
    assert description == "2 environments as given, SyncVectorEnv"


@pytest.mark.parametrize(
    "options", [{"kwargs": {"a": 1}}, {"backend": "async"}, {"max_episode_steps": 9}]
)
def test_options_that_cannot_reach_an_object_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(EnvironmentSetupError, match="expected an id to apply"):
        make_envs(SyncVectorEnv([Endless]), seed=0, **options)
    if "max_episode_steps" not in options:
        with pytest.raises(EnvironmentSetupError, match="expected an id to apply"):
            make_envs(Endless(), seed=0, **options)


def test_a_time_limit_cannot_be_lengthened_from_outside() -> None:
    env = gymnasium.make("test/Short-v0", disable_env_checker=True)
    with pytest.raises(EnvironmentSetupError, match="max_episode_steps: expected at most the 2"):
        make_envs(env, seed=0, max_episode_steps=5)


# ------------------------------------------------------------------- classes and functions


def endless() -> gymnasium.Env[Any, Any]:
    return Endless(5)


def limited() -> gymnasium.Env[Any, Any]:
    """No id that only this process has registered: workers do not know it."""
    return gymnasium.wrappers.TimeLimit(Endless(), 2)


@pytest.mark.parametrize("backend", ["auto", "sync", "async"])
@pytest.mark.parametrize(
    ("factory", "kwargs", "name", "offset", "length"),
    [
        (Endless, {}, "Endless", 0, 7),
        (Endless, {"offset": 3}, "Endless", 3, 7),
        (partial(Endless, 4), {}, "Endless", 4, 7),
        (endless, {}, "endless", 5, 7),
        (lambda: Endless(6), {}, "environment", 6, 7),
        (limited, {}, "limited", 0, 2),
    ],
)
def test_a_class_or_function_makes_the_environments(
    factory: Any, kwargs: dict[str, Any], name: str, offset: int, length: int, backend: str
) -> None:
    envs, description = make_envs(factory, 3, seed=0, kwargs=kwargs, backend=backend, episode_cap=7)
    try:
        assert description.startswith(f"{name}: 3 environments, ")
        assert ("capped at 7 steps" in description) == (length == 7)
        expected = [derived_seed(np.random.SeedSequence(0), n, 0) + offset for n in range(3)]
        np.testing.assert_array_equal(seeds_of(envs, 1)[0], expected)
        assert length_of_an_episode(envs) == length
    finally:
        envs.close()


def test_every_environment_that_a_function_makes_is_closed() -> None:
    made: list[Endless] = []

    def make() -> Endless:
        made.append(Endless())
        return made[-1]

    envs, _ = make_envs(make, 3, seed=0)
    envs.close()
    assert [env.closed for env in made] == [True] * 3


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (3, r"env: expected an id, a class or function .*, got 3 \(int\)"),
        (None, r"got None \(NoneType\)"),
        ([Endless], r"got \[.*\] \(list\)"),
        (int, r"got <class 'int'> \(type\)"),
        (SyncVectorEnv, r"got <class .*SyncVectorEnv'> \(type\)"),
        (lambda: 3, "expected environment to make a gymnasium.Env, got int"),
        (lambda: SyncVectorEnv([Endless]), "make a gymnasium.Env, got SyncVectorEnv"),
    ],
)
def test_what_makes_no_environment_is_refused_in_a_sentence(env: Any, message: str) -> None:
    with pytest.raises(EnvironmentSetupError, match=message) as caught:
        make_envs(env, 2, seed=0)
    assert "\n" not in str(caught.value)


def leaving() -> gymnasium.Env[Any, Any]:
    sys.exit(3)


@pytest.mark.parametrize("backend", ["auto", "sync", "async"])
def test_an_environment_that_exited_when_it_was_made_ended_the_program_in_silence(
    backend: str,
) -> None:
    with pytest.raises(EnvironmentSetupError, match="expected leaving to start, got SystemExit: 3"):
        make_envs(leaving, 2, seed=0, backend=backend)


def asserting() -> gymnasium.Env[Any, Any]:
    raise AssertionError


def test_bug_an_environment_whose_assertion_fails_was_refused_with_no_word_on_where() -> None:
    with pytest.raises(
        EnvironmentSetupError, match=r"AssertionError \(.*test_environments.py, line"
    ):
        make_envs(asserting, 2, seed=0)


@pytest.mark.parametrize("backend", ["native", "envpool"])
def test_a_class_has_no_other_backend(backend: str) -> None:
    with pytest.raises(EnvironmentSetupError, match="expected auto, sync or async"):
        make_envs(Endless, 2, seed=0, backend=backend)


def test_a_class_is_trained_on_and_evaluated(tmp_path: Any) -> None:
    small = {
        "rollout.num_envs": 2, "rollout.num_steps": 8, "policy.hidden": (4,),
        "evaluation.final_episodes": 3, "environment.kwargs": {"offset": 1},
        "environment.episode_cap": 9,
    }  # fmt: skip
    run = rlpg.train(
        Endless, total_steps=64, run_dir=tmp_path / "run", recipe="default", overrides=small
    )
    assert run.evaluation is not None
    assert run.evaluation.lengths.tolist() == [9] * 3
    assert rlpg.evaluate(run.policy, Endless, 2, episode_cap=4).lengths.tolist() == [4, 4]
    again = rlpg.resume(run.path, env=Endless, total_steps=96)
    assert again.evaluation is not None
    with pytest.raises(UsageError, match="env: expected an id, a class or function"):
        rlpg.train(3)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPol-v1", r"expected a registered id, got 'CartPol-v1'; did you mean CartPole-v1"),
        ("cartpole-v1", r"did you mean CartPole-v1"),
        ("LunarLander-v2", r"did you mean LunarLander-v3"),
        ("CartPole-v7", r"did you mean CartPole-v1"),
        ("not an id", r"expected an id like Name-v0"),
        ("", r"expected an id like Name-v0"),
        ("no_such_module:Id-v0", r"No module named 'no_such_module'"),
        ("Hopper-v3", r"gymnasium-robotics"),
        ("a:b:c", r"No module named"),
        ("my_tasks.py:Reach-v0", r"got the file my_tasks.py; write my_tasks:Reach-v0"),
        ("rlpg.envs.bandit:Bandit", r'call gymnasium.register\("Bandit-v0", entry_point="rlpg'),
        ("lib/my_tasks.py:Reach-v0", r"write my_tasks:Reach-v0, in the folder of that file"),
    ],
)
def test_an_id_that_is_not_there(env_id: str, message: str) -> None:
    with pytest.raises(EnvironmentSetupError, match=message) as caught:
        make_envs(env_id, 2, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("reset", np.zeros(3), r"unpack .*; let reset\(\) return \(obs, info\)$"),
        (
            "step",
            (np.zeros(4), 1.0, False, {}),
            r"; let step\(\) return \(obs, reward, terminated, ",
        ),
        ("step", NotImplementedError(), r"NotImplementedError \(.*, line \d+\)$"),
    ],
)
def test_environments_of_old_gym_were_told_of_values_to_unpack(
    method: str, answer: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def method_of_old(*_: Any, **__: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(CartPoleEnv, method, method_of_old)
    envs = make_envs(CartPoleEnv, 1, seed=0).envs
    with closing(envs), pytest.raises(EnvironmentFault, match=message):
        [envs.reset(), envs.step(np.array([0]))]


MISSING = """
import sys
for module in ("Box2D", "mujoco", "ale_py", "envpool", "jax"):
    sys.modules[module] = None
from rlpg.errors import EnvironmentSetupError
from rlpg.rollouts import make_envs
for env_id in (
    "LunarLander-v3", "Hopper-v5", "ALE/Pong-v5", "phys2d/CartPole-v1", "tabular/Blackjack-v0"
):
    try:
        make_envs(env_id, 2, seed=0)
    except EnvironmentSetupError as error:
        print(error)
try:
    make_envs("CartPole-v1", 2, seed=0, backend="envpool")
except EnvironmentSetupError as error:
    print(error)
"""


def test_a_missing_extra_is_named_with_its_command() -> None:
    run = subprocess.run(
        [sys.executable, "-c", MISSING], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stderr == ""
    *ours, jax, also_jax, envpool = run.stdout.splitlines()
    for line, extra in zip([*ours, envpool], ["box2d", "mujoco", "atari", "envpool"], strict=True):
        assert line.endswith(f'run `pip install ".[{extra}]"` in the checkout of rlpg')
    assert jax.endswith('run `pip install "gymnasium[jax]"`')
    assert also_jax.endswith('run `pip install "gymnasium[jax]"`')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs: expected an integer of at least 1, got 0"),
        ({"num_envs": 4.0}, "num_envs: expected an integer of at least 1, got 4.0"),
        ({"num_envs": True}, "num_envs: expected an integer of at least 1, got True"),
        ({"num_envs": None}, "num_envs: expected an integer of at least 1, got None"),
        ({"episode_cap": "9"}, "episode_cap: expected an integer of at least 1, got '9'"),
        ({"backend": "threads"}, "backend: expected one of auto, native.*got 'threads'"),
        ({"backend": "async", "num_workers": 0}, "num_workers: expected an integer of at least 1"),
        ({"max_episode_steps": 0}, "max_episode_steps: expected an integer of at least 1, got 0"),
        ({"kwargs": {"gravty": 1}, "backend": "sync"}, "unexpected keyword argument 'gravty'"),
        ({"kwargs": {"gravty": 1}}, "unexpected keyword argument 'gravty'"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvironmentSetupError, match=message) as caught:
        make_envs("CartPole-v1", **{"num_envs": 2, "seed": 0, **options})
    assert "\n" not in str(caught.value)


def test_envpool_suggests_its_own_ids() -> None:
    pytest.importorskip("envpool")
    with pytest.raises(EnvironmentSetupError, match=r"EnvPool has.*did you mean .*Acrobot-v1"):
        make_envs("Acrobat-v1", 2, seed=0, backend="envpool")


# ----------------------------------------------------------------------------------------- seeds


def test_every_episode_has_a_seed_of_its_own_whatever_the_number_of_environments() -> None:
    few = seeds_of(make_envs("test/Endless-v2", 2, seed=0).envs, 100)
    many = seeds_of(make_envs("test/Endless-v2", 5, seed=0).envs, 100)
    np.testing.assert_array_equal(few, many[:, :2])
    assert len(np.unique(many)) == many.size
    root = np.random.SeedSequence(0)
    expected = [[derived_seed(root, n, episode) for n in range(5)] for episode in range(100)]
    np.testing.assert_array_equal(many, expected)


def test_a_hundred_runs_of_64_environments_share_no_stream() -> None:
    seeds = {
        derived_seed(np.random.SeedSequence(run), n, 0) for run in range(100) for n in range(64)
    }
    assert len(seeds) == 6400
    assert max(seeds) < 2**31


def test_derived_seeds_do_not_depend_on_what_was_spawned_before() -> None:
    fresh, used = np.random.SeedSequence(4), np.random.SeedSequence(4)
    children = used.spawn(3)
    assert derived_seed(fresh, 1, 2) == derived_seed(used, 1, 2)
    assert derived_seed(children[1], 1, 2) != derived_seed(used, 1, 2)


def test_reseeding_starts_the_streams_of_another_run() -> None:
    envs, _ = make_envs("test/Endless-v2", 3, seed=0)
    seeds_of(envs, 70)
    reseed(envs, np.random.SeedSequence(8))
    again = seeds_of(make_envs("test/Endless-v2", 3, seed=8).envs, 3)
    np.testing.assert_array_equal(seeds_of(envs, 3), again)


def test_reseeding_within_the_first_seeds_of_a_stream() -> None:
    """Seeds are made 64 at a time: those of the run before must not be used up first."""
    envs, _ = make_envs("test/Endless-v2", 3, seed=0)
    seeds_of(envs, 3)
    reseed(envs, np.random.SeedSequence(8))
    again = seeds_of(make_envs("test/Endless-v2", 3, seed=8).envs, 3)
    np.testing.assert_array_equal(seeds_of(envs, 3), again)


def test_no_seed_comes_again_after_the_first_64_episodes() -> None:
    run = np.random.SeedSequence(0)
    assert len({derived_seed(run, n, episode) for n in range(2) for episode in range(200)}) == 400
    env = EpisodeSeeds(Endless(), run, 1)
    for episode in range(130):
        env.reset()
        assert env.episode_seed == derived_seed(run, 1, episode)


def test_an_explicit_seed_is_obeyed() -> None:
    env = EpisodeSeeds(Endless(), np.random.SeedSequence(0), 0)
    assert env.reset(seed=5)[0] == 5
    assert env.episode_seed == 5
    assert env.reset()[0] == derived_seed(np.random.SeedSequence(0), 0, 1)


def test_an_error_in_reset_names_the_environment_and_its_seed() -> None:
    class Broken(Endless):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            raise OSError("no more\nmemory")

    envs = SyncVectorEnv([lambda: EpisodeSeeds(Broken(), np.random.SeedSequence(0), 0)])
    with pytest.raises(EnvironmentFault, match=r"environment 0, episode 0 \(seed \d+\): reset\(\)"):
        envs.reset()


def test_environments_without_a_mask_have_none() -> None:
    assert probe_action_mask(make_envs("CartPole-v1", 2, seed=0).envs) == 0
    assert probe_action_mask(make_envs("Taxi-v4", 2, seed=0).envs) == 6


class Unrecorded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper as users write them: without RecordConstructorArgs."""


def test_an_environment_in_a_wrapper_that_cannot_be_repeated_stays_alone() -> None:
    env = Unrecorded(gymnasium.make("CartPole-v1"))
    assert another_like(env) is None
    envs, description = make_envs(env, 4, seed=0)
    assert envs.num_envs == 1
    assert "not 4: it has a wrapper that cannot be repeated" in description
    envs.close()


def test_a_given_vector_environment_is_reseeded() -> None:
    envs = gymnasium.make_vec("CartPole-v1", 3)
    make_envs(envs, seed=1)
    first = envs.reset()[0]
    make_envs(envs, seed=1)
    assert np.array_equal(first, envs.reset()[0])
    envs.close()


def test_an_id_without_a_version_is_completed() -> None:
    assert full_id("CartPole") == "CartPole-v1"
    assert full_id("gymnasium:CartPole") == "gymnasium:CartPole-v1"
    for as_it_is in ("CartPole-v0", "no_such_module:Env-v0", "OnlyInEnvPool-v5", "Nothing", ""):
        assert full_id(as_it_is) == as_it_is

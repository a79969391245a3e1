"""What is trained on another device is what is trained on the CPU, and nothing mixes the two."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical, Distribution

import rlpg
from rlpg.cli import main
from rlpg.engine.components import make_collector, make_learner, make_policy, training_envs
from rlpg.engine.device import device_of, require_one_kind
from rlpg.engine.restore import to_arrays
from rlpg.errors import RlpgWarning, UsageError
from rlpg.policies.references import UserParts
from rlpg.runs.recipe import Recipe, override
from rlpg.runs.store import newest_checkpoint
from rlpg.verbs.diagnosis import diagnose
from rlpg.verbs.training import collect

sys.path.append(str(Path(__file__).parents[1]))
from elsewhere import PLACE, Elsewhere, elsewhere

TINY: dict[str, Any] = {
    "policy.hidden": (4,), "policy.memory_size": 4, "rollout.num_envs": 4, "rollout.num_steps": 8,
    "environment.max_episode_steps": 6, "evaluation.episodes": 1, "evaluation.num_envs": 1,
    "evaluation.final_episodes": 1, "log.tensorboard": False,
}  # fmt: skip
EPISODES = {"rollout.episodes_per_env": 1}


class Pictures(gymnasium.Env[Any, Any]):
    """Pictures of noise."""

    observation_space = spaces.Box(0, 255, (36, 36, 2), np.uint8)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._picture(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._picture(), float(action == 1), False, False, {}

    def _picture(self) -> Any:
        return self.np_random.integers(0, 256, (36, 36, 2)).astype(np.uint8)


class Own(rlpg.Policy):
    """A policy whose distributions draw for themselves."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__(observation_space, action_space)
        self.layer = torch.nn.Linear(self.observations.num_features, int(action_space.n))
        torch.nn.init.normal_(self.layer.weight)

    def forward(
        self, obs: Any, carry: Any = None, episode_start: Any = None
    ) -> tuple[Distribution, None]:
        return Categorical(logits=self.layer(self.features(obs)), validate_args=False), None


GPU = torch.device("cuda", 0)
ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """The setting `cuda` is the other device."""
    for module in ("device", "components", "run_writer"):
        name = f"rlpg.engine.{module}.device_of"
        monkeypatch.setattr(name, lambda said: PLACE if said == "cuda" else device_of(said))
    with elsewhere() as mode:
        yield mode


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=ON_A_GPU)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """What the setting `cuda` is: the stand-in for a GPU and, where there is one, the GPU."""
    if request.param == "stand-in":
        request.getfixturevalue("there")
        return PLACE
    # With TF32, its default for convolutions, a GPU rounds after ten bits.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return GPU


def trained(
    env: Any, agent: str, device: str, said: dict[str, Any], updates: int = 2
) -> tuple[Any, dict[str, float]]:
    """The states of learner and collector after some updates, and the last metrics."""
    own = {"environment.id": env if isinstance(env, str) else "Pictures", "device": device}
    recipe = override(Recipe.of(agent), TINY | own | said)
    parts = UserParts(policy=Own) if "policy.factory" in said else UserParts()
    with training_envs(env, recipe, parts) as (envs, _):
        learner = make_learner(make_policy(envs, recipe, parts), recipe, parts)
        collector = make_collector(envs, learner, recipe, lambda remark: None)
        assert (learner.policy.device.type == "cpu") == (device == "cpu")
        for _ in range(updates):
            metrics = learner.update(collect(collector, recipe))
        return to_arrays((learner.state_dict(), collector.state_dict())), metrics


def case(env: Any, agent: str, slow: bool = False, **said: Any) -> Any:
    said = {key.replace("__", "."): value for key, value in said.items()}
    names = [getattr(env, "__name__", env), agent, *(str(value) for value in said.values())]
    return pytest.param(
        env, agent, said, id="-".join(names), marks=pytest.mark.slow if slow else ()
    )


CASES = [
    *(case("CartPole-v1", "reinforce", slow=name in ("none", "moving_average"),
           learner__baseline=name, rollout__episodes_per_env=1)
      for name in ("none", "moving_average", "time_step", "leave_one_out", "linear", "value")),
    case("CartPole-v1", "a2c", learner__baseline="linear"),
    case("CartPole-v1", "ppo", policy__shared_torso=True, learner__recompute_advantages=True,
         learner__num_minibatches=3, learner__num_epochs=3),
    case("CartPole-v1", "ppo", policy__factory="module:Own", learner__reward_scaling=False),
    case("Pendulum-v1", "ppo", policy__gaussian="beta", learner__value_clip_range=0.2,
         learner__num_minibatches=2, learner__num_epochs=2, learner__num_value_epochs=2),
    case("Pendulum-v1", "ppo", policy__std="dependent", learner__desired_kl=0.01,
         learner__num_value_minibatches=2, learner__num_value_epochs=2),
    case("Pendulum-v1", "ppo", slow=True, policy__gaussian="squashed", learner__target_kl=0.01),
    case("FrozenLake-v1", "npg", learner__baseline="value"),
    case("Pendulum-v1", "trpo", learner__baseline="time_step", rollout__episodes_per_env=1),
    case(Pictures, "a2c", slow=True),
    case(Pictures, "ppo", learner__num_epochs=1),
    case(Pictures, "trpo", slow=True),
    case("Pendulum-v1", "a2c", policy__memory="gru"),
    case("CartPole-v1", "ppo", policy__memory="lstm", learner__num_epochs=2,
         learner__num_value_epochs=1),
    case("CartPole-v1", "ppo", slow=True, policy__memory="gru", policy__shared_torso=True),
    case("Pendulum-v1", "trpo", slow=True, policy__memory="gru"),
    case("rlpg/TorchPendulum-v1", "pathwise", learner__gradient="combine",
         learner__num_value_epochs=1),
    case("rlpg/TorchPendulum-v1", "pathwise", slow=True, learner__gradient="pathwise"),
    case("rlpg/TorchPendulum-v1", "pathwise", slow=True, learner__gradient="score"),
]  # fmt: skip


@pytest.mark.parametrize(("env", "agent", "said"), CASES)
def test_a_training_elsewhere_is_that_on_the_cpu(
    env: Any, agent: str, said: dict[str, Any], place: torch.device
) -> None:
    """Every operation on its device, and the same random numbers."""
    state, metrics = trained(env, agent, "cuda", said)
    if place == GPU and (agent == "pathwise" or "policy.factory" in said):
        assert np.isfinite(metrics["gradient/norm"])
        return  # these draw on the GPU, whose numbers are others
    expected, on_cpu = trained(env, agent, "cpu", said)
    # NumPy, with which the CPU acts, rounds otherwise; Adam makes a step of what is rounding.
    tolerance = {"rtol": 1e-3, "atol": 1e-4 if place == PLACE else 5e-3}
    close(state, expected, **tolerance)
    assert metrics.keys() == on_cpu.keys()
    for name, value in on_cpu.items():
        rtol = 0.02 if place == PLACE else 0.05
        np.testing.assert_allclose(metrics[name], value, rtol=rtol, atol=1e-4, err_msg=name)


def close(tree: Any, expected: Any, **tolerance: float) -> None:
    """Generators to the bit, numbers nearly."""
    if isinstance(expected, dict):
        assert tree.keys() == expected.keys()
        for key in expected:
            close(tree[key], expected[key], **({} if "generator" in key else tolerance))
    elif isinstance(expected, list | tuple):
        for ours, theirs in zip(tree, expected, strict=True):
            close(ours, theirs, **tolerance)
    elif tolerance and isinstance(expected, np.ndarray | float) and expected is not None:
        np.testing.assert_allclose(tree, expected, **tolerance)
    else:
        np.testing.assert_equal(tree, expected)


def test_the_other_device_refuses_what_a_gpu_refuses(there: Elsewhere) -> None:
    x = torch.arange(4.0).to(PLACE)
    assert x.device == (2.0 * x + torch.ones(())).device == torch.zeros(2, device=PLACE).device
    for program in (
        lambda: x + torch.ones(4), lambda: x[torch.tensor([0])],
        lambda: torch.stack([x[0], torch.ones(())]), x.numpy, lambda: torch.nn.Linear(4, 1)(x),
    ):  # fmt: skip
        with pytest.raises((RuntimeError, TypeError)):
            program()
    there.waits.clear()
    for program in (x.sum().item, x.tolist, lambda: x[x > 1], lambda: bool(x.any()), x.cpu):
        before = there.waits.total()
        program()
        assert there.waits.total() == before + 1


TRAIN = {"seed": 1, "recipe": "default", "quiet": True}


@pytest.mark.parametrize(
    ("env", "agent", "said"),
    [
        case("CartPole-v1", "reinforce", learner__baseline="linear"),
        case("Pendulum-v1", "a2c", slow=True, policy__memory="lstm"),
        case("rlpg/TorchPendulum-v1", "pathwise", slow=True),
    ],
)
def test_what_was_trained_elsewhere_is_evaluated_diagnosed_and_resumed_here(
    env: str, agent: str, said: dict[str, Any], place: torch.device, tmp_path: Path
) -> None:
    said = TINY | said
    for name in ("cuda", "cpu"):
        first = {"run_dir": tmp_path / name, "overrides": said | {"device": name}}
        rlpg.train(env, agent, total_steps=64, **first, **TRAIN)
    with pytest.warns(RlpgWarning, match="bits may differ: a GPU need not repeat them"):
        rlpg.resume(tmp_path / "cuda", total_steps=96, quiet=True)
    with pytest.warns(match="gpu was .*, is absent") if place == GPU else nullcontext():
        run = rlpg.resume(tmp_path / "cuda", total_steps=128, device="cpu", quiet=True)
    assert run.policy.device.type == "cpu"
    assert 'device = "cpu"' in (run.path / "recipe.toml").read_text()
    assert np.isfinite(rlpg.evaluate(rlpg.load(run.path).to(place), env, episodes=2).mean)
    rlpg.resume(tmp_path / "cpu", total_steps=96, quiet=True)
    rlpg.resume(tmp_path / "cpu", total_steps=128, quiet=True)
    theirs, ours = (
        newest_checkpoint(tmp_path / name / "checkpoints")[0] for name in ("cpu", "cuda")
    )
    assert theirs is not None
    assert ours is not None
    if place == PLACE or agent != "pathwise":  # which draws on the GPU
        for part in ("learner", "collector"):
            close(ours.state[part], theirs.state[part], rtol=1e-3, atol=1e-4)


def test_a_gradient_is_diagnosed_elsewhere_as_here(place: torch.device, tmp_path: Path) -> None:
    path = tmp_path / "run"
    said = TINY | {"environment.max_episode_steps": 4}
    rlpg.train("CartPole-v1", "a2c", total_steps=64, run_dir=path, overrides=said, **TRAIN)
    here, elsewhere = (diagnose(path, episodes=4, device=name) for name in ("cpu", "cuda"))
    for ours, theirs in zip(elsewhere.estimates, here.estimates, strict=True):
        np.testing.assert_allclose(ours.variance, theirs.variance, rtol=1e-3, err_msg=ours.name)


@pytest.mark.parametrize(
    ("agent", "said", "expected"),
    [
        ("reinforce", {}, 10),
        ("ppo", {"learner.num_minibatches": 2, "learner.num_value_minibatches": 2}, 10),
        ("ppo", {"learner.num_minibatches": 5, "learner.num_value_minibatches": 3}, 10),
        ("ppo", {"learner.num_minibatches": 2, "learner.target_kl": 9.0}, 10 + 4),
    ],
)
def test_an_update_waits_as_often_however_many_minibatches_there_are(
    agent: str, said: dict[str, Any], expected: int, there: Elsewhere
) -> None:
    """For a decision about the rollout, its reward scale, the normalizer, and for the metrics of
    the policy and of the value network once each; `target_kl` decides after every pass."""
    passes = {} if agent == "reinforce" else {"learner.num_epochs": 4}
    own = {"device": "cuda", "environment.id": "CartPole-v1", **passes}
    recipe = override(Recipe.of(agent), TINY | own | said)
    with training_envs("CartPole-v1", recipe) as (envs, _):
        learner = make_learner(make_policy(envs, recipe), recipe)
        collector = make_collector(envs, learner, recipe, lambda remark: None)
        for _ in range(2):
            there.waits.clear()
            rollout = collect(collector, recipe)
            assert there.waits.total() == recipe.steps_per_env  # to send the actions
            there.waits.clear()
            learner.update(rollout)
            assert there.waits.total() == expected


@ON_A_GPU
@pytest.mark.parametrize("agent", ["reinforce", "ppo"])
def test_a_gpu_is_waited_for_no_more_often_than_its_stand_in(agent: str) -> None:
    own = {"device": "cuda", "environment.id": "CartPole-v1"}
    recipe = override(Recipe.of(agent), TINY | own)
    with training_envs("CartPole-v1", recipe) as (envs, _):
        learner = make_learner(make_policy(envs, recipe), recipe)
        collector = make_collector(envs, learner, recipe, lambda remark: None)
        for _ in range(2):
            rollout = collect(collector, recipe)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    learner.update(rollout)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            waits = Counter(
                f"{Path(one.filename).name}:{one.lineno}"
                for one in told
                if "called a synchronizing" in str(one.message)
                and Path(one.filename).name != "rollout.py"  # what sends it there
            )
            # torch counts some of what is sent, too.
            assert 0 < waits.total() <= 11, waits


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@NO_GPU
@pytest.mark.parametrize(
    "words",
    [
        ["train", "CartPole-v1"], ["train", "CartPole-v1", "--explain"],
        ["evaluate", "CartPole-v1-reinforce"], ["resume", "RUN"], ["diagnose", "RUN"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_cuda_without_a_gpu_is_refused_in_a_sentence(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if "RUN" in words:
        rlpg.train(
            "CartPole-v1", "reinforce", total_steps=32, run_dir="RUN", overrides=TINY, **TRAIN
        )
    assert main([*words, "--device", "cuda"]) == 2
    assert capsys.readouterr().err == (
        "rlpg: device: expected a GPU that torch can use for cuda, got none; set device to cpu or "
        "auto, or install a torch with CUDA\n"
    )
    assert not Path("runs").exists()


@NO_GPU
def test_auto_is_the_cpu_where_there_is_no_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "CartPole-v1", "--explain", "--device", "auto"]) == 0
    assert (
        "cpu                      by rule: cuda where torch finds a GPU" in capsys.readouterr().out
    )
    assert main(["evaluate", "CartPole-v1-reinforce", "--episodes", "1", "--device", "auto"]) == 0
    run = rlpg.train(
        "CartPole-v1", "a2c", total_steps=32, run_dir=tmp_path / "run",
        overrides=TINY | {"device": "auto"}, **TRAIN,
    )  # fmt: skip
    assert run.policy.device.type == "cpu"


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = [device_of(said) for said in ("cpu", "cuda", "auto")]
    assert found == [torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 0)]
    of_torchrun = {"RANK": "5", "WORLD_SIZE": "6", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in of_torchrun.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device_of("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="for each of the 3 processes on this machine, got 2"):
        device_of("cuda")
    assert device_of("cpu") == torch.device("cpu")


def test_machines_with_and_without_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_one_kind(torch.device("cpu"))
    monkeypatch.setattr("rlpg.engine.device.gather", lambda own: [own, "cuda"])
    with pytest.raises(UsageError, match=r"expected one kind .* got cpu and cuda"):
        require_one_kind(torch.device("cpu"))


def test_a_notebook_in_float64_or_without_gradients_ended_every_run(tmp_path: Path) -> None:
    def bits(name: str) -> bytes:
        overrides = TINY | {"policy.memory": "gru"}
        rlpg.train("CartPole-v1", "ppo", total_steps=32, run_dir=tmp_path / name,
                   overrides=overrides, **TRAIN)  # fmt: skip
        rlpg.resume(tmp_path / name, total_steps=64, quiet=True)
        policy = rlpg.load(tmp_path / name)
        rlpg.evaluate(policy, "CartPole-v1", episodes=1)
        weights: Any = (
            policy.act(np.zeros((2, 4)), deterministic=True),
            *policy.state_dict().values(),
        )
        return b"".join(np.asarray(part).tobytes() for part in weights)

    plain = bits("plain")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"):
            assert bits("odd") == plain
            assert torch.is_inference_mode_enabled()
            assert torch.get_default_device().type == "meta"
            assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


class Unsettled(gymnasium.Wrapper[Any, Any, Any, Any]):
    """FrozenLake, one of whose calls leaves torch with another default dtype, or no gradients."""

    def __init__(self, spoil: Callable[[], None], when: str) -> None:
        super().__init__(gymnasium.make("FrozenLake-v1"))
        self.spoil, self.when = spoil, when
        self.spoiled("init")

    def spoiled(self, now: str) -> None:
        if self.when == now:
            self.spoil()

    def reset(self, **options: Any) -> Any:
        self.spoiled("reset")
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        self.spoiled("step")
        return self.env.step(action)


@pytest.fixture
def usual_torch() -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)


SPOILS = {
    "float64": lambda: torch.set_default_dtype(torch.float64),
    "no gradients": lambda: torch.set_grad_enabled(False),
}


@pytest.mark.usefixtures("usual_torch")
@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("when", ["init", "reset", "step", "on_log"])
def test_what_a_callback_or_environment_sets_in_torch_changes_no_bit_of_the_run(
    when: str, spoil: str, tmp_path: Path
) -> None:
    overrides = TINY | {"policy.memory": "gru", "log.every": 1}

    def bits(when: str) -> bytes:
        on_log = SPOILS[spoil] if when == "on_log" else lambda: None
        run = rlpg.train(lambda: Unsettled(SPOILS[spoil], when), "ppo", total_steps=96,
                         run_dir=tmp_path / when, overrides=overrides, quiet=True,
                         on_log=lambda *_: on_log())  # fmt: skip
        assert torch.get_default_dtype() == torch.float32
        assert run.evaluation is not None
        parts = (run.evaluation.returns, *run.policy.state_dict().values())
        return b"".join(np.asarray(part).tobytes() for part in parts)

    assert bits(when) == bits("never")

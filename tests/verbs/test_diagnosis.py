"""`rlpg diagnose`: what it says about a gradient is checked where the answer is known."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rlpg
from rlpg.cli import main
from rlpg.errors import FileError, UsageError
from rlpg.gradients.baselines import NoBaseline
from rlpg.learners.advantages import AdvantageRule
from rlpg.learners.settings import LearnerSettings
from rlpg.verbs.diagnosis import Diagnosis, differs, measured

QUICK = {"evaluation.episodes": 2, "evaluation.final_episodes": 2, "log.tensorboard": False}


def rule(*, gae_lambda: float | None = None, gamma_weight: bool = True) -> AdvantageRule:
    settings = LearnerSettings(gamma=0.9, gae_lambda=None, gamma_weight=gamma_weight)
    made = AdvantageRule(NoBaseline(), settings)
    made.gae_lambda = gae_lambda
    return made


def test_norm_variance_bias_and_critical_batch_of_known_gradients() -> None:
    """Two estimators in P = 50 dimensions: means (3, 4, 0...) and (3, 0, 0...), variance 2 and 0.5
    per coordinate and episode; groups of 4 episodes of 10 steps.

    |g|^2 = 25, tr Cov = 100; the batch of 200 steps has 20 episodes: signal to noise 25/(100/20)
    = 5, critical batch 100/25 = 4 episodes = 40 steps. The second is off by 4/5, its direction by
    the cosine 3*3/(5*3) = 0.6.
    """
    generator = torch.Generator().manual_seed(0)
    groups, size = 600, 4
    noise = torch.randn(groups, 2, 50, generator=generator, dtype=torch.float64)
    gradients = noise * torch.tensor([2.0, 0.5]).sqrt()[:, None] / size**0.5
    gradients[:, 0, :2] += torch.tensor([3.0, 4.0])
    gradients[:, 1, 0] += 3.0
    rules = {"exact": rule(), "biased": rule(gamma_weight=False)}
    found = measured(rules, gradients, size, 10.0, 200)
    exact, biased = found["estimates"]
    assert found["reference"] == "exact"
    assert (exact.unbiased, biased.unbiased) == (True, False)
    assert exact.norm == pytest.approx(5.0, rel=0.03)
    assert exact.variance == pytest.approx(100.0, rel=0.03)
    assert exact.signal_to_noise == pytest.approx(5.0, rel=0.05)
    assert exact.critical_steps == pytest.approx(40.0, rel=0.05)
    assert exact.cosine == pytest.approx((1 + 1 / 5) ** -0.5, rel=0.03)
    assert exact.bias == 0.0
    assert biased.bias == pytest.approx(0.8, rel=0.03)
    assert biased.alignment == pytest.approx(0.6, rel=0.03)


def test_a_difference_is_certain_only_beyond_chance() -> None:
    """64 groups, 500 dimensions: of 100 differences without a mean, about 0.1 are called certain;
    a mean of 0.5 deviations in one coordinate is 4 standard errors of that coordinate's mean."""
    generator = torch.Generator().manual_seed(1)
    wrong = sum(differs(torch.randn(64, 5, generator=generator)) for _ in range(100))
    assert wrong <= 2
    shifted = torch.randn(64, 5, generator=generator)
    shifted[:, 0] += 1.0
    assert differs(shifted)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diagnosis") / "run"
    return rlpg.train("CartPole-v1", seed=0, total_steps=2000, run_dir=path, overrides=QUICK).path


def test_the_command_prints_writes_and_draws(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    files = ["--json", str(tmp_path / "d.json"), "--plot", str(tmp_path / "d.png")]
    assert main(["diagnose", str(run), "--episodes", "64", *files]) == 0
    printed = capsys.readouterr().out
    content: dict[str, Any] = json.loads((tmp_path / "d.json").read_text())
    names = [row["name"] for row in content["estimates"]]
    for name in ("none", "moving_average", "time_step", "leave_one_out", "linear", "value"):
        assert name in names
        assert name in printed
    assert any("no gamma^t" in name for name in names)
    by_name = {row["name"]: row for row in content["estimates"]}
    assert by_name["value"]["variance"] < by_name["none"]["variance"]
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before  # reads only


@pytest.mark.parametrize("baseline", ["leave_one_out", "linear"])
def test_runs_without_a_value_network_are_diagnosed_too(baseline: str, tmp_path: Path) -> None:
    from rlpg.verbs.diagnosis import diagnose

    overrides = QUICK | {"learner.baseline": baseline, "environment.max_episode_steps": 30}
    run = rlpg.train("Pendulum-v1", total_steps=512, run_dir=tmp_path / "r", overrides=overrides)
    found = diagnose(run.path, episodes=16)
    assert found.best.unbiased
    assert found.episodes == 16


def test_a_shared_torso_was_refused_for_the_baselines_that_it_is_compared_with(
    tmp_path: Path,
) -> None:
    from rlpg.verbs.diagnosis import diagnose

    overrides = QUICK | {"policy.shared_torso": True, "environment.max_episode_steps": 20}
    run = rlpg.train("CartPole-v1", "ppo", total_steps=64, run_dir=tmp_path / "r",
                     overrides=overrides | {"rollout.num_steps": 8})  # fmt: skip
    rows = {row.name: row for row in diagnose(run.path, episodes=32).estimates}
    assert {"none", "leave_one_out", "linear", "value", "value, GAE 0.95"} <= rows.keys()
    assert rows["none"].variance > 0


def test_what_cannot_be_diagnosed_is_refused(tmp_path: Path, run: Path) -> None:
    from rlpg.verbs.diagnosis import diagnose

    with pytest.raises(FileError, match="expected a run's folder"):
        diagnose(tmp_path)
    with pytest.raises(UsageError, match="episodes: expected at least 4"):
        diagnose(run, episodes=1)


class Full(io.TextIOBase):
    """A stream with no space left."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_output_does_not_cost_the_json(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", Full())
    main(["diagnose", str(run), "--episodes", "4", "--json", str(tmp_path / "d.json")])
    assert json.loads((tmp_path / "d.json").read_text())["episodes"] == 4


def test_what_is_not_finite_is_null_in_the_json() -> None:
    rules = {"exact": rule()}
    found = measured(rules, torch.zeros(8, 1, 3), 1, 10.0, 20)
    made = Diagnosis(env="E", episodes=8, mean_length=10.0, batch_steps=20, **found)
    assert made.as_dict()["estimates"][0]["critical_steps"] is None
    json.dumps(made.as_dict(), allow_nan=False)


def test_the_cosine_with_a_gradient_that_is_zero_was_printed_as_nan() -> None:
    """A finished policy: the reference, whose advantages are all 0, has no direction."""
    gradients = torch.zeros(8, 2, 3)
    gradients[:, 1] = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + 9.0
    rules = {"exact": rule(), "biased": rule(gamma_weight=False)}
    found = measured(rules, gradients, 1, 10.0, 20)
    text = str(Diagnosis(env="E", episodes=8, mean_length=10.0, batch_steps=20, **found))
    assert "nan" not in text
    assert "no gradient is left to measure" in text

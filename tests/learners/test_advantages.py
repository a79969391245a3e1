"""The options that change what is estimated, each by hand, on one small rollout."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlpg.errors import UsageError
from rlpg.gradients.baselines import Baseline, NoBaseline
from rlpg.learners.advantages import (
    AdvantageRule,
    Advantages,
    explained_variance,
    normalize,
    normalize_rows,
    variance_removed,
)
from rlpg.learners.settings import LearnerSettings
from rlpg.learners.values import StateValue
from rlpg.rollouts import Rollout

sys.path.append(str(Path(__file__).parent))
from listed import make_rollout


class ValueIsTheNumber(StateValue):
    """V(s) = s, for observations that are numbers."""

    def predict(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return rollout.obs[:-1], rollout.successor(rollout.obs, rollout.final_obs)


def advantages(rollout: Rollout, baseline: Baseline | None = None, **options: Any) -> Advantages:
    settings: dict[str, Any] = {
        "gamma": 0.5,
        "gae_lambda": None,
        "normalize_advantages": False,
    }
    rule = AdvantageRule(baseline or NoBaseline(), LearnerSettings(**(settings | options)))
    return rule(rollout, rollout.reward)


def four_ends() -> Rollout:
    """T = 3, N = 4; an episode terminates; is cut by a time limit; goes on; begins in slot 1.

    step  env 0                env 1                  env 2          env 3
    0     1                    1                      1              4, terminated
    1     2, terminated        2, truncated at 40     2              slot of the reset
    2     8 (a new episode)    8 (a new episode)      4              8 (a new episode)

    Values of the observations: 10, 20, 30 and 60 after the last step, everywhere.
    """
    true, false = True, False
    return make_rollout(
        torch.tensor([10.0, 20.0, 30.0, 60.0])[:, None].expand(4, 4).clone(),
        torch.zeros(3, 4),
        [[1.0, 1.0, 1.0, 4.0], [2.0, 2.0, 2.0, 9.0], [8.0, 8.0, 4.0, 8.0]],
        terminated=[[false] * 3 + [true], [true, false, false, false], [false] * 4],
        truncated=[[false] * 4, [false, true, false, false], [false] * 4],
        valid=[[true] * 4, [true, true, true, false], [true] * 4],
        time=[[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 2, 0]],
        finals=[(1, 1, torch.tensor(40.0))],
    )


class TestTruncatedReturn:
    def test_terminal_ends_where_it_was_cut(self) -> None:
        got = advantages(four_ends(), truncated_return="terminal").returns
        # gamma = 1/2: 1 + 2/2; 1 + 2/2; 1 + 2/2 + 4/4
        assert got.tolist() == [[2.0, 2.0, 3.0, 4.0], [2.0, 2.0, 4.0, 0.0], [8.0, 8.0, 4.0, 8.0]]
        # Asked for, it is the same with a baseline that could do otherwise.
        other = advantages(four_ends(), ValueIsTheNumber(), truncated_return="terminal")
        assert torch.equal(other.returns, got)
        assert other.advantage[:, 0].tolist() == [2.0 - 10, 2.0 - 20, 8.0 - 30]

    def test_bootstrap_adds_the_value_of_the_true_last_state(self) -> None:
        got = advantages(four_ends(), ValueIsTheNumber(), truncated_return="bootstrap").returns
        # after the rollout: 60/2; at the time limit 40/2, not the 30 that follows the reset; after
        # a termination nothing
        assert got[:, 0].tolist() == [2.0, 2.0, 38.0]
        assert got[:, 1].tolist() == [12.0, 22.0, 38.0]
        assert got[:, 2].tolist() == [10.5, 19.0, 34.0]
        assert got[:, 3].tolist() == [4.0, 0.0, 38.0]

    def test_drop_keeps_what_terminated(self) -> None:
        got = advantages(four_ends(), truncated_return="drop")
        kept = [[True, False, False, True], [True, False, False, False], [False] * 4]
        assert (got.weight > 0).tolist() == kept
        assert got.advantage.tolist() == [[2.0, 0, 0, 4.0], [2.0, 0, 0, 0], [0.0] * 4]
        assert got.weight[0, 0].item() == pytest.approx(1 / 3)
        # of the two episodes that are left: (2 + 4), in three steps
        assert got.objective.item() == pytest.approx(6 / 3)
        got = advantages(four_ends(), truncated_return="drop", average="episodes")
        assert got.objective.item() == pytest.approx(6 / 2)
        assert got.weight[0, 0].item() == pytest.approx(1 / 2)

    def test_terminal_by_default_and_bootstrap_where_it_can(self) -> None:
        rollout = four_ends()
        plain = advantages(rollout, truncated_return="terminal").returns
        assert torch.equal(advantages(rollout).returns, plain)
        best = advantages(rollout, ValueIsTheNumber(), truncated_return="bootstrap").returns
        assert torch.equal(advantages(rollout, ValueIsTheNumber()).returns, best)

    @pytest.mark.parametrize("option", ["terminal", "bootstrap", "drop"])
    @pytest.mark.parametrize("row", [0, 1])
    def test_termination_wins_over_a_time_limit(self, option: str, row: int) -> None:
        # A collector never sets both; a rollout made by hand may.
        end = torch.arange(2)[:, None] == row  # [T, N]
        both, one = (
            make_rollout(
                torch.tensor([[10.0], [20.0], [60.0]]),
                torch.zeros(2, 1),
                [[1.0], [2.0]],
                terminated=end,
                truncated=end & flag,
                time=[[0], [1 if row else 0]],
            )
            for flag in (torch.tensor(True), torch.tensor(False))
        )
        for gae_lambda in (None, 0.5) if option == "bootstrap" else (None,):
            options = {"truncated_return": option, "gae_lambda": gae_lambda}
            got, expected = (
                advantages(each, ValueIsTheNumber(), **options) for each in (both, one)
            )
            assert torch.equal(got.returns, expected.returns)
            assert torch.equal(got.weight, expected.weight)


class TestAdvantage:
    def test_is_return_minus_baseline(self) -> None:
        got = advantages(four_ends(), ValueIsTheNumber())
        assert got.advantage[:, 1].tolist() == [12.0 - 10, 22.0 - 20, 38.0 - 30]
        assert got.advantage[1, 3].item() == 0.0  # no transition

    def test_gae_by_hand(self) -> None:
        got = advantages(four_ends(), ValueIsTheNumber(), gae_lambda=0.5)
        # env 1: delta_1 = 2 + 40/2 - 20 = 2, delta_0 = 1 + 20/2 - 10 = 1; 1 + 2/4
        # env 2: deltas 1, 2 + 15 - 20 = -3, 4 + 30 - 30 = 4; -3 + 4/4 = -2; 1 - 2/4
        # env 0: 2 - 20 = -18; 1 - 18/4 = -3.5; the last 8 + 30 - 30
        assert got.advantage[:, 1].tolist() == [1.5, 2.0, 8.0]
        assert got.advantage[:, 2].tolist() == [0.5, -2.0, 4.0]
        assert got.advantage[:, 0].tolist() == [-3.5, -18.0, 8.0]
        # what the value function is taught: the lambda-return
        assert got.returns[:, 1].tolist() == [11.5, 22.0, 38.0]
        assert got.returns[1, 3].item() == 0.0

    def test_gae_of_lambda_one_is_return_minus_baseline(self) -> None:
        one = advantages(four_ends(), ValueIsTheNumber(), gae_lambda=1.0)
        torch.testing.assert_close(
            one.advantage, advantages(four_ends(), ValueIsTheNumber()).advantage
        )

    def test_standardized_over_what_counts(self) -> None:
        got = advantages(four_ends(), truncated_return="drop", normalize_advantages=True)
        # 2, 2, 4: mean 8/3, deviation sqrt(4/3)
        expected = torch.tensor([-2.0, -2.0, 4.0]) / 3 / (4 / 3) ** 0.5
        kept = torch.stack([got.normalized[0, 0], got.normalized[1, 0], got.normalized[0, 3]])
        torch.testing.assert_close(kept, expected)
        assert int((got.normalized != 0).sum()) == 3
        assert got.advantage[0, 3].item() == 4.0  # what the metrics are made of


class TestAverage:
    def test_over_steps(self) -> None:
        got = advantages(four_ends())
        assert got.weight.sum().item() == pytest.approx(1.0)
        assert got.weight[0, 0].item() == pytest.approx(1 / 11)  # 12 slots, one of them a reset
        # Returns of the episodes that began here: 2 + 8, 2 + 8, 3, 4 + 8
        assert got.objective.item() == pytest.approx(35 / 11)

    def test_over_episodes(self) -> None:
        got = advantages(four_ends(), average="episodes")
        assert got.weight[0, 0].item() == pytest.approx(1 / 7)
        assert got.objective.item() == pytest.approx(35 / 7)

    def test_an_episode_that_began_in_an_earlier_rollout_is_one_of_them(self) -> None:
        rollout = make_rollout(
            torch.zeros(4, 1),
            torch.zeros(3, 1),
            [[4.0], [2.0], [8.0]],
            terminated=[[False], [True], [True]],
            time=[[7], [8], [0]],
        )
        got = advantages(rollout, average="episodes", gamma_weight=True)
        assert got.objective.item() == pytest.approx((5 + 8) / 2)
        # gamma^t counts from the true beginning of the episode
        expected = torch.tensor([[0.5**7], [0.5**8], [1.0]]) / 2
        torch.testing.assert_close(got.weight, expected)

    def test_nothing_at_all(self) -> None:
        rollout = make_rollout(torch.zeros(2, 1), torch.zeros(1, 1), [[4.0]], terminated=[[False]])
        got = advantages(rollout, truncated_return="drop")
        assert got.objective.item() == 0.0
        assert got.weight.tolist() == [[0.0]]


class TestGammaWeight:
    def test_multiplies_the_weight_not_the_return(self) -> None:
        plain, weighted = advantages(four_ends()), advantages(four_ends(), gamma_weight=True)
        discount = torch.tensor([[1, 1, 1, 1], [0.5, 0.5, 0.5, 0], [1, 1, 0.25, 1]])
        torch.testing.assert_close(weighted.weight, plain.weight * discount)
        assert torch.equal(weighted.returns, plain.returns)
        assert torch.equal(weighted.advantage, plain.advantage)
        assert weighted.objective.item() == plain.objective.item()


class TestContradictions:
    @pytest.mark.parametrize(
        ("baseline", "options", "message"),
        [
            (NoBaseline(), {"gae_lambda": 0.9}, "gae_lambda: needs .* got NoBaseline"),
            (NoBaseline(), {"truncated_return": "bootstrap"}, "truncated_return: bootstrap needs"),
            (
                ValueIsTheNumber(),
                {"gae_lambda": 0.9, "truncated_return": "drop"},
                "truncated_return: expected bootstrap with gae_lambda, got drop",
            ),
        ],
    )
    def test_are_refused(self, baseline: Baseline, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            advantages(four_ends(), baseline, **options)


class TestNormalize:
    def test_by_hand(self) -> None:
        # 1, 2, 6 count: mean 3, deviation sqrt((4 + 1 + 9) / 2) = sqrt 7
        x = torch.tensor([[1.0, 2.0], [6.0, 50.0]])
        got = normalize(x, torch.tensor([[True, True], [True, False]]))
        expected = torch.tensor([[-2.0, -1.0], [3.0, 0.0]]) / 7**0.5
        torch.testing.assert_close(got, expected)

    def test_a_single_one_is_left_as_it_is(self) -> None:
        x = torch.tensor([[3.0, 8.0]])
        assert normalize(x, torch.tensor([[True, False]])).tolist() == [[3.0, 0.0]]
        assert normalize(x, torch.zeros(1, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0]]

    @pytest.mark.parametrize("number", [0.0, 0.1, 100.1, 12345.678, -3e7])
    @pytest.mark.parametrize("count", [2, 10, 1000, 2048])
    def test_rounding_of_equal_numbers_is_not_a_deviation(self, number: float, count: int) -> None:
        # The float32 mean of 2048 times 100.1 is off by its last digit: centerd and divided by
        # their own "deviation", all advantages were 0.9999.
        x = torch.full((count, 3), number)
        got = normalize(x, torch.ones_like(x, dtype=torch.bool))
        assert float(got.abs().max()) <= 1e-6 * abs(number)

    @pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
    def test_does_not_depend_on_the_unit_of_reward(self, unit: float) -> None:
        x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        got = normalize(unit * x, torch.ones_like(x, dtype=torch.bool))
        torch.testing.assert_close(got, normalize(x, torch.ones_like(x, dtype=torch.bool)))

    def test_huge_numbers_do_not_vanish(self) -> None:
        # 1e25 squared is no float32: everything was divided by an infinite deviation.
        got = normalize(torch.tensor([[1e25, -1e25]]), torch.ones(1, 2, dtype=torch.bool))
        torch.testing.assert_close(got, torch.tensor([[0.5**0.5, -(0.5**0.5)]]))

    @pytest.mark.parametrize("size", [2, 3, 64, 65, 1000])
    def test_rows_together_have_the_bits_of_each_by_itself(self, size: int) -> None:
        generator = torch.Generator().manual_seed(size)
        x = torch.randn(33, size, generator=generator) * torch.logspace(-6, 6, 33)[:, None]
        x[3] = 100.1  # all equal
        every = torch.ones(size, dtype=torch.bool)
        assert torch.equal(normalize_rows(x), torch.stack([normalize(row, every) for row in x]))

    def test_what_does_not_count_may_be_anything(self) -> None:
        for garbage in (float("nan"), float("inf"), 1e30):
            x = torch.tensor([[1.0, garbage, 3.0]])
            got = normalize(x, torch.tensor([[True, False, True]]))
            torch.testing.assert_close(got, torch.tensor([[-(0.5**0.5), 0.0, 0.5**0.5]]))


class TestVarianceRemoved:
    def test_by_hand(self) -> None:
        # 1 - ((0.5 x 1)^2 + (1 x 2)^2) / ((0.5 x 4)^2 + (1 x 3)^2) = 1 - 4.25 / 13
        returns = torch.tensor([[4.0, 3.0, 9.0]])
        advantage = torch.tensor([[1.0, 2.0, 9.0]])
        weight = torch.tensor([[0.5, 1.0, 0.0]])
        got = variance_removed(returns, advantage, weight)
        assert got == pytest.approx(1 - 4.25 / 13, rel=1e-6)

    def test_is_exact_where_all_scores_have_one_length(self) -> None:
        # A fair coin paying 3 or 5, baseline 3: the score is +-1/2, so that
        # E[s^2 A^2] / E[s^2 G^2] = (0 + 4) / (9 + 25).
        returns = torch.tensor([[3.0, 5.0]])
        got = variance_removed(returns, returns - 3.0, torch.full((1, 2), 0.5))
        assert got == pytest.approx(1 - 4 / 34, rel=1e-6)

    def test_a_harmful_baseline_is_negative(self) -> None:
        returns = torch.ones(2, 2)
        assert variance_removed(returns, returns - 3.0, torch.ones(2, 2)) == pytest.approx(-3.0)

    def test_no_return_at_all(self) -> None:
        zeros = torch.zeros(2, 2)
        assert math.isnan(variance_removed(zeros, zeros, torch.ones(2, 2)))


class TestExplainedVariance:
    @pytest.mark.parametrize(
        ("baseline", "expected"),
        [
            ([1.0, 2.0, 6.0], 1.0),  # nothing left
            ([3.0, 3.0, 3.0], 0.0),  # the mean
            ([-4.0, -3.0, 1.0], 1.0),  # a shift explains everything that varies
            ([6.0, 2.0, 1.0], 1 - 25 / 7),  # errors -5, 0, 5: variance 25; returns: 7
        ],
    )
    def test_by_hand(self, baseline: list[float], expected: float) -> None:
        returns = torch.tensor([[1.0, 2.0, 6.0, 1e9]])
        advantage = returns - torch.tensor([[*baseline, 0.0]])
        weight = torch.tensor([[1.0, 0.2, 1.0, 0.0]])
        got = explained_variance(returns, advantage, weight)
        assert got == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("returns", [[[1.0]], [[2.0, 2.0]]])
    def test_nothing_to_explain(self, returns: list[list[float]]) -> None:
        given: Tensor = torch.tensor(returns)
        assert math.isnan(explained_variance(given, given, torch.ones_like(given)))


def test_a_baseline_that_wrote_into_the_returns_took_them_from_the_gradient() -> None:
    class Writing(Baseline):
        def __call__(self, samples: object, returns: Tensor) -> Tensor:
            return returns.zero_()

    got, plain = (
        advantages(four_ends(), b, truncated_return="terminal") for b in (Writing(), None)
    )
    assert torch.equal(got.returns, plain.returns)
    assert torch.equal(got.advantage, plain.advantage)

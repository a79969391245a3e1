"""The options that change what is estimated, each by hand, on one small rollout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rlpg.learners.credit import Credit, CreditRule
from torch import Tensor

from rlpg.errors import UsageError
from rlpg.gradients.baselines import Baseline, NoBaseline
from rlpg.learners.values import StateValue
from rlpg.rollouts import Rollout

sys.path.append(str(Path(__file__).parent))
from listed import make_rollout


class ValueIsTheNumber(StateValue):
    """V(s) = s, for observations that are numbers."""

    def predict(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return rollout.obs[:-1], rollout.successor(rollout.obs, rollout.final_obs)


def credit(rollout: Rollout, baseline: Baseline | None = None, **options: Any) -> Credit:
    settings: dict[str, Any] = {
        "gamma": 0.5,
        "gae_lambda": None,
        "truncated_return": None,
        "gamma_weight": False,
        "average": "steps",
        "normalize_advantages": False,
    }
    rule = CreditRule(baseline or NoBaseline(), **(settings | options))
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
        got = credit(four_ends(), truncated_return="terminal").returns
        # gamma = 1/2: 1 + 2/2; 1 + 2/2; 1 + 2/2 + 4/4
        assert got.tolist() == [[2.0, 2.0, 3.0, 4.0], [2.0, 2.0, 4.0, 0.0], [8.0, 8.0, 4.0, 8.0]]
        # Asked for, it is the same with a baseline that could do otherwise.
        other = credit(four_ends(), ValueIsTheNumber(), truncated_return="terminal")
        assert torch.equal(other.returns, got)
        assert other.advantage[:, 0].tolist() == [2.0 - 10, 2.0 - 20, 8.0 - 30]

    def test_bootstrap_adds_the_value_of_the_true_last_state(self) -> None:
        got = credit(four_ends(), ValueIsTheNumber(), truncated_return="bootstrap").returns
        # after the rollout: 60/2; at the time limit 40/2, not the 30 that follows the reset; after
        # a termination nothing
        assert got[:, 0].tolist() == [2.0, 2.0, 38.0]
        assert got[:, 1].tolist() == [12.0, 22.0, 38.0]
        assert got[:, 2].tolist() == [10.5, 19.0, 34.0]
        assert got[:, 3].tolist() == [4.0, 0.0, 38.0]

    def test_drop_keeps_what_terminated(self) -> None:
        got = credit(four_ends(), truncated_return="drop")
        kept = [[True, False, False, True], [True, False, False, False], [False] * 4]
        assert (got.weight > 0).tolist() == kept
        assert got.advantage.tolist() == [[2.0, 0, 0, 4.0], [2.0, 0, 0, 0], [0.0] * 4]
        assert got.weight[0, 0].item() == pytest.approx(1 / 3)
        # of the two episodes that are left: (2 + 4), in three steps
        assert got.objective.item() == pytest.approx(6 / 3)
        got = credit(four_ends(), truncated_return="drop", average="episodes")
        assert got.objective.item() == pytest.approx(6 / 2)
        assert got.weight[0, 0].item() == pytest.approx(1 / 2)

    def test_terminal_by_default_and_bootstrap_where_it_can(self) -> None:
        rollout = four_ends()
        plain = credit(rollout, truncated_return="terminal").returns
        assert torch.equal(credit(rollout).returns, plain)
        best = credit(rollout, ValueIsTheNumber(), truncated_return="bootstrap").returns
        assert torch.equal(credit(rollout, ValueIsTheNumber()).returns, best)

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
            got, expected = (credit(each, ValueIsTheNumber(), **options) for each in (both, one))
            assert torch.equal(got.returns, expected.returns)
            assert torch.equal(got.weight, expected.weight)


class TestAdvantage:
    def test_is_return_minus_baseline(self) -> None:
        got = credit(four_ends(), ValueIsTheNumber())
        assert got.advantage[:, 1].tolist() == [12.0 - 10, 22.0 - 20, 38.0 - 30]
        assert got.advantage[1, 3].item() == 0.0  # no transition

    def test_gae_by_hand(self) -> None:
        got = credit(four_ends(), ValueIsTheNumber(), gae_lambda=0.5)
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
        one = credit(four_ends(), ValueIsTheNumber(), gae_lambda=1.0)
        torch.testing.assert_close(one.advantage, credit(four_ends(), ValueIsTheNumber()).advantage)

    def test_standardized_over_what_counts(self) -> None:
        got = credit(four_ends(), truncated_return="drop", normalize_advantages=True)
        # 2, 2, 4: mean 8/3, deviation sqrt(4/3)
        expected = torch.tensor([-2.0, -2.0, 4.0]) / 3 / (4 / 3) ** 0.5
        kept = torch.stack([got.multiplier[0, 0], got.multiplier[1, 0], got.multiplier[0, 3]])
        torch.testing.assert_close(kept, expected)
        assert int((got.multiplier != 0).sum()) == 3
        assert got.advantage[0, 3].item() == 4.0  # what the figures are made of


class TestAverage:
    def test_over_steps(self) -> None:
        got = credit(four_ends())
        assert got.weight.sum().item() == pytest.approx(1.0)
        assert got.weight[0, 0].item() == pytest.approx(1 / 11)  # 12 slots, one of them a reset
        # Returns of the episodes that began here: 2 + 8, 2 + 8, 3, 4 + 8
        assert got.objective.item() == pytest.approx(35 / 11)

    def test_over_episodes(self) -> None:
        got = credit(four_ends(), average="episodes")
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
        got = credit(rollout, average="episodes", gamma_weight=True)
        assert got.objective.item() == pytest.approx((5 + 8) / 2)
        # gamma^t counts from the true beginning of the episode
        expected = torch.tensor([[0.5**7], [0.5**8], [1.0]]) / 2
        torch.testing.assert_close(got.weight, expected)

    def test_nothing_at_all(self) -> None:
        rollout = make_rollout(torch.zeros(2, 1), torch.zeros(1, 1), [[4.0]], terminated=[[False]])
        got = credit(rollout, truncated_return="drop")
        assert got.objective.item() == 0.0
        assert got.weight.tolist() == [[0.0]]


class TestGammaWeight:
    def test_multiplies_the_weight_not_the_return(self) -> None:
        plain, weighted = credit(four_ends()), credit(four_ends(), gamma_weight=True)
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
            credit(four_ends(), baseline, **options)

"""Rewards over the running deviation of their discounted sum."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpg.learners.reward_scale import RewardScale
from rlpg.rollouts import Rollout

sys.path.append(str(Path(__file__).parent))
from listed import make_rollout


def deviation_by_hand(episodes: list[list[float]], gamma: float) -> float:
    """Of the discounted sums so far, over all steps of all episodes."""
    sums = []
    for rewards in episodes:
        so_far = 0.0
        for reward in rewards:
            so_far = reward + gamma * so_far
            sums.append(so_far)
    return float(np.std(sums))


def one_env(steps: list[tuple[float, str]], *, next_step: bool, first_time: int = 0) -> Rollout:
    """Rewards with how the step ended ("", "terminated", "truncated") as a rollout of one
    environment; with `next_step`, an episode's end is followed by a slot full of garbage."""
    reward, valid, time = [], [], []
    ends: dict[str, list[bool]] = {"terminated": [], "truncated": []}
    clock = first_time
    for paid, end in steps:
        reward.append(paid)
        valid.append(True)
        time.append(clock)
        clock = 0 if end else clock + 1
        for name, flags in ends.items():
            flags.append(end == name)
        if end and next_step:
            reward.append(1e30)
            valid.append(False)
            time.append(0)
            for flags in ends.values():
                flags.append(False)

    def column(entries: list[bool] | list[int]) -> torch.Tensor:
        return torch.tensor(entries)[:, None]

    shape = (len(reward), 1)
    return make_rollout(
        torch.zeros(shape[0] + 1, 1),
        torch.zeros(shape),
        torch.tensor(reward)[:, None],
        valid=column(valid),
        time=column(time),
        **{name: column(flags) for name, flags in ends.items()},
    )


class TestRewardScale:
    def test_is_one_before_the_first_update(self) -> None:
        assert RewardScale(0.9).scale == 1.0

    def test_by_hand(self) -> None:
        # Sums so far with gamma = 0.5: 2, 4 + 1 = 5, 1 + 2.5 = 3.5; mean 3.5,
        # variance (2.25 + 2.25 + 0) / 3 = 1.5
        scale = RewardScale(0.5)
        scale.update(one_env([(2.0, ""), (4.0, ""), (1.0, "terminated")], next_step=False))
        assert scale.scale == pytest.approx(1.5**0.5, rel=1e-6)

    def test_equal_sums_have_no_deviation_to_divide_by(self) -> None:
        scale = RewardScale(0.99)
        for _ in range(3):
            scale.update(one_env([(0.1, "terminated")] * 7, next_step=False))
        assert scale.scale == 1.0

    @given(
        episodes=st.lists(
            st.tuples(
                st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=5),
                st.sampled_from(["terminated", "truncated"]),
            ),
            min_size=1,
            max_size=6,
        ),
        cuts=st.sets(st.integers(1, 29)),
        next_step=st.booleans(),
        gamma=st.sampled_from([0.0, 0.9, 1.0]),
    )
    def test_however_rollouts_cut_the_episodes(
        self,
        episodes: list[tuple[list[float], str]],
        cuts: set[int],
        next_step: bool,
        gamma: float,
    ) -> None:
        steps = [
            (reward, end if k == len(rewards) - 1 else "")
            for rewards, end in episodes
            for k, reward in enumerate(rewards)
        ]
        clocks = [k for rewards, _ in episodes for k in range(len(rewards))]
        bounds = [0, *sorted(cut for cut in cuts if cut < len(steps)), len(steps)]
        scale = RewardScale(gamma)
        for start, stop in itertools.pairwise(bounds):
            part = steps[start:stop]
            rollout = one_env(part, next_step=next_step, first_time=clocks[start])
            scale.update(rollout)
            assert (rollout.reward[rollout.valid] == torch.tensor([r for r, _ in part])).all()
        expected = deviation_by_hand([rewards for rewards, _ in episodes], gamma)
        assert scale.scale == pytest.approx(expected if expected > 1e-6 else 1.0, rel=1e-5)

    def test_a_reset_slot_first_in_the_rollout(self) -> None:
        # NEXT_STEP: the episode ended in the last slot, its reset is the first of the next rollout.
        scale = RewardScale(0.5)
        scale.update(one_env([(2.0, ""), (4.0, "truncated")], next_step=False))
        after = one_env([(0.0, "terminated"), (1.0, ""), (3.0, "")], next_step=True)
        scale.update(
            make_rollout(
                after.obs[1:],
                after.action[1:],
                after.reward[1:],
                terminated=after.terminated[1:],
                truncated=after.truncated[1:],
                valid=after.valid[1:],
                time=after.time[1:],
            )
        )
        expected = deviation_by_hand([[2.0, 4.0], [1.0, 3.0]], 0.5)
        assert scale.scale == pytest.approx(expected, rel=1e-6)

    def test_collecting_afresh_forgets_the_unfinished_episode(self) -> None:
        # steps() left an episode open; episodes() then begins a new one, with time 0.
        scale = RewardScale(1.0)
        scale.update(one_env([(2.0, ""), (4.0, "")], next_step=False))
        scale.update(one_env([(1.0, ""), (3.0, "terminated")], next_step=False))
        expected = deviation_by_hand([[2.0, 4.0], [1.0, 3.0]], 1.0)
        assert scale.scale == pytest.approx(expected, rel=1e-6)

    def test_state_continues_in_the_middle_of_an_episode(self) -> None:
        scale, twin = RewardScale(0.9), RewardScale(0.9)
        scale.update(one_env([(2.0, ""), (4.0, "")], next_step=False))
        twin.load_state_dict(scale.state_dict())
        for each in (scale, twin):
            each.update(one_env([(1.0, ""), (3.0, "terminated")], next_step=False, first_time=2))
        assert twin.scale == scale.scale
        assert twin.scale == pytest.approx(deviation_by_hand([[2, 4, 1, 3]], 0.9), rel=1e-6)

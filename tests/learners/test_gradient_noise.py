"""What an update tells about itself, against cases whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from rlpg.learners.gradient_noise import signal_to_noise


class TestSignalToNoise:
    @pytest.mark.parametrize("signal", [0.0, 0.5, 4.0])
    def test_of_a_known_mean_and_covariance(self, signal: float) -> None:
        # g = sum of K contributions N(m / K, S / K) has the mean m and the covariance S = I / P
        # (trace 1), so the answer is |m|^2 = signal. With Q = |g|^2, V = K x summed variances:
        #   the figure is Q / V - 1,
        #   E Q = signal + 1, Var Q = 4 signal / P + 2 / P,
        #   V is chi-squared with d = (K - 1) P degrees of freedom, divided by d, and independent of
        #   Q: E 1/V = d / (d - 2), E 1/V^2 = d^2 / ((d - 2) (d - 4)).
        num_groups, size, draws = 4, 50, 2000
        generator = torch.Generator().manual_seed(7)
        mean = torch.full((size,), math.sqrt(signal / size))
        noise = torch.randn(draws, num_groups, size, generator=generator)
        groups = mean / num_groups + noise / math.sqrt(num_groups * size)
        got = torch.tensor([signal_to_noise(each, [2] * num_groups) for each in groups])
        d = (num_groups - 1) * size
        first, second = d / (d - 2), d**2 / ((d - 2) * (d - 4))
        expected = (signal + 1) * first - 1
        square = (signal + 1) ** 2 + (4 * signal + 2) / size
        variance = square * second - ((signal + 1) * first) ** 2
        z = (float(got.mean()) - expected) / math.sqrt(variance / draws)
        assert abs(z) < 4

    def test_groups_of_different_size_are_not_noise(self) -> None:
        # 5 environments in groups of 1, 1, 1, 2, all with nearly the same gradient: the sums differ
        # as 1 : 1 : 1 : 2, which was taken for noise (and the answer for 24).
        means = torch.tensor([0.99, 1.01, 0.99, 1.005])
        per_group = (torch.tensor([1.0, 1.0, 1.0, 2.0]) * means / 5)[:, None]
        # The mean is 1; an environment's variance (3 x 0.01^2 + 2 x 0.005^2) / 3, the mean's a
        # fifth of it.
        assert signal_to_noise(per_group, [1, 1, 1, 2]) == pytest.approx(15 / 3.5e-4, rel=0.01)

    def test_groups_of_different_size_by_hand(self) -> None:
        # Means of the groups: 2 and 5 of 1 and 2 environments; of all: (2 + 2 x 5) / 3 = 4.
        # Variance of one environment: (1 (2 - 4)^2 + 2 (5 - 4)^2) / (2 - 1) = 6, of the mean: 2.
        # |mean|^2 - 2 = 14; 14 / 2 = 7.
        per_group = torch.tensor([[2.0], [10.0]]) / 3
        assert signal_to_noise(per_group, [1, 2]) == pytest.approx(7.0, rel=1e-6)

    def test_one_group_says_nothing(self) -> None:
        assert math.isnan(signal_to_noise(torch.ones(1, 3), [4]))

    def test_without_any_gradient(self) -> None:
        assert math.isnan(signal_to_noise(torch.zeros(4, 3), [1, 1, 1, 1]))

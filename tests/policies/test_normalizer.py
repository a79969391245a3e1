"""The normalizer against numpy in float64."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpg.errors import NumericalFault, UsageError
from rlpg.policies import Normalizer

ALL = torch.ones(3, dtype=torch.bool)


def batches(seed: int, sizes: list[int], offset: float = 0.0, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    return [offset + scale * rng.standard_normal((size, 3)) for size in sizes]


def fed(parts) -> Normalizer:
    normalizer = Normalizer(ALL)
    for part in parts:
        normalizer.update(torch.from_numpy(part))
    return normalizer


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 3.0, -1e4, 1e8]),
    scale=st.sampled_from([1.0, 1e-3, 1e5]),
)
def test_moments_are_those_of_all_batches_together(seed, sizes, offset, scale):
    parts = batches(seed, sizes, offset, scale)
    normalizer, everything = fed(parts), np.concatenate(parts)
    assert normalizer.count == len(everything)
    if len(everything):
        rtol = 1e-12 + 1e-16 * abs(offset) / scale
        np.testing.assert_allclose(
            normalizer.mean, everything.mean(0), rtol=1e-14, atol=1e-9 * scale
        )
        expected = everything.var(0)
        np.testing.assert_allclose(normalizer.var, expected, rtol=1e3 * rtol, atol=1e-30)


def test_no_rows_change_nothing():
    (part,) = batches(0, [24])
    features = torch.from_numpy(part).reshape(4, 6, 3)
    normalizer = Normalizer(ALL)
    normalizer.update(features)
    assert normalizer.count == 24
    before = normalizer.mean.clone()
    normalizer.update(features[:0])
    assert torch.equal(before, normalizer.mean)


def test_the_output_is_standardized_and_clipped():
    parts = batches(1, [1000], offset=5.0, scale=3.0)
    normalizer = fed(parts)
    features = torch.from_numpy(parts[0]).float()
    expected = (parts[0] - parts[0].mean(0)) / parts[0].std(0)
    np.testing.assert_allclose(normalizer(features), expected, atol=1e-5)
    assert normalizer(torch.full((1, 3), 1e6)).tolist() == [[10.0] * 3]
    assert normalizer(torch.full((2, 2, 3), -1e6)).unique().tolist() == [-10.0]


def test_a_huge_offset_costs_no_accuracy():
    # float32 numbers near 1e8 are 8 apart: what arrives is coarse, what comes out must be exact.
    (part,) = batches(2, [1000], offset=1e8, scale=1e3)
    features = torch.from_numpy(part).float()
    normalizer = Normalizer(ALL)
    normalizer.update(features)
    exact = features.double().numpy()
    expected = (exact - exact.mean(0)) / exact.std(0)
    np.testing.assert_allclose(normalizer(features), expected, atol=1e-6)


def test_it_is_the_identity_before_the_first_update():
    features = torch.tensor([[1e9, -3.0, 0.5]])
    assert torch.equal(Normalizer(ALL)(features), features)


def test_a_constant_feature_becomes_zero():
    normalizer = fed([np.full((10, 3), 0.1)])
    assert normalizer(torch.full((1, 3), 0.1)).abs().max() < 1e-3


def test_features_that_are_not_marked_pass_unchanged():
    normalizer = Normalizer(torch.tensor([True, False, True]))
    features = torch.tensor([[0.0, 1.0, 10.0], [2.0, 0.0, 30.0]])
    normalizer.update(features)
    assert normalizer.mean.tolist() == [1.0, 20.0]
    np.testing.assert_allclose(normalizer(features), [[-1, 1, -1], [1, 0, 1]], atol=1e-6)


def test_restored_moments_give_the_same_bits():
    normalizer = fed(batches(3, [50, 7], offset=1e5))
    restored = Normalizer(ALL)
    restored.load_state_dict(normalizer.state_dict())
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) + 1e5
    assert torch.equal(normalizer(features), restored(features))
    assert torch.equal(normalizer(features), copy.deepcopy(normalizer)(features))
    assert set(normalizer.state_dict()) == {"count", "mean", "m2"}
    restored.load_state_dict(Normalizer(ALL).state_dict())
    assert torch.equal(restored(features), features)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_and_change_nothing(bad):
    normalizer = fed(batches(4, [5]))
    before = {name: value.clone() for name, value in normalizer.state_dict().items()}
    with pytest.raises(NumericalFault, match="finite"):
        normalizer.update(torch.tensor([[0.0, bad, 0.0]]))
    assert all(torch.equal(before[name], normalizer.state_dict()[name]) for name in before)


@pytest.mark.parametrize("clip", [0.5, float("nan")])
def test_a_clip_that_would_cut_categories_is_refused(clip):
    with pytest.raises(UsageError, match="at least 1"):
        Normalizer(ALL, clip=clip)
